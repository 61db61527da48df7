"""
The libraries of layers that JAX has: flax.nnx, flax.linen, equinox, and functions of a tree of parameters.

A library is imported where an object of it is given, and never otherwise.
"""

import dataclasses
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from itertools import takewhile
from typing import Any

import jax
from jax import Array

from jaxp3.function import is_inexact
from jaxp3.tap import watched
from p3.errors import InputError
from p3.parity.models.tape import Tape
from p3.parity.tree import made_like

SEED = 0  # of what a model draws, as for dropout
BATCH = "batch"  # the name of the mapped axis, which batch normalization averages over
MAPPED = "mapped over the first axis"

Call = Callable[[Any], Any]  # of something that is called as the model is, with the inputs


class Library(ABC):
    """
    A model of a library.

    Attributes
    ----------
    library, name : the library, and the model's class
    parameters, states : the floating arrays with a gradient, and those without one, by path
    kinds : the classes of its layers by path, as far as they are known before it runs
    layers : of a path, the layer that it belongs to, where that is not all but the last name
    ways : the ways in which it may have to be called: as it is, or mapped over a batch
    """

    library: str
    name: str
    parameters: dict[str, Array]
    states: dict[str, Array]
    kinds: Mapping[str, str]
    layers: Mapping[str, str]
    ways: tuple[str, ...] = ("",)

    @abstractmethod
    def call(
        self, parameters: Mapping[str, Array], states: Mapping[str, Array], call: Call, tape: Tape | None, way: str
    ) -> tuple[Any, dict[str, Array]]:
        """What the model gives with other arrays, and the states afterwards."""

    @abstractmethod
    def with_values(self, values: Mapping[str, Array]) -> Any:
        """The model with other arrays at some paths, as it was given; a module of nnx is changed."""

    def tree_of(self, parameters: Mapping[str, Array]) -> Any:
        """The parameters as optimizers take them."""
        return dict(parameters)


def library_of(model: Any) -> Library:
    """
    The model, as one of its library.

    Raises
    ------
    InputError
        It is of none.
    """
    first = model[0] if isinstance(model, tuple) and model else model
    is_alone = first is model
    packages = {cls.__module__.split(".")[0] for cls in type(first).__mro__}
    bases = {f"{cls.__module__}.{cls.__name__}" for cls in type(first).__mro__}
    if is_nnx(model):
        return NnxModel(model)
    if "flax.linen.module.Module" in bases and not is_alone and len(model) in (2, 3):
        return LinenModel(*model)
    if "equinox" in packages and (is_alone or len(model) == 2) and dataclasses.is_dataclass(first) and callable(first):
        return EquinoxModel(model) if is_alone else EquinoxModel(*model)
    if not is_alone and len(model) == 2 and callable(first):
        return FunctionModel(*model)
    raise InputError(
        f"jax= is {type(model).__name__}; give a flax.nnx or equinox module, (equinox module, state), (linen module, "
        "variables), (linen module, variables, keywords), or (function, parameters)"
    )


def is_nnx(model: Any) -> bool:
    """Whether a model is a module of flax.nnx."""
    return any(f"{cls.__module__}.{cls.__name__}" == "flax.nnx.module.Module" for cls in type(model).__mro__)


def kind_of(layer: Any) -> str:
    """A layer's class, with its library; of a class of the user's that is derived from one, that of the library."""
    bases = takewhile(lambda cls: cls.__name__ != "Module", type(layer).__mro__)
    for cls in bases:
        for package, short in (("flax.nnx", "nnx"), ("flax.linen", "linen"), ("equinox.nn", "eqx.nn")):
            if cls.__module__.startswith(package):
                # Which says how its kernel lies, where the numbers of features are equal.
                how = "(transpose_kernel=True)" if getattr(layer, "transpose_kernel", False) else ""
                return f"{short}.{cls.__name__}{how}"
    return type(layer).__name__


def watching(layer: Any, path: str, tape: Tape) -> type:
    """A class like a layer's, with a tape that sees what the layer receives and returns."""
    cls, kind = type(layer), kind_of(layer)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807, which is a method
        tape.meet(path, kind)
        args, kwargs = watched(path, "input", (args, kwargs))
        return watched(path, "output", cls.__call__(self, *args, **kwargs))

    return type(cls.__name__, (cls,), {"__call__": __call__, "__module__": cls.__module__})


