"""A function in data-parallel training: DistributedDataParallel over two ranks, which are threads of one process."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]  # left out of its __all__
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from p3.parity.function import Arrays, NoMeaningError
from torchp3.function import (
    ArrayFunction,
    Combinator,
    Scaling,
    Tensors,
    conjugate,
    from_arrays,
    graph_of,
    inexact,
    refusals,
    split,
    to_arrays,
    vjp_of,
)

# Of the cotangent, what each rank pulls back: exact, not the same in both, and on average all of it. None is 0, since
# 0 times an infinite slope is NaN, nor is one negative, since ∞ − ∞ is.
PARTS = (1.5, 0.5)


class DataParallelFunction(ArrayFunction):
    """
    The same where the differentiable arguments are parameters under DistributedDataParallel.

    Rank r pulls back `PARTS[r]` · v, and the average over both, which is what comes to the parameters' `grad`, is the
    vjp of v.
    """

    needs_linear = True

    def combined(self, combinator: Combinator) -> ArrayFunction:
        """The vjp, by `backward`, and nothing else."""
        if self.combinators or combinator is not vjp_of:
            raise NoMeaningError("DistributedDataParallel averages what comes to grad, with no graph and no tangent")
        return super().combined(combinator)

    def value(self, *groups: Arrays) -> Arrays:
        """The module's outputs, or the vjp."""
        ranks = Ranks()
        inputs, *cotangents = map(from_arrays, groups)
        moving, merge = split([inputs], self.differentiable)

        def train(rank: int) -> Tensors:
            with Scaling(self.factor) if self.factor != 1.0 else nullcontext():
                module = ranks.wrap(rank, Module(lambda moving: self.outputs(*merge(moving)), moving))
                results: Tensors = module()
                return pull_back(rank, module, inexact(results)) if cotangents else results

        def pull_back(rank: int, module: torch.nn.Module, results: Tensors) -> Tensors:
            ranks.barrier.wait()  # both have gone forward before either goes back
            if rank == 0:
                self.between()
            ranks.barrier.wait()
            seeds = [PARTS[rank] * v for v in conjugate(cotangents[0])]
            return conjugate(gradients(results, tuple(module.parameters()), seeds))

        with refusals(), self.scaled_rules(groups[0]):
            found: Tensors = ranks.run(train)
            return to_arrays(found)


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
        group = ProcessGroup(rank, 2)  # type: ignore[call-arg]  # the stub knows of no group without a store
        wrapped = DistributedDataParallel(module, process_group=group, init_sync=False)
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
    torch.autograd.backward([y for y, _ in pairs], [v for _, v in pairs])
    return tuple(torch.zeros_like(x) if x.grad is None else x.grad for x in parameters)
