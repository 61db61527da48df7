"""A perceptron in training with dropout after two of its layers."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.support.models import Pair
from tests.support.models.common import Wrong, faults, normal, port, seeded

WIDTH = 16
RATE = 0.25
Layer = Callable[[Any], Any]


class TorchDropout(nn.Module):
    """The perceptron in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.drop1 = nn.Dropout(RATE)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.drop2 = nn.Dropout(RATE)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three layers."""
        x = self.drop1(functional.relu(self.fc1(x)))
        return self.head(self.drop2(functional.relu(self.fc2(x))))


def rate(wrong: Wrong) -> float:
    """The part that is dropped."""
    return 1 - RATE if "kept_for_dropped" in wrong else RATE


def forward(x: jax.Array, fc1: Layer, drop1: Layer, fc2: Layer, drop2: Layer, head: Layer, wrong: Wrong) -> jax.Array:
    """The perceptron of any library."""
    x = drop1(jax.nn.relu(fc1(x)))
    if "scaled_twice" in wrong:
        x = x / (1 - RATE)
    elif "not_scaled" in wrong:
        x = x * (1 - RATE)
    x = jax.nn.relu(fc2(x))
    if "left_out" not in wrong:
        x = drop2(x)
    return head(x)


class NnxDropout(nnx.Module):
    """The perceptron in Flax NNX."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.fc1 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.drop1 = nnx.Dropout(rate(wrong), rngs=rngs)
        self.fc2 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.drop2 = nnx.Dropout(rate(wrong), rngs=rngs)
        self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Three layers."""
        return forward(x, self.fc1, self.drop1, self.fc2, self.drop2, self.head, self.wrong)


class LinenDropout(linen.Module):
    """The perceptron in Flax Linen."""

    wrong: Wrong = frozenset()

    @linen.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        """Three layers."""
        return forward(
            x,
            linen.Dense(WIDTH, name="fc1"),
            linen.Dropout(rate(self.wrong), deterministic=not training, name="drop1"),
            linen.Dense(WIDTH, name="fc2"),
            linen.Dropout(rate(self.wrong), deterministic=not training, name="drop2"),
            linen.Dense(WIDTH, name="head"),
            self.wrong,
        )


class EquinoxDropout(eqx.Module):
    """The perceptron in Equinox."""

    fc1: eqx.nn.Linear
    drop1: eqx.nn.Dropout
    fc2: eqx.nn.Linear
    drop2: eqx.nn.Dropout
    head: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.fc1, self.fc2, self.head = (eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in keys)
        self.drop1 = eqx.nn.Dropout(rate(wrong))
        self.drop2 = eqx.nn.Dropout(rate(wrong))
        self.wrong = wrong

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Three layers of one example."""
        key1, key2 = (None, None) if key is None else (key, key) if "one_key" in self.wrong else jax.random.split(key)

        def drop1(x: jax.Array) -> jax.Array:
            return self.drop1(x, key=key1)

        def drop2(x: jax.Array) -> jax.Array:
            return self.drop2(x, key=key2)

        return forward(x, self.fc1, drop1, self.fc2, drop2, self.head, self.wrong)


def nnx_dropout(wrong: Wrong) -> nnx.Module:
    """The perceptron in Flax NNX, in training."""
    model = NnxDropout(wrong, nnx.Rngs(0))
    model.eval() if "evaluated" in wrong else model.train()
    return model


def linen_dropout(wrong: Wrong) -> tuple[linen.Module, Any, dict[str, Any]]:
    """The perceptron in Flax Linen with its variables and the keywords of training."""
    module = LinenDropout(wrong)
    keywords = {"training": "evaluated" not in wrong, "rngs": {"dropout": jax.random.key(1)}}
    return module, module.init(jax.random.key(0), jnp.zeros((1, WIDTH))), keywords


def batch() -> Any:
    """Enough examples for a mean over them to say something of the dropped part."""
    return normal(32, WIDTH)


TORCH = seeded(TorchDropout, training=True)
SCALED = (("fc2", "drop1"), "input", "scale|dropout|rate")
RATES = ("drop1", "output", "rate|dropout|0.75|keep")
LEFT_OUT = (("drop2", "head"), "output", "dropout|missing|never|not called")
EVALUATED = ("drop1", "output", "dropout|mode|train|eval|deterministic")
PAIRS = (
    Pair(
        "dropout-nnx",
        "nnx",
        TORCH,
        port(nnx_dropout),
        batch,
        faults(scaled_twice=SCALED, evaluated=EVALUATED, left_out=LEFT_OUT),
    ),
    Pair(
        "dropout-linen",
        "linen",
        TORCH,
        port(linen_dropout),
        batch,
        faults(not_scaled=SCALED, evaluated=EVALUATED, kept_for_dropped=RATES),
    ),
    Pair(
        "dropout-equinox",
        "equinox",
        TORCH,
        port(lambda wrong: EquinoxDropout(wrong, jax.random.key(0))),
        batch,
        faults(
            scaled_twice=SCALED,
            kept_for_dropped=RATES,
            one_key=("drop2", "output", "key|same mask|correlat|independent"),
        ),
    ),
)
