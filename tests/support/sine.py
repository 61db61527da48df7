"""A third framework: NumPy, with the derivatives of sine by hand."""

from collections.abc import Iterator
from math import prod
from typing import NamedTuple

import numpy as np

from p3.parity import Function
from p3.parity.function import Arrays


class Term(NamedTuple):
    """The derivative of sine of some order at array 0, times the product of other arrays, by their numbers."""

    order: int
    factors: tuple[int, ...]

    def derivative(self, i: int) -> Iterator["Term"]:
        if i == 0:
            yield Term(self.order + 1, self.factors)
        elif i in self.factors:
            yield Term(self.order, tuple(factor for factor in self.factors if factor != i))


class Sine(Function):
    """Each output is a sum of terms, and so is each of its derivatives; `arrays` counts those of all groups."""

    name, framework = "sine", "NumPy"

    def __init__(self, outputs: tuple[tuple[Term, ...], ...] = ((Term(0, ()),),), arrays: int = 1) -> None:
        self.outputs, self.arrays = outputs, arrays

    def value(self, *groups: Arrays) -> Arrays:
        arrays = [x for group in groups for x in group]
        sine = (np.sin(arrays[0]), np.cos(arrays[0]), -np.sin(arrays[0]), -np.cos(arrays[0]))
        return tuple(
            np.asarray(sum(prod((arrays[i] for i in factors), start=sine[order % 4]) for order, factors in terms))
            for terms in self.outputs
        )

    def derived(self, output: int, i: int, by: int) -> Iterator[Term]:
        for term in self.outputs[output]:
            for order, factors in term.derivative(i):
                yield Term(order, (*factors, by))

    def pullback(self) -> Function:
        outputs = range(len(self.outputs))
        gradients = [[t for k in outputs for t in self.derived(k, i, self.arrays + k)] for i in range(self.arrays)]
        return Sine(tuple(map(tuple, gradients)), self.arrays + len(outputs))

    def pushforward(self) -> Function:
        arrays = range(self.arrays)
        tangents = [[t for i in arrays for t in self.derived(k, i, self.arrays + i)] for k in range(len(self.outputs))]
        return Sine(tuple(map(tuple, tangents)), 2 * self.arrays)
