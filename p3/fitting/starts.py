"""Many fits of one specification at once, from random starts."""

from collections.abc import Callable
from typing import Self

import numpy as np
from jaxtyping import Bool, Float64
from pydantic import model_validator

from p3.errors import InputError
from p3.fitting.data import Points, make_points
from p3.fitting.exact import P3
from p3.fitting.result import Numbers, Run, closing_line
from p3.fitting.spec import TrainingSpec
from p3.fitting.training import Carry, Piece, piece_of
from p3.tolerance import CONVERGED

# How many fits are done, and the least loss among them.
StartsProgress = Callable[[float, float], None]

# So many numbers has an array of starts by points at most: memory stays bounded however many the starts are, and near
# the processor. Of the tutorial's 2000 points, it is 512 starts at once.
CHUNK = 2**20


class StartsResult(Run):
    """
    What the fits from many starts came to.

    Attributes
    ----------
    starts : float64, shape (starts, 4): a to d before the first update
    coefficients : float64, shape (starts, 4): a to d after the last update, not finite where a fit diverged
    losses : float64, shape (starts,): of these coefficients, over all points, in float64; infinite where a fit diverged
    backend, spec, device, compiled, seconds, versions : as in `Run`
    """

    SAVED = "a saved fit of many starts"

    starts: Numbers
    coefficients: Numbers
    losses: Numbers

    @model_validator(mode="after")
    def _complete(self) -> Self:
        count = self.losses.size
        shapes = [self.starts.shape, self.coefficients.shape, self.losses.shape]
        if not count or shapes != [(count, 4), (count, 4), (count,)]:
            raise ValueError("starts and coefficients must hold four numbers for each loss, and there must be one")
        return self

    @property
    def diverged(self) -> Bool[np.ndarray, "starts"]:
        """Which fits left the finite numbers, as those for which `fit` raises `DivergenceError`."""
        return np.asarray(self.losses == np.inf)

    @property
    def best(self) -> int | None:
        """The fit of the least loss; None where all diverged."""
        return None if self.diverged.all() else int(np.argmin(self.losses))

    @property
    def converged(self) -> Bool[np.ndarray, "starts"]:
        """Which fits explain as much of the variance of y as the best one, within `CONVERGED`."""
        y = make_points(self.spec).y.astype(np.float64)
        short = CONVERGED.value * np.sum((y - y.mean()) ** 2)
        return np.asarray(~self.diverged & (self.losses <= self.losses.min() + short))

    def __str__(self) -> str:
        """How many fits came to the best one, and the tutorial's closing line of it."""
        count = self.losses.size
        if self.best is None:
            rate = self.spec.optimizer.learning_rate
            return f"{count} starts: all diverged; try a learning rate below {rate:g}, or starts nearer to the answer"
        converged, diverged = int(self.converged.sum()), int(self.diverged.sum())
        start = ", ".join(f"{name} = {value:.6g}" for name, value in zip("abcd", self.starts[self.best], strict=True))
        return (
            f"{count} starts: {converged} came to the best fit, {count - converged - diverged} ended elsewhere, "
            f"{diverged} diverged\n"
            f"Best: loss {self.losses[self.best]}, from {start}\n"
            f"{closing_line(*self.coefficients[self.best].tolist())}"
        )


def random_starts(spec: TrainingSpec, count: int, spread: float = 1.0) -> Float64[np.ndarray, "starts 4"]:
    """
    Starts around the specification's own, each coefficient uniformly up to `spread` from it.

    By NumPy's generator and the specification's seed, so that they are the same in every framework; the first of many
    are the same as of few.
    """
    middle = list(spec.start.model_dump().values())
    return np.add(middle, spread * np.random.default_rng(spec.seed).uniform(-1, 1, (count, 4)))


def require_one_device(spec: TrainingSpec) -> None:
    """Raise `InputError` where devices are to share the points, which one fit does, and many at once do not."""
    if spec.devices > 1:
        raise InputError(
            f"devices = {spec.devices}, and many fits at once are by one device, in one process; leave devices out"
        )


def chunk_size(spec: TrainingSpec, count: int) -> int:
    """How many starts are fitted at a time: a power of two, so that few programs do for all counts."""
    most = max(1, CHUNK // len(make_points(spec).x))
    return min(1 << (count - 1).bit_length(), 1 << (most.bit_length() - 1))


def train_starts(
    spec: TrainingSpec,
    piece: Piece[Carry],
    begin: Callable[[Float64[np.ndarray, "chunk 4"]], Carry],
    end: Callable[[Carry], Float64[np.ndarray, "chunk 4"]],
    starts: Float64[np.ndarray, "starts 4"],
    learning_rates: Float64[np.ndarray, "steps"],
    progress: StartsProgress | None,
) -> tuple[Float64[np.ndarray, "starts 4"], Float64[np.ndarray, "starts"]]:
    """
    Take all the steps from all the starts, in chunks of starts and pieces of steps; give coefficients and losses.

    A fit that leaves the finite numbers takes its steps with the others, and has an infinite loss in the end.
    """
    points, size = make_points(spec), chunk_size(spec, len(starts))
    coefficients, losses = np.empty_like(starts), np.empty(len(starts))
    for first in range(0, len(starts), size):
        chunk = starts[first : first + size]
        carry = begin(np.resize(chunk, (size, 4)))  # the last chunk is filled up with the first of them
        finite = np.ones(size, bool)
        for step in range(0, spec.steps, spec.log_every):
            length = min(spec.log_every, spec.steps - step)
            carry, recorded = piece(carry, piece_of(spec, learning_rates, step, length))
            finite &= np.isfinite(recorded["losses"]).all(axis=0)
            if progress is not None:
                progress(first + len(chunk) * (step + length) / spec.steps, losses[:first].min(initial=np.inf))
        these = slice(first, first + len(chunk))
        coefficients[these] = end(carry)[: len(chunk)]
        finite = finite[: len(chunk)] & np.isfinite(coefficients[these]).all(axis=1)
        losses[these] = np.where(finite, losses_of(coefficients[these], points), np.inf)
    return coefficients, losses


def losses_of(coefficients: Float64[np.ndarray, "chunk 4"], points: Points) -> Float64[np.ndarray, "chunk"]:
    """The sum of the squared residuals of each, in float64."""
    a, b, c, d = coefficients.T[..., None]
    with np.errstate(all="ignore"):  # of fits that diverged
        return np.asarray(np.sum((a + b * P3(c + d * points.x) - points.y) ** 2, axis=1))
