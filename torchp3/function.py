"""PyTorch's functions as operators that the parity checker can take: NumPy arrays in and out."""

import functools
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import RLock, active_count
from types import FunctionType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree

from p3.parity.function import Arrays, Function, NoMeaningError
from p3.parity.inputs import program_of
from p3.parity.tree import Structure, is_of, leaves
from torchp3.conventions import ByConvention, Convention, conventions

Tensors = tuple[Tensor, ...]
Transform = Callable[..., Tensors]  # of one group of tensors or several
Combinator = Callable[[Transform, tuple[int, ...] | None, Callable[[], object]], Transform]
RULES = ("backward", "vjp", "jvp")  # the methods of an autograd.Function that are derivative rules
REFUSALS = (  # what PyTorch says of what there is not
    "must override the setup_context",
    "does not have vmap support",
    "Low precision dtypes not supported",
    "Unsupported dtype Half",
    "Unsupported dtype BFloat16",
)
CHANGED = "modified by an inplace operation"  # of what PyTorch says where a backward pass needs what is no more

FORWARD_MODE = RLock()  # PyTorch has one level of forward mode for all threads of a process
PATIENCE = 600  # seconds to wait for another thread's forward mode
FACTOR = "p3_factor"  # what rules are scaled by in a thread, in its local storage
# By class and name of a rule that is scalable: the rule as the class has it, and for how many threads it is scalable.
SCALED: dict[tuple[type, str], tuple[Any, int]] = {}
LOCK = RLock()  # of SCALED; never held while a user's function runs


# What functions should leave as it is: what gets it, and what sets it.
SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "torch.set_default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "torch.set_default_device": (torch.get_default_device, torch.set_default_device),
    "torch.set_grad_enabled": (torch.is_grad_enabled, torch.set_grad_enabled),
    "torch.set_num_threads": (torch.get_num_threads, torch.set_num_threads),
    "torch.use_deterministic_algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "PyTorch's random state": (
        lambda: torch.get_rng_state().numpy().tobytes(),
        lambda state: torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8)),
    ),
}


def as_operator(
    f: Any, *, arguments: tuple[int | str, ...] | None = None, states: tuple[int | str, ...] = (), **static: Any
) -> Function:
    """
    Make an operator of a function of tensors, for `p3.parity.check`.

    Parameters
    ----------
    f : a function of tensors to a tensor or a tuple of them, or a `torch.autograd.Function`
    arguments : the positions or names of the arguments to differentiate; all of floating or complex dtype where None
    states : the positions or names of outputs that are states, such as running statistics, and have no derivative
    static : keyword arguments that f is always called with

    Examples
    --------
    >>> as_operator(torch.sin).vjp((np.zeros(1),), (np.ones(1),))
    (array([1.]),)
    """
    name = getattr(f, "__name__", type(f).__name__)
    function = f.apply if inspect.isclass(f) and issubclass(f, torch.autograd.Function) else f
    return ArrayFunction(function, name, arguments, tuple(sorted(static.items())), states=states)


def to_array(x: Tensor) -> np.ndarray:
    """The same numbers in NumPy, where bfloat16 comes from ml_dtypes, and complex numbers of halves are complex64."""
    x = x.detach().cpu().resolve_conj().resolve_neg()
    x = x.to(torch.complex64) if x.dtype == torch.complex32 else x
    # By force, since the tangent of what has none can be a tensor of zeros without memory.
    return x.view(torch.int16).numpy(force=True).view("bfloat16") if x.dtype == torch.bfloat16 else x.numpy(force=True)


def from_array(x: np.ndarray) -> Tensor:
    """The same memory, with the same strides, as a tensor."""
    x = np.asarray(x)  # arithmetic on arrays without dimensions gives NumPy scalars
    return torch.from_numpy(x.view(np.int16)).view(torch.bfloat16) if x.dtype == "bfloat16" else torch.from_numpy(x)


def to_arrays(arrays: Tensors) -> Arrays:
    """The same numbers in NumPy."""
    return tuple(to_array(x) for x in arrays)


