"""The notebook: committed with its outputs, and still running from top to bottom."""

import nbformat
import pytest
from conftest import COMPARISONS
from nbclient import NotebookClient

NOTEBOOK = COMPARISONS / "framework_comparison.ipynb"


def kinds(notebook):
    """Of each code cell: what it puts out, by kind."""
    return [
        sorted({kind for output in cell.outputs for kind in output.get("data", {output.output_type: None})})
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_outputs_are_there_and_in_order(committed):
    counts = [cell.execution_count for cell in committed.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert sum("image/png" in kind for kind in kinds(committed)) == 4


@pytest.mark.slow
def test_it_runs_afresh(committed):
    fresh = nbformat.from_dict(committed)
    NotebookClient(fresh, timeout=600, resources={"metadata": {"path": COMPARISONS}}).execute()
    assert kinds(fresh) == kinds(committed)
