"""Faults to plant in a port's rule, so that a check shows that it could have failed."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from p3.parity.case import Case, greatest
from p3.parity.checks.derivatives import vjp, vjp_of_vjp
from p3.parity.checks.domain import BESIDE, dtypes, low_precision
from p3.parity.checks.integers import integers, is_permutation
from p3.parity.checks.special import specials
from p3.parity.function import Arrays, Function, at_precision, is_inexact, wide
from p3.parity.mismatch import Pair
from p3.parity.place import Place
from p3.parity.quantity import Quantity
from p3.parity.recorded import Recorded, RefusalError
from p3.parity.result import CheckResult, Finding
from p3.tolerance import AXES, CONVENTION, NOTHING, SHOWN, Threshold

# What must notice a fault besides the vjp and the vjp of the vjp; the other checks are at inputs of their own.
NOTICING = (dtypes, low_precision, integers)

IGNORED = -100  # the label that PyTorch's losses ignore

Rule = Callable[[Function, Arrays, Arrays], Arrays | None]


class Fault(NamedTuple):
    """
    A mistake in a derivative rule.

    Attributes
    ----------
    name : of the fault
    rule : the faulty vjp, of the operator, the inputs and the cotangents; None where it cannot be made here
    advice : what inputs would expose it
    is_detached : whether the first derivative is right, and the second 0
    """

    name: str
    rule: Rule
    advice: str
    is_detached: bool = False


def each(change: Callable[[np.ndarray], np.ndarray | None]) -> Rule:
    """The rule whose gradients are all changed; None where none can be."""

    def rule(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
        gradients = operator.vjp(inputs, cotangents)
        changed = [change(g) for g in gradients]
        if all(g is None for g in changed):
            return None
        return tuple(g if new is None else new.astype(g.dtype) for g, new in zip(gradients, changed, strict=True))

    return rule


def without_constant_term(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The derivative without the term that does not depend on the inputs, which is what it is at 0."""
    zeros = tuple(np.zeros_like(x) if is_inexact(x) else x for x in inputs)
    with np.errstate(all="ignore"):
        terms = operator.vjp(zeros, cotangents)
        if not any(term.astype(bool).any() for term in terms) or not all(
            np.isfinite(term.astype(complex)).all() for term in terms
        ):
            return None
        return tuple(g - term for g, term in zip(operator.vjp(inputs, cotangents), terms, strict=True))


