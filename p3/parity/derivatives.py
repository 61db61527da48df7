"""The value and the derivatives: held against the truth, and then against the other side."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from p3.parity.case import Case, is_reliable
from p3.parity.function import Arrays, at_precision, is_inexact, wide
from p3.parity.mismatch import Mismatch, explain, largest
from p3.parity.quantity import Quantity
from p3.parity.recorded import Recorded, RefusalError, asked
from p3.parity.result import CheckResult, Finding, judged, refused

SURROGATE = "both sides agree with each other: if the rule is not meant to be the derivative, say surrogate=True"


def value(case: Case) -> CheckResult:
    """F itself, against the closed form where there is one, and between the sides."""
    return hold(case, case.quantity("value"))


def vjp(case: Case) -> CheckResult:
    """The gradient in reverse mode."""
    return hold(case, case.quantity("vjp"))


def jvp(case: Case) -> CheckResult:
    """The derivative in forward mode."""
    return hold(case, case.quantity("jvp"))


def vjp_of_vjp(case: Case) -> CheckResult:
    """Second derivatives, reverse over reverse."""
    return hold(case, case.quantity("vjp of vjp"))


def jvp_of_vjp(case: Case) -> CheckResult:
    """Hessian-vector products, forward over reverse."""
    return hold(case, case.quantity("jvp of vjp"))


def vjp_of_jvp(case: Case) -> CheckResult:
    """Second derivatives, reverse over forward."""
    return hold(case, case.quantity("vjp of jvp"))


def jvp_of_jvp(case: Case) -> CheckResult:
    """Second derivatives, forward over forward."""
    return hold(case, case.quantity("jvp of jvp"))


def hold(case: Case, quantity: Quantity) -> CheckResult:
    """Hold a quantity of both sides against the truth, and then against each other."""
    name = quantity.name
    is_second = name not in ("value", "vjp", "jvp")
    findings: list[Finding] = []
    notes: list[str] = []
    refusals: dict[str, RefusalError] = {}
    known_of: set[str] = set()  # the sides of which what is true is known
    untrue: set[tuple[str, int]] = set()  # the sides, and which of their arrays are not what is true
    parts = case.parts(quantity)
    for side, operator in case.sides:
        try:
            result = asked(operator, side, quantity.method, *quantity.groups)
            if name == "value" or not case.surrogate:
                known = case.true(quantity, operator)
                if known is not None and [y.shape for y in known.values] == [y.shape for y in result]:
                    sized = zip(case.with_sizes(quantity, known), result, strict=True)
                    if any(is_reliable(value, error, size, got).any() for (size, value, error), got in sized):
                        notes.append(known.method)
                        known_of.add(side)
                    for k, mismatch in case.from_truth(quantity, operator, known):
                        if mismatch.kind == "semantic":
                            untrue.add((side, k))
                        findings.append(
                            finding(case, quantity, operator, side, known.method, k, parts[k], mismatch, known.values)
                        )
        except RefusalError as refusal:
            refusals[side] = refusal
    if refusals:
        crashed = [*refusals] == ["the port"] and not refusals["the port"].is_meant
        wrong = any(f.mismatch is None or f.mismatch.kind == "semantic" for f in findings)
        if crashed or wrong or name in ("value", "vjp"):
            against = "the reference, which does not" if crashed else "its own framework"
            findings += [Finding(side, against, name, f"it raises: {text}") for side, text in refusals.items()]
            return judged(name, findings, "", [refusal.refusal for refusal in refusals.values()])
        return refused(name, [refusal.refusal for refusal in refusals.values()], findings)
    wrong_sides = {side for side, _ in untrue}
    apart_findings = list(between_sides(case, quantity, parts))
    if is_second and wrong_sides == {"the reference"} and "the port" in known_of:
        return reference_is_wrong(case, quantity, findings, apart_findings, untrue)
    findings += apart_findings
    if len(wrong_sides) == 2 and not any(f.against == "the reference" for f in findings):
        findings = [f._replace(explanation=f"{f.explanation}; {SURROGATE}") for f in findings]
    pairs = [] if any(f.mismatch is None for f in findings) else case.pairs_of_sides(quantity).values()
    apart = {p: max((largest(pair[p].epsilons(p)) for pair in pairs), default=0.0) for p in ("float64", "float32")}
    figures = ", ".join(f"{value:.2g} {precision}" for precision, value in apart.items())
    against = f"true by {' and '.join(dict.fromkeys(notes))}; " if notes else ""
    return judged(name, findings, f"{against}at most {figures} epsilons apart")


def reference_is_wrong(
    case: Case, quantity: Quantity, findings: list[Finding], apart: list[Finding], untrue: set[tuple[str, int]]
) -> CheckResult:
    """
    What comes of a second derivative that is true of the port, and not of the reference.

    Frameworks' own functions have such, as PyTorch's layer_norm has in forward mode. It is told as the reference's, and
    is no fault of the port; where the port differs from it elsewhere, that is one.
    """
    paths = case.paths(quantity)
    known = {paths[k] for _, k in untrue}
    of_port = [finding for finding in apart if finding.path not in known]
    result = judged(quantity.name, of_port, "the port's is true")
    told = "; ".join(
        f"the reference's {f.part} is wrong: {f.explanation}" for f in findings if f.side == "the reference"
    )
    return result._replace(note=f"{result.note}; {told}", findings=(*result.findings, *findings))


def between_sides(case: Case, quantity: Quantity, parts: list[str]) -> Iterator[Finding]:
    """Where the port is not what the reference is."""
    port, reference = quantity.of(case.port), quantity.of(case.reference)
    if len(port) != len(reference):
        yield Finding("the port", "the reference", "all", f"there are {len(port)} of them, and not {len(reference)}")
        return
    for k, (y, z) in enumerate(zip(port, reference, strict=True)):
        if kind(y) != kind(z):
            yield Finding(
                "the port",
                "the reference",
                parts[k],
                f"it is {kind(y)}, and not {kind(z)}",
                path=case.paths(quantity)[k],
            )
    differing = [k for k in range(len(port)) if port[k].shape != reference[k].shape]
    for k in differing:
        yield Finding(
            "the port", "the reference", parts[k], explain(port[k], reference[k], {}), path=case.paths(quantity)[k]
        )
    if differing:
        return
    for k, mismatch in case.between_sides(quantity):
        yield finding(case, quantity, case.port, "the port", "the reference", k, parts[k], mismatch, reference)


def kind(x: np.ndarray) -> str:
    """What sort of numbers an array has."""
    return "complex" if x.dtype.kind == "c" else "floating" if is_inexact(x) else "of whole numbers or truth values"


def finding(
    case: Case,
    quantity: Quantity,
    operator: Recorded,
    side: str,
    against: str,
    k: int,
    part: str,
    mismatch: Mismatch,
    expected: Arrays,
) -> Finding:
    """A finding, with the explanation and the snippet."""
    got = quantity.of(operator, mismatch.precision)
    return Finding(
        side=side,
        against=against,
        part=part,
        explanation=explain(got[k], expected[k], mistakes(case, quantity, k, expected), weights(case, quantity, k)),
        mismatch=mismatch,
        inputs=inputs_at(case, quantity, k, mismatch.element),
        truth=true_at(case, quantity, operator, k, mismatch.element),
        snippet=snippet(case, quantity, side, k, mismatch),
        quantity=quantity,
        path=case.paths(quantity)[k],
    )


def weights(case: Case, quantity: Quantity, k: int) -> np.ndarray | float:
    """What an elementwise function's derivative is multiplied by in its gradient, or in its tangent."""
    by = {"vjp": case.cotangents, "jvp": case.tangents}.get(quantity.name, ())
    position = case.arguments[k if quantity.name == "vjp" else 0]
    if len(by) == 1 and case.elementwise and by[0].shape == case.inputs[position].shape:
        return by[0]
    return 1.0


