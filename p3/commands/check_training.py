"""`p3 check-training`: say whether two trainings do the same, and which step and quantity differs first."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from p3.commands.check import check_progress, exits_reported
from p3.commands.check_model import made
from p3.commands.files import reportable
from p3.errors import InputError
from p3.parity.inputs import load_object
from p3.parity.trainings.checker import check_training
from p3.parity.trainings.training import Training


def check_training_command() -> click.Command:
    """`p3 check-training`."""
    return click.Command(
        "check-training",
        callback=check_training_callback,
        params=[
            click.Argument(["reference"]),
            click.Argument(["port"]),
            click.Option(
                ["--batches"],
                required=True,
                help="An iterable of batches, or a function that makes one without arguments, as my_data.py:batches.",
            ),
            click.Option(["--steps"], type=click.IntRange(1), help="How many steps to take; 100 at most by default."),
            click.Option(
                ["--accept"],
                multiple=True,
                metavar="NAME",
                help='A known difference that is accepted, such as "clip_grad_norm_ 1e-6". May be given several times.',
            ),
            click.Option(["--report"], metavar="FILE", callback=reportable, help="Save a report; .html or .json."),
        ],
        short_help="Check a training that was ported from one framework to the other.",
        help="""
Check that PORT trains as REFERENCE does, step by step, and name the first step and quantity that differs.

REFERENCE and PORT are a torchp3.Training and a jaxp3.Training, in either order, or functions that make them without
arguments, as in my_trainings.py:torch_side. Each step of the port starts from what the reference holds.

Exit code: 0 if nothing differs, 1 if something does, 2 if the command or its input is wrong, 130 if interrupted.""",
    )


def check_training_callback(
    reference: str, port: str, batches: str, steps: int | None, accept: tuple[str, ...], report: Path | None
) -> int:
    """Check, and show."""
    with exits_reported():
        first, second = (training(made(load_object(name), name), name) for name in (reference, port))
        if first.is_torch == second.is_torch:
            raise InputError(f"both trainings are of {first.framework}; give one of PyTorch and one of JAX")
        given = made(load_object(batches), batches)
        with check_progress() as progress:
            result = check_training(first, second, given, steps=steps, accept=accept, progress=progress)
    console = Console()
    console.print(result) if console.is_terminal else click.echo(result)
    if report is not None:
        text = result.to_json() + "\n" if report.suffix == ".json" else result.to_html()
        report.write_text(text, encoding="utf-8")
    return 0 if result.ok else 1


def training(given: Any, name: str) -> Training:
    """
    The training that was given.

    Raises
    ------
    InputError
        It is none.
    """
    if not isinstance(given, Training):
        raise InputError(f"{name} is {type(given).__name__}; give a torchp3.Training or a jaxp3.Training")
    return given
