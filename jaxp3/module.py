"""JAX's models as models that the checker can take: NumPy arrays in and out, and layers that a tape watches."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxp3.dropout import masks_seen
from jaxp3.function import from_array, is_inexact, to_array
from jaxp3.libraries import Library, library_of
from jaxp3.tap import TAPE
from p3.parity.match import Parameter
from p3.parity.module import Arrays, Cotangents, Module, Run, parents
from p3.parity.tape import Tape
from p3.parity.tree import Structure, leaves


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
    """A model of one of JAX's libraries as a `p3.parity.Module`."""

    model: Library
    is_torch: bool = False

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
        mode: AbstractContextManager[object] = nullcontext(),  # noqa: B008, which has no state
        way: str = "",
    ) -> Run:
        """Run the model one operation at a time, loops too, and go back through it with `jax.vjp`."""
        reset = TAPE.set(tape)
        is_wide = precision == "float64" or any(x.dtype.name in ("float64", "complex128") for x in inputs)
        try:
            with jax.enable_x64(is_wide), jax.disable_jit(), masks_seen(tape), mode:
                parameters, states = (
                    {path: made(path, x, precision, values or {}) for path, x in arrays.items()}
                    for arrays in (self.model.parameters, self.model.states)
                )
                arrays = [from_array(x) for x in inputs]
                moving = {i: x for i, x in enumerate(arrays) if is_inexact(x)}

                def f(parameters: Any, moving: Any) -> Any:
                    def call(module: Any, *before: Any) -> Any:
                        given = [moving.get(i, x) for i, x in enumerate(arrays)]
                        return structure.call(module, given, {})

                    result, after = self.model.call(parameters, states, call, tape, way)
                    outputs = arrays_of(result)
                    return {path: y for path, y in outputs.items() if is_inexact(y)}, (outputs, after)

                if cotangents is None:
                    _, (outputs, after) = f(parameters, moving)
                    return Run(numpy_of(outputs), {}, {}, numpy_of(after))
                smooth, vjp, (outputs, after) = jax.vjp(f, parameters, moving, has_aux=True)
                if tape is not None:
                    tape.is_backward = True
                found = numpy_of(outputs)
                given = cotangents(found)
                zeros = {path: jnp.zeros_like(y) for path, y in smooth.items()}
                chosen = {path: jnp.asarray(v, smooth[path].dtype) for path, v in given.items()}
                by_parameter, by_input = vjp(zeros | chosen)
                return Run(found, numpy_of(by_parameter), numpy_of(by_input), numpy_of(after))
        finally:
            TAPE.reset(reset)

    def with_values(self, values: Arrays) -> Any:
        """The model with other numbers in it."""
        own = {**self.model.parameters, **self.model.states}
        given = {path: jnp.asarray(x, own[path].dtype) for path, x in values.items()}
        return self.model.with_values(given)


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
        path + jax.tree_util.keystr(keys): y
        for path, x in leaves(result, "output")
        for keys, y in jax.tree_util.tree_flatten_with_path(x)[0]
        if isinstance(y, Array)
    }
