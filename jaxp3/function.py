"""JAX's functions as operators that the parity checker can take: NumPy arrays in and out."""

import functools
import operator
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import RLock, local
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata

from jaxp3.sharding import on_each_device, sharded
from p3.parity.function import Arrays, Function, NoMeaningError
from p3.parity.inputs import program_of
from p3.parity.tree import Structure, is_of, leaves

JaxArrays = tuple[Array, ...]
Transform = Callable[..., JaxArrays]  # of one group of arrays or several
Combinator = Callable[[Transform, tuple[int, ...] | None, Callable[[], object]], Transform]
PROGRAMS = 128  # that are kept
# To compile in a fifth of the time, and round as operations that are run one by one do: half precision stays so.
QUICKLY = {
    "xla_allow_excess_precision": False,
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
JAX_ITSELF = os.path.dirname(jax.__file__)
REFUSALS = (  # what JAX says of what there is not
    "can't apply forward-mode autodiff (jvp) to a custom_vjp",
    "which has no forward mode",
    "do not support JVP",
    "Reverse-mode differentiation does not work",
    "dtype=float16 is not supported",
    "dtype=bfloat16 is not supported",
)

FACTOR = local()  # .value: what rules are scaled by in a thread
SCALED: dict[type, tuple[Any, int]] = {}  # by class of rules that are scalable: its method, and for how many threads
LOCK = RLock()  # of SCALED; never held while a user's function runs


def as_operator(
    f: Any, *, arguments: tuple[int | str, ...] | None = None, states: tuple[int | str, ...] = (), **static: Any
) -> Function:
    """
    Make an operator of a function of arrays, for `p3.parity.check`.

    Parameters
    ----------
    f : a function of arrays to an array or a tuple of them, a `jax.custom_vjp` or `jax.custom_jvp` among them
    arguments : the positions or names of the arguments to differentiate; all of floating or complex dtype where None
    states : the positions or names of outputs that are states, such as running statistics, and have no derivative
    static : keyword arguments that f is always called with

    Examples
    --------
    >>> as_operator(jnp.sin).vjp((np.zeros(1),), (np.ones(1),))
    (array([1.]),)
    """
    name = getattr(f, "__name__", type(f).__name__)
    return ArrayFunction(f, name, arguments, tuple(sorted(static.items())), states=states)


def to_array(x: Array) -> np.ndarray:
    """The same numbers in NumPy, in memory of their own."""
    return np.array(x)


def from_array(x: np.ndarray) -> Array:
    """The same numbers in JAX, in memory of their own."""
    array: Array = jax.device_put(np.array(x))  # which compiles nothing, as jnp.array does for each shape
    return array


def to_arrays(arrays: JaxArrays) -> Arrays:
    """The same numbers in NumPy."""
    return tuple(to_array(x) for x in arrays)


def from_arrays(arrays: Arrays) -> JaxArrays:
    """The same numbers in JAX."""
    return tuple(from_array(x) for x in arrays)


def is_inexact(x: Array) -> bool:
    """Whether x is floating or complex."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def nothing() -> None:
    """What is done between the passes of a pullback where nothing is asked for."""


@dataclass(frozen=True)
class ArrayFunction(Function):
    """A function of arrays as a `p3.parity.Function`; the fields after `static` say what of it, and by which modes."""

    f: Callable[..., Any]
    name: str
    differentiable: tuple[Any, ...] | None  # positions, or names until `of` has seen the inputs
    static: tuple[tuple[str, Any], ...]
    combinators: tuple[Combinator, ...] = ()  # `vjp_of` and `jvp_of`, the innermost first
    one_by_one: bool = False  # the gradient of each output by each argument alone, all others constant
    is_quick: bool = False  # compiled, and kept with what it is a program of
    traced: str = ""  # what it is a program of, where it is quick
    is_compiled: bool = False
    is_sharded: bool = False  # compiled for arrays that are divided among all devices
    batch: tuple[int, ...] = ()  # the arguments that have one more axis in front
    factor: float = 1.0
    between: Callable[[], object] = nothing
    structure: Structure | None = None  # of the inputs, where they are more than a tuple of arrays
    states: tuple[int | str, ...] = ()  # the outputs that have no derivative

    @property
    def framework(self) -> str:  # type: ignore[override]
        """The framework's name and version."""
        return f"JAX {jax.__version__}"

    @property
    def program(self) -> str:  # type: ignore[override]
        """Python that makes this as `operator`; empty where the function has no name to be imported by."""
        chosen = self.differentiable
        if chosen is not None and self.structure is not None:
            chosen = tuple(dict.fromkeys(self.structure.tops[i] for i in chosen))
        options = {"arguments": chosen, "states": self.states or None, **dict(self.static)}
        return program_of("jaxp3", self.f, options)

    def arguments(self, inputs: Arrays) -> tuple[int, ...]:
        """The positions of the differentiable arguments."""
        return super().arguments(inputs) if self.differentiable is None else self.differentiable

    def of(self, structure: Structure) -> Function:
        """The same of the arrays of nested inputs."""
        chosen = self.differentiable
        if chosen is not None:
            structure.check(chosen)
            chosen = tuple(i for i, top in enumerate(structure.tops) if top in chosen)
        return replace(self, structure=None if structure.is_plain else structure, differentiable=chosen)

    def held(self, inputs: Arrays, keys: tuple[int, ...], states: tuple[int | str, ...]) -> Function:
        """The same, not differentiated by the keys, and whose outputs `states` are states."""
        chosen = self.differentiable
        if not set(keys).isdisjoint(self.arguments(inputs)):
            chosen = tuple(i for i in self.arguments(inputs) if i not in keys)
        return replace(self, differentiable=chosen, states=(*self.states, *states))

    def output_paths(self, inputs: Arrays) -> tuple[str, ...]:
        """What to call each output."""
        with self.wide(inputs):
            return tuple(path for path, _ in leaves_of(self.result(from_arrays(inputs)), self.name))

    def pullback(self) -> "ArrayFunction":
        """By `jax.vjp`."""
        return self.combined(vjp_one_by_one if self.one_by_one else vjp_of)

    def pushforward(self) -> "ArrayFunction":
        """By `jax.jvp`."""
        return self.combined(jvp_one_by_one if self.one_by_one else jvp_of)

    def combined(self, combinator: Combinator) -> "ArrayFunction":
        """The function that a combinator gives of this one."""
        if self.one_by_one and self.combinators:
            raise NoMeaningError("one output and argument at a time is a way of differentiating once")
        return replace(self, combinators=(*self.combinators, combinator))

    def interrupted(self, between: Callable[[], object]) -> Function:
        """The same, where the pullback calls `between` between its passes."""
        return replace(self, between=between)

    def quick(self, inputs: Arrays, cotangents: Arrays) -> Function:
        """By `jax.jit`; the program is kept and used again as long as JAX traces the function to the same text."""
        return replace(self, is_quick=True, traced=self.text(inputs, cotangents))

    def text(self, inputs: Arrays, cotangents: Arrays) -> str:
        """The jaxprs of the function and of its second derivatives; they change when a rule or a global changes."""
        tangents = tuple(inputs[i] for i in self.arguments(inputs))
        texts = []
        for function, groups in (
            (self, (inputs,)),
            (self.pullback().pullback(), (inputs, cotangents, tangents)),
            (self.pushforward().pushforward(), (inputs, tangents, tangents * 2)),
        ):
            with suppress(Exception), self.wide(inputs):  # what cannot be traced is not compiled either
                traced = jax.make_jaxpr(function.call())(*map(from_arrays, groups))
                texts += [str(traced), *(str(hash(np.asarray(x).tobytes())) for x in traced.consts)]
        return re.sub("0x[0-9a-f]+", "", "\n".join(texts))  # without the addresses of Python's objects

    def batched(self, arguments: tuple[int, ...]) -> Function:
        """By `jax.vmap`."""
        return replace(self, batch=arguments)

    def transformed(self) -> dict[str, Function]:
        """JAX has one way to differentiate, in which other rules run for what is constant; and by `jax.shard_map`."""
        return {
            "one output and argument at a time": replace(self, one_by_one=True),
            # Where it is not compiled, JAX compiles each operation alone.
            "shard_map": replace(self, combinators=(on_each_device,), is_compiled=True),
        }

    def compiled(self) -> dict[str, Function]:
        """By `jax.jit`; and where there are several devices, for arrays that are divided among them."""
        found: dict[str, Function] = {"jax.jit": replace(self, is_compiled=True)}
        if len(jax.local_devices()) > 1:
            found["sharded jax.jit"] = replace(self, is_sharded=True)
        return found

    def scaled(self, factor: float) -> Function:
        """The same, what every `custom_vjp`'s and `custom_jvp`'s rule returns multiplied."""
        return replace(self, factor=factor)

    def rules(self, inputs: Arrays) -> tuple[str, ...]:
        """The names of the `custom_vjp` and `custom_jvp` functions in the jaxpr of f."""
        with self.wide(inputs):
            return tuple(sorted(custom_functions(jax.make_jaxpr(self.outputs)(from_arrays(inputs)))))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Functions are compiled where they ask for it, and NaN is a number like another."""
        with jax.disable_jit(False), jax.debug_nans(False), jax.debug_infs(False):
            yield

    def state(self) -> dict[str, Any]:
        """JAX's settings; it has no random state."""
        return dict(jax.config.values)

    def restore(self, name: str, value: Any) -> None:
        """Set one of them."""
        jax.config.update(name, value)

    def reseed(self, seed: int) -> None:
        """JAX's random numbers come from keys, and not from a state."""
        return

    @contextmanager
    def scaled_rules(self) -> Iterator[None]:
        """While it lasts, the result of every rule is multiplied in this thread, and in no other."""
        if self.factor == factor_here():
            yield
            return
        # The metadata means nothing to XLA. It is part of what JAX finds a traced function by: without it, what is
        # jitted inside f would be taken from before, and other threads would find what was traced here.
        metadata = set_xla_metadata(p3_factor=self.factor)
        with scalable(jax.custom_vjp, "bwd", multiplied), scalable(jax.custom_jvp, "jvp", scaled_jvp):
            before, FACTOR.value = factor_here(), self.factor
            try:
                with metadata:
                    yield
            finally:
                FACTOR.value = before

    def wide(self, *groups: Arrays) -> Any:
        """float64 and complex128 are switched on for a call that is given them, and for no other."""
        return jax.enable_x64(any(x.dtype.name in ("float64", "complex128") for group in groups for x in group))

    def outputs(self, inputs: JaxArrays) -> JaxArrays:
        """f(inputs), as a tuple."""
        result = self.result(inputs)
        if self.states:
            return tuple(
                jax.lax.stop_gradient(y) if any(is_of(path, state) for state in self.states) else y
                for path, y in leaves_of(result, self.name)
            )
        results = result if type(result) in (tuple, list) else (result,)
        if all(isinstance(y, Array) for y in results):  # in few steps, since compilers look into them
            return tuple(results)
        return tuple(y for _, y in leaves_of(result, self.name))

    def result(self, inputs: JaxArrays) -> Any:
        """What f returns."""
        if self.structure is None:
            return self.f(*inputs, **dict(self.static))
        return self.structure.call(self.f, inputs, dict(self.static))

    def call(self) -> Transform:
        """The function of groups of JAX's arrays that this is, compiled and batched."""
        call: Transform = self.outputs
        for combinator in self.combinators:
            call = combinator(call, self.differentiable, self.between)
        if self.batch:
            call = self.mapped(call)
        if self.is_quick:
            return jax.jit(call, compiler_options=QUICKLY)
        if self.is_compiled:
            return jax.jit(call)
        return sharded(call) if self.is_sharded else call

    def mapped(self, call: Transform) -> Transform:
        """By `jax.vmap`."""

        def vmap(inputs: JaxArrays, *others: JaxArrays) -> JaxArrays:
            axes = tuple(0 if i in self.batch else None for i in range(len(inputs)))
            found: JaxArrays = jax.vmap(call, (axes, *(0 for _ in others)))(inputs, *others)
            return found

        return vmap

    def value(self, *groups: Arrays) -> Arrays:
        """The function's outputs."""
        call = program(self) if self.is_quick and is_hashable(self) else self.call()
        with refusals(), self.wide(*groups), self.scaled_rules():
            return to_arrays(call(*map(from_arrays, groups)))


def is_hashable(function: ArrayFunction) -> bool:
    """Whether a function, and all that it is always called with, can be a key."""
    try:
        hash(function)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=PROGRAMS)
