"""The value and the derivatives: held against the truth, and then against the other side."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from p3.errors import InputError
from p3.parity.case import Case, is_reliable
from p3.parity.checks.identities import TWO_RULES, reference_has_two_rules
from p3.parity.function import Arrays, at_precision, is_inexact, wide
from p3.parity.mismatch import Mismatch, Pair, explain, largest
from p3.parity.place import Place
from p3.parity.quantity import PULLED, Quantity
from p3.parity.recorded import Recorded, RefusalError, asked
from p3.parity.result import CheckResult, Finding, briefly, judged, refused
from p3.parity.tree import written
from p3.tolerance import NEARLY

DOMAIN = "if inputs must stay {}, {} inside, or give project="
NO_DERIVATIVE = "; if it has no derivative by some argument, name that in keys="
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
    findings: list[Finding] = []
    methods: list[str] = []
    refusals: dict[str, RefusalError] = {}
    known_of: set[str] = set()  # the sides of which what is true is known
    for side, operator in case.sides:
        try:
            result = asked(operator, Place(side, name), *quantity.groups)
            if name == "value" or case.is_derivative:
                known = case.true(quantity, operator)
                if known is not None and [y.shape for y in known.values] == [y.shape for y in result]:
                    sized = zip(case.with_sizes(quantity, known), result, strict=True)
                    if any(is_reliable(known, value, error, size, got).any() for (size, value, error), got in sized):
                        methods.append(known.method)
                        known_of.add(side)
                    for k, mismatch in case.from_truth(quantity, operator, known):
                        findings.append(finding(case, quantity, operator, known.method, k, mismatch, known.values))
        except RefusalError as refusal:
            refusals[side] = refusal
    if refusals:
        crashed = [*refusals] == ["port"] and not refusals["port"].is_meant
        # A second derivative that is wrong in the reference alone is no fault of a port that has none.
        ports = [f for f in findings if f.is_wrong and (f.place.side == "port" or quantity.derivative.order < 2)]
        if crashed or ports or name in ("value", "vjp"):
            against = "the reference, which does not" if crashed else "its own framework"
            advice = NO_DERIVATIVE if name == "vjp" and "reference" in refusals and len(case.arguments) > 1 else ""
            findings += [
                Finding(Place(side, name), against, f"it raises {error.refusal.error}{advice}", refusal=error.refusal)
                for side, error in refusals.items()
            ]
            return judged(name, findings, "", [refusal.refusal for refusal in refusals.values()])
        return refused(name, [refusal.refusal for refusal in refusals.values()], findings)
    if quantity.derivative.order == 1 and not any(
        np.isfinite(wide(y)).any() for _, operator in case.sides for y in quantity.of(operator)
    ):
        text = "no element of it is finite, so that nothing is shown; give inputs where the function has a derivative"
        return judged(name, [Finding(Place(side, name), "a finite number", text) for side, _ in case.sides[:1]], "")
    hint = domain_of(case) if quantity.derivative.order else ""
    if hint:
        findings = [f._replace(explanation=f"{f.explanation}; {hint}") if f.is_wrong else f for f in findings]
    untrue = [f.place for f in findings if f.is_wrong]
    wrong_sides = {place.side for place in untrue}
    of_sides = list(between_sides(case, quantity))
    if quantity.derivative.order == 2 and wrong_sides == {"reference"} and "port" in known_of:
        return reference_is_wrong(case, quantity, findings, of_sides)
    if name == "value" and any(f.is_wrong for f in of_sides) and all(f.mismatch is not None for f in of_sides):
        cause = convention(case)
        of_sides = [
            f._replace(explanation=f"{cause}; {f.explanation}") if cause and f.is_wrong else f for f in of_sides
        ]
    if name == "jvp" and any(f.is_wrong for f in of_sides) and reference_has_two_rules(case):
        return CheckResult(name, "passed", TWO_RULES)
    findings += of_sides
    if len(wrong_sides) == 2 and not of_sides:
        findings = [f._replace(explanation=f"{f.explanation}; {SURROGATE}") for f in findings]
    pairs = [] if any(f.mismatch is None for f in findings) else case.pairs_of_sides(quantity).values()
    apart = {p: max((largest(pair[p].epsilons(p)) for pair in pairs), default=0.0) for p in ("float64", "float32")}
    figures = ", ".join(f"{value:.2g} {precision}" for precision, value in apart.items())
    true = f"true by {' and '.join(dict.fromkeys(methods))}; " if methods else ""
    return judged(name, findings, f"{true}at most {figures} epsilons apart")


def convention(case: Case) -> str:
    """A convention by which one side gives what the other does, within the tolerance; empty where none is known."""
    quantity = case.quantity("value")
    sizes = case.size(quantity)
    inside = "float32" if any(any(case.is_single(quantity, operator)) for _, operator in case.sides) else ""
    found: list[tuple[float, str]] = []
    for (side, operator), (_, other) in zip(case.sides, case.sides[::-1], strict=True):
        expected = other.value(case.inputs)
        for text, values in operator.variants(case.inputs):
            if [y.shape for y in values] != [y.shape for y in expected]:
                continue
            pairs = [Pair(*arrays, inside=inside) for arrays in zip(values, expected, sizes, strict=True)]
            if not any(pair.beyond("float64").any() for pair in pairs):
                off = max((pair.epsilons("float64").max(initial=0.0) for pair in pairs), default=0.0)
                found.append((float(off), f"both agree if in the {side} {text}"))
    return min(found, default=(0.0, ""))[1]


def domain_of(case: Case) -> str:
    """What to do where finite differences leave a domain that the inputs seem to be in; empty where they do not."""
    for x in case.inputs if case.project is None else ():
        if (
            x.ndim > 1
            and x.shape[-1] == x.shape[-2] > 1
            and np.allclose(x, np.swapaxes(x, -1, -2), rtol=0, atol=NEARLY.value * np.abs(x).max())
        ):
            return DOMAIN.format("symmetric", "symmetrize")
        if x.ndim and x.shape[-1] > 1 and is_inexact(x):
            for power in (1, 2):
                if np.allclose((np.abs(x) ** power).sum(-1), 1, rtol=0, atol=NEARLY.value):
                    return DOMAIN.format("normalized", "normalize")
    return ""


def reference_is_wrong(
    case: Case, quantity: Quantity, from_truth: list[Finding], of_sides: list[Finding]
) -> CheckResult:
    """
    What comes of a second derivative that is true of the port, and not of the reference.

    Frameworks' own functions have such, as PyTorch's layer_norm has in forward mode. It is told as the reference's, and
    is no fault of the port; where the port differs from it elsewhere, that is one.
    """
    wrong = [f.place._replace(side="port") for f in from_truth if f.is_wrong]
    result = judged(quantity.name, [f for f in of_sides if f.place not in wrong], "the port's is true")
    told = "; ".join(
        f"the reference's is wrong, {briefly(quantity.name, f)}" for f in from_truth if f.place.side == "reference"
    )
    return result._replace(note=f"{result.note}; {told}", findings=(*result.findings, *from_truth))


def between_sides(case: Case, quantity: Quantity) -> Iterator[Finding]:
    """Where the port is not what the reference is."""
    port, reference = quantity.of(case.port), quantity.of(case.reference)
    if len(port) != len(reference):
        text = f"there are {len(port)} of them, and not {len(reference)}"
        yield Finding(Place("port", quantity.name), "the reference", text)
        return
    places = case.places(quantity, "port")
    for place, y, z in zip(places, port, reference, strict=True):
        if kind(y) != kind(z):
            yield Finding(place, "the reference", f"it is {kind(y)}, and not {kind(z)}")
    differing = [k for k in range(len(port)) if port[k].shape != reference[k].shape]
    for k in differing:
        yield Finding(places[k], "the reference", explain(port[k], reference[k], {}))
    if differing:
        return
    for k, mismatch in case.between_sides(quantity):
        yield finding(case, quantity, case.port, "the reference", k, mismatch, reference)


def kind(x: np.ndarray) -> str:
    """What sort of numbers an array has."""
    return "complex" if x.dtype.kind == "c" else "floating" if is_inexact(x) else "of whole numbers or truth values"


def finding(
    case: Case, quantity: Quantity, operator: Recorded, against: str, k: int, mismatch: Mismatch, expected: Arrays
) -> Finding:
    """A finding, with the explanation and the snippet."""
    got = quantity.of(operator, mismatch.precision)
    return Finding(
        case.places(quantity, operator.side)[k],
        against,
        explain(
            got[k],
            expected[k],
            mistakes(case, quantity, k, expected),
            weights(case, quantity, k),
            quantity.name == "value",
        ),
        mismatch=mismatch,
        inputs=inputs_at(case, quantity, k, mismatch.element),
        truth=true_at(case, quantity, operator, k, mismatch.element),
        snippet=snippet(case, quantity, operator, k, mismatch),
        quantity=quantity,
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
        f"it is the gradient of {case.structure.paths[case.arguments[j]]}: two arguments are swapped": other
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
    is_gradient = quantity.derivative.is_gradient and k < len(case.arguments)
    if case.elementwise and (not is_gradient or case.inputs[case.arguments[k]].shape == shape):
        return tuple(np.broadcast_to(x, shape)[index].item() for x in case.inputs)
    return (case.inputs[case.arguments[k]][index].item(),) if is_gradient else ()


def true_at(
    case: Case, quantity: Quantity, operator: Recorded, k: int, index: tuple[int, ...]
) -> complex | float | None:
    """The true value of an element, where it is known; of a second derivative, only by the side's own first."""
    if quantity.derivative.order == 2 or (not case.is_derivative and quantity.name != "value"):
        return None
    known = case.true(quantity, operator)
    if known is None or known.values[k].shape[: len(index)] != known.values[k].shape:
        return None
    if any(i >= n for i, n in zip(index, known.values[k].shape, strict=True)):
        return None
    return known.values[k][index].item() if np.isfinite(known.errors[k][index]) else None


