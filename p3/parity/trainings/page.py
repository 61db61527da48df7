"""The report of a check of a training as one self-contained HTML page."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from p3.html import CAUSES, COLOURS, as_svg, render
from p3.parity.trainings.report import TrainingReport
from p3.tolerance import ENVELOPE, PARITY

BODY = (
    CAUSES
    + """\
<p>{{ report.free }}</p>
{% for note in report.accepted %}<p>{{ note }}</p>{% endfor %}
{% for note in report.notes %}<p>{{ note }}</p>{% endfor %}
<p>{{ report.power }}</p>
<h2>Losses</h2>
<p>Both trainings from the same start, each by itself.</p>
{{ losses | safe }}
<h2>One step from the reference's state</h2>
<p>Before each step the port is set to what the reference holds. The largest difference of any array in that step, in
epsilons of each precision.</p>
{{ apart | safe }}
<h2>The port by itself</h2>
<p>The distance of its parameters from the reference's, as a fraction of their norm, and how far rounding alone takes
the reference in float32 from the reference in float64.</p>
{{ drift | safe }}
<h2>Quantities</h2>
<table>
<tr><th>quantity<th>largest difference, in epsilons<th class="number">at step
{% for row in report.quantities %}<tr><td>{{ row.quantity }}<td>
{%- for precision, value in row.worst.items() %}{{ "%.3g" | format(value) }} {{ precision }}{{ ", " if not loop.last }}
{%- endfor %}<td class="number">{{ row.step }}
{% endfor %}</table>
"""
)


def page_of(report: TrainingReport) -> str:
    """The page."""
    pictures = {"losses": plot_losses(report), "apart": plot_apart(report), "drift": plot_drift(report)}
    return render(
        report.title, BODY, report=report, **{name: as_svg(figure, name) for name, figure in pictures.items()}
    )


def axes_of(title: str) -> tuple[Figure, Axes]:
    """A picture with one panel, of something at each step."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="step", ylabel=title)
    axes.grid(alpha=0.3)
    return figure, axes


def plot_losses(report: TrainingReport) -> Figure:
    """The losses of both."""
    figure, axes = axes_of("loss")
    names = (report.reference_framework, report.port_framework)
    for losses, name, colour, style in zip(report.trace.losses, names, COLOURS.values(), ("-", "--"), strict=True):
        axes.plot(losses, style, color=colour, label=name)
    if all((losses > 0).all() for losses in report.trace.losses):
        axes.set_yscale("log")
    axes.legend()
    return figure


def plot_apart(report: TrainingReport) -> Figure:
    """The differences of single steps."""
    figure, axes = axes_of("difference in epsilons")
    for precision, values in report.trace.apart.items():
        axes.semilogy(np.where(values > 0, values, np.nan), ".", color=COLOURS[precision], label=precision)
    axes.axhline(PARITY.epsilons, color="0.6", linewidth=1, label=f"tolerance, {PARITY.epsilons} epsilons")
    axes.legend()
    return figure


def plot_drift(report: TrainingReport) -> Figure:
    """How far the port by itself is from the reference, and what rounding explains."""
    figure, axes = axes_of("distance / norm")
    trace = report.trace
    least = PARITY.epsilons * np.finfo("float32").eps
    if len(trace.drift):
        envelope = ENVELOPE.value * np.maximum(np.maximum.accumulate(trace.rounding), least)
        axes.fill_between(range(len(envelope)), least / 100, envelope, color="0.85", label="explained by rounding")
    axes.semilogy(trace.drift, color=COLOURS["float32"], label="the port by itself")
    axes.semilogy(trace.rounding, color=COLOURS["float64"], label="the reference, float32 and float64")
    axes.legend()
    return figure
