"""A wheel, installed with one framework or the other, gives that framework's command and no other's."""

import subprocess
import sys
import zipfile

import pytest

from tests.support.problems import COMPARISONS

ROOT = COMPARISONS.parent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT], check=True)
    (path,) = folder.glob("p3-*.whl")
    return path


def test_the_wheel_holds_the_packages_whole(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(
        ["git", "ls-files", "p3", "torchp3", "jaxp3"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert held == set(tracked.stdout.split())


@pytest.mark.parametrize(("extra", "command", "other"), [("torch", "torchp3", "jax"), ("jax", "jaxp3", "torch")])
def test_one_framework_is_an_install_that_works(wheel, extra, command, other, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    pip = [sys.executable, "-m", "pip", "--python", tmp_path / "bin" / "python"]
    # Of a framework's thousands of files few are loaded here, so that the rest need not be compiled to bytecode.
    install = ["install", "-q", "--no-compile", "-c", ROOT / "constraints.txt", f"{wheel}[{extra}]"]
    subprocess.run([*pip, *install], check=True)

    def run(*arguments):
        return subprocess.run(
            [tmp_path / "bin" / arguments[0], *arguments[1:]], capture_output=True, text=True, cwd=tmp_path
        )

    fit = run(command, "--steps", "200")
    assert fit.returncode == 0, fit.stderr
    assert fit.stdout.splitlines()[-1].startswith("Result: y = ")
    assert run("python", "-c", f"import {other}").returncode == 1
    both = run("p3", "compare")
    assert both.returncode == 2
    assert len(both.stderr.splitlines()) == 1
    assert f"needs {other}, which is not installed" in both.stderr
