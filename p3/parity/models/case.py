"""`check_model`: whether a model is a right port of another one, and the first layer that differs."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import numpy as np

from p3.errors import InputError
from p3.parity.case import make_inputs
from p3.parity.function import Arrays, at_precision, is_inexact, wide
from p3.parity.mismatch import Measure, Pair, judge, measure
from p3.parity.models.links import Link, Match, Parameter, Part
from p3.parity.models.match import match
from p3.parity.models.module import Mode, Module, Run
from p3.parity.models.pairing import Layout, Target, Unit, layouts, plan_of, units_of
from p3.parity.models.tape import Event, Mask, Recording, Shapes, StopRun, Tape
from p3.parity.tree import Structure
from p3.tolerance import LIKELY

STEP = 2.0**-20  # by what fraction numbers are moved to find out how large the terms of results are
MOVES = (2.0**-18, 2.0**-6)  # the steps to see whether a difference changes with the inputs
LONGEST = 400  # characters of what a model raises
CACHES = ("past_key_values",)  # outputs of models of transformers' that are for the next call alone
HALVES = ("bfloat16", "float16")

Axes = tuple[int, ...]
What = Literal["input", "output", "gradient", "state", "parameter"]
Progress = Callable[[str, int, int], None]


class Spot(NamedTuple):
    """
    One of the arrays that are compared.

    Attributes
    ----------
    what : "value" or "cotangent" at an event; or the model's "output", "gradient" or "state", by its path
    name : the event, or the path
    """

    what: str
    name: Event | str | int


class Comparison:
    """
    How far apart the arrays of two models are.

    Attributes
    ----------
    sizes : the size of each array, or of the terms that it is the sum of
    measures : how far apart the sides are, by precision
    arrays : the sides' arrays in the reference's layout, where they are further apart than the tolerance
    dtypes : the dtypes of both, where these differ in float32 or in half precision
    unseen : where the reference has a cotangent and the port has none
    """

    def __init__(self, sizes: Mapping[Spot, float]) -> None:
        """Nothing has been compared."""
        self.sizes = sizes
        self.measures: dict[Spot, dict[str, Measure]] = {}
        self.arrays: dict[Spot, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
        self.dtypes: dict[Spot, tuple[str, str]] = {}
        self.unseen: set[Spot] = set()

    def see(self, spot: Spot, precision: str, got: np.ndarray, expected: np.ndarray) -> None:
        """Compare one array; where the reference has it in half precision, in epsilons of that."""
        if got.dtype != expected.dtype and is_inexact(expected) and precision != "float64":
            self.dtypes.setdefault(spot, (got.dtype.name, expected.dtype.name))
        if expected.dtype.name in HALVES:
            precision = expected.dtype.name
        if got.shape != expected.shape:
            found = Measure(np.inf, 0.0, got.size, epsilons=np.inf)
        else:
            size = self.sizes[spot] if spot in self.sizes else greatest(expected)
            found = measure(Pair(got, expected, np.asarray(size)), precision)
        self.measures.setdefault(spot, {})[precision] = found
        if found.beyond:
            self.arrays.setdefault(spot, {})[precision] = (np.array(got), np.array(expected))

    @property
    def failing(self) -> frozenset[Spot]:
        """Where the sides differ by more than rounding."""
        return frozenset(
            spot
            for spot, measures in self.measures.items()
            if (found := judge(measures)) is not None and found.kind == "semantic"
        )


class Planting(Tape):
    """
    Replaces the arrays of a model by the reference's at each event with a counterpart, and compares the two first.

    Parameters
    ----------
    plan : the counterparts
    recording : what the reference had
    expected : the recording that the model's own cotangents are compared with, where that is another one
    see : called as see(spot, got, expected) for each event of the reference
    own : the events of the reference at which the model continues with its own numbers
    silent : the events of the reference at which the backward pass continues with 0
    moves : applied to the reference's arrays before the model continues with them
    """

    def __init__(
        self,
        plan: Mapping[Event, Target],
        recording: Recording,
        see: Callable[[Spot, np.ndarray, np.ndarray], None],
        own: frozenset[Event] = frozenset(),
        silent: frozenset[Event] = frozenset(),
        expected: Recording | None = None,
        moves: "Moves | None" = None,
    ) -> None:
        """Nothing has run."""
        super().__init__()
        self.moves = moves or Moves(0.0, 0)
        self.plan, self.recording, self.see, self.own, self.silent = plan, recording, see, own, silent
        self.expected = expected or recording
        self.layers = {event.point.layer for event in plan}
        self.usual = usual_orders([target.layouts for target in plan.values()])
        self.chosen: dict[Event, Layout] = {}

    def wants(self, layer: str) -> bool:
        """Whether one of the events is the layer's."""
        return layer in self.layers

    def mask(self, number: int) -> np.ndarray | None:
        """The mask of the reference's dropout of the same number, inverted where the port's True means dropped."""
        mask = self.masks[number]
        if number >= len(self.recording.masks):
            return None
        kept, probability = self.recording.masks[number]
        if abs(mask.probability - (1 - probability)) < abs(mask.probability - probability):
            kept = ~kept
        if kept.shape == mask.kept.shape:
            return kept
        for layout in layouts(kept.shape, mask.kept.shape):
            return layout.to_port(kept)
        try:
            return np.broadcast_to(kept, np.broadcast_shapes(kept.shape, mask.kept.shape))
        except ValueError:
            return None

    def value(self, event: Event, x: np.ndarray) -> np.ndarray | None:
        """What the reference had."""
        target = self.plan.get(event)
        if target is None or target.event not in self.recording.values:
            return None
        expected = self.recording.values[target.event]
        layout = self.chosen.setdefault(event, nearest(target.layouts, x, expected, self.usual))
        if not self.is_backward:
            self.see(Spot("value", target.event), layout.to_reference(x), expected)
        return None if target.event in self.own else layout.to_port(self.moves(expected))

    def cotangent(self, event: Event, cotangent: np.ndarray) -> np.ndarray | None:
        """What the reference had."""
        target = self.plan.get(event)
        if target is None or event not in self.chosen:
            return None
        layout = self.chosen[event]
        got = layout.to_reference(cotangent)
        zeros = np.zeros_like(got)
        self.see(Spot("cotangent", target.event), got, self.expected.cotangents.get(target.event, zeros))
        if target.event in self.own:
            return None
        given = zeros if target.event in self.silent else self.recording.cotangents.get(target.event, zeros)
        return layout.to_port(self.moves(given))


