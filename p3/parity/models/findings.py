"""What is wrong with a port of a model: each cause once, with its place."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np

from p3.parity.difference import Kind
from p3.parity.function import epsilon, wide
from p3.parity.mismatch import Explanation, Mismatch, judge
from p3.parity.models.case import MOVES, Comparison, ModelCase, Moves, Silent, Spot
from p3.parity.models.causes import Causes
from p3.parity.models.equality import Comparison as Compared
from p3.parity.models.equality import compared
from p3.parity.models.links import Link
from p3.parity.models.pairing import Target
from p3.parity.models.tape import Event
from p3.tolerance import FEW, HALF_INSIDE, HALF_PARITY, MOST_NOISE, ONE_CONSTANT, SMOOTH_DIFFERENCE

SINGLE = epsilon("float32") / epsilon("float64")
MOST_RUNS = 8  # to find out whether layers have their borders at the same place


NOWHERE = Spot("", "")


@dataclass(frozen=True)
class Finding:
    """
    One cause.

    Attributes
    ----------
    quantity : "parameter", "input" (the code before a layer), "output", "gradient" or "state"
    path : of the layer or the parameter, in the reference's names
    title : the layer, with its classes in both models; or the code between layers
    kind : as of a `Difference`
    cause : why the sides differ, or what the difference looks like
    mismatch : the worst element
    also : paths of other layers or parameters that differ for the same cause
    call : the number of the call, where the layer is called several times
    spot : the array that differs
    """

    quantity: str
    path: str
    title: str
    kind: Kind
    cause: Explanation
    mismatch: Mismatch | None = None
    also: tuple[str, ...] = ()
    call: int | None = None
    spot: Spot = NOWHERE

    @property
    def explanation(self) -> str:
        """The cause, in a sentence."""
        return self.cause.text

    def __str__(self) -> str:
        """One line."""
        call = "" if self.call is None else f", call {self.call}"
        line = f"{self.title}{call}: {self.quantity} differs, {self.kind}"
        if self.mismatch is not None:
            line += f", {figure(self.mismatch)}"
        line += f"; {self.explanation}" if self.explanation else ""
        return line + (f" (and {some(self.also)})" if self.also else "")


def figure(mismatch: Mismatch) -> str:
    """How far apart the sides are, in epsilons of float32, or of float64 where that is less than one."""
    if not np.isfinite(mismatch.epsilons):
        return f"{mismatch.got:.6g} for {mismatch.expected:.6g}"
    single = mismatch.epsilons / (SINGLE if mismatch.precision == "float64" else 1)
    return f"{single:.3g} float32 epsilons" if single >= 0.1 else f"{mismatch.epsilons:.3g} float64 epsilons"


def some(paths: tuple[str, ...]) -> str:
    """Paths in a row; of more than four, how many and the first and the last."""
    return ", ".join(paths) if len(paths) <= 4 else f"{len(paths)} more, from {paths[0]} to {paths[-1]}"


def are_alike(differences: Sequence[np.ndarray]) -> bool:
    """Whether a difference stays the same when the numbers that it is computed from move a little."""
    d = np.array([np.where(np.isfinite(x), x, 0) for x in differences])
    squares = (np.abs(d) ** 2).sum(0)
    products = (np.abs(d.sum(0)) ** 2 - squares) / (len(d) - 1)
    moving = squares > 0
    return bool(moving.any() and (products[moving] / squares[moving]).mean() > SMOOTH_DIFFERENCE.value)


class Findings:
    """All that is wrong with a port."""

    def __init__(self, case: ModelCase) -> None:
        """Nothing is computed yet."""
        self.case = case
        self.causes = Causes(case)

    @cached_property
    def kinds(self) -> dict[str, dict[str, str]]:
        """The classes of the layers of both models."""
        return {"reference": self.case.reference_scout[1].kinds, "port": self.case.port_scout[1].kinds}

    @cached_property
    def port_of(self) -> dict[str, str]:
        """The counterparts of the reference's layers."""
        return {unit.reference: unit.port for unit in self.case.units}

    @cached_property
    def order(self) -> dict[Event, int]:
        """The events of the reference that are compared, in order."""
        return {event: k for k, event in enumerate(self.case.itself)}

    @cached_property
    def all(self) -> tuple[Finding, ...]:
        """The causes in the order of a run: parameters, values, states, gradients."""
        values = list(self.values())
        missing = list(self.missing())
        for finding in missing:
            for path in (finding.path, *finding.also):
                values = self.without_consequence(path.rpartition(".")[0], values)
        values = list(self.in_another_order(self.without_leaks(values)))
        named = {self.kind(f.path) for f in values if f.cause.kind == "convention"}
        gradients = [f for f in self.gradients() if not (self.is_small(f) and self.kind(f.path) in named)]
        without = [
            Finding("output", path, path, "semantic", Explanation("missing", text))
            for path, text in self.case.missing_outputs.items()
        ]
        found = self.folded([*self.parameters(), *missing, *self.of_one_piece(values), *without, *gradients])
        return tuple(sorted(found, key=lambda finding: finding.kind != "semantic"))

    def kind(self, path: str) -> str:
        """The class of a layer, or of the layer that has the parameter."""
        kinds = self.kinds["reference"]
        return kinds.get(path, kinds.get(path.rpartition(".")[0], path))

    def is_small(self, finding: Finding) -> bool:
        """Whether a difference is as small as single precision makes one."""
        m = finding.mismatch
        return m is not None and m.epsilons / (SINGLE if m.precision == "float64" else 1) <= MOST_NOISE.epsilons

    def of_one_piece(self, findings: list[Finding]) -> list[Finding]:
        """
        The findings, where code between layers that feeds several layers is reported once.

        It is taken for one piece of code where the layers receive numbers from the same layer before it.
        """
        found: list[Finding] = []
        sources: dict[int, frozenset[object]] = {}
        for finding in findings:
            is_block = any(unit.is_block and unit.reference == finding.path for unit in self.case.units)
            # Of a layer whose input in the port is not known, the code before it may be what is wrong.
            is_either = finding.quantity == "output" and finding.path not in self.with_inputs
            is_code = finding.quantity == "input" or finding.spot.what == "output" or is_block or is_either
            if not is_code or finding.kind != "semantic" or finding.cause.kind == "convention":
                found.append(finding)
                continue
            own = self.sources(finding.spot)
            same = next((k for k, known in sources.items() if known & own), None)
            if same is None:
                sources[len(found)] = own
                found.append(finding)
            else:
                found[same] = replace(found[same], also=(*found[same].also, finding.path))
        return found

    def sources(self, spot: Spot) -> frozenset[object]:
        """The layers and inputs of the reference that the code before a layer or an output depends on."""
        case = self.case
        silent = Silent(
            frozenset(case.itself) - {spot.name},
            frozenset(case.outputs) - {str(spot.name) if spot.what == "output" else ""},
        )
        run, recording = case.silenced("float64", case.base[1], frozenset(), silent, None)
        layers = {e for e, v in recording.cotangents.items() if e.point.role == "output" and np.any(v)} - {spot.name}
        return frozenset({*layers, *(number for number, v in run.input_gradients.items() if np.any(v))})

    # parameters

    def parameters(self) -> Iterator[Finding]:
        """Arrays that differ from the reference's, where the port was loaded with these."""
        case = self.case
        torch, jax = case.torch_and_jax
        if case.match.is_loaded:
            for found in compared(case.match, torch, jax):
                if not found.is_equal:
                    torch_path, jax_path = found.link.torch[0].path, found.link.jax.path
                    path = torch_path if case.is_torch_first else jax_path
                    yield Finding("parameter", path, path, "semantic", fault_of(found))
        yield from self.untied()

    def without_consequence(self, layer: str, values: list[Finding]) -> list[Finding]:
        """The findings without the one that a layer's missing parameter causes: at that layer, or else the next."""
        own = [f for f in values if f.path == layer and f.quantity == "output"]
        after = [f for f in values if f.quantity in ("input", "output") and self.runs_before(layer, f.path)]
        follows = own or after[:1]
        return [f for f in values if f not in follows or f.kind != "semantic"]

    def untied(self) -> Iterator[Finding]:
        """Arrays that two layers of one model share, and of which the other model has two."""
        links: dict[tuple[str, str], list[Link]] = {}
        for link in self.case.match.links:
            for part in link.torch:
                links.setdefault(("PyTorch", str(part)), []).append(link)
            links.setdefault(("JAX", str(link.jax)), []).append(link)
        for (side, name), several in links.items():
            others = {str(link.jax) if side == "PyTorch" else str(link.torch[0]) for link in several}
            if len(others) > 1:
                path = name if (side == "PyTorch") == self.case.is_torch_first else str(several[0].torch[0])
                text = f"{side} has one array, {name}, and the other side {' and '.join(sorted(others))}"
                yield Finding("parameter", path, path, "semantic", Explanation("untied", text))

    def missing(self) -> Iterator[Finding]:
        """Parameters that the port lacks, as one finding; and those that only the port has."""
        case = self.case
        ours, theirs = case.match.torch_only, case.match.jax_only
        ours, theirs = (ours, theirs) if case.is_torch_first else (theirs, ours)
        back = {unit.port: unit.reference for unit in case.units}
        # One without a gradient is not used. Of one the port may lack a part alone.
        used = [name for name in ours if np.any(case.base[0].gradients.get(whole(name), np.zeros(1)))]
        if used:
            paths = [whole(name) for name in used]
            text = f"the port has no {listed(used, ' and no ')}"
            yield Finding(
                "parameter", paths[0], paths[0], "semantic", Explanation("missing", text), also=tuple(paths[1:])
            )
        for name in theirs:
            if np.any(case.from_end_to_end_run.gradients.get(whole(name), np.zeros(1))):
                layer, _, leaf = name.rpartition(".")
                path = f"{back.get(layer, layer)}.{leaf}"
                text = f"the port has {name}, and the reference has not"
                yield Finding("parameter", path, path, "semantic", Explanation("more", text))

    # values

    @cached_property
    def at_first(self) -> dict[Spot, Mismatch]:
        """Where values and states differ by more than rounding, if all layers have their borders at the same place."""
        return self.differing(self.case.by_layer)

    @cached_property
    def comparison(self) -> Comparison:
        """The comparison of the layers, where borders that are at another place in the port are left out."""
        if not self.own:
            return self.case.by_layer
        found = Comparison(self.case.sizes)
        for precision in self.case.precisions:
            self.case.compared(precision, found, self.own)
        return found

    @cached_property
    def failing(self) -> dict[Spot, Mismatch]:
        """Where values and states differ by more than rounding."""
        return self.differing(self.comparison)

    def differing(self, comparison: Comparison) -> dict[Spot, Mismatch]:
        """The values and states of a comparison that differ by more than rounding, in order."""
        found = {}
        for spot in sorted(comparison.failing, key=self.place):
            if spot.what in ("value", "output", "state"):
                mismatch = self.judged(comparison, spot)
                if mismatch is not None:
                    found[spot] = mismatch
        return found

    def place(self, spot: Spot) -> tuple[int, int, str]:
        """A sorting key: its place in a run."""
        stage = ("value", "output", "state", "cotangent", "gradient", "input gradient").index(spot.what)
        number = self.order.get(spot.name, 0) if isinstance(spot.name, Event) else 0
        return stage, -number if spot.what == "cotangent" else number, str(spot.name)

    def judged(self, comparison: Comparison, spot: Spot) -> Mismatch | None:
        """A difference, with its kind; None where it is in float32 alone and does not persist when the inputs move."""
        measures = comparison.measures[spot]
        mismatch = judge(measures)
        assert mismatch is not None
        if mismatch.precision == "float64":
            off = mismatch.epsilons / SINGLE
            if off <= ONE_CONSTANT.epsilons or (off <= MOST_NOISE.epsilons and not self.is_smooth(comparison, spot)):
                return mismatch._replace(kind="single precision")
            return mismatch
        again = self.moved[1].measures.get(spot, {})
        persists = mismatch.precision in again and judge({mismatch.precision: again[mismatch.precision]}) is not None
        return mismatch if persists else None

    @cached_property
    def moved(self) -> tuple[Comparison, Comparison]:
        """The same comparison where inputs and parameters are moved by the steps of `MOVES`."""
        found = []
        for by in MOVES:
            comparison = Comparison(self.case.sizes)
            for precision in self.case.precisions:
                self.case.compared(precision, comparison, moved=Moves(by, self.case.seed + 1))
            found.append(comparison)
        return found[0], found[1]

    def is_smooth(self, comparison: Comparison, spot: Spot) -> bool:
        """Whether a difference stays the same when inputs and parameters move a little, as that of a fault does."""
        differences = []
        for each in (comparison, *self.moved):
            got, expected = each.arrays.get(spot, {}).get("float64", (np.zeros(()), np.zeros(())))
            differences.append(wide(got) - wide(expected))
        shape = differences[0].shape
        return are_alike([x if x.shape == shape else np.zeros(shape) for x in differences])

    def half_precision(self, comparison: Comparison, spot: Spot, mismatch: Mismatch) -> Explanation | None:
        """That something is rounded to half precision, where the difference is as large as that and as random."""
        off = mismatch.epsilons * epsilon("float64") / epsilon("bfloat16")
        is_as_large = mismatch.precision == "float64" and HALF_INSIDE.value <= off <= HALF_PARITY.epsilons
        if not is_as_large or self.is_smooth(comparison, spot):
            return None
        text = "the difference is as large, and as random, as that of rounding to bfloat16 or float16"
        return Explanation("half precision", text)

    @cached_property
    def is_right_from_end_to_end(self) -> bool:
        """Whether outputs, gradients and states agree to rounding in float64, with nothing put in."""
        return not self.case.from_end_to_end.failing and not self.case.missing_outputs

    @cached_property
    def own(self) -> frozenset[Event]:
        """
        The events at which the layers have their borders at different places, though neither model is wrong.

        An activation may be in the layer in one model and after it in the other. Where the port continues with its own
        number at such a border, nothing after it differs.
        """
        spots = [s for s, mismatch in self.at_first.items() if s.what == "value" and mismatch.kind == "semantic"]
        if not spots:
            return frozenset()
        before = self.case.by_layer
        own: frozenset[Event] = frozenset()
        for spot in spots[:MOST_RUNS]:
            assert isinstance(spot.name, Event)
            is_known = spot.name.point.layer in self.moved_layers or spot in self.case.by_layer.dtypes
            if spot not in before.failing or is_known:
                continue
            trial = own | {spot.name}
            after = Comparison(self.case.sizes)
            self.case.compared(self.case.precisions[0], after, trial)
            if not any(self.is_worse(before, after, other) for other in after.failing if other != spot):
                own, before = trial, after
        return own

    def is_worse(self, before: Comparison, after: Comparison, spot: Spot) -> bool:
        """Whether a value differs by much more than before."""
        if spot.what not in ("value", "output", "state"):
            return False
        precision = self.case.precisions[0]
        now, then = after.measures[spot][precision], before.measures[spot].get(precision)
        return now.beyond > 0 and (then is None or not now.epsilons <= FEW.value * max(then.epsilons, then.limit))

    def values(self) -> Iterator[Finding]:
        """What differs in the forward pass."""
        comparison = self.comparison
        for spot in sorted({*self.failing, *comparison.dtypes}, key=self.place):
            name, mismatch = spot.name, self.failing.get(spot)
            if spot in comparison.dtypes:
                if spot.what == "output":
                    yield self.of_dtype(spot, str(name), str(name))
                elif spot.what == "value" and isinstance(name, Event) and name.point.role == "output":
                    yield self.of_dtype(spot, name.point.layer, self.title(name.point.layer))
                continue
            is_border = isinstance(name, Event) and name in self.own
            if mismatch is None or is_border or (mismatch.precision == "float64" and self.is_right_from_end_to_end):
                continue
            yield self.finding(spot, mismatch, comparison)

    def of_dtype(self, spot: Spot, path: str, title: str) -> Finding:
        """That an array has another dtype."""
        got, expected = self.case.by_layer.dtypes[spot]
        text = f"it is {got} in the port, and {expected} in the reference"
        return Finding("output", path, title, "semantic", Explanation("dtype", text), spot=spot)

    # gradients

    @cached_property
    def silent(self) -> Silent:
        """Where the cotangents are set to 0, since the values differ there."""
        wrong = [spot for spot, mismatch in self.failing.items() if mismatch.kind == "semantic"]
        events = {spot.name for spot in wrong if isinstance(spot.name, Event) and spot.name not in self.own}
        outputs = {str(spot.name) for spot in wrong if spot.what == "output"}
        return Silent(frozenset(events), frozenset(outputs))

    @cached_property
    def backward(self) -> Comparison:
        """The comparison of gradients, without those that differ because a value does."""
        if not self.silent:
            return self.comparison
        found = Comparison(self.case.sizes)
        for precision in self.case.precisions:
            self.case.compared(precision, found, self.own, self.silent)
        return found

    def gradients(self) -> Iterator[Finding]:
        """What differs in the backward pass."""
        spots = [s for s in self.backward.failing if s.what in ("cotangent", "gradient", "input gradient")]
        for spot in sorted(spots, key=self.place):
            if isinstance(spot.name, Event) and (spot.name in self.own or self.moved_layers):
                continue
            mismatch = self.judged(self.backward, spot)
            if self.follows_from_nothing(spot):
                continue
            is_right = self.is_right_from_end_to_end and mismatch is not None and mismatch.precision == "float64"
            if mismatch is not None and not is_right:
                yield self.finding(spot, mismatch, self.backward)

    def follows_from_nothing(self, spot: Spot) -> bool:
        """
        Whether a gradient is 0 since something later is a constant to JAX, so that no cotangent comes back.

        Of such layers the last one is reported, and neither those before it nor its own parameters.
        """
        if spot in self.backward.unseen and isinstance(spot.name, Event) and spot.name.point.role == "input":
            return True  # told of the layer that the input comes from
        unseen = [s.name for s in self.backward.unseen if isinstance(s.name, Event) and s in self.backward.failing]
        outputs = [event for event in unseen if event.point.role == "output" and event in self.order]
        if not outputs:
            return False
        last = max(outputs, key=self.order.__getitem__)
        if spot in self.backward.unseen:
            return spot.name != last
        layers = {event.point.layer for event in outputs}
        return spot.what == "gradient" and str(spot.name).rpartition(".")[0] in layers

    # words

    def title(self, layer: str) -> str:
        """A layer, with its classes."""
        kinds = [self.kinds["reference"].get(layer, ""), self.kinds["port"].get(self.port_of.get(layer, ""), "")]
        kinds = [kind for kind in kinds if kind]
        return f"{layer} ({', '.join(kinds)})" if kinds else layer

    def before(self, event: Event) -> str:
        """The layer that ran last before an event."""
        earlier = [e.point.layer for e in self.order if self.order[e] < self.order[event] and e.point.role == "output"]
        return earlier[-1] if earlier else "the inputs"

    def through(self, event: Event) -> str:
        """The layers of the reference alone that run before an event, and after the last layer that is compared."""
        shapes = list(self.case.reference_scout[1].shapes)
        layers: list[str] = []
        for each in shapes[: shapes.index(event)]:
            layers = [] if each in self.order else [*layers, each.point.layer]
        inner = [x for x in dict.fromkeys(layers) if not event.point.layer.startswith(f"{x}.")]
        return f", in the reference with {listed(inner)}" if inner else ""

    def after(self, event: Event) -> str:
        """The layer that runs next after an event."""
        later = [e.point.layer for e in self.order if self.order[e] > self.order[event] and e.point.role == "input"]
        return later[0] if later else "the outputs"

    def finding(self, spot: Spot, mismatch: Mismatch, comparison: Comparison) -> Finding:
        """A difference as a finding."""
        got, expected = comparison.arrays[spot][mismatch.precision]
        is_value = spot.what in ("value", "output", "state")
        if mismatch.kind == "single precision":
            cause = Explanation("single precision", "it computes in float32 inside, whatever it is given")
        else:
            cause = (
                self.causes.convention(spot, got, expected)
                or self.half_precision(comparison, spot, mismatch)
                or (self.causes.masks() if is_value else None)
                or self.causes.looks(spot, got, expected)
            )
        if not isinstance(spot.name, Event):
            quantity = {"input gradient": "gradient"}.get(spot.what, spot.what)
            layers = [e.point.layer for e in self.order]
            title = f"code after {layers[-1]}, {spot.name}" if spot.what == "output" and layers else str(spot.name)
            return Finding(quantity, str(spot.name), title, mismatch.kind, cause, mismatch, spot=spot)
        event, layer = spot.name, spot.name.point.layer
        is_input = event.point.role == "input"
        call = event.call if any(e.point == event.point and e.call for e in self.order) else None
        if spot.what == "value" and is_input:
            title = f"code between {self.before(event)} and {self.title(layer)}{self.through(event)}"
            return Finding("input", layer, title, mismatch.kind, cause, mismatch, call=call, spot=spot)
        if spot.what == "value":
            return Finding("output", layer, self.title(layer), mismatch.kind, cause, mismatch, call=call, spot=spot)
        if is_input:
            title = f"{self.title(layer)}, by its input"
            return Finding("gradient", layer, title, mismatch.kind, cause, mismatch, call=call, spot=spot)
        title = f"code between {self.title(layer)} and {self.after(event)}"
        cause = self.causes.detached(event, got, expected) or cause
        return Finding("gradient", layer, title, mismatch.kind, cause, mismatch, call=call, spot=spot)

    def without_leaks(self, findings: list[Finding]) -> list[Finding]:
        """
        The findings without those of outputs that a layer which differs returns directly.

        An LSTM's states may be outputs of the model, and it is not known which of the port's corresponds to which.
        """
        planned = {target.event.point for target in self.port_order}
        returned = [event.point for event in self.case.base[1].values if event.point.role == "output"]
        leaking = {point.layer for point in returned if point not in planned}
        leaks = any(f.path in leaking and f.quantity == "output" and f.kind == "semantic" for f in findings)
        return [f for f in findings if not (leaks and f.path.startswith("output") and f.kind == "semantic")]

    def in_another_order(self, findings: list[Finding]) -> Iterator[Finding]:
        """The findings, where those that come of layers in another order are one, or of layers that never run."""
        names = [unit.reference for unit in self.case.units if not unit.is_block]
        rank, moved = self.rank, self.moved_layers
        if not moved or not any(f.path in moved and f.quantity in ("input", "output") for f in findings):
            yield from self.with_layers_left_out(findings)
            return
        affected = moved | {b for a, b in pairwise(names) if a in moved}
        first = next(f for f in findings if f.path in affected and f.quantity in ("input", "output"))
        ours = [layer for layer in names if layer in moved]
        theirs = sorted(moved, key=rank.__getitem__)
        text = f"the layers run in another order: {listed(ours)} in the reference, and {listed(theirs)} in the port"
        yield replace(first, cause=Explanation("order", text))
        for finding in findings[findings.index(first) + 1 :]:
            # Later code gets other numbers then, and what differs there for another reason has that for its cause.
            has_cause = finding.cause.kind == "convention" or finding.quantity not in ("input", "output")
            if has_cause or finding.kind != "semantic":
                yield finding

    @cached_property
    def rank(self) -> dict[str, int]:
        """The layers in the order in which their counterparts run in the port."""
        return {layer: k for k, layer in enumerate(dict.fromkeys(t.event.point.layer for t in self.port_order))}

    @cached_property
    def moved_layers(self) -> frozenset[str]:
        """Layers that run in another order in the port, where one of each pair receives other numbers."""
        names = [unit.reference for unit in self.case.units if unit.reference in self.rank and not unit.is_block]
        wrong = {s.name.point.layer for s in self.at_first if isinstance(s.name, Event) and self.is_wrong(s)}
        return frozenset(
            layer
            for k, a in enumerate(names)
            for b in names[k + 1 :]
            if self.rank[a] > self.rank[b] and (a in wrong or b in wrong)
            for layer in (a, b)
        )

    def is_wrong(self, spot: Spot) -> bool:
        """Whether a value is wrong, and is a layer's input, or its output where the input in the port is not known."""
        assert isinstance(spot.name, Event)
        layer = spot.name.point.layer
        is_first = spot.name.point.role == ("input" if layer in self.with_inputs else "output")
        return is_first and self.at_first[spot].kind == "semantic"

    @cached_property
    def with_inputs(self) -> frozenset[str]:
        """The layers whose input in the port is known."""
        return frozenset(t.event.point.layer for t in self.port_order if t.event.point.role == "input")

    def with_layers_left_out(self, findings: list[Finding]) -> Iterator[Finding]:
        """The findings, where the first one after layers that the port never runs says so."""
        left_out = self.left_out
        for finding in findings:
            if left_out and finding.quantity in ("input", "output") and finding.kind == "semantic":
                before = [layer for layer in left_out if self.runs_before(layer, finding.path)]
                if before:
                    text = f"the port never runs {listed(outermost(before))}"
                    left_out = [layer for layer in left_out if layer not in before]
                    yield replace(finding, cause=Explanation("never run", text))
                    continue
            yield finding

    def runs_before(self, layer: str, other: str) -> bool:
        """Whether a layer of the reference runs before another, or before the end."""
        order = list(dict.fromkeys(e.point.layer for e in self.case.reference_scout[1].shapes))
        return layer in order and (other not in order or order.index(layer) < order.index(other))

    @cached_property
    def left_out(self) -> list[str]:
        """The layers with parameters which the reference runs, and of which the port never runs the counterpart."""
        case = self.case
        ran = {event.point.layer for event in case.port_scout[1].shapes}
        if not ran:  # layers of the port are not known
            return []
        ours: dict[str, bool] = {}
        for link in case.match.links:
            for part in link.torch:
                mine, other = (part.path, link.jax.path) if case.is_torch_first else (link.jax.path, part.path)
                layer, counterpart = mine.rpartition(".")[0], other.rpartition(".")[0]
                runs = any(counterpart == name or counterpart.startswith(f"{name}.") for name in ran)
                ours[layer] = ours.get(layer, False) or runs
        called = {event.point.layer for event in case.reference_scout[1].shapes}
        return [layer for layer, runs in ours.items() if not runs and layer in called]

    @cached_property
    def port_order(self) -> list[Target]:
        """The reference's events in the order in which their counterparts come in the port."""
        return [self.case.plan[event] for event in self.case.port_scout[1].shapes if event in self.case.plan]

    def is_detached(self, finding: Finding) -> bool:
        """Whether a gradient of code between layers differs since something is detached, or for no known cause."""
        name = finding.spot.name
        is_code = finding.spot.what == "cotangent" and isinstance(name, Event) and name.point.role == "output"
        is_known = finding.cause.kind not in (*UNKNOWN, *DETACHED)
        return (is_code or finding.spot.what == "input gradient") and not is_known and finding.kind == "semantic"

    def folded(self, findings: list[Finding]) -> Iterator[Finding]:
        """Each cause once: findings of layers whose paths differ in numbers alone, and that look the same, are one."""
        groups: dict[tuple[str, ...], list[Finding]] = {}
        dtypes = self.case.by_layer.dtypes
        for finding in findings:
            place = re.sub(r"\d+", "#", finding.path)
            cause = finding.cause.kind
            alike: tuple[str, ...] = (finding.quantity, place, "" if cause in UNKNOWN else cause)
            if finding.kind == "single precision":
                alike = ()
            elif cause == "convention":
                alike = (finding.explanation,)
            elif dtypes and (finding.spot in dtypes or cause == "half precision"):
                alike = ("dtype",)
            elif finding.quantity == "gradient" and not self.case.units:
                alike = ("gradient",)  # of which nothing tells where in the model it goes wrong
            elif self.is_detached(finding):
                alike = ("gradient of code",)
            elif finding.quantity == "gradient":
                alike = ("gradient", finding.explanation)
            elif finding.quantity == "state" and cause in UNKNOWN:
                alike = ("state",)
            elif cause == "another output":
                alike = (cause,)
            groups.setdefault((finding.kind, *alike), []).append(finding)
        merged: dict[object, list[Finding]] = {}
        for key, group in groups.items():  # one array, that goes to several layers
            m = group[0].mismatch
            same = key if m is None or m.kind != "semantic" else (group[0].quantity == "gradient", m.got, m.expected)
            merged.setdefault(same, []).extend(group)
        for first, *rest in merged.values():
            told = [finding.cause for finding in rest if finding.cause.kind in DETACHED]
            if told and first.cause.kind in UNKNOWN:
                first = replace(first, cause=told[0])
            paths = dict.fromkeys(finding.path for finding in rest if finding.path != first.path)
            yield replace(first, also=tuple(dict.fromkeys((*first.also, *paths))))


