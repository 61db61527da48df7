"""JAX's functions as operators that the parity checker can take: NumPy arrays in and out."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import RLock, local
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental.xla_metadata import set_xla_metadata
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from p3.parity.inputs import program_of
from p3.parity.operator import Arrays, Operator

JaxArrays = tuple[Array, ...]
JAX_ITSELF = os.path.dirname(jax.__file__)
REFUSALS = (  # what JAX says of what there is not
    "can't apply forward-mode autodiff (jvp) to a custom_vjp",
    "which has no forward mode",
    "do not support JVP",
    "Reverse-mode differentiation does not work",
)

FACTOR = local()  # .value: what rules are scaled by in a thread
SCALED: dict[type, tuple[Any, int]] = {}  # by class of rules that are scalable: its method, and for how many threads
LOCK = RLock()  # of SCALED; never held while a user's function runs


def as_operator(f: Any, *, arguments: tuple[int, ...] | None = None, **static: Any) -> Operator:
    """
    Make an operator of a function of arrays, for `p3.parity.check`.

    Parameters
    ----------
    f : a function of arrays to an array or a tuple of them, a `jax.custom_vjp` or `jax.custom_jvp` among them
    arguments : the positions of the arguments to differentiate; all of floating or complex dtype where None
    static : keyword arguments that f is always called with

    Examples
    --------
    >>> as_operator(jnp.sin).vjp((np.zeros(1),), (np.ones(1),))
    (array([1.]),)
    """
    name = getattr(f, "__name__", type(f).__name__)
    return FunctionOperator(f, name, arguments, static)


def to_array(x: Array) -> np.ndarray:
    """The same numbers in NumPy, in memory of their own."""
    return np.array(x)


def from_array(x: np.ndarray) -> Array:
    """The same numbers in JAX, in memory of their own."""
    return jnp.array(x)


def to_arrays(arrays: JaxArrays) -> Arrays:
    """The same numbers in NumPy."""
    return tuple(to_array(x) for x in arrays)


def from_arrays(arrays: Arrays) -> JaxArrays:
    """The same numbers in JAX."""
    return tuple(from_array(x) for x in arrays)


def is_inexact(x: Array) -> bool:
    """Whether x is floating or complex."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


