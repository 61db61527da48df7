"""An MLP-Mixer of as many tokens as channels, whose blocks are stacked and scanned in JAX."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from tests.support.models import Pair
from tests.support.models.common import Wrong, faults, gelu, halved, normal, port, residual, rounded, seeded

WIDTH = 16
BLOCKS = 3
LINEAR = ("tokens1", "tokens2", "channels1", "channels2")
Layer = Callable[[Any], Any]


class TorchBlock(nn.Module):
    """A perceptron over the tokens, and one over the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.norm2 = nn.LayerNorm(WIDTH)
        for name in LINEAR:
            setattr(self, name, nn.Linear(WIDTH, WIDTH))
        self.act = nn.GELU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two residual layers."""
        x = x + self.tokens2(self.act(self.tokens1(self.norm1(x).mT))).mT
        return x + self.channels2(self.act(self.channels1(self.norm2(x))))


class TorchMixer(nn.Module):
    """The network in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(TorchBlock() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The logits of the classes."""
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(-2))


def forward(x: jax.Array, block: Any, over: Callable[[Layer], Layer], wrong: Wrong) -> jax.Array:
    """The block of any library, whose layers are mapped over what they take one of."""

    def mlp(x: jax.Array, first: Layer, second: Layer) -> jax.Array:
        return over(second)(gelu(over(first)(x), wrong))

    def tokens(x: jax.Array) -> jax.Array:
        return mlp(x if "not_transposed" in wrong else x.mT, block.tokens1, block.tokens2).mT

    def channels(x: jax.Array) -> jax.Array:
        y = mlp(x, block.channels1, block.channels2)
        if "float32" in wrong:
            y = rounded(y, jnp.float32)
        return halved(y) if "halved" in wrong else y

    return residual(residual(x, over(block.norm1), tokens), over(block.norm2), channels, wrong)


def stacked(blocks: Any, wrong: Wrong) -> Any:
    """The stacked blocks that are scanned."""
    if "last_block_skipped" in wrong:
        return jax.tree.map(lambda w: w[:-1], blocks)
    return jax.tree.map(lambda w: w[::-1], blocks) if "reversed_blocks" in wrong else blocks


def epsilon(wrong: Wrong) -> float:
    """What is added to a variance."""
    return 1e-6 if "epsilon" in wrong else 1e-5


class NnxBlock(nnx.Module):
    """A perceptron over the tokens, and one over the channels."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        for name in LINEAR:
            setattr(self, name, nnx.Linear(WIDTH, WIDTH, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Two residual layers."""
        return forward(x, self, lambda layer: layer, self.wrong)


class NnxMixer(nnx.Module):
    """The network in Flax NNX, with the library's scan over the blocks."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        make = nnx.vmap(lambda rngs: NnxBlock(wrong, rngs))
        self.blocks = make(rngs.split(BLOCKS))
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of the classes."""

        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def step(x: jax.Array, block: NnxBlock) -> jax.Array:
            return block(x)

        x = step(x, stacked(self.blocks, self.wrong))
        return self.head(self.norm(x).mean(-2))


class EquinoxBlock(eqx.Module):
    """A perceptron over the tokens, and one over the channels."""

    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    tokens1: eqx.nn.Linear
    tokens2: eqx.nn.Linear
    channels1: eqx.nn.Linear
    channels2: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        self.norm1 = eqx.nn.LayerNorm(WIDTH, eps=epsilon(wrong))
        self.norm2 = eqx.nn.LayerNorm(WIDTH, eps=epsilon(wrong))
        for name, key_of_layer in zip(LINEAR, jax.random.split(key, len(LINEAR)), strict=True):
            setattr(self, name, eqx.nn.Linear(WIDTH, WIDTH, key=key_of_layer))
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """Two residual layers of one example."""
        return forward(x, self, jax.vmap, self.wrong)


class EquinoxMixer(eqx.Module):
    """The network in Equinox, with JAX's scan over the arrays of the blocks."""

    blocks: EquinoxBlock
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 1 + BLOCKS)
        self.blocks = eqx.filter_vmap(lambda key: EquinoxBlock(wrong, key))(keys[1:])
        self.norm = eqx.nn.LayerNorm(WIDTH, eps=epsilon(wrong))
        self.head = eqx.nn.Linear(WIDTH, WIDTH, key=keys[0])
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of the classes of one example."""
        arrays, rest = eqx.partition(self.blocks, eqx.is_array)

        def step(x: jax.Array, arrays: Any) -> tuple[jax.Array, None]:
            return eqx.combine(arrays, rest)(x), None

        x, _ = jax.lax.scan(step, x, stacked(arrays, self.wrong))
        return self.head(jax.vmap(self.norm)(x).mean(-2))


def tokens() -> Any:
    """Four images of as many tokens as channels."""
    return normal(4, WIDTH, WIDTH)


TORCH = seeded(TorchMixer)
REVERSED = (("blocks.0.norm1", "blocks.0.tokens1", "blocks.0"), "output", "order|revers|swap")
NOT_TRANSPOSED = ("blocks.0.tokens1", "input", "transpose|axes|axis")
PAIRS = (
    Pair(
        "mixer-nnx",
        "nnx",
        TORCH,
        port(lambda wrong: NnxMixer(wrong, nnx.Rngs(0))),
        tokens,
        faults(
            epsilon=("blocks.0.norm1", "output", "eps|epsilon"),
            approximate=(("blocks.0.act", "blocks.0.tokens2"), "input", "approximate|tanh"),
            not_transposed=NOT_TRANSPOSED,
            reversed_blocks=REVERSED,
            halved=(("blocks.2.channels2", "blocks.2"), "gradient", "0.5|half"),
            float32=(("blocks.0.channels2", "blocks.0", "blocks.1.norm1"), "output", "float32|precision|round"),
        ),
    ),
    Pair(
        "mixer-equinox",
        "equinox",
        TORCH,
        port(lambda wrong: EquinoxMixer(wrong, jax.random.key(0))),
        tokens,
        faults(
            not_transposed=NOT_TRANSPOSED,
            reversed_blocks=REVERSED,
            last_block_skipped=(("blocks.2", "blocks.2.norm1", "norm"), "input", "skip|not called|never|missing"),
            post_norm=(("blocks.0.norm2", "blocks.0.channels1"), "input", "norm|order"),
            detached_residual=(("blocks.2", "blocks.1"), "gradient", "stop_gradient|detach|skip|zero"),
        ),
    ),
)
