"""
Which modes each operator is right in, which it refuses, and whether the hand-written rule is what ran.

`python -m comparisons.modes --page docs/operator.md` runs every mode, writes modes.json and, for people, modes.md
beside itself, and the table of that page. With a newer version of one framework installed,
`python -m comparisons.modes --framework torch --newer` writes what that one gives beside them, and modes.md says which
cells it would change.

Each mode runs twice at points where everything is exact: once as it is, and once with the derivative in the rule
multiplied by 4. If the result then has that factor, the rule ran; if not, the framework differentiated the operations.
"""

import importlib
import itertools
import json
import logging
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest import mock

import click
import numpy as np
from rich.progress import track

from comparisons.pages import bounds
from p3.fitting.exact import P3

HERE = Path(__file__).parent
MARKER = 4.0  # a power of two, so that the marked result is exact as well
POINTS = np.array([-2.25, -1.5, -0.75, -0.125, 0.25, 0.5, 1.0, 1.75], np.float32)  # few bits, so that powers are exact

# What a mode should come to at x, its rule's derivative multiplied by m.
EXPECTED: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "shape": lambda x, m: 0 * x,
    "value": lambda x, m: P3(x),
    "first derivative": lambda x, m: m * P3.deriv()(x),
    "second derivative": lambda x, m: m * P3.deriv(2)(x),
    "third derivative": lambda x, m: m * P3.deriv(3)(x),
    "second derivative of P3²": lambda x, m: 2 * ((m * P3.deriv()(x)) ** 2 + P3(x) * m * P3.deriv(2)(x)),
    "closed over": lambda x, m: m * (P3.deriv()(x) + x * P3.deriv(2)(x)),
}

SIGNS = {
    "right, by the rule": "✓",
    "right, no derivative": "✓ –",
    "right, rule dropped": "✓ ○",
    "refuses": "✗",
    "wrong": "WRONG",
}

FIRST_AND_SECOND = {"reverse", "forward", "over", "vmap", "of"}  # the words of the modes that docs/operator.md shows
BEGIN, END = bounds("modes")

# Why PyTorch comes to "right, rule dropped", which its own tables do not tell.
DROPPED = (
    "Differentiated by PyTorch's own rules: it compiles no Function's jvp "
    "([192985](https://github.com/pytorch/pytorch/issues/192985)), and exports operations alone"
)


def shared_modes(framework: ModuleType, f: Callable) -> dict[str, tuple[str, Callable]]:
    """The modes that both frameworks have, under one name each: what they should come to, and how to get there."""
    forward, reverse, vmap = framework.forward, framework.reverse, framework.vmap
    directions = {"reverse": reverse, "forward": forward}

    def nested(names: tuple[str, ...], function: Callable) -> Callable:
        for name in reversed(names):
            function = directions[name](function)
        return function

    modes = {"value": ("value", f)}
    for order, expected in enumerate(("first derivative", "second derivative", "third derivative"), start=1):
        for names in itertools.product(directions, repeat=order):
            modes[" over ".join(names)] = expected, nested(names, f)
    for names in itertools.product(directions, repeat=2):
        modes[" over ".join(names) + ", of P3²"] = "second derivative of P3²", nested(names, lambda x: f(x) ** 2)
    modes |= {
        "vmap": ("value", vmap(f)),
        "vmap, in and out axis 1": ("value", lambda x: vmap(f, 1, 1)(x.reshape(2, 4)).reshape(8)),
        "vmap of vmap": ("value", lambda x: vmap(vmap(f))(x.reshape(2, 4)).reshape(8)),
        "vmap of reverse": ("first derivative", vmap(reverse(f))),
        "reverse of vmap": ("first derivative", reverse(vmap(f))),
        "vmap of forward": ("first derivative", vmap(forward(f))),
        "forward of vmap": ("first derivative", forward(vmap(f))),
        "vmap of reverse over reverse": ("second derivative", vmap(reverse(reverse(f)))),
    }
    modes |= {
        "vjp": ("first derivative", framework.pullback(f)),
        "linearize": ("first derivative", framework.linearize(f)),
        "linearize of reverse": ("second derivative", framework.linearize(reverse(f))),
        "reverse of linearize": ("second derivative", reverse(framework.linearize(f))),
        "linearize of linearize": ("second derivative", framework.linearize(framework.linearize(f))),
        "jacrev": ("first derivative", lambda x: framework.jacrev(f)(x).diagonal()),
        "jacfwd": ("first derivative", lambda x: framework.jacfwd(f)(x).diagonal()),
    }
    jacobians = {"jacfwd": framework.jacfwd, "jacrev": framework.jacrev}
    for outer, inner in itertools.product(jacobians, repeat=2):
        modes[f"hessian, {outer} of {inner}"] = (
            "second derivative",
            lambda x, outer=outer, inner=inner: jacobians[outer](jacobians[inner](lambda x: f(x).sum()))(x).diagonal(),
        )
    return modes


def multiplied(derivative: Callable, marker: float) -> Callable:
    """The derivative in the rule, multiplied."""
    return lambda x: marker * derivative(x)


