"""The report of a check of a model as one self-contained HTML page."""

import numpy as np
from matplotlib.figure import Figure

from p3.html import CAUSES, COLOURS, as_svg, render
from p3.parity.models.report import ModelReport
from p3.tolerance import PARITY

HEIGHT = 0.22  # inches a layer

BODY = (
    CAUSES
    + """\
{% for note in report.notes %}<p>{{ note }}</p>{% endfor %}
<h2>Layers</h2>
<p>Each layer of the port has run on what the reference's layer received. The differences are in epsilons of each
precision.</p>
<table>
<tr><th>layer<th>in the port<th>verdict<th>forward<th>backward
{% for row in report.layers %}<tr>{% for name, kind in ((row.reference, row.kinds[0]), (row.port, row.kinds[1])) -%}
<td>{{ name }}{{ " (" ~ kind ~ ")" if kind }}{% endfor %}
<td class="{{ classes[row.verdict] }}">{{ row.verdict }}
{%- for way in (row.forward, row.backward) %}<td>
{%- for precision, value in way.items() %}{{ "%.3g" | format(value) }} {{ precision }}{{ ", " if not loop.last }}
{%- endfor %}{% endfor %}
{% endfor %}</table>
<h2>How far apart the layers are</h2>
{{ picture | safe }}
<h2>Parameters</h2>
<table>
<tr><th>parameter<th>in the port<th>from PyTorch to JAX<th>equal
{% for row in report.rows %}<tr><td>{{ row.reference }}<td>{{ row.port }}<td>{{ row.transformation }}
<td>{{ "yes" if row.is_equal else "no" }}
{% endfor %}</table>
"""
)
CLASSES = {"differs": "failed", "single precision": "single-precision", "agrees": "passed"}


def page_of(report: ModelReport) -> str:
    """The page."""
    picture = as_svg(plot_layers(report)) if report.layers else ""
    return render(report.title, BODY, report=report, classes=CLASSES, picture=picture)


def plot_layers(report: ModelReport) -> Figure:
    """The differences of each layer, forward and backward, in each precision."""
    figure = Figure(figsize=(11, 1.5 + HEIGHT * len(report.layers)), layout="constrained")
    places = np.arange(len(report.layers))
    for axes, way in zip(figure.subplots(1, 2, sharey=True), ("forward", "backward"), strict=True):
        for precision, colour in COLOURS.items():
            heights = np.array([getattr(row, way).get(precision, 0.0) for row in report.layers])
            shown = np.where(heights > 0, heights, np.nan)
            axes.semilogx(shown, places, ".", color=colour, label=f"{precision}, {int((heights == 0).sum())} equal")
        axes.axvline(PARITY.epsilons, color="0.6", linewidth=1, label=f"tolerance, {PARITY.epsilons} epsilons")
        axes.set(title=f"{way}, difference in epsilons", yticks=places)
        axes.set_yticklabels([row.reference for row in report.layers], fontsize="small")
        axes.grid(alpha=0.3)
        axes.legend()
    axes.invert_yaxis()
    return figure