def dotted(path: tuple[Any, ...]) -> str:
    """A path of JAX's or flax's, as one name."""
    keys = []
    for key in path:
        for attribute in ("name", "key", "idx"):
            if hasattr(key, attribute):
                key = getattr(key, attribute)
                break
        keys.append(str(key))
    return ".".join(keys)


def arrays_in(tree: Any) -> dict[str, Array]:
    """The floating arrays of a tree, by path."""
    return {
        dotted(path): x
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
        if isinstance(x, Array) and not is_key(x) and is_inexact(x)
    }


def is_key(x: Array) -> bool:
    """Whether an array is of random keys."""
    return jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key)


def replaced(tree: Any, arrays: Mapping[str, Any]) -> Any:
    """The tree, with other arrays at some paths."""
    return jax.tree_util.tree_map_with_path(lambda path, x: arrays.get(dotted(path), x), tree)


class NnxModel(Library):
    """A `flax.nnx.Module`."""

    library = "nnx"

    def __init__(self, model: Any) -> None:
        """The model is taken apart, and stays as it is."""
        from flax import nnx

        self.nnx, self.model = nnx, model
        self.name = type(model).__name__
        self.graph, state = nnx.split(model)
        self.variables = dict(nnx.to_flat_state(state))
        self.kinds = {dotted(path): kind_of(layer) for path, layer in nnx.iter_modules(model) if path}
        self.layers = {}
        self.parameters, self.states = {}, {}
        for path, variable in self.variables.items():
            x = variable.get_value()
            if isinstance(x, Array) and not is_key(x) and is_inexact(x):
                (self.parameters if isinstance(variable, nnx.Param) else self.states)[dotted(path)] = x

    def call(
        self, parameters: Mapping[str, Array], states: Mapping[str, Array], call: Call, tape: Tape | None, way: str
    ) -> tuple[Any, dict[str, Array]]:
        """As a module made anew of the arrays."""
        arrays = {**parameters, **states}
        flat = {
            path: variable.replace(arrays.get(dotted(path), variable.get_value()))
            for path, variable in self.variables.items()
        }
        model = self.nnx.merge(self.graph, self.nnx.from_flat_state(flat))
        if tape is not None:
            for path, layer in list(self.nnx.iter_modules(model)):
                if path and callable(layer):
                    object.__setattr__(layer, "__class__", watching(layer, dotted(path), tape))
        result = call(model)
        after = dict(self.nnx.to_flat_state(self.nnx.state(model)))
        return result, {
            dotted(path): variable.get_value() for path, variable in after.items() if dotted(path) in states
        }

    def tree_of(self, parameters: Mapping[str, Array]) -> Any:
        """The state of the parameters, as `nnx.Optimizer` takes it."""
        flat = {
            path: variable.replace(parameters[dotted(path)])
            for path, variable in self.variables.items()
            if dotted(path) in parameters
        }
        return self.nnx.from_flat_state(flat)

    def with_values(self, values: Mapping[str, Array]) -> Any:
        """The module."""
        for path, variable in self.nnx.to_flat_state(self.nnx.state(self.model)):
            if dotted(path) in values:
                variable.set_value(values[dotted(path)])
        return self.model


