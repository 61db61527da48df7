"""
Where two runs of one specification part by more than rounding, and why.

Each run is held, step by step, against what should come of its own numbers: the loss and the gradients against the
chain rule by hand at its own coefficients, its updates against what the other framework's optimizer makes of its own
gradients. So what a step does wrong shows in that step, however far rounding has carried the runs apart by then.
"""

from collections.abc import Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

from p3.backends import BACKENDS, load
from p3.fitting.data import Points, make_points
from p3.fitting.exact import chain
from p3.fitting.result import FitResult
from p3.fitting.training import batches
from p3.tolerance import LEARNING_RATE, STEP_GRADIENT, STEP_LOSS, UPDATE

Quantity = Literal["data", "prediction", "loss", "gradient", "learning rate", "update", "coefficient"]
Kind = Literal["semantic", "rounding", "not reproduced"]
ORDER: tuple[Quantity, ...] = ("data", "prediction", "loss", "gradient", "learning rate", "update", "coefficient")
BLOCK = 2**20  # points of all steps that are looked at together


class Divergence(NamedTuple):
    """
    The first thing that differs by more than rounding.

    Attributes
    ----------
    step : counted from 0
    quantity : the first in the order in which a step computes them
    part : the coefficient whose gradient or update it is, or ""
    side : whose it is, of two that differ alike the first
    got, expected : its value, and what it should be by `against`
    against : for people
    epsilons : how far they are apart, in epsilons of the dtype and of the size that the tolerance names
    tolerance : how many are allowed
    kind : "semantic" if it is there in float64 too, "rounding" if not, and "not reproduced" if it is too large for that
    """

    step: int
    quantity: Quantity
    part: str
    side: str
    got: float
    expected: float
    against: str
    epsilons: float
    tolerance: float
    kind: Kind

    def __str__(self) -> str:
        """One sentence."""
        what = f"{self.quantity} of {self.part}" if self.part else self.quantity
        return (
            f"{self.kind}: at step {self.step} {self.side}'s {what} is {self.got:.17g}, and by {self.against} "
            f"{self.expected:.17g}: {self.epsilons:.3g} epsilons apart, where rounding explains {self.tolerance:g}"
        )


class Held(NamedTuple):
    """One quantity of a run at every step, and what it is held against; each with a column a part."""

    quantity: Quantity
    parts: tuple[str, ...]
    side: str
    against: str
    got: Float64[np.ndarray, "steps parts"]
    expected: Float64[np.ndarray, "steps parts"]
    size: Float64[np.ndarray, "steps parts"]
    tolerance: float

    def epsilons(self, dtype: str) -> Float64[np.ndarray, "steps parts"]:
        """How far they are apart; infinite where one is not finite."""
        with np.errstate(invalid="ignore", divide="ignore"):
            apart = np.abs(self.got - self.expected) / (np.finfo(dtype).eps * self.size)
        equal = (self.got == self.expected) | (self.size == np.inf)
        return np.where(equal, 0.0, np.nan_to_num(apart, nan=np.inf, posinf=np.inf))

    def beyond(self, dtype: str) -> Bool[np.ndarray, "steps"]:
        """The steps at which that is more than rounding explains."""
        return np.asarray((self.epsilons(dtype) > self.tolerance).any(axis=1))


def first_divergence(a: FitResult, b: FitResult) -> Divergence | None:
    """
    The first step, and the first quantity in it, that differs by more than rounding; None where none does.

    Both results need traces, and both frameworks must be there.
    """
    found = find(a, b)
    if found is None or a.spec.dtype == "float64":
        return found
    again = find(*(load(side.backend).fit(side.spec.replace({"dtype": "float64"})) for side in (a, b)))
    if again is not None and again.quantity == found.quantity:
        return found
    return found._replace(kind="rounding" if found.epsilons <= 16 * found.tolerance else "not reproduced")


def find(a: FitResult, b: FitResult) -> Divergence | None:
    """The same, taken for semantic."""
    dtype = a.spec.dtype
    first: tuple[int, int, Held] | None = None
    for held in all_held(a, b):
        beyond = held.beyond(dtype)
        if beyond.any():
            place = int(np.argmax(beyond)), ORDER.index(held.quantity)
            if first is None or place < first[:2]:
                first = *place, held
    if first is None:
        return None
    step, _, held = first
    if held.quantity in ("loss", "gradient"):
        result = next(side for side in (a, b) if title(side) == held.side)
        held = next((closer for closer in observed(result, step) if closer.beyond(dtype).any()), held)
    row = step if len(held.got) > 1 else 0
    part = int(np.argmax(held.epsilons(dtype)[row]))
    return Divergence(
        step=step,
        quantity=held.quantity,
        part=held.parts[part],
        side=held.side,
        got=float(held.got[row, part]),
        expected=float(held.expected[row, part]),
        against=held.against,
        epsilons=float(held.epsilons(dtype)[row, part]),
        tolerance=held.tolerance,
        kind="semantic",
    )


def title(result: FitResult) -> str:
    """The framework's name."""
    return BACKENDS[result.backend].title


def all_held(a: FitResult, b: FitResult) -> Iterator[Held]:
    """Everything that is held against something."""
    for result, other in ((a, b), (b, a)):
        yield from losses_and_gradients(result)
        yield learning_rates(result, other)
        yield updates(result, other)
        yield coefficients(result)
        yield start(result)


