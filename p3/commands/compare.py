"""`p3 compare`: fit a specification with both frameworks, or take two saved results, and say whether they agree."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from p3.backends import BACKENDS, load
from p3.commands import EXIT_CODES
from p3.commands.files import drawable, page_directory
from p3.commands.fit import fit
from p3.commands.flags import specification, specification_flags
from p3.errors import InputError
from p3.fitting.comparison import compare
from p3.fitting.result import FitResult


def compare_command() -> click.Command:
    """`p3 compare`."""
    return click.Command(
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


def compare_callback(paths: tuple[str, ...], plot: Path | None, report: Path | None, **flags: Any) -> int:
    """Fit or load, compare, and show."""
    if len(paths) == 2:
        if any(value is not None for value in flags.values()):
            raise InputError("a saved result keeps its specification: give either two results or flags")
        a, b = (FitResult.load(path) for path in paths)
    elif len(paths) < 2:
        spec = specification(paths[0] if paths else None, flags)
        if spec.devices > 1:
            raise InputError(
                f"devices = {spec.devices}, and this fits in one process; fit with torchp3 and jaxp3, with --output, "
                "and give the two results"
            )
        for backend in BACKENDS:
            load(backend)
        a, b = (fit(backend, spec) for backend in BACKENDS)
    else:
        raise InputError(f"{len(paths)} files were given; give one specification, or two results, or none")
    comparison = compare(a, b)
    console = Console()
    console.print(comparison) if console.is_terminal else click.echo(comparison)
    if plot:
        from p3.fitting.plot import plot_all  # matplotlib, which only a picture needs

        plot_all(comparison).savefig(plot)
    if report:
        from p3.fitting.page import write_comparison  # matplotlib and Jinja, which only a page needs

        write_comparison(comparison, report)
    return 0 if comparison.ok else 1
