"""Every tolerance and threshold of p3, torchp3 and jaxp3, with the size that it is relative to and the reason."""

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


class Threshold(NamedTuple):
    """
    A limit that does not depend on the dtype.

    Attributes
    ----------
    value : as a fraction or a multiple of a size
    of : that size, which the caller computes
    reason : why this value
    """

    value: float
    of: str
    reason: str


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
    "the difference of the same operator in float32 from its float64 answer, in float32's epsilons",
    "the largest at an element and at numbers beside it, on top of HALF_PARITY: where terms cancel, as in the tails of "
    "1 − tanh², it is as many epsilons in one precision as in another, give or take luck",
)

LADDER = Tolerance(
    16,
    "the largest difference in the other precision, in epsilons of that one",
    "rounding is as many epsilons in one precision as in another, give or take luck and other algorithms for it; "
    "a wrong rule's difference stays the same number, which is 2²⁹ times as many epsilons in float64 as in float32",
)

TRUTH = Threshold(
    8,
    "the estimated error of the finite differences",
    "the estimate is the difference of two extrapolations, and too small where they agree by chance",
)

RELIABLE = Threshold(
    1e-5,
    "the size that PARITY names, or the largest element of the result and of the truth, whichever is less; for the "
    "complex step 1 + |derivative|",
    "an element whose true value is less certain is not compared with it",
)

FLOOR = Threshold(
    2.0**-6,
    "the median of the elements' sizes",
    "where all terms cancel, as at cos(0 + 1) − cos(1), the measured size is 0, and the terms were of the typical size",
)

JOINT = Threshold(
    2.0**-3,
    "the largest size in the array",
    "if a function is not elementwise, elements are computed from one another, as those of a row in a softmax",
)

JUMP = Threshold(
    2.0**-30,
    "the largest element of the result",
    "a result that changes by more when its inputs move by 2⁻⁵⁰ of themselves has a jump there, which is no rounding",
)

COMPLEX_STEP = Threshold(
    2.0**-60,
    "the largest derivative",
    "the complex step subtracts nothing, and its step is so small that its square is far below an epsilon",
)

QUOTIENT = Tolerance(
    4,
    "(|f(x + h)| + |f(x − h)|)/h, in float64",
    "each value is rounded by half an epsilon or more; the rest is room for the roundings inside f",
)

LEAST = Threshold(
    2.0**-33,
    "the derivative",
    "the estimated error of finite differences is never taken to be less, since extrapolations agree by chance",
)

KINK = Threshold(
    2.0**-20,
    "the derivative",
    "slopes on both sides of a point that differ by less are one slope",
)

BEND = Threshold(
    0.75,
    "the difference of the slopes on both sides at twice the step",
    "that difference halves with the step where a function is smooth, and stays the same at a kink; this is halfway",
)

SMOOTH = Threshold(
    2.0**-20,
    "the sum of the absolute values of the terms",
    "a derivative along a random direction whose estimated error is larger confirms no gradient",
)

SHUFFLED = Threshold(
    1e-9,
    "the element",
    "vector instructions round differently from the instructions for the last elements; what depends on an element's "
    "place differs by more",
)

QUICK = Threshold(
    2.0**-30,
    "the largest element",
    "the fastest way to call a function may round differently; that is far less in float64, and a fault is far more",
)

MARKED = Threshold(
    1e-6,
    "the element",
    "far more than rounding in float64, and far less than the factor that marks what a hand-written rule returns",
)

AXES = Threshold(
    1e-5,
    "the element",
    "two functions that reduce along different axes differ by far more, and what computes in float32 inside by less",
)

SHOWN = Threshold(
    2.0**-40,
    "the largest element",
    "a convention that makes more difference than this is noticed in float64, where rounding makes less",
)

CONVENTION = Threshold(
    1e-4,
    "the largest element",
    "inputs need not show a convention that makes less difference even at random inputs, as an ε that is added to "
    "numbers of about 1 does",
)

SLOPE = Threshold(
    1 / 8,
    "the largest value times the largest cotangent or tangent, over the largest input",
    "a derivative that is much smaller results from terms of about this size that cancel, and has their rounding error",
)

NEARLY = Threshold(
    1e-5,
    "the largest element, or 1",
    "inputs that were symmetric or normalized before they were rounded to float32 deviate by less",
)

RESEMBLES = Threshold(
    1e-4,
    "the larger of the two elements",
    "a result is described as a common mistake, such as a wrong sign, if it is that close to what the mistake gives",
)

NOTHING = Threshold(
    1e-12,
    "the largest element, or 1",
    "terms that cancel in float64 leave some thousands of epsilons at most",
)

DIVISOR = Threshold(
    1e-9,
    "the largest expected element",
    "a ratio to an element that is smaller may be rounding alone",
)

