"""A decoder of two blocks with learned positions, causal attention and a tied head, and an attention of the library."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.support.models import Pair
from tests.support.models.common import (
    Wrong,
    attend,
    faults,
    gelu,
    halved,
    integers,
    lengths_mask,
    merge,
    normal,
    port,
    residual,
    rounded,
    seeded,
    split,
)

WIDTH = 16  # also the number of tokens and of positions
HEADS = 4  # as many as the size of each
BLOCKS = 2
Layer = Callable[[Any], Any]


class TorchAttention(nn.Module):
    """Causal attention by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(WIDTH, WIDTH)
        self.k = nn.Linear(WIDTH, WIDTH)
        self.v = nn.Linear(WIDTH, WIDTH)
        self.o = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """What each time takes from itself and those before it."""
        q, k, v = (y.unflatten(-1, (HEADS, -1)).transpose(-2, -3) for y in (self.q(x), self.k(x), self.v(x)))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        return self.o((scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2))


class TorchBlock(nn.Module):
    """Attention and a perceptron, each with a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = TorchAttention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.fc1 = nn.Linear(WIDTH, 2 * WIDTH)
        self.fc2 = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two residual layers."""
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))


class TorchDecoder(nn.Module):
    """The decoder in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(WIDTH, WIDTH)
        self.positions = nn.Embedding(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(TorchBlock() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, WIDTH, bias=False)
        self.lm_head.weight = self.tokens.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits of the next tokens."""
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[-1]))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


def attention(x: jax.Array, q: Layer, k: Layer, v: Layer, o: Layer, wrong: Wrong) -> jax.Array:
    """The attention of any library."""
    values = halved(v(x)) if "halved" in wrong else v(x)
    heads = (split(y, HEADS, wrong) for y in (q(x), k(x), values))
    return o(merge(attend(*heads, wrong), wrong))


def block(x: jax.Array, norm1: Layer, attention: Layer, norm2: Layer, mlp: Layer, wrong: Wrong) -> jax.Array:
    """The block of any library."""
    return residual(residual(x, norm1, attention, wrong), norm2, mlp)


def embedded(ids: jax.Array, tokens: Layer, positions: Layer, wrong: Wrong) -> jax.Array:
    """What the first block of any library is given."""
    x = tokens(ids)
    if "embedding_scaled" in wrong:
        x = x * WIDTH**0.5
    return x + positions(jnp.arange(ids.shape[-1]) + ("position_offset" in wrong))


def epsilon(wrong: Wrong) -> float:
    """What is added to the variance in a layer norm."""
    return 1e-6 if "epsilon" in wrong else 1e-5


class NnxAttention(nnx.Module):
    """Causal attention by hand."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.q = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.k = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.v = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.o = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """What each time takes from itself and those before it."""
        return attention(x, self.q, self.k, self.v, self.o, self.wrong)


class NnxBlock(nnx.Module):
    """Attention and a perceptron, each with a norm before it."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.norm1 = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        self.attention = NnxAttention(wrong, rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        self.fc1 = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.fc2 = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Two residual layers."""

        def mlp(x: jax.Array) -> jax.Array:
            return self.fc2(gelu(self.fc1(x), self.wrong))

        return block(x, self.norm1, self.attention, self.norm2, mlp, self.wrong)


class NnxDecoder(nnx.Module):
    """The decoder in Flax NNX."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.tokens = nnx.Embed(WIDTH, WIDTH, rngs=rngs)
        self.positions = nnx.Embed(WIDTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(wrong, rngs) for _ in range(BLOCKS)])
        if "no_final_norm" not in wrong:
            self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        if "untied" in wrong:
            self.lm_head = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The logits of the next tokens."""
        x = embedded(ids, self.tokens, self.positions, self.wrong)
        for block in self.blocks[: BLOCKS - ("last_block_skipped" in self.wrong)]:
            x = block(x)
        if "no_final_norm" not in self.wrong:
            x = self.norm(x)
        return self.lm_head(x) if "untied" in self.wrong else self.tokens.attend(x)