def nearest(candidates: Sequence[Layout], x: np.ndarray, expected: np.ndarray, usual: frozenset[Axes]) -> Layout:
    """
    The layout by which an array agrees with the reference's; where none does, one with the usual order of axes.

    Parameters
    ----------
    usual : the orders of axes of the model's arrays whose shapes allow one order only
    """
    if len(candidates) == 1 or not is_inexact(expected):
        return candidates[0]
    with np.errstate(all="ignore"):
        off = [float(np.abs(wide(c.to_reference(x)) - wide(expected)).max(initial=0.0)) for c in candidates]
    alike = [c for c, d in zip(candidates, off, strict=True) if d <= LIKELY.value * greatest(expected)]
    usually = [c for c in candidates if c.axes in usual]
    same = [c for c in candidates if c.is_identity]
    return (alike or usually or same or candidates)[0]


def usual_orders(layouts: Sequence[tuple[Layout, ...]]) -> frozenset[Axes]:
    """The orders of axes, other than the same, of the arrays that can have one order only."""
    alone = [each[0] for each in layouts if len(each) == 1]
    return frozenset(layout.axes for layout in alone if layout.axes and not layout.is_identity)


def greatest(x: np.ndarray) -> float:
    """The size of the largest finite element."""
    sizes = np.abs(wide(x))
    largest = float(sizes.max(initial=0.0))
    return largest if np.isfinite(largest) else float(sizes[np.isfinite(sizes)].max(initial=0.0))