CONSTANT = Threshold(
    1e-3,
    "the largest of the ratios or of the differences",
    "ratios or differences that vary by less are described as one factor or one constant",
)

NOISE = Tolerance(
    0.05,
    "the size that PARITY names, in float32's epsilons",
    "a second difference of a function over a small step is that of its curvature, far less than this; of a function "
    "that computes in float32 inside it is rounding, about half an epsilon",
)

MOST_NOISE = Tolerance(
    64,
    "the size that PARITY names, in float32's epsilons",
    "a second difference that is larger comes of a jump, or of a function that oscillates, and not of rounding",
)

NOISE_GROWTH = Threshold(
    8,
    "the second difference over a step that is smaller by 2⁶",
    "over the larger step rounding is about the same, a kink's second difference 2⁶ times as large, and a smooth "
    "function's 2¹² times",
)

NOISE_JUMP = Threshold(
    2.0**-8,
    "the largest element",
    "a larger second difference is a jump's, as where the winner of two equal elements changes",
)

NOISY = Threshold(
    0.25,
    "the number of elements that are not 0",
    "where fewer show the noise of float32, it may be a kink or a jump that an input happens to be at",
)

SMOOTH_DIFFERENCE = Threshold(
    0.8,
    "the mean square of the sides' difference, element by element",
    "where inputs move by a little, the products of a fault's differences have that mean. Measured: 0.9 and more for "
    "an epsilon, 0 for a formula that is rounded otherwise, and up to 0.6 where the frameworks compute gelu or lgamma "
    "in float32 by other polynomials",
)

ONE_CONSTANT = Tolerance(
    1,
    "the size that PARITY names, in float32's epsilons",
    "rounding a constant to float32 changes the result by no more; the difference is as smooth as that of a fault",
)

LEAST_CONSTANT = Tolerance(
    1 / 64,
    "the size that PARITY names, in float32's epsilons",
    "a constant that is rounded to float32 makes a smaller difference in one case of 32",
)

FAR_END = Threshold(
    1e30,
    "1",
    "a larger input is a far end of the numbers, unless it is given: powers of it overflow in float32",
)

SINGLE_SMOOTH = Threshold(
    1e-3,
    "the sum of the absolute values of the terms",
    "as SMOOTH, of a function that computes in float32 inside",
)

SINGLE_RELIABLE = Threshold(
    1e-2,
    "as RELIABLE",
    "as RELIABLE, of a function that computes in float32 inside",
)

SINGLE_ELEMENT = Threshold(
    1e-6,
    "the element; or the largest one, for elements that are smaller than that",
    "about 8 epsilons of float32, so that float32 inside a float64 function counts as no difference of an element",
)

LIKELY = Threshold(
    2.0**-10,
    "the largest element of the reference's array",
    "an array of the port with its axes in another order is nearer than this in that order alone",
)

EXPLAINED = Threshold(
    2.0**-8,
    "the largest difference of two arrays",
    "what is left of a difference by a convention that is its cause; by another value of the same argument it is more",
)

FEW = Threshold(
    8,
    "what is left of a difference, or what it was before",
    "where single precision inside leaves more than EXPLAINED, a cause still leaves much less than the difference; and "
    "a difference that grows by less has not become another one",
)

HALF_INSIDE = Threshold(
    2.0**-6,
    "the size that PARITY names, in epsilons of bfloat16",
    "rounding something inside to bfloat16 or float16 makes a difference that is larger",
)

SAME_RATE = Threshold(
    1e-6,
    "the larger of two learning rates, or the largest of the run",
    "rates of one schedule are computed in float32 in JAX and in float64 in PyTorch; those of two schedules differ by "
    "more at most steps",
)

SINGLE_UPDATE = Tolerance(
    4,
    "the parameter and the largest update, in float32's epsilons; or the change of an update when the constants of the "
    "optimizer change by an epsilon of float32",
    "constants such as 1 − β2ᵗ have a few roundings in float32, by other algorithms for the power in each framework",
)

ENVELOPE = Threshold(
    64,
    "the largest distance so far of the reference's float32 and float64 parameters, or PARITY",
    "the distance shows what rounding does to one training; where rounding errors grow from step to step, those of the "
    "port may begin to grow some steps earlier, and are then many times larger for a while",
)

CENTRAL_DIFFERENCE = Threshold(
    1e-7,
    "the sum over the points of the terms' sizes",
    "central differences in extended precision have about 12 digits, and a wrong chain rule differs in the first ones",
)

CONVERGED = Threshold(
    1e-3,
    "the variance of y",
    "a fit that explains less than the best one by no more has reached the same minimum: the tutorial's problem has "
    "minima at R² = 0.99 and 0.6, and 2000 steps leave most fits 0.0002 below the first",
)
