"""Recurrent cells, which every library keeps in other pieces."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from p3.parity.models.items import Item, Pair
from p3.parity.models.links import Cut, Part

# Recurrent cells, which every library keeps in other pieces.

GATES = {4: "ifgo", 3: "rzn", 1: ""}  # in PyTorch's order, which nnx and equinox have too
CELL_NAMES = (
    re.compile(r"(?:^|\.)(?:dense_)?(?P<of>[ih])(?P<gate>[ifgorzn]?)_?\.(?P<role>kernel|weight|w|bias|b)$"),
    re.compile(r"(?:^|\.)(?P<role>weight|kernel|w|bias|b)_?(?P<of>[ih])h?(?P<suffix>_l\d+(_reverse)?)?$"),
    re.compile(r"(?:^|\.)(?P<role>bias|b)(?P<gate>_n)?$"),
)


@dataclass(frozen=True, eq=False)
class Cell:
    """
    The arrays of one layer, in one direction, of a recurrent network.

    Attributes
    ----------
    name : a path that says which layer and direction it is
    arrays : by what they act on, "i" for the input, "h" for the hidden state and "" for both; the gate, "" for all of
        them; and whether they are a "weight" or a "bias"
    """

    name: str
    arrays: Mapping[tuple[str, str, str], Item]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of gates, of hidden features and of input features; zeros for what is not a cell."""
        weights = {of: [x for (on, _, role), x in self.arrays.items() if (on, role) == (of, "weight")] for of in "ih"}
        gates = {of: {gate for on, gate, role in self.arrays if (on, role) == (of, "weight")} for of in "ih"}
        if gates["i"] != gates["h"] or not all(len(x.shape) == 2 for xs in weights.values() for x in xs):
            return 0, 0, 0
        if "" in gates["h"]:
            (recurrent,), hidden = weights["h"], min(weights["h"][0].shape)
            count = max(recurrent.shape) // hidden if hidden else 0
            is_whole = count in GATES and max(recurrent.shape) == count * hidden and len(gates["h"]) == 1
        else:
            count, hidden = len(gates["h"]), weights["h"][0].shape[0] if weights["h"] else 0
            is_whole = count in GATES and gates["h"] == set(GATES[count])
        inputs = sum(x.array.size for x in weights["i"])
        return (count, hidden, inputs // (count * hidden)) if is_whole and hidden else (0, 0, 0)


def cells(items: Sequence[Item]) -> list[Cell]:
    """The recurrent cells of a model."""
    arrays: defaultdict[str, dict[tuple[str, str, str], Item]] = defaultdict(dict)
    for item in items:
        for pattern in CELL_NAMES:
            if found := pattern.search(item.names[0]):
                parts = {name: value or "" for name, value in found.groupdict().items()}
                name = item.names[0][: found.start()] + parts.get("suffix", "").replace("_", ".")
                role = "bias" if parts["role"] in ("bias", "b") else "weight"
                arrays[name][parts.get("of", ""), parts.get("gate", "").strip("_"), role] = item
                break
    return [cell for cell in (Cell(name, found) for name, found in arrays.items()) if cell.sizes[0]]


def recurrent(torch: Cell, jax: Cell) -> Iterator[Pair]:
    """The arrays of two cells, or pieces of them, that correspond."""
    count, hidden, _ = torch.sizes
    gates = GATES[count]

    def cut(item: Item, gate: str, until: str = "") -> Item:
        """A piece of an array of all gates: one gate, or those from one until another."""
        if not gate:
            return item
        start = gates.index(gate)
        stop = gates.index(until) if until else start + 1
        return replace(item, part=Part(item.part.path, (Cut(0, start * hidden, stop * hidden),)), known={})

    both = [torch.arrays[of, "", "bias"] for of in "ih" if (of, "", "bias") in torch.arrays]
    for (of, gate, role), item in jax.arrays.items():
        if role == "weight":
            yield (cut(torch.arrays[of, "", "weight"], gate),), item
        elif len(both) < 2:
            continue
        elif of and all((other, gate, "bias") in jax.arrays for other in "ih"):
            yield (cut(both["ih".index(of)], gate),), item
        elif count != 3 or gate in ("r", "z"):
            yield tuple(cut(bias, gate) for bias in both), item
        # In the new state of a GRU the bias of the hidden state is multiplied by the reset gate, so it is on its own.
        elif gate == "n":
            yield (cut(both[of != "i"], gate),), item
        else:
            yield tuple(cut(bias, "r", "n") for bias in both), cut(item, "r", "n")
            yield (cut(both[0], "n"),), cut(item, "n")