def mistakes(case: Case, quantity: Quantity, k: int, expected: Arrays) -> dict[str, np.ndarray]:
    """What a gradient would be by mistakes that need more than the right result to be seen."""
    if quantity.name != "vjp":
        return {}
    others = {
        f"it is argument {case.arguments[j]}'s gradient: two arguments are swapped": other
        for j, other in enumerate(expected)
        if j != k and other.shape == expected[k].shape
    }
    ones = tuple(np.ones_like(v) for v in case.cotangents)
    others["it does not depend on the cotangent"] = case.reference.vjp(case.inputs, ones)[k]
    x = case.inputs[case.arguments[k]]
    for y, v in zip(filter(is_inexact, case.values), case.cotangents, strict=True):
        if case.elementwise and x.shape != y.shape:
            first = np.zeros_like(v)
            first[tuple(slice(None) if n > 1 else slice(0, 1) for n in (*(1,) * (v.ndim - x.ndim), *x.shape))] = 1
            with np.errstate(all="ignore"):
                others["it is not summed over the axis that its argument is broadcast along"] = case.reference.vjp(
                    case.inputs, (v * first,)
                )[k]
    return others


def inputs_at(case: Case, quantity: Quantity, k: int, index: tuple[int, ...]) -> tuple[complex | float, ...]:
    """The inputs that an element comes from, where that can be said."""
    shape = case.values[0].shape
    is_gradient = quantity.name not in ("value", "jvp", "jvp of jvp") and k < len(case.arguments)
    if case.elementwise and (not is_gradient or case.inputs[case.arguments[k]].shape == shape):
        return tuple(np.broadcast_to(x, shape)[index].item() for x in case.inputs)
    return (case.inputs[case.arguments[k]][index].item(),) if is_gradient else ()


