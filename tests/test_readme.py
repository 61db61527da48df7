"""README.md is short, its links lead to files, and all its blocks run in order; so do the Python blocks of docs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COMPARISONS

ROOT = COMPARISONS.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[{}]' && "


def blocks(text):
    """The language and the text of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


def words(text):
    return " ".join(text.split())


def test_it_is_short_and_begins_with_a_check_and_its_output():
    lines = README.splitlines()
    assert len(lines) <= 170
    first = "\n".join(lines[:40])
    assert "p3 check comparisons/softplus.py:Softplus" in first
    assert "argument 1, against finite differences" in first


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).is_file(), link


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, tmp_path):
    programs = [block for language, block in blocks(page.read_text(encoding="utf-8")) if language == "python"]
    if not programs:
        pytest.skip("has no Python")
    (tmp_path / "comparisons").symlink_to(COMPARISONS)
    finished = subprocess.run(
        [sys.executable, "-c", "\n".join(programs)], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert finished.returncode == 0, finished.stderr


class Ran:
    """A line of a shell block, what it printed, its exit code, and how many pieces the run in `run` has after it."""

    def __init__(self, line, printed):
        *output, marker = printed.rstrip("\n").splitlines()
        self.line, self.output = line, "\n".join(output)
        self.code, self.pieces = map(int, marker.split())


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Every line of the shell blocks, run in one shell; but the environment is this one, and the tests are not run."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "comparisons").symlink_to(COMPARISONS)
    (folder / ".venv").symlink_to(sys.prefix)
    text = "\n".join(block for language, block in blocks(README) if language == "sh")
    assert text.count(SET_UP.format("all")) == text.count(SET_UP.format("test") + ".venv/bin/pytest\n") == 1
    lines = (
        text.replace(SET_UP.format("test") + ".venv/bin/pytest\n", "").replace(SET_UP.format("all"), "").splitlines()
    )
    script = "".join(f"{line}\necho; echo $? $(ls run 2>/dev/null | grep -c '^[0-9]'); echo @@\n" for line in lines)
    script = script.replace("\necho; echo $?", "\ncode=$?; echo; echo $code")
    finished = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=1500)
    printed = finished.stdout.split("@@\n")
    assert printed.pop() == "", finished.stderr
    return folder, [Ran(line, said) for line, said in zip(lines, printed, strict=True)], finished.stderr


@pytest.mark.slow
def test_every_command_runs_as_it_stands_in_order(ran):
    folder, lines, errors = ran
    assert [(line.line, line.code) for line in lines if line.code] == [
        (line.line, 1) for line in lines if line.line.startswith("p3 check")
    ], errors
    assert (folder / "fit.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "basin.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "comparison" / "comparison.html").is_file()


@pytest.mark.slow
def test_the_output_that_is_shown_is_what_is_printed(ran):
    _, lines, _ = ran
    (shown,) = [block for language, block in blocks(README) if not language]
    (check,) = [line for line in lines if line.line.startswith("p3 check")]
    assert words(shown) in words(check.output)


@pytest.mark.slow
def test_the_run_is_stopped_before_it_is_resumed(ran):
    _, lines, _ = ran
    stopped, resumed = [line for line in lines if "--checkpoint run" in line.line]
    assert len(stopped.output.splitlines()) == 5
    assert 5 <= stopped.pieces < resumed.pieces == 200
    assert resumed.output.startswith("Result: y = ")


def test_docs_show_the_same_output():
    (shown,) = [block for language, block in blocks(README) if not language]
    assert shown in Path(ROOT / "docs" / "checker.md").read_text(encoding="utf-8")


def test_blocks_are_found():
    assert blocks("```sh\na\n```\ntext\n```\nb\n```\n") == [("sh", "a"), ("", "b")]
