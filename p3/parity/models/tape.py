"""What passes between the layers of a model: recorded, and replaced by what another model had there."""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from p3.parity.tree import made_like

Role = Literal["input", "output"]

LAST = 3  # arrays that a recording looks for an equal one in


class Point(NamedTuple):
    """
    An array that a layer receives or returns.

    Attributes
    ----------
    layer : the path of the layer
    role : whether the layer receives it or returns it
    number : its number among the arrays that the layer receives or returns, in order
    """

    layer: str
    role: Role
    number: int


class Event(NamedTuple):
    """A point, in one of the calls of its layer, which are counted from 0."""

    point: Point
    call: int


class Mask(NamedTuple):
    """
    What a dropout keeps.

    Attributes
    ----------
    kept : True where an element is kept
    probability : the probability of True
    """

    kept: np.ndarray
    probability: float


class StopRun(Exception):  # noqa: N818, which is no error
    """Raised to end a run early, when the array that was looked for has been seen."""


class Tape(ABC):
    """
    What sees each array at a point while a model runs, and may replace it.

    Calls are counted when arrays arrive, and not when Python code runs, since JAX may run a layer's code only to trace
    it. A layer that runs again in the backward pass, as under `jax.checkpoint`, is not another call.

    Attributes
    ----------
    kinds : the class of each layer, by its path
    is_backward : whether the backward pass runs
    masks : what dropouts have kept, in order
    """

    def __init__(self) -> None:
        """Nothing has run."""
        self.kinds: dict[str, str] = {}
        self.is_backward = False
        self.masks: list[Mask] = []
        self._calls: Counter[Point] = Counter()
        self._again: Counter[Point] = Counter()

    def meet(self, layer: str, kind: str) -> None:
        """Note a layer's class when it is called."""
        self.kinds[layer] = kind

    def wants(self, layer: str) -> bool:
        """Whether the arrays of a layer are wanted."""
        return True

    def forward(self, point: Point, x: np.ndarray) -> tuple[np.ndarray | None, int]:
        """The array that replaces x, or None to keep x; and the number of the call."""
        if self.is_backward:  # the last call is run again first
            calls = max(self._calls[point], 1)
            call = calls - 1 - self._again[point] % calls
            self._again[point] += 1
        else:
            call = self._calls[point]
            self._calls[point] += 1
        return self.value(Event(point, call), x), call

    def backward(self, point: Point, call: int, cotangent: np.ndarray) -> np.ndarray | None:
        """The array that replaces a cotangent, or None to keep it."""
        return self.cotangent(Event(point, call), cotangent)

    def drawn(self, mask: Mask) -> np.ndarray | None:
        """The mask that replaces a random mask of a dropout, or None to keep it."""
        return self.mask(self.number_of(mask))

    def number_of(self, mask: Mask) -> int:
        """The number of a mask; one that a checkpoint draws again in the backward pass keeps its number."""
        if self.is_backward:
            for number, other in enumerate(self.masks):
                if other.probability == mask.probability and np.array_equal(other.kept, mask.kept):
                    return number
        self.masks.append(Mask(np.array(mask.kept), mask.probability))
        return len(self.masks) - 1

    def mask(self, number: int) -> np.ndarray | None:
        """The mask that replaces the one of a number, or None to keep it."""
        return None

    @abstractmethod
    def value(self, event: Event, x: np.ndarray) -> np.ndarray | None:
        """The array that replaces x at an event, or None to keep x."""

    @abstractmethod
    def cotangent(self, event: Event, cotangent: np.ndarray) -> np.ndarray | None:
        """The array that replaces a cotangent at an event, or None to keep it."""


class Shapes(Tape):
    """The shape and dtype of each array, in the order in which they come."""

    def __init__(self) -> None:
        """Nothing has run."""
        super().__init__()
        self.shapes: dict[Event, tuple[tuple[int, ...], np.dtype[Any]]] = {}

    def value(self, event: Event, x: np.ndarray) -> None:
        """Note the shape and the dtype."""
        self.shapes[event] = (x.shape, x.dtype)

    def cotangent(self, event: Event, cotangent: np.ndarray) -> None:
        """Cotangents are not noted."""


class Recording(Tape):
    """
    The values and cotangents at the layers that are wanted.

    Attributes
    ----------
    layers : those that are wanted
    values, cotangents : copies of the arrays
    """

    def __init__(self, layers: frozenset[str]) -> None:
        """Nothing has run."""
        super().__init__()
        self.layers = layers
        self.values: dict[Event, np.ndarray] = {}
        self.cotangents: dict[Event, np.ndarray] = {}
        self._last: deque[np.ndarray] = deque(maxlen=LAST)

    def wants(self, layer: str) -> bool:
        """Whether it is one of `layers`."""
        return layer in self.layers

    def value(self, event: Event, x: np.ndarray) -> None:
        """Keep a copy."""
        if not self.is_backward:
            self.values[event] = self.kept(x)

    def cotangent(self, event: Event, cotangent: np.ndarray) -> None:
        """Keep a copy."""
        self.cotangents[event] = self.kept(cotangent)

    def kept(self, x: np.ndarray) -> np.ndarray:
        """A copy; or one of the last ones, with the same bits, since what one layer returns the next one receives."""
        copy = np.array(x, order="C")
        for other in self._last:
            if (other.shape, other.dtype) == (copy.shape, copy.dtype) and np.array_equal(bits(other), bits(copy)):
                return other
        self._last.append(copy)
        return copy


def bits(x: np.ndarray) -> np.ndarray:
    """The bytes of an array."""
    return x.reshape(-1).view(np.uint8)


def arrays_mapped(f: Callable[[int, Any], Any], tree: Any, is_array: Callable[[Any], bool]) -> Any:
    """
    The same nested dicts, lists and tuples, with f(number, array) for each array.

    An array that is there several times, such as one that is query, key and value, is passed once, so that it has one
    cotangent. Anything else stays as it is, such as a module or a random state that a layer is called with.
    """
    done: dict[int, Any] = {}

    def of(node: Any) -> Any:
        if is_array(node):
            if id(node) not in done:
                done[id(node)] = f(len(done), node)
            return done[id(node)]
        if isinstance(node, Mapping):
            items = {key: of(item) for key, item in node.items()}
            return made_like(node, items)
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return type(node)(*map(of, node))
        if type(node) in (list, tuple):
            return type(node)(map(of, node))
        return node

    return of(tree)
