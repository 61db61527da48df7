"""What the families share: seeded modules and inputs, and the mathematics of the ports, with its faults."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from einops import rearrange
from torch import nn

from tests.support.models import Fault

Wrong = frozenset[str]  # the names of the faults that a port has


def seeded(build: Callable[[], nn.Module], *, training: bool = False) -> Callable[[], nn.Module]:
    """A factory of a module whose parameters and running statistics are all random, and always the same."""

    def make() -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            module = build()
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                _randomise(name.rpartition(".")[2], tensor)
        return module.train(training)

    return make


def _randomise(name: str, tensor: torch.Tensor) -> None:
    if name == "num_batches_tracked":
        tensor.fill_(1000)
    elif name == "running_var":
        tensor.uniform_(0.5, 2)
    elif name == "running_mean" or ("bias" in name and tensor.is_floating_point()):
        tensor.normal_(0, 0.3)
    elif tensor.ndim == 1 and tensor.requires_grad:  # the scale of a norm or a layer
        tensor.uniform_(0.5, 1.5)


def port(build: Callable[[Wrong], Any]) -> Callable[..., Any]:
    """A factory of a port that takes the name of each fault as a keyword."""
    return lambda **wrong: build(frozenset(name for name, planted in wrong.items() if planted))


def faults(**described: tuple[str | tuple[str, ...], str, str]) -> dict[str, Fault]:
    """Faults by the keyword that plants each, from its path, quantity and cause."""
    return {name: Fault({name: True}, *description) for name, description in described.items()}


def normal(*shape: int) -> np.ndarray:
    """Standard normal numbers, always the same."""
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def integers(below: int, *shape: int) -> np.ndarray:
    """Integers from 0 on, always the same."""
    return np.random.default_rng(2).integers(below, size=shape)


def lengths_mask(batch: int, length: int) -> np.ndarray:
    """A mask that is true for the valid elements of sequences, of which the first misses one, and each one more."""
    return np.arange(length) < length - 1 - np.arange(batch)[:, None]


@jax.custom_vjp
def halved(x: jax.Array) -> jax.Array:
    """The identity, with half its derivative."""
    return x


halved.defvjp(lambda x: (x, None), lambda _, cotangent: (cotangent / 2,))


def rounded(x: jax.Array, dtype: Any) -> jax.Array:
    """The array cast to a type of lower precision, and back."""
    return x.astype(dtype).astype(x.dtype)


def gelu(x: jax.Array, wrong: Wrong) -> jax.Array:
    """The exact GELU."""
    return jax.nn.relu(x) if "relu" in wrong else jax.nn.gelu(x, approximate="approximate" in wrong)


def residual(
    x: jax.Array, norm: Callable[..., Any], layer: Callable[..., Any], wrong: Wrong = frozenset()
) -> jax.Array:
    """The residual sum x + layer(norm(x))."""
    skip = jax.lax.stop_gradient(x) if "detached_residual" in wrong else x
    if "residual_twice" in wrong:
        skip = skip + x
    return norm(skip + layer(x)) if "post_norm" in wrong else skip + layer(norm(x))


def split(x: jax.Array, heads: int, wrong: Wrong) -> jax.Array:
    """The heads of vectors, before the time."""
    return rearrange(x, f"... t {'(s h)' if 'heads_last' in wrong else '(h s)'} -> ... h t s", h=heads)


def merge(x: jax.Array, wrong: Wrong) -> jax.Array:
    """The inverse of `split`."""
    return rearrange(x, f"... h t s -> ... t {'(s h)' if 'heads_last' in wrong else '(h s)'}")


def attend(q: jax.Array, k: jax.Array, v: jax.Array, wrong: Wrong) -> jax.Array:
    """Causal attention over arrays of heads, times and sizes."""
    *_, heads, time, size = q.shape
    if "qk_swapped" in wrong:
        q, k = k, q
    scores = q @ k.mT
    if "no_scale" not in wrong:
        scores = scores / (heads * size if "width_scale" in wrong else size) ** 0.5
    seen = jnp.tril(jnp.ones((time, time), bool), k=1 if "mask_off_by_one" in wrong else 0)
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-2 if "softmax_axis" in wrong else -1)
    return weights @ v