@dataclass(frozen=True)
class FunctionOperator:
    """A function of arrays as a `p3.parity.Operator`; the fields after `static` say by which transforms it runs."""

    f: Callable[..., Any]
    name: str
    differentiable: tuple[int, ...] | None
    static: dict[str, Any]
    one_by_one: bool = False  # the gradient of each output by each argument alone, all others constant
    is_compiled: bool = False
    is_sharded: bool = False  # compiled for arrays that are divided among all devices
    batch: tuple[int, ...] = ()  # the arguments that have one more axis in front
    factor: float = 1.0

    @property
    def framework(self) -> str:
        """The framework's name and version."""
        return f"JAX {jax.__version__}"

    @property
    def program(self) -> str:
        """Python that makes this as `operator`; empty where the function has no name to be imported by."""
        return program_of("jaxp3", self.f, {"arguments": self.differentiable, **self.static})

    def arguments(self, inputs: Arrays) -> tuple[int, ...]:
        """The positions of the differentiable arguments."""
        if self.differentiable is not None:
            return self.differentiable
        return tuple(i for i, x in enumerate(inputs) if is_inexact(x))

    def batched(self, arguments: tuple[int, ...]) -> Operator:
        """By `jax.vmap`."""
        return replace(self, batch=arguments)

    def transformed(self) -> dict[str, Operator]:
        """JAX has one way to differentiate, in which other rules run for what is constant; and by `jax.shard_map`."""

        def f(*arrays: Array, **static: Any) -> JaxArrays:
            return on_each_device(lambda *copies: outputs(self.f(*copies, **static), self.name))(*arrays)

        return {
            "one output and argument at a time": replace(self, one_by_one=True),
            "shard_map": replace(self, f=f, is_compiled=True),  # where it is not, JAX compiles each operation alone
        }

    def compiled(self) -> dict[str, Operator]:
        """By `jax.jit`; and where there are several devices, for arrays that are divided among them."""
        found: dict[str, Operator] = {"jax.jit": replace(self, is_compiled=True)}
        if len(jax.local_devices()) > 1:
            found["sharded jax.jit"] = replace(self, is_sharded=True)
        return found

    def scaled(self, factor: float) -> Operator:
        """The same, what every `custom_vjp`'s and `custom_jvp`'s rule returns multiplied."""
        return replace(self, factor=factor)

    def rules(self, inputs: Arrays) -> tuple[str, ...]:
        """The names of the `custom_vjp` and `custom_jvp` functions in the program that JAX makes of f."""
        with self.wide(inputs):
            program = jax.make_jaxpr(lambda arrays: outputs(self.f(*arrays, **self.static), self.name))
            return tuple(sorted(custom_functions(program(from_arrays(inputs)))))

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

    def alone(self, argument: int, output: int) -> "FunctionOperator":
        """One differentiable output as a function of one argument."""

        def one(*arrays: Array, **static: Any) -> Array:
            return [y for y in outputs(self.f(*arrays, **static), self.name) if is_inexact(y)][output]

        return replace(self.along(argument), f=one)

    def along(self, argument: int) -> "FunctionOperator":
        """The same as a function of one argument."""
        return replace(self, differentiable=(argument,), one_by_one=False)

    def run(self, transform: Callable[..., JaxArrays], inputs: Arrays, *others: Arrays) -> Arrays:
        """Call transform(inputs, *others) on JAX's arrays, compiled and batched as this operator is."""
        if self.batch:
            axes = tuple(0 if i in self.batch else None for i in range(len(inputs)))
            transform = jax.vmap(transform, (axes, *(0 for _ in others)))
        if self.is_compiled:
            transform = jax.jit(transform)
        if self.is_sharded:
            transform = sharded(transform)
        with refusals(), self.wide(inputs, *others), self.scaled_rules():
            return to_arrays(transform(from_arrays(inputs), *map(from_arrays, others)))

    def function(self, inputs: Arrays) -> tuple[Callable[..., JaxArrays], Callable[[JaxArrays], JaxArrays]]:
        """F's differentiable outputs as a function of its differentiable arguments and all others; and those of all."""
        positions = self.arguments(inputs)

        def inexact_outputs(arguments: JaxArrays, arrays: JaxArrays) -> JaxArrays:
            given = list(arrays)
            for i, argument in zip(positions, arguments, strict=True):
                given[i] = argument
            return tuple(y for y in outputs(self.f(*given, **self.static), self.name) if is_inexact(y))

        return inexact_outputs, lambda arrays: tuple(arrays[i] for i in positions)

    def value(self, inputs: Arrays) -> Arrays:
        """F(inputs)."""
        return self.run(lambda arrays: outputs(self.f(*arrays, **self.static), self.name), inputs)

    def vjp(self, inputs: Arrays, cotangents: Arrays, between: Callable[[], object] = lambda: None) -> Arrays:
        """The vjp, by `jax.vjp`."""
        f, select = self.function(inputs)
        if self.one_by_one:
            return tuple(
                np.sum([self.alone(i, k).vjp(inputs, (v,), between)[0] for k, v in enumerate(cotangents)], axis=0)
                for i in self.arguments(inputs)
            )

        def vjp(arrays: JaxArrays, cotangents: JaxArrays) -> JaxArrays:
            pullback = jax.vjp(lambda *arguments: f(arguments, arrays), *select(arrays))[1]
            between()
            return pullback(cotangents)

        return self.run(vjp, inputs, cotangents)

    def jvp(self, inputs: Arrays, tangents: Arrays) -> Arrays:
        """The jvp, by `jax.jvp`."""
        f, select = self.function(inputs)
        if self.one_by_one:
            sides = zip(self.arguments(inputs), tangents, strict=True)
            along = [self.along(i).jvp(inputs, (w,)) for i, w in sides]
            return tuple(np.sum(parts, axis=0) for parts in zip(*along, strict=True))

        def jvp(arrays: JaxArrays, tangents: JaxArrays) -> JaxArrays:
            return jax.jvp(lambda *arguments: f(arguments, arrays), select(arrays), tangents)[1]

        return self.run(jvp, inputs, tangents)

    def vjp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """The vjp of the vjp."""
        f, select = self.function(inputs)

        def vjp_of_vjp(arrays: JaxArrays, cotangents: JaxArrays, directions: JaxArrays) -> JaxArrays:
            def vjp(arguments: JaxArrays, cotangents: JaxArrays) -> JaxArrays:
                return jax.vjp(lambda *arguments: f(arguments, arrays), *arguments)[1](cotangents)

            gradients = jax.vjp(vjp, select(arrays), cotangents)[1](directions)
            return (*gradients[0], *gradients[1])

        return self.run(vjp_of_vjp, inputs, cotangents, directions)

    def jvp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """The jvp of the vjp, forward over reverse."""
        f, select = self.function(inputs)

        def jvp_of_vjp(arrays: JaxArrays, cotangents: JaxArrays, directions: JaxArrays) -> JaxArrays:
            def vjp(*arguments: Array) -> JaxArrays:
                return jax.vjp(lambda *arguments: f(arguments, arrays), *arguments)[1](cotangents)

            return jax.jvp(vjp, select(arrays), directions)[1]

        return self.run(jvp_of_vjp, inputs, cotangents, directions)


