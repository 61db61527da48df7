"""README.md is short, its links lead to files, and all its blocks run in order; so do the Python blocks of docs."""

import re
import subprocess
import sys

import pytest

from tests.support.problems import COMPARISONS

ROOT = COMPARISONS.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SET_UP = "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[{}]' && "


def blocks(text):
    """The language and the text of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)


# What the two checks print.
SHOWN = [block for language, block in blocks(README) if not language]


def words(text):
    return " ".join(text.split())


def test_it_is_short_and_begins_with_a_check_and_its_output():
    lines = README.splitlines()
    assert len(lines) <= 170
    first = "\n".join(lines[:40])
    assert "p3 check comparisons/softplus.py:Softplus" in first
    assert "inputs[1], against finite differences" in first


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert (page.parent / link).is_file(), link


def python_of(page):
    return "\n".join(text for language, text in blocks(page.read_text(encoding="utf-8")) if language == "python")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)], ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, tmp_path):
    (tmp_path / "comparisons").symlink_to(COMPARISONS)
    finished = subprocess.run([sys.executable, "-c", python_of(page)], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


class Ran:
    """A line of a shell block, what it printed, its exit code, and how many pieces the run in `run` has after it."""

    def __init__(self, line, printed):
        *output, marker = printed.rstrip("\n").splitlines()
        self.line, self.output = line, "\n".join(output)
        self.code, self.pieces = map(int, marker.split())


def run_lines(folder):
    """Every line of the shell blocks, run in one shell; but the environment is this one, and the tests are not run."""
    (folder / "comparisons").symlink_to(COMPARISONS)
    (folder / ".venv").symlink_to(sys.prefix)
    text = "\n".join(block for language, block in blocks(README) if language == "sh")
    install, tests = SET_UP.format("all"), SET_UP.format("test") + ".venv/bin/pytest\n"
    assert text.count(install) == text.count(tests) == 1
    lines = text.replace(tests, "").replace(install, "").splitlines()
    after = "code=$?; echo; echo $code $(ls run 2>/dev/null | grep -c '^[0-9]'); echo @@"
    script = "".join(f"{line}\n{after}\n" for line in lines)
    finished = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True)
    *printed, rest = finished.stdout.split("@@\n")
    assert rest == "", finished.stderr
    return [Ran(line, said) for line, said in zip(lines, printed, strict=True)], finished.stderr


@pytest.mark.slow
def test_every_command_runs_in_order_and_does_what_is_said_of_it(tmp_path):
    ran, errors = run_lines(tmp_path)
    checks = [line for line in ran if line.line.startswith("p3 check")]
    assert [(line.line, line.code) for line in ran if line.code] == [(check.line, 1) for check in checks], errors
    for shown, check in zip(SHOWN, checks, strict=True):
        assert words(shown) in words(check.output)
    stopped, resumed = [line for line in ran if "--checkpoint run" in line.line]
    assert len(stopped.output.splitlines()) == 5
    assert 5 <= stopped.pieces < resumed.pieces == 200  # it is really stopped before it is resumed
    assert resumed.output.startswith("Result: y = ")
    for name in ("fit.png", "basin.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "comparison" / "comparison.html").is_file()


def test_docs_show_the_same_output():
    for shown, page in zip(SHOWN, ("checker.md", "models.md"), strict=True):
        assert shown in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_blocks_are_found():
    assert blocks("```sh\na\n```\ntext\n```\nb\n```\n") == [("sh", "a"), ("", "b")]
