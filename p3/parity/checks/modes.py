"""Other ways of running an operator: they give what eager mode gives, by the hand-written rule."""

from collections.abc import Callable, Iterator

import numpy as np

from p3.parity.case import Case, allowed
from p3.parity.checks.domain import raised
from p3.parity.function import Arrays, Function, NoMeaningError, is_inexact, wide
from p3.parity.mismatch import Pair, explain
from p3.parity.place import EAGER, Place
from p3.parity.quantity import Quantity
from p3.parity.recorded import Recorded, RefusalError, asked, refusal_of
from p3.parity.result import CheckResult, Finding, Refusal, judged, refused
from p3.parity.truth import Truth
from p3.tolerance import MARKED

DERIVATIVES = ("vjp", "jvp", "vjp of vjp", "jvp of vjp")
MISSING = "missing"
BYPASSED = "the reference's rule does not run in {}, and its derivative is another there"
MARKER = 4.0  # a power of two, so that multiplying by it rounds nothing


def transformed(case: Case) -> CheckResult:
    """The framework's other transforms give what eager mode gives."""
    return modes(case, "transformed", lambda operator: transforms(case, operator), ("value", *DERIVATIVES))


def compiled(case: Case) -> CheckResult:
    """
    Compiled, each side gives what it gives eagerly.

    PyTorch's compiled torch.func differentiates the forward method of an `autograd.Function`. That the reference's rule
    does not run there is told, and fails no port.
    """
    result = modes(case, "compiled", lambda operator: dict(operator.compiled()), ("value", "vjp", "vjp of vjp"))
    if not any(f.is_wrong and f.place.side == "reference" for f in result.findings):
        return result
    bypassed = [
        mode for mode, ran in rule_runs(case, "reference", case.reference, "vjp", case.cotangents) if ran == MISSING
    ]
    kept = [f for f in result.findings if f.place.side == "port" or f.place.mode not in bypassed]
    return judged("compiled", kept, f"the rest is as eager; {BYPASSED.format(', '.join(bypassed))}", result.refusals)


def transforms(case: Case, operator: Function) -> dict[str, Function]:
    """The framework's other transforms, without those that a rule must be linear for, where it is not meant to be."""
    return {mode: other for mode, other in operator.transformed().items() if case.linear or not other.needs_linear}


def modes(
    case: Case, name: str, found: Callable[[Function], dict[str, Function]], names: tuple[str, ...]
) -> CheckResult:
    """That each side gives in other modes what it gives eagerly."""
    findings: list[Finding] = []
    done: list[str] = []
    refusals: list[Refusal] = []
    refusing: set[str] = set()  # the quantities that the reference raises for in some mode
    quantities = list(sized(case, names))
    for side, operator in case.sides:
        for mode, other in found(operator).items():
            for quantity, sizes in quantities:
                here = Place(side, quantity.name, mode=mode)
                try:
                    result = asked(other, here, *quantity.groups)
                except RefusalError as refusal:
                    if isinstance(refusal.__cause__, NoMeaningError):
                        continue
                    refusals.append(refusal.refusal)
                    if side == "reference":
                        refusing.add(quantity.name)
                    # Who calls the framework's own parallel training has asked for it; jit is for every function.
                    is_optional = name == "transformed" and quantity.name == "value"
                    if side == "port" and not (refusal.is_meant or is_optional or quantity.name in refusing):
                        text = f"it raises {refusal.refusal.error}"
                        findings.append(Finding(here, EAGER, text, refusal=refusal.refusal))
                    if quantity.name == "value":
                        break  # where the function itself cannot be called there is no rule to judge
                    continue
                done.append(mode)
                known = eager_or_true(case, quantity, operator)
                if known is None:
                    continue
                places = case.places(quantity, side)
                for k, (place, got, should) in enumerate(zip(places, result, known.values, strict=True)):
                    mismatch = None
                    if got.shape == should.shape:
                        pair = Pair(got, should, sizes[k], allowed(known.errors[k]))
                        if not pair.beyond("float64").any():
                            continue
                        own = case.own(quantity, operator, k)
                        mismatch = case.climb(quantity, k, {"float64": pair}, [operator], own)
                    if mismatch is not None or got.shape != should.shape:
                        text = explain(got, should, {})
                        findings.append(Finding(place._replace(mode=mode), EAGER, text, mismatch, quantity=quantity))
    if not done and refusals and not findings:
        return refused(name, refusals)
    if not done and not findings:
        return CheckResult(name, "not applicable", "neither framework has other modes")
    return judged(name, findings, f"{', '.join(dict.fromkeys(done))}: as eager", refusals)


