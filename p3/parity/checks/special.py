"""Where numbers end, and where the user says that inputs are awkward."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from p3.parity.case import PRECISIONS, Case
from p3.parity.checks.derivatives import snippet
from p3.parity.checks.domain import raised
from p3.parity.checks.identities import reference_has_two_rules
from p3.parity.function import Arrays, at_precision, is_inexact, wide
from p3.parity.mismatch import Mismatch, Pair
from p3.parity.place import Place
from p3.parity.quantity import Quantity
from p3.parity.recorded import Recorded, RefusalError, asked
from p3.parity.result import CheckResult, Finding, Refusal, digits, judged, refused
from p3.tolerance import FAR_END

FIRST = ("value", "vjp", "jvp")
SECOND = "vjp of vjp"  # at zeros, at the user's points and at awkward inputs: at an infinity it is any algorithm's own
LARGE = 1000.25  # where exponential functions overflow, and no edge; no whole number, since some have poles at those
EXTREMES = (0.0, 1000.0)  # times an argument of a function that is not elementwise


class Special(NamedTuple):
    """
    Inputs that are special.

    Attributes
    ----------
    inputs : one array an argument
    place : what is special of them; of each element of an elementwise function, that is its number
    position : of the argument that is; None where all are
    """

    inputs: Arrays
    place: Place
    position: int | None = None

    @property
    def is_table(self) -> bool:
        """Whether the elements are the special numbers, each by itself."""
        return self.position is not None and not self.place.special and self.place.number is None

    @property
    def whole(self) -> Place:
        """What is special of all the elements together."""
        return self.place._replace(special="of special numbers") if self.is_table else self.place

    def at(self, element: tuple[int, ...]) -> Place:
        """What is special of an element."""
        if not self.is_table:
            return self.place
        assert self.position is not None
        return self.place._replace(number=self.inputs[self.position][element].item())


def special_values(case: Case) -> CheckResult:
    """
    Where numbers end, and where the user says, both sides have the same, NaN as well.

    The value at the points and inputs that the user names is also held against the closed form, if there is one.
    """
    findings: list[Finding] = []
    refusals: list[Refusal] = []
    seen: set[tuple[str, tuple[int, ...]]] = set()
    first = tuple(name for name in FIRST if name != "jvp" or not reference_has_two_rules(case))
    names = (*first, SECOND)
    if case.project is not None:  # a tangent is along a domain only as exactly as finite differences are
        first = names = ("value", "vjp")
    for precision in PRECISIONS:
        for special in specials(case, precision):
            for finding in differences(case, special, precision, names, refusals):
                element = finding.mismatch.element if finding.mismatch and case.elementwise else ()
                place = (repr(finding.place), element)  # since NaN is not equal to itself
                if place not in seen:  # in the other precision
                    findings.append(finding)
                seen.add(place)
        for position in case.arguments if not case.elementwise else ():
            for factor in EXTREMES:
                findings += differences_at_extremes(case, position, precision, factor, first)
    if refusals and not findings:
        return refused("special values", refusals)
    places = [f"{x:.6g}" for x in numbers(case, "float32")] + list(case.awkward)
    note = f"{'tried' if any(f.kind == 'edge' for f in findings) else 'alike'} at {', '.join(places)}"
    note += "" if case.elementwise else "; finite alike where an argument is 0 or 1000 times as large"
    return judged("special values", findings, note, refusals, case.edges)


def numbers(case: Case, precision: str) -> np.ndarray:
    """
    Zeros, subnormal, smallest normal, large, huge and infinite numbers of both signs, NaN, and the user's points.

    A function that is not elementwise gets the zeros and the points alone: how far an infinity or a NaN spreads, and
    what overflows on the way, is the algorithm's.
    """
    if not case.elementwise:
        return np.array([0.0, -0.0, *case.points])
    info = np.finfo(precision)
    ends = [0.0, 3 * float(info.smallest_subnormal), float(info.tiny), float(info.max) / 2, np.inf]
    return np.array([sign * end for end in (*ends, LARGE) for sign in (1, -1)] + [np.nan, *case.points])


def specials(case: Case, precision: str) -> Iterator[Special]:
    """
    Inputs with the numbers in one argument, and those that the user names.

    All numbers at once where the function is elementwise and the argument is no scalar, or else one at a time, in the
    first element.
    """
    values = numbers(case, precision)
    shape = np.broadcast_shapes(*(x.shape for x in case.inputs)) if case.elementwise else ()
    is_table = bool(shape) and all(x.shape == shape or not x.ndim for x in case.inputs)
    table = (1,) * (len(shape) - 1) + values.shape  # of the rank that the arguments were given
    for position in case.arguments:
        given = case.inputs[position]
        if is_table and given.ndim:
            inputs = tuple(
                values.astype(given.dtype).reshape(table)
                if i == position
                else np.resize(x.ravel()[:1], table)
                if x.ndim
                else x
                for i, x in enumerate(case.inputs)
            )
            yield Special(inputs, special_of(of=case.of(position)), position)
            continue
        for value in values if given.size else ():
            x = given.copy()
            x[(0,) * x.ndim] = value
            inputs = case.within((*case.inputs[:position], x, *case.inputs[position + 1 :]))
            yield Special(inputs, special_of(number=x[(0,) * x.ndim].item(), of=case.of(position)), position)
    for name, inputs in case.awkward.items():
        yield Special(inputs, special_of(special=name))


def special_of(**fields: Any) -> Place:
    """The place of special inputs, whichever side and quantity."""
    return Place("", "", **fields)


def differences_at_extremes(
    case: Case, position: int, precision: str, factor: float, names: tuple[str, ...]
) -> Iterator[Finding]:
    """
    Where an argument times a factor gives infinities or NaN on one side alone.

    So can the gradient of a norm at 0, and a sum of exponentials that was not shifted. What finite numbers come out is
    between rounding, and a choice where elements are all alike. A function may say that it is not defined there.
    """
    scaled = np.asarray(factor * case.inputs[position])
    inputs = case.within((*case.inputs[:position], scaled, *case.inputs[position + 1 :]))
    special = Special(inputs, special_of(special=f"times {factor:g}", of=case.structure.paths[position]), position)
    for finding in differences(case, special, precision, names, []):
        m = finding.mismatch
        if m is not None and np.isfinite(m.expected) and not np.isfinite(m.got):
            yield finding


def differences(
    case: Case, special: Special, precision: str, names: tuple[str, ...], refusals: list[Refusal]
) -> Iterator[Finding]:
    """Where the sides differ at special inputs; who raises there is added to the refusals."""
    values: dict[str, Arrays] = {}
    for side, operator in case.sides:
        here = special.whole._replace(side=side, quantity="value")
        try:
            values[side] = asked(operator, here, at_precision(special.inputs, precision))
        except RefusalError as refusal:
            refusals.append(refusal.refusal)
            if side == "port" and len(values) == 1 and not refusal.is_meant:
                yield raised(refusal)
    if len(values) < 2:
        return
    shapes = [[y.shape for y in results] for results in values.values()]
    if shapes[0] != shapes[1]:
        text = f"it is of shapes {shapes[1]}, and the reference's of {shapes[0]}"
        quantity = Quantity("value", (special.inputs,))
        yield Finding(special.place._replace(side="port", quantity="value"), "the reference", text, quantity=quantity)
        return
    for quantity in quantities(case, special, values["reference"], names):
        results: dict[str, Arrays] = {}
        for side, operator in case.sides:
            here = special.whole._replace(side=side, quantity=quantity.name)
            try:
                results[side] = asked(operator, here, *quantity.given(precision))
            except RefusalError as refusal:
                if quantity.name == "vjp":  # of the others their own checks say so
                    refusals.append(refusal.refusal)
                if side == "port" and len(results) == 1 and not refusal.is_meant:
                    yield raised(refusal)
        if len(results) == 2:
            yield from compared(case, special, precision, quantity, results)


def quantities(case: Case, special: Special, values: Arrays, names: tuple[str, ...]) -> Iterator[Quantity]:
    """What is compared, of cotangents and tangents that are 1, or random where the function is not elementwise."""
    cotangents = tuple(np.ones(y.shape, wide(y).dtype) for y in values if is_inexact(y))
    tangents = tuple(np.ones_like(special.inputs[i]) for i in case.arguments)
    directions = tangents
    if not case.elementwise:  # of a row that sums to 1 ones make a gradient of nothing but rounding
        cotangents, directions = case.like(cotangents, 5), case.like(tangents, 6)
    groups = {
        "value": (special.inputs,),
        "vjp": (special.inputs, cotangents),
        "jvp": (special.inputs, tangents),
        SECOND: (special.inputs, cotangents, directions),
    }
    for name in names if cotangents else ("value",):
        yield Quantity(name, groups[name])


def compared(
    case: Case, special: Special, precision: str, quantity: Quantity, results: dict[str, Arrays]
) -> Iterator[Finding]:
    """Where a quantity of the two sides differs, or of one from the closed form."""
    name = quantity.name
    true = closed(case, special, precision) if name == "value" else None
    if true is not None and [y.shape for y in true] != [y.shape for y in results["reference"]]:
        true = None
    if true is None and all(case.is_near(a, b, precision) for b, a in zip(*results.values(), strict=True)):
        return
    chosen: np.ndarray | np.bool = np.True_
    if case.elementwise and special.position is not None:
        number = special.place.number
        chosen = np.isin(special.inputs[special.position] if number is None else number, [0.0, *case.points])
    sizes = case.size(quantity)
    if name == SECOND:
        results = {side: arrays[: len(case.arguments)] for side, arrays in results.items()}  # the rest is the jvp
        scaled = scales(case, special, precision, quantity)
        cancelled = [(a == 0) | (b == 0) for a, b in zip(*(results[side] for side, _ in case.sides), strict=True)]
        sizes = tuple(
            np.where(zero, np.maximum(size, scale), size)
            for size, scale, zero in zip(sizes, scaled, cancelled, strict=False)
        )
    for k, (b, a, size) in enumerate(zip(*(results[side] for side, _ in case.sides), sizes, strict=True)):
        ignored = flushed(special, precision, a) | flushed(special, precision, b)
        ignored |= meaningless(case, special, precision, quantity, b)
        if name == SECOND:
            ignored |= ~chosen
        for mismatch in apart(case, quantity, k, Pair(np.where(ignored, b, a), b, size), precision):
            ends = mismatch.got, mismatch.expected
            text = f"it is {digits(*ends)}, and the reference's {digits(*ends[::-1])}"
            if np.isnan(mismatch.got) != np.isnan(mismatch.expected):
                text += ": NaN on one side alone"
            truth = None if true is None else true[k][mismatch.element].item()
            yield finding(case, special, quantity, case.port, "the reference", k, text, mismatch, truth)
        if true is None:
            continue
        known = ~np.isnan(wide(true[k])) & chosen & ~ignored
        for side, operator in case.sides:
            pair = Pair(np.where(known, results[side][k], true[k]), true[k], size)
            for mismatch in apart(case, quantity, k, pair, precision):
                text = f"it is {mismatch.got:.9g}, and should be {mismatch.expected:.9g}"
                truth = mismatch.expected
                yield finding(case, special, quantity, operator, "the closed form", k, text, mismatch, truth)


def scales(case: Case, special: Special, precision: str, quantity: Quantity) -> Iterator[np.ndarray]:
    """
    The size of each argument's second derivative that its first has, over the argument's own.

    At one point all terms can cancel whichever way it is moved, as those of √(x² + y²) by y do where x is 0.
    """
    gradients = Quantity("vjp", quantity.groups[:2]).of(case.reference, precision)
    for g, i in zip(gradients, case.arguments, strict=True):
        x = np.abs(special.inputs[i])
        with np.errstate(all="ignore"):
            scale = np.abs(wide(g)) / np.where(x > 0, x, np.inf)
        yield np.where(np.isfinite(scale), scale, 0)


def finding(
    case: Case,
    special: Special,
    quantity: Quantity,
    operator: Recorded,
    against: str,
    k: int,
    text: str,
    mismatch: Mismatch,
    truth: complex | float | None,
) -> Finding:
    """A finding at special values, of a side against the other or against the closed form."""
    number: tuple[complex | float, ...] = ()
    if special.position is not None:
        x = special.inputs[special.position]
        number = (x[mismatch.element if special.is_table and x.ndim else (0,) * x.ndim].item(),)
    of = case.places(quantity, operator.side)[k]
    if against == "the reference" and is_edge(case, special, mismatch.element):
        mismatch = mismatch._replace(kind="edge")
    return Finding(
        special.at(mismatch.element)._replace(side=of.side, quantity=of.quantity, path=of.path, by=of.by),
        against,
        text,
        mismatch=mismatch,
        inputs=number,
        truth=truth,
        snippet=snippet(case, quantity, operator, k, mismatch),
        quantity=quantity,
    )


def is_edge(case: Case, special: Special, element: tuple[int, ...]) -> bool:
    """Whether an element is at a far end of the numbers, where no given input and no point of the user's is."""
    number = special.at(element).number
    if number is None:
        return False
    given = [x for x in case.inputs if is_inexact(x)]
    if any(np.isin(number, x) or (np.isnan(number) and np.isnan(x).any()) for x in (*given, np.array(case.points))):
        return False
    size = np.abs(number)
    return bool(not size <= FAR_END.value or 0 < size <= np.finfo(np.float32).tiny)


