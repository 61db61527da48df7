"""`tap`: a name for what a layer returns, and what a tape sees of it."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching

from jaxp3.function import is_inexact
from p3.parity.tape import Point, Role, Tape, arrays_mapped

TAPE: ContextVar[Tape | None] = ContextVar("TAPE", default=None)  # that watches the model which runs


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
    return watched(tape, name, "output", x) if tape is not None and tape.meet(name, "") else x


def watched(tape: Tape, layer: str, role: Role, tree: Any) -> Any:
    """What a layer receives or returns, where the tape sees each array, and may replace it."""

    def see(number: int, x: Array) -> Array:
        point = Point(layer, role, number)
        if jnp.issubdtype(x.dtype, jax.dtypes.extended):  # a random key
            return x
        return replaceable(tape, point, x) if is_inexact(x) else forward(tape, point, x)[0]

    return arrays_mapped(see, tree, lambda x: isinstance(x, Array))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def replaceable(tape: Tape, point: Point, x: Array) -> Array:
    """The identity, unless the tape has another value for it, or another cotangent."""
    return forward(tape, point, x)[0]


def forward(tape: Tape, point: Point, x: Array) -> tuple[Array, Array]:
    """The tape's value, or x; and the number of the call, which the backward pass needs."""

    def see(x: np.ndarray) -> tuple[np.ndarray, int]:
        value, call = tape.forward(point, x)
        return x if value is None else value, call

    value, call = shown.bind(x, see=see)
    return value, call


def backward(tape: Tape, point: Point, call: Array, cotangent: Array) -> tuple[Array]:
    """The tape's cotangent, or this one."""

    def see(cotangent: np.ndarray, call: np.ndarray) -> tuple[np.ndarray, int]:
        number = int(call.flat[0])  # the same for all examples of a batch
        value = tape.backward(point, number, cotangent)
        return cotangent if value is None else value, number

    return (shown.bind(cotangent, call, see=see)[0],)


replaceable.defvjp(forward, backward)


# An operation that calls a Python function with arrays, and returns what that does: an array like the first one, and a
# number. Under vmap the function gets the whole batch, with its axes in front. There is no compiled form, since the
# checker runs models one operation at a time.
shown = Primitive("shown")
shown.multiple_results = True


def run_now(*arrays: Array, see: Callable[..., tuple[np.ndarray, int]]) -> tuple[Array, Array]:
    """Call the function now."""
    first = arrays[0]
    value, number = see(*map(np.asarray, arrays))
    return jnp.asarray(value, first.dtype), jnp.asarray(number, jnp.int32)


def shapes_of_result(x: Any, *others: Any, see: Callable[..., tuple[np.ndarray, int]]) -> tuple[Any, Any]:
    """An array like the first, and a number."""
    return x, ShapedArray((), np.dtype(np.int32))


def run_batch(arrays: Sequence[Array], axes: Sequence[Any], see: Callable[..., Any]) -> tuple[list[Array], list[Any]]:
    """The whole batch at once."""
    fronts = [x if axis is None else jnp.moveaxis(x, axis, 0) for x, axis in zip(arrays, axes, strict=True)]
    return shown.bind(*fronts, see=see), [None if axes[0] is None else 0, None]


shown.def_impl(run_now)
shown.def_abstract_eval(shapes_of_result)
batching.primitive_batchers[shown] = run_batch
