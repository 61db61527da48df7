"""The atlas as one self-contained page, as a picture, and in docs/atlas.md."""

from itertools import groupby
from pathlib import Path

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from comparisons.atlas.differences import KINDS, Atlas, Entry
from comparisons.atlas.pairs import CHECKS
from comparisons.pages import bounds
from p3.html import render

BODY = Path(__file__).with_name("page.html")
BEGIN, END = bounds("atlas")

# For each verdict a sign, so that colour is not all there is, a background, and a colour for the text on it.
LOOKS = {
    "agree": ("·", "#e3f1e5", "#1d4023"),
    "rounding": ("≈", "#cfe3f5", "#12304d"),
    "coverage": ("○", "#e8e0b0", "#3d3600"),
    "convention": ("C", "#f2b35c", "#3a2300"),
    "accuracy": ("A", "#5aa5dc", "#001d33"),
    "bug": ("B", "#b3261e", "#ffffff"),
    "unexplained": ("?", "#7b3fa0", "#ffffff"),
    "neither has it": ("–", "#f4f4f4", "#444444"),
    "not applicable": (" ", "#ffffff", "#444444"),
    "error of the checker": ("!", "#222222", "#ffffff"),
}
ORDER = ("agree", *reversed(KINDS))


def gravest(entry: Entry) -> str:
    """The most important kind of an entry's differences."""
    return min((d.kind for d in entry.differences), key=KINDS.index, default="agree")


def describe(entry: Entry) -> str:
    """The verdicts in words."""
    return ", ".join(f"{check} {verdict}" for check, verdict in entry.verdicts.items())


def families(atlas: Atlas) -> dict[str, list[str]]:
    """The names of the pairs of each family."""
    return {family: list(names) for family, names in groupby(atlas.entries, lambda name: name.split(".")[0])}


def render_page(atlas: Atlas) -> str:
    """The page."""
    return render(
        "Where PyTorch and JAX differ, function by function",
        BODY.read_text(encoding="utf-8"),
        atlas=atlas,
        checks=CHECKS,
        families=families(atlas),
        first=next(iter(atlas.entries)),
        counts=atlas.counts(),
        agreeing=sum(not entry.differences for entry in atlas.entries.values()),
        looks=LOOKS,
        verdicts=atlas.cells(),
        order=ORDER,
        gravest=gravest,
        describe=describe,
    )


def draw(atlas: Atlas) -> Figure:
    """The heat map: functions by families, and checks."""
    names = list(LOOKS)
    numbers = np.array([[names.index(entry.verdicts[check]) for entry in atlas.entries.values()] for check in CHECKS])
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap([background for _, background, _ in LOOKS.values()])
    axes.imshow(numbers, aspect="auto", cmap=colours, vmin=-0.5, vmax=len(names) - 0.5, interpolation="nearest")
    axes.set_yticks(range(len(CHECKS)), CHECKS)
    begin, middles = 0, []
    for members in families(atlas).values():
        middles.append(begin + len(members) / 2 - 0.5)
        begin += len(members)
        axes.axvline(begin - 0.5, color="white", linewidth=2)
    axes.set_xticks(middles, [f.replace("_", " ") for f in families(atlas)], rotation=30, ha="right", fontsize=9)
    axes.tick_params(length=0)
    axes.set_title(
        f"{len(atlas.entries)} functions and {len(CHECKS)} checks: "
        + ", ".join(f"{k} {v}" for k, v in atlas.versions.items())
    )
    present = [name for name in names if (numbers == names.index(name)).any()]
    handles = [Patch(facecolor=LOOKS[name][1], edgecolor="0.6", label=name) for name in present]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def docs_part(atlas: Atlas) -> str:
    """The counts and the most surprising differences, for docs/atlas.md."""
    counts, cells = atlas.counts(), atlas.cells()
    versions = " and ".join(f"{name} {atlas.versions[name]}" for name in ("torch", "jax"))
    lines = [
        f"With {versions}, on {atlas.date}: {len(atlas.entries)} functions and {sum(cells.values())} cells, of which "
        f"{cells['agree']} agree. There are {sum(counts.values())} differences:",
        "",
        f"| {' | '.join(counts)} |",
        f"| {' | '.join('---:' for _ in counts)} |",
        f"| {' | '.join(str(count) for count in counts.values())} |",
        "",
        "The most surprising ones:",
        "",
        *(
            f"{rank}. [`{name}`](../comparisons/atlas/atlas.html#{name}): {' '.join(difference.text.split())}"
            for rank, (name, difference) in enumerate(atlas.surprises(), start=1)
        ),
    ]
    return "\n".join([BEGIN, "", *lines, "", END])