def closed(case: Case, special: Special, precision: str) -> Arrays | None:
    """The closed form's values at the inputs as they are in a precision, where there are such."""
    if case.closed_form is None:
        return None
    inputs = tuple(wide(x) if is_inexact(x) else x for x in at_precision(special.inputs, precision))
    with np.errstate(all="ignore"), suppress(Exception):  # whatever it raises where it is not defined
        return at_precision(case.closed(inputs), precision)
    return None


def meaningless(case: Case, special: Special, precision: str, quantity: Quantity, expected: np.ndarray) -> np.ndarray:
    """Where there is no derivative to compare, since there is no value, or no first derivative of a second."""

    def anywhere(found: list[np.ndarray]) -> np.ndarray:
        if case.elementwise:
            same = [f if f.shape == expected.shape else np.full(expected.shape, f.any()) for f in found]
            return np.asarray(np.any(same, axis=0)) if same else np.zeros(expected.shape, bool)
        return np.full(expected.shape, any(f.any() for f in found))

    result = np.zeros(expected.shape, bool)
    if quantity.name != "value":
        values = Quantity("value", (special.inputs,)).of(case.reference, precision)
        result |= anywhere([np.isnan(wide(y)) for y in values if is_inexact(y)])
    if quantity.name == "jvp":  # a sum of infinities is one, or NaN, as it is ordered
        result |= ~np.isfinite(wide(expected))
    if quantity.name == SECOND:
        for _, operator in case.sides:
            gradients = Quantity("vjp", quantity.groups[:2]).of(operator, precision)
            result |= anywhere([~np.isfinite(wide(g)) for g in gradients])
    return result


