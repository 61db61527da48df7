"""The commands: `torchp3` and `jaxp3` fit a specification, `p3 compare` fits it with both."""

import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from io import StringIO
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from p3 import parity
from p3.backends import BACKENDS, BackendName, load
from p3.checkpoint import Checkpoint
from p3.comparison import compare
from p3.errors import DivergenceError, InputError
from p3.explanation import explain
from p3.flags import WholeNumbers, specification, specification_flags
from p3.parity.inputs import load_function, parse_input, parse_keyword
from p3.result import FitResult
from p3.spec import TrainingSpec
from p3.starts import StartsResult, random_starts

EXIT_CODES = """
Exit code: 0 if all is well, 1 if a fit diverged or a comparison failed, 2 if the command or its input is wrong, 130 if
interrupted."""


def writable(context: click.Context, parameter: click.Parameter, path: str | None) -> Path | None:
    """The path of a file that can be written, found out before the work and not after it."""
    if path is None:
        return None
    is_new = not os.path.lexists(path)
    try:
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise InputError(f"{parameter.opts[0]} {path}: cannot be written: {error.strerror}") from error
    if is_new:
        os.unlink(path)
    return Path(path)


def drawable(context: click.Context, parameter: click.Parameter, path: str | None) -> Path | None:
    """The path of a picture that can be drawn and written."""
    if path is not None:
        if not path.endswith((".png", ".svg", ".pdf")):
            raise InputError(f"{parameter.opts[0]} {path}: it must end in .png, .svg or .pdf")
        if not find_spec("matplotlib"):
            raise InputError(f'{parameter.opts[0]} needs matplotlib; install it with: pip install "matplotlib>=3.9"')
    return writable(context, parameter, path)


@contextmanager
def progress_bar(title: str, jit: bool, total: int) -> Iterator[Callable[[float, float], None]]:
    """A bar on a terminal's standard error, of steps or of fits, and nothing in a pipe."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        redirect_stdout=sys.stdout.isatty(),
    ) as bar:
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
    with (
        progress_bar(BACKENDS[backend].title, spec.jit, spec.steps) as show,
        interrupts_noted(checkpoint is not None) as interrupted,
    ):

        def progress(step: int, loss: float) -> None:
            show(step + 1, loss)
            if report is not None:
                report(step, loss)
            if checkpoint is not None and interrupted() and step + 1 < spec.steps:
                again = f"{BACKENDS[backend].package} --checkpoint {shlex.quote(str(checkpoint.directory))} --resume"
                raise click.exceptions.Abort(f"interrupted; saved up to step {step}: go on with {again}")

        result: FitResult = package.fit(spec, progress, checkpoint)
    return result


def fit_starts(backend: BackendName, spec: TrainingSpec, count: int, spread: float) -> StartsResult:
    """The backend's fits from random starts, with a progress bar."""
    package = load(backend)
    with progress_bar(BACKENDS[backend].title, spec.jit, count) as show:
        result: StartsResult = package.fit_starts(spec, random_starts(spec, count, spread), show)
    return result


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
            many = fit_starts(backend, specification(spec_file, flags), starts, spread)
            click.echo(many)
            if output:
                many.save(output)
            if basin:
                from p3.plot import plot_basin  # matplotlib, which only a picture needs

                plot_basin(many).savefig(basin)
            return 1 if many.best is None else 0
        if spread is not None or basin is not None:
            raise InputError("--spread and --basin are of many fits; say how many with --starts")
        if resume and checkpoint is None:
            raise InputError("--resume needs the directory of the run; give it with --checkpoint")
        if checkpoint == "":
            raise InputError("--checkpoint is empty; give it a directory")
        saved = Checkpoint(checkpoint, resume) if checkpoint is not None else None
        spec = specification(spec_file, flags, saved.specification() if saved is not None else None)
        result = fit(backend, spec, lambda step, loss: click.echo(f"{step} {loss}"), saved)
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


