"""The part of a fit that knows no framework: steps taken in pieces, watched and timed."""

from collections.abc import Callable, Mapping
from time import perf_counter
from typing import NamedTuple, Protocol, SupportsFloat, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Float64

from p3.errors import DivergenceError
from p3.spec import TrainingSpec

# In the framework's own arrays.
Coefficients = TypeVar("Coefficients", bound=Mapping[str, SupportsFloat])
Progress = Callable[[int, float], None]

EAGERLY = "jit = true, but the loop runs eagerly"


@runtime_checkable
class Piece(Protocol[Coefficients]):
    """Some steps in a row."""

    def __call__(
        self, coefficients: Coefficients, learning_rates: Float[np.ndarray, "steps"]
    ) -> tuple[Coefficients, Float[np.ndarray, "steps"]]:
        """
        Make one update for each learning rate; give the coefficients after the last, and the loss before each.

        Returns when both are computed, not before, so that it can be timed from outside.
        """


class Trained(NamedTuple):
    """Coefficients after the last update, the loss before each, and the seconds that the steps took."""

    coefficients: dict[str, float]
    losses: Float64[np.ndarray, "steps"]
    seconds: float


def learning_rates(spec: TrainingSpec, steps: int) -> Float[np.ndarray, "steps"]:
    """The learning rate of each of the next steps, in the specification's dtype."""
    return np.full(steps, spec.optimizer.learning_rate, spec.dtype)


def piece_lengths(spec: TrainingSpec) -> list[int]:
    """How many steps the pieces take: log_every each, and what is left over at the end. One compilation each."""
    pieces, left_over = divmod(spec.steps, spec.log_every)
    return [spec.log_every] * (pieces > 0) + [left_over] * (left_over > 0)


def train(
    spec: TrainingSpec, piece: Piece[Coefficients], coefficients: Coefficients, progress: Progress | None
) -> Trained:
    """
    Take all the steps of the specification, in pieces, and call `progress(step, loss)` after each piece.

    Raises
    ------
    DivergenceError
        A loss, or a coefficient after the last update, is not finite.
    """
    losses = np.empty(spec.steps)
    seconds = 0.0
    for first in range(0, spec.steps, spec.log_every):
        rates = learning_rates(spec, min(spec.log_every, spec.steps - first))
        begin = perf_counter()
        coefficients, piece_losses = piece(coefficients, rates)
        seconds += perf_counter() - begin
        finite = np.isfinite(piece_losses)
        if not finite.all():
            diverged = int(np.argmin(finite))
            raise DivergenceError(first + diverged, float(piece_losses[diverged]), spec.optimizer.learning_rate)
        losses[first : first + len(rates)] = piece_losses
        if progress is not None:
            progress(first + len(rates) - 1, float(piece_losses[-1]))
    final = {name: float(value) for name, value in coefficients.items()}
    if not np.isfinite(list(final.values())).all():
        raise DivergenceError(spec.steps - 1, float(losses[-1]), spec.optimizer.learning_rate)
    return Trained(final, losses, seconds)
