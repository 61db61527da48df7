"""The checks, each a function of the case to its result."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np

from p3.parity.case import PRECISIONS, Case, Quantity, RefusalError, refusal_of
from p3.parity.mismatch import Mismatch, Pair, climb, explain, largest
from p3.parity.operator import Arrays, Operator, at_precision, is_inexact, wide
from p3.parity.result import CheckResult, Finding, Verdict, judged
from p3.parity.truth import sum_to_shape

HALF = ("float16", "bfloat16")
MARKER = 4.0  # a power of two, so that multiplying by it rounds nothing
DERIVATIVES = ("vjp", "jvp", "vjp of vjp", "jvp of vjp")


def asked(operator: Operator, side: str, method: str, *groups: Arrays) -> Arrays:
    """Call a method, and make a `RefusalError` of whatever it raises."""
    try:
        return tuple(getattr(operator, method)(*groups))
    except RefusalError:
        raise
    except Exception as error:  # frameworks and users' functions raise all kinds
        raise refusal_of(error, f"{side}, {method.replace('_', ' ')}") from error


def hold(case: Case, quantity: Quantity) -> CheckResult:
    """Hold a quantity of both sides against the truth, and then against each other."""
    name = quantity.name
    findings: list[Finding] = []
    notes: list[str] = []
    refusals: list[str] = []
    untrue: list[str] = []
    parts = case.parts(quantity)
    for side, operator in case.sides:
        try:
            result = asked(operator, side, quantity.method, *quantity.groups)
            if name == "value" or not case.surrogate:
                known = case.true(quantity, operator)
                if known is not None and [y.shape for y in known.values] == [y.shape for y in result]:
                    notes.append(known.method)
                    for k, mismatch in case.from_truth(quantity, operator, known):
                        if mismatch.kind == "semantic":
                            untrue.append(side)
                        findings.append(
                            finding(case, quantity, operator, side, known.method, k, parts[k], mismatch, known.values)
                        )
        except RefusalError as refusal:
            refusals.append(str(refusal))
    if refusals:
        if any(f.mismatch is None or f.mismatch.kind == "semantic" for f in findings) or name in ("value", "vjp"):
            findings = [*findings, *(Finding("a side", "its own framework", name, text) for text in refusals)]
            return judged(name, findings, "")
        return CheckResult(name, "refused", "; ".join(refusals), tuple(findings))
    findings += between_sides(case, quantity, parts)
    if len(set(untrue)) == 2 and not any(f.against == "the reference" for f in findings):
        findings = [f._replace(explanation=f"{f.explanation}; {SURROGATE}") for f in findings]
    pairs = [] if any(f.mismatch is None for f in findings) else case.pairs_of_sides(quantity).values()
    apart = {p: max((largest(pair[p].epsilons(p)) for pair in pairs), default=0.0) for p in ("float64", "float32")}
    figures = ", ".join(f"{value:.2g} {precision}" for precision, value in apart.items())
    against = f"true by {' and '.join(dict.fromkeys(notes))}; " if notes else ""
    return judged(name, findings, f"{against}at most {figures} epsilons apart")


SURROGATE = "both sides agree with each other: if the rule is not meant to be the derivative, say surrogate=True"


def between_sides(case: Case, quantity: Quantity, parts: list[str]) -> Iterator[Finding]:
    """Where the port is not what the reference is."""
    port, reference = quantity.of(case.port), quantity.of(case.reference)
    if len(port) != len(reference):
        yield Finding("the port", "the reference", "all", f"there are {len(port)} of them, and not {len(reference)}")
        return
    differing = [k for k in range(len(port)) if port[k].shape != reference[k].shape]
    for k in differing:
        yield Finding("the port", "the reference", parts[k], explain(port[k], reference[k], {}))
    if differing:
        return
    for k, mismatch in case.between_sides(quantity):
        yield finding(case, quantity, case.port, "the port", "the reference", k, parts[k], mismatch, reference)


def finding(
    case: Case,
    quantity: Quantity,
    operator: Operator,
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
    )


def weights(case: Case, quantity: Quantity, k: int) -> np.ndarray | float:
    """What an elementwise function's derivative is multiplied by in its gradient, or in its tangent."""
    by = {"vjp": case.cotangents, "jvp": case.tangents}.get(quantity.name, ())
    if len(by) == 1 and case.elementwise and by[0].shape == case.inputs[case.arguments[k]].shape:
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
    for y, v in zip(case.values, case.cotangents, strict=True):
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
    is_gradient = "vjp" in quantity.name
    if case.elementwise and (not is_gradient or case.inputs[case.arguments[k]].shape == shape):
        return tuple(np.broadcast_to(x, shape)[index].item() for x in case.inputs)
    return (case.inputs[case.arguments[k]][index].item(),) if is_gradient else ()


