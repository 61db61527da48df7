"""What an operator is defined on: dtypes, shapes, and where numbers end."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from p3.parity.case import PRECISIONS, Case, Quantity
from p3.parity.mismatch import Pair, climb, explain, in_epsilons, largest
from p3.parity.operator import Arrays, Operator, at_precision, epsilon, is_inexact, wide
from p3.parity.recorded import RefusalError, asked
from p3.parity.result import CheckResult, Finding, Verdict, judged
from p3.parity.truth import sum_to_shape
from p3.tolerance import HALF_LADDER

HALF = ("float16", "bfloat16")
EXTREMES = (0.0, 1000.0)  # times an argument of a function that is not elementwise


def dtypes(case: Case) -> CheckResult:
    """Value and gradients have the inputs' dtype, in each dtype that the operator takes."""
    findings: list[Finding] = []
    refusals: list[str] = []
    taken: list[tuple[str, str]] = []
    for dtype in case.dtypes:
        if dtype in HALF and any(x.dtype.kind == "c" for x in case.inputs):
            continue
        inputs, cotangents = at_precision(case.inputs, dtype), at_precision(case.cotangents, dtype)
        arguments = [inputs[i] for i in case.arguments]
        for side, operator in case.sides:
            try:
                values = asked(operator, side, "value", inputs)
                for k, y in enumerate(values):
                    if is_inexact(y) and at_precision((y,), dtype)[0].dtype != y.dtype:
                        text = f"for {dtype} inputs its dtype is {y.dtype}"
                        findings.append(Finding(side, "its inputs' dtype", f"output {k}", text))
                gradients = asked(operator, side, "vjp", inputs, cotangents)
            except RefusalError as refusal:
                refusals.append(f"{dtype}: {refusal}")
                if side == "the port" and ("the reference", dtype) in taken:
                    findings.append(
                        Finding(side, "the reference", dtype, f"it raises, and the reference not: {refusal}")
                    )
                continue
            taken.append((side, dtype))
            for x, g, i in zip(arguments, gradients, case.arguments, strict=True):
                if g.dtype != x.dtype:
                    text = f"for a {x.dtype} argument the gradient's dtype is {g.dtype}"
                    findings.append(Finding(side, "its argument's dtype", f"argument {i}", text))
    kept = ", ".join(dtype for dtype in case.dtypes if all((side, dtype) in taken for side, _ in case.sides))
    return judged("dtypes", findings, "; ".join([f"{kept or 'none'}: kept", *(f"refused: {r}" for r in refusals)]))


def low_precision(case: Case) -> CheckResult:
    """
    In half precision, value and gradient are the float64 answer for the same inputs, rounded.

    Where the reference's own is not, as where its intermediate results overflow, the port's need not be.
    """
    findings: list[Finding] = []
    worst: dict[str, float] = {}
    refusals: list[str] = []
    for dtype in [dtype for dtype in case.dtypes if dtype in HALF]:
        if any(x.dtype.kind == "c" for x in case.inputs):
            continue
        inputs = at_precision(case.inputs, dtype)
        exact = tuple(wide(x) if is_inexact(x) else x for x in inputs)
        for method, groups in (("value", ()), ("vjp", (case.cotangents,)), ("jvp", (case.tangents,))):
            quantity = Quantity(method, method, (exact, *groups))
            trusted: list[np.ndarray] = []
            for side, operator in case.sides:
                try:
                    results = asked(operator, side, method, inputs, *(at_precision(group, dtype) for group in groups))
                    single = quantity.of(operator, "float32")
                    expected = quantity.of(operator)
                except RefusalError as refusal:
                    if method != "jvp":  # of which the check of the jvp says so
                        refusals.append(f"{dtype}: {refusal}")
                    break
                pairs = []
                for got, lower, should, size in zip(results, single, expected, case.size(quantity), strict=True):
                    if got.shape == should.shape:
                        epsilons = HALF_LADDER.epsilons * largest(in_epsilons(lower, should, size, "float32"))
                        pairs.append(Pair(wide(got), wide(should), size, epsilons * epsilon(dtype) * size))
                if side == "the reference":
                    trusted = [~pair.beyond(dtype) for pair in pairs]
                for k, (pair, sound) in enumerate(zip(pairs, trusted, strict=False)):
                    pair = pair._replace(got=np.where(sound, pair.got, 0), expected=np.where(sound, pair.expected, 0))
                    worst[dtype] = max(worst.get(dtype, 0.0), largest(pair.epsilons(dtype)))
                    mismatch = climb({dtype: pair})
                    if mismatch is not None:
                        text = f"{method} in {dtype}: {explain(pair.got, pair.expected, {})}"
                        findings.append(Finding(side, "its float64 answer", f"{method} {k}", text, mismatch))
    if not worst:
        verdict: Verdict = "refused" if refusals else "not applicable"
        return CheckResult("low precision", verdict, "; ".join(refusals) or "no half precision to check")
    notes = [f"{dtype} within {epsilons:.2g} of its epsilons" for dtype, epsilons in worst.items()]
    return judged("low precision", findings, "; ".join(dict.fromkeys([*notes, *refusals])))


