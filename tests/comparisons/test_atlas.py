"""The atlas: it is of all pairs and as its explanations say, what it says holds, and its page can be used."""

import random
import re
import subprocess
import sys

import click
import numpy as np
import pytest

from comparisons.atlas import commands
from comparisons.atlas.differences import Atlas, entry, load_explanations, unused
from comparisons.atlas.findings import Examined, examine, run
from comparisons.atlas.page import BEGIN, END, docs_part, render_page
from comparisons.atlas.pairs import CHECKS, load_pairs
from comparisons.pages import ROOT, write_part
from p3 import parity

COMMITTED = ROOT / "comparisons" / "atlas"
ATLAS = Atlas.model_validate_json((COMMITTED / "atlas.json").read_text(encoding="utf-8"))
PAIRS = load_pairs()
EXPLANATIONS = load_explanations()
SAMPLE = random.Random(8).sample(sorted(PAIRS), 15)


NUMBER = re.compile(r"-?\b(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf)\b")


def alike(printed, expected):
    """Whether two outputs are the same but for digits that another machine may have otherwise."""
    if NUMBER.sub("", printed) != NUMBER.sub("", expected):
        return False
    a, b = (np.array([float(number) for number in NUMBER.findall(text)]) for text in (printed, expected))
    return np.allclose(a, b, rtol=1e-3, atol=1e-12, equal_nan=True)


def examined(name):
    """What the checker said of a pair when the atlas was made."""
    found = ATLAS.entries[name]
    return Examined(cells=found.cells, places=[place for d in found.differences for place in d.places])


def test_it_is_of_all_pairs():
    assert len(PAIRS) >= 120
    # As JSON, in which NaN is equal to itself.
    assert {name: found.pair.model_dump_json() for name, found in ATLAS.entries.items()} == {
        name: pair.model_dump_json() for name, pair in PAIRS.items()
    }
    assert set(CHECKS) <= set(parity.CHECKS)


def test_nearly_every_cell_has_a_verdict():
    cells = ATLAS.cells()
    assert sum(cells.values()) == len(PAIRS) * len(CHECKS)
    assert cells["error of the checker"] == 0
    assert cells["not applicable"] <= 0.05 * sum(cells.values())


def test_no_difference_is_unexplained():
    assert "unexplained" not in ATLAS.counts()


@pytest.mark.parametrize("name", PAIRS)
def test_the_explanations_are_the_present_ones(name):
    found = entry(name, PAIRS[name], examined(name), EXPLANATIONS)
    for difference, committed in zip(found.differences, ATLAS.entries[name].differences, strict=True):
        difference.output = committed.output
        # Made of the places, whose own programs are not kept.
        difference.snippet = difference.snippet or committed.snippet
    assert found.model_dump_json() == ATLAS.entries[name].model_dump_json()


def test_every_explanation_explains_something():
    assert list(unused({name: examined(name) for name in PAIRS}, EXPLANATIONS)) == []


def test_every_difference_says_what_both_give_and_shows_it():
    for name, found in ATLAS.entries.items():
        for difference in found.differences:
            if difference.kind != "rounding":
                assert re.search(r"PyTorch|\btorch\.", difference.text), name
                assert re.search(r"JAX|\bjax\.", difference.text), name
            assert difference.snippet, name
            assert "PyTorch" in difference.output, name
            assert "JAX" in difference.output, name


