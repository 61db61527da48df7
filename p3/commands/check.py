"""`p3 check`: say whether a port of an operator is right."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Event, Thread
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from p3 import parity
from p3.backends import BACKENDS, BackendName, load
from p3.commands.files import reportable
from p3.errors import InputError, UncallableError
from p3.parity.frameworks import takes_other_arrays
from p3.parity.inputs import load_function, parse_input, parse_keyword

BETWEEN_LINES = 10.0  # seconds


def frameworks_option() -> click.Option:
    """Which frameworks the two sides are of."""
    return click.Option(
        ["--frameworks"],
        type=(click.Choice(list(BACKENDS)), click.Choice(list(BACKENDS))),
        default=("torch", "jax"),
        show_default=True,
        help="Frameworks of REFERENCE and PORT.",
    )


def check_command() -> click.Command:
    """`p3 check`."""
    return click.Command(
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
                help='Once for each argument, an expression such as "linspace(-3, 3, 1001)"; or x.npy, or x.npz:name. '
                "One x.npz alone has the arguments by name.",
            ),
            frameworks_option(),
            click.Option(
                ["--keyword", "keywords"],
                multiple=True,
                metavar="NAME=VALUE",
                help="A keyword argument that both functions are called with.",
            ),
            click.Option(["--closed-form"], metavar="MODULE:FUNCTION", help="The true function, in NumPy."),
            click.Option(["--surrogate"], is_flag=True, help="The rule is intentionally not the derivative."),
            click.Option(
                ["--linear/--not-linear"],
                default=True,
                help="Whether the rule is linear in its cotangent; one that clips it is not.",
            ),
            click.Option(
                ["--key", "keys"],
                type=int,
                multiple=True,
                help="The position, from 0, of an argument that is a random key or state: its whole numbers are not "
                "varied, and no derivative is taken by its floating ones.",
            ),
            click.Option(
                ["--state", "states"],
                type=int,
                multiple=True,
                help="The position, from 0, of an output that is a state: it is compared, and has no derivative.",
            ),
            click.Option(
                ["--edges"],
                type=click.Choice(["report", "fail"]),
                default="report",
                show_default=True,
                help="What becomes of differences at infinities, NaN, huge and subnormal numbers.",
            ),
            click.Option(
                ["--point", "points"],
                type=float,
                multiple=True,
                help="A kink, or another point to check at; may be repeated.",
            ),
            click.Option(
                ["--dtype", "dtypes"],
                type=click.Choice(parity.DTYPES),
                multiple=True,
                default=parity.DTYPES,
                help="A dtype to check in; may be repeated. All by default.",
            ),
            click.Option(
                ["--only"],
                type=click.Choice(list(parity.CHECKS)),
                multiple=True,
                help="A check to run; may be repeated. All by default.",
            ),
            click.Option(
                ["--compiled/--no-compiled"], default=True, help="Whether to check compiled modes, which takes seconds."
            ),
            click.Option(
                ["--timeout"],
                type=click.FloatRange(0, min_open=True),
                metavar="SECONDS",
                help="How long each call of a function may take.",
            ),
            click.Option(
                ["--seed"],
                type=click.IntRange(0),
                default=0,
                help="Seed of the random cotangents, tangents and directions.",
            ),
            click.Option(["--report"], metavar="FILE", callback=reportable, help="Save a report; .html or .json."),
        ],
        short_help="Check a port of an operator from one framework to the other.",
        help="""
Check that PORT computes the same as REFERENCE, with all its derivatives, and that the inputs would have shown a fault.

REFERENCE and PORT are functions, as in my_ops:softplus or my_ops.py:softplus; the first in PyTorch and the second in
JAX, unless --frameworks says otherwise. Each check passes, fails, is refused because a side raises, or does not apply.

Exit code: 0 if no check failed, 1 if a check failed, 2 if the command or its input is wrong, 130 if interrupted.""",
    )


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
    """Check, and show."""
    given = tuple(map(parse_input, inputs))
    arrays = given[0] if len(given) == 1 and isinstance(given[0], dict) else given
    static = dict(parse_keyword(text) for text in keywords)
    with two_devices():
        packages = [load(framework) for framework in frameworks]
    with exits_reported():
        sides = [
            package.as_operator(load_function(name), **static)
            for package, name in zip(packages, (reference, port), strict=True)
        ]
        if closed_form is not None:
            options["closed_form"] = load_function(closed_form)
        try:
            with check_progress() as progress:
                result = parity.check(sides[0], sides[1], arrays, progress=progress, **options)
        except UncallableError as error:
            index = ("reference", "port").index(error.side)
            function = partial(load_function((reference, port)[index]), **static)
            if takes_other_arrays(function, frameworks[index], arrays):
                hint = (
                    "are REFERENCE and PORT in the order of --frameworks, which is torch jax unless you give another?"
                )
                raise InputError(f"{error}; it takes arrays of the other framework: {hint}") from error
            raise
    console = Console()
    console.print(result) if console.is_terminal else click.echo(result)
    if report is not None:
        if report.suffix == ".json":
            report.write_text(result.to_json() + "\n", encoding="utf-8")
        else:
            report.write_text(result.to_html(), encoding="utf-8")
    return 0 if result.ok else 1


@contextmanager
def exits_reported() -> Iterator[None]:
    """Raise an `InputError` where the user's code calls sys.exit, which could end the command as if all were well."""
    try:
        yield
    except SystemExit as error:
        raise InputError(f"a function has called sys.exit({error.code!r}); let it return or raise instead") from error


@contextmanager
def two_devices() -> Iterator[None]:
    """
    JAX, if it is imported meanwhile, has two CPU devices to divide arrays among, unless the user says how many.

    A command can ask for them, since it is a process of its own; a library that did would change its user's program.
    """
    variable = "JAX_NUM_CPU_DEVICES"  # which JAX reads on import, and no more after that
    if variable in os.environ or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        yield
        return
    os.environ[variable] = "2"
    try:
        yield
    finally:
        del os.environ[variable]


@contextmanager
def check_progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal's standard error, and in a pipe a line every ten seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        with lines_now_and_then() as progress:
            yield progress
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda name, done, total: bar.update(task, description=name, completed=done, total=total)


@contextmanager
def lines_now_and_then() -> Iterator[Callable[[str, int, int], None]]:
    """Every ten seconds, a line that says what runs."""
    running: list[tuple[str, int, int]] = []
    ended = Event()

    def tell() -> None:
        while not ended.wait(BETWEEN_LINES):
            for name, done, total in running[-1:]:
                click.echo(f"{name}: {done} of {total} done", err=True)

    teller = Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield lambda name, done, total: running.append((name, done, total))
    finally:
        ended.set()
        teller.join()
