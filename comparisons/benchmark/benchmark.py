"""
What a fit and the operator cost, against everything that one would run instead, in one run.

`python -m comparisons.benchmark --page docs/speed.md` runs every race, writes benchmark.json and benchmark.png beside
itself, and the tables of that page. Every contender must give the same answer before it is timed. Then all of a race
take turns, so that what else the machine does falls on all alike: a ratio of medians holds where seconds do not. The
first turn compiles, and is told apart. Each race has a process of its own, so that none depends on what ran before it.
"""

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import click
import jax
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from comparisons.benchmark import contenders
from comparisons.benchmark.contenders import Contender
from comparisons.pages import bounds, machine, seconds, write_part
from p3.fitting.exact import P3

HERE = Path(__file__).parent
BEGIN, END = bounds("benchmark")

SIZES = (100, 10**4, 10**6, 10**7, 10**8)
LONG = ("torchp3", "torchp3, no traces", "jaxp3", "jaxp3, no traces", "C")

# The C library gives large arrays back at once, and each new page costs as much as what is computed in it. Told to keep
# them it uses them again, as a training loop with a caching allocator does.
KEPT = "memory kept"
KEEP = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "4000000000"}

# Operators whose peak of memory is measured.
MEASURED = ("tutorial's operator", "plain autograd", "torchp3, eager", "torchp3, compiled", "jaxp3, jitted")


class Race(NamedTuple):
    """
    Contenders that do the same.

    Attributes
    ----------
    contenders : by their names
    limit : the one that others are multiples of
    size : points, times steps of a fit: what the picture divides by
    turns : how often each runs, after the first time
    check : raises AssertionError where an answer is not right
    """

    contenders: Mapping[str, Contender]
    limit: str
    size: int
    turns: int
    check: Callable[[Any], None]


class Result(NamedTuple):
    """Of a contender: the seconds of its first turn, with what it compiled, and of each other one."""

    first: float
    seconds: tuple[float, ...]


def run(race: Race, name: str, show: bool = True) -> dict[str, Result]:
    """Check every contender, and let them take turns."""
    first: dict[str, float] = {}
    for title, contender in race.contenders.items():
        begin = perf_counter()
        _, answer = contender()
        first[title] = perf_counter() - begin
        if answer is not None:
            try:
                race.check(answer)
            except AssertionError as error:
                raise AssertionError(f"{name}: {title} gives another answer: {error}") from error
    seconds: dict[str, list[float]] = {title: [] for title in race.contenders}
    for _ in track(range(race.turns), description=name, console=Console(stderr=True), disable=not show, transient=True):
        for title, contender in race.contenders.items():
            seconds[title].append(contender()[0])
    return {title: Result(first[title], tuple(seconds[title])) for title in race.contenders}


def close_to(expected: Any, relative: float) -> Callable[[Any], None]:
    """Whether an answer is as expected, relative to the largest number of it."""

    def check(answer: Any) -> None:
        for got, right in zip(answer, expected, strict=True):
            array = got.float() if isinstance(got, torch.Tensor) else got  # NumPy has no bfloat16
            np.testing.assert_allclose(np.asarray(array, float), right, rtol=0, atol=relative * np.abs(right).max())

    return check


def fit_race(points: int, steps: int, turns: int, only: tuple[str, ...] = ()) -> Race:
    """One fit, the loop alone; of all contenders, or of some."""
    found = contenders.fits(points, steps)
    found = {name: found[name] for name in only or found if name in found}
    _, expected = found["NumPy" if "NumPy" in found else "jaxp3"]()
    check = close_to([np.array(expected)], 1e-4)
    return Race(found, "C" if "C" in found else "NumPy", points * steps, turns, lambda answer: check([answer]))


def operator_race(points: int, turns: int, dtype: str = "float32") -> Race:
    """The operator, forward and backward."""
    x, cotangent = (np.linspace(low, high, points, dtype=np.float32).astype(float) for low, high in ((-2, 2), (1, 2)))
    expected = P3(x), cotangent * P3.deriv()(x)
    found = contenders.operators(points, dtype)
    return Race(found, "2.5 copies", points, turns, close_to(expected, {"float32": 1e-6, "bfloat16": 5e-2}[dtype]))


