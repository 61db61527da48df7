"""The committed table of modes is what running them gives, and no cell of it is wrong."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from comparisons.modes import modes
from comparisons.pages import ROOT

FOLDER = ROOT / "comparisons" / "modes"
COMMITTED = json.loads((FOLDER / "modes.json").read_text())


def test_no_cell_is_wrong():
    assert [
        (column, mode)
        for column, cells in COMMITTED["cells"].items()
        for mode, cell in cells.items()
        if cell["outcome"] == "wrong"
    ] == []


def test_the_page_is_the_tables():
    assert (FOLDER / "modes.md").read_text() == modes.markdown(COMMITTED, modes.committed_newer())


def test_the_docs_part_is_the_tables():
    page = (ROOT / "docs" / "operator.md").read_text()
    assert page == modes.in_page(COMMITTED, page)


def test_a_wrong_result_and_a_dropped_rule_are_told_apart():
    truth = modes.EXPECTED["first derivative"](modes.POINTS, 1).astype(np.float32)
    assert modes.outcome("first derivative", truth, 4 * truth) == {"outcome": "right, by the rule"}
    assert modes.outcome("first derivative", truth, truth) == {"outcome": "right, rule dropped"}
    assert modes.outcome("first derivative", truth, 2 * truth)["outcome"] == "wrong"
    assert modes.outcome("first derivative", 0 * truth, 0 * truth)["outcome"] == "wrong"
    assert modes.outcome("first derivative", truth * float("nan"), truth)["outcome"] == "wrong"
    assert modes.outcome("first derivative", truth.astype(np.float64), 4 * truth)["outcome"] == "wrong"
    assert modes.outcome("first derivative", "TypeError: no", "TypeError: no")["outcome"] == "refuses"


def changed(made):
    return [
        f"{column}, {mode}: {COMMITTED['cells'].get(column, {}).get(mode)} is now {cell}"
        for column, cells in made["cells"].items()
        for mode, cell in cells.items()
        if COMMITTED["cells"].get(column, {}).get(mode) != cell
    ]


@pytest.mark.slow
def test_what_is_not_compiled_is_as_committed():
    with warnings.catch_warnings(action="ignore"):
        made = [modes.table(name, compiled=False) for name in ("torch", "jax")]
    assert [*map(changed, made)] == [[], []]
    assert sum(len(table["cells"]) for table in made) == 3


@pytest.mark.slow
def test_the_committed_table_is_what_running_gives(tmp_path):
    # In processes of their own, which force two devices on JAX and patch the rules.
    finished = subprocess.run(
        [sys.executable, "-m", "comparisons.modes", "--folder", tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONFAULTHANDLER": "1"},  # so that a crash says where
    )
    assert (tmp_path / "modes.json").exists(), finished.stderr
    made = json.loads((tmp_path / "modes.json").read_text())
    advice = (
        f"committed with {COMMITTED['versions']}, and this is {made['versions']}; "
        "if the change is meant: python -m comparisons.modes --page docs/operator.md"
    )
    assert not changed(made), "\n".join([advice, *changed(made)])
    assert made == COMMITTED, advice
    assert finished.returncode == 0, finished.stderr
