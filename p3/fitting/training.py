"""The part of a fit that knows no framework: steps taken in pieces, watched and timed."""

import os
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64, Int

from p3.errors import DivergenceError, InputError
from p3.fitting.checkpoint import Checkpoint, Saved
from p3.fitting.data import count_points, digest_of_points
from p3.fitting.section import first_difference
from p3.fitting.spec import TrainingSpec

# Coefficients, and what the optimizer remembers of each, in the framework's own arrays.
Carry = TypeVar("Carry")
Progress = Callable[[int, float], None]
Coefficients = dict[str, float]
State = dict[str, dict[str, float]]

# Of each step: how many came before it, its learning rate, and the points that it sees if those are not all.
Steps = Mapping[str, Float[np.ndarray, "steps"] | Int[np.ndarray, "steps batch"]]

# What is recorded of each step: the loss before it, and, if the specification says `trace`, its learning rate, and by
# fours, for a to d, the coefficients before it, their gradients and their updates.
Record = Mapping[str, Float[np.ndarray, "steps *coefficients"]]
TRACES = ("learning_rate", "coefficients", "gradients", "updates")

# Seconds that a process waits for others before it ends: those that have ended it notices at once, and after this long
# those that are stopped, unreachable, or never come; and seconds in which it then finds out which ones they are.
PATIENCE = 60
ROLL_CALL = 5

EAGERLY = "jit = true, but the loop runs eagerly"


@runtime_checkable
class Piece(Protocol[Carry]):
    """Some steps in a row."""

    def __call__(self, carry: Carry, steps: Steps) -> tuple[Carry, Record]:
        """
        Make the steps; give the coefficients and the optimizer's state after the last, and what was recorded of each.

        Returns when all is computed, not before, so that it can be timed from outside.
        """


class Trained(NamedTuple):
    """Coefficients after the last update, what was recorded of each step, and the seconds that the steps took."""

    coefficients: Coefficients
    record: dict[str, Float64[np.ndarray, "steps *coefficients"]]
    seconds: float

    @property
    def traces(self) -> dict[str, Float64[np.ndarray, "steps *coefficients"]]:
        """The record without the losses."""
        return {name: values for name, values in self.record.items() if name != "losses"}


class Observation(NamedTuple):
    """What a framework makes of one step: the points that it sees, and what it computes of them."""

    x: Float64[np.ndarray, "points"]
    y: Float64[np.ndarray, "points"]
    prediction: Float64[np.ndarray, "points"]
    loss: float
    gradients: Coefficients


def piece_of(
    spec: TrainingSpec, learning_rates: Float64[np.ndarray, "steps"], first: int, length: int
) -> dict[str, np.ndarray]:
    """What the steps from `first` on are told, in the specification's dtype."""
    steps: dict[str, np.ndarray] = {
        "count": np.arange(first, first + length, dtype=spec.dtype),
        "learning_rate": learning_rates[first : first + length].astype(spec.dtype),
    }
    if spec.batch_size is not None:
        steps["batch"] = batches(spec, first, length)
    return steps


def blank_steps(spec: TrainingSpec, length: int, first: int = 0) -> dict[str, np.ndarray]:
    """Steps at a learning rate of 0, to compile for, or to look at."""
    return piece_of(spec, np.zeros(first + length), first, length)


def batches(spec: TrainingSpec, first: int, length: int) -> Int[np.ndarray, "steps batch"]:
    """
    The numbers of the points that some steps see, the same in every framework.

    Each time through, the points are shuffled anew and cut into batches; what does not fill one is left out. The
    shuffle of an epoch depends on the seed and its own number alone, so that any step can be the first.
    """
    assert spec.batch_size is not None
    points = count_points(spec)
    in_epoch = points // spec.batch_size
    rows = []
    epoch, orders = -1, np.empty((0, spec.batch_size), np.int32)
    for step in range(first, first + length):
        if step // in_epoch != epoch:
            epoch = step // in_epoch
            order = np.random.default_rng([spec.seed, epoch]).permutation(points)
            orders = order[: in_epoch * spec.batch_size].reshape(in_epoch, spec.batch_size).astype(np.int32)
        rows.append(orders[step % in_epoch])
    return np.stack(rows)


def piece_lengths(spec: TrainingSpec) -> list[int]:
    """How many steps the pieces take: log_every each, and what is left over at the end."""
    pieces, left_over = divmod(spec.steps, spec.log_every)
    return [spec.log_every] * (pieces > 0) + [left_over] * (left_over > 0)