def shapes(case: Case) -> CheckResult:
    """Scalars, empty, strided and broadcast arguments: the same numbers, in the shape that they should have."""
    findings: list[Finding] = []
    refusals: list[str] = []
    taken: set[tuple[str, str]] = set()
    for side, recorded in case.sides:
        operator = getattr(recorded, "operator", recorded)
        try:
            known = list(shaped(case, recorded))
        except RefusalError as refusal:  # of the plain arrays that the shapes are made from
            refusals.append(str(refusal))
            if taken and not refusal.is_meant:
                text = f"for other shapes it raises, and the reference not: {refusal}"
                findings.append(Finding(side, "the reference", "value or vjp", text))
            continue
        for name, inputs, cotangents, should_values, should_gradients in known:
            for method, groups, expected in (
                ("value", (inputs,), should_values),
                ("vjp", (inputs, cotangents), should_gradients),
            ):
                try:
                    results = asked(operator, f"{side}, {name}", method, *groups)
                except RefusalError as refusal:
                    refusals.append(str(refusal))
                    if (name, method) in taken:
                        text = f"{name}: it raises, and the reference not: {refusal}"
                        findings.append(Finding(side, "the reference", method, text))
                    continue
                taken.add((name, method))
                for k, (got, should) in enumerate(zip(results, expected, strict=True)):
                    size = np.full(should.shape, np.abs(wide(should)).max(initial=0.0))
                    wrong_shape = got.shape != should.shape
                    mismatch = None if wrong_shape else climb({"float64": Pair(got, should, size)})
                    if wrong_shape or mismatch is not None:
                        text = f"{name}: {explain(got, should, {})}"
                        part = f"{method} {k}"
                        findings.append(Finding(side, "the same numbers in one array", part, text, mismatch))
    note = "scalar, empty, strided, repeated, broadcast" if case.elementwise else "strided"
    return judged("shapes", findings, "; ".join([note, *(f"refused: {refusal}" for refusal in refusals)]))


class Shaped(NamedTuple):
    """Inputs in some shape, cotangents for them, and what an operator should give."""

    name: str
    inputs: Arrays
    cotangents: Arrays
    values: Arrays
    gradients: Arrays


def shaped(case: Case, operator: Operator) -> Iterator[Shaped]:
    """The shapes to try, of numbers whose results are known from one plain array of them."""
    if not case.elementwise:
        inputs, values = tuple(map(strided, case.inputs)), operator.value(case.inputs)
        gradients = operator.vjp(case.inputs, case.cotangents)
        yield Shaped("strided", inputs, tuple(map(strided, case.cotangents)), values, gradients)
        of_sum = tuple(map(ones, case.cotangents))
        yield Shaped("of a sum", inputs, of_sum, values, operator.vjp(case.inputs, tuple(map(np.copy, of_sum))))
        return
    shape = np.broadcast_shapes(*(x.shape for x in case.inputs))
    flat = tuple(np.resize(np.broadcast_to(x, shape), 24) for x in case.inputs)
    outputs = operator.value(flat)
    cotangents = case.like(tuple(y for y in outputs if is_inexact(y)), 4)
    gradients = operator.vjp(flat, cotangents)

    def each(function: Callable[[np.ndarray], np.ndarray]) -> Iterator[Arrays]:
        return (tuple(map(function, arrays)) for arrays in (flat, cotangents, outputs, gradients))

    yield Shaped("scalar", *each(lambda x: np.asarray(x[0])))
    yield Shaped("empty", *each(lambda x: x[:0].reshape(2, 0)))
    yield Shaped("strided", *each(strided))
    yield Shaped("transposed", *each(lambda x: x.reshape(4, 6).T))
    yield Shaped("repeated", *each(lambda x: np.lib.stride_tricks.as_strided(x[:1].copy(), (5,), (0,))))
    for position in range(len(flat) if len(flat) > 1 else 0):
        # One argument is a column, and the others are rows: in the table of results each is repeated.
        rows = tuple(x[:4].reshape(4, 1) if i == position else x[:6].reshape(1, 6) for i, x in enumerate(flat))
        yield tabled(case, operator, f"broadcast along argument {position}", rows)
        # One is a row, and the others are tables of as many columns.
        rows = tuple(x[:6] if i == position else x.reshape(4, 6) for i, x in enumerate(flat))
        yield tabled(case, operator, f"argument {position} without an axis", rows)