def from_arrays(arrays: Arrays) -> Tensors:
    """The same numbers in PyTorch."""
    return tuple(from_array(x) for x in arrays)


def is_inexact(x: Tensor) -> bool:
    """Whether x is floating or complex."""
    return x.is_floating_point() or x.is_complex()


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
    one_by_one: bool = False  # the gradient of each output by each argument alone, all others left out of the graph
    functional: bool = False  # by torch.func instead of autograd
    is_compiled: bool = False
    batch: tuple[int, ...] = ()  # the arguments that have one more axis in front
    factor: float = 1.0
    between: Callable[[], object] = nothing
    structure: Structure | None = None  # of the inputs, where they are more than a tuple of arrays
    states: tuple[int | str, ...] = ()  # the outputs that have no derivative

    @property
    def framework(self) -> str:  # type: ignore[override]
        """The framework's name and version."""
        return f"PyTorch {torch.__version__}"

    @property
    def program(self) -> str:  # type: ignore[override]
        """Python that makes this as `operator`; empty where the function has no name to be imported by."""
        # An autograd.Function is given as a class, and run by its method.
        given = self.f.__self__ if inspect.ismethod(self.f) and self.f.__name__ == "apply" else self.f
        chosen = self.differentiable
        if chosen is not None and self.structure is not None:
            chosen = tuple(dict.fromkeys(self.structure.tops[i] for i in chosen))
        options = {"arguments": chosen, "states": self.states or None, **dict(self.static)}
        return program_of("torchp3", given, options)

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
        with torch.no_grad():
            return tuple(path for path, _ in leaves_of(self.result(from_arrays(inputs)), self.name))

    def pullback(self) -> "ArrayFunction":
        """By `torch.autograd.grad` or `torch.func.vjp`."""
        if self.one_by_one:
            return self.combined(vjp_one_by_one)
        return self.combined(functional_vjp_of if self.functional else vjp_of)

    def pushforward(self) -> "ArrayFunction":
        """By dual numbers or `torch.func.jvp`, which alone can be nested."""
        if self.one_by_one:
            return self.combined(jvp_one_by_one)
        if self.combinators == (jvp_of,):
            return replace(self, functional=True, combinators=(functional_jvp_of, functional_jvp_of))
        return self.combined(functional_jvp_of if self.functional else jvp_of)

    def combined(self, combinator: Combinator) -> "ArrayFunction":
        """The function that a combinator gives of this one."""
        if self.one_by_one and self.combinators:
            raise NoMeaningError("one output and argument at a time is a way of differentiating once")
        return replace(self, combinators=(*self.combinators, combinator))

    def interrupted(self, between: Callable[[], object]) -> Function:
        """The same, where the pullback calls `between` between its passes."""
        return replace(self, between=between)

    def batched(self, arguments: tuple[int, ...]) -> Function:
        """By `torch.vmap`, and so by `torch.func`."""
        return replace(self, batch=arguments, functional=True)

    def transformed(self) -> dict[str, Function]:
        """By `torch.func`; by autograd, one argument and output alone; and in data-parallel training."""
        found: dict[str, Function] = {
            "torch.func": replace(self, functional=True),
            "one output and argument at a time": replace(self, one_by_one=True),
        }
        if torch.distributed.is_available():  # which PyTorch can be built without
            from torchp3.data_parallel import DataParallelFunction

            found["DistributedDataParallel"] = DataParallelFunction(
                self.f,
                self.name,
                self.differentiable,
                self.static,
                factor=self.factor,
                structure=self.structure,
                states=self.states,
            )
        return found

    def compiled(self) -> dict[str, Function]:
        """By `torch.compile` of the function, and of its derivatives by `torch.func`."""
        return {
            "torch.compile": replace(self, is_compiled=True),
            "torch.compile of torch.func": replace(self, functional=True, is_compiled=True),
        }

    def scaled(self, factor: float) -> Function:
        """The same, what every `autograd.Function`'s rule returns multiplied."""
        return replace(self, factor=factor)

    def rules(self, inputs: Arrays) -> tuple[str, ...]:
        """The names of the `autograd.Function`s that f applies."""
        return tuple(sorted(function.__name__ for function in self.functions(inputs)))

    def functions(self, inputs: Arrays) -> set[type]:
        """The `autograd.Function`s in the graph that autograd makes of f."""
        tensors = list(from_arrays(inputs))
        for i in self.arguments(inputs):
            tensors[i] = tensors[i].detach().requires_grad_()
        nodes = graph_of(self.outputs(tuple(tensors)))
        return {node._forward_cls for node in nodes if hasattr(node, "_forward_cls")}

    def variants(self, inputs: Arrays) -> Iterator[tuple[str, Arrays]]:
        """What f gives by conventions that porters confuse; none where it raises by one, or does not use it."""
        for convention in conventions():
            mode = ByConvention(convention)
            try:
                with torch.no_grad(), mode:
                    values = to_arrays(self.outputs(from_arrays(inputs)))
            except Exception:
                continue
            if mode.has_part:
                yield convention.text, values

    def ignores_labels(self, inputs: Arrays) -> bool:
        """Whether f calls cross_entropy or nll_loss."""
        called: set[str] = set()

        def watch(call: Any, name: str, *_: Any) -> Any:
            called.add(name)
            return NotImplemented

        with torch.no_grad(), ByConvention(Convention("as it is", watch)):
            self.outputs(from_arrays(inputs))
        return not called.isdisjoint(("cross_entropy", "nll_loss"))

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Gradients are recorded, and nothing is cast."""
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            yield

    def state(self) -> dict[str, Any]:
        """PyTorch's settings and its random state."""
        return {name: get() for name, (get, _) in SETTINGS.items()}

    def restore(self, name: str, value: Any) -> None:
        """Set one of them."""
        SETTINGS[name][1](value)

    def reseed(self, seed: int) -> None:
        """Set the random state of the CPU."""
        torch.default_generator.manual_seed(seed)

    @contextmanager
    def scaled_rules(self, inputs: Arrays) -> Iterator[None]:
        """While it lasts, the result of every rule is multiplied in this thread, and in no other."""
        if self.factor == factor_here():
            yield
            return
        inputs = tuple(x[0] if i in self.batch else x for i, x in enumerate(inputs))
        with ExitStack() as patches:
            patches.callback(forget_compiled)
            scaling = patches.enter_context(Scaling(1.0))
            # What f compiles here has rules that are not scaled, and is then scaled as a whole.
            for function in self.functions(inputs):
                for name in RULES:
                    if getattr(function, name) is not getattr(torch.autograd.Function, name):
                        patches.enter_context(scalable(function, name))
            scaling.scale(self.factor)
            yield

    def outputs(self, inputs: Tensors) -> Tensors:
        """f(inputs), as a tuple."""
        result = self.result(inputs)
        if self.states:
            return tuple(
                y.detach() if any(is_of(path, state) for state in self.states) else y
                for path, y in leaves_of(result, self.name)
            )
        results = result if type(result) in (tuple, list) else (result,)
        if all(isinstance(y, Tensor) for y in results):  # in few steps, since compilers look into them
            return tuple(results)
        return tuple(y for _, y in leaves_of(result, self.name))

    def result(self, inputs: Tensors) -> Any:
        """What f returns."""
        if self.structure is None:
            return self.f(*inputs, **dict(self.static))
        return self.structure.call(self.f, inputs, dict(self.static))

    def call(self) -> Transform:
        """The function of groups of tensors that this is, compiled and batched."""

        def call(inputs: Tensors) -> Tensors:  # a function, of whose code Dynamo compiles a copy
            return self.outputs(inputs)

        # Users compile the function, and have autograd go through it; of what torch.func makes, they compile the whole.
        by_autograd = set(self.combinators) == {vjp_of}
        if self.is_compiled and by_autograd:
            call = compile_apart(call)
        for combinator in self.combinators:
            call = combinator(call, self.differentiable, self.between)
        if self.batch:
            call = self.mapped(call)
        return compile_apart(call) if self.is_compiled and not by_autograd else call

    def mapped(self, call: Transform) -> Transform:
        """By `torch.vmap`."""

        def vmap(inputs: Tensors, *others: Tensors) -> Tensors:
            axes = tuple(0 if i in self.batch else None for i in range(len(inputs)))
            found: Tensors = torch.vmap(call, (axes, *(0 for _ in others)))(inputs, *others)
            return found

        return vmap

    def value(self, *groups: Arrays) -> Arrays:
        """The function's outputs."""
        if self.is_compiled and self.functional and self.combinators:
            # This raises where torch.func has no rule; compiled, it would differentiate the forward method instead.
            replace(self, is_compiled=False).value(*groups)
        is_forward = {jvp_of, functional_jvp_of, jvp_one_by_one} & set(self.combinators)
        with forward_mode() if is_forward else nullcontext(), refusals(), self.scaled_rules(groups[0]):
            try:
                return to_arrays(self.call()(*map(from_arrays, groups)))
            except RuntimeError as error:
                if self.combinators != (jvp_of, vjp_of) or CHANGED not in str(error):
                    raise
            # PyTorch's jvp of softmax writes into what its own backward pass needs; by torch.func it has a derivative.
            functional = replace(self, functional=True, combinators=(functional_jvp_of, functional_vjp_of))
            return to_arrays(functional.call()(*map(from_arrays, groups)))