class EquinoxModel(Library):
    """An `equinox.Module`, and its state if it has one; its layers take one example each, so that it may be mapped."""

    library = "equinox"
    ways = ("", MAPPED)

    def __init__(self, model: Any, state: Any = None) -> None:
        """The arrays of the state are named by the layers that they are of."""
        import equinox

        self.equinox = equinox
        self.model, self.state = model, state
        self.name = type(model).__name__
        self.parameters = arrays_in(model)
        self.kinds = {path: kind_of(layer) for path, layer in modules_in(model) if path}
        self.layers, self.states = {}, {}
        self.indices = {path: index for path, index in indices_in(model) if state is not None}
        for path, index in self.indices.items():
            for name, x in arrays_in(state.get(index)).items():
                where = f"{path}.{name}" if name else path
                self.states[where], self.layers[where] = x, path.rpartition(".")[0]
        self.places = {id(x): where for where, x in self.states.items()}

    def call(
        self, parameters: Mapping[str, Array], states: Mapping[str, Array], call: Call, tape: Tape | None, way: str
    ) -> tuple[Any, dict[str, Array]]:
        """As a module with other arrays, of a batch or of each example."""
        model = replaced(self.model, parameters)
        if tape is not None:
            model = watched_within(model, "", tape)
        state = self.state_of(states)
        takes_key = "key" in inspect.signature(type(self.model).__call__).parameters
        key = jax.random.key(SEED)

        def one(args: Any, kwargs: Any, key: Any) -> Any:
            keyed = {"key": key} if takes_key and "key" not in kwargs else {}
            return model(*args, *(() if state is None else (state,)), **kwargs, **keyed)

        def called(*args: Any, **kwargs: Any) -> Any:
            if way != MAPPED:
                return one(args, kwargs, key)
            first = jax.tree.leaves((args, kwargs))[0]
            axes = jax.tree.map(lambda x: 0 if isinstance(x, Array) else None, (args, kwargs))
            mapped = jax.vmap(one, in_axes=(*axes, 0), out_axes=0 if state is None else (0, None), axis_name=BATCH)
            return mapped(args, kwargs, jax.random.split(key, first.shape[0]))

        result = call(called)
        if state is None:
            return result, {}
        result, after = result
        found = {}
        for path, index in self.indices.items():
            for name, x in arrays_in(after.get(index)).items():
                found[f"{path}.{name}" if name else path] = x
        return result, found

    def state_of(self, states: Mapping[str, Array]) -> Any:
        """The state with other arrays, which may be of another dtype."""
        return jax.tree.map(lambda x: states.get(self.places.get(id(x), ""), counter(x)), self.state)

    def with_values(self, values: Mapping[str, Array]) -> Any:
        """The module; or it and its state."""
        model = replaced(self.model, values)
        return model if self.state is None else (model, self.state_of(values))


def counter(x: Array) -> Array:
    """A number of steps, of the dtype that a number has with 64-bit types on or off."""
    return jax.numpy.asarray(x.item()) if x.ndim == 0 and x.weak_type else x


class LinenModel(Library):
    """A `flax.linen.Module`, its variables, and keywords that it is always called with."""

    library = "linen"

    def __init__(self, model: Any, variables: Any, keywords: Mapping[str, Any] | None = None) -> None:
        """The collection "params" has gradients, and the others are states."""
        if not isinstance(variables, Mapping) or "params" not in variables:
            raise InputError('(linen module, variables): variables have no "params"; give what module.init returns')
        self.model, self.keywords = model, dict(keywords or {})
        self.name = type(model).__name__
        self.variables = {name: tree for name, tree in variables.items()}
        self.parameters = arrays_in(self.variables["params"])
        self.states = {}
        for name, tree in self.variables.items():
            if name != "params":
                self.states |= arrays_in(tree)
        self.kinds, self.layers = {}, {}

    def call(
        self, parameters: Mapping[str, Array], states: Mapping[str, Array], call: Call, tape: Tape | None, way: str
    ) -> tuple[Any, dict[str, Array]]:
        """By `module.apply`."""
        given = {
            name: replaced(tree, parameters if name == "params" else states) for name, tree in self.variables.items()
        }
        changing = [name for name in given if name != "params"]
        keywords = {"rngs": jax.random.key(SEED), "mutable": changing or False, **self.keywords}
        apply = partial(self.model.apply, given, **keywords)
        with watched_linen(tape):
            result = call(apply)
        if not keywords["mutable"]:
            return result, {}
        result, after = result
        found: dict[str, Array] = dict(states)
        for tree in after.values():
            found |= arrays_in(tree)
        return result, {path: found[path] for path in states}

    def with_values(self, values: Mapping[str, Array]) -> Any:
        """The module, its variables, and its keywords where there are some."""
        variables = {name: replaced(tree, values) for name, tree in self.variables.items()}
        return (self.model, variables, self.keywords) if self.keywords else (self.model, variables)


