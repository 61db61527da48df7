"""The two frameworks, by name. Nothing here imports one until it is asked for."""

from importlib import import_module
from types import ModuleType
from typing import Literal, NamedTuple

from p3.errors import InputError

BackendName = Literal["torch", "jax"]


class _Backend(NamedTuple):
    title: str
    package: str
    needs: tuple[str, ...]
    install: str


BACKENDS: dict[BackendName, _Backend] = {
    "torch": _Backend("PyTorch", "torchp3", ("torch",), 'pip install "torch>=2.13"'),
    "jax": _Backend(
        "JAX", "jaxp3", ("jax", "jaxlib", "optax"), 'pip install "jax>=0.10" "jaxlib>=0.10" "optax>=0.2.5"'
    ),
}


def load(name: BackendName) -> ModuleType:
    """Import `torchp3` or `jaxp3`. Raises `InputError`, with what installs it, if its framework is missing."""
    backend = BACKENDS[name]
    for needed in backend.needs:
        try:
            import_module(needed)
        except ModuleNotFoundError as error:
            if error.name != needed:
                raise
            raise InputError(
                f"{backend.package} needs {needed}, which is not installed; install it with: {backend.install}"
            ) from None
    return import_module(backend.package)