DETACHED = ("zero", "detached")  # what a gradient looks like that does not come back somewhere
UNKNOWN = ("size", "elements")  # causes that say no more than that there is a difference


def listed(names: list[str], between: str = ", ") -> str:
    """Names in a row; of more than four the first four."""
    return between.join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def whole(name: str) -> str:
    """The path of the array that a part is of."""
    return name.partition("[")[0]


def outermost(layers: list[str]) -> list[str]:
    """Layers; those in a numbered layer as that layer."""
    numbered = [re.match(r".*?\.\d+", layer) for layer in layers]
    return list(dict.fromkeys(found[0] if found else layer for found, layer in zip(numbered, layers, strict=True)))


def fault_of(found: Compared) -> Explanation:
    """What is wrong with a parameter of the port."""
    pattern, names = "", ""
    if found.instead is not None:
        pattern, names = found.instead.pattern or "as it is", " + ".join(map(str, found.instead.torch))
    right = found.link.pattern or "as it is"
    texts = {
        "layout": f"JAX's array is PyTorch's by {pattern!r}, where {right!r} is right",
        "flip": "JAX's array has the axes of space the other way around",
        "parameter": f"JAX's array has the numbers of {names}",
        "order": f"JAX's array has the pieces along its axis {found.axis} in another order, {found.order}",
    }
    return Explanation(found.fault, texts.get(found.fault, "it has other numbers"))
