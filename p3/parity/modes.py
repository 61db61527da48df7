"""Other ways of running an operator: they give what eager mode gives, by the hand-written rule."""

from collections.abc import Callable, Iterator

import numpy as np

from p3.parity.case import Case, allowed
from p3.parity.function import Arrays, Function, NoMeaningError, is_inexact, wide
from p3.parity.mismatch import Pair, climb, explain
from p3.parity.quantity import Quantity
from p3.parity.recorded import Recorded, RefusalError, asked, refusal_of
from p3.parity.result import CheckResult, Finding, Refusal, judged, refused
from p3.parity.truth import Truth

DERIVATIVES = ("vjp", "jvp", "vjp of vjp", "jvp of vjp")
MARKER = 4.0  # a power of two, so that multiplying by it rounds nothing
MARKER_TOLERANCE = 1e-6  # far from rounding in float64, and far from a factor of 4


def transformed(case: Case) -> CheckResult:
    """The framework's other transforms give what eager mode gives."""
    return modes(case, "transformed", lambda operator: dict(operator.transformed()), ("value", *DERIVATIVES))


def compiled(case: Case) -> CheckResult:
    """Compiled, each side gives what it gives eagerly."""
    return modes(case, "compiled", lambda operator: dict(operator.compiled()), ("value", "vjp", "vjp of vjp"))


def modes(
    case: Case, name: str, found: Callable[[Function], dict[str, Function]], methods: tuple[str, ...]
) -> CheckResult:
    """That each side gives in other modes what it gives eagerly."""
    findings: list[Finding] = []
    done: list[str] = []
    refusals: list[Refusal] = []
    quantities = list(sized(case, methods))
    for side, operator in case.sides:
        for mode, other in found(operator).items():
            done.append(mode)
            for quantity, sizes in quantities:
                try:
                    result = asked(other, side, quantity.method, *quantity.groups, mode=mode)
                except RefusalError as refusal:
                    if isinstance(refusal.__cause__, NoMeaningError):
                        continue
                    refusals.append(refusal.refusal)
                    if quantity.name == "value":
                        break  # where the function itself cannot be called there is no rule to judge
                    if name == "transformed" and side == "the port" and not refusal.is_meant:
                        findings.append(Finding(side, "eager", quantity.name, f"it raises: {refusal}"))
                    continue
                known = eager_or_true(case, quantity, operator, side)
                if known is None:
                    continue
                for part, path, got, should, error, size in zip(
                    case.parts(quantity),
                    case.paths(quantity),
                    result,
                    known.values,
                    known.errors,
                    sizes,
                    strict=True,
                ):
                    if got.shape != should.shape:
                        text = f"{quantity.name} by {mode}: {explain(got, should, {})}"
                        findings.append(Finding(side, "eager", part, text, where=mode, quantity=quantity, path=path))
                        continue
                    mismatch = climb({"float64": Pair(got, should, size, allowed(error))})
                    if mismatch is not None:
                        text = f"{quantity.name} by {mode}: {explain(got, should, {})}"
                        findings.append(
                            Finding(side, "eager", part, text, mismatch, where=mode, quantity=quantity, path=path)
                        )
    if not done:
        return CheckResult(name, "not applicable", "neither framework has other modes")
    return judged(name, findings, f"{', '.join(dict.fromkeys(done))}: as eager", refusals)


def sized(case: Case, methods: tuple[str, ...]) -> Iterator[tuple[Quantity, Arrays]]:
    """The quantities and their sizes, without those that both sides refuse eagerly, which their own checks tell."""
    for method in methods if case.cotangents else methods[:1]:  # the value
        quantity = case.quantity(method)
        try:
            sizes = case.size(quantity)
        except RefusalError:
            continue
        yield quantity, sizes


def eager_or_true(case: Case, quantity: Quantity, operator: Recorded, side: str) -> Truth | None:
    """What a side gives eagerly; where it refuses, what is true, if that is known everywhere."""
    try:
        values = asked(operator, side, quantity.method, *quantity.groups)
        return Truth(values, tuple(np.zeros(y.shape) for y in values), "eager")
    except RefusalError:
        known = case.true(quantity, operator)
        return known if known is not None and all(np.isfinite(error).all() for error in known.errors) else None


def batched(case: Case) -> CheckResult:
    """A batch of all arguments, or of each alone, by the framework's vmap, is what a loop over it gives."""
    everything = tuple(range(len(case.inputs)))
    findings: list[Finding] = []
    refusals: list[Refusal] = []
    for arguments in (everything, *((i,) for i in everything if len(everything) > 1)):
        batch_of(case, arguments, findings, refusals)
    if refusals and not findings and len(refusals) >= 2:
        return refused("batched", refusals)
    return judged("batched", findings, "vmap is a loop", refusals)


