"""The commands of the packages, run in this process or in one of their own, and what they print where they refuse."""

import os
import subprocess
import sys
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest import mock

import pytest

from p3 import cli

SCRIPTS = Path(sys.executable).parent
QUICK = ["--steps", "20", "--log-every", "8", "--no-jit"]


def run(*command, cwd=None, env=None, **options):
    """A command in a process of its own, as a user runs it: it takes seconds to load a framework."""
    command = [SCRIPTS / command[0], *command[1:]] if command[0] != sys.executable else command
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | (env or {}), timeout=300, **options
    )


def call(name, *arguments, cwd=".", env=None, clear=False):
    """
    What `run` returns, from the command's entry point called in this process, where the frameworks are loaded.

    `env` is added to the environment, or with `clear` is all of it. Warnings are what they are in a new process, and
    not the errors that they are in a test. Modules that it imports from `cwd` are forgotten, as a process would.
    """
    command = [name, *map(str, arguments)]
    loaded = set(sys.modules)
    with (
        chdir(cwd),
        mock.patch.object(sys, "argv", command),
        mock.patch.dict(os.environ, env or {}, clear=clear),
        warnings.catch_warnings(action="default"),
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
    ):
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises(SystemExit) as ended:
            getattr(cli, name)()
    for module in set(sys.modules) - loaded:
        file = getattr(sys.modules[module], "__file__", None)
        if cwd != "." and file and Path(file).is_relative_to(cwd):
            del sys.modules[module]
    return subprocess.CompletedProcess(command, ended.value.code, stdout.getvalue(), stderr.getvalue())


# By default in this process, and among the slow tests as a user runs it, where `p3 check` has two devices of JAX's.
EITHER_WAY = pytest.mark.parametrize(
    "command", [call, pytest.param(run, marks=pytest.mark.slow)], ids=["here", "in a process"]
)


def refused(finished, message, code=2):
    """One line on standard error that holds the message, and the exit code."""
    assert finished.returncode == code, finished.stderr
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert message in finished.stderr, finished.stderr