@contextmanager
def refusals() -> Iterator[None]:
    """What JAX says that there is not is a NotImplementedError, whatever JAX makes of it."""
    try:
        yield
    except Exception as error:
        if any(words in str(error) for words in REFUSALS):
            raise NotImplementedError(str(error)) from error
        raise


def outputs(result: Any, name: str) -> JaxArrays:
    """What a function returned, as a tuple."""
    results = tuple(result) if isinstance(result, tuple | list) else (result,)
    for y in results:
        if not isinstance(y, Array):
            raise TypeError(f"{name} returned {type(y).__name__}; return a jax.Array or a tuple of them")
    return results


def all_devices() -> Mesh:
    """The devices of this process, in a row."""
    return Mesh(np.array(jax.local_devices()), ("devices",))


def on_each_device(f: Callable[..., JaxArrays]) -> Callable[..., JaxArrays]:
    """
    The mean of what each device computes by f of a copy of the arguments, which is f, by `jax.shard_map`.

    Each pulls back an equal part of the cotangent, and the gradients add up. On one device too, what f and its rules
    compute of their arguments is of types that vary over the mesh, and what they make of nothing is not.
    """
    mesh = all_devices()

    def copied(x: Array) -> Array:
        return jnp.broadcast_to(x, (mesh.size, *x.shape))

    def of_copy(*copies: Array) -> JaxArrays:
        return tuple(y[None] for y in f(*(x[0] for x in copies)))

    mapped = jax.shard_map(of_copy, mesh=mesh, in_specs=PartitionSpec("devices"), out_specs=PartitionSpec("devices"))
    return lambda *arrays: tuple(y.mean(0) if is_inexact(y) else y[0] for y in mapped(*map(copied, arrays)))


def sharded(transform: Callable[..., JaxArrays]) -> Callable[..., JaxArrays]:
    """The transform compiled for arguments that are divided among all devices, each along one axis if it has one."""
    mesh = all_devices()

    def divided(x: Array) -> Array:
        long = [axis for axis, length in enumerate(x.shape) if length >= mesh.size]
        even = [axis for axis in long if x.shape[axis] % mesh.size == 0]
        spec = PartitionSpec(*(None,) * (even or long)[0], "devices") if long else PartitionSpec()
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))

    def of_divided(inputs: JaxArrays, *others: JaxArrays) -> JaxArrays:
        if not any(length >= mesh.size for x in inputs for length in x.shape):
            raise NotImplementedError(f"no input has an axis of {mesh.size}, to be divided among as many devices")
        return transform(*jax.tree.map(divided, (inputs, *others)))

    return jax.jit(of_divided, out_shardings=NamedSharding(mesh, PartitionSpec()))


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
def scalable(kind: type, name: str, scale: Callable[..., Any]) -> Iterator[None]:
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
