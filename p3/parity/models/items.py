"""What is matched: arrays, and parts of those that the other side has apart; and the links between them."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import combinations

import ml_dtypes
import numpy as np

from p3.parity.models.layouts import JAX_AXES, TORCH_AXES, Layout, arrangements, is_coarse
from p3.parity.models.links import Link, Parameter, Part

# What is matched: arrays, and parts of those that the other side has apart.


@dataclass(frozen=True, eq=False)
class Item:
    """
    An array of a model, or a part of it, that is matched as a whole.

    Attributes
    ----------
    parameter : whose it is
    part : what of it
    names : paths that say what it is: the parameter's path, with the number of the layer or the word for the part
    """

    parameter: Parameter
    part: Part
    names: tuple[str, ...]
    known: dict[np.dtype, tuple[int, int]] = field(default_factory=dict)

    @cached_property
    def array(self) -> np.ndarray:
        """Its numbers."""
        return self.part.of(self.parameter.array)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array."""
        return self.array.shape

    @cached_property
    def leaf(self) -> str:
        """The last word of the path that is not a number."""
        words = [word for word in self.parameter.path.split(".") if not word.isdigit()]
        return words[-1] if words else ""

    @cached_property
    def is_constant(self) -> bool:
        """Whether all elements are the same, which tells no array from another."""
        return self.array.size < 2 or bool(np.all(self.array == self.array.flat[0]))

    def numbers(self, dtype: np.dtype) -> tuple[int, int]:
        """A hash of the numbers in that dtype, whatever their order."""
        if dtype not in self.known:
            flat = np.ascontiguousarray(self.array.astype(dtype)).reshape(-1)
            bits = flat.view(np.dtype(f"V{dtype.itemsize}")).view(np.uint8).reshape(-1, dtype.itemsize)
            words = np.zeros(len(bits), np.uint64)
            for i in range(dtype.itemsize):
                words = words * np.uint64(257) + bits[:, i]
            self.known[dtype] = int(words.sum()), int((words * words).sum())
        return self.known[dtype]

    @cached_property
    def letters(self) -> str:
        """What the axes of an array of PyTorch are; "" where its kind of layer does not say."""
        if len(self.shape) < 2 or "weight" not in self.leaf:
            return ""
        for pattern, letters in TORCH_AXES:
            if re.fullmatch(pattern, self.parameter.kind):
                space = re.search(r"(\d)d$", self.parameter.kind)
                layers = len(self.shape) - 2 - (int(space[1]) if space else 0)
                return "n" * layers + letters  # of several layers in one
        return ""

    @cached_property
    def orders(self) -> tuple[str, ...]:
        """In which orders an array of JAX may have the axes; none where its kind of layer does not say."""
        for pattern, orders in JAX_AXES:
            if re.fullmatch(pattern, f"{self.parameter.kind} {self.leaf}"):
                return orders
        return ()


def lower(a: np.dtype, b: np.dtype) -> np.dtype:
    """The dtype of less precision."""
    if a == b or a.kind in "biu" or b.kind in "biu":
        return a
    return max(a, b, key=lambda dtype: float(ml_dtypes.finfo(dtype).eps))  # type: ignore[no-untyped-call]


