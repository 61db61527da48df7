"""JAX's models as models that the checker can take: NumPy arrays in and out, and layers that a tape watches."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, jaxpr_as_fun, jaxprs_in_params

from jaxp3.dropout import masks_seen
from jaxp3.function import from_array, is_inexact, to_array
from jaxp3.libraries import Library, library_of
from jaxp3.tap import IS_TRACED, TAPE, shown
from p3.parity.models.links import Parameter
from p3.parity.models.module import Arrays, Cotangents, Module, Run, parents
from p3.parity.models.tape import Tape
from p3.parity.tree import Structure, leaves


def itself(model: Any) -> Any:
    """The model."""
    return model


COMPILED = ("cond", "while", "scan")  # operations that XLA compiles as a whole


def as_module(model: Any) -> "ArrayModule":
    """
    Make a model of a flax or equinox module, or of a function and its parameters, for `p3.check_model`.

    Raises
    ------
    InputError
        It is none of these.

    Examples
    --------
    >>> as_module((lambda parameters, x: x * parameters["scale"], {"scale": jnp.ones(2)})).library
    'function'
    """
    return ArrayModule(library_of(model))


@dataclass(frozen=True, eq=False)
class ArrayModule(Module):
    """
    A model of one of JAX's libraries as a `p3.parity.Module`.

    `calling` makes what is called with the inputs of the model: the model itself, or a loss of it.
    """

    model: Library
    is_torch: bool = False
    calling: Callable[[Any], Any] = itself
    traces: dict[Hashable, Callable[..., Any]] = field(default_factory=dict)  # what `traced` has traced
    met: dict[Hashable, dict[str, str]] = field(default_factory=dict)  # the classes of layers that were called then

    @property
    def name(self) -> str:  # type: ignore[override]
        """The module's class, or the function's name."""
        return self.model.name

    @property
    def library(self) -> str:  # type: ignore[override]
        """What its layers are of."""
        return self.model.library

    @property
    def framework(self) -> str:  # type: ignore[override]
        """The framework's name and version."""
        return f"JAX {jax.__version__}"

    @property
    def ways(self) -> tuple[str, ...]:  # type: ignore[override]
        """As it is called with a batch."""
        return self.model.ways

    def parameters(self, kinds: Mapping[str, str]) -> tuple[Parameter, ...]:
        """The model's floating arrays."""
        classes = {**self.model.kinds, **kinds}
        found = []
        for is_state, arrays in ((False, self.model.parameters), (True, self.model.states)):
            for path, x in arrays.items():
                layer = self.model.layers.get(path, path.rpartition(".")[0])
                found.append(
                    Parameter(path, layer, classes.get(layer, ""), to_array(x), is_state, (), parents(layer, classes))
                )
        return tuple(found)

    def run(
        self,
        structure: Structure,
        inputs: tuple[np.ndarray, ...],
        precision: str,
        values: Arrays | None = None,
        tape: Tape | None = None,
        cotangents: Cotangents | None = None,
        mode: AbstractContextManager[object] | None = None,
        way: str = "",
    ) -> Run:
        """Run the model one operation at a time, loops too, and go back through it with `jax.vjp`."""
        reset = TAPE.set(tape)
        is_wide = precision == "float64" or any(x.dtype.name in ("float64", "complex128") for x in inputs)
        try:
            with jax.enable_x64(is_wide), jax.disable_jit(), masks_seen(tape), mode or nullcontext():
                parameters, states = (
                    {path: made(path, x, precision, values or {}) for path, x in arrays.items()}
                    for arrays in (self.model.parameters, self.model.states)
                )
                arrays = [from_array(x) for x in inputs]

                def f(parameters: Any, states: Any, arrays: Any) -> Any:
                    def call(module: Any, *before: Any) -> Any:
                        return structure.call(self.calling(module), arrays, {})

                    result, after = self.model.call(parameters, states, call, tape, way)
                    return arrays_of(result), after

                key = (precision, way, mode, tape is None, *((x.shape, x.dtype) for x in inputs))
                smooth, vjp, (outputs, after) = self.traced(key, partial(pulled_back, f))(parameters, states, arrays)
                if tape is not None:
                    tape.kinds.update(self.met.setdefault(key, dict(tape.kinds)))
                found = numpy_of(outputs)
                if cotangents is None:
                    return Run(found, {}, {}, numpy_of(after))
                if tape is not None:
                    tape.is_backward = True
                given = cotangents(found)
                zeros = {path: jnp.zeros_like(y) for path, y in smooth.items()}
                chosen = {path: jnp.asarray(v, smooth[path].dtype) for path, v in given.items()}
                by_parameter, by_input = vjp(zeros | chosen)
                return Run(found, numpy_of(by_parameter), numpy_of(by_input), numpy_of(after))
        finally:
            TAPE.reset(reset)

    def traced(self, key: Hashable, function: Callable[..., Any]) -> Callable[..., Any]:
        """
        A function whose Python code runs once for all calls with the same key, of which each runs its operations.

        Most of the time of a run is that of JAX's tracing for the vjp. Where a model's Python code depends on the
        numbers of its arrays, it runs in each call.
        """

        def evaluated(*arguments: Any) -> Any:
            if key not in self.traces:
                self.traces[key] = function
                reset = IS_TRACED.set(True)
                # What depends on no argument is computed now, as a model may keep it for its next call.
                with suppress(Exception), jax.ensure_compile_time_eval():  # what is no fault of tracing is raised below
                    jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*arguments)
                    if not compiles_taps(jaxpr.jaxpr):
                        self.traces[key] = partial(evaluate, jaxpr_as_fun(jaxpr), jax.tree.structure(shapes))
                IS_TRACED.reset(reset)
            return self.traces[key](*arguments)

        return evaluated

    def with_values(self, values: Arrays) -> Any:
        """The model with other numbers in it."""
        own = {**self.model.parameters, **self.model.states}
        given = {path: jnp.asarray(x, own[path].dtype) for path, x in values.items()}
        return self.model.with_values(given)


