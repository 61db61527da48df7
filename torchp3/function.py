"""PyTorch's functions as operators that the parity checker can take: NumPy arrays in and out."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import RLock, active_count
from types import FunctionType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from p3.parity.inputs import program_of
from p3.parity.operator import Arrays, Operator

Tensors = tuple[Tensor, ...]
RULES = ("backward", "vjp", "jvp")  # the methods of an autograd.Function that are derivative rules
REFUSALS = ("must override the setup_context", "does not have vmap support")  # what PyTorch says of what there is not

FORWARD_MODE = RLock()  # PyTorch has one level of forward mode for all threads of a process
PATIENCE = 600  # seconds to wait for another thread's forward mode
FACTOR = "p3_factor"  # what rules are scaled by in a thread, in its local storage
# By class and name of a rule that is scalable: the rule as the class has it, and for how many threads it is scalable.
SCALED: dict[tuple[type, str], tuple[Any, int]] = {}
LOCK = RLock()  # of SCALED; never held while a user's function runs


def as_operator(f: Any, *, arguments: tuple[int, ...] | None = None, **static: Any) -> Operator:
    """
    Make an operator of a function of tensors, for `p3.parity.check`.

    Parameters
    ----------
    f : a function of tensors to a tensor or a tuple of them, or a `torch.autograd.Function`
    arguments : the positions of the arguments to differentiate; all of floating or complex dtype where None
    static : keyword arguments that f is always called with

    Examples
    --------
    >>> as_operator(torch.sin).vjp((np.zeros(1),), (np.ones(1),))
    (array([1.]),)
    """
    name = getattr(f, "__name__", type(f).__name__)
    function = f.apply if inspect.isclass(f) and issubclass(f, torch.autograd.Function) else f
    return FunctionOperator(function, name, arguments, static)


def to_array(x: Tensor) -> np.ndarray:
    """The same numbers in NumPy, where bfloat16 comes from ml_dtypes, and complex numbers of halves are complex64."""
    x = x.detach().cpu().resolve_conj().resolve_neg()
    x = x.to(torch.complex64) if x.dtype == torch.complex32 else x
    # By force, since the tangent of what has none can be a tensor of zeros without memory.
    return x.view(torch.int16).numpy(force=True).view("bfloat16") if x.dtype == torch.bfloat16 else x.numpy(force=True)


def from_array(x: np.ndarray) -> Tensor:
    """The same memory, with the same strides, as a tensor."""
    x = np.asarray(x)  # what arithmetic makes of arrays of no dimensions is none
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


@dataclass(frozen=True)
class FunctionOperator:
    """A function of tensors as a `p3.parity.Operator`; the fields after `static` say by which transforms it runs."""

    f: Callable[..., Any]
    name: str
    differentiable: tuple[int, ...] | None
    static: dict[str, Any]
    functional: bool = False  # by torch.func instead of autograd
    one_by_one: bool = False  # the gradient of each output by each argument alone, all others left out of the graph
    is_compiled: bool = False
    batch: tuple[int, ...] = ()  # the arguments that have one more axis in front
    factor: float = 1.0

    @property
    def framework(self) -> str:
        """The framework's name and version."""
        return f"PyTorch {torch.__version__}"

    @property
    def program(self) -> str:
        """Python that makes this as `operator`; empty where the function has no name to be imported by."""
        # An autograd.Function is given as a class, and run by its method.
        given = self.f.__self__ if inspect.ismethod(self.f) and self.f.__name__ == "apply" else self.f
        return program_of("torchp3", given, {"arguments": self.differentiable, **self.static})

    def arguments(self, inputs: Arrays) -> tuple[int, ...]:
        """The positions of the differentiable arguments."""
        if self.differentiable is not None:
            return self.differentiable
        return tuple(i for i, x in enumerate(from_arrays(inputs)) if is_inexact(x))

    def batched(self, arguments: tuple[int, ...]) -> Operator:
        """By `torch.vmap`, and so by `torch.func`."""
        return replace(self, batch=arguments, functional=True)

    def transformed(self) -> dict[str, Operator]:
        """By `torch.func`; by autograd, one argument and output alone; and in data-parallel training."""
        found: dict[str, Operator] = {
            "torch.func": replace(self, functional=True),
            "one output and argument at a time": replace(self, one_by_one=True),
        }
        if torch.distributed.is_available():  # which PyTorch can be built without
            from torchp3.data_parallel import DataParallelOperator

            found["DistributedDataParallel"] = DataParallelOperator(
                self.f, self.name, self.differentiable, self.static, factor=self.factor
            )
        return found

    def compiled(self) -> dict[str, Operator]:
        """By `torch.compile` of the function, and of its derivatives by `torch.func`."""
        return {
            "torch.compile": replace(self, is_compiled=True),
            "torch.compile of torch.func": replace(self, functional=True, is_compiled=True),
        }

    def scaled(self, factor: float) -> Operator:
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
        nodes = graph_of(outputs(self.f(*tensors, **self.static), self.name))
        return {node._forward_cls for node in nodes if hasattr(node, "_forward_cls")}

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

    def alone(self, argument: int, output: int) -> "FunctionOperator":
        """One differentiable output as a function of one argument."""

        def one(*tensors: Tensor, **static: Any) -> Tensor:
            return [y for y in outputs(self.f(*tensors, **static), self.name) if is_inexact(y)][output]

        return replace(self.along(argument), f=one)

    def along(self, argument: int) -> "FunctionOperator":
        """The same as a function of one argument."""
        return replace(self, differentiable=(argument,), one_by_one=False)

    def run(self, transform: Callable[..., Tensors], inputs: Arrays, *others: Arrays) -> Arrays:
        """Call transform(inputs, *others) on tensors, compiled and batched as this operator is."""
        if self.batch:
            axes = tuple(0 if i in self.batch else None for i in range(len(inputs)))
            transform = torch.vmap(transform, (axes, *(0 for _ in others)))
        if self.is_compiled:
            transform = compile_apart(transform)
        with refusals(), self.scaled_rules(inputs):
            return to_arrays(transform(from_arrays(inputs), *map(from_arrays, others)))

    def function(self, inputs: Arrays) -> tuple[Callable[..., Tensors], Callable[[Tensors], Tensors]]:
        """F's differentiable outputs as a function of its differentiable arguments and all others; and those of all."""
        positions = self.arguments(inputs)

        def inexact_outputs(arguments: Tensors, tensors: Tensors) -> Tensors:
            given = list(tensors)
            for i, argument in zip(positions, arguments, strict=True):
                given[i] = argument
            return tuple(y for y in outputs(self.f(*given, **self.static), self.name) if is_inexact(y))

        return inexact_outputs, lambda tensors: tuple(tensors[i] for i in positions)

    def value(self, inputs: Arrays) -> Arrays:
        """F(inputs)."""
        return self.run(lambda tensors: outputs(self.f(*tensors, **self.static), self.name), inputs)

    def vjp(self, inputs: Arrays, cotangents: Arrays, between: Callable[[], object] = lambda: None) -> Arrays:
        """The vjp, by `torch.autograd.grad` or `torch.func.vjp`."""
        f, select = self.function(inputs)
        if self.one_by_one:
            return tuple(
                np.sum([self.alone(i, k).vjp(inputs, (v,), between)[0] for k, v in enumerate(cotangents)], axis=0)
                for i in self.arguments(inputs)
            )
        if not self.functional:
            return self.by_autograd(inputs, cotangents, between=between)

        def vjp(tensors: Tensors, cotangents: Tensors) -> Tensors:
            pullback = torch.func.vjp(lambda *arguments: f(arguments, tensors), *select(tensors))[1]
            between()
            return conjugate(pullback(conjugate(cotangents)))

        return self.run(vjp, inputs, cotangents)

    def jvp(self, inputs: Arrays, tangents: Arrays) -> Arrays:
        """The jvp, by dual numbers or `torch.func.jvp`."""
        f, select = self.function(inputs)
        if self.one_by_one:
            sides = zip(self.arguments(inputs), tangents, strict=True)
            along = [self.along(i).jvp(inputs, (w,)) for i, w in sides]
            return tuple(np.sum(parts, axis=0) for parts in zip(*along, strict=True))

        def jvp(tensors: Tensors, tangents: Tensors) -> Tensors:
            if self.functional:
                return torch.func.jvp(lambda *arguments: f(arguments, tensors), select(tensors), tangents)[1]
            with forward_ad.dual_level():
                duals = tuple(map(forward_ad.make_dual, select(tensors), tangents))
                return tuple(map(tangent_of, f(duals, tensors)))

        with forward_mode():
            return self.run(jvp, inputs, tangents)

    def vjp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """The vjp of the vjp."""
        f, select = self.function(inputs)
        if not self.functional:
            return self.by_autograd(inputs, cotangents, directions)

        def vjp_of_vjp(tensors: Tensors, cotangents: Tensors, directions: Tensors) -> Tensors:
            def vjp(arguments: Tensors, cotangents: Tensors) -> Tensors:
                pullback = torch.func.vjp(lambda *arguments: f(arguments, tensors), *arguments)[1]
                return conjugate(pullback(conjugate(cotangents)))

            gradients = torch.func.vjp(vjp, select(tensors), cotangents)[1](conjugate(directions))
            return conjugate((*gradients[0], *gradients[1]))

        return self.run(vjp_of_vjp, inputs, cotangents, directions)

    def by_autograd(
        self,
        inputs: Arrays,
        cotangents: Arrays,
        directions: Arrays | None = None,
        between: Callable[[], object] = lambda: None,
    ) -> Arrays:
        """The vjp, or with directions the vjp of the vjp, by `torch.autograd.grad`, as in training."""
        f, select = self.function(inputs)
        f = compile_apart(f) if self.is_compiled else f
        with refusals(), self.scaled_rules(inputs), torch.enable_grad():
            tensors = from_arrays(inputs)
            arguments = tuple(x.detach().requires_grad_() for x in select(tensors))
            results = f(arguments, tensors)
            between()
            seeds = from_arrays(cotangents)
            if directions is None:
                gradients = pull_back(results, arguments, conjugate(seeds))
            else:
                seeds = tuple(seed.detach().requires_grad_() for seed in seeds)
                first = pull_back(results, arguments, conjugate(seeds), create_graph=True)
                gradients = pull_back(conjugate(first), (*arguments, *seeds), conjugate(from_arrays(directions)))
        return to_arrays(conjugate(gradients))

    def jvp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """The jvp of the vjp, forward over reverse."""
        f, select = self.function(inputs)

        def jvp_of_vjp(tensors: Tensors, cotangents: Tensors, directions: Tensors) -> Tensors:
            def vjp(*arguments: Tensor) -> Tensors:
                pullback = torch.func.vjp(lambda *arguments: f(arguments, tensors), *arguments)[1]
                return conjugate(pullback(conjugate(cotangents)))

            if self.functional:
                return torch.func.jvp(vjp, select(tensors), directions)[1]
            with torch.enable_grad(), forward_ad.dual_level():
                arguments = tuple(x.detach().requires_grad_() for x in select(tensors))
                duals = tuple(map(forward_ad.make_dual, arguments, directions))
                gradients = pull_back(f(duals, tensors), duals, conjugate(cotangents), create_graph=True)
                return tuple(map(tangent_of, conjugate(gradients)))

        with forward_mode():
            return self.run(jvp_of_vjp, inputs, cotangents, directions)


@contextmanager
def refusals() -> Iterator[None]:
    """What PyTorch says that there is not is a NotImplementedError, whatever PyTorch makes of it."""
    try:
        yield
    except Exception as error:
        if any(words in str(error) for words in REFUSALS):
            raise NotImplementedError(str(error)) from error
        raise


def outputs(result: Any, name: str) -> Tensors:
    """What a function returned, as a tuple."""
    results = tuple(result) if isinstance(result, tuple | list) else (result,)
    for y in results:
        if not isinstance(y, Tensor):
            raise TypeError(f"{name} returned {type(y).__name__}; return a tensor or a tuple of tensors")
    return results


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
        return super().__enter__()

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
