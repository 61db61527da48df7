"""Which layers of two models correspond, and in what order of axes their arrays are."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from p3.parity.function import is_inexact
from p3.parity.models.links import Link, Match, Parameter
from p3.parity.models.tape import Event, Point

Shape = tuple[int, ...]
Shapes = Mapping[Event, tuple[Shape, np.dtype[Any]]]


class Layout(NamedTuple):
    """
    The layout of the port's array, relative to the reference's.

    Attributes
    ----------
    axes : the reference's axes in the port's order; empty where the shapes differ and the order in memory is the same
    reference, port : the shapes
    """

    axes: tuple[int, ...]
    reference: Shape
    port: Shape

    @property
    def is_identity(self) -> bool:
        """Whether the layouts are the same."""
        return self.reference == self.port and self.axes == tuple(range(len(self.axes)))

    def to_port(self, x: np.ndarray) -> np.ndarray:
        """The reference's array, as the port has it."""
        return (np.transpose(x, self.axes) if self.axes else x).reshape(self.port)

    def to_reference(self, x: np.ndarray) -> np.ndarray:
        """The port's array, as the reference has it."""
        if not self.axes:
            return x.reshape(self.reference)
        return np.transpose(x.reshape([self.reference[a] for a in self.axes]), np.argsort(self.axes))

    def __str__(self) -> str:
        """In words."""
        if self.is_identity:
            return "the same order of axes"
        if self.axes:
            return f"axes {', '.join(map(str, self.axes))} of the reference"
        return f"the shape {self.port} for {self.reference}"


def layouts(reference: Shape, port: Shape) -> tuple[Layout, ...]:
    """
    The possible layouts of an array of another shape, the likeliest first; none where there is none.

    Axes may be in another order where that is the channels' (BCHW for BHWC) or the time's (TBF for BTF), and axes may
    be joined or split.
    """
    found = []
    n = len(reference)
    if reference == port:
        found.append(Layout(tuple(range(n)), reference, port))
    for axes in orders(n):
        if tuple(reference[a] for a in axes) == port:
            found.append(Layout(axes, reference, port))
    if not found and np.prod(reference) == np.prod(port):
        found.append(Layout((), reference, port))
        for axes in orders(n):
            found.append(Layout(axes, reference, port))
    return tuple(dict.fromkeys(found))


def orders(count: int) -> tuple[tuple[int, ...], ...]:
    """The orders of axes in which libraries differ: the channels last or second, and the first two exchanged."""
    if count < 2:
        return ()
    rest = tuple(range(2, count))
    if count == 2:
        return ((1, 0),)
    last = (0, *rest, 1)
    second = (0, count - 1, *range(1, count - 1))
    first = (1, 2, 0) if count == 3 else ()  # CHW of one example
    return tuple(dict.fromkeys(axes for axes in (last, second, (1, 0, *rest), first) if axes))


class Unit(NamedTuple):
    """
    A layer of the reference, and the layer of the port with the same parameters.

    Attributes
    ----------
    reference, port : their paths
    is_block : whether it has other units in it, so that only what it returns is compared
    number, stacked : where the port stacks the parameters of several layers, the number of this one, and how many
    """

    reference: str
    port: str
    number: int = 0
    stacked: int = 1
    is_block: bool = False


Instance = tuple[str, int, int]  # of a layer: its path, its number among those that are stacked, and how many these are


class Target(NamedTuple):
    """The event of the reference that corresponds to one of the port, and the possible layouts."""

    event: Event
    layouts: tuple[Layout, ...]


def tags_of(match: Match, is_torch: bool) -> dict[str, tuple[frozenset[int], ...]]:
    """
    For each array of a side, the numbers of its links.

    An array of JAX with the parameters of several layers, stacked for a scan, has those of each layer apart.
    """
    numbers: dict[str, dict[int, int]] = {}  # by path, each link's number, and where its part begins
    stacked: dict[str, dict[int, str]] = {}  # by JAX's path, where the part of each layer of PyTorch's begins
    for number, link in enumerate(match.links):
        begin = link.jax.cuts[0].start if is_one_of_several(link) else -1
        stacked.setdefault(link.jax.path, {})[begin] = link.torch[0].path
        for path in [part.path for part in link.torch] if is_torch else [link.jax.path]:
            numbers.setdefault(path, {})[number] = begin
    found: dict[str, tuple[frozenset[int], ...]] = {}
    for path, links in numbers.items():
        if is_torch or not is_stacked([part for _, part in sorted(stacked[path].items())]):
            found[path] = (frozenset(links),)
        else:
            order = sorted(set(links.values()))
            found[path] = tuple(frozenset(n for n, begin in links.items() if begin == k) for k in order)
    return found


