"""`check_training`: whether two trainings do the same, and the first step and quantity that differs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain, count, islice
from typing import Any

import numpy as np

from p3.errors import InputError
from p3.parity.function import wide
from p3.parity.mismatch import Mismatch, Pair, explain, judge, resemblance
from p3.parity.models.checker import Progress, check_model
from p3.parity.models.equality import Comparison, compared
from p3.parity.models.findings import fault_of
from p3.parity.models.links import Link, Match, Parameter
from p3.parity.trainings.case import ORDER, PRECISIONS, Key, Side, Steps, TrainingCase
from p3.parity.trainings.findings import Accepted, Finding, Findings, by_rule, fraction, measured
from p3.parity.trainings.pairing import Pairing
from p3.parity.trainings.report import QuantityRow, Trace, TrainingReport
from p3.parity.trainings.training import COUNT, PARAMETER, STATE, Rule, Training
from p3.parity.tree import take_apart
from p3.tolerance import ENVELOPE, PARITY, STEP_DATA

STEPS = 100  # how many steps are compared by default
POWER = (0, 1, 2, 3, 9, 29, 99, 299)  # the steps that are also taken by every rule, to see which would have shown


def check_training(
    reference: Training,
    port: Training,
    batches: Iterable[Any] | Mapping[str, Iterable[Any]],
    *,
    steps: int | None = None,
    match: Mapping[str, Any] | Match | None = None,
    accept: Sequence[Any] = (),
    progress: Progress | None = None,
) -> TrainingReport:
    """As `p3.check_training`, of trainings in two frameworks."""
    with np.errstate(all="ignore"):
        return Check(reference, port, batches, steps, match, accept, progress).run()


class Check:
    """A check of two trainings."""

    def __init__(
        self,
        reference: Training,
        port: Training,
        batches: Iterable[Any] | Mapping[str, Iterable[Any]],
        steps: int | None,
        match: Mapping[str, Any] | Match | None,
        accept: Sequence[Any],
        progress: Progress | None,
    ) -> None:
        """
        Take the first batch, and match the parameters.

        Raises
        ------
        InputError
            Something is not given as it should be.
        """
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise InputError(f"steps= is {steps!r}; give a number of steps, 1 or more")
        self.reference, self.port, self.progress = reference, port, progress
        self.steps = steps
        self.batches = pairs_of(batches, reference.is_torch)
        self.first = next(self.batches, None)
        if self.first is None:
            raise InputError("batches= has no batch; give an iterable of batches, one for each step")
        self.rules, self.accepted = accepted(accept, reference if reference.is_torch else port)
        self.notes: list[str] = []
        batch = self.first[0]
        runs = {name: side.begin("float32") for name, side in (("reference", reference), ("port", port))}
        for run in runs.values():
            run.check(batch)
        self.report = check_model(reference.as_module(), port.as_module(), (batch,), match=match)
        self.pairing = self.paired(self.report.match)
        ours, theirs = (
            Side(side, {"float64": side.begin("float64"), "float32": runs[name]})
            for name, side in (("reference", reference), ("port", port))
        )
        self.case = TrainingCase(ours, theirs, self.pairing, self.report.mixed, self.rules)
        self.free = port.begin("float32")
        self.findings = Findings(self.case, self.accepted)

    def paired(self, match: Match) -> Pairing:
        """
        The arrays that correspond.

        Raises
        ------
        InputError
            A side has a parameter that the other one has not.
        """
        for name, only in (("PyTorch", match.torch_only), ("JAX", match.jax_only)):
            if only:
                other = "JAX" if name == "PyTorch" else "PyTorch"
                raise InputError(
                    f"only {name} has {', '.join(only[:4])}{' and more' * (len(only) > 4)}; give {other} the same "
                    "parameters, or match= where they have other names"
                )
        if not match.links:
            raise InputError("no parameter of the two is matched; give match=, from PyTorch's paths to the JAX paths")
        held = [side.as_module().parameters({}) for side in (self.reference, self.port)]
        (ours, our_states), (theirs, their_states) = (
            tuple(frozenset(x.path for x in side if x.is_state == is_state) for is_state in (False, True))
            for side in held
        )
        shapes = {x.path: x.array.shape for x in held[1]}
        return Pairing(match, self.reference.is_torch, (ours, theirs), (our_states, their_states), shapes)

    def run(self) -> TrainingReport:
        """Take all steps."""
        wanted = self.steps or STEPS
        self.findings.found += self.start()
        self.findings.add_model(0, self.report)
        if any(finding.quantity == "parameter" for finding in self.findings.found):
            self.free.write(self.pairing.state_to_port(self.case.state["float32"]))
        worst: dict[str, dict[str, tuple[float, int]]] = {}
        losses: tuple[list[float], list[float]] = ([], [])
        apart: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
        drift: list[float] = []
        rounding: list[float] = []
        power = Power(self.case)
        done = 0
        assert self.first is not None
        for step, (batch, other) in enumerate(islice(chain([self.first], self.batches), wanted)):
            if self.progress is not None:
                self.progress(f"step {step}", step, wanted)
            self.see_data(step, batch, other)
            taken = self.case.step(batch)
            loss = float(taken["float32"][0].forward.loss)
            if not np.isfinite(loss):
                if not step:
                    raise InputError(
                        f"the reference's loss is {loss:g} at step 0; give parameters and batches where it is finite"
                    )
                self.notes.append(f"The reference's loss is {loss:g} at step {step}; the steps before it are compared.")
                break
            figures = self.findings.see(step, batch, taken)
            for key, by_precision in figures.items():
                row = worst.setdefault(key.quantity, {})
                for precision, value in by_precision.items():
                    if value >= row.get(precision, (-1.0, 0))[0]:
                        row[precision] = value, step
            for precision in PRECISIONS:
                values = [each.get(precision, 0.0) for each in figures.values()]
                apart[precision].append(max(values, default=0.0))
            free_loss = float(self.free.step(batch, self.rules))
            losses[0].append(loss)
            losses[1].append(free_loss)
            drift.append(self.distance())
            rounding.append(distance(self.case.state["float32"][PARAMETER], self.case.state["float64"][PARAMETER]))
            if step in POWER:
                power.see(step, taken)
            done = step + 1
        if done < wanted and self.steps is not None and not self.notes:
            raise InputError(f"batches= has {done} batches, and steps={self.steps}; give more, or steps={done}")
        trace = Trace(
            (np.array(losses[0]), np.array(losses[1])),
            {precision: np.array(x) for precision, x in apart.items()},
            np.array(drift),
            np.array(rounding),
        )
        quantities = sorted(worst, key=ORDER.index)
        findings = self.findings.all
        return TrainingReport(
            self.reference.name,
            self.reference.framework,
            self.port.name,
            self.port.framework,
            done,
            findings,
            tuple(
                QuantityRow(
                    name,
                    {precision: value for precision, (value, _) in worst[name].items()},
                    max(worst[name].values())[1],
                )
                for name in quantities
            ),
            trace,
            free_run(trace, all(finding.kind != "semantic" for finding in findings)),
            len(power.shown),
            tuple(rule.text for rule in power.unshown),
            tuple(self.told()),
            tuple([*self.notes, *self.unmapped()]),
        )

    def start(self) -> Iterator[Finding]:
        """The parameters that differ before the first step."""
        held = [side.as_module().parameters({}) for side in (self.reference, self.port)]
        torch, jax = held if self.reference.is_torch else held[::-1]
        arrays = [{x.path: x for x in side} for side in (torch, jax)]
        differing: list[tuple[str, str, Mismatch | None]] = []
        for found in compared(self.pairing.match, torch, jax):
            name = self.pairing.name(found.link)
            if not found.is_equal:
                differing.append((name, self.start_text(found, arrays), self.start_mismatch(found.link, arrays)))
                continue
            dtypes = [arrays[0][found.link.torch[0].path].array.dtype, arrays[1][found.link.jax.path].array.dtype]
            if dtypes[0] != dtypes[1]:
                ours, theirs = dtypes if self.reference.is_torch else dtypes[::-1]
                differing.append((name, f"it is {theirs} in the port, and {ours} in the reference", None))
        if differing:
            (path, text, mismatch), *others = differing
            also = tuple(Key("parameter", name) for name, *_ in others)
            yield Finding(0, "parameter", path, "semantic", text, "", mismatch, also)

    def start_pair(self, link: Link, arrays: Sequence[Mapping[str, Parameter]]) -> tuple[np.ndarray, np.ndarray]:
        """The port's and the reference's array of a link, before the first step."""
        ours = wide(link.to_jax([arrays[0][part.path].array for part in link.torch]))
        theirs = wide(link.jax.of(arrays[1][link.jax.path].array))
        return (theirs, ours) if self.reference.is_torch else (ours, theirs)

    def start_mismatch(self, link: Link, arrays: Sequence[Mapping[str, Parameter]]) -> Mismatch | None:
        """How far the arrays of a link are apart."""
        got, expected = self.start_pair(link, arrays)
        size = np.asarray(float(np.abs(expected).max(initial=0.0)))
        return judge({"float32": measured(Pair(got, expected, size), "float32")})

    def start_text(self, found: Comparison, arrays: Sequence[Mapping[str, Parameter]]) -> str:
        """What a parameter looks like that does not start with the reference's numbers."""
        if found.fault != "values":
            return fault_of(found).text
        got, expected = self.start_pair(found.link, arrays)
        looks = resemblance(got, expected, {})
        if looks.kind not in ("size", "elements"):
            return looks.text
        return (
            f"other numbers, with standard deviation {got.std():.3g} for {expected.std():.3g}; write the reference's "
            "into the port with p3.convert"
        )

    def see_data(self, step: int, batch: Any, other: Any) -> None:
        """Compare the batches of a step, where each side has its own."""
        if other is batch or any(finding.quantity == "data" for finding in self.findings.found):
            return
        (ours, structure), (theirs, others) = (take_apart((x,), lambda path, a: np.asarray(a)) for x in (batch, other))
        names = [path.replace("inputs[0]", "batch", 1) for path in structure.paths]
        if structure.paths != others.paths:
            what = f"it has {', '.join(others.paths) or 'no array'} for {', '.join(structure.paths)}"
            self.findings.found.append(Finding(step, "data", "", "semantic", what.replace("inputs[0]", "batch")))
            return
        for path, expected, got in zip(names, ours, theirs, strict=True):
            if got.shape != expected.shape:
                text = f"it has the shape {got.shape} for {expected.shape}"
                self.findings.found.append(Finding(step, "data", path, "semantic", text))
                return
            pair = Pair(got, expected, np.abs(wide(expected)), tolerance=STEP_DATA)
            if (wide(got) != wide(expected)).any() and (found := judge({"float32": measured(pair, "float32")})):
                text = explain(wide(got), wide(expected), {})
                self.findings.found.append(Finding(step, "data", path, "semantic", text, "", found))
                return

    def distance(self) -> float:
        """How far the parameters of the port by itself are from the reference's, as a fraction of their norm."""
        reference = self.case.state["float32"][PARAMETER]
        pairs = list(self.pairing.aligned(PARAMETER, reference, self.free.read()[PARAMETER]))
        return fraction(norm(got - expected for _, got, expected in pairs), norm(x for *_, x in pairs))

    def told(self) -> Iterator[str]:
        """The accepted differences, in words."""
        for rule in self.rules:
            yield f"Accepted: {rule.name}; PyTorch's side takes its steps so that {rule.text}."
        for (quantity, path, limit), off in self.accepted.used.items():
            what = f"{quantity} of {path}" if path else quantity
            yield f"Accepted: {what} differs by up to {off:.3g} of its size, where {limit:g} is accepted."

    def unmapped(self) -> Iterator[str]:
        """What only one side's optimizer remembers, in words."""
        ours, theirs = (side.runs["float32"].read().keys() for side in (self.case.reference, self.case.port))
        for name, only in (("reference", ours - theirs), ("port", theirs - ours)):
            arrays = [role for role in only if role not in (PARAMETER, STATE, COUNT)]
            held = (self.case.reference if name == "reference" else self.case.port).runs["float32"].read()
            large = sorted(role for role in arrays if any(path for path in held[role]))
            if large:
                yield f"Only the {name} keeps {', '.join(large)}, which is not set from step to step and runs free."


