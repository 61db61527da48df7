"""Nested inputs and results: dicts, lists, tuples, named tuples and dataclasses of arrays, and each array's path."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from p3.errors import InputError


@dataclass(frozen=True)
class Slot:
    """The place of an array in a tree, by its number."""

    number: int


@dataclass(frozen=True, eq=False)
class Structure:
    """
    What is around some arrays.

    Attributes
    ----------
    tree : with a `Slot` for each array; what is no array stands there as it is
    paths : of each array, as one writes it in Python: `inputs["w"][0]`
    tops : of each array, the position of the argument that it is in, or its name
    """

    tree: Any
    paths: tuple[str, ...]
    tops: tuple[int | str, ...]

    @property
    def is_plain(self) -> bool:
        """Whether it is a tuple of arrays."""
        return bool(self.tree == tuple(map(Slot, range(len(self.paths)))))

    def check(self, arguments: Sequence[int | str]) -> None:
        """
        There are such arguments.

        Raises
        ------
        InputError
            There is none with an array in it at a position, or of a name.
        """
        for argument in arguments:
            if argument not in self.tops:
                known = ", ".join(map(repr, dict.fromkeys(self.tops)))
                raise InputError(f"arguments {tuple(arguments)} are not all arguments with arrays in them: {known}")

    def fill(self, arrays: Sequence[Any]) -> Any:
        """The tree, with arrays in its places."""
        return mapped(lambda path, x: arrays[x.number] if isinstance(x, Slot) else x, self.tree, "")

    def call(self, f: Callable[..., Any], arrays: Sequence[Any], static: Mapping[str, Any]) -> Any:
        """F of the tree: of a dict its items by name, of a tuple its elements by position."""
        tree = self.fill(arrays)
        return f(**tree, **static) if isinstance(tree, Mapping) else f(*tree, **static)

    def __eq__(self, other: object) -> bool:
        """Whether both are the same around arrays."""
        return isinstance(other, Structure) and repr(self.tree) == repr(other.tree)

    def __hash__(self) -> int:
        """The same for what is equal."""
        return hash(repr(self.tree))


def mapped(f: Callable[[str, Any], Any], tree: Any, path: str) -> Any:
    """The tree, with f(path, leaf) for each leaf."""
    if isinstance(tree, Mapping):
        # In the order of the keys, so that it does not matter in which they were put there.
        done = {key: mapped(f, tree[key], f"{path}[{quoted(key)}]") for key in sorted(tree, key=sorting)}
        return made_like(tree, {key: done[key] for key in tree})
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(mapped(f, getattr(tree, name), f"{path}.{name}") for name in tree._fields))
    if isinstance(tree, list | tuple):
        return type(tree)([mapped(f, x, f"{path}[{i}]") for i, x in enumerate(tree)])
    if is_dataclass(tree) and not isinstance(tree, type | Slot):
        named = [field.name for field in fields(tree) if field.init]
        return replace(tree, **{name: mapped(f, getattr(tree, name), f"{path}.{name}") for name in named})
    return f(path, tree)


def made_like(tree: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    """A mapping of the type of another one; of a dataclass that is a mapping, its fields are the items."""
    if type(tree) is dict:
        return items
    return type(tree)(**items) if is_dataclass(tree) else type(tree)(items)  # type: ignore[call-arg]


def written(tree: Any, arrays: Sequence[str]) -> str:
    """
    The tree as Python, with texts for its arrays.

    Raises
    ------
    InputError
        It has a type that Python has no literal of.
    """
    if isinstance(tree, Slot):
        return arrays[tree.number]
    if type(tree) is dict:
        return "{" + ", ".join(f"{key!r}: {written(x, arrays)}" for key, x in tree.items()) + "}"
    if type(tree) is list:
        return f"[{', '.join(written(x, arrays) for x in tree)}]"
    if type(tree) is tuple:
        return f"({''.join(f'{written(x, arrays)}, ' for x in tree).rstrip()})"
    if tree is None or type(tree) in (bool, int, str):
        return repr(tree)
    raise InputError(f"{type(tree).__name__} cannot be written as Python")


def sorting(key: object) -> tuple[str, str]:
    """By what keys of any types are sorted."""
    return type(key).__name__, str(key)


def quoted(key: object) -> str:
    """A key as one writes it."""
    return '"' + key.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(key, str) else repr(key)


def leaves(tree: Any, path: str) -> list[tuple[str, Any]]:
    """The path and the value of each leaf, in order."""
    found: list[tuple[str, Any]] = []
    mapped(lambda path, x: found.append((path, x)), tree, path)
    return found


def is_of(path: str, output: int | str) -> bool:
    """Whether a path is that of an output, given by its position or name, or of an array in that output."""
    starts = (f"output[{quoted(output)}]", f"output.{output}")
    return any(path == start or path.startswith((f"{start}[", f"{start}.")) for start in starts)


def is_array(x: Any) -> bool:
    """Whether an input is one: an array or number of NumPy's, or a Python float or complex number."""
    return isinstance(x, np.ndarray | np.generic | float | complex) or (
        hasattr(x, "__array__") and not isinstance(x, type)
    )


def is_plain(x: Any) -> bool:
    """Whether x is what NumPy makes one array of: a number, or nested lists of them."""
    if isinstance(x, list):
        return bool(x) and all(map(is_plain, x))
    return isinstance(x, int | float | complex)


def take_apart(inputs: Any, make: Callable[[str, Any], np.ndarray]) -> tuple[tuple[np.ndarray, ...], Structure]:
    """
    The arrays of inputs, and what is around them.

    One array alone, and each number or list of numbers that is an argument, is an array; so is each array inside.
    """
    arrays: list[np.ndarray] = []
    paths: list[str] = []
    tops: list[int | str] = []

    def place(path: str, x: Any, top: int | str) -> Any:
        if not is_array(x):
            return x
        arrays.append(make(path, x))
        paths.append(path)
        tops.append(top)
        return Slot(len(arrays) - 1)

    def argument(top: int | str, x: Any, path: str) -> Any:
        if is_plain(x):
            return place(path, np.asarray(x), top)
        return mapped(partial(place, top=top), x, path)

    if isinstance(inputs, Mapping):
        tree: Any = {name: argument(name, x, f"inputs[{quoted(name)}]") for name, x in inputs.items()}
    elif isinstance(inputs, tuple):
        tree = tuple(argument(i, x, f"inputs[{i}]") for i, x in enumerate(inputs))
    else:
        tree = (argument(0, inputs, "inputs"),)
    return tuple(arrays), Structure(tree, tuple(paths), tuple(tops))