def is_one_of_several(link: Link) -> bool:
    """Whether a link's part in JAX is one element of the first axis, one of several stacked layers."""
    cuts = link.jax.cuts
    return len(cuts) == 1 and cuts[0].axis == 0 and cuts[0].stop - cuts[0].start == 1


def is_stacked(paths: Sequence[str]) -> bool:
    """Whether paths are those of one parameter in several layers: they differ in one number, which counts from 0."""
    if len(paths) < 2:
        return False
    split = [path.split(".") for path in paths]
    if len({len(names) for names in split}) > 1:
        return False
    differing = [names for names in zip(*split, strict=True) if len(set(names)) > 1]
    return len(differing) == 1 and list(differing[0]) == [str(k) for k in range(len(paths))]


def layers_of(
    parameters: Sequence[Parameter], tags: Mapping[str, tuple[frozenset[int], ...]], called: Sequence[str]
) -> dict[Instance, frozenset[int]]:
    """The links of each layer that is called; of one with stacked parameters, for each number."""
    owned: dict[str, list[tuple[frozenset[int], ...]]] = {layer: [] for layer in called}
    for parameter in parameters:
        for path in (parameter.path, *parameter.aliases):
            names = path.split(".")
            prefixes = {".".join(names[:k]) for k in range(1, len(names))} | {parameter.layer}
            for layer in prefixes & owned.keys():
                if parameter.path in tags:
                    owned[layer].append(tags[parameter.path])
    found = {}
    for layer, each in owned.items():
        counts = {len(parts) for parts in each}
        if each and len(counts) == 1:
            count = counts.pop()
            for k in range(count):
                found[layer, k, count] = frozenset[int]().union(*(parts[k] for parts in each))
    return found


def units_of(
    match: Match,
    reference: tuple[Sequence[Parameter], Shapes, bool],
    port: tuple[Sequence[Parameter], Shapes, bool],
) -> tuple[Unit, ...]:
    """
    The smallest pairs of layers with the same parameters.

    Where nested layers have the same parameters, the innermost one counts. A layer that contains such layers is not a
    unit itself: what else it computes is code between them.
    """
    sides = []
    for parameters, shapes, is_torch in (reference, port):
        called = tuple(dict.fromkeys(event.point.layer for event in shapes))
        by_tags: dict[frozenset[int], list[Instance]] = {}
        for layer, tags in layers_of(parameters, tags_of(match, is_torch), called).items():
            by_tags.setdefault(tags, []).append(layer)
        sides.append(by_tags)
    units: list[Unit] = []
    taken: set[int] = set()
    for tags in sorted(sides[0].keys() & sides[1].keys(), key=len):
        if taken & tags:
            continue
        for ours, theirs in product(*(inside_out(side[tags]) for side in sides)):
            if fit(ours, reference[1], theirs, port[1]):
                units.append(Unit(ours[0], theirs[0], max(ours[1], theirs[1]), max(ours[2], theirs[2])))
                taken |= tags
                break
    units += blocks(units, sides, reference[1], port[1])
    units += without_parameters(units, reference[1], port[1])
    order = list(dict.fromkeys(event.point.layer for event in reference[1]))
    return tuple(sorted(units, key=lambda unit: order.index(unit.reference)))


def blocks(
    units: Sequence[Unit], sides: Sequence[Mapping[frozenset[int], Sequence[Instance]]], reference: Shapes, port: Shapes
) -> list[Unit]:
    """The pairs of layers that contain other units and have the same parameters; of nested ones the outermost."""
    known = {unit.reference for unit in units}
    found = []
    for tags in sides[0].keys() & sides[1].keys():
        pairs = product(*(reversed(inside_out(side[tags])) for side in sides))
        for ours, theirs in pairs:
            is_block = any(layer.startswith(f"{ours[0]}.") for layer in known)
            if is_block and fit(ours, reference, theirs, port):
                number, stacked = max(ours[1], theirs[1]), max(ours[2], theirs[2])
                found.append(Unit(ours[0], theirs[0], number, stacked, is_block=True))
                break
    return found