def true_at(
    case: Case, quantity: Quantity, operator: Operator, k: int, index: tuple[int, ...]
) -> complex | float | None:
    """The true value of an element, where it is known; of a second derivative, only by the side's own first."""
    if "of vjp" in quantity.name or (case.surrogate and quantity.name != "value"):
        return None
    known = case.true(quantity, operator)
    if known is None or known.values[k].shape[: len(index)] != known.values[k].shape:
        return None
    if any(i >= n for i, n in zip(index, known.values[k].shape, strict=True)):
        return None
    return known.values[k][index].item() if np.isfinite(known.errors[k][index]) else None


def snippet(case: Case, quantity: Quantity, side: str, k: int, mismatch: Mismatch) -> str:
    """Python that shows an element that is wrong: by itself where it depends on its own inputs alone."""
    groups = quantity.groups
    shape = case.values[0].shape
    names = ["inputs", "cotangents" if "vjp" in quantity.name else "tangents", "directions"]
    index: tuple[int, ...] = (k, *mismatch.element)
    if case.elementwise and all(x.shape == shape for group in groups for x in group):
        groups = tuple(tuple(np.asarray(x[mismatch.element]) for x in group) for group in groups)
        index = (k,)
    lines = ["import numpy as np"]
    size = sum(x.size for group in groups for x in group)
    for name, group in zip(names, groups, strict=False):
        arrays = at_precision(group, mismatch.precision)
        if size <= 64:
            given = ", ".join(
                f"np.array({wide(x).tolist() if is_inexact(x) else x.tolist()}, '{x.dtype}')" for x in arrays
            )
        else:
            given = f"np.asarray(x, '{mismatch.precision}') for x in {name}"
        lines.append(f"{name} = ({given},)" if size <= 64 else f"{name} = tuple({given})")
    call = f"{side.removeprefix('the ')}.{quantity.method}({', '.join(names[: len(groups)])})"
    lines.append(f"print({call}{''.join(f'[{i}]' for i in index[:1])}{list(index[1:]) or ''})")
    return "\n".join([*lines, f"# {mismatch.got!r}, and {mismatch.expected!r} was expected"])


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


