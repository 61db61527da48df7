"""PyTorch's side of the table of modes: its transforms under the names that both sides share, and modes of its own."""

import copy
import pickle
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.autograd.graph import save_on_cpu
from torch.func import jacfwd, jacrev, vmap  # noqa: F401 - as modes.py takes them from either side
from torch.utils.checkpoint import checkpoint

import torchp3
from torchp3 import operator
from torchp3.data_parallel import PARTS, Ranks

Function = Callable[[Tensor], Tensor]

OPERATORS = {"torchp3.legendre_p3": torchp3.legendre_p3}


def array(x: np.ndarray) -> Tensor:
    """The points as a tensor of their own."""
    return torch.tensor(x)


def reverse(f: Function) -> Function:
    """The derivative of an elementwise function in reverse mode."""
    return torch.func.grad(lambda x: f(x).sum())


def forward(f: Function) -> Function:
    """The derivative of an elementwise function in forward mode."""
    return lambda x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1]


def pullback(f: Function) -> Function:
    """The same, by the function that `vjp` returns."""
    return lambda x: torch.func.vjp(f, x)[1](torch.ones_like(x))[0]


def linearize(f: Function) -> Function:
    """The same, by the function that `linearize` returns."""
    return lambda x: torch.func.linearize(f, x)[1](torch.ones_like(x))


def compiled(f: Function) -> Function:
    """As users compile it, with no part left out."""

    def call(x: Tensor) -> Tensor:
        torch.compiler.reset()  # what is compiled here is one Python function with many meanings
        return torch.compile(f, fullgraph=True)(x)

    return call


def forget_compiled() -> None:
    """Have what was compiled before traced anew."""
    torch.compiler.reset()


def gradient(y: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
    """The gradient of the sum of y."""
    return torch.autograd.grad(y.sum(), x, create_graph=create_graph)[0]


def leaf(x: Tensor) -> Tensor:
    """A copy of x that gradients end at."""
    return x.clone().requires_grad_()


def backward(f: Function) -> Function:
    """The derivative by autograd."""

    def derivative(x: Tensor) -> Tensor:
        x = leaf(x)
        return gradient(f(x), x)

    return derivative


def backward_twice(f: Function) -> Function:
    """The second derivative by autograd."""

    def derivative(x: Tensor) -> Tensor:
        x = leaf(x)
        return gradient(gradient(f(x), x, create_graph=True), x)

    return derivative


def dual(f: Function) -> Function:
    """The derivative by a dual number."""

    def derivative(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, torch.ones_like(x)))).tangent

    return derivative


def dual_of_leaf(f: Function) -> Function:
    """The same, and x could be differentiated by autograd as well."""
    return lambda x: dual(f)(leaf(x)).detach()


def closed_over(f: Function) -> Function:
    """The gradient of f(tx) with respect to t at 1, differentiated by autograd with respect to x: P3' + x·P3''."""

    def derivative(x: Tensor) -> Tensor:
        x = leaf(x)
        slope = compiled(lambda x: torch.func.grad(lambda t: f(t * x).sum())(torch.ones_like(x)))
        return gradient(slope(x), x)

    return derivative


def compiled_cotangent(f: Function) -> Function:
    """A compiled gradient of Σ w·f(x), differentiated by autograd with respect to w."""

    def derivative(x: Tensor) -> Tensor:
        w = leaf(torch.full_like(x, 3.0))
        return gradient(compiled(lambda w: torch.func.grad(lambda x: (f(x) * w).sum())(x))(w), w)

    return derivative


def dynamic_shapes(f: Function) -> Function:
    """Compiled once for every length, and differentiated."""

    def derivative(x: Tensor) -> Tensor:
        function = torch.compile(f, fullgraph=True, dynamic=True)
        with torch.compiler.set_stance("default"):
            backward(function)(x[:3])
        with torch.compiler.set_stance("fail_on_recompile"):
            return backward(function)(x)

    return derivative


class Module(torch.nn.Module):
    """P3 of its parameter."""

    def __init__(self, x: Tensor) -> None:
        """X becomes the parameter."""
        super().__init__()
        self.x = torch.nn.Parameter(x)

    def forward(self) -> Tensor:
        """The output."""
        return torchp3.legendre_p3(self.x)


