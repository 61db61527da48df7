"""Functions whose results are kept, and what becomes of what they raise."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import numpy as np

from p3.parity.function import Arrays, Function, wide
from p3.parity.limit import TimeLimitError, limited
from p3.parity.place import Place
from p3.parity.quantity import DERIVATIVES, NAMES
from p3.parity.result import Refusal
from p3.tolerance import QUICK

MOST_BYTES = 2**26  # of results that are kept for one side


class RefusalError(Exception):
    """A side raised: the refusal says which, and what; `is_meant`, whether it has no such thing and says so."""

    def __init__(self, refusal: Refusal, is_meant: bool) -> None:
        """The message is the refusal."""
        super().__init__(str(refusal))
        self.refusal, self.is_meant = refusal, is_meant


def refusal_of(error: BaseException, place: Place) -> RefusalError:
    """A refusal at some place, with the first line of what was raised."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return RefusalError(Refusal(place, f"{type(error).__name__}: {line}"), isinstance(error, NotImplementedError))


def asked(function: Function, place: Place, *groups: Arrays) -> Arrays:
    """The quantity that a place names, of a function; a `RefusalError` of the place where that raises."""
    try:
        with np.errstate(), limited(place):  # of the settings the function may set another
            return tuple(getattr(function, DERIVATIVES[place.quantity].method)(*groups))
    except RefusalError as refused:  # of a recorded function, which knows the quantity alone
        here = place._replace(quantity=refused.refusal.place.quantity)
        raise RefusalError(Refusal(here, refused.refusal.error), refused.is_meant) from refused.__cause__
    except (KeyboardInterrupt, TimeLimitError):
        raise
    except BaseException as error:  # frameworks and users' functions raise all kinds, and exit
        raise refusal_of(error, place) from error


class Results:
    """The latest results, by what they are of, as many as `MOST_BYTES` hold."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self.kept: OrderedDict[object, Arrays | RefusalError] = OrderedDict()
        self.bytes = 0

    def get(self, key: object, make: Callable[[], Arrays]) -> Arrays:
        """The results of a key, made where they are not kept; what was raised instead is raised again."""
        if key in self.kept:
            self.kept.move_to_end(key)
            found = self.kept[key]
        else:
            try:
                found = make()
            except RefusalError as refusal:
                found = refusal
            self.kept[key] = found
            self.bytes += size_of(found)
            while self.bytes > MOST_BYTES and len(self.kept) > 1:
                self.bytes -= size_of(self.kept.popitem(last=False)[1])
        if isinstance(found, RefusalError):
            raise found
        return found


def size_of(found: Arrays | RefusalError) -> int:
    """The bytes of some results."""
    return 0 if isinstance(found, RefusalError) else sum(x.nbytes for x in found)


def digest(groups: tuple[Arrays, ...]) -> Hashable:
    """What tells some arrays from others: dtypes, shapes, and 64 bits of each array's numbers."""
    return tuple(tuple((x.dtype.name, x.shape, hash(x.tobytes())) for x in group) for group in groups)


