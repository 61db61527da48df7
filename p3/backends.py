"""The two frameworks, by name. Nothing here imports one until it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeVar

from p3.errors import InputError

if TYPE_CHECKING:  # some of these import this module, which itself needs none of them
    from collections.abc import Mapping
    from contextlib import AbstractContextManager
    from os import PathLike

    import numpy as np

    from p3.fitting.checkpoint import Checkpoint
    from p3.fitting.result import FitResult
    from p3.fitting.spec import TrainingSpec
    from p3.fitting.starts import StartsProgress, StartsResult
    from p3.fitting.training import Observation, Progress
    from p3.parity.function import Function
    from p3.parity.models.module import Module

BackendName = Literal["torch", "jax"]
Made = TypeVar("Made")


class Framework(NamedTuple):
    """A framework's name for people, its package here, the modules that this package needs, and what installs them."""

    title: str
    package: str
    needs: tuple[str, ...]
    install: str


BACKENDS: dict[BackendName, Framework] = {
    "torch": Framework("PyTorch", "torchp3", ("torch",), 'pip install "torch>=2.13"'),
    "jax": Framework(
        "JAX", "jaxp3", ("jax", "jaxlib", "optax"), 'pip install "jax>=0.10" "jaxlib>=0.10" "optax>=0.2.5"'
    ),
}


class Distributed(Protocol):
    """The module `distributed` of a package, which connects the processes of a fit."""

    def process_count(self) -> int:
        """How many processes are connected."""

    def process_index(self) -> int:
        """The number of this process, counted from 0."""

    def joined(self, spec: TrainingSpec) -> AbstractContextManager[TrainingSpec]:
        """Connect the processes of a command while the context lasts; it gives the specification for all of them."""

    def gather(self, spec: TrainingSpec, value: Made) -> list[Made]:
        """The values of all processes, in the order of the processes."""


class Backend(Protocol):
    """
    The package of a framework, `torchp3` or `jaxp3`: what the commands, the comparison and the explanation use of it.

    The arrays of `legendre_p3`, `predict` and `loss` are the framework's own, so their type here is Any.
    """

    @property
    def __name__(self) -> str:
        """The package's name."""

    @property
    def distributed(self) -> Distributed:
        """The module that connects the processes of a fit."""

    def fit(
        self,
        spec: TrainingSpec,
        progress: Progress | None = None,
        checkpoint: str | PathLike[str] | Checkpoint | None = None,
    ) -> FitResult:
        """Fit the specification."""

    def fit_starts(
        self, spec: TrainingSpec, starts: np.ndarray, progress: StartsProgress | None = None
    ) -> StartsResult:
        """Fit the specification from each of many starts, an array of shape (starts, 4)."""

    def observe(self, spec: TrainingSpec, number: int, coefficients: Mapping[str, float]) -> Observation:
        """What one step of the specification computes at some coefficients."""

    def replay(self, spec: TrainingSpec, traces: Mapping[str, np.ndarray]) -> np.ndarray:
        """The updates that the optimizer computes from recorded gradients, of shape (steps, 4)."""

    def predict(self, coefficients: dict[str, Any], x: Any) -> Any:
        """The model, a + b P3(c + d x)."""

    def loss(self, coefficients: dict[str, Any], x: Any, y: Any, own: Any = None) -> Any:
        """The sum of the squared residuals of the points, or of those among them for which `own` is true."""

    def legendre_p3(self, x: Any) -> Any:
        """P3 of each element of an array, with the hand-written derivative rule."""

    def as_operator(self, f: Any, *, arguments: tuple[int | str, ...] | None = None, **static: Any) -> Function:
        """Make an operator of a function of the framework's arrays, for `p3.parity.check`."""

    def as_module(self, model: Any) -> Module:
        """Make a model of one of the framework's, for `p3.check_model`."""

    def tap(self, name: str, x: Any) -> Any:
        """Name what a layer returns, in a model that has functions in place of modules."""


def load(name: BackendName) -> Backend:
    """Import `torchp3` or `jaxp3`. Raises `InputError`, with what installs it, if its framework is missing."""
    framework = BACKENDS[name]
    for needed in framework.needs:
        try:
            import_module(needed)
        except ModuleNotFoundError as error:
            if error.name != needed:
                raise
            raise InputError(
                f"{framework.package} needs {needed}, which is not installed; install it with: {framework.install}"
            ) from None
    # These statements, where `import_module(framework.package)` would do, have mypy compare both stubs with `Backend`.
    if name == "torch":
        import torchp3

        return torchp3
    import jaxp3

    return jaxp3


if TYPE_CHECKING:  # mypy does not compare a module within a module unless it is assigned
    import jaxp3
    import torchp3

    DISTRIBUTED: tuple[Distributed, ...] = (torchp3.distributed, jaxp3.distributed)
