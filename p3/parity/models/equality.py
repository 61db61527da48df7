"""`compared`: whether two models hold the same numbers, and by what transformation they would."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Literal

import numpy as np

from p3.parity.models.items import Item, has_same_numbers, is_equal, lower
from p3.parity.models.layouts import Layout, arrangements
from p3.parity.models.links import Link, Match, Parameter, Part


@dataclass(frozen=True)
class Comparison:
    """
    Whether the arrays of a link are equal, and what would make them so.

    Attributes
    ----------
    link : the link
    is_equal : whether all numbers are equal in the dtype of less precision
    fault : "" where they are equal; "layout", where another order of the axes makes them equal; "flip", where reversed
        axes of space do; "parameter", where the numbers are those of another array of PyTorch, or of only some of
        the arrays of a sum; "order", where elements along an axis come in another order, as gates and heads;
        "values" otherwise
    instead : the link by which they are equal; None where there is none
    axis : of JAX's array, along which the order is another
    order : of the pieces of that axis, each with the place that the link has for it
    """

    link: Link
    is_equal: bool
    fault: Literal["", "layout", "flip", "parameter", "order", "values"] = ""
    instead: Link | None = None
    axis: int | None = None
    order: tuple[int, ...] = ()


def compared(match: Match, torch: Sequence[Parameter], jax: Sequence[Parameter]) -> tuple[Comparison, ...]:
    """
    Whether each link's arrays are equal, and what would make them so.

    Parameters
    ----------
    match : of the two models
    torch, jax : their arrays
    """
    mine, theirs = {x.path: x for x in torch}, {x.path: x for x in jax}
    single = {part: Item(mine[part.path], part, (part.path,)) for link in match.links for part in link.torch}
    found = []
    for link in match.links:
        item = Item(theirs[link.jax.path], link.jax, (link.jax.path,))
        expected = link.to_jax([mine[part.path].array for part in link.torch])
        found.append(
            Comparison(link, True) if is_equal(expected, item.array) else explained(link, expected, item, single)
        )
    return tuple(found)


def explained(link: Link, expected: np.ndarray, jax: Item, single: Mapping[Part, Item]) -> Comparison:
    """What would make the arrays of a link equal that are not."""
    # The link's own arrays first, so that what is told is the least that has to change.
    for part in dict.fromkeys((*link.torch, *single)):
        torch = single[part]
        if torch.array.size != jax.array.size or not has_same_numbers(torch, jax):
            continue
        is_other = part not in link.torch or link.is_sum
        as_linked = replace(link, torch=(part,))
        others = rearranged(torch, jax)
        if is_other and torch.shape == single[link.torch[0]].shape:
            others = chain((as_linked,), others)
        for other in others:
            if is_equal(other.laid_out(torch.array), jax.array):
                is_turned = replace(other, flipped=link.flipped) == as_linked
                return Comparison(link, False, "parameter" if is_other else "flip" if is_turned else "layout", other)
    for axis in range(expected.ndim):
        if order := reordered(expected, jax.array, axis):
            return Comparison(link, False, "order", axis=axis, order=order)
    return Comparison(link, False, "values")


def rearranged(torch: Item, jax: Item) -> Iterator[Link]:
    """The links with all layouts that the shapes allow."""
    letters = torch.letters or "abcdefgh"
    layouts = [Layout(torch.shape, jax.shape, groups) for groups in arrangements(torch.shape, jax.shape)]
    for layout, is_flipped in product(layouts, (False, True)):
        yield layout.link((torch.part,), jax.part, letters, is_flipped)


def reordered(a: np.ndarray, b: np.ndarray, axis: int) -> tuple[int, ...]:
    """The order in which the pieces of `a` along an axis are those of `b`, the largest such pieces; or ()."""
    dtype = lower(a.dtype, b.dtype)
    rows = [np.moveaxis(x.astype(dtype), axis, 0).reshape(x.shape[axis], -1) for x in (a, b)]
    places: defaultdict[bytes, list[int]] = defaultdict(list)
    for i, row in reversed(list(enumerate(rows[0]))):
        places[row.tobytes()].append(i)
    order = []
    for row in rows[1]:
        if not places[row.tobytes()]:
            return ()
        order.append(places[row.tobytes()].pop())
    for count in range(2, len(order) + 1):
        size = len(order) // count
        if size * count == len(order):
            blocks = np.reshape(order, (count, size))
            if np.all(blocks[:, :1] % size == 0) and np.all(blocks == blocks[:, :1] + np.arange(size)):
                return tuple(int(start) // size for start in blocks[:, 0])
    return ()
