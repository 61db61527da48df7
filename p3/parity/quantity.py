"""What both sides compute, and are compared in."""

from typing import NamedTuple

import numpy as np

from p3.parity.function import Arrays, Function, at_precision, is_inexact

Groups = tuple[Arrays, ...]


class Quantity(NamedTuple):
    """
    Something that both sides compute of inputs, and of cotangents or tangents.

    Attributes
    ----------
    name : for people
    method : of `Function`, that computes it
    groups : its arguments in float64, which are numbers of float32
    """

    name: str
    method: str
    groups: Groups

    def of(self, operator: Function, precision: str = "float64") -> Arrays:
        """The quantity, in a precision."""
        return tuple(getattr(operator, self.method)(*self.given(precision)))

    def given(self, precision: str) -> Groups:
        """What it is of, in a precision."""
        return tuple(at_precision(group, precision) for group in self.groups)

    def moved(self, random: np.random.Generator, by: float) -> "Quantity":
        """The same where every number is moved up or down by a fraction of itself."""

        def move(x: np.ndarray) -> np.ndarray:
            return np.asarray(x * (1 + by * random.choice([-1.0, 1.0], x.shape))) if is_inexact(x) else x

        return self._replace(groups=tuple(tuple(map(move, group)) for group in self.groups))
