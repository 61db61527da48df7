"""What both sides compute, and are compared in."""

from typing import Literal, NamedTuple

import numpy as np

from p3.parity.function import Arrays, Function, at_precision, is_inexact

Groups = tuple[Arrays, ...]
Kind = Literal["outputs", "differentiable outputs", "arguments"]


class Derivative(NamedTuple):
    """
    A function, or what combinators make of one.

    Attributes
    ----------
    combinators : by which it comes of the function, the innermost first
    method : of `Function`, that computes it
    arrays : for each group of arrays that it has, what these belong to, and whether they are by that thing's own
        "cotangent" or "tangent" or, where it is empty, by the thing
    """

    combinators: tuple[str, ...]
    method: str
    arrays: tuple[tuple[Kind, str], ...]

    @property
    def order(self) -> int:
        """How often the function is differentiated."""
        return len(self.combinators)

    @property
    def is_gradient(self) -> bool:
        """Whether its first arrays are by the arguments, and not of the outputs."""
        return self.arrays[0][0] == "arguments"


PULLED, PUSHED = "pullback", "pushforward"
DERIVATIVES = {
    "value": Derivative((), "value", (("outputs", ""),)),
    "vjp": Derivative((PULLED,), "vjp", (("arguments", ""),)),
    "jvp": Derivative((PUSHED,), "jvp", (("differentiable outputs", ""),)),
    "vjp of vjp": Derivative(
        (PULLED, PULLED), "vjp_of_vjp", (("arguments", ""), ("differentiable outputs", "cotangent"))
    ),
    "jvp of vjp": Derivative((PULLED, PUSHED), "jvp_of_vjp", (("arguments", ""),)),
    "vjp of jvp": Derivative((PUSHED, PULLED), "vjp_of_jvp", (("arguments", ""), ("arguments", "tangent"))),
    "jvp of jvp": Derivative((PUSHED, PUSHED), "jvp_of_jvp", (("differentiable outputs", ""),)),
}
NAMES = {derivative.combinators: name for name, derivative in DERIVATIVES.items()}


class Quantity(NamedTuple):
    """
    Something that both sides compute of inputs, and of cotangents or tangents.

    Attributes
    ----------
    name : of one of `DERIVATIVES`
    groups : what it is of, in float64, which are numbers of float32
    """

    name: str
    groups: Groups

    @property
    def derivative(self) -> Derivative:
        """What it is of a function."""
        return DERIVATIVES[self.name]

    def of(self, operator: Function, precision: str = "float64") -> Arrays:
        """The quantity, in a precision."""
        return tuple(getattr(operator, self.derivative.method)(*self.given(precision)))

    def given(self, precision: str) -> Groups:
        """What it is of, in a precision."""
        return tuple(at_precision(group, precision) for group in self.groups)

    def moved(self, random: np.random.Generator, by: float) -> "Quantity":
        """The same where every number is moved up or down by a fraction of itself."""

        def move(x: np.ndarray) -> np.ndarray:
            return np.asarray(x * (1 + by * random.choice([-1.0, 1.0], x.shape))) if is_inexact(x) else x

        return self._replace(groups=tuple(tuple(map(move, group)) for group in self.groups))
