"""Two blocks of ConvNeXt: a convolution of each channel, a norm over the channels, and a scale of the layer."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from tests.support.models import Pair
from tests.support.models.common import Wrong, faults, gelu, normal, port, rounded, seeded

WIDTH = 16
BLOCKS = 2
EPSILON = 1e-6


class TorchBlock(nn.Module):
    """The block in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH)
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.pwconv1 = nn.Linear(WIDTH, WIDTH)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(WIDTH, WIDTH)
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """A residual layer, which has the channels last inside."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class TorchConvNeXt(nn.Module):
    """The network in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, 2)
        self.blocks = nn.ModuleList(TorchBlock() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH, EPSILON)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of the classes."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x.mean((2, 3))))


def epsilon(wrong: Wrong) -> float:
    """What is added to a variance, which is not the default of torch here."""
    return 1e-5 if "epsilon" in wrong else EPSILON


def scaled(gamma: jax.Array, y: jax.Array, wrong: Wrong) -> jax.Array:
    """What a block adds to its input."""
    return y if "no_layer_scale" in wrong else gamma * y


class NnxBlock(nnx.Module):
    """The block in Flax NNX."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.dwconv = nnx.Conv(WIDTH, WIDTH, (5, 5), feature_group_count=WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        self.pwconv1 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.pwconv2 = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.gamma = nnx.Param(jnp.full(WIDTH, 1e-6))

    def __call__(self, x: jax.Array) -> jax.Array:
        """A residual layer."""
        y = self.dwconv(x)
        if "bfloat16" in self.wrong:
            y = rounded(y, jnp.bfloat16)
        y = self.pwconv2(gelu(self.pwconv1(self.norm(y)), self.wrong))
        x = x + scaled(self.gamma[...], y, self.wrong)
        return x + y if "residual_twice" in self.wrong else x


class NnxConvNeXt(nnx.Module):
    """The network in Flax NNX, with the channels last."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.stem = nnx.Conv(3, WIDTH, (2, 2), 2, padding="VALID", rngs=rngs)
        self.blocks = nnx.List([NnxBlock(wrong, rngs) for _ in range(BLOCKS)])
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of the classes."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if "norm_before_pool" in self.wrong:
            return self.head(self.norm(x).mean((1, 2)))
        return self.head(self.norm(x.mean((1, 2))))


class EquinoxBlock(eqx.Module):
    """The block in Equinox."""

    dwconv: eqx.nn.Conv2d
    norm: eqx.nn.LayerNorm
    pwconv1: eqx.nn.Linear
    pwconv2: eqx.nn.Linear
    gamma: jax.Array
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.dwconv = eqx.nn.Conv2d(WIDTH, WIDTH, 5, padding=2, groups=WIDTH, key=keys[0])
        self.norm = eqx.nn.LayerNorm(WIDTH, eps=epsilon(wrong))
        self.pwconv1 = eqx.nn.Linear(WIDTH, WIDTH, key=keys[1])
        self.pwconv2 = eqx.nn.Linear(WIDTH, WIDTH, key=keys[2])
        self.gamma = jnp.full(WIDTH, 1e-6)
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """A residual layer, of which what is inside maps each of the pixels."""

        def of_pixel(y: jax.Array) -> jax.Array:
            return scaled(self.gamma, self.pwconv2(gelu(self.pwconv1(self.norm(y)), self.wrong)), self.wrong)

        y = self.dwconv(x)
        y = jax.vmap(jax.vmap(of_pixel, 1, 1), 1, 1)(y.mT if "transposed_image" in self.wrong else y)
        return x + y


class EquinoxConvNeXt(eqx.Module):
    """The network in Equinox."""

    stem: eqx.nn.Conv2d
    blocks: list[EquinoxBlock]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 2 + BLOCKS)
        self.stem = eqx.nn.Conv2d(3, WIDTH, 2, 2, key=keys[0])
        self.blocks = [EquinoxBlock(wrong, key) for key in keys[2:]]
        self.norm = eqx.nn.LayerNorm(WIDTH, eps=epsilon(wrong))
        self.head = eqx.nn.Linear(WIDTH, WIDTH, key=keys[1])
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of the classes of one example."""
        x = self.stem(x)
        for block in self.blocks[: BLOCKS - ("last_block_skipped" in self.wrong)]:
            x = block(x)
        return self.head(self.norm(x.mean((1, 2))))


def images() -> Any:
    """Four images, of which a block sees as many rows as examples."""
    return normal(4, 3, 8, 8)


TORCH = seeded(TorchConvNeXt)
NO_SCALE = (("blocks.0.gamma", "blocks.0", "blocks.1.dwconv"), "output", "scale|gamma|unused")
ACTIVATION = (("blocks.0.act", "blocks.0.pwconv2"), "input", "approximate|tanh")
PAIRS = (
    Pair(
        "convnext-nnx",
        "nnx",
        TORCH,
        port(lambda wrong: NnxConvNeXt(wrong, nnx.Rngs(0))),
        images,
        faults(
            epsilon=("blocks.0.norm", "output", "eps|epsilon"),
            no_layer_scale=NO_SCALE,
            approximate=ACTIVATION,
            bfloat16=(("blocks.0.dwconv", "blocks.0.norm"), "output", "bfloat16|precision|round"),
            norm_before_pool=("norm", "input", "order|mean|pool|norm"),
        ),
    ),
    Pair(
        "convnext-equinox",
        "equinox",
        TORCH,
        port(lambda wrong: EquinoxConvNeXt(wrong, jax.random.key(0))),
        images,
        faults(
            epsilon=("blocks.0.norm", "output", "eps|epsilon"),
            no_layer_scale=NO_SCALE,
            transposed_image=(("blocks.0.norm", "blocks.0"), "input", "transpose|axes|axis"),
            last_block_skipped=(("blocks.1", "blocks.1.dwconv", "norm"), "input", "skip|not called|never|missing"),
        ),
    ),
)
