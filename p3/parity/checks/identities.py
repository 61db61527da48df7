"""What holds of any right operator by itself."""

from contextlib import suppress

import numpy as np

from p3.parity.case import PRECISIONS, Case
from p3.parity.function import Arrays, Function, NoMeaningError, at_precision, wide
from p3.parity.mismatch import Mismatch, Pair, climb, largest
from p3.parity.place import Place
from p3.parity.recorded import Recorded, RefusalError, asked
from p3.parity.result import CheckResult, Finding, Refusal, judged, refused

NOT_LINEAR = "the rule is not meant to be linear"
TWO_RULES = "the port's jvp is the transpose of its vjp; the reference's is not"


def adjoint(case: Case) -> CheckResult:
    """⟨v, Jw⟩ = ⟨Jᵀv, w⟩, on each side."""
    if not case.linear:
        return CheckResult("adjoint", "not applicable", NOT_LINEAR)
    findings: list[Finding] = []
    refusals: list[Refusal] = []
    largest_difference = 0.0
    for side, operator in case.sides:
        try:
            pairs = both_products(case, operator)
        except RefusalError as refusal:
            refusals.append(refusal.refusal)
            continue
        largest_difference = max(largest_difference, largest(pairs["float64"].epsilons("float64")))
        mismatch = between_products(case, operator, pairs)
        if mismatch is not None:
            text = f"⟨Jᵀv, w⟩ is {mismatch.got:.9g} and ⟨v, Jw⟩ is {mismatch.expected:.9g}"
            findings.append(Finding(Place(side, "vjp"), "its own jvp", text, mismatch))
    if len(refusals) == 2:
        return refused("adjoint", refusals)
    if reference_has_two_rules(case):
        return CheckResult("adjoint", "passed", TWO_RULES, (), tuple(refusals))
    return judged("adjoint", findings, f"{largest_difference:.2g} epsilons apart", refusals)


def reference_has_two_rules(case: Case) -> bool:
    """
    Whether the port's jvp is the transpose of its vjp, and the reference's is not, of rules that are no derivatives.

    PyTorch's embedding has a tangent in its padding, and no gradient. A port whose jvp is the transpose of that vjp has
    no tangent there.
    """
    if case.is_derivative or not case.linear:
        return False
    transposed = []
    for _, operator in case.sides:
        try:
            transposed.append(between_products(case, operator, both_products(case, operator)) is None)
        except RefusalError:
            return False
    return transposed == [False, True]


def both_products(case: Case, operator: Recorded) -> dict[str, Pair]:
    """⟨Jᵀv, w⟩ and ⟨v, Jw⟩ of one side, in each precision."""
    slopes = case.least_slopes(case.quantity("vjp"))
    least = sum(float((slope * np.abs(w)).sum()) for slope, w in zip(slopes, case.tangents, strict=True))
    pairs = {}
    for precision in PRECISIONS:
        inputs, v, w = (at_precision(group, precision) for group in (case.inputs, case.cotangents, case.tangents))
        pushed, pulled = (
            asked(operator, Place(operator.side, name), inputs, group) for name, group in (("jvp", w), ("vjp", v))
        )
        pairs[precision] = products(v, pushed, pulled, w, least)
    return pairs


def between_products(case: Case, operator: Recorded, pairs: dict[str, Pair]) -> Mismatch | None:
    """Their difference, if it is more than rounding."""
    mismatch = climb({"float64": pairs["float64"]})
    for name in ("vjp", "jvp"):
        if mismatch is not None and mismatch.kind == "semantic":
            mismatch = case.climb(case.quantity(name), None, pairs, [operator])
    return mismatch


def products(v: Arrays, pushed: Arrays, pulled: Arrays, w: Arrays, least: float) -> Pair:
    """⟨Jᵀv, w⟩, ⟨v, Jw⟩, and the sum of the sizes of their terms, or the least size that is no rounding."""
    with np.errstate(all="ignore"):
        left = [(wide(a) * wide(b)).real for a, b in zip(v, pushed, strict=True)]
        right = [(wide(a) * wide(b)).real for a, b in zip(pulled, w, strict=True)]
        size = sum(float(np.abs(term).sum()) for term in (*left, *right))
        got, expected = (np.asarray(sum(float(term.sum()) for term in terms)) for terms in (right, left))
    return Pair(got, expected, np.asarray(max(size, least)))


