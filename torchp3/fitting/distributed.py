"""
Devices that share the points: which part is this process's, and what all of them do together.

PyTorch has a process for each device, `torchrun` or the like starts them, and `torch.distributed` connects them.
"""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import count
from threading import Thread
from time import monotonic, sleep
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed import distributed_c10d

from p3.errors import ALIKE, InputError, LostProcessError
from p3.fitting.spec import TrainingSpec
from p3.fitting.training import PATIENCE, ROLL_CALL, give_way, whole_number
from torchp3.fitting.model import Coefficients

Made = TypeVar("Made")

GATHERED = count()  # what each process gathers it gathers with all others, so that they count alike


def process_count() -> int:
    """How many processes are connected."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def process_index() -> int:
    """Which of them this is, counted from 0."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def devices_here(spec: TrainingSpec) -> range:
    """
    Which of the specification's devices are this process's.

    Raises
    ------
    InputError
        There are not as many processes as devices.
    """
    if spec.devices == 1:
        return range(1)
    if spec.devices != process_count():
        raise InputError(
            f"devices = {spec.devices}, and there are {process_count()} processes, each for one device; "
            f"start as many: torchrun --nproc-per-node {spec.devices} -m torchp3"
        )
    return range(process_index(), process_index() + 1)


@contextmanager
def joined(spec: TrainingSpec) -> Iterator[TrainingSpec]:
    """
    For a command: connect the processes that `torchrun` started, if it did, and give the specification their number.

    Raises
    ------
    InputError
        The variables that `torchrun` sets hold what cannot be, or one of them is missing.
    LostProcessError
        Not all of them come, within `PATIENCE` seconds.
    """
    processes, rank = whole_number("WORLD_SIZE") or 1, whole_number("RANK") or 0
    if processes == 1:
        yield spec
        return
    if not rank < processes:
        raise InputError(f"RANK={rank} of WORLD_SIZE={processes}; count the processes from 0")
    give_way()
    if on_gpu := spec.device != "cpu" and torch.cuda.is_available():
        torch.cuda.set_device(whole_number("LOCAL_RANK") or 0)
    try:
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(seconds=PATIENCE))
    except torch.distributed.DistError as error:
        raise LostProcessError(rank, processes, [], str(error).partition("\n")[0]) from error
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{reason}; start all processes by torchrun, which sets what they need") from error
    try:
        yield spec if spec.devices > 1 else spec.replace({"devices": processes})
        part()
    except ALIKE:
        part()
        raise
    finally:
        torch.distributed.destroy_process_group()


def part() -> None:
    """
    Leave when all are done, the first one last, since the store is its own.

    Whoever closes its connections before takes from others what they have not read yet.
    """
    store, everyone = distributed_c10d._get_default_store(), range(process_count())
    with suppress(torch.distributed.DistError):  # the others have been lost meanwhile, with nothing left to do
        store.set(f"p3 done {process_index()}", "")
        store.wait([f"p3 done {process}" for process in everyone], timedelta(seconds=PATIENCE))
        store.set(f"p3 gone {process_index()}", "")
        if process_index() == 0:
            store.wait([f"p3 gone {process}" for process in everyone], timedelta(seconds=PATIENCE))


def gather(spec: TrainingSpec, value: Made) -> list[Made]:
    """
    What each process has here, in their order; by way of the store that connects them.

    A collective on Python's tensors would leave them to a thread of Gloo's, to be freed with the interpreter's lock,
    while a compiled loop holds that lock and waits for the same thread.
    """
    if spec.devices == 1 or process_count() == 1:
        return [value]
    store, number, index = distributed_c10d._get_default_store(), next(GATHERED), process_index()
    store.set(f"p3 {number} {index}", pickle.dumps(value))  # type: ignore[arg-type]  # PyTorch's stub knows no bytes
    values = [pickle.loads(store.get(f"p3 {number} {process}")) for process in range(process_count())]
    store.delete_key(f"p3 {number - 1} {index}")  # which all have read who have come to this number
    return values


def together(spec: TrainingSpec, make: Callable[[], Made]) -> Made:
    """
    What a process makes, if all of them can.

    Raises
    ------
    InputError
        One of them cannot.
    """
    if spec.devices == 1:
        return make()
    message = None
    try:
        made = make()
    except InputError as error:
        message = str(error)
    for theirs in gather(spec, message):
        if theirs is not None:
            raise InputError(theirs)
    return made


def total(
    spec: TrainingSpec, loss: Float[Tensor, ""], gradients: Coefficients
) -> tuple[Float[Tensor, ""], Coefficients]:
    """
    The sums over all devices of each one's part of the loss, and of its gradients.

    A functional collective, which the compiled loop calls without leaving it: of 2000 points by two processes, a step
    takes a sixth of what an eager one with its `all_reduce` does. Five numbers at once, since what a collective takes
    is the time to meet.
    """
    if spec.devices == 1:
        return loss, gradients
    from torch.distributed import _functional_collectives  # which loads much, for several processes alone

    parts, everyone = torch.stack([loss, *gradients.values()]), torch.distributed.group.WORLD
    assert everyone is not None
    value, *sums = _functional_collectives.all_reduce(parts, "sum", everyone).unbind()
    return value.clone(), {name: part.clone() for name, part in zip(gradients, sums, strict=True)}


@contextmanager
def watched(spec: TrainingSpec) -> Iterator[None]:
    """Turn what PyTorch says where a process is lost into a `LostProcessError`, which says which one it is."""
    try:
        yield
    except RuntimeError as error:
        reason, said = str(error).partition("\n")[0], str(error).lower()
        ours = any(word in said for word in ("gloo", "nccl", "pair closure"))
        if spec.devices == 1 or not (ours or isinstance(error, torch.distributed.DistError)):
            raise
        raise LostProcessError(process_index(), process_count(), absent(), reason) from error


def absent() -> list[int]:
    """The processes that do not answer a roll call within `ROLL_CALL` seconds; the first keeps the book."""
    store, processes = distributed_c10d._get_default_store(), range(process_count())
    missing, until = [process for process in processes if process != process_index()], monotonic() + ROLL_CALL

    def call() -> None:
        try:
            store.set(f"p3 here {process_index()}", "")
            while missing and monotonic() < until:
                missing[:] = [process for process in missing if not store.check([f"p3 here {process}"])]
                sleep(0.05)
        except torch.distributed.DistError:  # the book is gone
            missing[:] = [0]

    # It waits while the book's keeper is stopped, and else ends before the interpreter does, which would abort.
    roll_call = Thread(target=call, daemon=True)
    roll_call.start()
    roll_call.join(ROLL_CALL + 1)
    return missing
