"""The report as one self-contained HTML page."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from p3.html import as_svg, render
from p3.parity.case import Case
from p3.parity.mismatch import in_epsilons
from p3.parity.operator import wide
from p3.parity.recorded import RefusalError
from p3.parity.report import ParityReport
from p3.tolerance import PARITY

# Colours that also differ in grey, and for the colour-blind (Okabe and Ito).
COLOURS = {"float64": "#0072B2", "float32": "#D55E00"}

BODY = """
<p class="{{ 'passed' if report.ok else 'failed' }}">{{ report.summary }}</p>
<p>Inputs: {% for x in report.case.inputs -%}
{{ x.dtype }} of shape {{ x.shape }}{{ ", " if not loop.last }}{% endfor %}; seed {{ report.case.seed }}.</p>
{% for check in report.failed %}<h2>{{ check.name }}</h2>
{% for finding in check.findings %}<p>{{ finding }}</p>
{% if finding.snippet %}<pre>{{ finding.snippet }}</pre>{% endif %}
{% endfor %}{% endfor %}
<h2>All checks</h2>
<table>
<tr><th>check<th>verdict<th>what it shows<th>seconds
{% for check in report.checks %}<tr><td>{{ check.name }}<td class="{{ check.verdict | replace(' ', '-') }}">
{{- check.verdict }}<td>{{ check.note }}<td>{{ "%.2f" | format(check.seconds) }}
{% endfor %}</table>
<h2>How far apart the two sides are</h2>
{{ picture | safe }}
"""


def write_page(report: ParityReport, path: Path) -> None:
    """Write the page."""
    picture = as_svg(plot_errors(report.case))
    path.write_text(render(report.title, BODY, report=report, picture=picture), encoding="utf-8")


def plot_errors(case: Case) -> Figure:
    """The differences of value and gradients, in epsilons of the size that the tolerance is of, over the input."""
    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("value", "vjp"), strict=True):
        draw_differences(axes, case, name)
    return figure


def draw_differences(axes: Axes, case: Case, name: str) -> None:
    """One of the two."""
    quantity = case.quantity(name)
    x = case.inputs[case.arguments[0]]
    for precision, colour in COLOURS.items():
        try:
            results = quantity.of(case.port, precision), quantity.of(case.reference, precision), case.size(quantity)
        except RefusalError:
            continue
        first = [triple for triple in zip(*results, strict=False) if triple[0].shape == triple[1].shape][:1]
        for a, b, size in first:
            epsilons = in_epsilons(a, b, size, precision).ravel()
            over_input = case.elementwise and epsilons.size == x.size and x.dtype.kind != "c"
            at = wide(x).ravel() if over_input else np.arange(epsilons.size)
            drawn = np.where(epsilons > 0, epsilons, np.nan)
            axes.semilogy(
                at, drawn, ".", markersize=3, color=colour, label=f"{precision}, {int((epsilons == 0).sum())} equal"
            )
            axes.set(xlabel="input" if over_input else "element")
    if axes.lines and all(not np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.text(0.5, 0.5, "equal to the bit", transform=axes.transAxes, ha="center", fontsize="x-large")
    axes.axhline(PARITY.epsilons, color="0.6", linewidth=1, label=f"tolerance, {PARITY.epsilons} epsilons")
    axes.set(title=f"{name}, difference in epsilons")
    axes.legend()
    axes.grid(alpha=0.3)