def linearity(case: Case) -> CheckResult:
    """Jᵀ(αv + βw) = αJᵀv + βJᵀw, on each side."""
    if not case.linear:
        return CheckResult("linearity", "not applicable", NOT_LINEAR)
    alpha, beta = 0.75, -1024.0  # exact in binary, and far enough apart for a clip to show
    others = case.like(case.cotangents, 3)
    mixed = tuple(alpha * v + beta * w for v, w in zip(case.cotangents, others, strict=True))
    sizes = case.size(case.quantity("vjp"))
    findings: list[Finding] = []
    for side, operator in case.sides:
        pairs: list[dict[str, Pair]] = [{} for _ in sizes]
        vjp = case.quantity("vjp")
        for precision in PRECISIONS:
            inputs = at_precision(case.inputs, precision)
            try:
                at_once, first, second = (
                    asked(operator, Place(side, "vjp"), inputs, at_precision(v, precision))
                    for v in (mixed, case.cotangents, others)
                )
            except RefusalError as refusal:
                return refused("linearity", [refusal.refusal])
            for pair, whole, a, b, size in zip(pairs, at_once, first, second, sizes, strict=True):
                with np.errstate(all="ignore"):
                    total = alpha * wide(a) + beta * wide(b)
                    pair[precision] = Pair(whole, total, np.broadcast_to(abs(beta) * size, total.shape))
        for k, (place, pair) in enumerate(zip(case.places(vjp, side), pairs, strict=True)):
            mismatch = climb({"float64": pair["float64"]})
            if mismatch is not None:
                mismatch = case.climb(vjp, k, pair, [operator], case.own(vjp, operator, k))
            if mismatch is not None:
                text = "the vjp is not linear in its cotangent; if it is meant so, say linear=False"
                findings.append(Finding(place, "its parts' sum", text, mismatch))
    return judged("linearity", findings, "Jᵀ(αv + βw) = αJᵀv + βJᵀw")


def repeatable(case: Case) -> CheckResult:
    """A second call gives the same bits, also with another call between forward and backward pass."""
    others = tuple(np.flip(x).copy() if x.ndim else np.asarray(2 * x) for x in case.inputs)
    findings: list[Finding] = []
    for side, recorded in case.sides:
        operator = recorded.function
        for name, groups in (("value", ()), ("vjp", (case.cotangents,))):
            here = Place(side, name)
            first = asked(operator, here, copied(case.inputs), *groups)
            second = asked(operator, here, copied(case.inputs), *groups)
            if not same_bits(first, second):
                findings.append(Finding(here, "its first call", "a second call gives another result"))

        def call_between(operator: Function = operator, side: str = side) -> None:
            with suppress(RefusalError):  # the other inputs may not be what f is made for
                asked(operator, Place(side, "value"), copied(others))

        first = asked(operator, here, copied(case.inputs), case.cotangents)
        try:
            second = asked(operator.interrupted(call_between), here, copied(case.inputs), case.cotangents)
        except NoMeaningError:
            continue
        if not same_bits(first, second):
            text = "a call between forward and backward pass changes the gradient: a stale residual"
            findings.append(Finding(here, "its first call", text))
    return judged("repeatable", findings, "the same bits")


def inputs_intact(case: Case) -> CheckResult:
    """No call changes the arrays that it is given, the cotangents among them."""
    findings = []
    arguments, outputs = case.structure.paths, case.places(case.quantity("jvp"), "")
    for side, operator in case.sides:
        for name, groups in (("value", (case.inputs,)), ("vjp", (case.inputs, case.cotangents))):
            places = [Place(side, name, path) for path in arguments]
            places += [Place(side, name, output.path, "cotangent") for output in outputs] if len(groups) > 1 else []
            given = tuple(map(copied, groups))
            asked(operator.function, Place(side, name), *given)
            before, after = (tuple(x for group in arrays for x in group) for arrays in (groups, given))
            for place, x, y in zip(places, before, after, strict=True):
                if x.tobytes() != y.tobytes():
                    findings.append(Finding(place, "the input as given", "the call changes it in place"))
    return judged("inputs intact", findings, "unchanged after")


def process_intact(case: Case) -> CheckResult:
    """No call changes a setting, a seed, a warning filter or the environment."""
    findings = [
        Finding(Place(side, quantity), "the process as it was", f"the call changes {name}")
        for (side, quantity), names in case.changes.items()
        for name in names
    ]
    return judged("process intact", findings, "settings, seeds, warning filters and environment are as they were")


def copied(arrays: Arrays) -> Arrays:
    """Copies, so that a function that changes its inputs changes nothing else."""
    return tuple(x.copy() for x in arrays)


def same_bits(a: Arrays, b: Arrays) -> bool:
    """Whether all is equal, two NaNs as well."""
    return all(np.array_equal(wide(x), wide(y), equal_nan=True) for x, y in zip(a, b, strict=True))
