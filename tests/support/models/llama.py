"""Two blocks as in Llama: root-mean-square norms, rotary positions, attention of grouped queries, and SwiGLU."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

from tests.support.models import Pair
from tests.support.models.common import Wrong, attend, faults, integers, merge, port, residual, rounded, seeded, split

WIDTH, HEADS, GROUPS, SIZE = 16, 4, 2, 4
BLOCKS = 2
EPSILON = 1e-5
LINEAR = {  # the inputs and outputs of the linear layers of a block
    "q": (WIDTH, WIDTH),
    "k": (WIDTH, GROUPS * SIZE),
    "v": (WIDTH, GROUPS * SIZE),
    "o": (WIDTH, WIDTH),
    "gate": (WIDTH, WIDTH),
    "up": (WIDTH, WIDTH),
    "down": (WIDTH, WIDTH),
}
Layer = Callable[[Any], Any]


def torch_rotated(x: torch.Tensor) -> torch.Tensor:
    """Vectors of heads, of which the two halves are turned by an angle that grows with the time."""
    time, size = x.shape[-2:]
    angle = torch.arange(time)[:, None] / 10000 ** (torch.arange(size // 2, dtype=x.dtype) * 2 / size)
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


class TorchBlock(nn.Module):
    """Attention and a gated perceptron, each with a norm before it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(WIDTH, eps=EPSILON)
        self.norm2 = nn.RMSNorm(WIDTH, eps=EPSILON)
        for name, shape in LINEAR.items():
            setattr(self, name, nn.Linear(*shape, bias=False))

    def attention(self, x: torch.Tensor) -> torch.Tensor:
        """What each time takes from itself and those before it."""
        q, k, v = (y.unflatten(-1, (-1, SIZE)).transpose(-2, -3) for y in (self.q(x), self.k(x), self.v(x)))
        k, v = (y.repeat_interleave(HEADS // GROUPS, -3) for y in (torch_rotated(k), v))
        scores = torch_rotated(q) @ k.mT / SIZE**0.5
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
        return self.o((scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Two residual layers."""
        x = x + self.attention(self.norm1(x))
        y = self.norm2(x)
        return x + self.down(functional.silu(self.gate(y)) * self.up(y))


class TorchLlama(nn.Module):
    """The model in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(TorchBlock() for _ in range(BLOCKS))
        self.norm = nn.RMSNorm(WIDTH, eps=EPSILON)
        self.lm_head = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """The logits of the next tokens."""
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


def rotated(x: jax.Array, wrong: Wrong, offset: int = 0) -> jax.Array:
    """Vectors of heads, of which the two halves are turned by an angle that grows with the time."""
    time, size = x.shape[-2:]
    base = 500000 if "rope_base" in wrong else 10000
    angle = (jnp.arange(time)[:, None] + offset) / base ** (jnp.arange(size // 2, dtype=x.dtype) * 2 / size)
    if "rope_interleaved" in wrong:
        a, b = x[..., ::2], x[..., 1::2]
    else:
        a, b = jnp.split(x, 2, -1)
    turned = a * jnp.cos(angle) - b * jnp.sin(angle), b * jnp.cos(angle) + a * jnp.sin(angle)
    if "rope_interleaved" in wrong:
        return jnp.stack(turned, -1).reshape(x.shape)
    return jnp.concatenate(turned, -1)


def forward(x: jax.Array, layers: Any, over: Callable[[Layer], Layer], wrong: Wrong) -> jax.Array:
    """The block of any library, whose layers are mapped over what they take one of."""
    layer = {name: over(getattr(layers, name)) for name in ("norm1", "norm2", *LINEAR)}

    def attention(x: jax.Array) -> jax.Array:
        q, k, v = (split(layer[name](x), h, wrong) for name, h in (("q", HEADS), ("k", GROUPS), ("v", GROUPS)))
        q, k = rotated(q, wrong), rotated(k, wrong, offset="position_offset" in wrong)
        if "kv_tiled" in wrong:
            k, v = (jnp.concatenate([y] * (HEADS // GROUPS), -3) for y in (k, v))
        else:
            k, v = (jnp.repeat(y, HEADS // GROUPS, -3) for y in (k, v))
        return layer["o"](merge(attend(q, k, v, wrong), wrong))

    def mlp(x: jax.Array) -> jax.Array:
        gate, up = layer["gate"](x), layer["up"](x)
        if "bfloat16" in wrong:
            gate = rounded(gate, jnp.bfloat16)
        if "gate_swapped" in wrong:
            gate, up = up, gate
        return layer["down"](jax.nn.gelu(gate) * up if "gelu" in wrong else jax.nn.silu(gate) * up)

    return residual(residual(x, layer["norm1"], attention), layer["norm2"], mlp)


class NnxNormEpsilonOutside(nnx.RMSNorm):
    """A norm that adds its epsilon to the root."""

    def __call__(self, x: jax.Array) -> jax.Array:
        """The wrong quotient."""
        return x / (jnp.sqrt((x * x).mean(-1, keepdims=True)) + self.epsilon) * self.scale[...]


class NnxBlock(nnx.Module):
    """Attention and a gated perceptron, each with a norm before it."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        norm = NnxNormEpsilonOutside if "epsilon_outside" in wrong else nnx.RMSNorm
        epsilon = 1e-6 if "epsilon" in wrong else EPSILON
        self.norm1 = norm(WIDTH, epsilon=epsilon, rngs=rngs)
        self.norm2 = norm(WIDTH, epsilon=epsilon, rngs=rngs)
        for name, shape in LINEAR.items():
            setattr(self, name, nnx.Linear(*shape, use_bias=False, rngs=rngs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Two residual layers."""
        return forward(x, self, lambda layer: layer, self.wrong)


class NnxLlama(nnx.Module):
    """The model in Flax NNX."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(WIDTH, WIDTH, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(wrong, rngs) for _ in range(BLOCKS)])
        self.norm = nnx.RMSNorm(WIDTH, epsilon=EPSILON, rngs=rngs)
        self.lm_head = nnx.Linear(WIDTH, WIDTH, use_bias=False, rngs=rngs)

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The logits of the next tokens."""
        x = self.tokens(ids)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


class EquinoxBlock(eqx.Module):
    """Attention and a gated perceptron, each with a norm before it."""

    norm1: eqx.nn.RMSNorm
    norm2: eqx.nn.RMSNorm
    q: eqx.nn.Linear
    k: eqx.nn.Linear
    v: eqx.nn.Linear
    o: eqx.nn.Linear
    gate: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        self.norm1 = eqx.nn.RMSNorm(WIDTH, eps=EPSILON, use_bias=False)
        self.norm2 = eqx.nn.RMSNorm(WIDTH, eps=EPSILON, use_bias=False)
        keys = jax.random.split(key, len(LINEAR))
        for (name, shape), key_of_layer in zip(LINEAR.items(), keys, strict=True):
            setattr(self, name, eqx.nn.Linear(*shape, use_bias=False, key=key_of_layer))
        self.wrong = wrong

    def __call__(self, x: jax.Array) -> jax.Array:
        """Two residual layers of one example."""
        return forward(x, self, jax.vmap, self.wrong)


class EquinoxLlama(eqx.Module):
    """The model in Equinox."""

    tokens: eqx.nn.Embedding
    blocks: list[EquinoxBlock]
    norm: eqx.nn.RMSNorm
    lm_head: eqx.nn.Linear

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 2 + BLOCKS)
        self.tokens = eqx.nn.Embedding(WIDTH, WIDTH, key=keys[0])
        self.blocks = [EquinoxBlock(wrong, key) for key in keys[2:]]
        self.norm = eqx.nn.RMSNorm(WIDTH, eps=EPSILON, use_bias=False)
        self.lm_head = eqx.nn.Linear(WIDTH, WIDTH, use_bias=False, key=keys[1])

    def __call__(self, ids: jax.Array) -> jax.Array:
        """The logits of the next tokens of one example."""
        x = jax.vmap(self.tokens)(ids)
        for block in self.blocks:
            x = block(x)
        return jax.vmap(self.lm_head)(jax.vmap(self.norm)(x))


TORCH = seeded(TorchLlama)
SCORES = ("blocks.0.o", "input")
PAIRS = (
    Pair(
        "llama-nnx",
        "nnx",
        TORCH,
        port(lambda wrong: NnxLlama(wrong, nnx.Rngs(0))),
        lambda: integers(WIDTH, 4, 8),
        faults(
            epsilon=("blocks.0.norm1", "output", "eps|epsilon"),
            epsilon_outside=("blocks.0.norm1", "output", "eps|epsilon|outside"),
            rope_interleaved=(*SCORES, "rope|rotary|interleav|attention"),
            kv_tiled=(*SCORES, "tile|repeat|head|group|attention"),
            gate_swapped=("blocks.0.down", "input", "gate|up|swap|activation"),
        ),
    ),
    Pair(
        "llama-equinox",
        "equinox",
        TORCH,
        port(lambda wrong: EquinoxLlama(wrong, jax.random.key(0))),
        lambda: integers(WIDTH, 4, 8),
        faults(
            rope_base=(*SCORES, "rope|rotary|base|attention"),
            position_offset=(*SCORES, "position|offset|rope|rotary|attention"),
            kv_tiled=(*SCORES, "tile|repeat|head|group|attention"),
            bfloat16=(("blocks.0.gate", "blocks.0.down"), "output", "bfloat16|precision|round"),
            gelu=("blocks.0.down", "input", "silu|swish|gelu|activation"),
        ),
    ),
)
