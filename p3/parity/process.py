"""What a function changes of the process that it runs in, and how that is put back."""

import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np

from p3.parity.function import Function

# Drawing from these is no change that is told, and setting a seed is.
RANDOM = ("Python's random state", "NumPy's random state", "PyTorch's random state")
OTHER_SEED = 3_141_592_653  # which no function sets
AS_IMPORTED = {"divide": "warn", "over": "warn", "under": "ignore", "invalid": "warn"}  # NumPy's own settings


@contextmanager
def undisturbed(functions: Iterable[Function]) -> Iterator[None]:
    """While it lasts, what the caller has set in this thread has no part in what is computed."""
    with np.errstate(**AS_IMPORTED), ExitStack() as modes:  # type: ignore[arg-type]
        for function in functions:
            modes.enter_context(function.undisturbed())
        yield


def state_of(function: Function) -> dict[str, Any]:
    """What functions should leave as it is, by name: Python's, NumPy's, and the framework's."""
    return {
        "numpy.seterr": np.geterr(),
        "warnings.filters": list(warnings.filters),
        "os.environ": dict(os.environ),
        "Python's random state": random.getstate(),
        "NumPy's random state": pickle.dumps(np.random.get_state()),
        **function.state(),
    }


def put_back(function: Function, before: Mapping[str, Any], names: Iterable[str]) -> None:
    """Set what the names name to what it was; last what setting the others can change, since they load modules."""
    last = [name for name in ("warnings.filters", *RANDOM) if name in before]
    for name in (*(name for name in names if name not in last), *last):
        match name:
            case "numpy.seterr":
                np.seterr(**before[name])
            case "warnings.filters":
                warnings.filters[:] = before[name]  # type: ignore[index]
            case "os.environ":
                for variable in os.environ.keys() - before[name].keys():
                    del os.environ[variable]
                os.environ.update(before[name])
            case "Python's random state":
                random.setstate(before[name])
            case "NumPy's random state":
                np.random.set_state(pickle.loads(before[name]))
            case _:
                function.restore(name, before[name])


def reseed(function: Function) -> None:
    """Set all random states to others, which no number of draws comes to: another thread may draw meanwhile."""
    random.seed(OTHER_SEED)
    np.random.seed(OTHER_SEED)
    function.reseed(OTHER_SEED)


def changes(function: Function, call: Callable[[], object]) -> tuple[str, ...]:
    """
    The names of what a call changes, each time; it is put back.

    What changes the first time alone is no change of the function's: a framework has loaded a part of itself. A random
    state is told where two calls leave the same one, whatever it was before, as by a seed that is set.
    """

    def changed() -> tuple[dict[str, Any], dict[str, Any], set[str]]:
        before = state_of(function)
        with suppress(Exception, SystemExit):  # that it raises is told by the check that it raises in
            call()
        after = state_of(function)
        names = {name for name, value in before.items() if after[name] != value}
        put_back(function, before, names)
        return before, after, names

    start, first, once = changed()
    if not once:
        return ()
    reseed(function)
    try:
        _, second, twice = changed()
    finally:
        put_back(function, start, [name for name in RANDOM if name in start])
    return tuple(sorted(name for name in once & twice if name not in RANDOM or first[name] == second[name]))


@contextmanager
def kept(function: Function, names: Iterable[str]) -> Iterator[None]:
    """What the names name is afterwards as it was before."""
    names = tuple(names)
    before = state_of(function) if names else {}
    try:
        yield
    finally:
        put_back(function, before, names)
