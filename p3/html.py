"""What the project's HTML pages have in common: one file each, with its style and its pictures in it."""

import io
import re

from jinja2 import Environment
from matplotlib.figure import Figure

STYLE = """
 :root { color-scheme: light dark }
 body { font: 15px/1.45 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
 h1 { font-size: 1.3rem } h2 { font-size: 1.1rem; margin-top: 2rem }
 table { border-collapse: collapse; width: 100% }
 th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border-bottom: 1px solid #ddd }
 td, p { overflow-wrap: anywhere }
 td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
 .passed { color: #00701a } .failed { color: #b00020; font-weight: bold }
 .refused { color: #8a5a00 } .not-applicable { color: #666 } .single-precision { color: #00701a }
 pre { background: #f5f5f5; padding: .6rem; overflow-x: auto; font-size: 13px }
 svg { width: 100%; height: auto; background: #fff }
 @media (max-width: 40rem) { th, td { padding: .3rem .2rem } h1 { font-size: 1.1rem } }
 @media (prefers-color-scheme: dark) {
  body { color: #ddd; background: #16181a } th, td { border-color: #444 } pre { background: #24272a }
  .passed, .single-precision { color: #6fce83 } .failed { color: #ff8a94 }
  .refused { color: #e0b060 } .not-applicable { color: #aaa }
 }
"""

# Colours that also differ in grey, and for the colour-blind (Okabe and Ito).
COLOURS = {"float64": "#0072B2", "float32": "#D55E00"}

# The verdict and the causes of a report, at the beginning of its page.
CAUSES = """
<p class="{{ 'passed' if report.ok else 'failed' }}">{{ report.summary }}</p>
{% for finding in report.findings if finding.kind == "semantic" -%}
<p>{{ "First cause" if loop.first else "Also" }}: {{ finding }}</p>
{% endfor %}
{% for finding in report.findings if finding.kind != "semantic" %}<p>No failure: {{ finding }}</p>{% endfor %}
"""

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
<h1>{{ title }}</h1>
"""


def render(title: str, body: str, **values: object) -> str:
    """The page with a title and a body, which is a Jinja template of the values."""
    template = Environment(autoescape=True).from_string(PAGE + body + "</html>\n")
    return template.render(title=title, style=STYLE, **values)


def as_svg(figure: Figure, name: str = "part") -> str:
    """
    The picture as SVG for a page; the same figure always gives the same text.

    The name begins those of the picture's parts. Of several pictures on a page, each needs another one.
    """
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    _, begin, rest = text.getvalue().partition("<svg")
    random = dict.fromkeys(re.findall(r'id="([a-z][0-9a-f]{10})"', rest))  # Matplotlib's names of markers and paths
    for number, old in enumerate(random):
        rest = rest.replace(old, f"{name}{number}-")
    return begin + rest