def starts_race(starts: int, alone: int, steps: int, turns: int) -> Race:
    """Many fits: seconds a fit."""
    found = contenders.many_fits(starts, alone, steps)
    _, expected = found["torchp3.fit in a loop"]()
    check = close_to([np.array(expected)], 1e-4)
    return Race(found, "torchp3.fit_starts", 1, turns, lambda answer: check([answer]))


def process_race(turns: int) -> Race:
    """Whole processes."""
    expected = [-2.2085268, 0.2554861]
    return Race(contenders.processes(), "tutorial's script", 1, turns, close_to(expected, 1e-5))


def races(small: bool) -> dict[str, Callable[[], Race]]:
    """Every race by its name, made when its turn comes."""
    if small:
        return {
            "fit, 100 points": lambda: fit_race(100, 20, 3),
            "steps, 40": lambda: fit_race(100, 40, 3, LONG),
            "operator, 1000 points": lambda: operator_race(1000, 3),
            f"operator, 1000 points, {KEPT}": lambda: operator_race(1000, 3),
            "bfloat16, 1000 points": lambda: operator_race(1000, 3, "bfloat16"),
            "starts, 8": lambda: starts_race(8, 2, 20, 2),
        }
    return {
        **{
            f"fit, {n} points": lambda n=n: fit_race(n, 2000 if n <= 10**4 else 200, 15 if n <= 2000 else 3)
            for n in (100, 2000, 10**4, 10**5, 10**6)
        },
        **{f"steps, {n}": lambda n=n: fit_race(2000, n, 3, LONG) for n in (2000, 10**4, 10**5, 10**6)},
        **{f"operator, {n} points": lambda n=n: operator_race(n, 15 if n <= 10**6 else 7) for n in SIZES},
        **{f"operator, {n} points, {KEPT}": lambda n=n: operator_race(n, 15) for n in (10**6, 10**7)},
        **{f"bfloat16, {n} points": lambda n=n: operator_race(n, 7, "bfloat16") for n in (10**6, 10**7)},
        "starts, 10000": lambda: starts_race(10_000, 20, 2000, 3),
        "process": lambda: process_race(5),
    }


def apart(function: Callable[..., Any], *arguments: Any, environment: Mapping[str, str] | None = None) -> Any:
    """What a function gives in a process of its own."""
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def run_by_name(small: bool, name: str) -> dict[str, Any]:
    """A race, for JSON."""
    race = races(small)[name]()
    results = run(race, name, show=Console(stderr=True).is_terminal)
    return {
        "limit": race.limit,
        "size": race.size,
        "first": {title: result.first for title, result in results.items()},
        "seconds": {title: result.seconds for title, result in results.items()},
    }


def table(race: Mapping[str, Any]) -> Table:
    """For people."""
    limit = race["limit"]
    made = Table("", "median", "quartiles", f"× {limit}", "first turn")
    for column in made.columns[1:]:
        column.justify = "right"
    for title, taken in race["seconds"].items():
        low, median, high = np.quantile(taken, (0.25, 0.5, 0.75))
        ratio = median / np.median(race["seconds"][limit])
        made.add_row(
            title, seconds(median), f"{seconds(low)} to {seconds(high)}", f"{ratio:.3g}", seconds(race["first"][title])
        )
    return made