def sized(case: Case, names: tuple[str, ...]) -> Iterator[tuple[Quantity, Arrays]]:
    """The quantities and their sizes, without those that both sides refuse eagerly, which their own checks tell."""
    for name in names if case.cotangents else names[:1]:  # the value
        quantity = case.quantity(name)
        try:
            sizes = case.size(quantity)
        except RefusalError:
            continue
        yield quantity, sizes


def eager_or_true(case: Case, quantity: Quantity, operator: Recorded) -> Truth | None:
    """What a side gives eagerly; where it refuses, what is true, if that is known everywhere."""
    try:
        values = asked(operator, Place(operator.side, quantity.name), *quantity.groups)
        return Truth(values, tuple(np.zeros(y.shape) for y in values), EAGER)
    except RefusalError:
        known = case.true(quantity, operator) if case.is_derivative else None
        return known if known is not None and all(np.isfinite(error).all() for error in known.errors) else None


def batched(case: Case) -> CheckResult:
    """A batch of all arguments, or of each alone, by the framework's vmap, is what a loop over it gives."""
    everything = tuple(range(len(case.inputs)))
    findings: list[Finding] = []
    refusals: list[Refusal] = []
    for arguments in (everything, *((i,) for i in everything if len(everything) > 1 and i not in case.keys)):
        batch_of(case, arguments, findings, refusals)
    if refusals and not findings and len(refusals) >= 2:
        return refused("batched", refusals)
    return judged("batched", findings, "vmap is a loop", refusals)


def batch_of(case: Case, arguments: tuple[int, ...], findings: list[Finding], refusals: list[Refusal]) -> None:
    """The same of a batch of some arguments, the others being the same for all of it."""
    random = case.random()
    batch = [case.inputs]
    for _ in range(2):
        others = case.within(
            tuple(random.permutation(x.ravel()).reshape(x.shape) if is_inexact(x) else x for x in case.inputs)
        )
        batch.append(tuple(others[i] if i in arguments else x for i, x in enumerate(case.inputs)))
    stacked = tuple(
        np.stack(arrays) if i in arguments else arrays[0] for i, arrays in enumerate(zip(*batch, strict=True))
    )
    cotangents = tuple(np.stack([v] * len(batch)) for v in case.cotangents)
    alone = len(arguments) < len(case.inputs)
    refusing: set[str] = set()  # the quantities that the reference raises for
    for side, operator in case.sides:
        here = Place(side, "value", mode="vmap")
        if alone:
            here = here._replace(special="batched alone", of=case.structure.paths[arguments[0]])
        try:
            together_by = operator.batched(arguments)
        except NoMeaningError as error:
            refusals.append(refusal_of(error, here).refusal)
            continue
        for name, groups in (("value", ()), ("vjp", (case.cotangents,)))[: 2 if case.cotangents else 1]:
            here = here._replace(quantity=name)
            try:
                together = asked(together_by, here, stacked, *((cotangents,) if name == "vjp" else ()))
            except RefusalError as refusal:
                refusals.append(refusal.refusal)
                if side == "reference":
                    refusing.add(name)
                elif not (refusal.is_meant or name in refusing):
                    findings.append(raised(refusal))
                continue
            try:
                one_by_one = [asked(operator, Place(side, name), inputs, *groups) for inputs in batch]
            except RefusalError as refusal:
                refusals.append(refusal.refusal)
                continue
            quantity = case.quantity(name)
            places = case.places(quantity, side)
            for k, (place, result) in enumerate(zip(places, together, strict=True)):
                expected = np.stack([one[k] for one in one_by_one])
                mismatch = None
                if result.shape == expected.shape:
                    if all(case.is_near(got, one[k], "float64") for got, one in zip(result, one_by_one, strict=True)):
                        continue
                    sizes = np.stack([case.size(Quantity(name, (inputs, *groups)))[k] for inputs in batch])
                    pair = Pair(result, expected, sizes)
                    own = case.own(quantity, operator, k)
                    mismatch = case.climb(quantity, k, {"float64": pair}, [operator], own)
                if result.shape != expected.shape or mismatch is not None:
                    place = here._replace(path=place.path, by=place.by)
                    findings.append(Finding(place, "a loop", explain(result, expected, {}), mismatch))