def program(function: ArrayFunction) -> Transform:
    """A compiled function, kept."""
    return function.call()


def split(
    groups: Sequence[JaxArrays], differentiable: tuple[int, ...] | None
) -> tuple[JaxArrays, Callable[[JaxArrays], list[JaxArrays]]]:
    """The arrays to differentiate by, of the first group those at some positions; and what puts others there."""
    chosen = [differentiable, *(None for _ in groups[1:])]
    places = [
        (k, i)
        for k, (group, positions) in enumerate(zip(groups, chosen, strict=True))
        for i, x in enumerate(group)
        if (is_inexact(x) if positions is None else i in positions)
    ]

    def merge(moving: JaxArrays) -> list[JaxArrays]:
        merged = [list(group) for group in groups]
        for (k, i), x in zip(places, moving, strict=True):
            merged[k][i] = x
        return [tuple(group) for group in merged]

    return tuple(groups[k][i] for k, i in places), merge


def vjp_of(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The vjp of a function of groups of arrays, by `jax.vjp`."""

    def vjp(*groups: JaxArrays) -> JaxArrays:
        *primals, cotangents = groups
        moving, merge = split(primals, differentiable)
        transposed = jax.vjp(lambda *moving: inexact(f(*merge(moving))), *moving)[1]
        between()
        gradients: JaxArrays = transposed(cotangents)
        return gradients

    return vjp


def jvp_of(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The jvp of a function of groups of arrays, by `jax.jvp`."""

    def jvp(*groups: JaxArrays) -> JaxArrays:
        *primals, tangents = groups
        moving, merge = split(primals, differentiable)
        pushed: JaxArrays = jax.jvp(lambda *moving: inexact(f(*merge(moving))), moving, tangents)[1]
        return pushed

    return jvp


def vjp_one_by_one(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The vjp, as the sum over the outputs of the vjp of each by each argument alone."""

    def vjp(inputs: JaxArrays, cotangents: JaxArrays) -> JaxArrays:
        moving, merge = split([inputs], differentiable)

        def gradient(i: int, k: int) -> Array:
            def one(x: Array) -> JaxArrays:
                return (inexact(f(*merge((*moving[:i], x, *moving[i + 1 :]))))[k],)

            return vjp_of(one_group(one), None, between)((moving[i],), (cotangents[k],))[0]

        return tuple(total([gradient(i, k) for k in range(len(cotangents))]) for i in range(len(moving)))

    return vjp


def jvp_one_by_one(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The jvp, as the sum over the arguments of the jvp by each alone."""

    def jvp(inputs: JaxArrays, tangents: JaxArrays) -> JaxArrays:
        moving, merge = split([inputs], differentiable)

        def tangent(i: int) -> JaxArrays:
            def one(x: Array) -> JaxArrays:
                return f(*merge((*moving[:i], x, *moving[i + 1 :])))

            return jvp_of(one_group(one), None, between)((moving[i],), (tangents[i],))

        return tuple(map(total, zip(*map(tangent, range(len(moving))), strict=True)))

    return jvp


def one_group(f: Callable[..., JaxArrays]) -> Transform:
    """A function of several arrays as one of a group of them."""
    return lambda inputs: f(*inputs)


def total(parts: Sequence[Array]) -> Array:
    """The sum."""
    return functools.reduce(operator.add, parts)


def inexact(arrays: JaxArrays) -> JaxArrays:
    """Those that are floating or complex."""
    return tuple(y for y in arrays if is_inexact(y))


@contextmanager
def refusals() -> Iterator[None]:
    """Raise NotImplementedError for what JAX does not support, whichever exception JAX raises."""
    try:
        yield
    except Exception as error:
        if any(words in str(error) for words in REFUSALS):
            raise NotImplementedError(str(error)) from error
        raise


def leaves_of(result: Any, name: str) -> list[tuple[str, Array]]:
    """The path and the value of each array in what a function returned, however nested; None stands for none."""
    found = []
    if result is None:
        raise TypeError(f"{name} returned NoneType; return a jax.Array or a tuple of them")
    for path, x in leaves(result, "output"):
        for keys, y in jax.tree_util.tree_flatten_with_path(x)[0]:
            if not isinstance(y, Array):
                raise TypeError(f"{name} returned {type(y).__name__}; return a jax.Array or a tuple of them")
            found.append((path + jax.tree_util.keystr(keys), y))
    return found


def custom_functions(program: Any) -> set[str]:
    """The names of the functions with a rule of their own in a jaxpr, and in those within it; not JAX's own."""
    found = set()
    for equation in getattr(program, "jaxpr", program).eqns:  # jax.checkpoint's is without constants
        if equation.primitive.name in ("custom_vjp_call", "custom_jvp_call"):
            written = equation.params["call_jaxpr"].jaxpr.debug_info
            if not written.func_filename.startswith(JAX_ITSELF):
                found.add(written.func_name)
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    found |= custom_functions(inner)
    return found


def factor_here() -> float:
    """What rules are scaled by in this thread."""
    return getattr(FACTOR, "value", 1.0)


@contextmanager
def scalable(kind: Any, name: str, scale: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, the rules of a kind are scaled where a thread has a factor; not those of JAX itself."""
    with LOCK:
        if kind not in SCALED:
            SCALED[kind] = (kind.__call__, 0)
            kind.__call__ = call_scaled(kind.__call__, name, scale)
        call, count = SCALED[kind]
        SCALED[kind] = (call, count + 1)
    try:
        yield
    finally:
        with LOCK:
            call, count = SCALED.pop(kind)
            if count > 1:
                SCALED[kind] = (call, count - 1)
            else:
                kind.__call__ = call


def call_scaled(call: Callable[..., Any], name: str, scale: Callable[..., Any]) -> Callable[..., Any]:
    """How a `custom_vjp` or `custom_jvp` is called, with its rule scaled by the factor of the thread."""

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        factor = factor_here()
        if factor == 1.0 or self.__module__.startswith("jax."):
            return call(self, *args, **kwargs)
        scaled = object.__new__(type(self))  # a copy, since another thread may call the object itself
        scaled.__dict__.update(self.__dict__, **{name: scale(getattr(self, name), factor)})
        return call(scaled, *args, **kwargs)

    return method


def scaled_jvp(rule: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """A jvp rule, its tangents multiplied."""

    def jvp(*args: Any) -> Any:
        results, tangents = rule(*args)
        return results, multiplied(lambda: tangents, factor)()

    return jvp


def multiplied(rule: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """The rule, its results multiplied."""

    def scaled_rule(*args: Any) -> Any:
        return jax.tree.map(lambda y: factor * y if jnp.issubdtype(jnp.result_type(y), jnp.inexact) else y, rule(*args))

    return scaled_rule
