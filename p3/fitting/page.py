"""A comparison of two fits as one self-contained HTML page."""

from pathlib import Path

from p3.fitting.comparison import Comparison
from p3.fitting.plot import plot_comparison, plot_rounding, plot_traces
from p3.html import as_svg, render

BODY = """
<p class="{{ 'passed' if comparison.ok else 'failed' }}">{{ comparison.verdict }}</p>
<h2>The fit and the losses</h2>
{{ fit | safe }}
{% if comparison.is_traced %}<h2>How the gradients and the coefficients change during training</h2>
{{ traces | safe }}
<h2>What each step does to its own numbers, against what it should</h2>
<p>The loss and the gradients against the chain rule by hand at the run's own coefficients, the updates against what the
other framework's optimizer makes of the same gradients; as a part of what rounding explains, so that below 1 there is
nothing but rounding.</p>
{{ rounding | safe }}{% else %}
<p>The runs have no traces, or are of two dtypes: there is nothing to draw step by step.</p>
{% endif %}
<h2>Coefficients</h2>
<table>
<tr><th>coefficient{% for side in sides %}<th class="number">{{ side.title }}{% endfor %}<th class="number">difference
{% for name in "abcd" %}<tr><td>{{ name }}{% for side in sides %}<td class="number">
{{- "%.17g" | format(side.result.coefficients[name]) }}{% endfor %}<td class="number">
{{- "%.2g" | format(sides[0].result.coefficients[name] - sides[1].result.coefficients[name]) }}
{% endfor %}</table>
<h2>Environment</h2>
<table><tr><th>{% for side in sides %}<th>{{ side.title }}{% endfor %}
<tr><td>versions{% for side in sides %}<td>{% for name, version in side.result.versions.items() -%}
{{ name }} {{ version }}{{ ", " if not loop.last }}{% endfor %}{% endfor %}
<tr><td>device{% for side in sides %}<td>{{ side.result.device }}{% endfor %}
<tr><td>loop{% for side in sides %}<td>{{ "compiled" if side.result.compiled else "eager" }}{% endfor %}
<tr><td>compile{% for side in sides %}<td>{{ "%.2f s" | format(side.result.seconds.compile) }}{% endfor %}
<tr><td>run{% for side in sides %}<td>{{ "%.1f ms" | format(1e3 * side.result.seconds.run) }}{% endfor %}
</table>
<h2>Specification</h2>
<pre>{{ specification }}</pre>
"""


def write_comparison(comparison: Comparison, directory: Path) -> Path:
    """Write comparison.html, and both results beside it. Raises `OSError`."""
    directory.mkdir(parents=True, exist_ok=True)
    sides = [{"title": title, "result": result} for title, result in comparison.sides]
    same = comparison.a.backend == comparison.b.backend
    for number, (_, result) in enumerate(comparison.sides):
        result.save(directory / (f"{result.backend}-{number + 1}.json" if same else f"{result.backend}.json"))
    page = render(
        " and ".join(title for title, _ in comparison.sides) + ": two fits of one specification",
        BODY,
        comparison=comparison,
        sides=sides,
        fit=as_svg(plot_comparison(comparison), "fit"),
        traces=as_svg(plot_traces(comparison), "traces") if comparison.is_traced else "",
        rounding=as_svg(plot_rounding(comparison), "rounding") if comparison.is_traced else "",
        specification=comparison.a.spec.to_toml_text(),
    )
    path = directory / "comparison.html"
    path.write_text(page, encoding="utf-8")
    return path