def adjoint(case: Case) -> CheckResult:
    """⟨v, Jw⟩ = ⟨Jᵀv, w⟩, on each side."""
    findings: list[Finding] = []
    refusals: list[str] = []
    largest_difference = 0.0
    for side, operator in case.sides:
        try:
            pushed = asked(operator, side, "jvp", case.inputs, case.tangents)
            pulled = asked(operator, side, "vjp", case.inputs, case.cotangents)
        except RefusalError as refusal:
            refusals.append(str(refusal))
            continue
        with np.errstate(all="ignore"):
            left = [(wide(v) * wide(y)).real for v, y in zip(case.cotangents, pushed, strict=True)]
            right = [(wide(g) * wide(w)).real for g, w in zip(pulled, case.tangents, strict=True)]
            size = sum(float(np.abs(term).sum()) for term in (*left, *right))
        sums = [np.asarray(sum(float(term.sum()) for term in terms)) for terms in (right, left)]
        pair = Pair(sums[0], sums[1], np.asarray(size))
        largest_difference = max(largest_difference, largest(pair.epsilons("float64")))
        mismatch = climb({"float64": pair})
        if mismatch is not None:
            text = f"⟨Jᵀv, w⟩ is {float(sums[0]):.9g} and ⟨v, Jw⟩ is {float(sums[1]):.9g}"
            findings.append(Finding(side, "its own jvp", "vjp", text, mismatch))
    if len(refusals) == 2:
        return CheckResult("adjoint", "refused", "; ".join(refusals))
    note = f"{largest_difference:.2g} epsilons apart"
    return judged("adjoint", findings, f"{note}; {refusals[0]}" if refusals else note)


def linearity(case: Case) -> CheckResult:
    """Jᵀ(αv + βw) = αJᵀv + βJᵀw, on each side."""
    alpha, beta = 0.75, -1.25  # exact in binary
    others = case.like(case.cotangents, 3)
    mixed = tuple(alpha * v + beta * w for v, w in zip(case.cotangents, others, strict=True))
    sizes = case.size(case.quantity("vjp"))
    findings: list[Finding] = []
    for side, operator in case.sides:
        try:
            at_once = asked(operator, side, "vjp", case.inputs, mixed)
            first = asked(operator, side, "vjp", case.inputs, case.cotangents)
            second = asked(operator, side, "vjp", case.inputs, others)
        except RefusalError as refusal:
            return CheckResult("linearity", "refused", str(refusal))
        for part, whole, a, b, size in zip(
            case.parts(case.quantity("vjp")), at_once, first, second, sizes, strict=True
        ):
            with np.errstate(all="ignore"):
                total = alpha * wide(a) + beta * wide(b)
                pair = Pair(whole, total, np.broadcast_to(3 * size + np.abs(wide(a)) + np.abs(wide(b)), total.shape))
            mismatch = climb({"float64": pair})
            if mismatch is not None:
                text = "the vjp is not linear in its cotangent"
                findings.append(Finding(side, "its parts' sum", part, text, mismatch))
    return judged("linearity", findings, "Jᵀ(αv + βw) = αJᵀv + βJᵀw")


def modes(
    case: Case, name: str, found: Callable[[Operator], dict[str, Operator]], methods: tuple[str, ...]
) -> CheckResult:
    """That each side gives in other modes what it gives eagerly."""
    findings: list[Finding] = []
    done: list[str] = []
    refusals: list[str] = []
    for side, operator in case.sides:
        for mode, other in found(operator).items():
            done.append(mode)
            for method in methods:
                quantity = case.quantity(method)
                try:
                    result = asked(other, f"{side}, {mode}", quantity.method, *quantity.groups)
                except RefusalError as refusal:
                    refusals.append(str(refusal))
                    continue
                expected = eager_or_true(case, quantity, operator, side)
                if expected is None:
                    continue
                for part, got, should, size in zip(
                    case.parts(quantity), result, expected, case.size(quantity), strict=True
                ):
                    if got.shape != should.shape:
                        text = f"{method} by {mode}: {explain(got, should, {})}"
                        findings.append(Finding(side, "eager", part, text))
                        continue
                    mismatch = climb({"float64": Pair(got, should, size, 1e-6 * size * (method in SECOND))})
                    if mismatch is not None:
                        text = f"{method} by {mode}: {explain(got, should, {})}"
                        findings.append(Finding(side, "eager", part, text, mismatch))
    if not done:
        return CheckResult(name, "not applicable", "neither framework has other modes")
    note = f"{', '.join(dict.fromkeys(done))}: as eager"
    return judged(name, findings, "; ".join([note, *(f"refused: {refusal}" for refusal in refusals)]))