class LinenAttention(linen.Module):
    """Causal attention by hand."""

    wrong: Wrong = frozenset()

    def setup(self) -> None:
        """The layers, whose names are not those of torch."""
        self.query = linen.Dense(WIDTH)
        self.key = linen.Dense(WIDTH)
        self.value = linen.Dense(WIDTH)
        self.out = linen.Dense(WIDTH)

    def __call__(self, x: jax.Array) -> jax.Array:
        """What each time takes from itself and those before it."""
        return attention(x, self.query, self.key, self.value, self.out, self.wrong)


class LinenMLP(linen.Module):
    """A perceptron that torch has not in a module of its own."""

    wrong: Wrong = frozenset()

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Two layers."""
        return linen.Dense(WIDTH, name="c_proj")(gelu(linen.Dense(2 * WIDTH, name="c_fc")(x), self.wrong))


class LinenBlock(linen.Module):
    """Attention and a perceptron, each with a norm before it."""

    wrong: Wrong = frozenset()

    @linen.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Two residual layers."""
        return block(
            x,
            linen.LayerNorm(epsilon(self.wrong), name="ln_1"),
            LinenAttention(self.wrong, name="attention"),
            linen.LayerNorm(epsilon(self.wrong), name="ln_2"),
            LinenMLP(self.wrong, name="mlp"),
            self.wrong,
        )


class LinenDecoder(linen.Module):
    """The decoder in Flax Linen, with other names and other nesting than in torch."""

    wrong: Wrong = frozenset()

    @linen.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        """The logits of the next tokens."""
        tokens = linen.Embed(WIDTH, WIDTH, name="wte")
        x = embedded(ids, tokens, linen.Embed(WIDTH, WIDTH, name="wpe"), self.wrong)
        for i in range(BLOCKS):
            x = LinenBlock(self.wrong, name=f"h_{i}")(x)
        x = linen.LayerNorm(epsilon(self.wrong), name="ln_f")(x)
        return x @ tokens.embedding.T


class EquinoxAttention(eqx.Module):
    """Causal attention by hand."""

    q: eqx.nn.Linear
    k: eqx.nn.Linear
    v: eqx.nn.Linear
    o: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        self.q, self.k, self.v, self.o = (eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in jax.random.split(key, 4))
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """What each time takes from itself and those before it."""
        return attention(x, *map(jax.vmap, (self.q, self.k, self.v, self.o)), self.wrong)


class EquinoxBlock(eqx.Module):
    """Attention and a perceptron, each with a norm before it."""

    norm1: eqx.nn.LayerNorm
    attention: EquinoxAttention
    norm2: eqx.nn.LayerNorm
    fc1: eqx.nn.Linear
    fc2: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 3)
        self.norm1 = eqx.nn.LayerNorm(WIDTH, eps=epsilon(wrong))
        self.attention = EquinoxAttention(wrong, keys[0])
        self.norm2 = eqx.nn.LayerNorm(WIDTH, eps=epsilon(wrong))
        self.fc1 = eqx.nn.Linear(WIDTH, 2 * WIDTH, key=keys[1])
        self.fc2 = eqx.nn.Linear(2 * WIDTH, WIDTH, key=keys[2])
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """Two residual layers of one example."""

        def mlp(x: jax.Array) -> jax.Array:
            return jax.vmap(self.fc2)(gelu(jax.vmap(self.fc1)(x), self.wrong))

        return block(x, jax.vmap(self.norm1), self.attention, jax.vmap(self.norm2), mlp, self.wrong)


