"""The layouts of parameters: what their axes are, by the kind of layer, and how two shapes can be related."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import permutations

from p3.parity.models.links import Link, Part

# Layouts: what the axes are, by the kind of layer. "o" are the features of the output, or the words of an embedding,
# "i" those of the input, and "x", "y" and "z" are space.

TORCH_AXES = (
    (r"(NonDynamicallyQuantizable|Lazy)?Linear|Embedding(Bag)?|MultiheadAttention|(LSTM|GRU|RNN)(Cell)?", "oi"),
    (r"(Lazy)?Conv[123]d", "oixyz"),
    (r"(Lazy)?ConvTranspose[123]d", "ioxyz"),
    (r"Conv1D", "io"),
)
JAX_AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(nnx|linen)\.(Linear|LinearGeneral|Dense|DenseGeneral|Conv) kernel", ("xyzio",)),
    (r"(nnx|linen)\.ConvTranspose kernel", ("xyzio",)),
    (r"(nnx|linen)\.ConvTranspose\(transpose_kernel=True\) kernel", ("xyzoi",)),
    (r"(nnx|linen)\.Embed embedding| embedding", ("oi",)),
    (r"eqx\.nn\.(Linear|Conv\w*|Embedding|LSTMCell|GRUCell) weight\w*", ("oixyz",)),
    (r"(\w+\.)*FlaxConv1D kernel", ("oi",)),
)
INNER_FIRST = {"kernel", "w", "W"}  # leaves that are (in, out) by convention; "weight" is (out, in)


@cache
def arrangements(torch: tuple[int, ...], jax: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """
    The ways to rearrange one shape into the other.

    Each axis of the shape with fewer axes (the coarse one) is a group of axes of the other (the fine one). The result
    has the groups, as numbers of axes. Axes of size 1 are left out.
    """
    coarse, fine = (torch, jax) if is_coarse(torch, jax) else (jax, torch)
    sizes = [size for size in coarse if size != 1]
    axes = [axis for axis, size in enumerate(fine) if size != 1]
    found = []
    for order in permutations(axes):
        groups, rest = [], list(order)
        for size in sizes:
            group: list[int] = []
            while rest and math.prod(fine[axis] for axis in group) < size:
                group.append(rest.pop(0))
            if math.prod(fine[axis] for axis in group) != size:
                break
            groups.append(tuple(group))
        if len(groups) == len(sizes) and not rest:
            found.append(tuple(groups))
    return tuple(found)


def is_coarse(torch: tuple[int, ...], jax: tuple[int, ...]) -> bool:
    """Whether PyTorch's array is the one with fewer axes, or as few, when those of size 1 are left out."""
    return sum(size != 1 for size in torch) <= sum(size != 1 for size in jax)


@dataclass(frozen=True)
class Layout:
    """
    One arrangement of two shapes.

    Attributes
    ----------
    groups : as `arrangements` has them
    axes : PyTorch's axes in JAX's order in memory; one that is several axes in JAX is there several times
    """

    torch: tuple[int, ...]
    jax: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @cached_property
    def axes(self) -> tuple[int, ...]:
        """PyTorch's axes in JAX's order in memory."""
        if not is_coarse(self.torch, self.jax):
            return tuple(axis for group in self.groups for axis in group)
        coarse = [axis for axis, size in enumerate(self.torch) if size != 1]
        owner = {axis: mine for mine, group in zip(coarse, self.groups, strict=True) for axis in group}
        return tuple(owner[axis] for axis in sorted(owner))

    @property
    def is_in_order(self) -> bool:
        """Whether each axis that joins several has them in their own order in memory."""
        return not is_coarse(self.torch, self.jax) or all(group == tuple(sorted(group)) for group in self.groups)

    @property
    def signature(self) -> tuple[int, ...]:
        """The order of PyTorch's axes alone, which layers of other sizes share."""
        return tuple(axis for i, axis in enumerate(self.axes) if i == 0 or self.axes[i - 1] != axis)

    def has_order(self, axes: str, order: str) -> bool:
        """Whether PyTorch's axes of those letters come in that order in JAX."""
        places = [f"n{order}".index(axes[axis]) for axis in self.axes]
        return places == sorted(places)

    def link(self, torch: tuple[Part, ...], jax: Part, letters: str, is_flipped: bool = False) -> Link:
        """A link with this layout, where the letters name PyTorch's axes; `is_flipped` turns those of space."""
        is_coarse_torch = is_coarse(self.torch, self.jax)
        coarse, fine = (self.torch, self.jax) if is_coarse_torch else (self.jax, self.torch)
        wide = [axis for axis, size in enumerate(coarse) if size != 1]
        names: dict[int, str] = {}
        sizes: list[tuple[str, int]] = []
        halves = iter([("h", "d")])  # heads are most of what is split in two
        for place, group in zip(wide, self.groups, strict=True):
            if not is_coarse_torch:
                mine = tuple(letters[axis] for axis in group)
            elif len(group) == 1:
                mine = (letters[place],)
            else:
                numbered = tuple(f"{letters[place]}{i}" for i in range(len(group)))
                mine = next(halves, numbered) if len(group) == 2 and not {"h", "d"} & set(letters) else numbered
            names.update(zip(group, mine, strict=True))
            sizes += [(names[axis], fine[axis]) for axis in group] if len(group) > 1 else []
        grouped = dict(zip(wide, self.groups, strict=True))
        written = [" ".join(bracketed([names[a] for a in grouped.get(axis, ())]) for axis in range(len(coarse)))]
        written.append(" ".join(names.get(axis, "1") for axis in range(len(fine))))
        left, right = written if is_coarse_torch else reversed(written)
        flipped = tuple(name for name in names.values() if is_flipped and name in "xyz")
        if left == right and not flipped:
            return Link(torch, jax)
        return Link(torch, jax, f"{left} -> {right}", tuple(sizes), flipped)


def bracketed(names: Sequence[str]) -> str:
    """The names of one axis in a pattern of einops."""
    return "1" if not names else names[0] if len(names) == 1 else f"({' '.join(names)})"