SECOND = ("vjp of vjp", "jvp of vjp")


def eager_or_true(case: Case, quantity: Quantity, operator: Operator, side: str) -> Arrays | None:
    """What a side gives eagerly; where it refuses, what is true."""
    try:
        return asked(operator, side, quantity.method, *quantity.groups)
    except RefusalError:
        known = case.true(quantity, operator)
        if known is None or not all(np.isfinite(error).all() for error in known.errors):
            return None
        return known.values


def transformed(case: Case) -> CheckResult:
    """The framework's other transforms give what eager mode gives."""
    return modes(case, "transformed", lambda operator: dict(operator.transformed()), ("value", *DERIVATIVES))


def compiled(case: Case) -> CheckResult:
    """Compiled, each side gives what it gives eagerly."""
    return modes(case, "compiled", lambda operator: dict(operator.compiled()), ("value", "vjp", "vjp of vjp"))


def batched(case: Case) -> CheckResult:
    """A batch, by the framework's vmap, is what a loop over it gives."""
    random = case.random()
    batch = [case.inputs] + [
        tuple(random.permutation(x.ravel()).reshape(x.shape) if is_inexact(x) else x for x in case.inputs)
        for _ in range(2)
    ]
    stacked = tuple(np.stack(arrays) for arrays in zip(*batch, strict=True))
    cotangents = tuple(np.stack([v] * len(batch)) for v in case.cotangents)
    findings: list[Finding] = []
    refusals: list[str] = []
    for side, operator in case.sides:
        for method, groups in (("value", ()), ("vjp", (case.cotangents,))):
            try:
                together = asked(
                    operator.batched(), f"{side}, vmap", method, stacked, *((cotangents,) if method == "vjp" else ())
                )
                one_by_one = [asked(operator, side, method, inputs, *groups) for inputs in batch]
            except RefusalError as refusal:
                refusals.append(str(refusal))
                continue
            for k, result in enumerate(together):
                expected = np.stack([one[k] for one in one_by_one])
                part = f"{method} {k}"
                if result.shape != expected.shape:
                    findings.append(Finding(side, "a loop", part, f"under vmap {explain(result, expected, {})}"))
                    continue
                sizes = np.stack([case.size(Quantity(method, method, (inputs, *groups)))[k] for inputs in batch])
                mismatch = climb({"float64": Pair(result, expected, sizes)})
                if mismatch is not None:
                    findings.append(
                        Finding(side, "a loop", part, f"under vmap {explain(result, expected, {})}", mismatch)
                    )
    if refusals and not findings and len(refusals) >= 2:
        return CheckResult("batched", "refused", "; ".join(refusals))
    return judged("batched", findings, "; ".join(["vmap is a loop", *(f"refused: {r}" for r in refusals)]))


def repeatable(case: Case) -> CheckResult:
    """A second call gives the same bits, also with another call between forward and backward pass."""
    others = tuple(np.flip(x).copy() if x.ndim else x + 1 for x in case.inputs)
    findings: list[Finding] = []
    for side, recorded in case.sides:
        operator = getattr(recorded, "operator", recorded)
        for method, groups in (("value", ()), ("vjp", (case.cotangents,))):
            try:
                first = asked(operator, side, method, copied(case.inputs), *groups)
                second = asked(operator, side, method, copied(case.inputs), *groups)
            except RefusalError as refusal:
                return CheckResult("repeatable", "refused", str(refusal))
            if not same_bits(first, second):
                findings.append(Finding(side, "its first call", method, "a second call gives another result"))
            if method == "vjp":
                between = operator.vjp(copied(case.inputs), case.cotangents, partial(operator.value, copied(others)))
                if not same_bits(first, between):
                    text = "a call between forward and backward pass changes the gradient: a stale residual"
                    findings.append(Finding(side, "its first call", method, text))
    return judged("repeatable", findings, "the same bits")