class EquinoxDecoder(eqx.Module):
    """The decoder in Equinox, whose head is the embedding of the tokens."""

    tokens: eqx.nn.Embedding
    positions: eqx.nn.Embedding
    blocks: list[EquinoxBlock]
    norm: eqx.nn.LayerNorm
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 2 + BLOCKS)
        self.tokens = eqx.nn.Embedding(WIDTH, WIDTH, key=keys[0])
        self.positions = eqx.nn.Embedding(WIDTH, WIDTH, key=keys[1])
        self.blocks = [EquinoxBlock(wrong, key) for key in keys[2:]]
        self.norm = eqx.nn.LayerNorm(WIDTH, eps=epsilon(wrong))
        self.wrong = wrong

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The logits of the next tokens of one example."""
        x = embedded(ids, jax.vmap(self.tokens), jax.vmap(self.positions), self.wrong)
        for block in self.blocks[: BLOCKS - ("last_block_skipped" in self.wrong)]:
            x = block(x)
        return jax.vmap(self.norm)(x) @ self.tokens.weight.T


def function_decoder(wrong: Wrong) -> tuple[Callable[..., jax.Array], dict[str, Any]]:
    """The decoder as a function of a nested dict, in which the weights of all blocks are stacked."""

    def linear(p: dict[str, jax.Array]) -> Layer:
        return lambda x: x @ p["kernel"] + p["bias"]

    def norm(p: dict[str, jax.Array]) -> Layer:
        def normed(x: jax.Array) -> jax.Array:
            variance = x.var(-1, keepdims=True)
            x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(variance + epsilon(wrong)) * p["scale"] + p["bias"]
            return rounded(x, jnp.bfloat16) if "bfloat16" in wrong else x

        return normed

    def decoder(p: dict[str, Any], ids: jax.Array) -> jax.Array:
        def step(x: jax.Array, p: dict[str, Any]) -> tuple[jax.Array, None]:
            def attend(x: jax.Array) -> jax.Array:
                return attention(x, *(linear(p["attention"][name]) for name in "qkvo"), wrong)

            def mlp(x: jax.Array) -> jax.Array:
                return linear(p["fc2"])(gelu(linear(p["fc1"])(x), wrong))

            return block(x, norm(p["norm1"]), attend, norm(p["norm2"]), mlp, wrong), None

        x = embedded(ids, p["tokens"].__getitem__, p["positions"].__getitem__, wrong)
        x, _ = jax.lax.scan(step, x, p["blocks"], reverse="reversed_blocks" in wrong)
        return norm(p["norm"])(x) @ p["tokens"].T

    random = np.random.default_rng(3)

    def draw(*shape: int) -> jax.Array:
        return jnp.asarray(random.normal(size=shape), jnp.float32) / 4

    def affine(inputs: int, outputs: int) -> dict[str, jax.Array]:
        return {"kernel": draw(BLOCKS, inputs, outputs), "bias": draw(BLOCKS, outputs)}

    blocks = {
        "norm1": {"scale": draw(BLOCKS, WIDTH), "bias": draw(BLOCKS, WIDTH)},
        "attention": {name: affine(WIDTH, WIDTH) for name in "qkvo"},
        "norm2": {"scale": draw(BLOCKS, WIDTH), "bias": draw(BLOCKS, WIDTH)},
        "fc1": affine(WIDTH, 2 * WIDTH),
        "fc2": affine(2 * WIDTH, WIDTH),
    }
    last = {"scale": draw(WIDTH), "bias": draw(WIDTH)}
    return decoder, {"tokens": draw(WIDTH, WIDTH), "positions": draw(WIDTH, WIDTH), "blocks": blocks, "norm": last}


def linen_decoder(wrong: Wrong) -> tuple[linen.Module, Any]:
    """The decoder in Flax Linen with its variables."""
    module = LinenDecoder(wrong)
    return module, module.init(jax.random.key(0), jnp.zeros((1, 8), int))


class TorchMultihead(nn.Module):
    """A residual layer with the attention of torch, over the valid elements of sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.head = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """What each time takes from all valid ones."""
        x = self.stem(x)
        y = self.norm(x)
        y, _ = self.attention(y, y, y, key_padding_mask=~mask, need_weights=False)
        return self.head(x + y)


