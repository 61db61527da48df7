"""
Devices that share the points: which part is this process's, and what all of them do together.

JAX has one process for several devices, or one for each, and `jax.distributed` connects them.
"""

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from threading import Event, Thread, Timer
from time import monotonic
from typing import NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax._src import distributed
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float

from jaxp3.fitting.device import find_device
from jaxp3.fitting.model import Coefficients
from p3.errors import ALIKE, InputError, LostProcessError, last_words
from p3.fitting.spec import TrainingSpec
from p3.fitting.training import PATIENCE, ROLL_CALL, give_way, whole_number

Made = TypeVar("Made")

AXIS = "devices"  # of the mesh
GATHERED = count()  # what each process gathers it gathers with all others, so that they count alike
MOST_DEVICES = 2048  # XLA numbers a CPU's devices so that the next is taken for another process's
SHARED, REPLICATED = PartitionSpec(AXIS), PartitionSpec()


def process_count() -> int:
    """How many processes are connected."""
    return int(jax.process_count())


def process_index() -> int:
    """Which of them this is, counted from 0."""
    return int(jax.process_index())


def mesh(spec: TrainingSpec) -> Mesh:
    """
    The specification's devices, as many of each process.

    Raises
    ------
    InputError
        There are not as many.
    """
    of_each, left_over = divmod(spec.devices, process_count())
    everywhere = jax.devices(find_device(spec.device).platform)
    chosen = [
        device
        for process in range(process_count())
        for device in [device for device in everywhere if device.process_index == process][:of_each]
    ]
    if left_over or len(chosen) < spec.devices:
        raise InputError(
            f"devices = {spec.devices}, and there are {process_count()} processes with {jax.local_device_count()} "
            "each; give a multiple of the processes, and of CPU devices have as many by jax_num_cpu_devices, before "
            "JAX is first used"
        )
    return Mesh(np.array(chosen), (AXIS,))


def devices_here(spec: TrainingSpec) -> range:
    """
    Which of the specification's devices are this process's.

    Raises
    ------
    InputError
        There are not as many.
    """
    if spec.devices == 1:
        return range(1)
    here = [number for number, device in enumerate(mesh(spec).devices) if device.process_index == process_index()]
    return range(here[0], here[-1] + 1)