def true_at(
    case: Case, quantity: Quantity, operator: Recorded, k: int, index: tuple[int, ...]
) -> complex | float | None:
    """The true value of an element, where it is known; of a second derivative, only by the side's own first."""
    if " of " in quantity.name or (case.surrogate and quantity.name != "value"):
        return None
    known = case.true(quantity, operator)
    if known is None or known.values[k].shape[: len(index)] != known.values[k].shape:
        return None
    if any(i >= n for i, n in zip(index, known.values[k].shape, strict=True)):
        return None
    return known.values[k][index].item() if np.isfinite(known.errors[k][index]) else None


LARGEST_SNIPPET = 64  # numbers, in all arrays together


def snippet(case: Case, quantity: Quantity, side: str, k: int, mismatch: Mismatch) -> str:
    """
    A program that prints an element that is wrong: by itself where it depends on its own inputs alone.

    There is none where the function cannot be imported, or the arrays are too large to be printed.
    """
    made = getattr(dict(case.sides)[side], "program", "")
    groups = quantity.groups
    shape = case.values[0].shape
    index: tuple[int, ...] = (k, *mismatch.element)
    if case.elementwise and all(x.shape == shape for group in groups for x in group):
        groups = tuple(tuple(np.asarray(x[mismatch.element]) for x in group) for group in groups)
        index = (k,)
    if not made or sum(x.size for group in groups for x in group) > LARGEST_SNIPPET:
        return ""
    name = side.removeprefix("the ")
    names = ["inputs", "cotangents" if quantity.name.endswith("vjp") else "tangents", "directions"][: len(groups)]
    lines = ["import numpy as np", *(["import ml_dtypes"] if mismatch.precision == "bfloat16" else []), ""]
    lines.append(made.replace("operator = ", f"{name} = ", 1))
    for group_name, group in zip(names, groups, strict=True):
        arrays = ", ".join(
            f"np.array({text_of((wide(x) if is_inexact(x) else x).tolist())}, '{x.dtype}')"
            for x in at_precision(group, mismatch.precision)
        )
        lines.append(f"{group_name} = ({arrays},)")
    element = f"{list(index[1:])}" if len(index) > 1 else ""
    lines.append(f"print({name}.{quantity.method}({', '.join(names)})[{k}]{element})")
    return "\n".join([*lines, f"# {mismatch.got!r}, and {mismatch.expected!r} was expected"])


def text_of(number: Any) -> str:
    """A number, or a list of them, as Python."""
    if isinstance(number, list):
        return f"[{', '.join(map(text_of, number))}]"
    if isinstance(number, complex):
        return f"complex({text_of(number.real)}, {text_of(number.imag)})"
    return repr(number) if np.isfinite(number) else f"float('{number}')"