def tabled(case: Case, operator: Operator, name: str, inputs: Arrays) -> Shaped:
    """Inputs that are repeated in a table of 4 rows and 6 columns, and what comes of the tables."""
    table = tuple(np.broadcast_to(x, (4, 6)).copy() for x in inputs)
    values = operator.value(table)
    of_sum = tuple(ones(y) for y in values if is_inexact(y))
    slopes = operator.vjp(table, tuple(map(np.copy, of_sum)))
    summed = tuple(sum_to_shape(g, inputs[i].shape) for i, g in zip(case.arguments, slopes, strict=True))
    return Shaped(name, inputs, of_sum, values, summed)


def ones(y: np.ndarray) -> np.ndarray:
    """The cotangents that the sum of y sends back: ones, all the same one in memory."""
    return np.lib.stride_tricks.as_strided(np.ones(1, y.dtype), y.shape, (0,) * y.ndim)


def strided(x: np.ndarray) -> np.ndarray:
    """The same numbers, not side by side in memory, and its last axis not the fastest."""
    apart = np.zeros((*x.shape[::-1], 2), x.dtype)[..., 0].T
    apart[...] = x
    return apart


def special_values(case: Case) -> CheckResult:
    """Where numbers end, and at the points that the user names: both sides have the same, NaN as well."""
    findings: list[Finding] = []
    refusals: list[str] = []
    for precision in PRECISIONS:
        values = specials(case, precision)
        for position in case.arguments:
            for inputs in with_specials(case, position, values):
                try:
                    findings += special_differences(case, inputs, position, precision)
                except RefusalError as refusal:
                    refusals.append(str(refusal))
            for factor in EXTREMES if not case.elementwise else ():
                with suppress(RefusalError):  # there a function may say that it is not defined
                    findings += differences_at_extremes(case, position, precision, factor)
    if refusals and not findings:
        return CheckResult("special values", "refused", "; ".join(dict.fromkeys(refusals)))
    note = f"alike at {', '.join(f'{x:.3g}' for x in values)}"
    note += "" if case.elementwise else " in one element; finite alike where an argument is 0 or 1000 times as large"
    return judged("special values", findings, note)


def specials(case: Case, precision: str) -> np.ndarray:
    """
    Zeros, subnormal, smallest normal, huge and infinite numbers of both signs, NaN, and the user's points.

    A function that is not elementwise gets the zeros and the points alone: how far an infinity or a NaN spreads, and
    what overflows on the way, is the algorithm's.
    """
    if not case.elementwise:
        return np.array([0.0, -0.0, *case.points])
    info = np.finfo(precision)
    ends = [0.0, 3 * float(info.smallest_subnormal), float(info.tiny), float(info.max) / 2, np.inf]
    return np.array([sign * end for end in ends for sign in (1, -1)] + [np.nan, *case.points])


def with_specials(case: Case, position: int, values: np.ndarray) -> Iterator[Arrays]:
    """Inputs with the values in one argument: all at once where the function is elementwise, or else one at a time."""
    kind = case.inputs[position].dtype
    if case.elementwise:
        yield tuple(
            values.astype(kind) if i == position else np.resize(x.ravel()[:1], len(values))
            for i, x in enumerate(case.inputs)
        )
        return
    for value in values if case.inputs[position].size else ():
        x = case.inputs[position].copy()
        x[(0,) * x.ndim] = value
        yield (*case.inputs[:position], x, *case.inputs[position + 1 :])


