"""`p3 check-model`: say whether a model is a right port, and which layer differs first."""

import inspect
import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from p3.backends import BackendName, load
from p3.commands.check import check_progress, exits_reported, frameworks_option
from p3.commands.files import reportable
from p3.errors import InputError
from p3.parity.inputs import load_function, parse_input
from p3.parity.models.checker import check_model
from p3.parity.models.links import Match


def check_model_command() -> click.Command:
    """`p3 check-model`."""
    return click.Command(
        "check-model",
        callback=check_model_callback,
        params=[
            click.Argument(["reference"]),
            click.Argument(["port"]),
            click.Option(
                ["--input", "inputs"],
                multiple=True,
                required=True,
                metavar="[NAME=]EXPRESSION",
                help='Once for each argument, an expression such as "normal(4, 16)" or "ids=integers(0, 100, [2, 8])"; '
                "or x.npy, or x.npz:name. One x.npz alone has the arguments by name.",
            ),
            frameworks_option(),
            click.Option(
                ["--match", "given"],
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="A match of parameters that --save-match has saved, or corrections of one, as a JSON object of "
                "PyTorch's paths and JAX's.",
            ),
            click.Option(
                ["--save-match"], type=click.Path(dir_okay=False, path_type=Path), help="Save the match of parameters."
            ),
            click.Option(["--seed"], type=click.IntRange(0), default=0, help="Seed of the random cotangents."),
            click.Option(["--report"], metavar="FILE", callback=reportable, help="Save a report; .html or .json."),
        ],
        short_help="Check a port of a model from one framework to the other.",
        help="""
Check that PORT computes the same as REFERENCE, layer by layer, forward and backward, and name the first difference.

REFERENCE and PORT are models, or functions or classes that make them without arguments, as in my_models.py:Net. The
reference's parameters are put into a copy of the port.

Exit code: 0 if nothing differs, 1 if something does, 2 if the command or its input is wrong, 130 if interrupted.""",
    )


def check_model_callback(
    reference: str,
    port: str,
    inputs: tuple[str, ...],
    frameworks: tuple[BackendName, BackendName],
    given: Path | None,
    save_match: Path | None,
    seed: int,
    report: Path | None,
) -> int:
    """Check, and show."""
    arguments = parse_arguments(inputs)
    packages = [load(framework) for framework in frameworks]
    match = None if given is None else read_match(given)
    with exits_reported():
        first, second = (
            package.as_module(made(load_function(name), name))
            for package, name in zip(packages, (reference, port), strict=True)
        )
        with check_progress() as progress:
            result = check_model(first, second, arguments, match=match, seed=seed, progress=progress)
    console = Console()
    console.print(result) if console.is_terminal else click.echo(result)
    if save_match is not None:
        save_match.write_text(result.match.to_json() + "\n", encoding="utf-8")
    if report is not None:
        text = result.to_json() + "\n" if report.suffix == ".json" else result.to_html()
        report.write_text(text, encoding="utf-8")
    return 0 if result.ok else 1


def made(model: Any, name: str) -> Any:
    """
    The model, or what a function or a class makes without arguments.

    Raises
    ------
    InputError
        The function or class raises.
    """
    if not inspect.isfunction(model) and not inspect.isclass(model):
        return model
    try:
        return model()
    except Exception as error:  # of whatever kind the user's code raises
        line = " ".join(str(error).split())
        raise InputError(f"{name} makes no model when it is called without arguments: {line}") from error


def parse_arguments(texts: tuple[str, ...]) -> Any:
    """
    The inputs: a tuple, or a dict where they have names.

    Raises
    ------
    InputError
        Some have names, and others have none.
    """
    named = [text.partition("=") for text in texts]
    if all(name.isidentifier() and equals for name, equals, _ in named):
        return {name: parse_input(text) for name, _, text in named}
    if any(name.isidentifier() and equals for name, equals, _ in named):
        raise InputError("some of --input have names and others have none; give all of them names, or none")
    found = tuple(map(parse_input, texts))
    return found[0] if len(found) == 1 and isinstance(found[0], dict) else found


def read_match(path: Path) -> Match | dict[str, Any]:
    """
    A match that was saved, or corrections of one.

    Raises
    ------
    InputError
        The file is neither.
    """
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(read, dict):
            raise ValueError(f"it is a {type(read).__name__}")
        return Match.from_json(json.dumps(read)) if "links" in read else read
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"--match {path} has no match of parameters in it ({error}); give what --save-match has written, or a "
            'JSON object such as {"fc.weight": "dense.kernel"}'
        ) from error