def apart(case: Case, quantity: Quantity, k: int, pair: Pair, precision: str) -> Iterator[Mismatch]:
    """Where two arrays differ: each element of an elementwise function, or else the worst."""
    ordinary, operators = case.quantity(quantity.name), [operator for _, operator in case.sides]
    if not case.elementwise:
        worst = case.climb(ordinary, k, {precision: pair}, operators)
        if worst is not None and not case.alike_within(quantity, k, {precision: pair}):
            yield worst
        return
    for index in map(tuple, np.argwhere(pair.beyond(precision))):
        alone = np.zeros(pair.got.shape, bool)
        alone[index] = True
        alone_pair = pair._replace(got=np.where(alone, pair.got, pair.expected))
        mismatch = case.climb(ordinary, k, {precision: alone_pair}, operators)
        if mismatch is not None:
            yield mismatch


def flushed(special: Special, precision: str, got: np.ndarray) -> np.ndarray:
    """Where a subnormal input gives what the zero of its sign gives, as it does where hardware takes it for one."""
    result = np.zeros(got.shape, bool)
    if not special.is_table or special.position is None or got.shape != special.inputs[special.position].shape:
        return result
    x = special.inputs[special.position]
    subnormal = (x != 0) & (np.abs(x) < float(np.finfo(precision).tiny))
    for negative, zero in ((False, got.flat[0]), (True, got.flat[1])):  # at the first two numbers
        same = (got == zero) | (np.isnan(got) & np.isnan(zero))
        result |= subnormal & (np.signbit(x.real) == negative) & same
    return result