def without_parameters(units: Sequence[Unit], reference: Shapes, port: Shapes) -> list[Unit]:
    """The layers of the same path in both models without parameters and without layers in them, such as a dropout."""
    sides = []
    for shapes, known in ((reference, [u.reference for u in units]), (port, [u.port for u in units])):
        called = dict.fromkeys(event.point.layer for event in shapes)
        sides.append([layer for layer in called if not any(k == layer or k.startswith(f"{layer}.") for k in known)])
    found = []
    for layer in sides[0]:
        inner = any(other.startswith(f"{layer}.") for side in sides for other in side)
        if layer in sides[1] and not inner and fit((layer, 0, 1), reference, (layer, 0, 1), port):
            found.append(Unit(layer, layer))
    return found


def inside_out(layers: Sequence[Instance]) -> list[Instance]:
    """The layers in order, but each before the ones that contain it."""
    return sorted(layers, key=lambda one: sum(other[0].startswith(f"{one[0]}.") for other in layers))


def fit(ours: Instance, reference: Shapes, theirs: Instance, port: Shapes) -> bool:
    """Whether two layers are called equally often, and return arrays of shapes that correspond."""
    (mine, _, mine_count), (other, _, other_count) = ours, theirs
    returned, there = points(reference, mine, "output"), points(port, other, "output")
    pairs = list(paired(returned, there))
    return bool(pairs) and all(calls(reference, a) * other_count == calls(port, b) * mine_count for a, b in pairs)


def plan_of(units: Sequence[Unit], reference: Shapes, port: Shapes, is_port_jax: bool) -> dict[Event, Target]:
    """For each event of the port at a unit, that of the reference."""
    plan: dict[Event, Target] = {}
    for unit in units:
        for role in ("output",) if unit.is_block else ("input", "output"):
            ours = points(reference, unit.reference, role)
            theirs = points(port, unit.port, role)
            for mine, other in paired(ours, theirs):
                for call in range(calls(reference, mine)):
                    own = call if is_port_jax else call * unit.stacked + unit.number
                    there = call * unit.stacked + unit.number if is_port_jax else call
                    event, counterpart = Event(mine, own), Event(other, there)
                    if event in reference and counterpart in port:
                        found = layouts(reference[event][0], port[counterpart][0])
                        if found:
                            plan[counterpart] = Target(event, found)
    return plan


def points(shapes: Shapes, layer: str, role: str) -> dict[Point, tuple[Shape, np.dtype[Any]]]:
    """The arrays that a layer receives or returns in its first call."""
    return {e.point: x for e, x in shapes.items() if e.point.layer == layer and e.point.role == role and e.call == 0}


def calls(shapes: Shapes, point: Point) -> int:
    """How often an array is seen at a point."""
    return sum(event.point == point for event in shapes)


def paired(
    ours: Mapping[Point, tuple[Shape, np.dtype[Any]]], theirs: Mapping[Point, tuple[Shape, np.dtype[Any]]]
) -> Iterator[tuple[Point, Point]]:
    """
    The pairs of arrays that two layers receive or return.

    Inputs come in the same order. Outputs need not, such as the two states of an LSTM: where several have the same
    shape, none is paired.
    """
    fits = {
        point: [
            other
            for other, (its, its_dtype) in theirs.items()
            if kind_of(dtype) == kind_of(its_dtype) != "" and layouts(shape, its)
        ]
        for point, (shape, dtype) in ours.items()
    }
    taken: set[Point] = set()
    for point, others in fits.items():
        left = [other for other in others if other not in taken]
        rivals = [p for p in ours if p.role == "output" and p != point and set(fits[p]) & set(left)]
        if left and not (rivals and len(others) > 1):
            taken.add(left[0])
            yield point, left[0]


def kind_of(dtype: np.dtype[Any]) -> str:
    """Whether an array is floating or of integers; booleans are neither, since masks mean opposite things in places."""
    if is_inexact(np.empty(0, dtype)):
        return "floating"
    return "whole" if dtype.kind in "iu" else ""