class FunctionModel(Library):
    """
    A function of parameters and inputs, and its parameters: any tree, with equinox's modules in it or not.

    With a state it is called as function(parameters, state, *inputs), and returns its result and the new state.
    """

    library = "function"

    def __init__(self, function: Callable[..., Any], tree: Any, state: Any = None) -> None:
        """All floating arrays of the tree have gradients, and those of the state have none."""
        self.function, self.tree, self.state = function, tree, state
        named = function.func if isinstance(function, partial) else function
        self.name = getattr(named, "__name__", type(named).__name__)
        self.parameters, self.states = arrays_in(tree), arrays_of_state(tree, state)
        if not self.parameters:
            raise InputError("(function, parameters): the parameters have no floating array; give the tree of them")
        self.kinds = {path: kind_of(layer) for path, layer in modules_in(tree) if path}
        self.layers = {}
        self.places = {id(x): where for where, x in self.states.items()}

    def call(
        self, parameters: Mapping[str, Array], states: Mapping[str, Array], call: Call, tape: Tape | None, way: str
    ) -> tuple[Any, dict[str, Array]]:
        """As the function of a tree of the arrays."""
        tree = replaced(self.tree, parameters)
        if tape is not None:
            tree = watched_within(tree, "", tape)
        with watched_linen(tape):
            if self.state is None:
                return call(partial(self.function, tree)), {}
            state = jax.tree.map(lambda x: states.get(self.places.get(id(x), ""), counter(x)), self.state)
            result, after = call(partial(self.function, tree, state))
        return result, arrays_of_state(self.tree, after)

    def tree_of(self, parameters: Mapping[str, Array]) -> Any:
        """The tree; where modules of equinox are in it, without what has no gradient, as `equinox.filter` gives it."""
        tree = replaced(self.tree, parameters)
        if not modules_in(tree):
            return tree
        import equinox

        return equinox.filter(tree, equinox.is_inexact_array)

    def with_values(self, values: Mapping[str, Array]) -> Any:
        """The function and its parameters."""
        return self.function, replaced(self.tree, values)


def arrays_of_state(tree: Any, state: Any) -> dict[str, Array]:
    """The floating arrays of a state, by path; those of a state of equinox's by the layers of the tree."""
    if type(state).__name__ != "State":
        return arrays_in(state)
    found = {}
    for path, index in indices_in(tree):
        for name, x in arrays_in(state.get(index)).items():
            found[f"{path}.{name}" if name else path] = x
    return found


def watched_linen(tape: Tape | None) -> Any:
    """While it lasts, a tape sees the layers of linen modules that are called, in whatever function."""
    linen = sys.modules.get("flax.linen")
    if tape is None or linen is None:
        return nullcontext()

    def intercept(method: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = dotted(context.module.path)
        if context.method_name != "__call__" or not path:
            return method(*args, **kwargs)
        tape.meet(path, kind_of(context.module))
        args, kwargs = watched(path, "input", (args, kwargs))
        return watched(path, "output", method(*args, **kwargs))

    return linen.intercept_methods(intercept)


def is_equinox(x: Any) -> bool:
    """Whether x is a module of equinox's."""
    equinox = sys.modules.get("equinox")
    return equinox is not None and isinstance(x, equinox.Module)


def fields_of(module: Any) -> dict[str, Any]:
    """The fields of a module of equinox's, by name."""
    names = [field.name for field in dataclasses.fields(module)]
    return {name: module.__dict__[name] for name in names if name in module.__dict__}


def children_of(node: Any) -> dict[Any, Any]:
    """The parts of a module of equinox's, a dict, a list or a tuple, by name or number."""
    if is_equinox(node):
        return fields_of(node)
    if isinstance(node, Mapping):
        return dict(node)
    return dict(enumerate(node)) if isinstance(node, list | tuple) else {}


def modules_in(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """The callable modules of equinox's in a tree, by path."""
    own = [(path, tree)] if is_equinox(tree) and callable(tree) else []
    return own + [
        found
        for name, child in children_of(tree).items()
        for found in modules_in(child, f"{path}.{name}" if path else str(name))
    ]


def indices_in(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    """The indices of state in a tree, by path."""
    if type(tree).__name__ == "StateIndex":
        return [(path, tree)]
    return [
        found
        for name, child in children_of(tree).items()
        for found in indices_in(child, f"{path}.{name}" if path else str(name))
    ]


def watched_within(node: Any, path: str, tape: Tape) -> Any:
    """A tree, with a tape that sees what each of equinox's modules in it receives and returns."""
    children = {
        name: watched_within(child, f"{path}.{name}" if path else str(name), tape)
        for name, child in children_of(node).items()
    }
    if is_equinox(node):
        new: Any = object.__new__(watching(node, path, tape) if path and callable(node) else type(node))
        for name, child in children.items():
            object.__setattr__(new, name, child)
        return new
    if isinstance(node, Mapping):
        return made_like(node, children)
    if type(node) in (list, tuple):
        return type(node)(children.values())
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return type(node)(*children.values())
    return node