def compare_callback(paths: tuple[str, ...], plot: Path | None, report: Path | None, **flags: Any) -> int:
    """`p3 compare`."""
    if len(paths) == 2:
        if any(value is not None for value in flags.values()):
            raise InputError("a saved result keeps its specification: give either two results or flags")
        a, b = (FitResult.load(path) for path in paths)
    elif len(paths) < 2:
        spec = specification(paths[0] if paths else None, flags)
        for backend in BACKENDS:
            load(backend)
        a, b = (fit(backend, spec) for backend in BACKENDS)
    else:
        raise InputError(f"{len(paths)} files were given; give one specification, or two results, or none")
    comparison = compare(a, b)
    console = Console()
    console.print(comparison) if console.is_terminal else click.echo(comparison)
    if plot:
        from p3.plot import plot_all  # matplotlib, which only a picture needs

        plot_all(comparison).savefig(plot)
    if report:
        from p3.page import write_comparison  # matplotlib and Jinja, which only a page needs

        write_comparison(comparison, report)
    return 0 if comparison.ok else 1


def explain_callback(spec_file: str | None, step: int, points: tuple[int, ...] | None, **flags: Any) -> int:
    """`p3 explain`."""
    explanation = explain(specification(spec_file, flags), step, points)
    console = Console()
    console.print(explanation) if console.is_terminal else click.echo(explanation)
    return 0 if explanation.ok else 1


def check_callback(
    reference: str,
    port: str,
    inputs: tuple[str, ...],
    frameworks: tuple[BackendName, BackendName],
    keywords: tuple[str, ...],
    closed_form: str | None,
    report: Path | None,
    **options: Any,
) -> int:
    """`p3 check`."""
    arrays = tuple(parse_input(text) for text in inputs)
    static = dict(parse_keyword(text) for text in keywords)
    sides = [
        load(framework).as_operator(load_function(name), **static)
        for framework, name in zip(frameworks, (reference, port), strict=True)
    ]
    if closed_form is not None:
        options["closed_form"] = load_function(closed_form)
    with check_progress() as progress:
        result = parity.check(sides[0], sides[1], arrays, progress=progress, **options)
    console = Console()
    console.print(result) if console.is_terminal else click.echo(result)
    if report is not None:
        if report.suffix == ".json":
            report.write_text(result.to_json() + "\n", encoding="utf-8")
        else:
            from p3.parity.page import write_page  # matplotlib and Jinja, which only a page needs

            write_page(result, report)
    return 0 if result.ok else 1


@contextmanager
def check_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal's standard error, and nothing in a pipe."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("")
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


def page_directory(context: click.Context, parameter: click.Parameter, path: str | None) -> Path | None:
    """The path of a directory that a page can be written to."""
    if path is None:
        return None
    require_page_libraries(f"{parameter.opts[0]} {path}")
    if path == "":
        raise InputError(f"{parameter.opts[0]} is empty; give it a directory")
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{parameter.opts[0]} {path}: cannot be made a directory: {error.strerror}") from error
    writable(context, parameter, str(Path(path) / "comparison.html"))
    return Path(path)


def require_page_libraries(what: str) -> None:
    """Raise `InputError`, with what installs them, if the libraries of a page are missing."""
    missing = [name for name in ("matplotlib", "jinja2") if not find_spec(name)]
    if missing:
        install = 'pip install "matplotlib>=3.9" "jinja2>=3.1"'
        raise InputError(f"{what} needs {' and '.join(missing)}; install with: {install}")


def reportable(context: click.Context, parameter: click.Parameter, path: str | None) -> Path | None:
    """The path of a report that can be written."""
    if path is not None:
        if not path.endswith((".json", ".html")):
            raise InputError(f"{parameter.opts[0]} {path}: it must end in .json or .html")
        if path.endswith(".html"):
            require_page_libraries(f"{parameter.opts[0]} {path}")
    return writable(context, parameter, path)


