"""What differs between two trainings: each cause once, with its step, and what follows from it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from p3.parity.difference import Kind
from p3.parity.function import epsilon, wide
from p3.parity.mismatch import Measure, Mismatch, Pair, explain, judge, measure
from p3.parity.models.case import MOVES, STEP, Moves, greatest
from p3.parity.models.checker import check_model
from p3.parity.models.findings import are_alike, figure, some
from p3.parity.models.links import Match
from p3.parity.models.report import ModelReport
from p3.parity.trainings.case import FORWARD, ORDER, Key, Steps, Taken, TrainingCase
from p3.parity.trainings.training import PARAMETER, STATE, Rule, State, Update
from p3.tolerance import EXPLAINED, FEW, LEARNING_RATE, SAME_RATE, SINGLE_UPDATE

CLIPPED = "clipped gradient"
MOST_LOOKS = 8  # at how many steps the loss is checked layer by layer, while no cause is found
CONFIRMING = 4  # at how many later steps the rules that explain a difference are tried again


@dataclass(frozen=True)
class Finding:
    """
    One cause.

    Attributes
    ----------
    step : the first at which it shows
    quantity, path : what differs there first, as of a `Difference`
    kind : as of a `Difference`
    explanation : why the sides differ, or what the difference looks like
    rule : the name of the rule that explains it, as a user accepts it
    mismatch : the worst element
    also : what else differs for the same cause, in that step or later
    """

    step: int
    quantity: str
    path: str
    kind: Kind
    explanation: str
    rule: str = ""
    mismatch: Mismatch | None = None
    also: tuple[Key, ...] = ()

    def __str__(self) -> str:
        """One line."""
        what = f"{self.quantity} of {self.path}" if self.path else f"the {self.quantity}"
        line = f"step {self.step}: {what} differs, {self.kind}"
        if self.mismatch is not None:
            line += f", {figure(self.mismatch)}"
        line += f"; {self.explanation}" if self.explanation else ""
        return line + self.followed()

    def followed(self) -> str:
        """What follows from it, in words."""
        same = tuple(key.path for key in self.also if key.quantity == self.quantity)
        later = tuple(dict.fromkeys(key.quantity for key in self.also if key.quantity != self.quantity))
        parts = [f"the same of {some(same)}"] if same else []
        parts += [f"{', '.join(later)} follow{'s' * (len(later) == 1)}"] if later else []
        return f" ({'; '.join(parts)})" if parts else ""


@dataclass
class Differing:
    """
    What differs in one stage of the steps: the loss and its gradients, clipping, or the optimizer.

    Attributes
    ----------
    cause : the first difference
    keys : all that have differed, in order
    candidates : the rules that explain the first difference at every step where they were tried
    confirmed : at how many steps they were tried again
    """

    cause: Finding | None = None
    keys: dict[Key, None] = field(default_factory=dict)
    candidates: list[Rule] = field(default_factory=list)
    confirmed: int = 0


@dataclass(eq=False)
class Findings:
    """
    All that differs, as the steps go by.

    Attributes
    ----------
    case : the two trainings
    accepted : differences that the user accepts
    found : causes from before the first step, and those of the loss
    forward, clipping, optimizer : what differs in these stages
    excused : the differences that were looked at and are rounding or single precision, with their size in epsilons
    single : the quantities in which something is computed in single precision
    has_single_constants : whether the optimizer computes constants in single precision
    looks : at how many steps the loss was looked at
    rates : the learning rates of both sides, a step after the other
    """

    case: TrainingCase
    accepted: "Accepted"
    found: list[Finding] = field(default_factory=list)
    forward: Differing = field(default_factory=Differing)
    clipping: Differing = field(default_factory=Differing)
    optimizer: Differing = field(default_factory=Differing)
    excused: dict[Key, float] = field(default_factory=dict)
    single: dict[Key, Mismatch] = field(default_factory=dict)
    has_single_constants: bool = False
    looks: int = 0
    rates: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    def see(self, step: int, batch: Any, steps: Steps) -> dict[Key, dict[str, float]]:
        """Compare a step; how far apart the sides are, by key and precision."""
        measures: dict[Key, dict[str, Measure]] = {}
        arrays: dict[Key, dict[str, Pair]] = {}
        for precision, (ours, theirs) in steps.items():
            for key, pair in self.case.compare(ours, theirs, step, precision):
                inside = self.case.half if self.case.half and key.quantity in FORWARD else precision
                found = measured(pair, inside)
                measures.setdefault(key, {})[inside] = found
                if found.beyond and not self.accepted.accepts(key, pair):
                    arrays.setdefault(key, {})[precision] = pair
        self.note_rates(steps)
        differing = {}
        for key in arrays:
            mismatch = judge(measures[key])
            if mismatch is not None and mismatch.kind == "semantic" and not self.is_excused(key, mismatch):
                differing[key] = mismatch
        first_half = {key: m for key, m in differing.items() if key.quantity in FORWARD}
        # The optimizer continues with the reference's clipped gradients, so that clipping is a stage of its own.
        clipping = {key: m for key, m in differing.items() if key.quantity == CLIPPED}
        second_half = {key: m for key, m in differing.items() if key.quantity not in (*FORWARD, CLIPPED)}
        if first_half:
            self.see_forward(step, batch, steps, first_half, arrays)
        if clipping:
            self.see_update(self.clipping, step, steps, clipping, arrays)
        if second_half := without_idle_rates(second_half):
            self.see_update(self.optimizer, step, steps, second_half, arrays)
        return {key: {name: found.largest for name, found in each.items()} for key, each in measures.items()}

    def is_excused(self, key: Key, mismatch: Mismatch) -> bool:
        """Whether a difference is one that was looked at before, and not much larger."""
        return key in self.excused and mismatch.epsilons <= FEW.value * self.excused[key]

    # the loss and its gradients

    def add_model(self, step: int, report: ModelReport) -> bool:
        """The causes of a check of the loss as a model; whether there are any."""
        causes = [f for f in report.findings if f.quantity != "parameter" and f.spot.what != "input gradient"]
        found = []
        for finding in causes:
            quantity, path = finding.quantity, finding.path
            if quantity == "output" and finding.spot.what == "output":
                quantity, path = "loss", ""
            elif quantity == "input":
                quantity = "output"
            also = tuple(Key(quantity, other) for other in finding.also)
            explanation = finding.explanation
            if finding.quantity == "input":
                explanation = f"the code that leads to {finding.path}: {explanation}"
            found.append(Finding(step, quantity, path, finding.kind, explanation, "", finding.mismatch, also))
        wrong = [finding for finding in found if finding.kind == "semantic"]
        if wrong and self.forward.cause is None:
            self.forward.cause = wrong[0]
            self.found += wrong
        self.found += [f for f in found if f.kind != "semantic" and not any(same(f, other) for other in self.found)]
        return bool(wrong)

    def see_forward(
        self,
        step: int,
        batch: Any,
        steps: Steps,
        differing: Mapping[Key, Mismatch],
        arrays: Mapping[Key, Mapping[str, Pair]],
    ) -> None:
        """Look at what differs up to the gradients."""
        stage = self.forward
        if stage.cause is not None:
            stage.keys |= dict.fromkeys(differing)
            return
        if self.looks < MOST_LOOKS:
            self.looks += 1
            report = look(self.case, batch, steps["float32"][0].before)
            if self.add_model(step, report):
                stage.keys |= dict.fromkeys(differing)
                return
        real = self.conditioned(batch, steps, differing)
        for key, mismatch in differing.items():
            if key not in real:
                self.excused[key] = max(mismatch.epsilons, self.excused.get(key, 0.0))
        if real:
            self.begin(stage, step, {key: m for key, m in differing.items() if key in real}, arrays)
            if stage.cause is not None:
                self.found.append(stage.cause)

    def conditioned(self, batch: Any, steps: Steps, differing: Mapping[Key, Mismatch]) -> set[Key]:
        """
        Which differences are neither rounding nor single precision.

        All is computed again with the parameters moved a little. The change of an array shows the size of the terms
        that it is a sum of. The difference of a fault stays the same; one of single precision changes.
        """
        case = self.case
        half = "float32" if case.half else "float64"
        ours, theirs = steps[half]
        found: list[dict[Key, Pair]] = []
        for by in (0.0, STEP, *MOVES):
            moves = Moves(by, 1)
            before = {role: {path: moves(x) for path, x in ours.before[role].items()} for role in (PARAMETER, STATE)}
            run = case.reference.runs[half]
            run.write(before)
            forward = run.forward(batch)
            other = case.port.runs[half]
            other.write(case.pairing.state_to_port(before))
            found.append(dict(case.compare_forward(forward, other.forward(batch))))
        case.reference.runs[half].write(ours.after)
        case.port.runs[half].write(theirs.after)
        still, step, *moved = found
        real = set()
        for key, mismatch in differing.items():
            pair = still[key]
            size = greatest(np.asarray(wide(step[key].expected) - wide(pair.expected))) / STEP
            pair = pair._replace(size=np.maximum(pair.size, size))
            inside = case.half or half
            again = measure(pair, inside)
            if not again.beyond:
                continue
            differences = [difference(each[key]) for each in (still, *moved)]
            in_single = again.epsilons * epsilon(inside) / epsilon("float32")
            if in_single <= pair.limit("float32") and not are_alike(differences):
                self.single[key] = mismatch
                continue
            real.add(key)
        return real

    # the optimizer

    def see_update(
        self,
        stage: Differing,
        step: int,
        steps: Steps,
        differing: Mapping[Key, Mismatch],
        arrays: Mapping[Key, Mapping[str, Pair]],
    ) -> None:
        """Look at what differs in clipping or in the optimizer, and try the rules on it."""
        if stage.cause is None:
            if self.has_single_constants and self.are_of_constants(step, steps, differing):
                return
            self.begin(stage, step, differing, arrays)
            cause = stage.cause
            assert cause is not None
            group = [key for key in differing if key.quantity == cause.quantity]
            stage.candidates = self.explaining(self.case_rules(), step, steps, group)
            if stage.candidates:
                return
            # This is tried at every step, since such constants explain more in the first steps than later.
            self.has_single_constants = self.are_of_constants(step, steps, differing)
            if not self.has_single_constants and are_single(differing):
                self.excused |= {key: m.epsilons for key, m in differing.items()}
            if self.has_single_constants or are_single(differing):
                self.single |= {key: m for key, m in differing.items() if key not in self.single}
                stage.cause = None
                stage.keys.clear()
            return
        stage.keys |= dict.fromkeys(differing)
        if len(stage.candidates) > 1 and stage.confirmed < CONFIRMING:
            stage.confirmed += 1
            group = [key for key in differing if key.quantity == stage.cause.quantity]
            if group:
                stage.candidates = self.explaining(stage.candidates, step, steps, group) or stage.candidates

    def explaining(self, rules: Sequence[Rule], step: int, steps: Steps, group: Sequence[Key]) -> list[Rule]:
        """The rules by which the sides agree at some keys to rounding; if none, those by which they nearly do."""
        found = {rule: self.left(rule, step, steps, group) for rule in rules}
        exact = [rule for rule, left in found.items() if left == 0]
        return exact or [rule for rule, left in found.items() if left <= EXPLAINED.value]

    def case_rules(self, are_rounding: bool = False) -> list[Rule]:
        """The rules that are not in force already."""
        torch = self.case.reference if self.case.reference.training.is_torch else self.case.port
        names = {rule.name for rule in self.case.rules}
        return [r for r in torch.training.rules() if r.name not in names and r.is_rounding == are_rounding]

    def are_of_constants(self, step: int, steps: Steps, differing: Mapping[Key, Mismatch]) -> bool:
        """Whether rounding the constants of an optimizer to single precision explains the differences of updates."""
        if any(key.quantity != "update" for key in differing):
            return False
        ours, theirs = steps["float64"]
        before = dict(self.case.compare_update(ours, theirs, step, "float64"))
        for rule in self.case_rules(are_rounding=True):
            changed = by_rule(self.case, ours, theirs, rule)
            if changed is None:
                continue
            after = dict(self.case.compare_update(*changed, step, "float64"))
            moves = {key: greatest(difference(after[key]) - difference(before[key])) for key in differing}
            if all(greatest(difference(before[key])) <= SINGLE_UPDATE.epsilons * move for key, move in moves.items()):
                return True
        return False

    def left(self, rule: Rule, step: int, steps: Steps, group: Sequence[Key]) -> float:
        """
        What is left of the differences at some keys if PyTorch's side takes the step by a rule.

        It is the largest fraction of any, and 0 where all that is left is rounding.
        """
        ours, theirs = steps["float64"]
        changed = by_rule(self.case, ours, theirs, rule)
        if changed is None:
            return np.inf
        before = dict(self.case.compare_update(ours, theirs, step, "float64"))
        after = dict(self.case.compare_update(*changed, step, "float64"))
        fractions = [0.0]
        for key in group:
            if key not in after or not np.isfinite(difference(after[key])).all():
                return np.inf
            if after[key].beyond("float64").any():
                fractions.append(fraction(greatest(difference(after[key])), greatest(difference(before[key]))))
        return max(fractions)

    def note_rates(self, steps: Steps) -> None:
        """The learning rates of a step, where both sides show one."""
        key = Key("learning rate", "")
        ours, theirs = steps["float64"]
        for found, pair in self.case.compare_rates(ours.update, theirs.update, 0, "float64"):
            if found == key:
                for side, rate in zip(self.rates, (pair.expected, pair.got), strict=True):
                    side.append(float(rate))

    def begin(
        self,
        stage: Differing,
        step: int,
        differing: Mapping[Key, Mismatch],
        arrays: Mapping[Key, Mapping[str, Pair]],
    ) -> None:
        """The first difference of a stage."""
        first = min(differing, key=lambda key: ORDER.index(key.quantity))
        pair = arrays[first].get("float64") or next(iter(arrays[first].values()))
        text = explain(np.asarray(pair.got), np.asarray(pair.expected), {})
        stage.cause = Finding(step, first.quantity, first.path, "semantic", text, "", differing[first])
        stage.keys |= dict.fromkeys(key for key in differing if key != first)

    @property
    def all(self) -> tuple[Finding, ...]:
        """The causes in the order in which they show; then what is no failure."""
        stage = self.forward
        found = [followed(f, stage) if f == stage.cause else f for f in self.found]
        for stage in (self.clipping, self.optimizer):
            if stage.cause is None:
                continue
            cause = followed(stage.cause, stage)
            if stage.candidates:
                rule = stage.candidates[0]
                cause = replace(cause, explanation=f"the two agree if in PyTorch {rule.text}", rule=rule.name)
            elif cause.quantity == "learning rate":
                cause = replace(cause, explanation=schedules(*self.rates) or cause.explanation)
            found.append(cause)
        if self.single:
            (key, mismatch), *others = self.single.items()
            also = tuple(other for other, _ in others)
            text = "something is computed in single precision, whatever it is given"
            found.append(Finding(0, key.quantity, key.path, "single precision", text, "", mismatch, also))
        found.sort(key=lambda f: (f.kind != "semantic", f.step, ORDER.index(f.quantity)))
        return tuple(found)


def followed(cause: Finding, stage: Differing) -> Finding:
    """The cause of a stage, with all else that differs in it."""
    own = Key(cause.quantity, cause.path)
    others = tuple(key for key in stage.keys if key not in cause.also and key != own)
    return replace(cause, also=cause.also + others)


def difference(pair: Pair) -> np.ndarray:
    """The port's array less the reference's."""
    return np.asarray(wide(np.asarray(pair.got)) - wide(np.asarray(pair.expected)))


def by_rule(case: TrainingCase, ours: Taken, theirs: Taken, rule: Rule) -> tuple[Taken, Taken] | None:
    """Both sides' float64 step, with PyTorch's taken by a rule; None where the rule is not about it."""
    is_reference = case.reference.training.is_torch
    taken = ours if is_reference else theirs
    run = (case.reference if is_reference else case.port).runs["float64"]
    gradients, clipped = (ours.forward.gradients, None) if is_reference else case.given(ours)
    now = run.remember()
    try:
        run.restore(taken.remembered, taken.before)
        update = run.update(gradients, clipped, (*case.rules, rule))
        after = run.read()
    except Exception:  # of whatever kind an optimizer raises with other options
        update, after = Update(None, None, False), {}
    run.restore(now, taken.after)
    if not update.by_rule:
        return None
    changed = taken._replace(update=update, after=after)
    return (changed, theirs) if is_reference else (ours, changed)


def look(case: TrainingCase, batch: Any, state: State) -> ModelReport:
    """The check of the loss as a model, with what the reference holds."""
    values = {**state[PARAMETER], **state.get(STATE, {})}
    match: Match = case.pairing.match
    return check_model(case.reference.training.as_module(values), case.port.training.as_module(), (batch,), match=match)


def measured(pair: Pair, precision: str) -> Measure:
    """How far a pair is apart; infinitely, where the shapes differ."""
    if np.shape(pair.got) != np.shape(pair.expected):
        return Measure(np.inf, 0.0, np.size(pair.got), epsilons=np.inf)
    return measure(pair._replace(got=np.asarray(pair.got), expected=np.asarray(pair.expected)), precision)


def without_idle_rates(differing: Mapping[Key, Mismatch]) -> dict[Key, Mismatch]:
    """
    The differences without those of learning rates where no update differs.

    The learning rate of an optax transformation is read from its parts, and can be wrong; the updates cannot.
    """
    if any(key.quantity == "update" for key in differing):
        return dict(differing)
    return {key: m for key, m in differing.items() if key.quantity != "learning rate"}


def are_single(differing: Mapping[Key, Mismatch]) -> bool:
    """
    Whether differences are so small that single precision in the optimizer explains them.

    A learning rate that is computed in float32 is a float32 number, also in a float64 run.
    """
    rates = [mismatch for key, mismatch in differing.items() if key.quantity == "learning rate"]
    if any(m.precision == "float64" and float(np.float32(m.got.real)) != m.got for m in rates):
        return False
    limit = (LEARNING_RATE if rates else SINGLE_UPDATE).epsilons
    return all(m.epsilons * epsilon(m.precision) / epsilon("float32") <= limit for m in differing.values())


def same(a: Finding, b: Finding) -> bool:
    """Whether two findings are of the same array."""
    return (a.quantity, a.path, a.kind) == (b.quantity, b.path, b.kind)


def schedules(reference: Sequence[float], port: Sequence[float]) -> str:
    """What the learning rates of two schedules have to do with each other, in words; empty where nothing is seen."""
    ours, theirs = np.array(reference), np.array(port)
    if len(ours) < 3:
        return ""

    def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Where two sequences differ."""
        return np.asarray(np.abs(a - b) > SAME_RATE.value * np.maximum(np.abs(a), np.abs(b)))

    for ahead, behind, text in ((theirs, ours, "a step ahead of"), (ours, theirs, "a step behind")):
        if np.ptp(ours) > 0 and not apart(ahead[:-1], behind[1:]).any():
            return f"the port's schedule is {text} the reference's"
    with np.errstate(all="ignore"):
        ratios = theirs / ours
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) and not apart(ratios, ratios[:1]).any():
        return f"the port's learning rate is {ratios[0]:.6g} times the reference's at each step"
    steps = np.flatnonzero(apart(theirs, ours))
    if not len(steps):
        return ""
    first = int(steps[0])
    return (
        f"it is {theirs[first]:.9g}, and {ours[first]:.9g} is right; the two differ at {len(steps)} of {len(ours)} "
        f"steps, up to step {int(steps[-1])}"
    )


def fraction(part: float, whole: float) -> float:
    """The part as a fraction of the whole; infinite where the whole is 0 and the part is not."""
    return part / whole if whole else np.inf if part else 0.0


class Accepted:
    """
    The differences that a user accepts.

    Attributes
    ----------
    bounds : quantity, path ("" for all) and the largest difference, as a fraction of the array's size
    used : the largest difference that each has accepted
    """

    def __init__(self, bounds: Sequence[tuple[str, str, float]] = ()) -> None:
        """No difference has been seen yet."""
        self.bounds = tuple(bounds)
        self.used: dict[tuple[str, str, float], float] = {}

    def accepts(self, key: Key, pair: Pair) -> bool:
        """Whether a difference is one of these."""
        for bound in self.bounds:
            quantity, path, limit = bound
            if key.quantity == quantity and path in ("", key.path):
                off = greatest(difference(pair))
                if off <= limit * float(np.max(pair.size)):
                    self.used[bound] = max(self.used.get(bound, 0.0), fraction(off, float(np.max(pair.size))))
                    return True
        return False