class Recorded(Function):
    """A function that computes little twice; values and derivatives leave the inputs, and raise `RefusalError`."""

    def __init__(
        self, function: Function, side: str, combinators: tuple[str, ...] = (), root: "Recorded | None" = None
    ) -> None:
        """Nothing is recorded yet."""
        self.function, self.side, self.combinators = function, side, combinators
        self.name, self.framework, self.program = function.name, function.framework, function.program
        self.states = function.states
        self.root = root or self
        self.results: Results = Results() if root is None else root.results
        self.is_hurried = False  # of the root: whether the quick function stands for the function
        self.quick_root = function  # of the root: the quick function

    def hurry(self, inputs: Arrays, cotangents: Arrays) -> None:
        """From here on call the quick function, if it gives what the function does, but for rounding."""
        quick = self.quick_root = self.function.quick(inputs, cotangents)
        if quick is self.function:
            return
        groups = (("value", (inputs,)), ("vjp", (inputs, cotangents)))[: 2 if cotangents else 1]
        try:
            self.is_hurried = all(
                alike(asked(quick, Place(self.side, name), *given), asked(self, Place(self.side, name), *given))
                for name, given in groups
            )
        except RefusalError:
            self.is_hurried = False

    @cached_property
    def _quick(self) -> Function:
        quick = self.root.quick_root
        for combinator in self.combinators:
            quick = getattr(quick, combinator)()
        return quick

    @property
    def unrecorded(self) -> Function:
        """The function itself, or the quick one: for arrays as they lie in memory, and for many calls."""
        return self._quick if self.root.is_hurried else self.function

    def value(self, *groups: Arrays) -> Arrays:
        """As the function's, on copies."""

        def make() -> Arrays:
            given = tuple(tuple(x.copy() for x in group) for group in groups)
            place = Place(self.side, NAMES[self.combinators])
            try:
                with np.errstate(), limited(place):  # of the settings the function may set another
                    try:
                        return tuple(self.unrecorded.value(*given))
                    except Exception:
                        if not self.root.is_hurried:
                            raise
                        return tuple(self.function.value(*given))  # which may say more, or not raise at all
            except (KeyboardInterrupt, TimeLimitError):
                raise
            except BaseException as error:  # frameworks and users' functions raise all kinds, and exit
                raise refusal_of(error, place) from error

        return self.results.get((self.combinators, digest(groups)), make)

    @cached_property
    def _pullback(self) -> "Recorded":
        return self._combined("pullback", self.function.pullback)

    @cached_property
    def _pushforward(self) -> "Recorded":
        return self._combined("pushforward", self.function.pushforward)

    def _combined(self, name: str, make: Callable[[], Function]) -> "Recorded":
        combinators = (*self.combinators, name)
        try:
            return Recorded(make(), self.side, combinators, self.root)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a framework that has none says so here, or when it is called
            raise refusal_of(error, Place(self.side, NAMES[combinators])) from error

    def pullback(self) -> Function:
        """As the function's."""
        return self._pullback

    def pushforward(self) -> Function:
        """As the function's."""
        return self._pushforward

    def arguments(self, inputs: Arrays) -> tuple[int, ...]:
        """As the function's."""
        return self.function.arguments(inputs)

    def output_paths(self, inputs: Arrays) -> tuple[str, ...]:
        """As the function's."""
        try:
            with limited(Place(self.side, "value")):
                return self.function.output_paths(inputs)
        except (KeyboardInterrupt, TimeLimitError):
            raise
        except BaseException as error:  # the function is called once more, and may raise this time
            raise refusal_of(error, Place(self.side, "value")) from error

    def variants(self, inputs: Arrays) -> Iterator[tuple[str, Arrays]]:
        """As the function's."""
        yield from self.function.variants(inputs)

    def ignores_labels(self, inputs: Arrays) -> bool:
        """As the function's."""
        return self.function.ignores_labels(inputs)

    def undisturbed(self) -> AbstractContextManager[object]:
        """As the function's."""
        return self.function.undisturbed()

    def state(self) -> Mapping[str, Any]:
        """As the function's."""
        return self.function.state()

    def restore(self, name: str, value: Any) -> None:
        """As the function's."""
        self.function.restore(name, value)

    def reseed(self, seed: int) -> None:
        """As the function's."""
        self.function.reseed(seed)

    def batched(self, arguments: tuple[int, ...]) -> Function:
        """As the function's."""
        return self.unrecorded.batched(arguments)

    def transformed(self) -> Mapping[str, Function]:
        """As the function's."""
        return self.unrecorded.transformed()

    def compiled(self) -> Mapping[str, Function]:
        """As the function's."""
        return self.function.compiled()

    def rules(self, inputs: Arrays) -> tuple[str, ...]:
        """As the function's."""
        return self.function.rules(inputs)

    def scaled(self, factor: float) -> Function:
        """As the function's."""
        return self.function.scaled(factor)


def alike(a: Arrays, b: Arrays) -> bool:
    """Whether two results are the same but for rounding."""
    return len(a) == len(b) and all(
        x.shape == y.shape
        and x.dtype == y.dtype
        and bool(np.allclose(wide(x), wide(y), rtol=0, atol=QUICK.value * largest(y), equal_nan=True))
        for x, y in zip(a, b, strict=True)
    )


def largest(x: np.ndarray) -> float:
    """The size of the largest finite element."""
    sizes = np.abs(wide(x))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))
