"""A perceptron with a layer norm and GELU, whose layers are all square."""

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

import jaxp3
from tests.support.models import Pair
from tests.support.models.common import Wrong, faults, gelu, halved, normal, port, rounded, seeded

WIDTH = 16
Layer = Callable[[Any], Any]


class TorchMLP(nn.Module):
    """The perceptron in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.fc2 = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three layers, of which the first is normed."""
        x = functional.gelu(self.norm(self.fc1(x)))
        return self.head(functional.gelu(self.fc2(x)))


def forward(x: jax.Array, fc1: Layer, norm: Layer, fc2: Layer, head: Layer, wrong: Wrong) -> jax.Array:
    """The perceptron of any library."""
    if "swapped" in wrong:
        fc1, fc2 = fc2, fc1
    x = fc1(x)
    if "halved" in wrong:
        x = halved(x)
    x = norm(x)
    if "float32" in wrong:
        x = rounded(x, jnp.float32)
    x = fc2(gelu(x, wrong))
    if "bfloat16" in wrong:
        x = rounded(x, jnp.bfloat16)
    y = head(gelu(x, wrong))
    return y / 2 if "half_output" in wrong else y


class NnxLinearTransposed(nnx.Linear):
    """A linear layer that multiplies by the transpose of its kernel."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """The wrong product."""
        return x @ self.kernel[...].T + self.bias[...]


class NnxMLP(nnx.Module):
    """The perceptron in Flax NNX."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.fc1 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=1e-6 if "epsilon" in wrong else 1e-5, rngs=rngs)
        second = NnxLinearTransposed if "transposed" in wrong else nnx.Linear
        self.fc2 = second(WIDTH, WIDTH, use_bias="no_bias" not in wrong, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Three layers, of which the first is normed."""
        return forward(x, self.fc1, self.norm, self.fc2, self.head, self.wrong)


def transposed_product(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """The product with the transpose of the kernel."""
    return x @ kernel.T


class LinenMLP(linen.Module):
    """The perceptron in Flax Linen."""

    wrong: Wrong = frozenset()

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Three layers, of which the first is normed."""
        wrong = self.wrong
        return forward(
            x,
            linen.Dense(WIDTH, name="fc1"),
            linen.LayerNorm(1e-6 if "epsilon" in wrong else 1e-5, name="norm"),
            linen.Dense(
                WIDTH,
                use_bias="no_bias" not in wrong,
                dot_general=transposed_product if "transposed" in wrong else None,
                name="fc2",
            ),
            linen.Dense(WIDTH, name="head"),
            wrong,
        )


class EquinoxMLP(eqx.Module):
    """The perceptron in Equinox."""

    fc1: eqx.nn.Linear
    norm: eqx.nn.LayerNorm
    fc2: eqx.nn.Linear
    head: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.fc1 = eqx.nn.Linear(WIDTH, WIDTH, key=keys[0])
        self.norm = eqx.nn.LayerNorm(WIDTH, eps=1e-6 if "epsilon" in wrong else 1e-5)
        self.fc2 = eqx.nn.Linear(WIDTH, WIDTH, use_bias="no_bias" not in wrong, key=keys[1])
        self.head = eqx.nn.Linear(WIDTH, WIDTH, key=keys[2])
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """Three layers, of which the first is normed, of one example."""
        fc2 = self.fc2
        if "transposed" in self.wrong:
            fc2 = eqx.tree_at(lambda layer: layer.weight, fc2, fc2.weight.T)
        return forward(x, self.fc1, self.norm, fc2, self.head, self.wrong)


def tapped(name: str, layer: Layer) -> Layer:
    """The layer, whose output has a name."""
    return lambda x: jaxp3.tap(name, layer(x))


def function_mlp(wrong: Wrong) -> tuple[Callable[..., jax.Array], dict[str, Any]]:
    """The perceptron as a function of a nested dict."""

    def linear(p: dict[str, jax.Array]) -> Layer:
        return lambda x: x @ p["kernel"] + p["bias"]

    def norm(p: dict[str, jax.Array]) -> Layer:
        epsilon = 1e-6 if "epsilon" in wrong else 1e-5

        def normed(x: jax.Array) -> jax.Array:
            x = x - x.mean(-1, keepdims=True)
            root = jnp.sqrt((x * x).mean(-1, keepdims=True) + (0 if "epsilon_outside" in wrong else epsilon))
            return x / (root + (epsilon if "epsilon_outside" in wrong else 0)) * p["scale"] + p["bias"]

        return normed

    def mlp(p: dict[str, Any], x: jax.Array) -> jax.Array:
        makes = {"fc1": linear, "norm": norm, "fc2": linear, "head": linear}
        layers = (tapped(name, make(p[name])) for name, make in makes.items())
        return forward(x, *layers, wrong)

    keys = iter(jax.random.split(jax.random.key(0), 8))
    parameters = {
        name: {kind: jax.random.normal(next(keys), shape) / 4, "bias": jax.random.normal(next(keys), (WIDTH,))}
        for name, kind, shape in (
            ("fc1", "kernel", (WIDTH, WIDTH)),
            ("norm", "scale", (WIDTH,)),
            ("fc2", "kernel", (WIDTH, WIDTH)),
            ("head", "kernel", (WIDTH, WIDTH)),
        )
    }
    return mlp, parameters


def linen_mlp(wrong: Wrong) -> tuple[linen.Module, Any]:
    """The perceptron in Flax Linen with its variables."""
    module = LinenMLP(wrong)
    return module, module.init(jax.random.key(0), jnp.zeros((1, WIDTH)))


TORCH = seeded(TorchMLP)
SWAPPED = (("fc1", "fc2", "norm"), "input", "swap|exchang|order|fc2")
PAIRS = (
    Pair(
        "mlp-nnx",
        "nnx",
        TORCH,
        port(lambda wrong: NnxMLP(wrong, nnx.Rngs(0))),
        lambda: normal(5, WIDTH),
        faults(
            epsilon=("norm", "output", "eps|epsilon"),
            approximate=("fc2", "input", "approximate|tanh"),
            transposed=("fc2", "output", "transpose"),
            no_bias=("fc2.bias", "parameter", "bias"),
            halved=("fc1", "gradient", "0.5|half"),
            half_output=("output", "output", "0.5|half"),
        ),
    ),
    Pair(
        "mlp-linen",
        "linen",
        TORCH,
        port(linen_mlp),
        lambda: normal(WIDTH, WIDTH),
        faults(
            epsilon=("norm", "output", "eps|epsilon"),
            transposed=("fc2", "output", "transpose"),
            swapped=SWAPPED,
            relu=("fc2", "input", "relu|gelu|GELU|activation"),
            bfloat16=("head", "input", "bfloat16|precision|round"),
        ),
    ),
    Pair(
        "mlp-equinox",
        "equinox",
        TORCH,
        port(lambda wrong: EquinoxMLP(wrong, jax.random.key(0))),
        lambda: normal(5, WIDTH),
        faults(
            transposed=("fc2", "output", "transpose"),
            approximate=("fc2", "input", "approximate|tanh"),
            no_bias=("fc2.bias", "parameter", "bias"),
            float32=("fc2", "input", "float32|precision|round"),
        ),
    ),
    Pair(
        "mlp-function",
        "function",
        TORCH,
        port(function_mlp),
        lambda: normal(5, WIDTH),
        faults(
            epsilon_outside=(("norm", "fc2"), "output", "eps|epsilon|outside"),
            swapped=SWAPPED,
            halved=("fc1", "gradient", "0.5|half"),
        ),
    ),
)