@dataclass(frozen=True, eq=False)
class ModelCase:
    """
    Two models, their inputs, and what is computed of them, each once.

    Attributes
    ----------
    reference, port : the models
    structure, inputs : the arguments of both
    given : corrections of the match, by path
    seed : of the cotangents
    masks : those that the port's own dropouts drew, once it has run from end to end
    """

    reference: Module
    port: Module
    structure: Structure
    inputs: Arrays
    given: Mapping[str, Any] | Match = field(default_factory=dict)
    seed: int = 0
    masks: list[Mask] = field(default_factory=list)

    @cached_property
    def precisions(self) -> tuple[str, ...]:
        """
        The precisions in which the layers are compared; with half precision where a model has parameters in it.

        A model that computes in half precision whatever it is given, as under autocast, is compared in that alone:
        autocast rounds float32 to it, and leaves float64 as it is.
        """
        if self.mixed:
            return (self.mixed,)
        held = dict.fromkeys(p.array.dtype.name for p in (*self.reference_parameters, *self.port_parameters))
        return ("float64", "float32", *(name for name in held if name in HALVES))

    @cached_property
    def mixed(self) -> str:
        """The half precision that the reference computes in when it is given float32; empty where it does not."""
        scouts = [self.reference_scout[:2]]
        if self._held & set(HALVES):  # the reference is in half precision itself, so that the port may always be
            scouts.append((self.port_scout[0], self.port_scout[1]))
        for run, tape in scouts:
            dtypes = [*(dtype for _, dtype in tape.shapes.values()), *(y.dtype for y in run.outputs.values())]
            for dtype in dtypes:
                if dtype.name in HALVES:
                    return dtype.name
        return ""

    @cached_property
    def _held(self) -> set[str]:
        """The dtypes of the reference's parameters."""
        return {parameter.array.dtype.name for parameter in self.reference_parameters}

    def run_in(self, precision: str) -> tuple[str, str]:
        """For a run in a precision, the precision of the inputs and of the parameters; "" keeps the parameters' own."""
        if precision not in HALVES:
            return precision, precision
        return (precision if self._held & set(HALVES) else "float32"), ""

    @property
    def is_torch_first(self) -> bool:
        """Whether the reference is PyTorch's."""
        return self.reference.is_torch

    @cached_property
    def reference_scout(self) -> tuple[Run, Shapes, str]:
        """A run of the reference in float32, the shapes that its layers see, and the way to call it."""
        errors = []
        for way in self.reference.ways:
            tape = Shapes()
            try:
                run = self.reference.run(
                    self.structure, at_precision(self.inputs, "float32"), "float32", tape=tape, way=way
                )
            except Exception as error:
                errors.append(error)
                continue
            if not any(np.isfinite(wide(y)).any() for y in run.outputs.values()):
                raise InputError(
                    f"{self.reference.name} ({self.reference.framework}) returns no array with a finite number in it; "
                    "give inputs where it does"
                )
            return run, tape, way
        raise uncallable(self.reference, self.inputs, errors[-1])

    @cached_property
    def _port_ways(self) -> list[tuple[Run, Shapes, str, tuple[Layout, ...]]]:
        """The ways to call the port that raise no error: run, shapes, way, and the layouts of the inputs."""
        found, errors = [], []
        for axes in input_layouts(self.inputs):
            for way in self.port.ways:
                tape = Shapes()
                try:
                    run = self.port.run(self.structure, self._laid_out(axes), "float32", tape=tape, way=way)
                except Exception as error:
                    errors.append(error)
                else:
                    found.append((run, tape, way, axes))
        if not found:
            raise uncallable(self.port, self.inputs, errors[len(self.port.ways) - 1])
        return found

    def _laid_out(self, axes: tuple[Layout, ...]) -> Arrays:
        """The inputs in float32, as the port takes them."""
        return tuple(layout.to_port(x) for layout, x in zip(axes, at_precision(self.inputs, "float32"), strict=True))

    @cached_property
    def port_scout(self) -> tuple[Run, Shapes, str, tuple[Layout, ...]]:
        """A run of the port with the reference's parameters, by the way with the nearest outputs."""
        reference, shapes, _ = self.reference_scout
        if len(self._port_ways) == 1 and self.match.is_loaded and not shapes.masks:
            return self._port_ways[0]
        masks = Recording(frozenset())
        masks.masks = shapes.masks
        runs = []
        for _, tape, way, axes in self._port_ways:
            run = quietly(
                self.port,
                self.structure,
                self._laid_out(axes),
                "float32",
                self.values,
                Planting({}, masks, nothing),
                way=way,
            )
            runs.append((run, tape, way, axes))
        return min(runs, key=lambda found: apart(reference, found[0]))

    @cached_property
    def reference_parameters(self) -> tuple[Parameter, ...]:
        """What the reference holds."""
        return in_order(self.reference.parameters(self.reference_scout[1].kinds), self.reference_scout[1].kinds)

    @cached_property
    def port_parameters(self) -> tuple[Parameter, ...]:
        """What the port holds."""
        kinds = self._port_ways[0][1].kinds
        return in_order(self.port.parameters(kinds), kinds)

    @cached_property
    def match(self) -> Match:
        """Which arrays of the two correspond."""
        if isinstance(self.given, Match):
            return replace(self.given, is_loaded=match(*self.torch_and_jax, {}).is_loaded)
        return match(*self.torch_and_jax, self.given)

    @cached_property
    def torch_and_jax(self) -> tuple[tuple[Parameter, ...], tuple[Parameter, ...]]:
        """What each framework's model holds."""
        sides = (self.reference_parameters, self.port_parameters)
        return sides if self.is_torch_first else sides[::-1]

    def to_port(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Arrays of the reference's parameters in the port's layouts."""
        held = {parameter.path: wide(parameter.array) for parameter in self.port_parameters}
        return self.match.to_jax(arrays, held) if self.is_torch_first else self.match.to_torch(arrays, held)

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """The reference's parameters, for the port."""
        return self.to_port({parameter.path: wide(parameter.array) for parameter in self.reference_parameters})

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """The layers that are compared."""
        return units_of(
            self.match,
            (self.reference_parameters, self.reference_scout[1].shapes, self.is_torch_first),
            (self.port_parameters, self.port_scout[1].shapes, not self.is_torch_first),
        )

    @cached_property
    def plan(self) -> dict[Event, Target]:
        """The counterparts of the port's events."""
        return plan_of(self.units, self.reference_scout[1].shapes, self.port_scout[1].shapes, self.is_torch_first)

    @cached_property
    def outputs(self) -> dict[str, tuple[str, Layout]]:
        """For each output of the reference that the port returns too, its path in the port, and its layout."""
        ours, theirs = self.reference_scout[0].outputs, self.port_scout[0].outputs
        usual = usual_orders([t.layouts for t in self.plan.values()] + [(x,) for x in self.port_scout[3]])
        found: dict[str, tuple[str, Layout]] = {}
        left = dict(theirs)
        for path, y in ours.items():
            names = [path] if path in left else list(left)
            for name in names:
                fits = layouts(y.shape, left[name].shape)
                if fits:
                    found[path] = (name, nearest(fits, left[name], y, usual))
                    del left[name]
                    break
        return found

    @cached_property
    def missing_outputs(self) -> dict[str, str]:
        """The outputs of the reference that the port does not return, and what it returns, in words."""
        ours, theirs = self.reference_scout[0].outputs, self.port_scout[0].outputs
        left = theirs.keys() - {name for name, _ in self.outputs.values()}
        returned = " and ".join(f"{path} of shape {theirs[path].shape}" for path in theirs if path in left)
        said = f"the port returns {returned} in its place" if returned else "the port does not return it"
        return {
            path: f"it has the shape {y.shape}; {said}"
            for path, y in ours.items()
            if path not in self.outputs and not any(cache in path for cache in CACHES)
        }

    @cached_property
    def cotangents(self) -> dict[str, np.ndarray]:
        """Random ones, of the outputs that both have."""
        random = np.random.default_rng(self.seed)
        shapes = {path: self.reference_scout[0].outputs[path] for path in self.outputs}
        return {
            path: random.standard_normal(y.shape).astype(np.float32).astype(np.float64)
            for path, y in shapes.items()
            if is_inexact(y)
        }

    def run_reference(
        self,
        precision: str,
        tape: Tape | None = None,
        moved: "Moves | None" = None,
        mode: Mode | None = None,
        forward: bool = False,
        silent: frozenset[str] = frozenset(),
    ) -> Run:
        """Run the reference, with inputs and parameters that are moved by a little, or as they are."""
        moved = moved or Moves(0.0, 0)
        values = {p.path: moved(wide(p.array)) for p in self.reference_parameters} if moved.by else None

        def cotangents(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {
                path: moved(v).astype(outputs[path].dtype) * (path not in silent) for path, v in self.cotangents.items()
            }

        return quietly(
            self.reference,
            self.structure,
            at_precision(tuple(moved(x) for x in self.inputs), self.run_in(precision)[0]),
            self.run_in(precision)[1],
            values,
            tape,
            None if forward else cotangents,
            mode,
            self.reference_scout[2],
        )

    def run_port(
        self,
        precision: str,
        tape: Tape | None = None,
        moved: "Moves | None" = None,
        mode: Mode | None = None,
        forward: bool = False,
        silent: frozenset[str] = frozenset(),
    ) -> Run:
        """Run the port with the reference's parameters, at the same inputs."""
        moved = moved or Moves(0.0, 0)
        values = self.values
        if moved.by:
            values = self.to_port({p.path: moved(wide(p.array)) for p in self.reference_parameters})
        inputs = at_precision(tuple(moved(x) for x in self.inputs), self.run_in(precision)[0])

        def cotangents(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
            found = {}
            for path, v in self.cotangents.items():
                name, layout = self.outputs[path]
                if is_inexact(outputs[name]):
                    found[name] = layout.to_port(moved(v)).astype(outputs[name].dtype) * (path not in silent)
            return found

        return quietly(
            self.port,
            self.structure,
            tuple(layout.to_port(x) for layout, x in zip(self.port_scout[3], inputs, strict=True)),
            self.run_in(precision)[1],
            values,
            tape,
            None if forward else cotangents,
            mode,
            self.port_scout[2],
        )

    def ends(self, reference: Run, port: Run) -> Iterator[tuple[Spot, np.ndarray, np.ndarray]]:
        """The results of both models: outputs, gradients and states, the port's in the reference's layout."""
        for path, (other, layout) in self.outputs.items():
            yield Spot("output", path), layout.to_reference(port.outputs[other]), reference.outputs[path]
        ours, theirs = self.in_torch(reference, self.is_torch_first), self.in_torch(port, not self.is_torch_first)
        for spot in ours.keys() & theirs.keys():
            yield spot, theirs[spot], ours[spot]
        for number, expected in reference.input_gradients.items():
            if number in port.input_gradients:
                yield (
                    Spot("input gradient", self.structure.paths[number]),
                    self.port_scout[3][number].to_reference(port.input_gradients[number]),
                    expected,
                )

    @cached_property
    def _matched(self) -> dict[str, Match]:
        """The match of the parameters with gradients, and that of the states."""
        states = {p.path for p in (*self.reference_parameters, *self.port_parameters) if p.is_state}
        kinds: dict[str, list[Link]] = {"gradient": [], "state": []}
        for link in self.match.links:
            are_states = {part.path in states for part in (*link.torch, link.jax)}
            if len(are_states) == 1:
                kinds["state" if are_states.pop() else "gradient"].append(link)
        return {what: replace(self.match, links=tuple(links)) for what, links in kinds.items()}

    def in_torch(self, run: Run, is_torch: bool) -> dict[Spot, np.ndarray]:
        """The gradients and states of a run, as those of PyTorch's arrays that are matched."""
        found: dict[Spot, np.ndarray] = {}
        parameters = self.reference_parameters if self.is_torch_first else self.port_parameters
        shapes = {parameter.path: parameter.array for parameter in parameters}
        for what, held in (("gradient", run.gradients), ("state", run.states)):
            if not held:
                continue
            matched = self._matched[what]
            if is_torch:
                arrays = {part.path: held[part.path] for part in parts_of(matched)}
            else:
                like = {part.path: wide(shapes[part.path]) for part in parts_of(matched)}
                dtype = next(iter(held.values())).dtype
                like = {path: x.astype(dtype) for path, x in like.items()}
                convert = matched.gradient_to_torch if what == "gradient" else matched.to_torch
                arrays = convert(held, like)
            found |= {Spot(what, path): x for path, x in arrays.items()}
        return found

    @cached_property
    def layers(self) -> frozenset[str]:
        """The layers of the reference that are compared."""
        return frozenset(unit.reference for unit in self.units)

    def recorded(self, precision: str, moved: "Moves | None" = None) -> tuple[Run, Recording]:
        """A run of the reference, with the recording of its layers."""
        tape = Recording(self.layers)
        return self.run_reference(precision, tape, moved), tape

    @cached_property
    def base(self) -> tuple[Run, Recording]:
        """A run of the reference in float64, with the recording of its layers."""
        return self.recorded("float64")

    @cached_property
    def itself(self) -> dict[Event, Target]:
        """Each event of the reference that the port has too, as its own counterpart."""
        events = {target.event for target in self.plan.values()}
        return {
            event: Target(event, (Layout(tuple(range(x.ndim)), x.shape, x.shape),))
            for event, x in self.base[1].values.items()
            if event in events
        }

    @cached_property
    def sizes(self) -> dict[Spot, float]:
        """
        How large the terms of each array are: how far it moves when all that enters it moves by a fraction of itself.

        The inputs of each layer are moved at its border, so that this is the size for the layer alone.
        """
        run, recording = self.base
        moves = Moves(STEP, self.seed)
        found: dict[Spot, float] = {}

        def see(spot: Spot, got: np.ndarray, expected: np.ndarray) -> None:
            found[spot] = size_of(got, expected, STEP)

        moved = self.run_reference("float64", Planting(self.itself, recording, see, moves=moves), moves)
        for spot, got, expected in self._own_ends(moved, run):
            found[spot] = size_of(got, expected, STEP)
        return found

    @cached_property
    def sizes_from_end_to_end(self) -> dict[Spot, float]:
        """The same, where only the model's own inputs and parameters move."""
        moved = self.run_reference("float64", None, Moves(STEP, self.seed))
        return {spot: size_of(got, expected, STEP) for spot, got, expected in self._own_ends(moved, self.base[0])}

    def _own_ends(self, moved: Run, still: Run) -> Iterator[tuple[Spot, np.ndarray, np.ndarray]]:
        """The results of two runs of the reference."""
        for path, x in still.outputs.items():
            yield Spot("output", path), moved.outputs[path], x
        ours, others = self.in_torch(still, self.is_torch_first), self.in_torch(moved, self.is_torch_first)
        for spot, x in ours.items():
            yield spot, others[spot], x
        for number, x in still.input_gradients.items():
            yield Spot("input gradient", self.structure.paths[number]), moved.input_gradients[number], x

    def compared(
        self,
        precision: str,
        into: Comparison,
        own: frozenset[Event] = frozenset(),
        silent: "Silent | None" = None,
        moved: "Moves | None" = None,
    ) -> None:
        """Run the port with the arrays of the reference's layers, and compare."""
        silent = silent or Silent()
        is_plain = precision == "float64" and moved is None
        run, recording = self.base if is_plain else self.recorded(precision, moved)
        expected = recording
        if silent:
            run, expected = self.silenced(precision, recording, own, silent, moved)

        def see(spot: Spot, got: np.ndarray, expected: np.ndarray) -> None:
            into.see(spot, precision, got, expected)

        tape = Planting(self.plan, recording, see, own, silent.events, expected)
        port = self.run_port(precision, tape, moved, silent=silent.outputs)
        for spot, got, right in self.ends(run, port):
            into.see(spot, precision, got, right)
        for target in self.plan.values():
            spot = Spot("cotangent", target.event)
            left = expected.cotangents.get(target.event)
            if left is not None and precision not in into.measures.get(spot, {}):  # nothing goes back there in the port
                into.see(spot, precision, np.zeros_like(left), left)
                into.unseen.add(spot)

    def silenced(
        self, precision: str, recording: Recording, own: frozenset[Event], silent: "Silent", moved: "Moves | None"
    ) -> tuple[Run, Recording]:
        """The reference's gradients and cotangents when the cotangents at some events are 0."""
        found = Recording(self.layers)
        found.values = recording.values

        def see(spot: Spot, got: np.ndarray, expected: np.ndarray) -> None:
            if spot.what == "cotangent" and isinstance(spot.name, Event):
                found.cotangents[spot.name] = np.array(got)

        tape = Planting(self.itself, recording, see, own, silent.events)
        return self.run_reference(precision, tape, moved, silent=silent.outputs), found

    @cached_property
    def by_layer(self) -> Comparison:
        """The layers, each with the inputs of the reference's layer."""
        found = Comparison(self.sizes)
        for precision in self.precisions:
            self.compared(precision, found)
        return found

    @cached_property
    def from_end_to_end_run(self) -> Run:
        """A run of the port in float64, in which nothing but the dropouts' masks is the reference's."""
        tape = Planting({}, self.base[1], nothing)
        run = self.run_port("float64", tape)
        self.masks.extend(tape.masks)
        return run

    @cached_property
    def from_end_to_end(self) -> Comparison:
        """The models as they are, in float64, or in the half precision that the reference computes in."""
        run, port = self.base[0], self.from_end_to_end_run
        if self.mixed:
            run, recording = self.recorded(self.mixed)
            port = self.run_port(self.mixed, Planting({}, recording, nothing))

        def compared(sizes: Mapping[Spot, float]) -> Comparison:
            found = Comparison(sizes)
            for spot, got, expected in self.ends(run, port):
                found.see(spot, self.precisions[0], got, expected)
            return found

        # What agrees by the size of the arrays agrees by that of their terms too, which another run has to find out.
        found = compared({})
        return compared(self.sizes_from_end_to_end) if found.failing else found


def quietly(module: Module, *args: Any, **kwargs: Any) -> Run:
    """A run of a module, without NumPy's warnings of overflow and division."""
    try:
        with np.errstate(all="ignore"):
            return module.run(*args, **kwargs)
    except (StopRun, InputError):
        raise
    except Exception as error:  # a model raises whatever it does
        raise uncallable(module, args[1], error, args[2]) from error


def parts_of(match: Match) -> list[Part]:
    """All parts of PyTorch's arrays that are matched."""
    return [part for link in match.links for part in link.torch]


def nothing(spot: Spot, got: np.ndarray, expected: np.ndarray) -> None:
    """Compare nothing."""


class Silent(NamedTuple):
    """Where the backward pass continues with cotangents of 0: at events, and at outputs of the model."""

    events: frozenset[Event] = frozenset()
    outputs: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self.events or self.outputs)


class Moves:
    """Moves every number up or down by a fraction of itself, at random; the same array always in the same way."""

    def __init__(self, by: float, seed: int) -> None:
        """A fraction of 0 moves nothing."""
        self.by, self.seed = by, seed

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """The array, moved."""
        if not self.by or not is_inexact(x):
            return x
        random = np.random.default_rng([self.seed, x.size])
        bits = np.unpackbits(np.frombuffer(random.bytes(x.size // 8 + 1), np.uint8), count=x.size)
        return np.asarray(x * np.where(bits, 1 + self.by, 1 - self.by).reshape(x.shape))


def size_of(moved: np.ndarray, still: np.ndarray, step: float) -> float:
    """The largest of an array's elements, or of their changes divided by the step if that is larger."""
    if not is_inexact(still) or moved.shape != still.shape:
        return greatest(still) if is_inexact(still) else 1.0
    with np.errstate(all="ignore"):
        return max(greatest(still), greatest((wide(moved) - wide(still)) / step))


def in_order(parameters: Sequence[Parameter], called: Iterable[str]) -> tuple[Parameter, ...]:
    """The parameters in the order in which their layers are called; first those whose layers are not called."""
    rank = {layer: k for k, layer in enumerate(called)}

    def place(parameter: Parameter) -> int:
        names = parameter.path.split(".")
        layers = (".".join(names[:k]) for k in range(len(names) - 1, 0, -1))
        return next((rank[layer] for layer in layers if layer in rank), -1)

    return tuple(sorted(parameters, key=place))


def input_layouts(inputs: Arrays) -> list[tuple[Layout, ...]]:
    """The layouts to try for the inputs: as they are; and, for images and signals, with the channels last or second."""
    same = tuple(Layout(tuple(range(x.ndim)), x.shape, x.shape) for x in inputs)
    last = tuple(
        Layout((0, *range(2, x.ndim), 1), x.shape, (x.shape[0], *x.shape[2:], x.shape[1]))
        if x.ndim >= 3 and is_inexact(x)
        else layout
        for x, layout in zip(inputs, same, strict=True)
    )
    second = tuple(
        Layout((0, x.ndim - 1, *range(1, x.ndim - 1)), x.shape, (x.shape[0], x.shape[-1], *x.shape[1:-1]))
        if x.ndim >= 3 and is_inexact(x)
        else layout
        for x, layout in zip(inputs, same, strict=True)
    )
    return list(dict.fromkeys((same, last, second)))


def apart(reference: Run, port: Run) -> tuple[int, float]:
    """How many outputs have no counterpart of their shape, and how far the others are apart, relative to their size."""
    missing, off = 0, 0.0
    for x, y in zip_longest(reference.outputs.values(), port.outputs.values()):
        candidates = layouts(x.shape, y.shape) if x is not None and y is not None else ()
        missing += not candidates
        if candidates and is_inexact(x) and is_inexact(y):
            with np.errstate(all="ignore"):
                difference = np.abs(wide(nearest(candidates, y, x, frozenset()).to_reference(y)) - wide(x))
            known = difference[~np.isnan(difference)]
            off += float(known.sum()) / max(known.size * greatest(x), np.finfo(np.float64).tiny)
    return missing, off


def uncallable(module: Module, inputs: Arrays, error: Exception, precision: str = "") -> InputError:
    """The error that a model cannot be called, in one line."""
    shapes = ", ".join(f"{x.dtype}{list(x.shape)}" for x in inputs)
    where = f" in {precision}" if precision else ""
    said = " ".join([f"{type(error).__name__}:", *str(error).split()])[:LONGEST]
    return InputError(f"{module.name} ({module.framework}) cannot be called{where} with inputs of {shapes}: {said}")


def make_case(
    reference: Module,
    port: Module,
    inputs: object,
    match: Mapping[str, Any] | Match | None = None,
    seed: int = 0,
) -> ModelCase:
    """
    The case.

    Raises
    ------
    InputError
        An input is not an array of numbers, or the seed or the match is invalid.
    """
    arrays, structure = make_inputs(inputs)
    for path, x in zip(structure.paths, arrays, strict=True):
        if is_inexact(x) and np.isnan(wide(x)).any():
            raise InputError(f"{path} has NaN in it, of which nothing can be compared; give numbers")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed={seed!r} is no seed; give a whole number from 0 up")
    if match is not None and not isinstance(match, Mapping | Match):
        raise InputError(
            f'match= is {type(match).__name__}; give {{"fc.weight": "dense.kernel"}}, or the match of a report'
        )
    return ModelCase(reference, port, structure, arrays, match or {}, seed)
