"""
A transformer block in PyTorch, and its port to a function in JAX with three mistakes, for `p3 check-model` to find.

`first` makes the port with all three mistakes, `second` with two, `third` with one, and `right` without any.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from torch import Tensor, nn

from jaxp3 import tap

WIDTH, HEADS = 16, 2
MISTAKES = ("epsilon", "scale", "gelu")


class Block(nn.Module):
    """The original: causal attention and a perceptron, each after a norm and with a residual."""

    def __init__(self) -> None:
        """Random parameters, always the same."""
        super().__init__()
        torch.manual_seed(0)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """From a batch of shape (batch, time, width) to another one."""
        y = self.norm1(x)
        q, k, v = (layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.mT / (WIDTH // HEADS) ** 0.5
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        x = x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(-2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


def parameters() -> dict[str, Any]:
    """The parameters of the port; `p3 check-model` writes those of the original into a copy."""
    random = np.random.default_rng(0)
    shapes = dict.fromkeys("qkvo", (WIDTH, WIDTH)) | {"up": (WIDTH, 4 * WIDTH), "down": (4 * WIDTH, WIDTH)}
    found: dict[str, Any] = {
        name: {"kernel": jnp.array(random.normal(size=shape)), "bias": jnp.zeros(shape[1])}
        for name, shape in shapes.items()
    }
    norms = {name: {"scale": jnp.ones(WIDTH), "bias": jnp.zeros(WIDTH)} for name in ("norm1", "norm2")}
    return found | norms


def block(p: dict[str, Any], x: Array, mistakes: tuple[str, ...] = ()) -> Array:
    """The port, with some of `MISTAKES`."""

    def dense(name: str, x: Array) -> Array:
        return tap(name, x @ p[name]["kernel"] + p[name]["bias"])

    def norm(name: str, x: Array) -> Array:
        x = x - x.mean(-1, keepdims=True)
        epsilon = 1e-6 if "epsilon" in mistakes else 1e-5  # flax has 1e-6 for PyTorch's 1e-5
        return tap(name, x / jnp.sqrt(x.var(-1, keepdims=True) + epsilon) * p[name]["scale"] + p[name]["bias"])

    y = norm("norm1", x)
    q, k, v = (dense(name, y).reshape(*y.shape[:2], HEADS, -1).swapaxes(1, 2) for name in "qkv")
    scores = q @ k.mT if "scale" in mistakes else q @ k.mT / (WIDTH // HEADS) ** 0.5
    scores = jnp.where(jnp.tri(scores.shape[-1], dtype=bool), scores, -jnp.inf)
    x = x + dense("o", (jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape))
    # JAX approximates GELU by tanh unless it is told not to.
    return x + dense("down", jax.nn.gelu(dense("up", norm("norm2", x)), approximate="gelu" in mistakes))


Port = tuple[Callable[..., Array], dict[str, Any]]


def first() -> Port:
    """The port with three mistakes."""
    return partial(block, mistakes=MISTAKES), parameters()


def second() -> Port:
    """The port with two mistakes."""
    return partial(block, mistakes=MISTAKES[1:]), parameters()


def third() -> Port:
    """The port with one mistake."""
    return partial(block, mistakes=MISTAKES[2:]), parameters()


def right() -> Port:
    """The port without mistakes."""
    return block, parameters()