def differences_at_extremes(case: Case, position: int, precision: str, factor: float) -> Iterator[Finding]:
    """
    Where an argument times a factor gives infinities or NaN on one side alone.

    So can the gradient of a norm at 0, and a sum of exponentials that was not shifted. What finite numbers come out is
    between rounding, and a choice where elements are all alike.
    """
    scaled = np.asarray(factor * case.inputs[position])
    inputs = (*case.inputs[:position], scaled, *case.inputs[position + 1 :])
    for finding in special_differences(case, inputs, position, precision):
        m = finding.mismatch
        if m is not None and np.isfinite(m.expected) and not np.isfinite(m.got):
            text = f"the {finding.part} of the argument times {factor:g} is {m.got:.9g}"
            yield finding._replace(explanation=f"{text} and the reference's {m.expected:.9g}")


def flushed(case: Case, inputs: Arrays, position: int, precision: str, got: np.ndarray) -> np.ndarray:
    """Where a subnormal input gives what the zero of its sign gives, as it does where hardware takes it for one."""
    x = inputs[position]
    result = np.zeros(got.shape, bool)
    if case.elementwise and got.shape == x.shape:
        subnormal = (x != 0) & (np.abs(x) < float(np.finfo(precision).tiny))
        for negative, zero in ((False, 0), (True, 1)):  # specials' first two
            same = (got == got[zero]) | (np.isnan(got) & np.isnan(got[zero]))
            result |= subnormal & (np.signbit(x.real) == negative) & same
    return result


def special_differences(case: Case, inputs: Arrays, position: int, precision: str) -> Iterator[Finding]:
    """Where value or gradient of the two sides differ at some inputs."""
    values = asked(case.reference, "the reference", "value", at_precision(inputs, precision))
    cotangents = tuple(np.ones(y.shape, wide(y).dtype) for y in values if is_inexact(y))
    if not case.elementwise:  # of a row that sums to 1 ones make a gradient of nothing but rounding
        cotangents = case.like(cotangents, 5)
    undefined = np.any([np.isnan(wide(y)) for y in values if y.shape == inputs[position].shape], axis=0)
    if not case.elementwise:
        undefined = np.array(any(np.isnan(wide(y)).any() for y in values))
    tangents = tuple(np.ones_like(inputs[i]) for i in case.arguments)
    for method, groups in (("value", (inputs,)), ("vjp", (inputs, cotangents)), ("jvp", (inputs, tangents))):
        quantity = Quantity(method, method, groups)
        given = tuple(at_precision(group, precision) for group in groups)
        try:
            expected = asked(case.reference, "the reference", method, *given)
        except RefusalError:
            if method == "jvp":  # of which the check of the jvp says so
                continue
            raise
        try:
            got = asked(case.port, "the port", method, *given)
        except RefusalError as refusal:
            if not refusal.is_meant:
                text = f"there it raises, and the reference not: {refusal}"
                yield Finding("the port", "the reference", method, text)
            continue
        for k, (a, b, size) in enumerate(zip(got, expected, case.size(quantity), strict=True)):
            if a.shape != b.shape:
                continue
            ignored = flushed(case, inputs, position, precision, a) | flushed(case, inputs, position, precision, b)
            ignored |= undefined & (method != "value")  # where there is no value there is no derivative
            ignored |= ~np.isfinite(wide(b)) & (method == "jvp")  # a sum of infinities is one, or NaN, as it is ordered
            mismatch = climb({precision: Pair(np.where(ignored, b, a), b, size)})
            if mismatch is None:
                continue
            at = (
                inputs[position][mismatch.element]
                if case.elementwise
                else inputs[position][(0,) * inputs[position].ndim]
            )
            text = f"the {method} at {at:.6g} is {mismatch.got:.9g} and the reference's {mismatch.expected:.9g}"
            if np.isnan(mismatch.got) != np.isnan(mismatch.expected):
                text += ": NaN on one side alone"
            yield Finding("the port", "the reference", f"{method} {k}", text, mismatch, (at.item(),))
