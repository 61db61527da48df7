"""Every tolerance of the project, in epsilons of the dtype, with the size it is relative to and the reason."""

from typing import NamedTuple

import numpy as np


class Tolerance(NamedTuple):
    """
    How far two right answers may be apart.

    Attributes
    ----------
    epsilons : in units of the dtype's epsilon (float32: 2⁻²³, float64: 2⁻⁵²)
    of : the size that the epsilons are relative to, which the caller computes
    reason : why this many
    """

    epsilons: float
    of: str
    reason: str

    def bound(self, dtype: str, size: float) -> float:
        """The largest difference allowed."""
        return self.epsilons * float(np.finfo(dtype).eps) * size


OPERATOR = Tolerance(
    2,
    "the largest term, of 5x³/2 and 3x/2 and their derivatives",
    "four roundings, each at most half an epsilon of the largest term; a compiler that fuses multiply and add leaves "
    "some out. Measured: at most 1.3",
)

HALF_OPERATOR = Tolerance(
    0.51,
    "the largest term, in epsilons of the half precision",
    "computed in float32 and rounded once, by at most half an epsilon. Measured: at most 0.5",
)

COMPLEX_OPERATOR = Tolerance(
    5,
    "the modulus of the largest term",
    "as for OPERATOR, with a complex product's rounding, √5/2 epsilons, and |5x² − 3| as large as both terms together. "
    "Measured: at most 1.6",
)

ROOT_LOSS = Tolerance(
    32,
    "the norm of y, or the largest √loss if that is more",
    "√loss is the norm of the residual, so rounding each prediction moves it by no more than the norm of the "
    "roundings; a descent that converges forgets old ones. Measured: at most 1.0 over 8 problems, 10 to 20,000 points "
    "and up to 20,000 steps, in both dtypes; the rest is room for other machines' orders of summation",
)

COEFFICIENTS = Tolerance(
    32,
    "the largest coefficient, or the largest |y| if that is more",
    "as for √loss; measured: at most 1.9",
)

GRADIENT = Tolerance(
    4,
    "the sum of the absolute values of the terms, one a point",
    "a rounding or two in each term, and one at each level of a pairwise sum; measured: at most 1.1",
)

STEP_LOSS = Tolerance(
    4,
    "the norm of the residual, with the largest numbers that it is a sum or difference of",
    "a few roundings in each prediction; the rest is room for the order of summation, the root of as many as there are",
)

STEP_GRADIENT = Tolerance(
    4,
    "the sum over the points of the terms' sizes, with the largest numbers that each factor is a sum or difference of",
    "as for GRADIENT, and where the residual nearly cancels its own rounding is that of those numbers",
)

STEP_DATA = Tolerance(
    0,
    "the absolute value",
    "both frameworks get the same numbers, and nothing is computed from them",
)

LEARNING_RATE = Tolerance(
    4,
    "the largest learning rate of the run, and in float64 a quarter of it more for each step before",
    "PyTorch computes each rate from the one before in float64, with one or two roundings a step, and optax evaluates "
    "a formula; then both are rounded. Measured: at most 1 of the first step's, and 0.3 a step after that",
)

UPDATE = Tolerance(
    32,
    "|coefficient|, and the largest of the updates so far, each with the difference of the float32 and the float64 "
    "update in float32's epsilons",
    "the update is a difference of coefficients, exact to their rounding; an optimizer amplifies rounding by about the "
    "same number of epsilons in either dtype",
)

STEP_COEFFICIENT = Tolerance(
    1,
    "|coefficient before the step| + |update|",
    "the recorded update is the difference of the coefficients after and before the step, rounded once, and adding it "
    "rounds once more, each time by at most half an epsilon; a coefficient at the start is not rounded again",
)

PARITY = Tolerance(
    32,
    "|result| and its change when every input changes by its own size, from the reference in float64; found from small "
    "changes, and from such as change nothing but rounding",
    "a stable algorithm's result is exact for inputs that are some epsilons off, so this is the size of the terms that "
    "it sums; frameworks' own elementary functions differ by up to 16 epsilons of it",
)

HALF_PARITY = Tolerance(
    8,
    "as for PARITY, in epsilons of float16 or bfloat16",
    "frameworks compute elementary functions of half precision in float32, and round once an operation; 32 epsilons of "
    "bfloat16 would be a quarter of the result",
)

HALF_LADDER = Tolerance(
    2,
    "the largest difference of the same operator in float32 from its float64 answer, in float32's epsilons",
    "on top of HALF_PARITY: where terms cancel, as in the tails of 1 − tanh², it is as many epsilons in one precision "
    "as in another, give or take luck",
)

LADDER = Tolerance(
    16,
    "the largest difference in the other precision, in epsilons of that one",
    "rounding is as many epsilons in one precision as in another, give or take luck and other algorithms for it; "
    "a wrong rule's difference stays the same number, which is 2²⁹ times as many epsilons in float64 as in float32",
)

TRUTH = Tolerance(
    8,
    "the estimated error of the finite differences, not an epsilon",
    "the estimate is a difference of two extrapolations, and lucky where they agree by chance",
)