def copied(arrays: Arrays) -> Arrays:
    """Copies, so that a function that changes its inputs changes nothing else."""
    return tuple(x.copy() for x in arrays)


def same_bits(a: Arrays, b: Arrays) -> bool:
    """Whether all is equal, two NaNs as well."""
    return all(np.array_equal(wide(x), wide(y), equal_nan=True) for x, y in zip(a, b, strict=True))


def inputs_intact(case: Case) -> CheckResult:
    """No call changes the arrays that it is given."""
    findings = []
    for side, operator in case.sides:
        for method, groups in (("value", ()), ("vjp", (case.cotangents,))):
            given = copied(case.inputs)
            try:
                asked(getattr(operator, "operator", operator), side, method, given, *groups)
            except RefusalError:
                continue
            for position, (before, after) in enumerate(zip(case.inputs, given, strict=True)):
                if before.tobytes() != after.tobytes():
                    text = f"{method} changes it in place"
                    findings.append(Finding(side, "the input as given", f"argument {position}", text))
    return judged("inputs intact", findings, "unchanged after")


def dtypes(case: Case) -> CheckResult:
    """Value and gradients have the inputs' dtype, in each dtype that the operator takes."""
    findings: list[Finding] = []
    refusals: list[str] = []
    taken: list[str] = []
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
                continue
            taken.append(dtype)
            for x, g, i in zip(arguments, gradients, case.arguments, strict=True):
                if g.dtype != x.dtype:
                    text = f"for a {x.dtype} argument the gradient's dtype is {g.dtype}"
                    findings.append(Finding(side, "its argument's dtype", f"argument {i}", text))
    kept = ", ".join(dict.fromkeys(taken))
    return judged("dtypes", findings, "; ".join([f"{kept}: kept", *(f"refused: {r}" for r in refusals)]))


def low_precision(case: Case) -> CheckResult:
    """In half precision, value and gradient are the float64 answer for the same inputs, rounded."""
    findings: list[Finding] = []
    worst: dict[str, float] = {}
    refusals: list[str] = []
    for dtype in [dtype for dtype in case.dtypes if dtype in HALF]:
        if any(x.dtype.kind == "c" for x in case.inputs):
            continue
        inputs = at_precision(case.inputs, dtype)
        exact = tuple(wide(x) if is_inexact(x) else x for x in inputs)
        for method, groups in (("value", ()), ("vjp", (case.cotangents,))):
            quantity = Quantity(method, method, (exact, *groups))
            for side, operator in case.sides:
                try:
                    results = asked(operator, side, method, inputs, *(at_precision(group, dtype) for group in groups))
                    expected = asked(operator, side, method, exact, *groups)
                except RefusalError as refusal:
                    refusals.append(f"{dtype}: {refusal}")
                    continue
                for k, (got, should, size) in enumerate(zip(results, expected, case.size(quantity), strict=True)):
                    if got.shape != should.shape:
                        continue
                    reach = float(np.abs(wide(at_precision((np.asarray(2.0**15),), dtype)[0])))
                    representable = np.abs(wide(should)) < (reach if dtype == "float16" else 1e38)
                    pair = Pair(np.where(representable, wide(got), 0), np.where(representable, wide(should), 0), size)
                    worst[dtype] = max(worst.get(dtype, 0.0), largest(pair.epsilons(dtype)))
                    mismatch = climb({dtype: pair})
                    if mismatch is not None:
                        text = f"{method} in {dtype}: {explain(wide(got), wide(should), {})}"
                        findings.append(Finding(side, "its float64 answer", f"{method} {k}", text, mismatch))
    if not worst:
        verdict: Verdict = "refused" if refusals else "not applicable"
        return CheckResult("low precision", verdict, "; ".join(refusals) or "no half precision to check")
    notes = [f"{dtype} within {epsilons:.2g} of its epsilons" for dtype, epsilons in worst.items()]
    return judged("low precision", findings, "; ".join(dict.fromkeys([*notes, *refusals])))


