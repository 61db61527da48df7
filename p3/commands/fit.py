"""`torchp3` and `jaxp3`: fit a specification, once or from many starts."""

import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import click

from p3.backends import BACKENDS, BackendName, load
from p3.commands import EXIT_CODES
from p3.commands.files import drawable, writable
from p3.commands.flags import specification, specification_flags
from p3.errors import InputError, StoppedError
from p3.fitting.checkpoint import Checkpoint
from p3.fitting.result import FitResult
from p3.fitting.spec import TrainingSpec
from p3.fitting.starts import StartsResult, random_starts


@contextmanager
def progress_bar(title: str, jit: bool, total: int, wanted: bool = True) -> Iterator[Callable[[float, float], None]]:
    """A bar on a terminal's standard error, of steps or of fits, and nothing in a pipe."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda done, loss: None
        return
    from rich.console import Console  # a tenth of a second, which only a terminal needs
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(f"{title}: compiling" if jit else title, total=total)
        yield lambda done, loss: bar.update(task, completed=done, description=f"{title}: loss {loss:.6g}")


@contextmanager
def interrupts_noted(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Whether there was an interrupt, which does nothing else if that is wanted; a second one is an interrupt again."""
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, previous)
        noted.append(number)

    previous = signal.getsignal(signal.SIGINT)
    if wanted:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, previous)


def fit(
    backend: BackendName,
    spec: TrainingSpec,
    report: Callable[[int, float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> FitResult:
    """The backend's fit, with a progress bar, and `report(step, loss)` as the steps are done."""
    package = load(backend)
    is_first = package.distributed.process_index() == 0
    with (
        progress_bar(BACKENDS[backend].title, spec.jit, spec.steps, is_first) as show,
        interrupts_noted(checkpoint is not None) as interrupted,
    ):

        def progress(step: int, loss: float) -> None:
            show(step + 1, loss)
            if report is not None and is_first:
                report(step, loss)
            if checkpoint is None or step + 1 == spec.steps:
                return
            if any(package.distributed.gather(spec, interrupted())):
                again = f"{BACKENDS[backend].package} --checkpoint {shlex.quote(str(checkpoint.directory))} --resume"
                raise StoppedError(f"interrupted; saved up to step {step}: go on with {again}")

        return package.fit(spec, progress, checkpoint)


def fit_starts(backend: BackendName, spec: TrainingSpec, count: int, spread: float) -> StartsResult:
    """The backend's fits from random starts, with a progress bar."""
    package = load(backend)
    with progress_bar(BACKENDS[backend].title, spec.jit, count) as show:
        return package.fit_starts(spec, random_starts(spec, count, spread), show)


def fit_command(backend: BackendName) -> click.Command:
    """`torchp3` or `jaxp3`."""

    def callback(
        spec_file: str | None,
        output: Path | None,
        checkpoint: str | None,
        resume: bool,
        starts: int | None,
        spread: float | None,
        basin: Path | None,
        **flags: Any,
    ) -> int:
        if starts is not None:
            if checkpoint is not None or resume:
                raise InputError("--starts fits many at once, which are not saved; leave out --checkpoint and --resume")
            spread = 1.0 if spread is None else spread
            if not isfinite(spread):
                raise InputError(f"--spread {spread}: it must be finite")
            with load(backend).distributed.joined(specification(spec_file, flags)) as spec:
                many = fit_starts(backend, spec, starts, spread)
            click.echo(many)
            if output:
                many.save(output)
            if basin:
                from p3.fitting.plot import plot_basin  # matplotlib, which only a picture needs

                plot_basin(many).savefig(basin)
            return 1 if many.best is None else 0
        if spread is not None or basin is not None:
            raise InputError("--spread and --basin are of many fits; say how many with --starts")
        if resume and checkpoint is None:
            raise InputError("--resume needs the directory of the run; give it with --checkpoint")
        if checkpoint == "":
            raise InputError("--checkpoint is empty; give it a directory")
        saved = Checkpoint(checkpoint, resume) if checkpoint is not None else None
        begun = saved.specification() if saved is not None else None
        if begun is not None:
            begun = begun.replace({"devices": 1})  # a run goes on with as many as there are now
        spec = specification(spec_file, flags, begun)
        distributed = load(backend).distributed
        with distributed.joined(spec) as spec:
            result = fit(backend, spec, lambda step, loss: click.echo(f"{step} {loss}"), saved)
            if distributed.process_index() == 0:
                click.echo(result)
                if output:
                    result.save(output)
        return 0

    return click.Command(
        BACKENDS[backend].package,
        callback=callback,
        params=[
            click.Argument(["spec_file"], metavar="[SPEC.toml]", required=False),
            *specification_flags(),
            click.Option(["--output"], metavar="RESULT.json", callback=writable, help="Save the result."),
            click.Option(["--checkpoint"], metavar="DIR", help="Save the run there, once in log_every steps."),
            click.Option(
                ["--resume"],
                is_flag=True,
                help="Go on with the run in --checkpoint, of either framework, by its own specification.",
            ),
            click.Option(
                ["--starts"],
                type=click.IntRange(1, 10**12),
                help="Fit from as many random starts at once, by the seed.",
            ),
            click.Option(
                ["--spread"],
                type=click.FloatRange(0),
                help="With --starts: how far a start's coefficients are from the specification's at most. [default 1]",
            ),
            click.Option(
                ["--basin"],
                metavar="PICTURE",
                callback=drawable,
                help="With --starts: draw where each led to, by its c and d; .png, .svg or .pdf.",
            ),
        ],
        help=f"""
Fit y = target(x) by a + b P3(c + d x) with {BACKENDS[backend].title}, where P3(x) = (5x³ - 3x)/2.

Prints a step and the loss before it, once in log_every steps, and the fitted coefficients. Without SPEC.toml it is the
problem of PyTorch's tutorial "Defining new autograd functions". A flag overrides the field of SPEC.toml that it is
named after. `p3 compare` holds two saved results against each other. With --starts it prints how many fits came to
the best one, and its coefficients.
{EXIT_CODES}""",
    )
