"""How far two results are apart, in epsilons, and whether that is rounding or a difference of meaning."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from p3.parity.difference import Kind
from p3.parity.function import epsilon, smallest_normal, wide
from p3.tolerance import (
    CONSTANT,
    DIVISOR,
    HALF_PARITY,
    LADDER,
    NOTHING,
    PARITY,
    RESEMBLES,
    SINGLE_ELEMENT,
    Tolerance,
)


class Mismatch(NamedTuple):
    """
    The worst difference of two arrays.

    Attributes
    ----------
    kind : "rounding" if it shrinks with the precision's epsilon; "single precision" if it does not, since a side
        computes in float32 inside, whatever it is given; "edge" at the far ends of the numbers; "semantic" otherwise
    precision : in which it was found
    element : the index of the worst element
    got, expected : both values there
    epsilons : their difference in epsilons of the size that the tolerance names; infinite where one is NaN, or infinite
    tolerance : how many epsilons are no difference
    beyond : how many elements are beyond the tolerance
    ladder : the largest difference of the arrays in each precision, in its epsilons
    """

    kind: Kind
    precision: str
    element: tuple[int, ...]
    got: complex | float
    expected: complex | float
    epsilons: float
    tolerance: float
    beyond: int
    ladder: Mapping[str, float]


class Pair(NamedTuple):
    """
    Two arrays that should be equal.

    Attributes
    ----------
    size : that the tolerance names, for each element
    allowance : how far `expected` may itself be off
    tolerance : how many epsilons of which size are no difference; in half precision `PARITY` stands for `HALF_PARITY`
    inside : the precision that something inside is computed in, if that is lower; the epsilons are then those of it
    """

    got: np.ndarray
    expected: np.ndarray
    size: np.ndarray
    allowance: np.ndarray | float = 0.0
    tolerance: Tolerance = PARITY
    inside: str = ""

    def limit(self, precision: str) -> float:
        """How many epsilons of the size are no difference."""
        is_half = precision not in ("float32", "float64")
        return (HALF_PARITY if is_half and self.tolerance is PARITY else self.tolerance).epsilons

    def epsilons(self, precision: str) -> np.ndarray:
        """The difference of each element, in epsilons of the size."""
        return in_epsilons(self.got, self.expected, self.size, self.inside or precision)

    def limits(self, precision: str) -> np.ndarray:
        """How many epsilons of each element's size are no difference: the tolerance, and the allowance."""
        limit = np.asarray(self.limit(precision))
        if not np.any(self.allowance):
            return limit
        with np.errstate(over="ignore"):
            return np.asarray(limit + self.allowance / unit_of(self.size, self.inside or precision))

    def beyond(self, precision: str) -> np.ndarray:
        """Where the difference is more than that."""
        return np.asarray(self.epsilons(precision) > self.limits(precision))


def unit_of(size: np.ndarray, precision: str) -> np.ndarray:
    """
    An epsilon of each size.

    It is never less than the smallest normal number, since some hardware takes what is smaller for 0. A size that is
    not finite counts as 0, since an infinite result must not excuse a finite one.
    """
    return np.asarray(np.maximum(epsilon(precision) * np.where(np.isfinite(size), size, 0), smallest_normal(precision)))


def in_epsilons(got: np.ndarray, expected: np.ndarray, size: np.ndarray, precision: str) -> np.ndarray:
    """
    |got − expected| in epsilons of a size, element by element.

    Two NaNs, or two equal infinities, are no difference; a NaN or an infinity on one side alone is an infinite one.
    """
    a, b = wide(got), wide(expected)
    if a.dtype.kind == "c" or b.dtype.kind == "c":  # part by part, since a complex infinity is one in one part
        parts = (in_epsilons(part(a), part(b), size, precision) for part in (np.real, np.imag))
        return np.where(np.isnan(a) & np.isnan(b), 0.0, np.maximum(*parts))
    with np.errstate(all="ignore"):
        difference = np.abs(a - b)
        result = difference / unit_of(size, precision)
    if np.isfinite(difference.max(initial=0.0)):  # of most arrays
        return np.asarray(result)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    one_sided = ~same & ~(np.isfinite(a) & np.isfinite(b))
    return np.where(same, 0.0, np.where(one_sided, np.inf, result))


