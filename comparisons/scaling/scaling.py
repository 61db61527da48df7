"""
What a second process gains, and what the sum over processes costs, in one run.

`python -m comparisons.scaling --page docs/devices.md` measures, writes scaling.json and scaling.png beside itself, and
the tables of that page. Two processes with a core each take turns at each number of points: one alone, both on a fit of
their own at the same time, and both on one fit whose points they share. They have a memory bus in common, so that what
sharing costs is the difference from two fits side by side.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from datetime import date
from math import log2
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import click
import jax
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from comparisons.pages import bounds, machine, seconds, write_part
from comparisons.scaling.processes import ended, environments, running
from p3.backends import BACKENDS, BackendName, load
from p3.fitting.spec import TrainingSpec

HERE = Path(__file__).parent
BEGIN, END = bounds("scaling")
FEWEST = 4  # points, whose steps take no time but to begin and to meet
SIZES = (FEWEST, 10**5, 10**6, 10**7, 10**8)
NUMBERS = 5  # the loss and four gradients, which the processes sum
CACHED = 2 * 10**6  # points, which at 8 bytes are half of the cache that two processes share
MANY = (2, 8, 64, 1024)  # devices
PIECES = 6  # of which the first is not counted


def step_seconds(fit: Callable[..., Any], spec: TrainingSpec) -> float:
    """The seconds of a step: the median over pieces of a fit."""
    ends: list[float] = []
    fit(spec, lambda step, loss: ends.append(perf_counter()))
    return float(np.median(np.diff(ends))) / spec.log_every


def spec_of(points: int, devices: int) -> TrainingSpec:
    """A fit of so many points, with pieces of some tenths of a second."""
    length = int(np.clip(2 * 10**7 // points, 10, 100))
    spec = TrainingSpec(steps=PIECES * length, log_every=length, trace=False, devices=devices)
    return spec.replace({"data": {"points": points}, "optimizer": {"learning_rate": 1e-2 / points}})


def collective_seconds(backend: BackendName, numbers: int, turns: int) -> float:
    """The seconds of a sum of so many float32 numbers over all processes, called from Python."""
    if backend == "torch":
        import torch

        values = torch.ones(numbers)
        add = lambda: torch.distributed.all_reduce(values)  # noqa: E731
    else:
        import jax
        from jax.sharding import PartitionSpec

        from jaxp3.fitting.distributed import AXIS, mesh

        values = np.ones(numbers, np.float32)
        spec = PartitionSpec()
        add_up = jax.shard_map(
            lambda values: jax.lax.psum(jax.lax.pcast(values, AXIS, to="varying"), AXIS),
            mesh=mesh(TrainingSpec(devices=2)),
            in_specs=spec,
            out_specs=spec,
        )
        compiled = jax.jit(add_up)
        add = lambda: jax.block_until_ready(compiled(values))  # noqa: E731
    add()
    seconds = []
    for _ in range(turns):
        begin = perf_counter()
        add()
        seconds.append(perf_counter() - begin)
    return float(np.median(seconds))


def measure(backend: BackendName, sizes: list[int], turns: int) -> dict[str, Any]:
    """In each of two processes: what steps take in them, number of points by number of points."""
    package = load(backend)
    distributed = package.distributed
    both = TrainingSpec(devices=2)
    with distributed.joined(both):
        is_first = distributed.process_index() == 0

        def met(seconds: Callable[[], float]) -> float:
            distributed.gather(both, None)
            return max(distributed.gather(both, seconds()))

        taken: dict[str, dict[int, list[float]]] = {}
        for points in sizes:
            for _ in range(turns):
                half = points // 2
                for name, run in {
                    "alone": lambda n=points: step_seconds(package.fit, spec_of(n, 1)) if is_first else 0.0,
                    "half alone": lambda n=half: step_seconds(package.fit, spec_of(n, 1)) if is_first else 0.0,
                    "halves side by side": lambda n=half: step_seconds(package.fit, spec_of(n, 1)),
                    "shared": lambda n=points: step_seconds(package.fit, spec_of(n, 2)),
                }.items():
                    taken.setdefault(name, {}).setdefault(points, []).append(met(run))
        numbers = {NUMBERS: 1000, 10**6: 30}
        collective = {n: met(lambda n=n, k=k: collective_seconds(backend, n, k)) for n, k in numbers.items()}
    return {"steps": taken, "collective": collective}


def in_two_processes(backend: BackendName, sizes: list[int], turns: int) -> dict[str, Any]:
    """The same, in two new processes with a core each: the medians of all turns."""
    command = [sys.executable, "-m", "comparisons.scaling", "--worker", backend, json.dumps(sizes), str(turns)]
    with running([command] * 2, environments(backend, 2)) as processes:
        endings = ended(processes, 1800)
    for ending in endings:
        assert ending.code == 0, ending.errors
    measured = json.loads(endings[0].output.splitlines()[-1])
    steps = {
        name: {int(points): float(np.median(turns)) for points, turns in of_name.items()}
        for name, of_name in measured["steps"].items()
    }
    return {"steps": steps, "collective": {int(n): taken for n, taken in measured["collective"].items()}}


class Cost(NamedTuple):
    """
    What a step costs, in seconds: begin + k · a point, and where several devices share the points, to meet besides.

    Of k points a device. Each number is from one measurement, none of them of what it is then held against.

    Attributes
    ----------
    begin : of a step, whatever the points
    cached : a point, where all of them stay in the cache
    streamed : a point, where they come from memory each time, by how many processes take them from there
    meet : two processes, for the sum of a few numbers
    byte : of the numbers that are summed
    """

    begin: float
    cached: float
    streamed: Mapping[int, float]
    meet: float
    byte: float

    def compute(self, points: float, on_the_bus: int) -> float:
        """Of a device that has so many points."""
        return self.begin + points * (self.cached if points <= CACHED else self.streamed[on_the_bus])

    def communicate(self, devices: int, is_tree: bool = True) -> float:
        """By a tree, two ways of log₂ p hops; or round a ring, 2 (p − 1) hops, as Gloo does it; of two the same."""
        hops = log2(devices) if is_tree else devices - 1
        return hops * (self.meet + 4 * NUMBERS * self.byte) if devices > 1 else 0.0


def cost_of(measured: Mapping[str, Any]) -> Cost:
    """The model, from the fewest points, from halves that two processes take side by side, and from sums alone."""
    steps, collective = measured["steps"], measured["collective"]
    alone, side_by_side = steps["half alone"], steps["halves side by side"]
    cached, streamed = (
        [points for points in side_by_side if (points // 2 <= CACHED) == is_cached and points > FEWEST]
        for is_cached in (True, False)
    )
    begin = steps["alone"][FEWEST]
    at = max(cached)
    far = max(streamed, default=at)
    few, many = min(collective), max(collective)
    return Cost(
        begin,
        (side_by_side[at] - begin) / (at // 2),
        {1: (alone[far] - begin) / (far // 2), 2: (side_by_side[far] - begin) / (far // 2)},
        steps["shared"][FEWEST] - begin,
        max(0.0, collective[many] - collective[few]) / (4 * (many - few)),
    )


def predictions(measured: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """What the model says of each number of points, by one process alone and by two that share them."""
    cost = cost_of(measured)
    sizes = [points for points in measured["steps"]["alone"] if points > FEWEST]
    return {
        "alone": {points: cost.compute(points, 1) for points in sizes},
        "shared": {points: cost.compute(points / 2, 2) + cost.communicate(2) for points in sizes},
    }


def enough(cost: Cost, devices: int, is_tree: bool) -> float:
    """The points a device of which the sums take a tenth of a step, each device having a memory of its own."""
    return 9 * cost.communicate(devices, is_tree) / cost.streamed[1]


def draw(made: Mapping[str, Any]) -> Figure:
    """A step by one process and by two, as measured and as predicted; and the efficiency of many devices."""
    figure = Figure(figsize=(16, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, (backend, measured) in zip("rb", made["measured"].items(), strict=True):
        title, predicted = BACKENDS[backend].title, predictions(measured)
        for name, marker, who in (("alone", "o", "one process"), ("shared", "s", "two")):
            sizes = list(predicted[name])
            left.loglog(sizes, [measured["steps"][name][n] for n in sizes], f"{color}{marker}", label=f"{title}, {who}")
            style = "-" if name == "alone" else "--"
            left.loglog(sizes, list(predicted[name].values()), f"{color}{style}", label=f"{title}, {who}: the model")
        cost, points = cost_of(measured), np.logspace(5, 10, 100)
        for devices, style in zip(MANY[1:], ("-", "--", ":"), strict=True):
            compute = np.array([cost.compute(n, 1) for n in points])
            right.semilogx(
                points, compute / (compute + cost.communicate(devices)), f"{color}{style}", label=f"{title}, {devices}"
            )
    left.set(xlabel="points", ylabel="seconds of a step")
    right.set(xlabel="points a device", ylabel="share of a step that is not the sum over devices, by a tree")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    return figure


def page_part(made: Mapping[str, Any]) -> str:
    """The tables of docs/devices.md: what was measured, and what the model predicts."""
    lines = [
        f"On {made['machine']}, {made['date']}, with torch {made['torch']} and jax {made['jax']}, a core for each of "
        "two processes; a step in float32:",
        "",
        "| | points | one process | two | gain | two, × two fits of half side by side | in the sum | model | error |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for backend, measured in made["measured"].items():
        steps, predicted = measured["steps"], predictions(measured)["shared"]
        for points, model in predicted.items():
            alone, shared = steps["alone"][points], steps["shared"][points]
            apart = steps["halves side by side"][points]
            in_sum = max(0.0, 1 - apart / shared)
            lines.append(
                f"| {BACKENDS[backend].title} | 10{EXPONENTS[round(np.log10(points))]} | {seconds(alone)} | "
                f"{seconds(shared)} | {alone / shared:.2g} | {shared / apart:.3g} | {in_sum:.0%} | "
                f"{seconds(model)} | {model / shared - 1:+.0%} |"
            )
    lines += [
        "",
        "| A sum over devices takes a tenth of a step | " + " | ".join(f"{devices} devices" for devices in MANY) + " |",
        "| --- |" + " ---: |" * len(MANY),
    ]
    for backend, measured in made["measured"].items():
        for is_tree in (True, False):
            points = [f"{enough(cost_of(measured), devices, is_tree):.2g}" for devices in MANY]
            way = "by a tree" if is_tree else "round a ring"
            lines.append(f"| {BACKENDS[backend].title}, {way}, of so many points each | {' | '.join(points)} |")
    return "\n".join([BEGIN, *lines, "", END])


EXPONENTS = {4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸"}


@click.command()
@click.option("--small", is_flag=True, help="Sizes that take seconds.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Of each measurement.")
@click.option("--output", type=click.Path(path_type=Path), default=HERE / "scaling.json", help="Where to write JSON.")
@click.option("--plot", type=click.Path(path_type=Path), default=HERE / "scaling.png", help="Where to draw.")
@click.option("--page", type=click.Path(path_type=Path), help="The page whose tables to replace: docs/devices.md.")
@click.option("--worker", hidden=True, nargs=3, type=(click.Choice(list(BACKENDS)), str, int))
def main(
    small: bool,
    turns: int,
    output: Path,
    plot: Path,
    page: Path | None,
    worker: tuple[BackendName, str, int] | None,
) -> None:
    """Measure two processes, and write what it came to."""
    if worker is not None:
        backend, sizes, turns = worker
        index = int(os.environ.get("RANK", os.environ.get("JAX_PROCESS_ID", "0")))
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})
        print(json.dumps(measure(backend, json.loads(sizes), turns)), flush=True)
        return
    made: dict[str, Any] = {
        "date": date.today().isoformat(),
        "machine": machine(),
        "torch": torch.__version__,
        "jax": jax.__version__,
        "measured": {},
    }
    console = Console(stderr=True)
    for backend in BACKENDS:
        with console.status(BACKENDS[backend].title) if console.is_terminal else nullcontext():
            made["measured"][backend] = in_two_processes(backend, [FEWEST, 10**4] if small else list(SIZES), turns)
    output.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
    draw(made).savefig(plot)
    click.echo(page_part(made))
    if page is not None:
        write_part(page, page_part(made))
