"""`match`: which arrays of two models correspond."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import Any

import numpy as np
from einops import EinopsError

from p3.errors import InputError
from p3.parity.models.cells import Cell, cells, recurrent
from p3.parity.models.items import Item, Pair, fits, has_same_numbers, is_equal, linked
from p3.parity.models.links import Cut, Guess, Link, Match, Parameter, Part
from p3.parity.models.names import Name, agreement, flattened, named, overlap, understood
from p3.parity.models.splitting import likeness, unfused, unstacked

# The assignment.

# How much what is known of two arrays says, in the same unit as the rest of them.
VALUES = 100  # they are equal
VALUES_BELOW_NAMES = 1  # the same, where most of what names say of equal arrays is right, so that the rest are mistakes
SIBLINGS = 2  # the weights of their layers belong together
WORDS_SHARED = 4
NUMBERS_SHARED = 3
KINDS_DIFFER = 2
ORDER = 1 / 2
KINDS = (("norm", r"norm"), ("linear", r"linear|dense|einsum|conv1d$"), ("conv", r"conv"), ("embed", r"embed"))
IMPOSSIBLE = -1e6


def kind_of(item: Item) -> str:
    """Which of `KINDS` a layer is, by its class or by the leaf; "" where neither tells."""
    kind = item.parameter.kind.lower()
    if "flaxconv1d" in kind or (kind == "conv1d" and len(item.shape) < 3):
        return "linear"
    kind = kind.removesuffix("1d") if kind != "conv1d" else "conv"
    leaf = {"embedding": "embed", "scale": "norm"}.get(item.leaf, "")
    return next((name for name, pattern in KINDS if re.search(pattern, kind)), leaf)


@dataclass(frozen=True, eq=False)
class Side:
    """The items of a model with what their names say, and their places among those of the same size."""

    items: Sequence[Item]
    names: Mapping[str, Name]

    @cached_property
    def places(self) -> dict[Item, float]:
        """From 0 to 1, in the order of the model."""
        alike: defaultdict[int, list[Item]] = defaultdict(list)
        for item in self.items:
            alike[item.array.size].append(item)
        return {item: i / len(items) for items in alike.values() for i, item in enumerate(items)}


def assigned(
    torch: Side, jax: Side, can: Callable[[Item, Item], bool], favoured: Mapping[tuple[str, str], int], values: int = 0
) -> tuple[list[tuple[Item, Item, bool]], float]:
    """
    The assignment with the largest total score.

    The result has its pairs, each with whether more than shape and order speaks for it, and the score.

    `favoured` are pairs of layers whose weights belong together, and `values` is what equal values weigh.
    """
    counts = Counter(word for side in (torch, jax) for name in side.names.values() for word in name.words)
    total = len(torch.names) + len(jax.names)
    weights = {word: math.log(1 + total / count) for word, count in counts.items()}

    def named(a: Item, b: Item) -> float:
        """The score of the names."""
        return max(
            WORDS_SHARED * overlap(x.words, y.words, weights) + NUMBERS_SHARED * agreement(x, y)
            for x, y in product((torch.names[name] for name in a.names), (jax.names[name] for name in b.names))
        )

    def score(a: Item, b: Item) -> float:
        """The score of a pair."""
        x, y = torch.names[a.names[0]], jax.names[b.names[0]]
        is_statistic = x.role in ("mean", "variance")
        if not can(a, b) or (x.role and y.role and x.role != y.role):
            return IMPOSSIBLE
        if a.parameter.is_state != b.parameter.is_state and not (is_statistic and x.role == y.role):
            return IMPOSSIBLE
        kinds = kind_of(a), kind_of(b)
        return (
            named(a, b)
            + (x.role == y.role)
            + (a.parameter.layer == b.parameter.layer)
            + values * has_same_numbers(a, b)
            - KINDS_DIFFER * (all(kinds) and kinds[0] != kinds[1])
            + SIBLINGS * favoured.get((a.parameter.layer, b.parameter.layer), 0)
            - ORDER * abs(torch.places[a] - jax.places[b])
        )

    # Here, since the import adds filters of warnings.
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]

    pairs, total_score = [], 0.0
    by_size: defaultdict[int, list[Item]] = defaultdict(list)
    for item in jax.items:
        by_size[item.array.size].append(item)
    for size in dict.fromkeys(item.array.size for item in torch.items):
        rows, columns = [item for item in torch.items if item.array.size == size], by_size[size]
        scores = np.array([[score(a, b) for b in columns] for a in rows]).reshape(len(rows), len(columns))
        for i, j in zip(*linear_sum_assignment(scores, maximize=True), strict=True):
            if scores[i, j] > IMPOSSIBLE / 2:
                a, b = rows[i], columns[j]
                total_score += scores[i, j]
                is_only = np.sum(scores[i] > IMPOSSIBLE / 2) == np.sum(scores[:, j] > IMPOSSIBLE / 2) == 1
                pairs.append((a, b, bool(is_only) or named(a, b) > 0 or has_same_numbers(a, b)))
    return pairs, total_score


def agreed(torch: Side, jax: Side, values: int) -> list[tuple[Item, Item, bool]]:
    """The best assignment. Layers whose weights correspond favour the pairs of their other arrays."""
    flat = [replace(side, names=flattened(side.names)) for side in (torch, jax)]
    found = []
    for sides in ((torch, jax), (flat[0], jax), (torch, flat[1])):
        pairs, _ = assigned(*sides, fits, {}, values)
        favoured = {
            (a.parameter.layer, b.parameter.layer): values if has_same_numbers(a, b) else 1
            for a, b, is_named in pairs
            if is_named and a.array.ndim > 1
        }
        found.append(assigned(*sides, fits, favoured, values))
    return max(found, key=lambda pairs_and_score: pairs_and_score[1])[0]


def kinds_of(parameters: Iterable[Parameter]) -> dict[str, str]:
    """The kinds of a model's layers by their paths."""
    return {path: kind for x in parameters for path, kind in (*x.parents, (x.layer, x.kind))}