def largest(epsilons: np.ndarray) -> float:
    """The largest finite difference."""
    finite = epsilons[np.isfinite(epsilons)]
    return float(finite.max()) if finite.size else 0.0


class Measure(NamedTuple):
    """
    How far two arrays are apart in one precision.

    Attributes
    ----------
    largest : the largest finite difference, in epsilons of the size
    limit : how many are no difference
    beyond : how many elements are beyond the limit
    element, got, expected, epsilons : the worst of these, where there is one
    """

    largest: float
    limit: float
    beyond: int = 0
    element: tuple[int, ...] = ()
    got: complex | float = 0.0
    expected: complex | float = 0.0
    epsilons: float = 0.0


def measure(pair: Pair, precision: str) -> Measure:
    """How far a pair is apart."""
    measured = pair.epsilons(precision)
    most = float(measured.max(initial=0.0))
    if most <= pair.limit(precision):  # most pairs, and quickly
        return Measure(most, pair.limit(precision))
    beyond = measured > pair.limits(precision)
    found = Measure(largest(measured), pair.limit(precision))
    if not beyond.any():
        return found
    epsilons = np.where(beyond, measured, -1.0)
    index = np.unravel_index(int(np.argmax(epsilons)), epsilons.shape)
    return found._replace(
        beyond=int(beyond.sum()),
        element=tuple(int(i) for i in index),
        got=wide(pair.got)[index].item(),
        expected=wide(pair.expected)[index].item(),
        epsilons=float(epsilons[index]),
    )


def climb(pairs: Mapping[str, Pair], own: float = 0.0, shared: float = 0.0) -> Mismatch | None:
    """The precision ladder of pairs; as `judge`."""
    return judge({precision: measure(pair, precision) for precision, pair in pairs.items()}, own, shared)


def judge(measures: Mapping[str, Measure], own: float = 0.0, shared: float = 0.0) -> Mismatch | None:
    """
    The precision ladder: the worst difference over the precisions that were measured, or None within the tolerance.

    A difference beyond the tolerance is rounding if in epsilons it is no more than `LADDER` times what it is in another
    precision. With one precision alone nothing tells, and it counts as semantic.

    Two sides that round alike are equal in float32 by luck, so that their own rounding there counts too: `own`, by how
    many of float32's epsilons a side is off its own float64 answer, which tells also where the pairs are in float64
    alone; and `shared`, by how many both are, which excuses such a difference in float32 too.
    """
    ladder = {precision: found.largest for precision, found in measures.items()}
    if own:
        ladder["float32"] = max(ladder.get("float32", 0.0), own)
    worst: Mismatch | None = None
    for precision, measured in measures.items():
        if not measured.beyond:
            continue
        others = [other for name, other in ladder.items() if name != precision]
        others += [shared] if others and precision == "float32" else []
        bound = LADDER.epsilons * max(measured.limit, *others) if others else measured.limit
        found = Mismatch(
            kind="semantic" if measured.epsilons > bound else "rounding",
            precision=precision,
            element=measured.element,
            got=measured.got,
            expected=measured.expected,
            epsilons=measured.epsilons,
            tolerance=measured.limit,
            beyond=measured.beyond,
            ladder=ladder,
        )
        if worst is None or (found.kind == "semantic") > (worst.kind == "semantic"):
            worst = found
    return worst


def describe_ladder(mismatch: Mismatch) -> str:
    """The figures that the kind was decided by."""
    figures = ", ".join(f"{epsilons:.3g} {precision} epsilons" for precision, epsilons in mismatch.ladder.items())
    return f"{mismatch.kind} ({figures})"


class Explanation(NamedTuple):
    """
    What a difference comes of, or looks like.

    Attributes
    ----------
    kind : the mistake, in a word; "size" and "elements" where it looks like none
    text : in a sentence, with its numbers
    """

    kind: str
    text: str


def explain(
    got: np.ndarray,
    expected: np.ndarray,
    others: Mapping[str, np.ndarray],
    weights: np.ndarray | float = 1.0,
    is_value: bool = False,
) -> str:
    """What the difference looks like, in a sentence; as `resemblance`."""
    return resemblance(got, expected, others, weights, is_value).text