@contextmanager
def joined(spec: TrainingSpec) -> Iterator[TrainingSpec]:
    """
    For a command: connect the processes that were started together, if they were, and count them in the specification.

    They are told of each other by JAX_COORDINATOR_ADDRESS, which `jax.distributed` knows, and by JAX_NUM_PROCESSES and
    JAX_PROCESS_ID, which may be left out where it finds out by itself, as under Slurm and Open MPI.

    Where one process fails alone, or loses another, this says so in one line, and ends the process there and then: JAX
    would wait for the others, and then abort.

    Raises
    ------
    InputError
        The variables hold what cannot be, or one of them is missing; or a process is to have more devices than it can.
    """
    if "JAX_COORDINATOR_ADDRESS" not in os.environ:
        for variable in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            if variable in os.environ:
                raise InputError(f"{variable} is set, and JAX_COORDINATOR_ADDRESS is not; set both, or none")
        if spec.devices > 1:
            make_devices(spec.devices)
        yield spec
        return
    address = os.environ["JAX_COORDINATOR_ADDRESS"]
    port = address.rpartition(":")[2]
    if not (port.isdecimal() and int(port) < 2**16):
        raise InputError(
            f"JAX_COORDINATOR_ADDRESS={address}; give the first process's host and a port that is free there, "
            "as 127.0.0.1:1234"
        )
    size, index = whole_number("JAX_NUM_PROCESSES"), whole_number("JAX_PROCESS_ID")
    if size is not None and not (index or 0) < size:
        raise InputError(f"JAX_PROCESS_ID={index} of JAX_NUM_PROCESSES={size}; count the processes from 0")
    give_way()
    never = LostProcessError(index or 0, size or 0, [], f"not all came within {PATIENCE} seconds")
    jax.config.update("jax_enable_preemption_service", False)  # which would catch a SIGTERM, and do nothing
    late = Timer(PATIENCE, leave, [never])
    late.start()
    try:
        jax.distributed.initialize(
            num_processes=size,
            process_id=index,
            initialization_timeout=2 * PATIENCE,
            heartbeat_timeout_seconds=2 * PATIENCE,
            shutdown_timeout_seconds=PATIENCE,
        )
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{reason}; give JAX_NUM_PROCESSES and JAX_PROCESS_ID") from error
    finally:
        late.cancel()
    processes = distributed.global_state.num_processes
    if spec.devices == 1:
        spec = spec.replace({"devices": processes})
    make_devices(max(1, spec.devices // processes))
    ending = Event()
    meeting = Thread(target=meet, args=[ending], daemon=True)
    meeting.start()
    try:
        yield spec
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, ALIKE):
            leave(error)
        raise
    finally:
        ending.set()
        jax.distributed.shutdown()
        meeting.join(PATIENCE)  # Python aborts if it ends while a thread is in JAX's client


def make_devices(count: int) -> None:
    """Have the process's CPU be so many devices."""
    if count > MOST_DEVICES:
        raise InputError(f"{count} devices in one process, and JAX takes {MOST_DEVICES} at most; start more processes")
    jax.config.update("jax_num_cpu_devices", count)


def meet(ending: Event) -> None:
    """Meet the other processes every few seconds; where one does not come, end this one."""
    for number in count():
        try:
            client = distributed.global_state.client
            assert client is not None
            client.wait_at_barrier(f"p3 {number}", 1000 * PATIENCE)
        except Exception as error:
            if not ending.is_set():
                reason = str(error).partition("\n")[0]
                leave(LostProcessError(process_index(), process_count(), absent(), reason))
        if ending.wait(PATIENCE / 6):
            return


def leave(error: BaseException) -> NoReturn:
    """Say what happened, and end the process at once, since JAX would wait for the others, and abort."""
    message, code = last_words(error) or ("".join(traceback.format_exception(error)), 1)
    sys.stdout.flush()
    print(f"jaxp3: {message}", file=sys.stderr, flush=True)
    os._exit(code)


def gather(spec: TrainingSpec, value: Made) -> list[Made]:
    """
    What each process has here, in their order; by way of the store that connects them.

    A collective would be between devices, of which processes may have been told different things.
    """
    if spec.devices == 1 or process_count() == 1:
        return [value]
    store, number, index = distributed.global_state.client, next(GATHERED), process_index()
    assert store is not None
    store.key_value_set_bytes(f"p3 {number} {index}", pickle.dumps(value))
    values = [
        pickle.loads(store.blocking_key_value_get_bytes(f"p3 {number} {process}", 1000 * PATIENCE))
        for process in range(process_count())
    ]
    if number > 0:
        store.key_value_delete(f"p3 {number - 1} {index}")  # which all have read who have come to this number
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


def lay_out(spec: TrainingSpec, shards: Mapping[int, Mapping[str, np.ndarray]]) -> dict[str, Array]:
    """The shards of this process's devices, as arrays that lie on all of them, each device's part after the other's."""
    if spec.devices == 1:
        return {name: jnp.asarray(values) for name, values in shards[0].items()}
    devices = mesh(spec)
    sharding = NamedSharding(devices, SHARED)
    parts: dict[str, list[Array]] = {}
    for number, shard in shards.items():
        for name, values in shard.items():
            parts.setdefault(name, []).append(jax.device_put(values, devices.devices[number]))
    return {
        name: jax.make_array_from_single_device_arrays((spec.devices * len(of_name[0]),), sharding, of_name)
        for name, of_name in parts.items()
    }


def replicate(spec: TrainingSpec, carry: Made) -> Made:
    """A carry as all devices take it: of NumPy's arrays JAX knows that each process has the same."""
    return carry if spec.devices == 1 else jax.tree.map(np.asarray, carry)


def on_each(spec: TrainingSpec, function: Callable[..., Made]) -> Callable[..., Made]:
    """A function of a carry, a shard and what steps are told, as a program that each device runs on its own shard."""
    if spec.devices == 1:
        return function
    specs = REPLICATED, SHARED, REPLICATED
    return jax.jit(jax.shard_map(function, mesh=mesh(spec), in_specs=specs, out_specs=REPLICATED))


def apart(spec: TrainingSpec, coefficients: Coefficients) -> Coefficients:
    """
    The coefficients as each device's own.

    The gradient of what all devices have in common is summed over them by `jax.grad`, number by number.
    """
    return coefficients if spec.devices == 1 else jax.lax.pcast(coefficients, AXIS, to="varying")


def total(spec: TrainingSpec, loss: Float[Array, ""], gradients: Coefficients) -> tuple[Float[Array, ""], Coefficients]:
    """
    The sums over all devices of each one's part of the loss, and of its gradients.

    A collective of the compiler's own, which the compiled loop calls without leaving it: five numbers at once, since
    what a collective takes is the time to meet.
    """
    if spec.devices == 1:
        return loss, gradients
    value, *sums = jax.lax.psum(jnp.stack([loss, *gradients.values()]), AXIS)
    return value, dict(zip(gradients, sums, strict=True))


@contextmanager
def watched(spec: TrainingSpec) -> Iterator[None]:
    """Turn what JAX says where a process is lost into a `LostProcessError`, which says which one it is."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason, said = str(error).partition("\n")[0], str(error).lower()
        if spec.devices == 1 or not any(word in said for word in ("gloo", "nccl", "coordination", "deadline")):
            raise
        raise LostProcessError(process_index(), process_count(), absent(), reason) from error


def absent() -> list[int]:
    """The processes that do not answer a roll call within `ROLL_CALL` seconds; the first keeps the book."""
    if process_count() == 2:  # there is no time to ask: JAX aborts this one at once where the first is the one lost
        return [1 - process_index()]
    client, until = distributed.global_state.client, monotonic() + ROLL_CALL
    missing = []
    try:
        assert client is not None
        client.key_value_set(f"p3 here {process_index()}", "", allow_overwrite=True)
    except Exception:  # the book is gone
        return [0]
    for process in range(process_count()):
        try:
            client.blocking_key_value_get(f"p3 here {process}", max(1, int(1000 * (until - monotonic()))))
        except Exception:
            missing.append(process)
    return missing
