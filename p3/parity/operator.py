"""What the checker asks of a framework: a function and its derivatives, NumPy arrays in and out."""

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

Arrays = tuple[np.ndarray, ...]


@runtime_checkable
class Operator(Protocol):
    """
    A function f of arrays to one array or several, in some framework.

    Its differentiable arguments are those of floating or complex dtype, or fewer where the user says so; the
    differentiable outputs are those of floating or complex dtype. Cotangents are in the order of the differentiable
    outputs, tangents and gradients in the order of the differentiable arguments. The gradient of complex arguments is
    the transpose's, with no conjugate, so that Σ Re(cotangent · Jw) = Σ Re(gradient · w) for every tangent w.

    Whatever the framework or the function raises, these raise; where the one or the other has no such derivative or
    transform, and says so, that is a NotImplementedError. A mode that has no such thing for any function raises a
    `NoMeaningError`, of which there is nothing to report.

    Attributes
    ----------
    name : of the function, for people
    framework : its name and version, for people
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def framework(self) -> str: ...  # noqa: D102

    def arguments(self, inputs: Arrays) -> tuple[int, ...]:
        """The positions of the differentiable arguments."""

    def value(self, inputs: Arrays) -> Arrays:
        """F(inputs)."""

    def vjp(self, inputs: Arrays, cotangents: Arrays, between: Callable[[], object] = lambda: None) -> Arrays:
        """The vector-Jacobian product, in reverse mode; `between` is called between forward and backward pass."""

    def jvp(self, inputs: Arrays, tangents: Arrays) -> Arrays:
        """The Jacobian-vector product, in forward mode."""

    def vjp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """
        The vjp, with `directions` as cotangents, of the function that the vjp is.

        The gradients of the differentiable arguments, and then those of the cotangents.
        """

    def jvp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """The jvp, along `directions`, of the function of the inputs that the vjp is."""

    def batched(self, arguments: tuple[int, ...]) -> "Operator":
        """
        The same by the framework's own vmap, for inputs with one more axis in front.

        These arguments have it, and all cotangents, tangents and directions.
        """

    def transformed(self) -> Mapping[str, "Operator"]:
        """The same by the framework's other transforms, by their names; not compiled where there is another way."""

    def compiled(self) -> Mapping[str, "Operator"]:
        """The same, compiled in the ways in which users do it, by their names."""

    def rules(self, inputs: Arrays) -> tuple[str, ...]:
        """The names of the hand-written derivative rules that f comes by at these inputs."""

    def scaled(self, factor: float) -> "Operator":
        """The same, what every hand-written rule returns multiplied."""


class NoMeaningError(NotImplementedError):
    """A mode is asked for what has no meaning in it, whatever the function."""


def is_inexact(x: np.ndarray) -> bool:
    """Whether x is floating or complex; NumPy does not know that bfloat16 is."""
    return x.dtype.kind in "fc" or x.dtype == ml_dtypes.bfloat16


def epsilon(dtype: DTypeLike) -> float:
    """The distance from 1 to the next number."""
    return float(ml_dtypes.finfo(np.dtype(dtype)).eps)  # type: ignore[no-untyped-call]


def smallest_normal(dtype: DTypeLike) -> float:
    """The smallest positive number with all its digits."""
    return float(ml_dtypes.finfo(np.dtype(dtype)).tiny)  # type: ignore[no-untyped-call]


def at_precision(arrays: Arrays, precision: str) -> Arrays:
    """The floating arrays in a precision ("float32", ...) and the complex ones in that of their parts."""

    def cast(x: np.ndarray) -> np.ndarray:
        if x.dtype.kind == "c":
            return x.astype(np.result_type(precision, np.complex64))
        return x.astype(precision) if is_inexact(x) else x

    with np.errstate(over="ignore"):
        return tuple(np.asarray(cast(x)) for x in arrays)


def wide(x: np.ndarray) -> np.ndarray:
    """The same numbers in float64, or complex128."""
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)
