"""`tap`: a name for what a layer returns, and what a tape sees of it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax._src.config import eager_constant_folding  # of which JAX exports what turns it on alone
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching

from jaxp3.function import is_inexact
from p3.parity.models.tape import Point, Role, Tape, arrays_mapped

TAPE: ContextVar[Tape | None] = ContextVar("TAPE", default=None)  # that watches the model which runs
IS_TRACED: ContextVar[bool] = ContextVar("IS_TRACED", default=False)  # whether the model is traced, and not run


def tap(name: str, x: Array) -> Array:
    """
    Name what a layer returns, in a model that has functions in place of modules, for `p3.check_model`.

    Parameters
    ----------
    name : of the layer
    x : what it returns

    Returns
    -------
    Array
        x itself, unless `p3.check_model` runs the model.

    Examples
    --------
    >>> hidden = tap("fc1", x @ parameters["fc1"]["kernel"] + parameters["fc1"]["bias"])
    """
    tape = TAPE.get()
    if tape is None:
        return x
    tape.meet(name, "")
    named: Array = watched(name, "output", x)
    return named


def watched(layer: str, role: Role, tree: Any) -> Any:
    """What a layer receives or returns, where the tape of the run sees each array, and may replace it."""

    def see(number: int, x: Array) -> Array:
        point = Point(layer, role, number)
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # a random key
            return x
        with in_each_run():
            return replaceable(point, x) if is_inexact(x) else forward(point, x)[0]

    return arrays_mapped(see, tree, lambda x: isinstance(x, Array))


def in_each_run() -> AbstractContextManager[None]:
    """While it lasts, operations on constants are not computed while a model is traced, but each time that it runs."""
    held: AbstractContextManager[None] = eager_constant_folding(False)
    return held


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def replaceable(point: Point, x: Array) -> Array:
    """The identity, unless the tape has another value for it, or another cotangent."""
    return forward(point, x)[0]


def forward(point: Point, x: Array) -> tuple[Array, Array]:
    """The tape's value, or x; and the number of the call, which the backward pass needs."""

    def see(tape: Tape, x: Array) -> tuple[Array | np.ndarray, int]:
        if not tape.wants(point.layer):
            return x, 0
        value, call = tape.forward(point, np.asarray(x))
        return x if value is None else value, call

    value, call = shown.bind(x, see=see)
    return value, call


def backward(point: Point, call: Array, cotangent: Array) -> tuple[Array]:
    """The tape's cotangent, or this one."""

    def see(tape: Tape, cotangent: Array, call: Array) -> tuple[Array | np.ndarray, int]:
        if not tape.wants(point.layer):
            return cotangent, 0
        number = int(np.ravel(call)[0])  # the same for all examples of a batch
        value = tape.backward(point, number, np.asarray(cotangent))
        return cotangent if value is None else value, number

    return (shown.bind(cotangent, call, see=see)[0],)


replaceable.defvjp(forward, backward)


# An operation that calls a Python function with the tape of the run and with arrays, and returns what the function
# does: an array like the first one, and a number. A model that is traced once can so be run with other tapes. Under
# vmap the function gets the whole batch, with its axes in front. There is no compiled form, since the checker runs
# models one operation at a time.
shown = Primitive("shown")
shown.multiple_results = True


See = Callable[..., tuple[Array | np.ndarray, int]]


def run_now(*arrays: Array, see: See) -> tuple[Array, Array]:
    """
    Call the function now.

    Raises
    ------
    RuntimeError
        The model is traced, so that later runs would not call it: JAX computes what a checkpoint makes of constants.
    """
    if IS_TRACED.get():
        raise RuntimeError("a tap in a checkpoint depends on nothing that is traced")
    value, number = see(TAPE.get(), *arrays)
    return value if isinstance(value, Array) else jnp.asarray(value, arrays[0].dtype), array_of(number)


@cache
def array_of(number: int) -> Array:
    """A number as an array, each made once."""
    return jnp.asarray(number, jnp.int32)


def shapes_of_result(x: Any, *others: Any, see: See) -> tuple[Any, Any]:
    """An array like the first, and a number."""
    return x, ShapedArray((), np.dtype(np.int32))


def run_batch(arrays: Sequence[Array], axes: Sequence[Any], see: See) -> tuple[list[Array], list[Any]]:
    """The whole batch at once."""
    fronts = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    return shown.bind(*fronts, see=see), [None if axes[0] is None else 0, None]


shown.def_impl(run_now)
shown.def_abstract_eval(shapes_of_result)
batching.primitive_batchers[shown] = run_batch