def run(mode: Callable, framework: ModuleType) -> np.ndarray | str:
    """
    The result, or the message of what was raised.

    In a thread of its own, since PyTorch keeps the transforms that are open by thread, and where it fails to compile
    one it can leave it open, for all that comes after.
    """
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: np.asarray(mode(framework.array(POINTS)))).result()
    except Exception as error:
        first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return f"{type(error).__name__}: {re.sub(r'0x[0-9a-f]+', '0x…', first_line)}"


def outcome(expected: str, plain: np.ndarray | str, marked: np.ndarray | str) -> dict[str, str]:
    """The cell of the table."""

    def is_right(result: np.ndarray | str, marker: float) -> bool:
        truth = EXPECTED[expected](POINTS.astype(np.float64), marker)
        return isinstance(result, np.ndarray) and result.dtype == POINTS.dtype and np.array_equal(result, truth)

    if isinstance(plain, str):
        return {"outcome": "refuses", "message": plain}
    if not is_right(plain, 1):
        return {"outcome": "wrong", "message": f"{plain.tolist()}"}
    if expected in ("value", "shape"):
        return {"outcome": "right, no derivative"}
    if is_right(marked, MARKER):
        return {"outcome": "right, by the rule"}
    if is_right(marked, 1):
        return {"outcome": "right, rule dropped"}
    return {"outcome": "wrong", "message": f"with the rule multiplied: {marked}"}


def columns(framework: ModuleType, compiled: bool = True) -> Iterator[tuple[str, dict[str, tuple[str, Callable]]]]:
    """Each column of a framework: its name, and its modes."""
    for operator, f in framework.OPERATORS.items():
        modes = shared_modes(framework, f)
        if not compiled:
            yield operator, modes
            continue
        yield operator, modes | framework.own_modes(f)
        yield f"{operator} compiled", {mode: (expected, framework.compiled(g)) for mode, (expected, g) in modes.items()}


def table(name: str, compiled: bool = True) -> dict[str, Any]:
    """
    Run everything of one framework: its version, and for each column its modes' outcomes.

    Or leave out what compiles, and with it the modes that only one framework has, for a table within seconds.
    """
    framework = importlib.import_module(f"comparisons.modes.{name}_modes")
    tasks = [
        (column, mode, expected, g)
        for column, modes in columns(framework, compiled)
        for mode, (expected, g) in modes.items()
    ]
    results: dict[tuple[str, str, float], np.ndarray | str] = {}
    for marker in (1.0, MARKER):
        framework.forget_compiled()
        derivative = multiplied(framework.operator.derivative, marker)
        bar = track(tasks, f"{name}, rule × {marker:g}", disable=not sys.stderr.isatty())
        with mock.patch.object(framework.operator, "derivative", derivative):
            for column, mode, _, g in bar:
                results[column, mode, marker] = run(g, framework)
    cells: dict[str, dict[str, Any]] = {}
    for column, mode, expected, _ in tasks:
        cells.setdefault(column, {})[mode] = outcome(expected, results[column, mode, 1], results[column, mode, MARKER])
    return {"versions": {name: importlib.import_module(name).__version__.partition("+")[0]}, "cells": cells}


def quiet() -> None:
    """Leave out what the frameworks warn of, since a mode's outcome says it."""
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)


def tables(frameworks: tuple[str, ...]) -> dict[str, Any]:
    """The tables of several, side by side, each made in a process that loads one: two compilers in one have crashed."""
    made: dict[str, Any] = {"versions": {}, "cells": {}}
    for name in frameworks:
        try:
            alone = in_a_process(name)
        except BrokenProcessPool:  # as one did in a full run of the tests, and none in thirty runs by themselves
            click.echo(f"the process that ran {name}'s modes crashed; once more", err=True)
            alone = in_a_process(name)
        made = {part: made[part] | alone[part] for part in made}
    return made


