"""What an operator is defined on: dtypes and shapes."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from p3.parity.case import Case
from p3.parity.function import Arrays, Function, at_precision, epsilon, is_inexact, wide
from p3.parity.mismatch import Pair, climb, explain, in_epsilons, largest
from p3.parity.place import Place
from p3.parity.quantity import Quantity
from p3.parity.recorded import RefusalError, asked
from p3.parity.result import CheckResult, Finding, Refusal, judged, refused
from p3.parity.truth import sum_to_shape
from p3.tolerance import HALF_LADDER

HALF = ("float16", "bfloat16")
BESIDE = 2.0**-18  # how far numbers beside given ones are, as a fraction of these: some epsilons of float32
DRAWS = 4  # of such numbers


def dtypes(case: Case) -> CheckResult:
    """Value and gradients have the inputs' dtype, in each dtype that the operator takes."""
    findings: list[Finding] = []
    refusals: list[Refusal] = []
    taken: list[tuple[str, str]] = []
    for dtype in case.dtypes:
        if dtype in HALF and any(x.dtype.kind == "c" for x in case.inputs):
            continue
        inputs, cotangents = at_precision(case.inputs, dtype), at_precision(case.cotangents, dtype)
        arguments = [inputs[i] for i in case.arguments]
        for side, operator in case.sides:
            value, vjp = (Place(side, name, precision=dtype) for name in ("value", "vjp"))
            try:
                values = asked(operator, value, inputs)
                for path, y in zip(case.output_paths, values, strict=True):
                    if side == "port" and ("reference", dtype) not in taken:
                        continue  # there is nothing that the port should do
                    if is_inexact(y) and at_precision((y,), dtype)[0].dtype != y.dtype:
                        text = f"for {dtype} inputs its dtype is {y.dtype}"
                        findings.append(Finding(value._replace(path=path), "its inputs' dtype", text))
                gradients = asked(operator, vjp, inputs, cotangents)
            except RefusalError as refusal:
                refusals.append(refusal.refusal)
                if side == "port" and ("reference", dtype) in taken and not refusal.is_meant:
                    findings.append(raised(refusal))
                continue
            taken.append((side, dtype))
            for x, g, i in zip(arguments, gradients, case.arguments, strict=True):
                if side == "port" and ("reference", dtype) not in taken:
                    continue
                if g.dtype != x.dtype:
                    text = f"for a {x.dtype} argument the gradient's dtype is {g.dtype}"
                    findings.append(Finding(vjp._replace(path=case.structure.paths[i]), "its argument's dtype", text))
    kept = ", ".join(dtype for dtype in case.dtypes if all((side, dtype) in taken for side, _ in case.sides))
    return judged("dtypes", findings, f"{kept or 'none'}: kept", refusals)


def raised(refusal: RefusalError) -> Finding:
    """What the port raises where the reference does not."""
    text = f"it raises {refusal.refusal.error}"
    return Finding(refusal.refusal.place, "the reference, which does not", text, refusal=refusal.refusal)


def low_precision(case: Case) -> CheckResult:
    """
    In half precision, value and gradient are the float64 answer for the same inputs, rounded.

    Where the reference's own is not, as where its intermediate results overflow, the port's need not be.
    """
    findings: list[Finding] = []
    worst: dict[str, float] = {}
    refusals: list[Refusal] = []
    for dtype in [dtype for dtype in case.dtypes if dtype in HALF]:
        if any(x.dtype.kind == "c" for x in case.inputs):
            continue
        inputs = at_precision(case.inputs, dtype)
        exact = tuple(wide(x) if is_inexact(x) else x for x in inputs)
        for name, groups in (("value", ()), ("vjp", (case.cotangents,)), ("jvp", (case.tangents,))):
            quantity = Quantity(name, (exact, *groups))
            trusted: list[np.ndarray] | None = None
            for side, operator in case.sides:
                try:
                    given = (inputs, *(at_precision(group, dtype) for group in groups))
                    results = asked(operator, Place(side, name, precision=dtype), *given)
                    rounding = float32_rounding(case, quantity, operator)
                    expected = quantity.of(operator)
                except RefusalError as refusal:
                    if name != "jvp":  # of which the check of the jvp says so
                        refusals.append(refusal.refusal)
                    continue
                pairs = []
                for got, own, should, size in zip(results, rounding, expected, case.size(quantity), strict=True):
                    if got.shape == should.shape:
                        epsilons = HALF_LADDER.epsilons * own
                        ended = np.isinf(wide(at_precision((should,), dtype)[0]))  # beyond the dtype's largest
                        should = np.where(ended, at_precision((should,), dtype)[0].astype(should.dtype), should)
                        pairs.append(Pair(wide(got), wide(should), size, epsilons * epsilon(dtype) * size))
                if trusted is None:  # the reference's own, or the port's where that refuses
                    sounds = [~pair.beyond(dtype) for pair in pairs]
                    trusted = sounds if side == "reference" else [np.ones_like(sound) for sound in sounds]
                for k, (pair, sound) in enumerate(zip(pairs, trusted, strict=False)):
                    pair = pair._replace(got=np.where(sound, pair.got, 0), expected=np.where(sound, pair.expected, 0))
                    worst[dtype] = max(worst.get(dtype, 0.0), largest(pair.epsilons(dtype)))
                    mismatch = climb({dtype: pair})
                    if mismatch is not None:
                        place = case.places(quantity, side)[k]._replace(precision=dtype)
                        text = explain(pair.got, pair.expected, {})
                        findings.append(Finding(place, "its float64 answer", text, mismatch, quantity=quantity))
    if not worst:
        if refusals:
            return refused("low precision", refusals)
        return CheckResult("low precision", "not applicable", "no half precision to check")
    notes = [f"{dtype} within {epsilons:.2g} of its epsilons" for dtype, epsilons in worst.items()]
    return judged("low precision", findings, "; ".join(notes), refusals)