def split(
    groups: Sequence[Tensors], differentiable: tuple[int, ...] | None
) -> tuple[Tensors, Callable[[Tensors], list[Tensors]]]:
    """The tensors to differentiate by, of the first group those at some positions; and what puts others there."""
    chosen = [differentiable, *(None for _ in groups[1:])]
    places = [
        (k, i)
        for k, (group, positions) in enumerate(zip(groups, chosen, strict=True))
        for i, x in enumerate(group)
        if (is_inexact(x) if positions is None else i in positions)
    ]

    def merge(moving: Tensors) -> list[Tensors]:
        merged = [list(group) for group in groups]
        for (k, i), x in zip(places, moving, strict=True):
            merged[k][i] = x
        return [tuple(group) for group in merged]

    return tuple(groups[k][i] for k, i in places), merge


def vjp_of(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The vjp of a function of groups of tensors, by `torch.autograd.grad`, as in training."""

    def vjp(*groups: Tensors) -> Tensors:
        *primals, cotangents = groups
        moving, merge = split(primals, differentiable)
        with torch.enable_grad():
            is_inner = any(x.requires_grad for x in (*moving, *cotangents))  # what is outside differentiates this
            moving = tuple(x if x.requires_grad else x.detach().requires_grad_() for x in moving)
            results = inexact(f(*merge(moving)))
            if len(primals) > 1:
                refuse_once_differentiable(results)
            between()
            return conjugate(pull_back(results, moving, conjugate(cotangents), create_graph=is_inner))

    return vjp


def jvp_of(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The jvp of a function of groups of tensors, by dual numbers."""

    def jvp(*groups: Tensors) -> Tensors:
        *primals, tangents = groups
        moving, merge = split(primals, differentiable)
        is_of_derivative = len(primals) > 1  # and needs a graph to go back through
        with forward_ad.dual_level(), torch.enable_grad() if is_of_derivative else nullcontext():
            if is_of_derivative:
                moving = tuple(x.detach().requires_grad_() for x in moving)
            duals = tuple(map(forward_ad.make_dual, moving, tangents))
            return tuple(map(tangent_of, inexact(f(*merge(duals)))))

    return jvp


def functional_vjp_of(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The vjp of a function of groups of tensors, by `torch.func.vjp`."""

    def vjp(*groups: Tensors) -> Tensors:
        *primals, cotangents = groups
        moving, merge = split(primals, differentiable)
        transposed = torch.func.vjp(lambda *moving: inexact(f(*merge(moving))), *moving)[1]
        between()
        return conjugate(transposed(conjugate(cotangents)))

    return vjp


def functional_jvp_of(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The jvp of a function of groups of tensors, by `torch.func.jvp`."""

    def jvp(*groups: Tensors) -> Tensors:
        *primals, tangents = groups
        moving, merge = split(primals, differentiable)
        pushed: Tensors = torch.func.jvp(lambda *moving: inexact(f(*merge(moving))), moving, tangents)[1]
        return pushed

    return jvp


def vjp_one_by_one(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The vjp, as the sum over the outputs of the vjp of each by each argument alone."""

    def vjp(inputs: Tensors, cotangents: Tensors) -> Tensors:
        moving, merge = split([inputs], differentiable)

        def gradient(i: int, k: int) -> Tensor:
            def one(x: Tensor) -> Tensors:
                return (inexact(f(*merge((*moving[:i], x, *moving[i + 1 :]))))[k],)

            return vjp_of(one_group(one), None, between)((moving[i],), (cotangents[k],))[0]

        return tuple(total([gradient(i, k) for k in range(len(cotangents))]) for i in range(len(moving)))

    return vjp


def jvp_one_by_one(f: Transform, differentiable: tuple[int, ...] | None, between: Callable[[], object]) -> Transform:
    """The jvp, as the sum over the arguments of the jvp by each alone."""

    def jvp(inputs: Tensors, tangents: Tensors) -> Tensors:
        moving, merge = split([inputs], differentiable)

        def tangent(i: int) -> Tensors:
            def one(x: Tensor) -> Tensors:
                return f(*merge((*moving[:i], x, *moving[i + 1 :])))

            return jvp_of(one_group(one), None, between)((moving[i],), (tangents[i],))

        return tuple(map(total, zip(*map(tangent, range(len(moving))), strict=True)))

    return jvp


def one_group(f: Callable[..., Tensors]) -> Transform:
    """A function of several tensors as one of a group of them."""
    return lambda inputs: f(*inputs)


def total(parts: Sequence[Tensor]) -> Tensor:
    """The sum."""
    return functools.reduce(operator.add, parts)


def inexact(arrays: Tensors) -> Tensors:
    """Those that are floating or complex."""
    return tuple(y for y in arrays if is_inexact(y))


@contextmanager
def refusals() -> Iterator[None]:
    """Raise NotImplementedError for what PyTorch does not support, whichever exception PyTorch raises."""
    try:
        yield
    except Exception as error:
        if any(words in str(error) for words in REFUSALS):
            raise NotImplementedError(str(error)) from error
        raise


def leaves_of(result: Any, name: str) -> list[tuple[str, Tensor]]:
    """The path and the value of each array in what a function returned, however nested; None stands for none."""
    found = []
    if result is None:
        raise TypeError(f"{name} returned NoneType; return a tensor or a tuple of tensors")
    for path, x in leaves(result, "output"):
        for keys, y in _pytree.tree_flatten_with_path(x)[0]:
            if y is None:
                continue
            if not isinstance(y, Tensor):
                raise TypeError(f"{name} returned {type(y).__name__}; return a tensor or a tuple of tensors")
            found.append((path + _pytree.keystr(keys), y))
    return found


def graph_of(results: Tensors) -> set[Any]:
    """The nodes of the graph that autograd has made of results."""
    waiting = [y.grad_fn for y in results]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [before for before, _ in node.next_functions]
    return seen


def refuse_once_differentiable(results: Tensors) -> None:
    """Raise NotImplementedError where a rule says that it has no derivative, which autograd may not see."""
    if any(type(node).__name__ == "Error" for node in graph_of(results)):
        raise NotImplementedError("a backward method is marked with @once_differentiable")


def pull_back(results: Tensors, arguments: Tensors, cotangents: Tensors, create_graph: bool = False) -> Tensors:
    """`torch.autograd.grad`, where a result that depends on no argument, or in no differentiable way, gives 0."""
    pairs = [(y, v) for y, v in zip(results, cotangents, strict=True) if y.requires_grad]
    if not pairs:
        return tuple(map(torch.zeros_like, arguments))
    results, cotangents = zip(*pairs, strict=True)
    return torch.autograd.grad(
        results, arguments, cotangents, create_graph=create_graph, materialize_grads=True, allow_unused=True
    )


def conjugate(tensors: Tensors) -> Tensors:
    """From PyTorch's convention for complex gradients to the transpose's, or back."""
    # In memory, since the imaginary part of a lazy conjugate is a view that vmap does not know.
    return tuple(torch.conj_physical(x) if x.is_complex() else x for x in tensors)


def tangent_of(dual: Tensor) -> Tensor:
    """The tangent, where none is 0."""
    tangent = forward_ad.unpack_dual(dual).tangent
    return torch.zeros_like(dual) if tangent is None else tangent


def compile_apart(f: Callable[..., Any]) -> Callable[..., Any]:
    """
    `torch.compile` of a copy of a function.

    Dynamo keeps what it compiles with a function's code, and runs the function eagerly once that is too much. All calls
    of `run` have the same few functions.
    """
    copy = FunctionType(f.__code__.replace(), f.__globals__, f.__name__, f.__defaults__, f.__closure__)
    copy.__kwdefaults__ = f.__kwdefaults__
    return torch.compile(copy)


def forget_compiled() -> None:
    """Drop what was compiled with scaled rules, unless another thread may be running what `reset` frees."""
    if active_count() == 1:
        torch.compiler.reset()


@contextmanager
def forward_mode() -> Iterator[None]:
    """One thread at a time is in forward mode."""
    if not FORWARD_MODE.acquire(timeout=PATIENCE):
        raise RuntimeError(
            f"another thread has been in PyTorch's forward mode for {PATIENCE} s; let it end, and call again"
        )
    try:
        yield
    finally:
        FORWARD_MODE.release()


class Scaling(TorchFunctionMode):
    """
    While it lasts, rules are scaled in this thread, and in those of the autograd engine that work for it.

    As a mode it changes nothing, but Dynamo reads it, and runs what it compiled under a mode only under that mode.
    """

    def __init__(self, factor: float) -> None:
        """By what rules are multiplied."""
        super().__init__()
        self.factor = factor

    def __enter__(self) -> Self:
        """The factor is this one from here on."""
        self.before = factor_here()
        self.scale(self.factor)
        super().__enter__()
        return self

    def scale(self, factor: float) -> None:
        """The factor is this one from here on."""
        self.factor = factor
        torch._C._stash_obj_in_tls(FACTOR, factor)

    def __exit__(self, *raised: Any) -> None:
        """The factor is again what it was."""
        super().__exit__(*raised)
        if self.before == 1.0:
            torch._C._remove_obj_from_tls(FACTOR)
        else:
            torch._C._stash_obj_in_tls(FACTOR, self.before)

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        """The function's own result."""
        return function(*arguments, **(options or {}))


def factor_here() -> float:
    """What rules are scaled by in this thread; the backward pass sees no modes, and Dynamo sees nothing else."""
    factor = 1.0
    if torch.compiler.is_dynamo_compiling():
        for i in range(torch._C._len_torch_function_stack()):
            mode = torch._C._get_function_stack_at(i)
            if isinstance(mode, Scaling):
                factor = mode.factor
    elif torch._C._is_key_in_tls(FACTOR):
        factor = torch._C._get_obj_in_tls(FACTOR)
    return factor


@contextmanager
def scalable(function: type, name: str) -> Iterator[None]:
    """While it lasts, a rule of a class is scaled in the threads that are `Scaling`; afterwards it is as before."""
    owner = next(each for each in function.__mro__ if name in each.__dict__)  # where it may be inherited from
    key = (owner, name)
    with LOCK:
        if key not in SCALED:
            SCALED[key] = (owner.__dict__[name], 0)
            setattr(owner, name, multiplied(getattr(owner, name)))
        rule, count = SCALED[key]
        SCALED[key] = (rule, count + 1)
    try:
        yield
    finally:
        with LOCK:
            rule, count = SCALED.pop(key)
            if count > 1:
                SCALED[key] = (rule, count - 1)
            else:
                setattr(owner, name, rule)


def multiplied(rule: Callable[..., Any]) -> Any:
    """The rule, with its results multiplied by the factor of the thread."""

    def scaled_rule(*args: Any) -> Any:
        results, factor = rule(*args), factor_here()
        if factor == 1.0:
            return results
        if isinstance(results, tuple):
            return tuple(factor * y if isinstance(y, Tensor) else y for y in results)
        return factor * results if isinstance(results, Tensor) else results

    return staticmethod(scaled_rule)