def p3_command() -> click.Group:
    """`p3` and its subcommands."""
    compare_command = click.Command(
        "compare",
        callback=compare_callback,
        params=[
            click.Argument(["paths"], metavar="[SPEC.toml | RESULT.json RESULT.json]", nargs=-1),
            *specification_flags(),
            click.Option(["--plot"], metavar="PICTURE", callback=drawable, help="Draw both fits; .png, .svg or .pdf."),
            click.Option(["--report"], metavar="DIR", callback=page_directory, help="Write comparison.html there."),
        ],
        short_help="Fit with PyTorch and with JAX, and compare.",
        help=f"""
Fit a specification with PyTorch and with JAX, or take two saved results, and say whether they agree.

Prints the loss before each reported step in both, the coefficients, the best fit possible, timings, and the verdict
with its tolerance. Without SPEC.toml it is the problem of PyTorch's tutorial "Defining new autograd functions".
{EXIT_CODES}""",
    )
    check_command = click.Command(
        "check",
        callback=check_callback,
        params=[
            click.Argument(["reference"]),
            click.Argument(["port"]),
            click.Option(
                ["--input", "inputs"],
                multiple=True,
                required=True,
                metavar="EXPRESSION",
                help='Once for each argument, such as "linspace(-3, 3, 1001)"; or x.npy, or x.npz:name.',
            ),
            click.Option(
                ["--frameworks"],
                type=(click.Choice(list(BACKENDS)), click.Choice(list(BACKENDS))),
                default=("torch", "jax"),
                show_default=True,
                help="Of REFERENCE and of PORT.",
            ),
            click.Option(["--keyword", "keywords"], multiple=True, metavar="NAME=VALUE", help="Given to both always."),
            click.Option(["--closed-form"], metavar="MODULE:FUNCTION", help="The true function, in NumPy."),
            click.Option(["--surrogate"], is_flag=True, help="The rule is on purpose not the derivative."),
            click.Option(
                ["--point", "points"], type=float, multiple=True, help="A kink, or another point to check at."
            ),
            click.Option(
                ["--dtype", "dtypes"],
                type=click.Choice(parity.DTYPES),
                multiple=True,
                default=parity.DTYPES,
                help="Types to check in; all where none is named.",
            ),
            click.Option(
                ["--only"], type=click.Choice(list(parity.CHECKS)), multiple=True, help="Checks to make, and no other."
            ),
            click.Option(["--compiled/--no-compiled"], default=True, help="Compiled modes, which take seconds."),
            click.Option(["--seed"], type=click.IntRange(0), default=0, help="Of cotangents, tangents and directions."),
            click.Option(["--report"], metavar="FILE", callback=reportable, help="Save a report; .html or .json."),
        ],
        short_help="Check a port of an operator from one framework to the other.",
        help=f"""
Say whether PORT does what REFERENCE does, derivatives and all, how that is known, and whether these inputs could have
shown a fault.

REFERENCE and PORT are functions, as in my_ops:softplus or my_ops.py:softplus; the first in PyTorch and the second in
JAX, unless --frameworks says otherwise. Each check passes, fails, is refused by a side that raises, or does not apply.
{EXIT_CODES}""",
    )
    explain_command = click.Command(
        "explain",
        callback=explain_callback,
        params=[
            click.Argument(["spec_file"], metavar="[SPEC.toml]", required=False),
            *specification_flags(),
            click.Option(["--step"], type=int, default=0, show_default=True, help="Step to take apart, from 0."),
            click.Option(["--points"], type=WholeNumbers(), default=None, help="Points to show; three if not given."),
        ],
        short_help="Take one step of training apart, with its numbers.",
        help=f"""
Show one step of training with its numbers: forward values, local derivative, incoming and outgoing gradient of some
points, their sums over all points, and the update; by hand, by PyTorch, by JAX, and by finite differences.
{EXIT_CODES}""",
    )
    return click.Group(
        "p3",
        commands=[compare_command, explain_command, check_command],
        help="One operator in PyTorch and in JAX, how they compare, and the checker of any port.",
    )


def run(command: click.Command) -> NoReturn:
    """Run a command, turn what went wrong into one line on standard error, and exit."""

    def complain(message: object, *_: object, **__: object) -> None:
        print(f"{command.name}:", " ".join(str(message).splitlines()), file=sys.stderr)

    warnings.showwarning = complain
    sys.stdout = sys.stdout or StringIO()  # None where the shell has closed it
    try:
        code = command.main(prog_name=command.name, standalone_mode=False)
        sys.stdout.flush()
    except click.UsageError as error:
        complain(error.format_message())
        code = 2
    except (InputError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader of our output has left, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        complain(error)
        code = 2
    except MemoryError as error:
        complain(f"not enough memory: {error}; ask for fewer points or steps")
        code = 2
    except DivergenceError as error:
        complain(error)
        code = 1
    except click.Abort as error:
        complain(str(error) or "interrupted")
        code = 130
    sys.exit(code)


def torchp3() -> NoReturn:
    """The entry point of `torchp3`."""
    run(fit_command("torch"))


def jaxp3() -> NoReturn:
    """The entry point of `jaxp3`."""
    run(fit_command("jax"))


def p3() -> NoReturn:
    """The entry point of `p3`."""
    run(p3_command())