def float32_rounding(case: Case, quantity: Quantity, operator: Function) -> list[np.ndarray]:
    """
    By how many epsilons an operator in float32 is off its own float64 answer, for each element of a quantity.

    An elementwise function may by luck be exact at one number, so that it is also computed at numbers beside it. The
    elements of any other function share their rounding, and each has the largest.
    """
    random = case.random()
    beside = [case.moved(quantity, random, BESIDE) for _ in range(DRAWS)] if case.elementwise else []
    worst = [np.zeros(np.shape(size)) for size in case.size(quantity)]
    for drawn in (quantity, *beside):
        exact = drawn._replace(groups=tuple(at_precision(group, "float64") for group in drawn.given("float32")))
        results = zip(worst, exact.of(operator, "float32"), exact.of(operator), case.size(quantity), strict=True)
        for k, (so_far, single, double, size) in enumerate(results):
            epsilons = in_epsilons(single, double, size, "float32")
            if not case.elementwise:
                epsilons = np.full(epsilons.shape, largest(epsilons))
            worst[k] = np.maximum(so_far, np.where(np.isfinite(epsilons), epsilons, 0))
    return worst


def shapes(case: Case) -> CheckResult:
    """Empty, strided and broadcast arguments: the same numbers, in the shape that they should have."""
    findings: list[Finding] = []
    refusals: list[Refusal] = []
    taken: set[Place] = set()  # by the reference
    tried: dict[str, None] = {}
    for side, recorded in case.sides:
        operator = recorded.unrecorded
        try:
            known = list(shaped(case, recorded))
        except RefusalError as refusal:  # of the plain arrays that the shapes are made from
            refusals.append(refusal.refusal)
            if taken and not refusal.is_meant:
                findings.append(raised(refusal))
            continue
        for shape in known:
            tried[shape.place.special] = None
            for name, groups, expected, plain in (
                ("value", (shape.inputs,), shape.values, shape.plain_values),
                ("vjp", (shape.inputs, shape.cotangents), shape.gradients, shape.plain_gradients),
            ):
                here = shape.place._replace(side=side, quantity=name)
                try:
                    results = asked(operator, here, *groups)
                except RefusalError as refusal:
                    refusals.append(refusal.refusal)
                    if here._replace(side="reference") in taken:
                        findings.append(raised(refusal))
                    continue
                taken.add(here)
                quantity = case.quantity(name)
                places = case.places(quantity, side)
                least = case.least_slopes(Quantity(name, groups)) if not case.elementwise else ()
                for k, (place, got, should, whole) in enumerate(zip(places, results, expected, plain, strict=True)):
                    size = np.full(should.shape, np.abs(wide(whole)).max(initial=0.0))
                    size = np.fmax(size, least[k]) if least else size
                    wrong_shape = got.shape != should.shape
                    mismatch = None
                    if not wrong_shape:
                        mismatch = case.climb(quantity, k, {"float64": Pair(got, should, size)}, [recorded])
                    if wrong_shape or mismatch is not None:
                        at = here._replace(path=place.path, by=place.by)
                        against, text = "the same numbers in one array", explain(got, should, {})
                        findings.append(Finding(at, against, text, mismatch))
    return judged("shapes", findings, ", ".join(tried), refusals)


class Shaped(NamedTuple):
    """
    Inputs in some shape, and what an operator should give.

    Attributes
    ----------
    place : whose `special` names the shape
    inputs, cotangents : in the shape
    values, gradients : what should come out
    plain_values, plain_gradients : those of all the numbers in one array, whose largest is the size of an error
    """

    place: Place
    inputs: Arrays
    cotangents: Arrays
    values: Arrays
    gradients: Arrays
    plain_values: Arrays
    plain_gradients: Arrays


