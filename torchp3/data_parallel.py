"""A function in data-parallel training: DistributedDataParallel over two ranks, which are threads of one process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed import GradBucket, ProcessGroup
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from p3.parity.operator import Arrays, NoMeaningError
from torchp3.function import (
    FunctionOperator,
    Scaling,
    Tensors,
    conjugate,
    from_arrays,
    graph_of,
    outputs,
    refusals,
    to_arrays,
)

# Of the cotangent, what each rank pulls back: exact, not the same in both, and on average all of it. None is 0, since
# 0 times an infinite slope is NaN, nor is one negative, since ∞ − ∞ is.
PARTS = (1.5, 0.5)


class DataParallelOperator(FunctionOperator):
    """
    The same where the differentiable arguments are parameters under DistributedDataParallel.

    Rank r pulls back `PARTS[r]` · v, and the average over both, which is what comes to the parameters' `grad`, is the
    vjp of v.
    """

    def value(self, inputs: Arrays) -> Arrays:
        """The module's outputs."""
        ranks = Ranks()
        _, select = self.function(inputs)
        tensors = from_arrays(inputs)

        def f(arguments: Tensors) -> Tensors:
            given = dict(enumerate(tensors)) | dict(zip(self.arguments(inputs), arguments, strict=True))
            return outputs(self.f(*given.values(), **self.static), self.name)

        with refusals():
            return to_arrays(ranks.run(lambda rank: ranks.wrap(rank, Module(f, select(tensors)))()))

    def vjp(self, inputs: Arrays, cotangents: Arrays, between: Callable[[], object] = lambda: None) -> Arrays:
        """The vjp, by `backward`."""
        ranks = Ranks()
        f, select = self.function(inputs)
        tensors = from_arrays(inputs)

        def train(rank: int) -> Tensors:
            with Scaling(self.factor) if self.factor != 1.0 else nullcontext():
                return pull_back(rank)

        def pull_back(rank: int) -> Tensors:
            module = ranks.wrap(rank, Module(lambda arguments: f(arguments, tensors), select(tensors)))
            results = module()
            ranks.barrier.wait()  # both have gone forward before either goes back
            if rank == 0:
                between()
            ranks.barrier.wait()
            seeds = [PARTS[rank] * v for v in conjugate(from_arrays(cotangents))]
            return gradients(results, tuple(module.parameters()), seeds)

        with refusals(), self.scaled_rules(inputs):
            return to_arrays(conjugate(ranks.run(train)))

    def jvp(self, inputs: Arrays, tangents: Arrays) -> Arrays:
        """None."""
        raise NoMeaningError("DistributedDataParallel averages what comes to grad, and no tangent does")

    def vjp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """None."""
        raise NoMeaningError("DistributedDataParallel averages what comes to grad, which has no graph")

    def jvp_of_vjp(self, inputs: Arrays, cotangents: Arrays, directions: Arrays) -> Arrays:
        """None."""
        raise NoMeaningError("DistributedDataParallel averages what comes to grad, and no tangent does")


class Module(torch.nn.Module):
    """A function of its parameters."""

    def __init__(self, f: Callable[[Tensors], Tensors], arguments: Tensors) -> None:
        """Copies of the arguments become the parameters."""
        super().__init__()
        self.f = f
        self.arguments = torch.nn.ParameterList(x.detach().clone() for x in arguments)

    def forward(self) -> Tensors:
        """The outputs."""
        return self.f(tuple(self.arguments))


class Ranks:
    """
    Two threads that average their gradients by DistributedDataParallel; where one fails, none waits for it.

    They are threads, so that a rule that is scaled is scaled in both, and nothing has to be pickled. They average
    in memory, by a hook of DistributedDataParallel's, since two groups of Gloo's in one process can wait for each
    other without end: the reducer frees its group while it holds the interpreter's lock, and Gloo then joins a thread
    that waits for that lock.
    """

    def __init__(self) -> None:
        """Nothing has been averaged."""
        self.barrier = threading.Barrier(2)
        self.halves: dict[tuple[int, int], Tensor] = {}  # by rank and bucket
        self.errors: list[BaseException] = []

    def wrap(self, rank: int, module: torch.nn.Module) -> DistributedDataParallel:
        """The module, its parameters' gradients averaged over the ranks."""
        # A group that nothing goes through: the parameters are the same from the start, and the hook does the rest.
        wrapped = DistributedDataParallel(module, process_group=ProcessGroup(rank, 2), init_sync=False)
        wrapped.register_comm_hook(rank, self.average)
        return wrapped

    def average(self, rank: int, bucket: GradBucket) -> Future[Tensor]:
        """The average of a bucket of gradients; as in DistributedDataParallel itself, they are halved, then added."""
        self.halves[rank, bucket.index()] = bucket.buffer() / 2
        self.barrier.wait()
        averaged: Future[Tensor] = Future()
        averaged.set_result(self.halves[0, bucket.index()] + self.halves[1, bucket.index()])
        return averaged

    def run(self, work: Callable[[int], Any]) -> Any:
        """What work(rank) gives in the first, once both are done; or raise what was raised first."""

        def guarded(rank: int) -> Any:
            try:
                return work(rank)
            except BaseException as error:  # users' functions raise all kinds, and exit
                self.errors.append(error)
                self.barrier.abort()
                raise

        with ThreadPoolExecutor(2) as threads:
            results = [threads.submit(guarded, rank) for rank in range(2)]
        if self.errors:
            raise self.errors[0]
        return results[0].result()


def gradients(results: Tensors, parameters: Tensors, cotangents: list[Tensor]) -> Tensors:
    """
    The vjp as training has it, by `backward` and in `grad`.

    What no result depends on is given 0, since DistributedDataParallel averages nothing before all have arrived.
    """
    used = {node.variable for node in graph_of(results) if hasattr(node, "variable")}
    pairs = [(y, v) for y, v in zip(results, cotangents, strict=True) if y.requires_grad]
    pairs += [(x, torch.zeros_like(x)) for x in parameters if x not in used]
    torch.autograd.backward(*zip(*pairs, strict=True))
    return tuple(torch.zeros_like(x) if x.grad is None else x.grad for x in parameters)
