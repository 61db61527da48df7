"""A training in JAX, as the checker takes it: parameters, a loss function, and an optax transformation."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxp3.function import is_inexact, to_array
from jaxp3.libraries import FunctionModel, Library, NnxModel, dotted, is_nnx
from jaxp3.module import ArrayModule, inner_jaxprs
from jaxp3.stages import Stages, rates
from p3.errors import InputError
from p3.parity.function import at_precision
from p3.parity.models.module import Module
from p3.parity.trainings import training
from p3.parity.trainings.training import COUNT, PARAMETER, ROLES, STATE, Arrays, Forward, State, Update
from p3.parity.tree import Structure, take_apart

RANDOM = ("random_bits", "threefry2x32", "rng_bit_generator", "random_seed")  # operations that draw random numbers


@dataclass(frozen=True, eq=False)
class Training(training.Training):
    """
    A training in JAX.

    Each step computes the loss of a batch and its gradients with `jax.value_and_grad`, and updates the parameters with
    `optimizer.update` and `optax.apply_updates`.

    Parameters
    ----------
    parameters : a tree of arrays, a `flax.nnx.Module`, or a tree with equinox modules in it
    loss : called as loss(parameters, batch), returns a scalar; with a state, called as loss(parameters, state, batch),
        returns a scalar and the new state
    optimizer : an optax transformation
    state : what the loss updates and has no gradient, such as running statistics; those of a `flax.nnx.Module` are in
        the module

    Examples
    --------
    >>> Training({"w": jnp.ones(3)}, lambda p, x: jnp.sum(p["w"] * x), optax.sgd(0.1)).name
    '<lambda>'
    """

    parameters: Any
    loss: Callable[..., Any]
    optimizer: Any
    state: Any = None
    is_torch = False

    def __post_init__(self) -> None:
        """
        Say what is not given as it should be.

        Raises
        ------
        InputError
            The loss is no function, or the optimizer no transformation.
        """
        if not callable(self.loss):
            raise InputError(f"loss= is {type(self.loss).__name__}; give a function of the parameters and a batch")
        if not callable(getattr(self.optimizer, "init", None)) or not callable(getattr(self.optimizer, "update", None)):
            raise InputError(
                f"optimizer= is {type(self.optimizer).__name__}; give an optax transformation, with init and update"
            )

    @property
    def name(self) -> str:
        """Of the loss."""
        return str(getattr(self.loss, "__name__", type(self.loss).__name__))

    @property
    def framework(self) -> str:
        """Name and version."""
        return f"JAX {jax.__version__}"

    @cached_property
    def library(self) -> Library:
        """The parameters, as a model of their library."""
        if is_nnx(self.parameters):
            return NnxModel(self.parameters)
        return FunctionModel(self.loss, self.parameters, self.state)

    def called(self, model: Any) -> Callable[..., Any]:
        """The loss as a function of a batch alone."""
        return partial(self.loss, model) if is_nnx(self.parameters) else model

    def begin(self, precision: str) -> "Run":
        """The training before its first step."""
        return Run(self, precision)

    def as_module(self, values: Arrays | None = None) -> Module:
        """The loss as a model whose input is a batch."""
        library = copy.copy(self.library)
        for name in ("parameters", "states"):
            own = getattr(library, name)
            given = {path: jnp.asarray((values or {}).get(path, x), x.dtype) for path, x in own.items()}
            setattr(library, name, given)
        return ArrayModule(library, calling=self.called)


class Run(training.Run):
    """A training in one precision, in progress."""

    def __init__(self, training: Training, precision: str) -> None:
        """Before the first step."""
        self.training, self.precision = training, precision
        self.library = training.library
        with self.wide():
            self.parameters, self.states = (
                {path: cast(x, precision) for path, x in arrays.items()}
                for arrays in (self.library.parameters, self.library.states)
            )
            tree = self.tree(self.parameters)
            paths = {id(x): path for path, x in self.parameters.items()}
            leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
            # By the path of a leaf in the optimizer's trees, the parameter's own.
            self.names = {dotted(keys): paths[id(x)] for keys, x in leaves if id(x) in paths}
            self.structure = jax.tree.structure(tree)
            self.order = [paths.get(id(x), "") for _, x in leaves]
            try:
                self.optimizer_state = training.optimizer.init(tree)
            except Exception as error:  # of whatever kind the optimizer raises
                line = " ".join(str(error).split())
                raise InputError(f"optimizer.init raises {type(error).__name__} with the parameters: {line}") from error
        self._forward = jax.jit(self.computed, static_argnums=3)
        self._update = jax.jit(self.updated)
        self._step = jax.jit(self.stepped, static_argnums=4)

    def wide(self) -> AbstractContextManager[object]:
        """64-bit types, where they are wanted."""
        return jax.enable_x64(True) if self.precision == "float64" else nullcontext()

    def tree(self, parameters: Any) -> Any:
        """The parameters as the optimizer takes them."""
        return self.library.tree_of(parameters)

    def flat(self, tree: Any) -> dict[str, Array]:
        """The leaves of a tree that is like that of the parameters, by the parameters' paths."""
        return {path: x for path, x in zip(self.order, jax.tree.leaves(tree), strict=True) if path}

    def computed(self, parameters: Any, states: Any, arrays: Any, structure: Structure) -> Any:
        """The loss, its gradients, and the states afterwards."""

        def smooth(parameters: Any) -> Any:
            (batch,) = structure.fill(arrays)
            return self.library.call(parameters, states, lambda model: self.training.called(model)(batch), None, "")

        (loss, after), gradients = jax.value_and_grad(smooth, has_aux=True)(parameters)
        return loss, gradients, after

    def updated(self, parameters: Any, state: Any, gradients: Any, clipped: Any) -> Any:
        """The parameters and the optimizer's state after an update, the clipped gradients and the learning rates."""
        tree = self.tree(parameters)
        given = self.tree({path: gradients[path] for path in parameters})
        stages = Stages(None if clipped is None else self.tree(clipped))
        updates, after = stages.run(self.training.optimizer.update, given, state, tree)
        rate = rates(self.training.optimizer.update, state, tree)
        new = jax.tree.map(lambda p, u: jnp.asarray(p + u, p.dtype), tree, updates)
        shown = None if stages.clipped is None else self.flat(stages.clipped)
        return {**parameters, **self.flat(new)}, after, shown, None if rate is None else self.flat(rate)

    def stepped(self, parameters: Any, states: Any, state: Any, arrays: Any, structure: Structure) -> Any:
        """All of a step."""
        loss, gradients, states = self.computed(parameters, states, arrays, structure)
        parameters, state, *_ = self.updated(parameters, state, gradients, None)
        return loss, parameters, states, state

    def arrays(self, batch: Any) -> tuple[list[Any], Structure]:
        """The arrays of a batch, in the precision of the run."""
        arrays, structure = take_apart((batch,), lambda path, x: np.asarray(x))
        return list(at_precision(arrays, self.precision or "float32")), structure

    def read(self) -> State:
        """A copy of what it holds."""
        found: dict[str, dict[str, np.ndarray]] = {
            PARAMETER: {path: to_array(x) for path, x in self.parameters.items()},
            STATE: {path: to_array(x) for path, x in self.states.items()},
        }
        for role, path, x in self.remembered():
            found.setdefault(role, {})[path] = to_array(x)
        return found

    def remembered(self) -> list[tuple[str, str, Any]]:
        """The leaves of the optimizer's state: role, path and array."""
        return [(*self.role(keys), x) for keys, x in jax.tree_util.tree_flatten_with_path(self.optimizer_state)[0]]

    def role(self, keys: tuple[Any, ...]) -> tuple[str, str]:
        """The role and the parameter of a leaf of the optimizer's state."""
        for start in range(1, len(keys) + 1):
            path = dotted(keys[start:])
            if path in self.names and hasattr(keys[start - 1], "name"):
                field = keys[start - 1].name
                return ROLES.get(field, field), self.names[path]
        field = next((key.name for key in reversed(keys) if hasattr(key, "name")), "")
        return ROLES.get(field, field), ""

    def write(self, state: State) -> None:
        """Set what it holds."""
        with self.wide():
            for held, role in ((self.parameters, PARAMETER), (self.states, STATE)):
                for path, x in state.get(role, {}).items():
                    if path in held:
                        held[path] = jnp.asarray(x, held[path].dtype)

            def replaced(keys: Any, x: Any) -> Any:
                role, path = self.role(keys)
                given = state.get(role, {}).get(path)
                return x if given is None or role == COUNT else jnp.asarray(given, x.dtype)

            self.optimizer_state = jax.tree_util.tree_map_with_path(replaced, self.optimizer_state)

    def check(self, batch: Any) -> None:
        """
        Check that the loss can be computed, is a scalar, and draws no random numbers.

        Raises
        ------
        InputError
            It is not so.
        """
        arrays, structure = self.arrays(batch)

        def called(parameters: Any, states: Any, arrays: Any) -> Any:
            (batch,) = structure.fill(arrays)
            return self.library.call(parameters, states, lambda model: self.training.called(model)(batch), None, "")

        with self.wide():
            try:
                loss, _ = jax.eval_shape(called, self.parameters, self.states, arrays)
            except Exception as error:  # of whatever kind the loss raises
                line = " ".join(str(error).split())[:400]
                raise InputError(
                    f"the loss in JAX raises {type(error).__name__} with the first batch: {line}; give batches that it "
                    "takes"
                ) from error
            if not hasattr(loss, "shape") or loss.shape:
                what = f"an array of shape {loss.shape}" if hasattr(loss, "shape") else type(loss).__name__
                raise InputError(f"the loss in JAX is {what}; return a scalar, as jnp.mean gives")
            jaxpr = jax.make_jaxpr(self.computed, static_argnums=3)(self.parameters, self.states, arrays, structure)
            try:
                jax.eval_shape(self.updated, self.parameters, self.optimizer_state, self.parameters, None)
            except Exception as error:  # of whatever kind the optimizer raises
                line = " ".join(str(error).split())[:400]
                raise InputError(
                    f"optimizer.update raises {type(error).__name__} with gradients of the parameters: {line}; give a "
                    "transformation that takes them"
                ) from error
        if draws(jaxpr.jaxpr):
            raise InputError(
                "the loss in JAX draws random numbers, which the frameworks draw differently; set dropout's rate to 0 "
                "here, and check dropout with check_model, which gives both models the same masks"
            )

    def forward(self, batch: Any) -> Forward:
        """The loss of a batch and its gradients."""
        arrays, structure = self.arrays(batch)
        with self.wide():
            loss, gradients, self.states = self._forward(self.parameters, self.states, arrays, structure)
            self.states = dict(self.states)
            return Forward(to_array(loss), numpy_of(gradients), numpy_of(self.states))

    def update(self, gradients: Arrays, clipped: Arrays | None = None, rules: Sequence[training.Rule] = ()) -> Update:
        """Update the parameters."""
        with self.wide():
            given = self.whole(gradients)
            used = None if clipped is None else self.whole(clipped)
            parameters, self.optimizer_state, shown, rate = self._update(
                self.parameters, self.optimizer_state, given, used
            )
            self.parameters = dict(parameters)
            return Update(
                None if shown is None else numpy_of(shown),
                None if rate is None else {path: float(x) for path, x in rate.items()},
                False,
            )

    def whole(self, gradients: Arrays) -> dict[str, Array]:
        """A gradient of each parameter; 0 where there is none."""
        return {
            path: jnp.asarray(gradients[path], x.dtype) if path in gradients else jnp.zeros_like(x)
            for path, x in self.parameters.items()
        }

    def step(self, batch: Any, rules: Sequence[training.Rule] = ()) -> np.ndarray:
        """One step; its loss."""
        arrays, structure = self.arrays(batch)
        with self.wide():
            loss, parameters, states, self.optimizer_state = self._step(
                self.parameters, self.states, self.optimizer_state, arrays, structure
            )
            self.parameters, self.states = dict(parameters), dict(states)
            return to_array(loss)

    def remember(self) -> Any:
        """The optimizer's state."""
        return self.optimizer_state

    def restore(self, remembered: Any, state: State) -> None:
        """The training as it was."""
        self.optimizer_state = remembered
        self.write(state)


def cast(x: Array, precision: str) -> Array:
    """A copy of a floating array in a precision."""
    return jnp.array(x, precision or x.dtype) if is_inexact(x) else x


def numpy_of(arrays: Any) -> dict[str, np.ndarray]:
    """The same in NumPy."""
    return {path: to_array(x) for path, x in arrays.items()}


def draws(jaxpr: Any) -> bool:
    """Whether an operation draws random numbers."""
    return any(equation.primitive.name in RANDOM or any(map(draws, inner_jaxprs(equation))) for equation in jaxpr.eqns)
