"""
Models in PyTorch with their ports to JAX, which are right, and which have a fault where they are asked for it.

Nothing but Python's own library is imported here: `pairs` imports the families of models when it is called.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

FAMILIES = (
    "mlp",
    "transformer",
    "llama",
    "resnet",
    "convnext",
    "recurrent",
    "unet",
    "mixer",
    "heads",
    "dropout",
    "hugging_face",
)


@dataclass(frozen=True)
class Fault:
    """
    A fault that a port has where it is made with `keywords`.

    A perfect tool points first at `path`, or at one of its names where there are several: the layer of the torch side
    whose output or gradient differs; for code between layers, the layer whose input differs; "output" for code after
    the last layer; the name of a parameter or of a running statistic. `quantity` is what differs at the first name.
    """

    keywords: Mapping[str, Any]
    path: str | tuple[str, ...]
    quantity: str  # "parameter", "input", "output", "gradient" or "state"
    cause: str  # a regular expression that matches a good explanation


@dataclass(frozen=True)
class Pair:
    """A module of torch, its port, inputs for both, and the faults that the port can be given by keywords."""

    name: str
    library: str  # "nnx", "linen", "equinox" or "function"
    torch: Callable[[], Any]
    jax: Callable[..., Any]
    inputs: Callable[[], Any]
    faults: Mapping[str, Fault] = field(default_factory=dict)


def pairs(*families: str) -> tuple[Pair, ...]:
    """The pairs of some families, or of all."""
    modules = (import_module(f"{__name__}.{family}") for family in families or FAMILIES)
    return tuple(pair for module in modules for pair in module.PAIRS)
