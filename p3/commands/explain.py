"""`p3 explain`: take one step of training apart, with its numbers."""

from typing import Any

import click
from rich.console import Console

from p3.commands import EXIT_CODES
from p3.commands.flags import WholeNumbers, specification, specification_flags
from p3.fitting.explanation import explain


def explain_command() -> click.Command:
    """`p3 explain`."""
    return click.Command(
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


def explain_callback(spec_file: str | None, step: int, points: tuple[int, ...] | None, **flags: Any) -> int:
    """Take a step apart, and show it."""
    explanation = explain(specification(spec_file, flags), step, points)
    console = Console()
    console.print(explanation) if console.is_terminal else click.echo(explanation)
    return 0 if explanation.ok else 1
