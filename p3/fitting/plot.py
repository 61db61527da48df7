"""Pictures of a comparison, and of fits from many starts."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from p3.backends import BACKENDS
from p3.fitting.comparison import Comparison
from p3.fitting.data import make_points
from p3.fitting.divergence import measure
from p3.fitting.exact import P3, best_fit
from p3.fitting.result import FitResult
from p3.fitting.spec import FileData
from p3.fitting.starts import StartsResult
from p3.parity.mismatch import in_epsilons

# Two colours that also differ in grey, and for the colour-blind (Okabe and Ito).
COLOURS = {"torch": "#D55E00", "jax": "#0072B2"}


def predict(result: FitResult, x: np.ndarray) -> np.ndarray:
    """ŷ = a + b · P3(c + d·x) of the fitted coefficients, in float64."""
    a, b, c, d = (result.coefficients[name] for name in "abcd")
    return np.asarray(a + b * P3(c + d * x))


def draw_fit(axes: Axes, comparison: Comparison) -> None:
    """The points and both fitted curves."""
    data = comparison.a.spec.data
    x, y = make_points(comparison.a.spec.replace({"dtype": "float64"}))
    if isinstance(data, FileData):
        x, y = x[order := np.argsort(x)], y[order]
        axes.plot(x, y, "o", color="0.75", markersize=4, label=f"{data.y} of {data.file}")
    else:
        axes.plot(x, y, color="0.75", linewidth=5, label=f"y = {data.target} x")
    for result, style in ((comparison.a, "-"), (comparison.b, "--")):
        axes.plot(
            x,
            predict(result, x),
            style,
            color=COLOURS[result.backend],
            label=f"{BACKENDS[result.backend].title}, loss {result.losses[-1]:.4g}",
        )
    axes.set(xlabel="x", title="a + b P3(c + d x), fitted")
    axes.legend()


def draw_losses(axes: Axes, comparison: Comparison) -> None:
    """Both losses before each step, and the least loss possible."""
    for result, style in ((comparison.a, "-"), (comparison.b, "--")):
        axes.semilogy(result.losses, style, color=COLOURS[result.backend], label=BACKENDS[result.backend].title)
    axes.axhline(comparison.best.loss, color="0.6", linewidth=1, label=f"best possible, {comparison.best.loss:.4g}")
    axes.set(xlabel="step", title="loss")
    axes.legend()


def draw_differences(axes: Axes, comparison: Comparison) -> None:
    """The relative difference of the losses before each step, in the dtype's epsilons."""
    a, b = comparison.a.losses, comparison.b.losses
    epsilons = in_epsilons(a, b, np.maximum(a, b), comparison.dtype)
    axes.semilogy(np.where(epsilons > 0, epsilons, np.nan), ".", markersize=2, color="0.3")
    equal = int((epsilons == 0).sum())
    axes.set(
        xlabel="step",
        title=f"difference of the losses, in {comparison.dtype} epsilons\n(not drawn: {equal} steps with none)",
    )


def draw_traces(row: Sequence[Axes], comparison: Comparison, name: str) -> None:
    """The gradients, or the coefficients, step by step."""
    for column, (axes, coefficient) in enumerate(zip(row, "abcd", strict=True)):
        for (title, result), style in zip(comparison.sides, ("-", "--"), strict=True):
            values = result.traces[name][:, column]
            axes.plot(values, style, color=COLOURS[result.backend], label=title)
        axes.set(xlabel="step", title=f"∂loss/∂{coefficient}" if name == "gradients" else coefficient)
        axes.grid(alpha=0.3)


def plot_comparison(comparison: Comparison) -> Figure:
    """The fit, the losses and their difference, side by side."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    draw_comparison(figure.subplots(1, 3), comparison)
    return figure


def draw_comparison(row: Sequence[Axes], comparison: Comparison) -> None:
    """The same in a row of some figure."""
    for axes, draw in zip(row, (draw_fit, draw_losses, draw_differences), strict=True):
        draw(axes, comparison)
        axes.grid(alpha=0.3)


def plot_traces(comparison: Comparison) -> Figure:
    """The gradient and the value of each coefficient, step by step."""
    figure = Figure(figsize=(15, 6), layout="constrained")
    for row, name in zip(figure.subplots(2, 4), ("gradients", "coefficients"), strict=True):
        draw_traces(row, comparison, name)
    return figure


def plot_all(comparison: Comparison) -> Figure:
    """The fit, the losses and their difference, and below them the gradients, if they were recorded."""
    if not comparison.is_traced:
        return plot_comparison(comparison)
    figure = Figure(figsize=(15, 7.5), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(3, 2))[:, 0]
    draw_comparison(above.subplots(1, 3), comparison)
    draw_traces(below.subplots(1, 4), comparison, "gradients")
    return figure


def plot_rounding(comparison: Comparison) -> Figure:
    """Each quantity's distance from what it should be, as a part of what rounding explains."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    axes = figure.subplots()
    for (title, result), (_, other) in (comparison.sides, comparison.sides[::-1]):
        for quantity, _, _, pair in measure(result, other):
            part = pair.epsilons(comparison.dtype).max(axis=1) / pair.tolerance.epsilons
            axes.semilogy(np.where(part > 0, part, np.nan), ".", markersize=3, label=f"{quantity}, {title}")
    axes.axhline(1, color="0.3", linewidth=1, label="as much as rounding explains")
    axes.set(xlabel="step", title="difference, in parts of the tolerance (not drawn: steps with none)")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), markerscale=4)
    axes.grid(alpha=0.3)
    return figure


def plot_basin(result: StartsResult) -> Figure:
    """Where the fits from many starts came to: over the starts' c and d, and by their losses."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    over_c_and_d, by_loss = figure.subplots(1, 2)
    ends = {
        "diverged": (result.diverged, "0.8"),
        "ended elsewhere": (~result.converged & ~result.diverged, COLOURS["torch"]),
        "came to the best fit": (result.converged, COLOURS["jax"]),
    }
    size = np.clip(4e4 / len(result.losses), 1, 30)
    for name, (these, colour) in ends.items():
        label = f"{name}: {these.sum()}"
        over_c_and_d.scatter(*result.starts[these, 2:].T, s=size, color=colour, label=label, linewidths=0)
    over_c_and_d.set(
        xlabel="c at the start", ylabel="d at the start", title=f"where {len(result.losses)} starts led to"
    )
    over_c_and_d.set_aspect("equal", adjustable="datalim")
    if result.best is not None:
        fitted = result.coefficients[result.best, 2:]
        both = np.stack([fitted, -fitted])  # (a, -b, -c, -d) is the same function
        over_c_and_d.scatter(*both.T, s=120, marker="*", color="black", label="c and d of the best fit")
    for handle in over_c_and_d.legend(loc="upper right").legend_handles[:3]:
        handle.set_sizes([30])
    losses = np.sort(result.losses[~result.diverged])
    by_loss.semilogy(np.arange(1, len(losses) + 1), losses, color="0.3", linewidth=2)
    least = best_fit(make_points(result.spec)).loss
    by_loss.axhline(least, color="0.6", linewidth=1, label=f"best possible, {least:.4g}")
    by_loss.set(xlabel="fits that did not diverge, the best first", title="loss of the fitted coefficients")
    by_loss.grid(alpha=0.3)
    by_loss.legend()
    return figure
