"""What the checker asks of a framework: a function and its derivatives, NumPy arrays in and out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike

from p3.errors import InputError
from p3.parity.tree import Structure

Arrays = tuple[np.ndarray, ...]


class Function(ABC):
    """
    A function f of arrays to one array or several, in some framework.

    A framework supplies its value, and two combinators that give another such function: the pullback and the
    pushforward. What they give takes one group of arrays more, and can be pulled back and pushed forward again, so that
    every derivative of second order is that of a derivative of first order:

        f                       (x)             f(x)
        f.pullback()            (x, v)          vᵀJ, the vjp
        f.pushforward()         (x, w)          Jw, the jvp
        f.pullback().pullback() (x, v, d)       the vjp of the vjp: by x, and then by v
        f.pullback().pushforward() (x, v, (d, e))   the jvp of the vjp, along d for x and e for v

    f's differentiable arguments are those of floating or complex dtype, or fewer where the user says so; of a group
    that a combinator adds all are. The differentiable outputs are those of floating or complex dtype. Cotangents are in
    the order of the differentiable outputs, tangents and gradients in the order of the differentiable arguments. The
    gradient of complex arguments is the transpose's, with no conjugate, so that Σ Re(cotangent · Jw) = Σ Re(gradient ·
    w) for every tangent w.

    Whatever the framework or the function raises, these raise; where the one or the other has no such derivative or
    transform, and says so, that is a NotImplementedError. A mode that has no such thing for any function raises a
    `NoMeaningError`, of which there is nothing to report.

    The methods after `pushforward` are optional: a framework without transforms leaves them as they are.

    Attributes
    ----------
    name : of the function, for people
    framework : its name and version, for people
    program : Python that makes this as `operator`; empty where there is none
    needs_linear : whether its vjp is right only of rules that are linear in the cotangent, as where parts are averaged
    states : the positions or names of outputs that are states, such as running statistics, and have no derivative
    """

    name: str
    framework: str
    program: str = ""
    needs_linear: bool = False
    states: tuple[int | str, ...] = ()

    @abstractmethod
    def value(self, *groups: Arrays) -> Arrays:
        """The function's outputs: f(inputs), or of a derivative what it is of the groups."""

    @abstractmethod
    def pullback(self) -> "Function":
        """The vector-Jacobian product, in reverse mode, as a function of one group more, the cotangents."""

    @abstractmethod
    def pushforward(self) -> "Function":
        """The Jacobian-vector product, in forward mode, as a function of one group more, the tangents."""

    def arguments(self, inputs: Arrays) -> tuple[int, ...]:
        """The positions of the differentiable arguments."""
        return tuple(i for i, x in enumerate(inputs) if is_inexact(x))

    def of(self, structure: Structure) -> "Function":
        """
        The same of the arrays of nested inputs, which the function itself is called with.

        Raises
        ------
        InputError
            The function takes arrays alone, by position.
        """
        if not structure.is_plain:
            raise InputError(f"{self.name} ({self.framework}) takes arrays alone, by position; give a tuple of them")
        return self

    def held(self, inputs: Arrays, keys: tuple[int, ...], states: tuple[int | str, ...]) -> "Function":
        """
        The same, not differentiated by the arguments at the positions `keys`, and whose outputs `states` are states.

        Raises
        ------
        InputError
            The function cannot be told so.
        """
        if states or not set(keys).isdisjoint(self.arguments(inputs)):
            raise InputError(f"{self.name} ({self.framework}) takes no keys= of floating arguments, and no states=")
        return self

    def output_paths(self, inputs: Arrays) -> tuple[str, ...]:
        """What to call each output: `output`, or its place in a nested result, as in `output[1]`."""
        count = len(self.value(inputs))
        return ("output",) if count == 1 else tuple(f"output[{k}]" for k in range(count))

    def interrupted(self, between: Callable[[], object]) -> "Function":
        """The same, where the pullback calls `between` between its forward and its backward pass."""
        raise NoMeaningError(f"{self.framework} has nothing between forward and backward pass")

    def quick(self, inputs: Arrays, cotangents: Arrays) -> "Function":
        """The same function, by the fastest way to call it again and again with arrays of the shapes of these."""
        return self

    def batched(self, arguments: tuple[int, ...]) -> "Function":
        """
        The same by the framework's own vmap, for inputs with one more axis in front.

        These arguments have it, and all of the groups that combinators add.
        """
        raise NoMeaningError(f"{self.framework} has no vmap")

    def transformed(self) -> Mapping[str, "Function"]:
        """The same by the framework's other transforms, by their names; not compiled where there is another way."""
        return {}

    def compiled(self) -> Mapping[str, "Function"]:
        """The same, compiled in the ways in which users do it, by their names."""
        return {}

    def rules(self, inputs: Arrays) -> tuple[str, ...]:
        """The names of the hand-written derivative rules that f comes by at these inputs."""
        return ()

    def scaled(self, factor: float) -> "Function":
        """The same, what every hand-written rule returns multiplied."""
        return self

    def variants(self, inputs: Arrays) -> Iterator[tuple[str, Arrays]]:
        """What f gives by conventions that porters confuse, as another epsilon, each with what it is in words."""
        yield from ()

    def ignores_labels(self, inputs: Arrays) -> bool:
        """Whether f calls a loss that ignores labels of −100, whether there are such or not."""
        return False

    def undisturbed(self) -> AbstractContextManager[object]:
        """While it lasts, what the caller has switched on or off in this thread has no part in a call."""
        return nullcontext()

    def state(self) -> Mapping[str, Any]:
        """What the framework has of settings and random states that functions should leave, by name."""
        return {}

    def restore(self, name: str, value: Any) -> None:
        """Set what `state` names to a value that it had."""
        raise NotImplementedError(f"{self.framework} has no state {name!r}")

    def reseed(self, seed: int) -> None:
        """Set the random state, if the framework has one."""
        return

    def vjp(self, inputs: Arrays, cotangents: Arrays) -> Arrays:
        """The vector-Jacobian product."""
        return self.pullback().value(inputs, cotangents)

    def jvp(self, inputs: Arrays, tangents: Arrays) -> Arrays:
        """The Jacobian-vector product."""
        return self.pushforward().value(inputs, tangents)

    def vjp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """Reverse over reverse: the gradients of the differentiable arguments, and then those of the cotangents."""
        return self.pullback().pullback().value(inputs, cotangents, directions)

    def jvp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """Forward over reverse: the derivative of the gradients along directions of the inputs."""
        moving = (*directions, *map(np.zeros_like, cotangents))
        return self.pullback().pushforward().value(inputs, cotangents, moving)

    def vjp_of_jvp(self, inputs: Arrays, tangents: Arrays, cotangents: Arrays) -> Arrays:
        """Reverse over forward: the gradients of the differentiable arguments, and then those of the tangents."""
        return self.pushforward().pullback().value(inputs, tangents, cotangents)

    def jvp_of_jvp(self, inputs: Arrays, tangents: Arrays, directions: Arrays) -> Arrays:
        """Forward over forward: the derivative of Jw along directions of the inputs."""
        moving = (*directions, *map(np.zeros_like, tangents))
        return self.pushforward().pushforward().value(inputs, tangents, moving)


Operator = Function  # by its earlier name


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