def side_of(items: Sequence[Item]) -> Side:
    """A side of the assignment."""
    shapes = {name: str(item.shape) for item in items for name in item.names}
    names = named(shapes, kinds_of(item.parameter for item in items) | shapes)
    for item in items:  # a norm is one, whatever it is called
        for name in item.names:
            names[name] = names[name]._replace(words=names[name].words | ({kind_of(item)} - {""}))
    return Side(items, names)


def matched_cells(torch: Sequence[Item], jax: Sequence[Item]) -> list[tuple[Cell, Cell, bool]]:
    """The recurrent cells that correspond, and whether more than shapes and order says so."""

    def stand_ins(items: Sequence[Item]) -> dict[Item, Cell]:
        """An item for each cell of a side, under its name."""
        found = {}
        for cell in cells(items):
            owner = next(iter(cell.arrays.values())).parameter
            found[Item(replace(owner, array=np.zeros(1)), Part(owner.path), (cell.name,))] = cell
        return found

    mine, theirs = stand_ins(torch), stand_ins(jax)
    pairs, _ = assigned(side_of(list(mine)), side_of(list(theirs)), lambda a, b: mine[a].sizes == theirs[b].sizes, {})
    return [(mine[a], theirs[b], is_named) for a, b, is_named in pairs]


def tied(
    pairs: Sequence[tuple[Item, Item, bool]], torch: Sequence[Item], jax: Sequence[Item]
) -> Iterator[tuple[Item, Item, bool]]:
    """Pairs of what is left of one side with tied arrays of the other, by those of their names that are not used."""
    for is_torch, items in ((True, torch), (False, jax)):
        linked_items = {a if is_torch else b for a, b, _ in pairs}
        again = []
        for a, b, _ in pairs:
            tied_one, other = (b, a) if is_torch else (a, b)
            used = max(tied_one.names, key=partial(likeness, other.names[0]))
            again += [replace(tied_one, names=(name,)) for name in tied_one.names if name != used]
        left = side_of([item for item in items if item not in linked_items])
        yield from assigned(*((left, side_of(again)) if is_torch else (side_of(again), left)), fits, {})[0]


def left_over(parameters: Sequence[Parameter], parts: Sequence[Part]) -> list[tuple[str, bool]]:
    """The arrays of a side, or pieces, that are in none of the parts, and for each whether the other side needs it."""
    found = []
    for parameter in parameters:
        mine = [part for part in parts if part.path == parameter.path]
        if any(not part.cuts for part in mine):
            continue
        free = np.ones(parameter.array.shape, bool)
        for part in mine:
            free[part.index(free.shape)] = False
        if not free.any():
            continue
        rest = Part(parameter.path)
        if mine:
            first, last = (f(np.argwhere(free), axis=0) for f in (np.min, np.max))
            cuts = [Cut(i, int(a), int(b) + 1) for i, (a, b) in enumerate(zip(first, last, strict=True))]
            rest = Part(parameter.path, tuple(cut for cut in cuts if cut.stop - cut.start < free.shape[cut.axis]))
        role = understood(parameter.path)[1]
        is_statistic = role in ("mean", "variance") and parameter.array.dtype.kind not in "biu"
        found.append((str(rest), is_statistic or not (parameter.is_state or parameter.array.dtype.kind in "biu")))
    return found


