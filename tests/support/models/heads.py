"""An autoencoder with a classifier, which takes a mask and an integer, and gives several outputs by name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as linen
import jax
import jax.numpy as jnp
import torch
from flax import nnx
from torch import nn

from tests.support.models import Pair
from tests.support.models.common import Wrong, faults, integers, lengths_mask, normal, port, seeded

WIDTH = 16
LINEAR = ("encoder", "decoder", "classifier")


@jax.tree_util.register_dataclass
@dataclass
class Outputs:
    """The outputs of either side."""

    latent: Any
    reconstruction: Any
    logits: Any


class TorchHeads(nn.Module):
    """The model in torch, which gives a dict or a dataclass."""

    def __init__(self, outputs: Callable[..., Any]) -> None:
        super().__init__()
        self.outputs = outputs
        self.kinds = nn.Embedding(WIDTH, WIDTH)
        for name in LINEAR:
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, kind: torch.Tensor) -> Any:
        """The mean latent of the valid times, a reconstruction of each time, and the logits of the classes."""
        z = torch.tanh(self.encoder(x)) + self.kinds(kind)[:, None]
        latent = (z * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.outputs(latent=latent, reconstruction=self.decoder(z), logits=self.classifier(latent))


def forward(
    x: jax.Array, mask: jax.Array, kind: jax.Array, layers: Any, over: Callable[..., Any], wrong: Wrong
) -> dict[str, jax.Array]:
    """The model of any library, whose layers are mapped over the times."""
    embedded = layers.kinds(kind)
    if "embedding_scaled" in wrong:
        embedded = embedded * WIDTH**0.5
    z = jnp.tanh(over(layers.encoder)(x)) + embedded[..., None, :]
    if "mask_inverted" in wrong:
        mask = ~mask
    elif "mask_ignored" in wrong:
        mask = jnp.ones_like(mask)
    if "max_pool" in wrong:
        latent = jnp.where(mask[..., None], z, -jnp.inf).max(-2)
    elif "mean_of_all" in wrong:
        latent = (z * mask[..., None]).mean(-2)
    else:
        latent = (z * mask[..., None]).sum(-2) / mask.sum(-1, keepdims=True)
    branch = jax.lax.stop_gradient(latent) if "detached_branch" in wrong else latent
    outputs = {"latent": latent, "reconstruction": over(layers.decoder)(z), "logits": layers.classifier(branch)}
    if "outputs_swapped" in wrong:
        outputs["latent"], outputs["logits"] = outputs["logits"], outputs["latent"]
    return outputs


class NnxHeads(nnx.Module):
    """The model in Flax NNX."""

    def __init__(self, wrong: Wrong, rngs: nnx.Rngs) -> None:
        self.wrong = wrong
        self.kinds = nnx.Embed(WIDTH, WIDTH, rngs=rngs)
        for name in LINEAR:
            setattr(self, name, nnx.Linear(WIDTH, WIDTH, rngs=rngs))

    def __call__(self, x: jax.Array, mask: jax.Array, kind: jax.Array) -> dict[str, jax.Array]:
        """The three outputs."""
        return forward(x, mask, kind, self, lambda layer: layer, self.wrong)


class LinenHeads(linen.Module):
    """The model in Flax Linen."""

    wrong: Wrong = frozenset()

    def setup(self) -> None:
        """The layers."""
        self.kinds = linen.Embed(WIDTH, WIDTH)
        self.encoder, self.decoder, self.classifier = (linen.Dense(WIDTH, name=name) for name in LINEAR)

    def __call__(self, x: jax.Array, mask: jax.Array, kind: jax.Array) -> dict[str, jax.Array]:
        """The three outputs."""
        return forward(x, mask, kind, self, lambda layer: layer, self.wrong)


class EquinoxHeads(eqx.Module):
    """The model in Equinox."""

    kinds: eqx.nn.Embedding
    encoder: eqx.nn.Linear
    decoder: eqx.nn.Linear
    classifier: eqx.nn.Linear
    wrong: Wrong = eqx.field(static=True)

    def __init__(self, wrong: Wrong, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        self.kinds = eqx.nn.Embedding(WIDTH, WIDTH, key=keys[3])
        self.encoder, self.decoder, self.classifier = (eqx.nn.Linear(WIDTH, WIDTH, key=key) for key in keys[:3])
        self.wrong = wrong

    def __call__(self, x: jax.Array, mask: jax.Array, kind: jax.Array) -> dict[str, jax.Array]:
        """The three outputs of one example."""
        return forward(x, mask, kind, self, jax.vmap, self.wrong)


@dataclass(frozen=True)
class Layers:
    """The layers as functions."""

    kinds: Callable[[jax.Array], jax.Array]
    encoder: Callable[[jax.Array], jax.Array]
    decoder: Callable[[jax.Array], jax.Array]
    classifier: Callable[[jax.Array], jax.Array]


def function_heads(wrong: Wrong) -> tuple[Callable[..., Outputs], dict[str, Any]]:
    """The model as a function, whose weights have the names and layouts of torch, and which gives a dataclass."""

    def heads(p: dict[str, jax.Array], x: jax.Array, mask: jax.Array, kind: jax.Array) -> Outputs:
        def linear(name: str) -> Callable[[jax.Array], jax.Array]:
            return lambda x: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]

        layers = Layers(p["kinds.weight"].__getitem__, *map(linear, LINEAR))
        return Outputs(**forward(x, mask, kind, layers, lambda layer: layer, wrong))

    keys = jax.random.split(jax.random.key(0), 4)
    weights = {
        f"{name}.weight": jax.random.normal(key, (WIDTH, WIDTH))
        for name, key in zip(("kinds", *LINEAR), keys, strict=True)
    }
    return heads, weights | {f"{name}.bias": jnp.zeros(WIDTH) for name in LINEAR}


def batch() -> dict[str, Any]:
    """Four sequences, of which some are shorter, and a kind of each."""
    return {"x": normal(4, 8, WIDTH), "mask": lengths_mask(4, 8), "kind": integers(WIDTH, 4)}


def linen_heads(wrong: Wrong) -> tuple[linen.Module, Any]:
    """The model in Flax Linen with its variables."""
    module = LinenHeads(wrong)
    return module, module.init(jax.random.key(0), **batch())


TORCH = seeded(lambda: TorchHeads(dict))
LATENT = (("classifier", "output"), "input")
MASK_IGNORED = (*LATENT, "mask")
MASK_INVERTED = (*LATENT, "mask|invert|not|opposite")
EMBEDDING_SCALED = (("decoder", "kinds"), "input", "scale|4|sqrt")
DETACHED = (("encoder", "kinds", "classifier"), "gradient", "stop_gradient|detach|zero|branch")
PAIRS = (
    Pair(
        "heads-nnx",
        "nnx",
        TORCH,
        port(lambda wrong: NnxHeads(wrong, nnx.Rngs(0))),
        batch,
        faults(
            mask_ignored=MASK_IGNORED,
            embedding_scaled=EMBEDDING_SCALED,
            detached_branch=DETACHED,
            outputs_swapped=("output", "output", "swap|exchang|latent|logits"),
        ),
    ),
    Pair(
        "heads-linen",
        "linen",
        TORCH,
        port(linen_heads),
        batch,
        faults(mask_inverted=MASK_INVERTED, max_pool=(*LATENT, "max|mean|pool")),
    ),
    Pair(
        "heads-equinox",
        "equinox",
        TORCH,
        port(lambda wrong: EquinoxHeads(wrong, jax.random.key(0))),
        batch,
        faults(mask_ignored=MASK_IGNORED, mean_of_all=(*LATENT, "mean|mask|count"), detached_branch=DETACHED),
    ),
    Pair(
        "heads-function",
        "function",
        seeded(lambda: TorchHeads(Outputs)),
        port(function_heads),
        batch,
        faults(mask_inverted=MASK_INVERTED, embedding_scaled=EMBEDDING_SCALED),
    ),
)