def shaped(case: Case, operator: Function) -> Iterator[Shaped]:
    """
    The shapes to try, of numbers whose results are known from one plain array of them.

    Each argument keeps the rank that it was given. Those of an elementwise function that are given in the shape of the
    result have another one together, and a scalar stays as it is. Other functions get their arrays with other strides.
    """
    shape = np.broadcast_shapes(*(x.shape for x in case.inputs)) if case.elementwise else ()
    is_whole = [x.shape == shape for x in case.inputs]
    if not shape or not all(whole or not x.ndim for whole, x in zip(is_whole, case.inputs, strict=True)):
        inputs, values = tuple(map(strided, case.inputs)), operator.value(case.inputs)
        gradients = operator.vjp(case.inputs, case.cotangents)
        cotangents = tuple(map(strided, case.cotangents))
        yield Shaped(shape_of("strided"), inputs, cotangents, values, gradients, values, gradients)
        of_sum = tuple(map(ones, case.cotangents))
        gradients = operator.vjp(case.inputs, tuple(map(np.copy, of_sum)))
        yield Shaped(shape_of("of a sum"), inputs, of_sum, values, gradients, values, gradients)
        return
    axes = (1,) * (len(shape) - 2)  # in front of the last two
    flat = tuple(np.resize(x, 24) if whole else x for whole, x in zip(is_whole, case.inputs, strict=True))

    def of_rank(*lengths: int) -> tuple[int, ...]:
        return (*axes, *lengths)[-len(shape) :] if len(shape) > 1 else (int(np.prod(lengths)),)

    plain = tuple(x.reshape(of_rank(1, 24)) if whole else x for whole, x in zip(is_whole, flat, strict=True))
    outputs = operator.value(plain)
    cotangents = case.like(tuple(y for y in outputs if is_inexact(y)), 4)
    gradients = operator.vjp(plain, cotangents)

    def each(special: str, function: Callable[[np.ndarray], np.ndarray]) -> Shaped:
        def change(x: np.ndarray) -> np.ndarray:
            return function(x.reshape(-1))

        x = tuple(change(x) if whole else x for whole, x in zip(is_whole, plain, strict=True))
        v, y = tuple(map(change, cotangents)), tuple(map(change, outputs))
        summed = gradients
        if not all(is_whole):  # a scalar's gradient is the sum over the elements, whichever there are
            summed = operator.vjp(tuple(map(np.copy, x)), tuple(map(np.copy, v)))
        g = tuple(
            change(g) if is_whole[i] else total for i, g, total in zip(case.arguments, gradients, summed, strict=True)
        )
        return Shaped(shape_of(special), x, v, y, g, outputs, gradients)

    yield each("of one element", lambda x: x[:1].reshape(of_rank(1, 1)))
    yield each("empty", lambda x: x[:0].reshape(of_rank(0, 2)))
    yield each("strided", lambda x: strided(x.reshape(of_rank(4, 6))))
    if len(shape) > 1:
        yield each("transposed", lambda x: np.swapaxes(x.reshape(of_rank(6, 4)), -1, -2))
    yield each("repeated", lambda x: np.lib.stride_tricks.as_strided(x[:1].copy(), of_rank(1, 5), (0,) * len(shape)))
    whole_ones = [i for i, whole in enumerate(is_whole) if whole]
    if len(whole_ones) < 2 or not all(is_inexact(x) for x in case.inputs):  # a mask keeps the shape of what it masks
        return
    for position in whole_ones:
        # One argument is a column, and the others are rows: in the table of results each is repeated.
        column, row = (of_rank(4, 1), of_rank(1, 6)) if len(shape) > 1 else ((1,), (6,))
        lengths = {i: column if i == position else row for i in whole_ones}
        rows = tuple(np.resize(x, lengths[i]) if i in lengths else x for i, x in enumerate(flat))
        special = "as a column" if len(shape) > 1 else "of one element"
        yield tabled(case, operator, shape_of(special, case.of(position)), rows)


def shape_of(special: str, of: str = "") -> Place:
    """The place of inputs, or of one of them, in a shape."""
    return Place("", "", special=special, of=of)


def tabled(case: Case, operator: Function, place: Place, inputs: Arrays) -> Shaped:
    """Inputs that are repeated in a table, and what comes of the tables."""
    shape = np.broadcast_shapes(*(x.shape for x in inputs))
    table = tuple(np.broadcast_to(x, shape).copy() if x.ndim else x for x in inputs)
    values = operator.value(table)
    of_sum = tuple(ones(y) for y in values if is_inexact(y))
    slopes = operator.vjp(table, tuple(map(np.copy, of_sum)))
    summed = tuple(sum_to_shape(g, inputs[i].shape) for i, g in zip(case.arguments, slopes, strict=True))
    return Shaped(place, inputs, of_sum, values, summed, values, summed)


def ones(y: np.ndarray) -> np.ndarray:
    """The cotangents that the sum of y sends back: ones, all the same one in memory."""
    return np.lib.stride_tricks.as_strided(np.ones(1, y.dtype), y.shape, (0,) * y.ndim)


def strided(x: np.ndarray) -> np.ndarray:
    """The same numbers, not side by side in memory, and its last axis not the fastest."""
    apart = np.zeros((*x.shape[::-1], 2), x.dtype)[..., 0].T
    apart[...] = x
    return apart