def is_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same numbers in the dtype of less precision."""
    dtype = lower(a.dtype, b.dtype)
    a, b = a.astype(dtype), b.astype(dtype)
    return a.shape == b.shape and bool(np.all((a == b) | ((a != a) & (b != b))))


def has_same_numbers(torch: Item, jax: Item) -> bool:
    """Whether two arrays that are not constant have the same numbers in some order."""
    if torch.is_constant or jax.is_constant:
        return False
    dtype = lower(torch.array.dtype, jax.array.dtype)
    return torch.numbers(dtype) == jax.numbers(dtype)


def fitting(torch: Item, jax: Item) -> tuple[Layout, ...]:
    """The layouts that two arrays may have, the likeliest first; one where the kinds or the shapes say."""
    return ordered_layouts(
        torch.shape, jax.shape, torch.letters, jax.orders, conventional(torch.leaf), conventional(jax.leaf)
    )


@cache
def ordered_layouts(
    torch: tuple[int, ...], jax: tuple[int, ...], letters: str, orders: tuple[str, ...], written: str, order: str
) -> tuple[Layout, ...]:
    """
    The layouts of two shapes, the likeliest first.

    Parameters
    ----------
    torch, jax : the shapes
    letters, orders : the axes by the kinds of the layers, of `TORCH_AXES` and `JAX_AXES`
    written, order : the axes by the names of the leaves, as `conventional` has them
    """
    found = [Layout(torch, jax, groups) for groups in arrangements(torch, jax)]
    found = [layout for layout in found if layout.is_in_order]
    if letters and orders:
        return tuple(dict.fromkeys(x for order in orders for x in found if x.has_order(letters, order)))
    written, order = letters or written, orders[0] if orders else order

    def strangeness(layout: Layout) -> tuple[bool, int]:
        """A sorting key: the less conventional the layout, the larger."""
        swaps = sum(a > b for a, b in combinations(layout.axes, 2))
        if not written or not order or len(torch) > len(written):
            return False, swaps
        # Of an array that is written as xyzio, what is there are the last axes: io.
        mine = written if written[0] == "o" or letters else written[len(written) - len(torch) :]
        return not layout.has_order(mine, order), swaps

    return tuple(sorted(found, key=strangeness))


@cache
def conventional(leaf: str) -> str:
    """The order of the axes that goes with the name of a leaf; "" where none does."""
    if leaf == "weight" or leaf.endswith("_weight") or leaf.startswith("weight_"):
        return "oixyz"
    return "xyzio" if leaf.endswith("kernel") or re.fullmatch(r"[wW](_?\w+)?", leaf) else ""


def in_groups(torch: Item, jax: Item) -> Link | None:
    """The link of the kernels of a transposed convolution in several groups, whose axes no single order relates."""
    if not torch.parameter.kind.startswith("ConvTranspose") or "ConvTranspose" not in jax.parameter.kind:
        return None
    (inner, outer, *space), (all_outer, one_inner, *same) = torch.shape, jax.shape
    groups = all_outer // outer
    if groups < 2 or (groups * outer, groups * one_inner, space) != (all_outer, inner, same):
        return None
    names = " ".join("xyz"[: len(space)])
    return Link(
        (torch.part,), jax.part, f"(g i) o {names} -> (g o) i {names}", (("g", groups),), tuple("xyz"[: len(space)])
    )


def fits(torch: Item, jax: Item) -> bool:
    """Whether the two can be the same array, whatever they are called."""
    if torch.array.size != jax.array.size:
        return False
    kinds = torch.array.dtype.kind, jax.array.dtype.kind
    if kinds[0] != kinds[1] and set(kinds) & set("biu"):
        return False
    return bool(fitting(torch, jax)) or (len(jax.shape) > 2 and in_groups(torch, jax) is not None)


Pair = tuple[tuple[Item, ...], Item]


def linked(pairs: Sequence[Pair]) -> tuple[list[Link], list[bool]]:
    """The links of pairs, and whether each one's layout is a guess."""
    # Of two unknown kinds of layers, those whose shape allows one layout tell that of the others.
    votes: defaultdict[tuple[str, ...], Counter[tuple[int, ...]]] = defaultdict(Counter)
    options = [fitting(torch[0], jax) for torch, jax in pairs]
    keys = [tuple(w for item in (torch[0], jax) for w in (item.parameter.kind, item.leaf)) for torch, jax in pairs]
    for key, layouts in zip(keys, options, strict=True):
        if len(layouts) == 1 and len(layouts[0].signature) > 1:
            votes[key][layouts[0].signature] += 1
    told = set(votes)
    for key, layouts, (torch, jax) in zip(keys, options, pairs, strict=True):
        if len(layouts) > 1 and key not in told and len(torch) == 1 and has_same_numbers(torch[0], jax):
            for layout in layouts:
                if is_equal(link_with(torch, jax, layout).laid_out(torch[0].array), jax.array):
                    votes[key][layout.signature] += 1
    links, guesses = [], []
    for key, layouts, (torch, jax) in zip(keys, options, pairs, strict=True):
        if not layouts and (link := in_groups(torch[0], jax)):
            links.append(link)
            guesses.append(False)
            continue
        layout = layouts[0]
        # Which of several axes comes first where they become one, only their use tells.
        is_merged = not is_coarse(layout.torch, layout.jax) and any(len(group) > 1 for group in layout.groups)
        is_known = len(layouts) == 1 or (
            "Norm" in torch[0].parameter.kind and layout.axes == tuple(sorted(layout.axes))
        )
        if not is_known and votes[key]:
            (order, count), *others = votes[key].most_common()
            agreeing = [x for x in layouts if x.signature == tuple(axis for axis in order if axis in x.signature)]
            is_known = bool(agreeing) and count > sum(number for _, number in others)
            layout = agreeing[0] if agreeing else layout
        links.append(link_with(torch, jax, layout))
        guesses.append(is_merged or not is_known)
    return links, guesses


def link_with(torch: tuple[Item, ...], jax: Item, layout: Layout) -> Link:
    """The link of a pair with a layout."""
    letters = torch[0].letters
    # That of the convolution whose transpose it is, which lies as PyTorch's.
    is_as_in_torch = "transpose_kernel" in jax.parameter.kind if jax.orders else is_transpose(layout, letters)
    is_flipped = torch[0].parameter.kind.startswith("ConvTranspose") and not is_as_in_torch
    return layout.link(tuple(item.part for item in torch), jax.part, letters or "abcdefgh", is_flipped)


def is_transpose(layout: Layout, letters: str) -> bool:
    """Whether a kernel of an unknown kind of layer is laid out as by flax's transpose_kernel=True."""
    if not letters or not layout.has_order(letters, "xyzoi"):
        return False
    # Where one of them is 1, its place tells.
    return not layout.has_order(letters, "xyzio") or layout.jax[-2:] == layout.torch[1::-1] != layout.torch[:2]
