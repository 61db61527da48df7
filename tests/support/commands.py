"""The commands of the packages, run in processes of their own, and what they print where they refuse."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
QUICK = ["--steps", "20", "--log-every", "8", "--no-jit"]


def run(*command, cwd=None, env=None, **options):
    command = [SCRIPTS / command[0], *command[1:]] if command[0] != sys.executable else command
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env=os.environ | (env or {}), timeout=300, **options
    )


def refused(finished, message, code=2):
    """One line on standard error that holds the message, and the exit code."""
    assert finished.returncode == code, finished.stderr
    assert len(finished.stderr.splitlines()) == 1, finished.stderr
    assert message in finished.stderr, finished.stderr