class Pointwise(torch.nn.Module):
    """P3 of what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """The output."""
        return torchp3.legendre_p3(x)


def parameter_gradient(module: torch.nn.Module) -> Tensor:
    """The parameter's gradient after a backward pass."""
    module().sum().backward()
    (parameter,) = module.parameters()
    return parameter.grad


def changed_afterwards(x: Tensor) -> Tensor:
    """The derivative where a compiled function goes on to change what it gave to P3."""

    def change(x: Tensor) -> Tensor:
        z = 1.0 * x
        y = torchp3.legendre_p3(z)
        z.add_(1)
        return y

    return backward(compiled(change))(x)


def exported(x: Tensor, strict: bool = False) -> torch.nn.Module:
    """Exported for any length, saved and loaded."""
    shapes = ({0: torch.export.Dim("points")},)
    program = torch.export.export(Pointwise(), (x,), dynamic_shapes=shapes, strict=strict)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "p3.pt2"
        torch.export.save(program, path)
        return torch.export.load(path).module()


def ahead_of_time(x: Tensor) -> Tensor:
    """Compiled to a library by AOTInductor, loaded and called."""
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(
            torch.export.export(Pointwise(), (x,)), package_path=str(Path(folder) / "p3.pt2")
        )
        return torch._inductor.aoti_load_package(path)(x)


def fake(x: Tensor) -> Tensor:
    """Zeros where fake and meta tensors come out with x's shape and dtype, which is all they have."""
    with FakeTensorMode() as mode:
        outcomes = [backward(torchp3.legendre_p3)(mode.from_tensor(x))]
    outcomes.append(backward(torchp3.legendre_p3)(x.to("meta")))
    assert all((outcome.shape, outcome.dtype) == (x.shape, x.dtype) for outcome in outcomes)
    return torch.zeros_like(x)