def in_a_process(name: str) -> dict[str, Any]:
    """The table of one framework, made in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), quiet) as process:
        return process.submit(table, name).result()


def say(cell: dict[str, str]) -> str:
    """What there is to say of a cell beyond its sign."""
    if "message" in cell:
        return f"`{cell['message']}`"
    return DROPPED if cell["outcome"] == "right, rule dropped" else ""


def changes(column: str, mode: str, made: dict[str, Any], newer: list[dict[str, Any]]) -> Iterator[str]:
    """What newer versions make of a cell, where it is something else."""
    for table in newer:
        cell = table["cells"].get(column, {}).get(mode, made["cells"][column][mode])
        if cell != made["cells"][column][mode]:
            yield f"With {versions(table)}: {SIGNS[cell['outcome']]} {say(cell)}".strip()


def grid(
    made: dict[str, Any], newer: list[dict[str, Any]], columns: list[str], modes: list[str], note: Callable[[str], str]
) -> list[str]:
    """A table in Markdown: a row for each mode, a column for each operator."""

    def show(column: str, mode: str) -> str:
        cell = made["cells"][column][mode]
        text = ". ".join(filter(None, [say(cell), *changes(column, mode, made, newer)]))
        return f"{SIGNS[cell['outcome']]} {note(text)}".strip() if text else SIGNS[cell["outcome"]]

    names = [f"`{c.removesuffix(' compiled')}`{' compiled' * c.endswith(' compiled')}" for c in columns]
    return [
        f"| mode | {' | '.join(names)} |",
        "| --- |" + " --- |" * len(columns),
        *(f"| {mode} | {' | '.join(show(column, mode) for column in columns)} |" for mode in modes),
        "",
    ]


def versions(made: dict[str, Any]) -> str:
    """The frameworks that the table was made with."""
    return " and ".join(f"{name} {version}" for name, version in made["versions"].items())


def key() -> list[str]:
    """What the signs mean."""
    return [
        "| | |",
        "| --- | --- |",
        f"| {SIGNS['right, by the rule']} | exact, by the hand-written rule: when it is scaled, so is the result |",
        f"| {SIGNS['right, rule dropped']} | exact, but the framework differentiated the polynomial instead |",
        f"| {SIGNS['right, no derivative']} | exact, and no derivative is taken |",
        f"| {SIGNS['refuses']} | raises |",
        "",
    ]


def markdown(made: dict[str, Any], newer: list[dict[str, Any]]) -> str:
    """The whole table, for people."""
    cells = made["cells"]
    plain = [name for name in cells if not name.endswith(" compiled")]
    shared = list(cells[f"{plain[0]} compiled"])
    alone = {
        title: [name for name in plain if name.startswith(package)]
        for title, package in {"PyTorch alone": "torchp3", "JAX alone": "jaxp3"}.items()
    }
    notes: list[str] = []

    def note(text: str) -> str:
        if text not in notes:
            notes.append(text)
        return f"[{notes.index(text) + 1}](#notes)"

    lines = [
        "# Where the operator is right",
        "",
        f"Made by `python -m comparisons.modes` with {versions(made)}; a test fails when it is out of date.",
        f"Where {' or '.join(map(versions, newer))} would change a cell, its note says so.",
        "",
        *key(),
        "## What both frameworks have",
        "",
        *grid(made, newer, list(cells), shared, note),
    ]
    for title, columns in alone.items():
        own = [mode for mode in cells[columns[0]] if mode not in shared]
        lines += [f"## {title}", "", *grid(made, newer, columns, own, note)]
    lines += ["## Notes", "", *(f"{number}. {text}" for number, text in enumerate(notes, start=1))]
    return "\n".join(lines) + "\n"


def in_page(made: dict[str, Any], page: str) -> str:
    """The page with its part of the table, up to second derivatives, and the count of each outcome."""
    cells = made["cells"]
    modes = [mode for mode in next(iter(cells.values())) if mode == "value" or set(mode.split()) <= FIRST_AND_SECOND]
    modes = [mode for mode in modes if mode.count("over") < 2]
    counts = Counter(cell["outcome"] for column in cells.values() for cell in column.values())
    lines = [
        f"With {versions(made)}:",
        "",
        *grid(made, [], list(cells), modes, lambda text: ""),
        *key(),
        f"In all, {sum(counts.values())} cells: " + ", ".join(f"{counts[name]} {name}" for name in SIGNS) + ".",
    ]
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return "\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"])


def committed_newer() -> list[dict[str, Any]]:
    """The tables that newer versions gave."""
    return [json.loads(path.read_text()) for path in sorted(HERE.glob("modes_*.json"))]


@click.command()
@click.option("--framework", "frameworks", type=click.Choice(["torch", "jax"]), multiple=True, default=["torch", "jax"])
@click.option("--newer", is_flag=True, help="Write what newer versions give beside the table, and not the table.")
@click.option("--folder", type=click.Path(path_type=Path), default=HERE, help="Where modes.json and modes.md go.")
@click.option("--page", type=click.Path(path_type=Path), help="The page whose table to replace: docs/operator.md.")
def main(frameworks: tuple[str, ...], newer: bool, folder: Path, page: Path | None) -> None:
    """Run every mode of every operator, and write the table."""
    # Two devices on one CPU, for sharding; JAX reads this when it first looks for devices.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
    # PyTorch's cache of compiled programs knows a Function by its name, and would give the rule as it is multiplied;
    # what is compiled lies in a folder of its own, in which nothing else that runs writes.
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    with TemporaryDirectory() as compiled:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled
        made = tables(frameworks)
    suffix = "".join(f"_{name}" for name in frameworks) if newer else ""
    (folder / f"modes{suffix}.json").write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n")
    if newer:
        made = json.loads((folder / "modes.json").read_text())
    (folder / "modes.md").write_text(markdown(made, committed_newer()))
    if page:
        page.write_text(in_page(made, page.read_text()))
    wrong = [
        f"{column}: {mode}"
        for column, modes in made["cells"].items()
        for mode in modes
        if modes[mode]["outcome"] == "wrong"
    ]
    for cell in wrong:
        click.echo(f"wrong: {cell}", err=True)
    sys.exit(1 if wrong else 0)