class Shaped(NamedTuple):
    """Inputs in some shape, and what an operator should give for them, with cotangents of 1."""

    name: str
    inputs: Arrays
    values: Arrays
    gradients: Arrays


def shapes(case: Case) -> CheckResult:
    """Scalars, empty, strided and broadcast arguments: the same numbers, in the shape that they should have."""
    findings: list[Finding] = []
    refusals: list[str] = []
    for side, recorded in case.sides:
        operator = getattr(recorded, "operator", recorded)
        for name, inputs, should_values, should_gradients in shaped(case, recorded):
            ones = tuple(np.ones_like(y) for y in should_values if is_inexact(y))
            for method, groups, expected in (
                ("value", (inputs,), should_values),
                ("vjp", (inputs, ones), should_gradients),
            ):
                try:
                    results = asked(operator, f"{side}, {name}", method, *groups)
                except RefusalError as refusal:
                    refusals.append(str(refusal))
                    continue
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


def shaped(case: Case, operator: Operator) -> Iterator[Shaped]:
    """The shapes to try, of numbers whose results are known from one plain array of them."""
    if not case.elementwise:
        ones = tuple(np.ones_like(v) for v in case.cotangents)
        yield Shaped(
            "strided", tuple(map(strided, case.inputs)), operator.value(case.inputs), operator.vjp(case.inputs, ones)
        )
        return
    shape = np.broadcast_shapes(*(x.shape for x in case.inputs))
    flat = tuple(np.resize(np.broadcast_to(x, shape), 24) for x in case.inputs)
    outputs = operator.value(flat)
    slopes = operator.vjp(flat, tuple(np.ones_like(y) for y in outputs if is_inexact(y)))

    def each(function: Callable[[np.ndarray], np.ndarray]) -> tuple[Arrays, Arrays, Arrays]:
        return tuple(map(function, flat)), tuple(map(function, outputs)), tuple(map(function, slopes))

    yield Shaped("scalar", *each(lambda x: np.asarray(x[0])))
    yield Shaped("empty", *each(lambda x: x[:0].reshape(2, 0)))
    yield Shaped("strided", *each(strided))
    yield Shaped("transposed", *each(lambda x: x.reshape(4, 6).T))
    yield Shaped("repeated", *each(lambda x: np.lib.stride_tricks.as_strided(x[:1].copy(), (5,), (0,))))
    for position in range(len(flat) if len(flat) > 1 else 0):
        # One argument is a column, and the others are rows: in the table of results each is repeated.
        inputs = tuple(x[:4].reshape(4, 1) if i == position else x[:6].reshape(1, 6) for i, x in enumerate(flat))
        table = tuple(np.broadcast_to(x, (4, 6)).copy() for x in inputs)
        values = operator.value(table)
        gradients = operator.vjp(table, tuple(np.ones_like(y) for y in values if is_inexact(y)))
        summed = tuple(sum_to_shape(g, inputs[i].shape) for i, g in zip(case.arguments, gradients, strict=True))
        yield Shaped(f"broadcast along argument {position}", inputs, values, summed)


def strided(x: np.ndarray) -> np.ndarray:
    """The same numbers, not side by side in memory."""
    apart = np.zeros((*x.shape, 2), x.dtype)
    apart[..., 0] = x
    return apart[..., 0]


def special_values(case: Case) -> CheckResult:
    """Where numbers end, and at the points that the user names: both sides have the same, NaN as well."""
    findings: list[Finding] = []
    for precision in PRECISIONS:
        values = specials(case, precision)
        for position in case.arguments:
            for inputs in with_specials(case, position, values):
                try:
                    findings += special_differences(case, inputs, position, precision)
                except RefusalError as refusal:
                    return CheckResult("special values", "refused", str(refusal))
    return judged("special values", findings, f"alike at {', '.join(f'{x:.3g}' for x in values)}")


