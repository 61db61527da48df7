"""A training in PyTorch, its port to JAX, and a port with a mistake, for docs/training_runs.md."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import jaxp3
import torchp3

STEPS = 100
Batch = tuple[np.ndarray, np.ndarray]


def batches() -> Iterator[Batch]:
    """Points, and the sine of their sum."""
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        x = random.normal(size=(32, 4)).astype(np.float32)
        yield x, np.sin(x.sum(axis=1, keepdims=True))


def model() -> nn.Module:
    """Two layers."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))


def torch_side() -> torchp3.Training:
    """The training in PyTorch: AdamW, clipping, and a cosine."""
    net = model()

    def loss(net: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return nn.functional.mse_loss(net(x), y)

    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    return torchp3.Training(net, loss, optimizer, scheduler, clip=1.0)


def loss(parameters: dict[str, jax.Array], batch: Any) -> jax.Array:
    """The same loss in JAX."""
    x, y = batch
    hidden = jnp.tanh(x @ parameters["0.weight"].T + parameters["0.bias"])
    return jnp.mean((hidden @ parameters["2.weight"].T + parameters["2.bias"] - y) ** 2)


def ported(weight_decay: float) -> jaxp3.Training:
    """The port, from the same parameters."""
    parameters = {path: jnp.asarray(x.detach().numpy()) for path, x in model().named_parameters()}
    schedule = optax.cosine_decay_schedule(1e-2, STEPS)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=weight_decay))
    return jaxp3.Training(parameters, loss, optimizer)


def jax_side() -> jaxp3.Training:
    """The port, with the weight decay that PyTorch has by default."""
    return ported(1e-2)


def wrong_side() -> jaxp3.Training:
    """A port with the weight decay that optax has by default."""
    return ported(1e-4)