def draw(made: Mapping[str, Any]) -> Figure:
    """Cost against points, of the fit's step and of the operator, and against steps."""
    figure = Figure(figsize=(20, 6), layout="constrained")
    panels = {
        "fit": ("a step of the fit, ns a point", "points"),
        "steps": ("a step of the fit of 2000 points, ns a point", "steps"),
        "operator": ("operator, forward and backward, ns a point", "points"),
    }
    for axes, (kind, (title, label)) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        lines: dict[str, list[tuple[int, float]]] = {}
        for name, race in made["races"].items():
            if not name.startswith(f"{kind}, ") or name.endswith(KEPT):
                continue
            along = int(name.split()[1])
            for contender, taken in race["seconds"].items():
                lines.setdefault(contender, []).append((along, 1e9 * float(np.median(taken)) / race["size"]))
        for number, (contender, line) in enumerate(lines.items()):
            ours = contender.startswith(("torchp3", "jaxp3"))
            axes.loglog(
                *zip(*line, strict=True), "-" if ours else "--", marker="osv^Dx+*<>"[number % 10], label=contender
            )
        axes.set(xlabel=label, title=title)
        axes.grid(alpha=0.3)
        if lines:
            axes.legend(fontsize="small")
    return figure


PAGE_RACES = {
    "fit, 2000 points": "The tutorial's fit, 2000 points and 2000 steps in float32, the loop alone",
    "process": "The same from the command to the printed result",
    "operator, 1000000 points": "The operator and its vjp, 10⁶ points in float32",
    "operator, 1000000 points, memory kept": "The same, with memory that is kept",
    "operator, 10000000 points": "The same of 10⁷ points",
    "operator, 10000000 points, memory kept": "The same of 10⁷ points, with memory that is kept",
    "bfloat16, 10000000 points": "10⁷ points in bfloat16",
    "steps, 1000000": "A million steps of the tutorial's fit",
    "starts, 10000": "10,000 fits of 2000 steps, a fit",
}


def page_part(made: Mapping[str, Any]) -> str:
    """The tables of docs/speed.md, in ratios and medians."""
    lines = [f"On {made['machine']}, {made['date']}, with torch {made['torch']} and jax {made['jax']}:", ""]
    for name, title in PAGE_RACES.items():
        if name not in made["races"]:
            continue
        race = made["races"][name]
        base = float(np.median(race["seconds"][race["limit"]]))
        lines += [f"| {title} | median | × {race['limit']} |", "| --- | ---: | ---: |"]
        for contender, times in race["seconds"].items():
            median = float(np.median(times))
            lines.append(f"| {contender} | {seconds(median)} | {median / base:.3g} |")
        lines.append("")
    lines += [
        "| Peak memory of the operator and its vjp, 10⁷ points | arrays beside x and the cotangent |",
        "| --- | ---: |",
    ]
    lines += [f"| {contender} | {arrays:.3g} |" for contender, arrays in made["memory"].items()]
    return "\n".join([BEGIN, *lines, "", END])


@click.command()
@click.option("--small", is_flag=True, help="Sizes that take seconds.")
@click.option("--only", multiple=True, help="Races whose names begin so; all where none is given.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "benchmark.json", help="Where to write JSON.")
@click.option("--plot", type=click.Path(path_type=Path), default=HERE / "benchmark.png", help="Where to draw.")
@click.option("--page", type=click.Path(path_type=Path), help="The page whose tables to replace: docs/speed.md.")
def main(small: bool, only: tuple[str, ...], output: Path, plot: Path, page: Path | None) -> None:
    """Race everything, and write what it came to."""
    if only and (page is not None or output == HERE / "benchmark.json" or plot == HERE / "benchmark.png"):
        raise click.UsageError("--only is a part of it all; give an --output and a --plot of its own, and no --page")
    console = Console()
    made: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "torch": torch.__version__,
        "jax": jax.__version__,
        "races": {},
        "memory": {},
    }
    for name in races(small):
        if only and not name.startswith(only):
            continue
        race = apart(run_by_name, small, name, environment=KEEP if name.endswith(KEPT) else None)
        console.print(f"\n{name}")
        console.print(table(race))
        made["races"][name] = race
    if not only or "memory".startswith(only):
        points = 10**6 if small else 10**7
        made["memory"] = {name: apart(contenders.peak_memory, name, points) for name in MEASURED}
        console.print(f"\npeak memory, {points} points, in arrays beside x and the cotangent")
        for name, arrays in made["memory"].items():
            console.print(f"{name}: {arrays:.3g}")
    output.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    draw(made).savefig(plot)
    if page is not None:
        write_part(page, page_part(made))