def rule(case: Case) -> CheckResult:
    """The hand-written rule is what runs: multiplied, it multiplies the gradient, in each mode as in eager mode."""
    notes: list[str] = []
    findings: list[Finding] = []
    ruled = False
    for side, operator in case.sides:
        try:
            names = operator.rules(case.inputs)
        except (Exception, SystemExit) as error:  # whatever a framework or a function raises, and where it exits
            return refused("rule", [refusal_of(error, Place(side, "value")).refusal])
        ruled = ruled or bool(names)
        notes.append(f"the {side}'s {', '.join(names)}" if names else f"the {side} has no hand-written rule")
        for name, others in (("vjp", case.cotangents), ("jvp", case.tangents)) if names else ():
            verdicts = dict(rule_runs(case, side, operator, name, others))
            ran = [mode for mode, verdict in verdicts.items() if verdict == "ran"]
            for mode, verdict in verdicts.items():
                if verdict == "dropped":
                    notes.append(f"{name}: dropped by {mode}, which gives the same without it")
                if verdict == MISSING and side == "reference":
                    notes.append(BYPASSED.format(mode))
                elif verdict == MISSING:
                    text = "it is not by the hand-written rule, and is another without it"
                    findings.append(Finding(Place(side, name, mode=mode), EAGER, text))
            if not verdicts and name == "vjp":
                notes.append("vjp: the rule has no part in the gradient")
            if ran:
                notes.append(f"{name}: ran in {', '.join(ran)}")
    if not ruled:
        return CheckResult("rule", "not applicable", "no side has a hand-written rule")
    return judged("rule", findings, "; ".join(notes))


def rule_runs(case: Case, side: str, operator: Function, name: str, others: Arrays) -> Iterator[tuple[str, str]]:
    """
    For each mode, what became of the hand-written rule of a side's vjp or jvp.

    "ran"; "dropped", where the derivative is the same without it; or "missing", where it is another. Nothing of modes
    that are refused, nor of any where the rule has no part in the derivative eagerly.
    """
    groups = case.inputs, others
    here = Place(side, name)
    try:
        plain = asked(operator, here, *groups)
        marked = asked(operator.scaled(MARKER), here, *groups)
    except RefusalError:
        return
    if close(plain, marked):
        return
    yield EAGER, "ran"
    modes = {
        **transforms(case, operator),
        **by_vmap(case, operator),
        **(operator.compiled() if case.compiled else {}),
    }
    for mode, other in modes.items():

        def shape(arrays: Arrays, repeat: bool = mode == "vmap") -> Arrays:
            return tuple(np.stack([x, x]) for x in arrays) if repeat else arrays

        try:
            result = asked(other.scaled(MARKER), here, *map(shape, groups))
            ran = close(result, shape(marked))
            without = result if ran else asked(other, here, *map(shape, groups))
        except RefusalError:
            continue
        yield mode, "ran" if ran else "dropped" if close(without, shape(plain)) else MISSING


def by_vmap(case: Case, operator: Function) -> dict[str, Function]:
    """By vmap of all arguments, in a framework that has it."""
    try:
        return {"vmap": operator.batched(tuple(range(len(case.inputs))))}
    except NoMeaningError:
        return {}


def close(a: Arrays, b: Arrays) -> bool:
    """Whether two results are the same but for rounding."""
    return all(
        x.shape == y.shape and bool(np.allclose(wide(x), wide(y), rtol=MARKED.value, atol=0, equal_nan=True))
        for x, y in zip(a, b, strict=True)
    )