def autocast(x: Tensor) -> Tensor:
    """The derivative where autocast makes bfloat16 of what it can: P3 stays in x's dtype."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return backward(torchp3.legendre_p3)(x)


def inference(x: Tensor) -> Tensor:
    """The value in inference mode."""
    with torch.inference_mode():
        return torchp3.legendre_p3(x).clone()


def hooks(x: Tensor) -> Tensor:
    """The derivative, the residual packed and unpacked."""
    x = leaf(x)
    with save_on_cpu():
        y = torchp3.legendre_p3(x)
    return gradient(y, x)


def reentrant(x: Tensor) -> Tensor:
    """The derivative by `backward`, the only way that reentrant checkpointing has."""
    x = leaf(x)
    checkpoint(torchp3.legendre_p3, x, use_reentrant=True).sum().backward()
    return x.grad


def as_it_is(module: torch.nn.Module) -> torch.nn.Module:
    """The module, not compiled."""
    return module


def compiled_whole(module: torch.nn.Module) -> torch.nn.Module:
    """The module compiled, with no part left out."""
    return torch.compile(module, fullgraph=True)


def distributed(before: Callable[..., Any], after: Callable[..., Any]) -> Function:
    """The gradient under DistributedDataParallel, two ranks; the module is compiled before it is wrapped, or after."""

    def derivative(x: Tensor) -> Tensor:
        torch.compiler.reset()
        ranks = Ranks()

        def train(rank: int) -> Tensor:
            module = after(ranks.wrap(rank, before(Module(x.clone()))))
            (PARTS[rank] * module()).sum().backward()
            (parameter,) = module.parameters()
            return parameter.grad

        return ranks.run(train)

    return derivative


def threads(x: Tensor) -> Tensor:
    """The derivative of each element in a thread of its own."""
    with ThreadPoolExecutor(4) as pool:
        return torch.stack(list(pool.map(backward(torchp3.legendre_p3), x)))


def own_modes(f: Function) -> dict[str, tuple[str, Function]]:
    """The modes that only PyTorch has: their names, what they should come to, and how to get there."""
    return {
        "autograd.grad": ("first derivative", backward(f)),
        "autograd.grad twice": ("second derivative", backward_twice(f)),
        "dual numbers": ("first derivative", dual(f)),
        "dual numbers, x requires grad": ("first derivative", dual_of_leaf(f)),
        "autograd.grad of a dual number's tangent": ("second derivative", backward(dual(f))),
        "autograd.functional.hessian": (
            "second derivative",
            lambda x: torch.autograd.functional.hessian(lambda x: f(x).sum(), x).diagonal(),
        ),
        "autograd.functional.hessian, vectorized": (
            "second derivative",
            lambda x: torch.autograd.functional.hessian(lambda x: f(x).sum(), x, vectorize=True).diagonal(),
        ),
        "compiled, then autograd.grad": ("first derivative", backward(compiled(f))),
        "compiled, then autograd.grad, dynamic shapes": ("first derivative", dynamic_shapes(f)),
        "compiled, then autograd.grad twice": ("second derivative", backward_twice(compiled(f))),
        "compiled by the eager backend, then autograd.grad twice": (
            "second derivative",
            backward_twice(torch.compile(f, fullgraph=True, backend="eager")),
        ),
        "compiled, x changed afterwards": ("first derivative", changed_afterwards),
        "compiled dual numbers": ("first derivative", compiled(dual(f))),
        "compiled, then dual numbers": ("first derivative", dual(compiled(f))),
        "compiled, then dual numbers, x requires grad": ("first derivative", dual_of_leaf(compiled(f))),
        "compiled, then torch.func.grad": ("first derivative", reverse(compiled(f))),
        "compiled, then torch.func.jvp": ("first derivative", forward(compiled(f))),
        "compiled, then vmap": ("value", vmap(compiled(f))),
        "compiled torch.func.grad, then autograd.grad": ("second derivative", backward(compiled(reverse(f)))),
        "compiled torch.func.grad of f(1·x)": ("first derivative", compiled(reverse(lambda x: f(1.0 * x)))),
        "compiled torch.func.grad twice of f(1·x)": (
            "second derivative",
            compiled(reverse(reverse(lambda x: f(1.0 * x)))),
        ),
        "compiled torch.func.grad, then autograd.grad of what it closes over": ("closed over", closed_over(f)),
        "compiled torch.func.grad, then autograd.grad of its cotangent": ("first derivative", compiled_cotangent(f)),
        "compiled checkpoint": (
            "first derivative",
            backward(compiled(lambda x: checkpoint(f, x, use_reentrant=False))),
        ),
        "export, reload": ("value", lambda x: exported(x)(x)),
        "export, reload, then autograd.grad": ("first derivative", lambda x: backward(exported(x))(x)),
        "strict export, reload, then autograd.grad": (
            "first derivative",
            lambda x: backward(exported(leaf(x), strict=True))(x),
        ),
        "AOTInductor": ("value", ahead_of_time),
        "fake and meta tensors": ("shape", fake),
        "autocast": ("first derivative", autocast),
        "checkpoint": ("first derivative", backward(lambda x: checkpoint(f, x, use_reentrant=False))),
        "checkpoint, reentrant": ("first derivative", reentrant),
        "saved-tensor hooks": ("first derivative", hooks),
        "inference mode": ("value", inference),
        "vmap, randomness an error": ("value", vmap(f, randomness="error")),
        "DistributedDataParallel, two ranks": ("first derivative", distributed(as_it_is, as_it_is)),
        "DistributedDataParallel of a compiled module": ("first derivative", distributed(compiled_whole, as_it_is)),
        "compiled DistributedDataParallel": ("first derivative", distributed(as_it_is, torch.compile)),
        "threads": ("first derivative", threads),
        "pickled module": ("first derivative", lambda x: parameter_gradient(pickle.loads(pickle.dumps(Module(x))))),
        "copied module": ("first derivative", lambda x: parameter_gradient(copy.deepcopy(Module(x)))),
        "torch.jit.trace": ("value", lambda x: torch.jit.trace(f, x)(x)),
    }


__all__ = ["operator"]  # the module whose rule modes.py marks