def pulled_back(f: Callable[..., Any], parameters: Any, states: Any, arrays: Sequence[Array]) -> Any:
    """The floating outputs of a model, their vjp by parameters and floating inputs, and all outputs and states."""

    def smooth(parameters: Any, moving: Mapping[int, Array]) -> Any:
        outputs, after = f(parameters, states, [moving.get(i, x) for i, x in enumerate(arrays)])
        return {path: y for path, y in outputs.items() if is_inexact(y)}, (outputs, after)

    return jax.vjp(smooth, parameters, {i: x for i, x in enumerate(arrays) if is_inexact(x)}, has_aux=True)


def compiles_taps(jaxpr: Jaxpr, within: bool = False) -> bool:
    """Whether a loop or a branch has a tap in it, which XLA would have to compile."""
    return any(
        (within and equation.primitive is shown)
        or any(compiles_taps(inner, within or equation.primitive.name in COMPILED) for inner in inner_jaxprs(equation))
        for equation in jaxpr.eqns
    )


def inner_jaxprs(equation: JaxprEqn) -> list[Jaxpr]:
    """The jaxprs of an operation, such as the branches of `jax.lax.cond`."""
    found: list[Jaxpr] = list(jaxprs_in_params(equation.params))
    return found


def evaluate(function: Callable[..., list[Any]], structure: Any, *arguments: Any) -> Any:
    """What a function that was traced gives, in the structure that it had before."""
    return jax.tree.unflatten(structure, function(*jax.tree.leaves(arguments)))


def made(path: str, x: Array, precision: str, values: Arrays) -> Array:
    """A model's array, or another in place of it, in a precision."""
    array = from_array(np.asarray(values.get(path, x)))
    return array.astype(precision or x.dtype) if is_inexact(x) else array


def numpy_of(arrays: Mapping[Any, Array]) -> dict[Any, np.ndarray]:
    """The same in NumPy."""
    return {path: to_array(x) for path, x in arrays.items()}


def arrays_of(result: Any) -> dict[str, Array]:
    """The arrays in what a model returned, by path; what else there is, is left out."""
    return {
        path + jax.tree_util.keystr(keys): y if isinstance(y, Array) else jnp.asarray(y)
        for path, x in leaves(result, "output")
        for keys, y in jax.tree_util.tree_flatten_with_path(x)[0]
        if isinstance(y, Array | np.ndarray)
    }