def give_way() -> None:
    """
    Have a thread that wakes wait for the one that runs: Linux's policy for batches, of this thread and those it starts.

    A thread of Gloo's that wakes takes the core from the one that holds a lock, and spins for that lock as long as the
    scheduler lets it: of two processes with a core each, a sum of five numbers takes 2 ms in PyTorch and 4.5 ms in JAX,
    and 0.3 and 0.2 ms so.
    """
    if hasattr(os, "SCHED_BATCH") and os.sched_getscheduler(0) == os.SCHED_OTHER:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class Outset(NamedTuple):
    """
    Where a process of a fit begins.

    Attributes
    ----------
    spec : its specification
    points : the digest of their file
    saves : whether it has a checkpoint
    steps : those that are done
    """

    spec: TrainingSpec
    points: str
    saves: bool
    steps: int


def outset(spec: TrainingSpec, checkpoint: Checkpoint | None, saved: Saved | None) -> Outset:
    """Where this process begins. Raises `InputError` if there is no file of points."""
    points = digest_of_points(spec) if spec.devices > 1 else ""  # which takes to read it all
    return Outset(spec, points, checkpoint is not None, saved.steps if saved is not None else 0)


def whole_number(variable: str) -> int | None:
    """What an environment variable says, if it is there. Raises `InputError` if that is no whole number."""
    value = os.environ.get(variable)
    if value is None:
        return None
    if not value.isdecimal():
        raise InputError(f"{variable}={value}; give a whole number")
    return int(value)


def require_same(processes: Sequence[Outset]) -> None:
    """
    Require of the processes of a fit that they go on with the same specification and points from the same step.

    Raises
    ------
    InputError
        They do not.
    """
    spec, points, saves, steps = processes[0]
    for process, (their_spec, their_points, their_saves, their_steps) in enumerate(processes):
        difference = first_difference(spec, their_spec, ignoring=())
        if difference is not None:
            field, ours, theirs = difference
            raise InputError(f"{field} is {ours} in process 0 and {theirs} in process {process}; give all of them one")
        if points != their_points:
            file = getattr(spec.data, "file", None)
            raise InputError(f"{file} has other points in process {process} than in process 0; give all of them one")
        if saves != their_saves:
            one, other = (0, process) if saves else (process, 0)
            raise InputError(f"process {one} has a checkpoint and process {other} has none; give all of them the same")
        if steps != their_steps:
            raise InputError(
                f"the checkpoint has {steps} steps in process 0 and {their_steps} in process {process}; "
                "give a directory that all of them see"
            )


def train(
    spec: TrainingSpec,
    piece: Piece[Carry],
    carry: Carry,
    learning_rates: Float64[np.ndarray, "steps"],
    to_floats: Callable[[Carry], tuple[Coefficients, State]],
    progress: Progress | None,
    checkpoint: Checkpoint | None = None,
    saved: Saved | None = None,
) -> Trained:
    """
    Take all the steps of the specification, in pieces, and call `progress(step, loss)` after each piece.

    Each piece is saved to the checkpoint before that; those that were saved are not taken again.

    Raises
    ------
    DivergenceError
        A loss, or a coefficient after the last update, is not finite.
    """
    record: dict[str, np.ndarray] = {}
    seconds, done = 0.0, 0
    if saved is not None:
        done = saved.steps
        for name, values in saved.record.items():
            record[name] = np.empty((spec.steps, *values.shape[1:]))
            record[name][:done] = values
    for first in range(done, spec.steps, spec.log_every):
        length = min(spec.log_every, spec.steps - first)
        steps = piece_of(spec, learning_rates, first, length)
        begin = perf_counter()
        carry, recorded = piece(carry, steps)
        seconds += perf_counter() - begin
        losses = recorded["losses"]
        finite = np.isfinite(losses)
        if not finite.all():
            diverged = int(np.argmin(finite))
            raise DivergenceError(first + diverged, float(losses[diverged]), float(learning_rates[first + diverged]))
        for name, values in recorded.items():
            record.setdefault(name, np.empty((spec.steps, *values.shape[1:])))[first : first + length] = values
        if checkpoint is not None:
            checkpoint.write(spec, first, *to_floats(carry), recorded)
        if progress is not None:
            progress(first + length - 1, float(losses[-1]))
    coefficients, _ = to_floats(carry)
    if not np.isfinite(list(coefficients.values())).all():
        raise DivergenceError(spec.steps - 1, float(record["losses"][-1]), float(learning_rates[-1]))
    return Trained(coefficients, record, seconds)
