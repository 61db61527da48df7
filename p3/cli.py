"""The commands: `torchp3` and `jaxp3` fit a specification, `p3 compare` fits it with both."""

import os
import sys
import warnings
from io import StringIO
from typing import NoReturn

import click

from p3 import __version__
from p3.errors import last_words


def p3_command() -> click.Group:
    """`p3` and its subcommands."""
    from p3.commands.check import check_command
    from p3.commands.check_model import check_model_command
    from p3.commands.check_training import check_training_command
    from p3.commands.compare import compare_command
    from p3.commands.explain import explain_command

    return click.Group(
        "p3",
        commands=[
            compare_command(),
            explain_command(),
            check_command(),
            check_model_command(),
            check_training_command(),
        ],
        help="Check a port of an operator between PyTorch and JAX, and compare fits made with both.",
    )


def run(command: click.Command) -> NoReturn:
    """Run a command, turn what went wrong into one line on standard error, and exit."""

    def complain(message: object, *_: object, **__: object) -> None:
        print(f"{command.name}:", " ".join(str(message).splitlines()), file=sys.stderr)

    warnings.showwarning = complain
    sys.stdout = sys.stdout or StringIO()  # None where the shell has closed it
    sys.stderr = sys.stderr or StringIO()
    try:
        click.version_option(__version__, message="%(prog)s %(version)s")(command)
        code = command.main(prog_name=command.name, standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        code = 2
    except click.UsageError as error:
        complain(error.format_message())
        code = 2
    except click.Abort:
        complain("interrupted")
        code = 130
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        said = last_words(error)
        if said is None:
            raise
        message, code = said
        complain(message)
    sys.exit(code)


def torchp3() -> NoReturn:
    """The entry point of `torchp3`."""
    from p3.commands.fit import fit_command  # only what a fit needs

    run(fit_command("torch"))


def jaxp3() -> NoReturn:
    """The entry point of `jaxp3`."""
    from p3.commands.fit import fit_command

    run(fit_command("jax"))


def p3() -> NoReturn:
    """The entry point of `p3`."""
    try:
        run(p3_command())
    except SystemExit as ended:
        limit = sys.modules.get("p3.parity.limit")
        if limit is None or not any(thread.is_alive() for thread in limit.ABANDONED):
            raise
        # A framework would wait for a computation that has no end.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 0)