def losses_and_gradients(result: FitResult) -> Iterator[Held]:
    """√loss and the gradients, against the chain rule by hand at the run's own coefficients."""
    spec, points = result.spec, make_points(result.spec)
    length = max(1, BLOCK // (spec.batch_size or len(points.x)))
    losses, residuals, gradients, sizes = [], [], [], []
    for first in range(0, spec.steps, length):
        rows = result.traces["coefficients"][first : first + length]
        seen = points
        if spec.batch_size is not None:
            order = batches(spec, first, len(rows))
            seen = Points(points.x[order], points.y[order])
        by_hand = chain(dict(zip("abcd", rows.T, strict=True)), seen)
        losses.append(np.sqrt((by_hand.residual**2).sum(axis=-1)))
        residuals.append(np.sqrt(((by_hand.sizes["a"] / 2) ** 2).sum(axis=-1)))
        gradients.append(np.stack([terms.sum(axis=-1) for terms in by_hand.terms.values()], axis=-1))
        sizes.append(np.stack([terms.sum(axis=-1) for terms in by_hand.sizes.values()], axis=-1))
    by = "the chain rule by hand"
    root = np.sqrt(result.losses)[:, None]
    expected, size = (np.concatenate(parts).astype(np.float64)[:, None] for parts in (losses, residuals))
    yield Held("loss", ("",), title(result), f"{by}, √ of both,", root, expected, size, STEP_LOSS.epsilons)
    yield Held(
        "gradient",
        tuple("abcd"),
        title(result),
        by,
        result.traces["gradients"],
        np.concatenate(gradients).astype(np.float64),
        np.concatenate(sizes).astype(np.float64),
        STEP_GRADIENT.epsilons,
    )


def learning_rates(result: FitResult, other: FitResult) -> Held:
    """The learning rate, against the other framework's."""
    got, expected = (side.traces["learning_rate"][:, None] for side in (result, other))
    steps = np.arange(len(got))[:, None] * (np.finfo("float64").eps / np.finfo(result.spec.dtype).eps)
    size = max(got.max(), expected.max()) * (1 + steps / 4)
    return Held("learning rate", ("",), title(result), title(other), got, expected, size, LEARNING_RATE.epsilons)


def updates(result: FitResult, other: FitResult) -> Held:
    """The updates, against what the other framework's optimizer makes of the same gradients."""
    traces, spec = result.traces, result.spec
    coarse, fine = (
        np.stack([load(side.backend).replay(spec.replace({"dtype": dtype}), traces) for side in (result, other)])
        for dtype in ("float32", "float64")
    )
    expected = (coarse if spec.dtype == "float32" else fine)[1]
    # Of some rules rounding makes more than epsilons, as where 1 − beta2 is small: as many of them in both dtypes.
    with np.errstate(invalid="ignore"):
        conditioned = np.abs(expected) + np.abs(coarse - fine).max(axis=0) / np.finfo("float32").eps
    size = np.abs(traces["coefficients"]) + np.fmax.accumulate(conditioned)
    # A step that float32 cannot make, as by the variance of equal gradients, is one of which nothing is known.
    size[np.isnan(conditioned)] = np.inf
    by = f"{title(other)}'s optimizer of the same gradients"
    return Held("update", tuple("abcd"), title(result), by, traces["updates"], expected, size, UPDATE.epsilons)


def coefficients(result: FitResult) -> Held:
    """The coefficients after each update, against those before it and the update."""
    before, update = result.traces["coefficients"], result.traces["updates"]
    after = np.vstack([before[1:], list(result.coefficients.values())])
    by = "the one before and its update"
    return Held(
        "coefficient", tuple("abcd"), title(result), by, after, before + update, np.abs(before) + np.abs(update), 1
    )


def start(result: FitResult) -> Held:
    """The coefficients before the first step, against the specification's."""
    before = result.traces["coefficients"][:1]
    expected = np.array([list(result.spec.start.model_dump().values())], result.spec.dtype).astype(np.float64)
    by = "the specification's start"
    return Held("coefficient", tuple("abcd"), title(result), by, before, expected, np.abs(expected), 1)


def observed(result: FitResult, step: int) -> Iterator[Held]:
    """The data and the predictions of a step as the framework has them now, at the coefficients of the run."""
    spec, points = result.spec, make_points(result.spec)
    at: Mapping[str, float] = dict(zip("abcd", result.traces["coefficients"][step].tolist(), strict=True))
    seen = load(result.backend).observe(spec, step, at)
    if spec.batch_size is not None:
        order = batches(spec, step, 1)[0]
        points = Points(points.x[order], points.y[order])
    pairs = ((seen.x, points.x), (seen.y, points.y))
    got, expected = (np.concatenate(side).astype(np.float64)[None] for side in zip(*pairs, strict=True))
    names = tuple(f"{name}[{i}]" for name in "xy" for i in range(len(points.x)))
    yield Held("data", names, title(result), "the specification", got, expected, np.abs(expected), 0)
    by_hand = chain(at, points)
    yield Held(
        "prediction",
        tuple(f"point {i}" for i in range(len(points.x))),
        title(result),
        "the model by hand",
        seen.prediction[None],
        by_hand.prediction.astype(np.float64)[None],
        (by_hand.sizes["a"] / 2).astype(np.float64)[None],
        STEP_GRADIENT.epsilons,
    )