def batch_of(case: Case, arguments: tuple[int, ...], findings: list[Finding], refusals: list[Refusal]) -> None:
    """The same of a batch of some arguments, the others being the same for all of it."""
    random = case.random()
    batch = [case.inputs] + [
        tuple(
            random.permutation(x.ravel()).reshape(x.shape) if is_inexact(x) and i in arguments else x
            for i, x in enumerate(case.inputs)
        )
        for _ in range(2)
    ]
    stacked = tuple(
        np.stack(arrays) if i in arguments else arrays[0] for i, arrays in enumerate(zip(*batch, strict=True))
    )
    cotangents = tuple(np.stack([v] * len(batch)) for v in case.cotangents)
    of = "" if len(arguments) == len(case.inputs) else f" of argument {arguments[0]}"
    for side, operator in case.sides:
        try:
            together_by = operator.batched(arguments)
        except NoMeaningError as error:
            refusals.append(refusal_of(error, side, f"vmap{of}", "value").refusal)
            continue
        for method, groups in (("value", ()), ("vjp", (case.cotangents,)))[: 2 if case.cotangents else 1]:
            try:
                together = asked(
                    together_by,
                    side,
                    method,
                    stacked,
                    *((cotangents,) if method == "vjp" else ()),
                    mode=f"vmap{of}",
                )
                one_by_one = [asked(operator, side, method, inputs, *groups) for inputs in batch]
            except RefusalError as refusal:
                refusals.append(refusal.refusal)
                continue
            for k, result in enumerate(together):
                expected = np.stack([one[k] for one in one_by_one])
                part = f"{method} {k}"
                mismatch = None
                if result.shape == expected.shape:
                    sizes = np.stack([case.size(Quantity(method, method, (inputs, *groups)))[k] for inputs in batch])
                    mismatch = climb({"float64": Pair(result, expected, sizes)})
                if result.shape != expected.shape or mismatch is not None:
                    text = f"under vmap{of} {explain(result, expected, {})}"
                    findings.append(
                        Finding(
                            side,
                            "a loop",
                            part,
                            text,
                            mismatch,
                            where=f"vmap{of}",
                            path=case.paths(case.quantity(method))[k],
                        )
                    )


def rule(case: Case) -> CheckResult:
    """The hand-written rule is what runs: multiplied, it multiplies the gradient, in each mode as in eager mode."""
    notes: list[str] = []
    findings: list[Finding] = []
    for side, operator in case.sides:
        try:
            names = operator.rules(case.inputs)
        except (Exception, SystemExit) as error:  # whatever a framework or a function raises, and where it exits
            return CheckResult("rule", "refused", f"{side}: {type(error).__name__}: {error}")
        notes.append(f"{side}'s {', '.join(names)}" if names else f"{side} has no hand-written rule")
        for method, others in (("vjp", case.cotangents), ("jvp", case.tangents)) if names else ():
            verdicts = dict(rule_runs(case, side, operator, method, others))
            ran = [way for way, verdict in verdicts.items() if verdict == "ran"]
            for way, verdict in verdicts.items():
                if verdict == "dropped":
                    notes.append(f"{method}: dropped by {way}, which gives the same without it")
                if verdict == "missing":
                    text = f"{method} by {way} is not by the hand-written rule, and is another without it"
                    findings.append(Finding(side, "eager", method, text))
            if not verdicts and method == "vjp":
                notes.append("vjp: the rule has no part in the gradient")
            if ran:
                notes.append(f"{method}: ran in {', '.join(ran)}")
    if all("no hand-written rule" in note for note in notes):
        return CheckResult("rule", "not applicable", "no side has a hand-written rule")
    return judged("rule", findings, "; ".join(notes))


def rule_runs(case: Case, side: str, operator: Function, method: str, others: Arrays) -> Iterator[tuple[str, str]]:
    """
    For each way of running an operator, what became of its hand-written rule.

    "ran"; "dropped", where the derivative is the same without it; or "missing", where it is another. Nothing of ways
    that are refused, nor of any where the rule has no part in the derivative eagerly.
    """
    groups = case.inputs, others
    try:
        plain = asked(operator, side, method, *groups)
        marked = asked(operator.scaled(MARKER), side, method, *groups)
    except RefusalError:
        return
    if close(plain, marked):
        return
    yield "eager", "ran"
    ways = {
        **operator.transformed(),
        **batched_ways(case, operator),
        **(operator.compiled() if case.compiled else {}),
    }
    for way, other in ways.items():

        def shape(arrays: Arrays, repeat: bool = way == "vmap") -> Arrays:
            return tuple(np.stack([x, x]) for x in arrays) if repeat else arrays

        try:
            result = asked(other.scaled(MARKER), side, method, *map(shape, groups))
            ran = close(result, shape(marked))
            without = result if ran else asked(other, side, method, *map(shape, groups))
        except RefusalError:
            continue
        yield way, "ran" if ran else "dropped" if close(without, shape(plain)) else "missing"


def batched_ways(case: Case, operator: Function) -> dict[str, Function]:
    """By vmap of all arguments, in a framework that has it."""
    try:
        return {"vmap": operator.batched(tuple(range(len(case.inputs))))}
    except NoMeaningError:
        return {}


def close(a: Arrays, b: Arrays) -> bool:
    """Whether two results are the same but for rounding."""
    return all(
        x.shape == y.shape and bool(np.allclose(wide(x), wide(y), rtol=MARKER_TOLERANCE, atol=0, equal_nan=True))
        for x, y in zip(a, b, strict=True)
    )