def of_another_call(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The gradient with the residual of a call with other inputs, the same ones in another order."""
    others = tuple(np.roll(x, 1) if is_inexact(x) else x for x in inputs)
    if all(x.size < 2 for x in inputs):
        others = tuple(x + 1 if is_inexact(x) else x for x in inputs)
    return operator.vjp(others, cotangents)


def swapped(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The gradients of two arguments of one shape, the one for the other."""
    gradients = list(operator.vjp(inputs, cotangents))
    for i in range(len(gradients)):
        for j in range(i):
            if gradients[i].shape == gradients[j].shape and gradients[i].dtype == gradients[j].dtype:
                gradients[i], gradients[j] = gradients[j], gradients[i]
                return tuple(gradients)
    return None


def unsummed(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The gradient of a broadcast argument from the first element alone of each axis that it is repeated along."""
    arguments = operator.arguments(inputs)
    gradients = list(operator.vjp(inputs, cotangents))
    found = False
    for k, i in enumerate(arguments):
        shape = inputs[i].shape
        parts = []
        for v in cotangents:
            mask = np.zeros_like(v)
            lengths = (*(1,) * (v.ndim - len(shape)), *shape)
            repeated = len(lengths) == v.ndim and any(a == 1 and b > 1 for a, b in zip(lengths, v.shape, strict=True))
            found = found or repeated
            mask[tuple(slice(0, 1) if n == 1 else slice(None) for n in lengths)] = 1 if len(lengths) == v.ndim else 0
            parts.append(v * mask if repeated else v)
        gradients[k] = operator.vjp(inputs, tuple(parts))[k]
    return tuple(gradients) if found else None


def without_conjugate(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The conjugate of a complex gradient."""
    gradients = operator.vjp(inputs, cotangents)
    return tuple(g.conj() for g in gradients) if any(g.dtype.kind == "c" for g in gradients) else None


def in_other_dtype(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """Gradients in float32, whatever the argument."""
    return tuple(
        g.astype(np.complex64 if g.dtype.kind == "c" else np.float32) for g in operator.vjp(inputs, cotangents)
    )


def set_not_added(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The gradient by `.at[indices].set` for `.at[indices].add`: of equal indices the last one alone counts."""
    for x in inputs:
        if x.dtype.kind not in "iu" or not x.size or any(v.shape[: x.ndim] != x.shape for v in cotangents):
            continue
        flat = x.ravel().tolist()
        last = np.array([value not in flat[n + 1 :] for n, value in enumerate(flat)]).reshape(x.shape)
        return operator.vjp(
            inputs, tuple(v * last.reshape(x.shape + (1,) * (v.ndim - x.ndim)).astype(v.dtype) for v in cotangents)
        )
    return None


def ignored_counted(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The gradient where a negative label, which is ignored, counts as the label 0."""
    labels = [x.dtype.kind == "i" and x.ndim > 0 and bool((x < 0).any()) for x in inputs]
    if not any(labels):
        return None
    return operator.vjp(
        tuple(np.maximum(x, 0) if ignored else x for x, ignored in zip(inputs, labels, strict=True)), cotangents
    )


def unmasked(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The gradient where all of a mask is true, or 1."""
    if not any(map(is_mask, inputs)):
        return None
    return operator.vjp(tuple(np.ones_like(x) if is_mask(x) else x for x in inputs), cotangents)


def masked_out(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """The gradient where all of a mask is false, or 0, as without a mask of what is left out."""
    if not any(map(is_mask, inputs)):
        return None
    return operator.vjp(tuple(np.zeros_like(x) if is_mask(x) else x for x in inputs), cotangents)


def is_mask(x: np.ndarray) -> bool:
    """Whether x has truth values, or the whole numbers 0 and 1 alone; one number is a flag or a label, and no mask."""
    return x.size > 1 and (x.dtype.kind == "b" or (x.dtype.kind in "iu" and bool(np.isin(x, (0, 1)).all())))


def nan_at_one_point(g: np.ndarray) -> np.ndarray | None:
    """A NaN in the middle."""
    if not g.size:
        return None
    changed = g.copy()
    changed[np.unravel_index(g.size // 2, g.shape)] = np.nan
    return changed


def half_alone(operator: Function, inputs: Arrays, cotangents: Arrays) -> Arrays | None:
    """An eighth too much, in half precision."""
    gradients = operator.vjp(inputs, cotangents)
    return tuple(g + g / g.dtype.type(8) if g.dtype.itemsize == 2 else g for g in gradients)


IGNORED_COUNTS = Fault("an ignored label counts", ignored_counted, "labels of which some are ignored, as by -100")
FAULTS = (
    Fault("sign", each(lambda g: -g), "points whose gradient is not 0"),
    Fault("factor 1.01", each(lambda g: g * g.dtype.type(1.01)), "points whose gradient is not 0"),
    Fault("dropped term", without_constant_term, "points away from 0"),
    Fault("zero", each(np.zeros_like), "points whose gradient is not 0"),
    Fault(
        "detached residual",
        lambda operator, inputs, cotangents: operator.vjp(inputs, cotangents),
        "points whose second derivative is not 0",
        is_detached=True,
    ),
    Fault("stale residual", of_another_call, "inputs whose elements are not all alike"),
    Fault("swapped arguments", swapped, "arguments that are not alike"),
    Fault(
        "transposed result",
        each(lambda g: np.swapaxes(g, -1, -2).reshape(g.shape) if g.ndim > 1 and min(g.shape[-2:]) > 1 else None),
        "a matrix that is not symmetric",
    ),
    Fault("missing sum over a broadcast axis", unsummed, "an argument that is broadcast along an axis of several"),
    Fault("wrong dtype", in_other_dtype, "another dtype than float32"),
    Fault("missing conjugate", without_conjugate, "complex points off the real axis"),
    Fault("set for add", set_not_added, "indices of which some are equal"),
    IGNORED_COUNTS,
    Fault("mask forgotten", unmasked, "a mask that is false, or 0, somewhere"),
    Fault("mask of what is left out forgotten", masked_out, "a mask that is true, or 1, somewhere"),
    Fault("NaN at one point", each(nan_at_one_point), "a point at least"),
    Fault(
        "off by one element",
        each(lambda g: np.roll(g, 1) if g.size > 1 else None),
        "points whose gradients are not all alike",
    ),
    Fault(
        "wrong in half precision alone",
        half_alone,
        "points whose gradient half precision can tell, and it in dtypes",
    ),
)


class FaultyPort(Function):
    """A port with a fault in its vjp; all else is its own."""

    def __init__(self, port: Function, fault: Fault) -> None:
        """The fault is planted."""
        self.port, self.fault = port, fault
        self.name, self.framework = port.name, port.framework

    def value(self, *groups: Arrays) -> Arrays:
        """The port's."""
        return self.port.value(*groups)

    def arguments(self, inputs: Arrays) -> tuple[int, ...]:
        """The port's."""
        return self.port.arguments(inputs)

    def pullback(self) -> Function:
        """The faulty vjp."""
        return FaultyPullback(self)

    def pushforward(self) -> Function:
        """The port's."""
        return self.port.pushforward()


class FaultyPullback(Function):
    """The vjp of a faulty port."""

    def __init__(self, function: FaultyPort) -> None:
        """It is that of a port with a fault."""
        self.function = function
        self.name, self.framework = function.name, function.framework

    def value(self, *groups: Arrays) -> Arrays:
        """The faulty vjp."""
        inputs, cotangents = groups
        with np.errstate(all="ignore"):
            faulty = self.function.fault.rule(self.function.port, inputs, cotangents)
        return self.function.port.vjp(inputs, cotangents) if faulty is None else faulty

    def pullback(self) -> Function:
        """The port's, or 0 where the fault cuts it off."""
        second = self.function.port.pullback().pullback()
        return Detached(second) if self.function.fault.is_detached else second

    def pushforward(self) -> Function:
        """The port's."""
        return self.function.port.pullback().pushforward()


class Detached(Function):
    """A vjp of a vjp without the part that comes by the residuals."""

    def __init__(self, second: Function) -> None:
        """It is of a whole one."""
        self.second = second
        self.name, self.framework = second.name, second.framework

    def value(self, *groups: Arrays) -> Arrays:
        """0 by the inputs, and the rest as it is."""
        gradients = self.second.value(*groups)
        count = len(gradients) - len(groups[1])
        return (*map(np.zeros_like, gradients[:count]), *gradients[count:])

    def pullback(self) -> Function:
        """The whole one's."""
        return self.second.pullback()

    def pushforward(self) -> Function:
        """The whole one's."""
        return self.second.pushforward()


def changes_anything(case: Case, fault: Fault) -> bool:
    """Whether a fault is one: a linear function's second derivative is 0, detached or not, whatever the inputs."""
    random = case.random()
    for limits in ((0.5, 1.5), (-2.0, 2.0)):
        inputs = randomly(case, random, limits)
        if case.project is None:
            inputs = tuple(x if is_inexact(x) else others(x, fault, random) for x in inputs)
        cotangents = case.cotangents
        if fault.rule is half_alone:
            inputs, cotangents = at_precision(inputs, "float16"), at_precision(cotangents, "float16")
        port = FaultyPort(case.port, fault)
        with np.errstate(all="ignore"):
            if fault.is_detached:
                right, wrong = (
                    operator.vjp_of_vjp(inputs, cotangents, case.tangents) for operator in (case.port, port)
                )
            else:
                right, wrong = (operator.vjp(inputs, cotangents) for operator in (case.port, port))
        quantity = Quantity("vjp", (inputs, cotangents))
        for k, (a, b) in enumerate(zip(right, wrong, strict=True)):
            pair = Pair(wide(b), wide(a), np.full(a.shape, greatest(np.abs(wide(a)))))
            if not (np.array_equal(a, b, equal_nan=True) or case.alike_within(quantity, k, {"float64": pair})):
                return True
    return False


def randomly(case: Case, random: np.random.Generator, limits: tuple[float, float]) -> Arrays:
    """The inputs, with random numbers for the floating and complex ones."""
    if case.project is not None:  # near the given ones, since others may not be in the domain
        return case.moved(case.quantity("value"), random, 1 / 8).groups[0]
    return tuple(
        np.asarray(random.uniform(*limits, x.shape) * (np.exp(0.7j) if x.dtype.kind == "c" else 1)).astype(x.dtype)
        if is_inexact(x)
        else x
        for x in case.inputs
    )


def others(x: np.ndarray, fault: Fault, random: np.random.Generator) -> np.ndarray:
    """Whole numbers, or a mask, that would show a fault of a rule for such."""
    if fault.rule is set_not_added and x.dtype.kind in "iu" and x.size and not is_permutation(x):
        return np.full_like(x, x.ravel()[0])
    if fault.rule is ignored_counted and x.dtype.kind == "i" and x.ndim and x.size and (x >= 0).all():
        return np.asarray(np.where(np.arange(x.size).reshape(x.shape) == 0, IGNORED, x))
    if fault.rule in (unmasked, masked_out) and is_mask(x):
        return np.asarray(random.permutation(np.arange(x.size) % 2 == 0).reshape(x.shape)).astype(x.dtype)
    return x


def power(case: Case) -> CheckResult:
    """
    How many of the faults, planted in the port's rule, the checks notice at the given inputs.

    A port with a fault of its own would hide others; then they are planted in the reference's.
    """
    if not vjp(case).is_right:
        case = replace(case, port=case.reference)
    if not vjp(case).is_right:
        return CheckResult("power", "not applicable", "neither side's vjp is right")
    first, second = case.quantity("vjp"), case.quantity("vjp of vjp")
    quantities = [first, second] if vjp_of_vjp(case).is_right and not case.bends else [first]
    passed = [check for check in NOTICING if check(case).is_right]
    noticed: list[str] = []
    findings: list[Finding] = []
    for fault in FAULTS:
        if not is_plantable(case, fault) or (fault.is_detached and second not in quantities):
            continue
        planted = replace(case, port=Recorded(FaultyPort(case.port, fault), "port"))
        if any(differs(planted, quantity) for quantity in quantities) or any(
            check(planted).verdict == "failed" for check in passed
        ):
            noticed.append(fault.name)
        else:
            text = f"these inputs do not show the fault '{fault.name}'; add {fault.advice}"
            findings.append(Finding(Place("inputs", "vjp"), "a planted fault", text, fault=fault.name))
    shown, hidden = conventions(case)
    noticed += shown
    for text in hidden:
        same = f"the values at these inputs are the same if {text}; add inputs at which they are not"
        findings.append(Finding(Place("inputs", "value"), "another convention", same, fault=text))
    count = len(noticed) + len(findings)
    if not count:
        return CheckResult("power", "not applicable", "no fault can be planted")
    note = f"{100 * len(noticed) / count:.0f} %: {len(noticed)} of {count} planted faults noticed{axis_advice(case)}"
    if not findings:
        return CheckResult("power", "passed", note)
    missed = ", ".join(finding.fault for finding in findings)
    return CheckResult("power", "failed", f"weak inputs, {note}, but not: {missed}", tuple(findings))


def conventions(case: Case) -> tuple[list[str], list[str]]:
    """
    The conventions that porters confuse that the values at the inputs show, and those that they hide.

    A convention that makes no difference at random inputs of the same shapes is in neither list.
    """
    shown: list[str] = []
    hidden: list[str] = []
    for _, operator in case.sides:
        seen = differing(operator, case.inputs, SHOWN)
        if not all(seen.values()):  # derivatives show what a value near by does, and the special values are checked
            others = [case.moved(case.quantity("value"), case.random(), BESIDE).groups[0]]
            others += [special.inputs for special in specials(case, "float64")] if case.elementwise else []
            for inputs in others:
                seen |= {text: True for text, differs in differing(operator, inputs, SHOWN).items() if differs}
        shown += [text for text, differs in seen.items() if differs]
        if not all(seen.values()):
            elsewhere = differing(operator, randomly(case, case.random(), (-2.0, 2.0)), CONVENTION)
            hidden += [text for text, differs in elsewhere.items() if differs and not seen.get(text)]
    return shown, hidden


def differing(operator: Recorded, inputs: Arrays, threshold: Threshold) -> dict[str, bool]:
    """Whether an operator's values differ by more than a threshold, for each convention; empty where it raises."""
    try:
        values = operator.value(inputs)
    except RefusalError:
        return {}
    return {
        text: not all(
            y.shape == z.shape
            and np.allclose(wide(z), wide(y), rtol=0, atol=threshold.value * greatest(np.abs(wide(y))), equal_nan=True)
            for y, z in zip(values, others, strict=False)
        )
        for text, others in operator.variants(inputs)
    }


def differs(case: Case, quantity: Quantity) -> bool:
    """Whether a quantity of the two sides is another, by more than rounding."""
    reference, port = (quantity.of(operator) for _, operator in case.sides)
    if [x.shape for x in reference] != [x.shape for x in port]:
        return True
    return any(mismatch.kind == "semantic" for _, mismatch in case.between_sides(quantity))


def axis_advice(case: Case) -> str:
    """
    What to add where a wrong axis would not be seen: an axis, if functions of one axis differ where there are two.

    That is not held against the port, since it may be for one alone.
    """
    if case.elementwise or max(x.ndim for x in case.inputs) != 1:
        return ""
    inputs = tuple(np.stack([x, np.flip(x)]) if x.ndim else x for x in case.inputs)
    try:
        sides = [operator.value(inputs) for operator in (case.reference, case.port)]
    except RefusalError:
        return ""
    if all(
        a.shape == b.shape and np.allclose(wide(a), wide(b), rtol=AXES.value, atol=NOTHING.value, equal_nan=True)
        for a, b in zip(*sides, strict=True)
    ):
        return ""
    return "; the inputs have one axis, and with two the sides differ: add inputs of two, if the port is to take them"


def ignores(case: Case) -> bool:
    """Whether the reference ignores negative labels: given ones, or others that its loss would ignore."""
    if any(x.dtype.kind == "i" and x.ndim > 0 and bool((x < 0).any()) for x in case.inputs):
        return True
    if not case.reference.ignores_labels(case.inputs):
        return False
    labels = tuple(others(x, IGNORED_COUNTS, case.random()) if x.dtype.kind == "i" else x for x in case.inputs)
    try:
        case.reference.value(labels)
    except RefusalError:  # it does something else with the labels as well
        return False
    return True


def is_plantable(case: Case, fault: Fault) -> bool:
    """
    Whether the fault can be made with the case's inputs and dtypes, and is one.

    A port may have the fault already, as one that forgets its mask, so that to plant it there changes nothing. Then
    what it would change of the reference counts.
    """
    if fault.rule is half_alone and not low_precision(case).is_right:
        return False
    try:
        with np.errstate(all="ignore"):
            if fault is IGNORED_COUNTS:
                made = ignores(case)
            else:
                made = fault.rule(case.port, case.inputs, case.cotangents) is not None
        return made and any(changes_anything(replace(case, port=operator), fault) for _, operator in case.sides[::-1])
    except (Exception, SystemExit):  # a port that raises for second derivatives or other inputs has no fault there
        return False
