"""
The first step where two runs of one specification differ by more than rounding, and the quantity that differs.

Each run is checked, step by step, against what its own numbers imply: the loss and the gradients against the chain rule
by hand at its own coefficients, its updates against the other framework's optimizer at its own gradients. A bug
therefore shows in its first step, however far accumulated rounding has driven the runs apart by then.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from p3.backends import BACKENDS, load
from p3.fitting.data import Points, make_points
from p3.fitting.exact import chain
from p3.fitting.result import FitResult
from p3.fitting.training import batches
from p3.parity.difference import Difference, Kind
from p3.parity.mismatch import Pair, climb, explain
from p3.tolerance import LEARNING_RATE, STEP_COEFFICIENT, STEP_DATA, STEP_GRADIENT, STEP_LOSS, UPDATE

ORDER = ("data", "prediction", "loss", "gradient", "learning rate", "update", "coefficient")  # in which a step computes
BLOCK = 2**20  # points of all steps that are computed together


class Measured(NamedTuple):
    """
    A quantity of a run, and what it should be.

    Attributes
    ----------
    quantity : one of `ORDER`
    paths : what each column is of: a coefficient, or an element of the data or of the prediction; "" of a single number
    against : what the expected values are by, for people
    pair : arrays with a row a step and a column a path; with one row where the quantity is measured at one step only
    """

    quantity: str
    paths: tuple[str, ...]
    against: str
    pair: Pair

    def at(self, step: int) -> Pair:
        """The row of a step."""
        pair = self.pair
        row = step if len(pair.got) > 1 else 0
        return pair._replace(got=pair.got[row], expected=pair.expected[row], size=pair.size[row])


class Found(NamedTuple):
    """A quantity that differs by more than rounding, the first step where it does, and of which of two runs it is."""

    step: int
    run: int
    measured: Measured


def first_divergence(a: FitResult, b: FitResult) -> Difference | None:
    """
    The first step, and the first quantity in it, that differs by more than rounding; None where none does.

    Both results need traces, and both frameworks must be installed.
    """
    found = find(a, b)
    if found is None:
        return None
    result, measured, row = (a, b)[found.run], found.measured, found.measured.at(found.step)
    dtype = result.spec.dtype
    worst = climb({dtype: row})
    assert worst is not None
    return Difference(
        side=title(result),
        check="training",
        mode="compiled" if result.compiled else "eager",
        quantity=measured.quantity,
        path=measured.paths[worst.element[0]],
        kind=worst.kind if dtype == "float64" else kind_in_float64(a, b, found),
        got=worst.got,
        expected=worst.expected,
        epsilons=worst.epsilons,
        explanation=explain(row.got, row.expected, {}),
        against=measured.against,
        tolerance=worst.tolerance,
        step=found.step,
    )


def kind_in_float64(a: FitResult, b: FitResult, found: Found) -> Kind:
    """What a difference of float32 is by the precision ladder, from the same quantity of the same runs in float64."""
    again = [load(side.backend).fit(side.spec.replace({"dtype": "float64"})) for side in (a, b)]
    result, other = again[found.run], again[1 - found.run]
    measured = (*measure(result, other), *observe(result, found.step))
    double = next(each.pair for each in measured if each[:-1] == found.measured[:-1])  # the same but for the numbers
    mismatch = climb({"float32": found.measured.at(found.step), "float64": double})
    assert mismatch is not None
    if mismatch.kind == "semantic" and not double.beyond("float64").any():
        return "not reproduced"
    return mismatch.kind


def find(a: FitResult, b: FitResult) -> Found | None:
    """The first step, and the first quantity in it, beyond the tolerance; of the first run if it is so in both."""
    dtype = a.spec.dtype
    differing = [
        Found(int(np.argmax(beyond)), run, measured)
        for run, (result, other) in enumerate(((a, b), (b, a)))
        for measured in measure(result, other)
        if (beyond := measured.pair.beyond(dtype).any(axis=1)).any()
    ]
    if not differing:
        return None
    first = min(differing, key=lambda found: (found.step, ORDER.index(found.measured.quantity)))
    if first.measured.quantity in ("loss", "gradient"):
        for closer in observe((a, b)[first.run], first.step):
            if closer.pair.beyond(dtype).any():
                return first._replace(measured=closer)
    return first


def title(result: FitResult) -> str:
    """The framework's name."""
    return BACKENDS[result.backend].title


