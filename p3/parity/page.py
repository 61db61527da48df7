"""The report as one self-contained HTML page."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from p3.html import as_svg, render
from p3.parity.case import Case
from p3.parity.function import wide
from p3.parity.mismatch import in_epsilons
from p3.parity.recorded import RefusalError
from p3.parity.report import ParityReport, line
from p3.tolerance import PARITY

# Colours that also differ in grey, and for the colour-blind (Okabe and Ito).
COLOURS = {"float64": "#0072B2", "float32": "#D55E00"}

BODY = """
<p class="{{ 'passed' if report.ok else 'failed' }}">{{ report.summary }}</p>
{% if report.causes %}<p>First cause: {{ line(*report.causes[0]) }}</p>{% endif %}
{% for text in report.others() %}<p>{{ text }}</p>{% endfor %}
{% if report.snippet %}<p>This program shows it:</p><pre>{{ report.snippet }}</pre>{% endif %}
<p>Inputs: {% for x in report.case.inputs -%}
{{ x.dtype }} of shape {{ x.shape }}{{ ", " if not loop.last }}{% endfor %}; seed {{ report.case.seed }}.</p>
<h2>All checks</h2>
<table>
<tr><th>check<th>verdict<th>what it shows<th>seconds
{% for check in report.checks %}<tr><td>{{ check.name }}<td class="{{ check.verdict | replace(' ', '-') }}">
{{- check.verdict }}<td>{{ check.note }}<td>{{ "%.2f" | format(check.seconds) }}
{% endfor %}</table>
<h2>How far apart the two sides are</h2>
{{ picture | safe }}
"""


def page_of(report: ParityReport) -> str:
    """The page."""
    return render(report.title, BODY, report=report, line=line, picture=as_svg(plot_errors(report.case)))


def plot_errors(case: Case) -> Figure:
    """The differences of value and gradients, in epsilons of the size that the tolerance is of, over the input."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("value", "vjp"), strict=True):
        draw_differences(axes, case, name)
    return figure


def draw_differences(axes: Axes, case: Case, name: str) -> None:
    """The output or the gradient that differs most, in each precision."""
    quantity = case.quantity(name)
    drawn: dict[str, list[np.ndarray]] = {}  # by precision: the difference of each array of the quantity
    for precision in COLOURS:
        try:
            results = quantity.of(case.port, precision), quantity.of(case.reference, precision), case.size(quantity)
        except RefusalError:
            continue
        drawn[precision] = [
            in_epsilons(a, b, size, precision) if a.shape == b.shape else np.empty(0)
            for a, b, size in zip(*results, strict=False)
        ]
    count = min(map(len, drawn.values()), default=0)
    worst = [max(arrays[k].max(initial=-1.0) for arrays in drawn.values()) for k in range(count)]
    k = int(np.argmax(worst)) if worst else 0
    x = case.inputs[case.arguments[k if name == "vjp" else 0]]
    for precision, arrays in drawn.items():
        epsilons = arrays[k].ravel() if arrays else np.empty(0)
        over_input = case.elementwise and epsilons.size == x.size and x.dtype.kind != "c"
        at = wide(x).ravel() if over_input else np.arange(epsilons.size)
        heights = np.where(epsilons > 0, epsilons, np.nan)
        label = f"{precision}, {int((epsilons == 0).sum())} equal"
        axes.semilogy(at, heights, ".", markersize=3, color=COLOURS[precision], label=label)
        axes.set(xlabel="input" if over_input else "element")
    if axes.lines and all(not np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.text(0.5, 0.5, "equal to the bit", transform=axes.transAxes, ha="center", fontsize="x-large")
    axes.axhline(PARITY.epsilons, color="0.6", linewidth=1, label=f"tolerance, {PARITY.epsilons} epsilons")
    array = f", {case.places(quantity, 'port')[k].array}" if len(worst) > 1 else ""
    axes.set(title=f"{name}{array}, difference in epsilons")
    axes.legend()
    axes.grid(alpha=0.3)