def resemblance(
    got: np.ndarray,
    expected: np.ndarray,
    others: Mapping[str, np.ndarray],
    weights: np.ndarray | float = 1.0,
    is_value: bool = False,
) -> Explanation:
    """
    What the difference looks like, by the mistakes that people make.

    Parameters
    ----------
    others : by name, what it would be instead by some mistake that only the caller can know of
    weights : what a derivative is multiplied by in what was got
    is_value : whether it is a function's value, and comes of no derivative rule
    """
    g, e = wide(got), wide(expected)

    def alike(a: np.ndarray, b: np.ndarray) -> bool:
        if a.shape != b.shape or not a.size:
            return False
        with np.errstate(all="ignore"):
            return bool(
                np.all(
                    np.abs(a - b)
                    <= RESEMBLES.value * np.maximum(np.abs(a), np.abs(b)) + NOTHING.value * np.abs(b).max()
                )
                and np.isfinite(a).all()
            )

    if got.shape != expected.shape:
        return Explanation("shape", f"its shape is {got.shape} and not {expected.shape}")
    for name, other in others.items():
        if alike(g, wide(other)) and not alike(g, e):
            return Explanation("other", name)
    is_nan = np.isnan(g) & ~np.isnan(e)
    if is_nan.any():
        return Explanation("NaN", f"it is NaN in {int(is_nan.sum())} of {g.size} elements")
    if not g.any() and e.any():
        why = "" if is_value else ": a rule that returns zeros, or something detached"
        return Explanation("zero", f"it is 0 everywhere{why}")
    if alike(g, -e):
        return Explanation("sign", "its sign is wrong")
    if g.dtype.kind == "c" and alike(g, e.conj()):
        return Explanation("conjugate", "it is the complex conjugate")
    if g.ndim >= 2 and alike(g, np.swapaxes(e, -1, -2).reshape(e.shape)):
        return Explanation("transposed", "it is transposed")
    if g.ndim >= 1 and g.size > 1:
        for shift in (1, -1):
            if alike(g.ravel(), np.roll(e.ravel(), shift)):
                return Explanation("shifted", "it is off by one element")
        if alike(g.ravel(), e.ravel()[::-1]):
            return Explanation("reversed", "it is reversed")
    if g.size == 1:
        x, right = g.ravel()[0], e.ravel()[0]
        digits = 6 if f"{x:.6g}" != f"{right:.6g}" else 17
        return Explanation("scalar", f"it is {x:.{digits}g}, and {right:.{digits}g} is right")
    with np.errstate(all="ignore"):
        ratios = (g / e)[np.isfinite(g / e) & (np.abs(e) > DIVISOR.value * np.abs(e).max(initial=0))]
    if (
        ratios.any()
        and np.ptp(ratios.real) <= CONSTANT.value * np.abs(ratios).max()
        and abs(ratios.mean() - 1) > RESEMBLES.value
    ):
        return Explanation("factor", f"it is {ratios.mean().real:.6g} times what it should be")
    with np.errstate(invalid="ignore"):
        largest_expected = float(np.abs(e[np.isfinite(e)]).max(initial=0))
        difference = np.abs(g - e)[np.isfinite(g - e)].max(initial=0)
    if not largest_expected:
        return Explanation("size", f"it is up to {difference:.6g} where all should be 0")
    error = difference / largest_expected
    with np.errstate(all="ignore"):
        differ = ~(
            np.abs(g - e) <= SINGLE_ELEMENT.value * np.maximum(np.abs(g), np.abs(e)) + NOTHING.value * largest_expected
        )
        slopes = ((g - e) / weights)[np.isfinite(g - e)]
    if g.size > 4 and 0 < differ.sum() <= g.size // 4:
        return Explanation("elements", f"it differs in {int(differ.sum())} of {g.size} elements alone")
    if slopes.size > 1 and np.ptp(slopes.real) <= CONSTANT.value * np.abs(slopes).max():
        return Explanation("constant", f"it is off by a constant, {slopes.mean().real:.6g}")
    return Explanation("size", f"it is up to {error:.3g} of the largest element off")