def measure(result: FitResult, other: FitResult) -> Iterator[Measured]:
    """Everything that is recorded of a run, at every step."""
    yield from losses_and_gradients(result)
    yield learning_rates(result, other)
    yield updates(result, other)
    yield coefficients(result)
    yield start(result)


def losses_and_gradients(result: FitResult) -> Iterator[Measured]:
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
    yield Measured("loss", ("",), f"{by}, √ of both,", Pair(root, expected, size, tolerance=STEP_LOSS))
    expected, size = (np.concatenate(parts).astype(np.float64) for parts in (gradients, sizes))
    got = result.traces["gradients"]
    yield Measured("gradient", tuple("abcd"), by, Pair(got, expected, size, tolerance=STEP_GRADIENT))


def learning_rates(result: FitResult, other: FitResult) -> Measured:
    """The learning rate, against the other framework's."""
    got, expected = (side.traces["learning_rate"][:, None] for side in (result, other))
    steps = np.arange(len(got))[:, None] * (np.finfo("float64").eps / np.finfo(result.spec.dtype).eps)
    size = max(got.max(), expected.max()) * (1 + steps / 4)
    return Measured("learning rate", ("",), title(other), Pair(got, expected, size, tolerance=LEARNING_RATE))


def updates(result: FitResult, other: FitResult) -> Measured:
    """The updates, against those of the other framework's optimizer at the same gradients."""
    traces, spec = result.traces, result.spec
    coarse, fine = (
        np.stack([load(side.backend).replay(spec.replace({"dtype": dtype}), traces) for side in (result, other)])
        for dtype in ("float32", "float64")
    )
    got, expected = traces["updates"], (coarse if spec.dtype == "float32" else fine)[1]
    # Some rules amplify rounding, as where 1 − beta2 is small: by about as many epsilons in one dtype as in the other.
    with np.errstate(invalid="ignore"):
        conditioned = np.abs(expected) + np.abs(coarse - fine).max(axis=0) / np.finfo("float32").eps
    # Of a step that float32 cannot compute, as where the variance of equal gradients is negative, nothing is known.
    known = np.isfinite(conditioned)
    size = np.abs(traces["coefficients"]) + np.fmax.accumulate(np.where(known, conditioned, np.nan))
    return Measured(
        "update",
        tuple("abcd"),
        f"{title(other)}'s optimizer of the same gradients",
        Pair(got, np.where(known, expected, got), size, tolerance=UPDATE),
    )


def coefficients(result: FitResult) -> Measured:
    """The coefficients after each update, against those before it and the update."""
    before, update = result.traces["coefficients"], result.traces["updates"]
    after = np.vstack([before[1:], list(result.coefficients.values())])
    pair = Pair(after, before + update, np.abs(before) + np.abs(update), tolerance=STEP_COEFFICIENT)
    return Measured("coefficient", tuple("abcd"), "the one before and its update", pair)


def start(result: FitResult) -> Measured:
    """The coefficients before the first step, against the specification's."""
    before = result.traces["coefficients"][:1]
    expected = np.array([list(result.spec.start.model_dump().values())], result.spec.dtype).astype(np.float64)
    pair = Pair(before, expected, np.abs(expected), tolerance=STEP_COEFFICIENT)
    return Measured("coefficient", tuple("abcd"), "the specification's start", pair)


def observe(result: FitResult, step: int) -> Iterator[Measured]:
    """The data and the predictions of a step as the framework computes them now, at the coefficients of the run."""
    spec, points = result.spec, make_points(result.spec)
    at: Mapping[str, float] = dict(zip("abcd", result.traces["coefficients"][step].tolist(), strict=True))
    seen = load(result.backend).observe(spec, step, at)
    if spec.batch_size is not None:
        order = batches(spec, step, 1)[0]
        points = Points(points.x[order], points.y[order])
    pairs = ((seen.x, points.x), (seen.y, points.y))
    got, expected = (np.concatenate(side).astype(np.float64)[None] for side in zip(*pairs, strict=True))
    numbers = range(len(points.x))
    names = tuple(f"{name}[{i}]" for name in "xy" for i in numbers)
    pair = Pair(got, expected, np.abs(expected), tolerance=STEP_DATA)
    yield Measured("data", names, "the specification", pair)
    by_hand = chain(at, points)
    expected, size = (each.astype(np.float64)[None] for each in (by_hand.prediction, by_hand.sizes["a"] / 2))
    pair = Pair(seen.prediction[None], expected, size, tolerance=STEP_GRADIENT)
    yield Measured("prediction", tuple(f"prediction[{i}]" for i in numbers), "the model by hand", pair)