LARGEST_SNIPPET = 64  # numbers, in all arrays together


def snippet(case: Case, quantity: Quantity, operator: Recorded, k: int, mismatch: Mismatch) -> str:
    """
    A program that prints an element that is wrong: by itself where it depends on its own inputs alone.

    There is none where the function cannot be imported, or the arrays are too large to be printed.
    """
    shape = case.values[0].shape
    index: tuple[int, ...] = (k, *mismatch.element)
    got, expected = mismatch.got, mismatch.expected
    if case.elementwise and all(x.shape == shape for group in quantity.groups for x in group):
        quantity = quantity._replace(
            groups=tuple(tuple(np.asarray(x[mismatch.element]) for x in group) for group in quantity.groups)
        )
        index = (k,)
    elif case.elementwise:
        cut = quantity._replace(groups=tuple(tuple(cut_to_one(x, shape) for x in group) for group in quantity.groups))
        both = [side.unrecorded for side in (operator, case.reference)]
        try:
            results = [asked(side, Place("", quantity.name), *cut.given(mismatch.precision))[k] for side in both]
        except RefusalError:
            return ""
        if results[0].size == 1 and not np.array_equal(results[0], results[1]):
            quantity, index = cut, (k, *(0,) * results[0].ndim)
            got, expected = (wide(result).ravel()[0].item() for result in results)
    groups = quantity.groups
    if not operator.program or sum(x.size for group in groups for x in group) > LARGEST_SNIPPET:
        return ""
    of = "cotangents" if quantity.derivative.combinators[:1] == (PULLED,) else "tangents"
    names = ["inputs", of, "directions"][: len(groups)]
    lines = ["import numpy as np", *(["import ml_dtypes"] if mismatch.precision == "bfloat16" else []), ""]
    lines.append(operator.program)
    for group_name, group in zip(names, groups, strict=True):
        arrays = [
            f"np.array({text_of((wide(x) if is_inexact(x) else x).tolist())}, '{x.dtype}')"
            for x in at_precision(group, mismatch.precision)
        ]
        if group_name == "inputs" and not case.structure.is_plain:
            try:
                given = written(case.structure.tree, arrays)
            except InputError:
                return ""
            lines.insert(1, "from p3.parity.tree import take_apart")
            lines.append(f"inputs, structure = take_apart({given}, lambda path, x: x)")
            lines.append("operator = operator.of(structure)")
        else:
            lines.append(f"{group_name} = ({', '.join(arrays)},)")
    element = f"{list(index[1:])}" if len(index) > 1 else ""
    lines.append(f"print(operator.{quantity.derivative.method}({', '.join(names)})[{k}]{element})")
    return "\n".join([*lines, f"# {got!r}, and {expected!r} was expected"])


def cut_to_one(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The first element, in as many axes, of an array that has a shape; others are as they are."""
    return x[(slice(0, 1),) * x.ndim] if x.shape == shape else x


def text_of(number: Any) -> str:
    """A number, or a list of them, as Python."""
    if isinstance(number, list):
        return f"[{', '.join(map(text_of, number))}]"
    if isinstance(number, complex):
        return f"complex({text_of(number.real)}, {text_of(number.imag)})"
    return repr(number) if np.isfinite(number) else f"float('{number}')"