class Power:
    """What the steps could have shown: the rules by which some step would have been another."""

    def __init__(self, case: TrainingCase) -> None:
        """None is known."""
        self.case = case
        self.shown: dict[str, Rule] = {}
        self.met: dict[str, Rule] = {}
        torch = case.reference if case.reference.training.is_torch else case.port
        accepted = {rule.name for rule in case.rules}
        self.rules = [r for r in torch.training.rules() if r.name not in accepted and not r.is_rounding]

    def see(self, step: int, steps: Steps) -> None:
        """Take the step by each rule that has not been shown yet."""
        ours, theirs = steps["float64"]
        is_reference = self.case.reference.training.is_torch
        own = ours if is_reference else theirs
        for rule in self.rules:
            if rule.name in self.shown:
                continue
            changed = by_rule(self.case, ours, theirs, rule)
            if changed is None:
                continue
            self.met[rule.name] = rule
            other = changed[0] if is_reference else changed[1]
            if differs(own, other):
                self.shown[rule.name] = rule

    @property
    def unshown(self) -> list[Rule]:
        """The rules about these optimizers that no step would have shown."""
        return [rule for name, rule in self.met.items() if name not in self.shown]


def differs(one: Any, other: Any) -> bool:
    """Whether two steps of the same side from the same state differ by more than rounding."""
    for role, arrays in one.after.items():
        size = np.asarray(max((float(np.abs(wide(x)).max(initial=0.0)) for x in arrays.values()), default=0.0))
        for path, x in arrays.items():
            y = other.after.get(role, {}).get(path)
            if y is None or measured(Pair(y, x, size), "float64").beyond:
                return True
    if one.update.clipped is None or other.update.clipped is None:
        return False
    size = np.asarray(norm(one.update.clipped.values()))
    return any(
        measured(Pair(other.update.clipped[p], x, size), "float64").beyond for p, x in one.update.clipped.items()
    )