def numbers(text):
    """The numbers of a text: each as it is written, and its value."""
    written = re.findall(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?", text)
    return {number: float(number.replace("−", "-").replace(",", "")) for number in written}


def rounded(value, written):
    """A value to as many digits as a number is written with."""
    digits = len(re.sub(r"e.*|\D", "", written).lstrip("0")) or 1
    return float(f"{value:.{digits - 1}e}")


def test_every_number_of_a_text_is_in_its_programs():
    """So that none is changed without a program that shows it; those below 10 are counts and exponents too."""
    shown = {}
    for found in ATLAS.entries.values():
        for d in found.differences:
            shown.setdefault(d.text, set()).update(numbers(d.snippet + d.output + d.confirmation).values())
    for text, values in shown.items():
        for written, value in numbers(text).items():
            if abs(value) >= 10 or not value.is_integer():
                assert any(rounded(known, written) == value for known in values), (written, text)


CONFIRMED = [explanation for explanation in EXPLANATIONS if explanation.kind in ("bug", "accuracy")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("explanation", CONFIRMED, ids=[next(iter(explanation.at)) for explanation in CONFIRMED])
def test_bugs_and_lost_digits_are_confirmed_without_the_checker(explanation):
    assert "assert " in explanation.confirmation
    assert re.search(r"\b(torch|jax)\.", explanation.confirmation)
    assert "p3" not in explanation.confirmation
    run(explanation.confirmation)


def test_outputs_are_compared_by_their_numbers():
    assert alike("PyTorch 1.0 nan [2.5e-08, -inf]\n", "PyTorch 1.00001 nan [2.5e-08, -inf]\n")
    for other in ("PyTorch 1.1 nan", "PyTorch nan 1.0", "JAX 1.0 nan", "PyTorch 1.0 nan 2.0", "PyTorch -1.0 nan"):
        assert not alike(other, "PyTorch 1.0 nan")


def said(found):
    """What the atlas says of a pair, but for rounding."""
    return found.verdicts, [
        (d.kind, d.text, [place.key for place in d.places]) for d in found.differences if d.kind != "rounding"
    ]


@pytest.mark.slow
def test_made_again_it_says_the_same(tmp_path):
    again, _ = commands.assemble(SAMPLE, tmp_path)
    assert {name: said(again.entries[name]) for name in SAMPLE} == {name: said(ATLAS.entries[name]) for name in SAMPLE}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in PAIRS if ATLAS.entries[name].differences])
def test_its_programs_print_what_they_did(name):
    for difference in ATLAS.entries[name].differences:
        printed = run(difference.snippet)
        if difference.kind in ("rounding", "accuracy"):  # of which the last digits may be another machine's
            assert NUMBER.sub("", printed) == NUMBER.sub("", difference.output)
        else:
            assert alike(printed, difference.output), difference.output


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(tmp_path):
    made, _ = commands.assemble(["elementwise.sign"], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again, _ = commands.assemble(["elementwise.sign", "elementwise.square"], tmp_path)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.glob("*.json"))) == 2
    assert again.entries["elementwise.sign"] == made.entries["elementwise.sign"]


def test_what_was_made_of_another_pair_or_by_other_code_is_not_taken(monkeypatch):
    assert commands.fingerprint("a") != commands.fingerprint("b")
    before = commands.fingerprint("a")
    monkeypatch.setitem(commands.VERSIONS, "jax", "0.0")
    assert commands.fingerprint("a") != before


@pytest.mark.slow
def test_a_command_shows_one_function(tmp_path):
    command = [sys.executable, "-m", "comparisons.atlas", "show", "--parts", tmp_path]
    shown = subprocess.run([*command, "--again", "sign"], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert "bug: The sign of NaN is 0 in PyTorch" in shown.stdout
    assert shown.stderr == ""  # no bar in a pipe
    unknown = subprocess.run([*command, "bessel"], cwd=ROOT, capture_output=True, text=True)
    assert unknown.returncode == 2
    assert "there is no pair 'bessel'; there are special.bessel_j1" in unknown.stderr


@pytest.mark.parametrize("kept", [BEGIN, END, ""])
def test_a_page_without_its_part_is_left_as_it_is(tmp_path, kept):
    page = tmp_path / "atlas.md"
    page.write_text(f"before\n{kept}\nafter\n")
    with pytest.raises(click.ClickException, match=r"atlas\.md has no part between the lines '<!-- atlas"):
        write_part(page, docs_part(ATLAS))
    assert page.read_text() == f"before\n{kept}\nafter\n"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b'{"cells": {}}'])
def test_what_is_no_result_is_said_by_its_name(tmp_path, content):
    path = tmp_path / "elementwise.sin-0.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(click.ClickException, match=r"elementwise\.sin-0\.json is not "):
        commands.read(Examined, path)


def test_a_pair_that_the_checker_cannot_express_is_an_error_of_the_checker():
    broken = PAIRS["elementwise.sin"].model_copy(update={"jax": "jax.numpy.no_such(x)"})
    assert {cell.verdict for cell in examine(broken).cells.values()} == {"error of the checker"}


def test_the_page_and_the_docs_are_made_of_it():
    assert (COMMITTED / "atlas.html").read_text(encoding="utf-8") == render_page(ATLAS)
    assert docs_part(ATLAS) in (ROOT / "docs" / "atlas.md").read_text(encoding="utf-8")
    assert len(ATLAS.surprises()) == 10
    assert "(comparisons/atlas/atlas.png)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert (COMMITTED / "atlas.png").read_bytes().startswith(b"\x89PNG")