def fixed_link(path: str, target: Any, torch: Sequence[Parameter], jax: Sequence[Parameter]) -> Link:
    """
    The link that a user gives.

    Raises
    ------
    InputError
        There is no such path, the pattern is invalid, or a shape does not fit.
    """
    if not isinstance(target, str) and not (isinstance(target, tuple | list) and len(target) == 2):
        raise InputError(
            f"given {target!r} for {path!r}; give the JAX path, or it and a pattern as ('path', 'o i -> i o')"
        )
    other, pattern = (target, None) if isinstance(target, str) else target
    items = []
    for name, parameters, side in ((path, torch, "PyTorch"), (other, jax, "JAX")):
        named_so = [x for x in parameters if name in (x.path, *x.aliases)]
        if not named_so:
            near = max(parameters, key=lambda x: likeness(x.path, name), default=None)
            hint = f"; the nearest is {near.path!r}" if near else ""
            raise InputError(
                f"given the path {name!r}, which the model in {side} does not have{hint}; correct the path"
            )
        items.append(Item(named_so[0], Part(named_so[0].path), (name,)))
    mine, theirs = items
    shapes = f"{path!r} of shape {mine.shape} and {other!r} of shape {theirs.shape}"
    if pattern is None:
        if not fits(mine, theirs):
            raise InputError(
                f"given {shapes}, no order of whose axes agrees with their layers; give the pattern as well"
            )
        return linked([((mine,), theirs)])[0][0]
    link = Link((mine.part,), theirs.part, pattern, sizes_of(pattern, theirs.shape))
    try:
        laid = link.to_jax([mine.array]).shape
    except (EinopsError, ValueError, KeyError) as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise InputError(f"given {pattern!r} for {shapes}, which einops does not take ({line}); correct it") from error
    if laid != theirs.shape:
        raise InputError(f"given {pattern!r} for {shapes}, which makes it of shape {laid}; correct the pattern")
    return link


def sizes_of(pattern: str, jax: tuple[int, ...]) -> tuple[tuple[str, int], ...]:
    """The sizes of the axes in brackets on the left of a pattern, as far as the shape on the right tells them."""
    left, _, right = pattern.partition("->")
    bracketed_names = {name for group in re.findall(r"\(([^)]*)\)", left) for name in group.split()}
    axes = re.findall(r"\([^)]*\)|\S+", right)
    return tuple((name, size) for name, size in zip(axes, jax, strict=False) if name in bracketed_names)


def match(torch: Sequence[Parameter], jax: Sequence[Parameter], given: Mapping[str, Any] | None = None) -> Match:
    """
    Which arrays of two models correspond.

    Parameters
    ----------
    torch, jax : the arrays of both, each in the order of its model
    given : corrections: for a path in PyTorch the path in JAX, alone or with a pattern of einops from PyTorch to JAX,
        as `{"fc.weight": ("fc.kernel", "o i -> i o")}`

    Raises
    ------
    InputError
        There is no such path, or a shape does not fit.
    """
    fixed = [fixed_link(path, target, torch, jax) for path, target in (given or {}).items()]
    gone = {link.torch[0].path for link in fixed}, {link.jax.path for link in fixed}
    mine, theirs = (
        [Item(x, Part(x.path), (x.path, *x.aliases)) for x in parameters if not {x.path, *x.aliases} & taken]
        for parameters, taken in zip((torch, jax), gone, strict=True)
    )
    mine, theirs = unstacked(mine, theirs), unstacked(theirs, mine)
    mine, theirs = unfused(mine, theirs), unfused(theirs, mine)
    pairs: list[Pair] = []
    doubtful: list[bool] = []
    for a, b, is_named in matched_cells(mine, theirs):
        found = list(recurrent(a, b))
        pairs += found
        doubtful += [not is_named] * len(found)
        mine = [item for item in mine if item not in a.arrays.values()]
        theirs = [item for item in theirs if item not in b.arrays.values()]
    sides = side_of(mine), side_of(theirs)
    found_pairs = agreed(*sides, VALUES_BELOW_NAMES)
    equal = sum(has_same_numbers(a, b) for a, b, _ in found_pairs)
    if 2 * equal < sum(any(has_same_numbers(a, b) for b in theirs if b.array.size == a.array.size) for a in mine):
        found_pairs = agreed(*sides, VALUES)
    found_pairs += tied(found_pairs, mine, theirs)
    pairs += [((a,), b) for a, b, _ in found_pairs]
    doubtful += [not is_named for _, _, is_named in found_pairs]
    links, guesses = linked(pairs)
    places = {path: i for i, x in enumerate(torch) for path in (x.path, *x.aliases)}
    order = sorted(range(len(links)), key=lambda i: (places[links[i].torch[0].path], links[i].torch[0].cuts))
    guessed = [Guess(links[i], "partner") for i in order if doubtful[i]]
    guessed += [Guess(links[i], "layout") for i in order if guesses[i]]
    links = sorted((*fixed, *links), key=lambda link: (places[link.torch[0].path], link.torch[0].cuts))
    arrays = {x.path: x.array for x in torch}, {x.path: x.array for x in jax}
    left = left_over(torch, [part for link in links for part in link.torch]), left_over(jax, [x.jax for x in links])
    torch_only, jax_only = (tuple(name for name, is_needed in side if is_needed) for side in left)
    ignored = tuple(name for side in left for name, is_needed in side if not is_needed)
    is_loaded = any(
        not np.all(y == y.flat[:1]) and is_equal(link.to_jax([arrays[0][part.path] for part in link.torch]), y)
        for link, y in ((link, link.jax.of(arrays[1][link.jax.path])) for link in links)
    )
    return Match(tuple(links), torch_only, jax_only, ignored, is_loaded, tuple(guessed))