def norm(arrays: Iterable[np.ndarray]) -> float:
    """The norm of all of them together."""
    return float(np.sqrt(sum(float(np.sum(np.abs(wide(x)) ** 2)) for x in arrays)))


def distance(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float:
    """How far arrays are from others, as a fraction of their norm."""
    return fraction(norm(wide(a[path]) - wide(x) for path, x in b.items()), norm(b.values()))


def free_run(trace: Trace, is_right: bool) -> str:
    """How far the port that runs by itself comes from the reference, in words."""
    if not len(trace.drift):
        return ""
    epsilon = float(np.finfo("float32").eps)
    beyond = np.flatnonzero(trace.drift > PARITY.epsilons * epsilon)
    last = trace.drift[-1]
    explained = np.maximum.accumulate(trace.rounding)[-1]
    figures = f"after step {len(trace.drift) - 1} the parameters differ by {last:.2g} of their norm"
    if not len(beyond):
        return f"The port was also run by itself from the same start: {figures}, {last / epsilon:.2g} float32 epsilons."
    envelope = ENVELOPE.value * np.maximum(np.maximum.accumulate(trace.rounding), PARITY.epsilons * epsilon)
    text = (
        f"The port was also run by itself from the same start: the two diverge at step {int(beyond[0])}, and {figures}"
    )
    reference = f"the reference in float32 differs from itself in float64 by {explained:.2g}"
    if (trace.drift <= envelope).all():
        return f"{text}. Rounding explains this: {reference}."
    return f"{text}. Rounding does not explain this: {reference}." if is_right else f"{text}; {reference}."


def pairs_of(batches: Iterable[Any] | Mapping[str, Iterable[Any]], is_torch_first: bool) -> Iterator[tuple[Any, Any]]:
    """
    For each step the batch of the reference and that of the port.

    Raises
    ------
    InputError
        There are no batches, or one side has more than the other.
    """
    if isinstance(batches, Mapping):
        if set(batches) != {"torch", "jax"}:
            raise InputError(
                f"batches= has the keys {', '.join(map(repr, batches))}; give an iterable of batches, or one for each "
                'side, as {"torch": ..., "jax": ...}'
            )
        order = ("torch", "jax") if is_torch_first else ("jax", "torch")
        yield from together(*(batches[name] for name in order))
        return
    if batches is None or not isinstance(batches, Iterable):
        raise InputError(f"batches= is {type(batches).__name__}; give an iterable of batches, one for each step")
    for batch in batches:
        yield batch, batch


def together(ours: Iterable[Any], theirs: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """The batches of both sides, as long as there are any."""
    end = object()
    first, second = iter(ours), iter(theirs)
    for number in count():
        batch, other = next(first, end), next(second, end)
        if batch is end and other is end:
            return
        if batch is end or other is end:
            side = "reference" if batch is end else "port"
            raise InputError(f"batches= of the {side} end after {number}, and the other side has more; give as many")
        yield batch, other


def accepted(given: Sequence[Any], torch: Training) -> tuple[tuple[Rule, ...], Accepted]:
    """
    The accepted rules, by which PyTorch's side takes its steps, and the accepted bounds.

    Raises
    ------
    InputError
        There is no such rule, or a bound is not given as it should be.
    """
    known = {rule.name: rule for rule in torch.rules()}
    rules, bounds = [], []
    if isinstance(given, str):
        given = [given]
    for each in given:
        if isinstance(each, str):
            if each not in known:
                near = get_close_matches(each, known, n=3, cutoff=0.3)
                hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
                raise InputError(f"accept= has {each!r}, which is no known difference{hint}")
            rules.append(known[each])
            continue
        if not (isinstance(each, tuple | list) and len(each) in (2, 3) and each[0] in ORDER):
            raise InputError(
                f"accept= has {each!r}; give the name of a known difference, or (quantity, bound), or (quantity, path, "
                f"bound), with a quantity of {', '.join(ORDER)}"
            )
        quantity, *path, bound = each
        if not isinstance(bound, int | float) or not bound >= 0:
            raise InputError(f"accept= has the bound {bound!r}; give a fraction of the array's size, 0 or more")
        bounds.append((quantity, path[0] if path else "", float(bound)))
    return tuple(rules), Accepted(bounds)
