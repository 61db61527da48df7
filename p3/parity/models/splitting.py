"""What one side has in one array and the other in several: stacked layers and fused projections."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from p3.parity.models.items import Item, conventional, lower
from p3.parity.models.layouts import arrangements
from p3.parity.models.links import Cut, Part
from p3.parity.models.names import FUSED, understood

# What one side has in one array and the other in several.


def families(items: Iterable[Item]) -> dict[tuple[str, str], list[Item]]:
    """The items of one shape whose paths differ in one number alone, by the path before and after it."""
    found: defaultdict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        for number in re.finditer(r"\d+", item.names[0]):
            found[item.names[0][: number.start()], item.names[0][number.end() :]].append(item)
    return {
        around: members
        for around, members in found.items()
        if len(members) > 1 and len({item.shape for item in members}) == 1
    }


def unstacked(mine: Sequence[Item], others: Sequence[Item]) -> list[Item]:
    """The items of a side; an array that stacks the layers which the other side has apart is split into them."""
    layered: defaultdict[int, list[tuple[tuple[str, str], Item]]] = defaultdict(list)
    for around, members in families(others).items():
        layered[len(members)].append((around, members[0]))
    # What is in numbered layers is not stacked as well; the 1 of norm1 is the number of no layer.
    apart = {
        (item, len(members))
        for (before, after), members in families(mine).items()
        if before.endswith((".", "_")) and after.startswith(".")
        for item in members
    }
    mine_have, they_have = (Counter(sorted_shape(item.shape) for item in items) for items in (mine, others))

    def is_layer_of(member: Item, item: Item) -> bool:
        """Whether an item can stack several arrays like the member, or of a fused projection that it is part of."""
        shape = sorted_shape(member.shape)
        if mine_have[shape] >= they_have[shape]:  # there are as many of them apart
            return False
        is_whole = member.array.size * item.shape[0] == item.array.size
        return is_whole or is_piece(member, item) or is_piece(item, member)

    done = []
    for item in mine:
        count = item.shape[0] if item.shape else 0
        near = [x for x in layered[count] if is_layer_of(x[1], item) and (item, count) not in apart]
        whole = [likeness(item.names[0], x.names[0]) for x in others if x.array.size == item.array.size]
        nearness = [likeness(item.names[0], x.names[0]) + (is_piece(x, item) or is_piece(item, x)) for _, x in near]
        if not near or max(nearness) <= max(whole, default=-1):
            done.append(item)
            continue
        best, _ = near[int(np.argmax(nearness))]
        words = item.names[0].split(".")
        # The number goes where the other side has it, as near as the words around tell.
        place = max(range(len(words)), key=lambda i: sum(map(likeness, split_at(words, i), best)))
        for i in range(count):
            name = ".".join([*words[:place], str(i), *words[place:]])
            done.append(replace(item, part=Part(item.part.path, (Cut(0, i, i + 1),)), names=(name,), known={}))
    return done


def sorted_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """The shape, whatever the order of the axes."""
    return tuple(sorted(size for size in shape if size != 1))


def split_at(words: Sequence[str], place: int) -> tuple[str, str]:
    """The path before a place and after it."""
    return ".".join(words[:place]), ".".join(words[place:])


def likeness(a: str, b: str) -> float:
    """How many of the words of two paths are the same, from 0 to 1, whether frequent or not."""
    (mine, role), (theirs, other) = understood(a), understood(b)
    if role and other and role != other:
        return -1
    total = len(mine) + len(theirs)
    return 2 * len(mine & theirs) / total if total else 1


def unfused(mine: Sequence[Item], others: Sequence[Item]) -> list[Item]:
    """The items of a side; a fused projection of which the other side has the parts is split into them."""
    done = []
    for item in mine:
        for pattern, words in FUSED:
            path = item.names[0].split(".")
            places = [i for i, word in enumerate(path) if pattern.search(word)]
            if not places or any(x.array.size == item.array.size and pattern.search(x.names[0]) for x in others):
                continue
            if parts := pieces(item, next(iter(projections(item, words, others)), ())):
                place = places[-1]
                for part, word in zip(parts, words, strict=True):
                    rest = path[place + 1 :] or [understood(path[place])[1]]
                    name = ".".join([*path[:place], word, *rest])
                    done.append(replace(item, part=part, names=(name,), known={}))
                break
        else:
            done.append(item)
    return done


def is_piece(item: Item, fused: Item) -> bool:
    """Whether an item's path names one of the parts of a fused projection."""
    words, role = understood(item.names[0])
    return role == understood(fused.names[0])[1] and any(
        pattern.search(fused.names[0]) and words & set(parts) for pattern, parts in FUSED
    )


def projections(fused: Item, words: Sequence[str], others: Sequence[Item]) -> Iterator[tuple[Item, ...]]:
    """The arrays of the other side that are the parts of a fused projection, and as large together as it."""
    role = understood(fused.names[0])[1]
    apart: defaultdict[tuple[str, ...], dict[str, Item]] = defaultdict(dict)
    for item in others:
        path = item.names[0].split(".")
        for i, component in enumerate(path):
            for word in understood(component)[0] & set(words):
                if understood(item.names[0])[1] == role:
                    apart[*path[:i], "", *path[i + 1 :]][word] = item
    for found in apart.values():
        if len(found) == len(words) and sum(item.array.size for item in found.values()) == fused.array.size:
            yield tuple(found[word] for word in words)


def pieces(fused: Item, apart: Sequence[Item]) -> list[Part]:
    """The pieces of one array with the sizes of several of the other side; none where no axis can be cut so."""
    letters = fused.letters or (fused.orders or (conventional(fused.leaf) or "oixyz",))[0]
    by_last = letters.index("o") > letters.index("i")
    axes = sorted(range(len(fused.shape)), reverse=by_last)
    if len(axes) > 2:  # where one may be an axis of what is projected
        axes = [axis for axis, size in enumerate(fused.shape) if size == len(apart)] + axes
    for axis in axes if apart else ():
        length, size = fused.shape[axis], fused.array.size
        if any(length * item.array.size % size for item in apart):
            continue
        lengths = [length * item.array.size // size for item in apart]
        starts = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
        if not all(
            arrangements((*fused.shape[:axis], n, *fused.shape[axis + 1 :]), item.shape)
            for n, item in zip(lengths, apart, strict=True)
        ):
            continue

        def cut(groups: int, axis: int = axis, starts: list[int] = starts) -> list[Part]:
            """The pieces where the axis is split into so many groups."""
            ends = [start // groups for start in starts]
            return [Part(fused.part.path, (*fused.part.cuts, Cut(axis, a, b, groups))) for a, b in pairwise(ends)]

        # Loaded numbers tell whether the heads have their query, key and value side by side.
        dtype = lower(fused.array.dtype, apart[0].array.dtype)
        hashes = [item.numbers(dtype) for item in apart]
        if not fused.is_constant and fused.numbers(dtype) == tuple(sum(x) % 2**64 for x in zip(*hashes, strict=True)):
            for groups in range(1, math.gcd(*lengths) + 1):
                if math.gcd(*lengths) % groups == 0:
                    parts = cut(groups)
                    if replace(fused, part=parts[0], known={}).numbers(dtype) == hashes[0]:
                        return parts
        return cut(1)
    return []