def specials(case: Case, precision: str) -> np.ndarray:
    """
    Zeros, subnormal, smallest normal, huge and infinite numbers of both signs, NaN, and the user's points.

    A function that is not elementwise gets no subnormal and no huge ones: its intermediate results overflow elsewhere
    in another right algorithm.
    """
    info = np.finfo(precision)
    ends = [0.0, 3 * float(info.smallest_subnormal), float(info.tiny), float(info.max) / 2, np.inf]
    if not case.elementwise:
        ends = [0.0, np.inf]
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
    ones = tuple(np.ones(y.shape, wide(y).dtype) for y in values if is_inexact(y))
    undefined = np.any([np.isnan(wide(y)) for y in values if y.shape == inputs[position].shape], axis=0)
    if not case.elementwise:
        undefined = np.array(any(np.isnan(wide(y)).any() for y in values))
    for method, groups in (("value", (inputs,)), ("vjp", (inputs, ones))):
        quantity = Quantity(method, method, groups)
        given = tuple(at_precision(group, precision) for group in groups)
        expected = asked(case.reference, "the reference", method, *given)
        got = asked(case.port, "the port", method, *given)
        for k, (a, b, size) in enumerate(zip(got, expected, case.size(quantity), strict=True)):
            if a.shape != b.shape:
                continue
            ignored = flushed(case, inputs, position, precision, a) | flushed(case, inputs, position, precision, b)
            ignored |= undefined & (method == "vjp")  # where there is no value there is no derivative
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


def rule(case: Case) -> CheckResult:
    """The hand-written rule is what runs: multiplied, it multiplies the gradient, in each mode as in eager mode."""
    notes: list[str] = []
    findings: list[Finding] = []
    for side, operator in case.sides:
        try:
            names = operator.rules(case.inputs)
        except Exception as error:
            return CheckResult("rule", "refused", f"{side}: {type(error).__name__}: {error}")
        if not names:
            notes.append(f"{side} has no hand-written rule")
            continue
        notes.append(f"{side}'s {', '.join(names)}")
        batch = lambda arrays: tuple(np.stack([x, x]) for x in arrays)  # noqa: E731
        plain = operator.vjp(case.inputs, case.cotangents)
        marked = operator.scaled(MARKER).vjp(case.inputs, case.cotangents)
        if close(plain, marked):
            notes.append("multiplied, changes no gradient")
            continue
        ways: dict[str, tuple[Operator, Callable[[Arrays], Arrays]]] = {
            **{name: (other, tuple) for name, other in operator.transformed().items()},
            "vmap": (operator.batched(), batch),
            **({name: (other, tuple) for name, other in operator.compiled().items()} if case.compiled else {}),
        }
        ran = ["eager"]
        for way, (other, shape) in ways.items():
            groups = shape(case.inputs), shape(case.cotangents)
            try:
                without = asked(other, side, "vjp", *groups)
                result = asked(other.scaled(MARKER), side, "vjp", *groups)
            except RefusalError:
                continue
            if close(result, shape(marked)):
                ran.append(way)
            elif close(without, shape(plain)):
                notes.append(f"dropped by {way}, which gives the same without it")
            else:
                text = f"{way} drops the hand-written rule, and gives another gradient without it"
                findings.append(Finding(side, "eager", "gradients", text))
        notes.append(f"ran in {', '.join(ran)}")
    if all("no hand-written rule" in note for note in notes):
        return CheckResult("rule", "not applicable", "no side has a hand-written rule")
    return judged("rule", findings, "; ".join(notes))


def close(a: Arrays, b: Arrays) -> bool:
    """Whether two results are the same but for rounding."""
    return all(
        x.shape == y.shape and bool(np.allclose(wide(x), wide(y), rtol=1e-6, atol=0, equal_nan=True))
        for x, y in zip(a, b, strict=True)
    )