class NnxMultihead(nnx.Module):
    """A residual layer with the attention of Flax, whose kernels have an axis for the heads."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.stem = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, epsilon=epsilon(wrong), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, decode=False, rngs=rngs)
        self.head = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """What each time takes from all valid ones."""
        x = self.stem(x)
        if "mask_inverted" in self.wrong:
            mask = ~mask
        mask = mask[:, None, :, None] if "mask_of_queries" in self.wrong else mask[:, None, None, :]
        y = self.attention(self.norm(x), mask=None if "mask_ignored" in self.wrong else mask)
        skip = jax.lax.stop_gradient(x) if "detached_residual" in self.wrong else x
        return self.head(skip + y)


def of_ids() -> np.ndarray:
    """Four sequences of tokens."""
    return integers(WIDTH, 4, 8)


TORCH = seeded(TorchDecoder)
SCORES = (("blocks.0.attention.o", "blocks.0.attention"), "input")
SKIPPED = (("blocks.1", "blocks.1.norm1", "norm"), "input", "skip|not called|never|missing|blocks.1")
PAIRS = (
    Pair(
        "transformer-nnx",
        "nnx",
        TORCH,
        port(lambda wrong: NnxDecoder(wrong, nnx.Rngs(0))),
        of_ids,
        faults(
            epsilon=("blocks.0.norm1", "output", "eps|epsilon"),
            approximate=("blocks.0.fc2", "input", "approximate|tanh"),
            no_scale=(*SCORES, "scale|softmax|attention"),
            mask_off_by_one=(*SCORES, "mask|causal|attention|tril"),
            post_norm=(("blocks.0.norm1", "blocks.0.attention.q", "blocks.0.attention"), "input", "norm|order"),
            untied=(("lm_head.weight", "tokens.weight"), "parameter", "tied|shared|one array"),
            no_final_norm=(("norm", "norm.weight", "norm.bias", "lm_head"), "parameter", "norm"),
            last_block_skipped=SKIPPED,
            halved=("blocks.1.attention.v", "gradient", "0.5|half"),
            detached_residual=(("blocks.1", "blocks.0", "blocks.0.fc2"), "gradient", "stop_gradient|detach|skip|zero"),
        ),
    ),
    Pair(
        "transformer-linen",
        "linen",
        TORCH,
        port(linen_decoder),
        of_ids,
        faults(
            epsilon=("blocks.0.norm1", "output", "eps|epsilon"),
            width_scale=(*SCORES, "scale|softmax|attention"),
            heads_last=(*SCORES, "head|permut|order|attention"),
            position_offset=("positions", "input", "position|offset|shift|1"),
            embedding_scaled=(("blocks.0.norm1", "blocks.0"), "input", "scale|4|sqrt"),
            relu=("blocks.0.fc2", "input", "relu|gelu|GELU|activation"),
        ),
    ),
    Pair(
        "transformer-equinox",
        "equinox",
        TORCH,
        port(lambda wrong: EquinoxDecoder(wrong, jax.random.key(0))),
        of_ids,
        faults(
            softmax_axis=(*SCORES, "softmax|axis|attention"),
            qk_swapped=(*SCORES, "swap|transpose|attention"),
            residual_twice=(("blocks.0.norm2", "blocks.0"), "input", "twice|two times|residual|added"),
            last_block_skipped=SKIPPED,
            approximate=("blocks.0.fc2", "input", "approximate|tanh"),
            halved=("blocks.1.attention.v", "gradient", "0.5|half"),
            position_offset=("positions", "input", "position|offset|shift|1"),
        ),
    ),
    Pair(
        "transformer-scanned",
        "function",
        TORCH,
        port(function_decoder),
        of_ids,
        faults(
            reversed_blocks=(("blocks.0.norm1", "blocks.0", "blocks.0.attention.q"), "output", "order|revers|swap"),
            no_scale=(*SCORES, "scale|softmax|attention"),
            heads_last=(*SCORES, "head|permut|order|attention"),
            bfloat16=("blocks.0.norm1", "output", "bfloat16|precision|round"),
            detached_residual=(("blocks.1", "blocks.0", "blocks.0.fc2"), "gradient", "stop_gradient|detach|skip|zero"),
        ),
    ),
    Pair(
        "attention-nnx",
        "nnx",
        seeded(TorchMultihead),
        port(lambda wrong: NnxMultihead(wrong, nnx.Rngs(0))),
        lambda: (normal(4, 8, WIDTH), lengths_mask(4, 8)),
        faults(
            mask_ignored=("attention", "output", "mask"),
            mask_inverted=("attention", "input", "mask|invert|not|opposite"),
            mask_of_queries=("attention", "output", "mask|axis"),
            epsilon=("norm", "output", "eps|epsilon"),
            detached_residual=("stem", "gradient", "stop_gradient|detach|skip|zero"),
        ),
    ),
)
