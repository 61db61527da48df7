"""The notebook: what is committed is what comes out when it is run, but for times, last digits and pixels."""

import copy
import re
from base64 import b64decode, b64encode
from io import BytesIO

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from tests.support.problems import COMPARISONS

NOTEBOOK = COMPARISONS / "notebook.ipynb"

# What depends on the machine: times and their ratios, and by how few epsilons two results differ.
OF_THE_MACHINE = (r"[\d.]+ (?:s|ms|µs|ns)\b", r"[\d.]+ × ", r"within [\d.e+-]+")
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
RELATIVE, ABSOLUTE = (
    1e-5,
    1e-3,
)  # of the fits' float32 losses, which end within 32 epsilons; their differences are near 0
BLOCK, INK = 40, 0.02  # pixels, and black on white: rounding moves single points of a picture, and no line of it


def cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(output):
    """The words of an output, without what only lays them out, and its numbers."""
    text = output.get("text") or output.get("data", {}).get("text/plain", "")
    for pattern in OF_THE_MACHINE:
        text = re.sub(pattern, "… ", text)
    numbers = [float(number) for number in re.findall(NUMBER, text)]
    return re.sub(r"[\s─━]+", " ", re.sub(NUMBER, "#", text)), numbers


def picture_of(output):
    return Image.open(BytesIO(b64decode(output["data"]["image/png"]))).convert("L")


def ink_of(output):
    """How black each block of a picture is, from 0 to 1."""
    ink = 1 - np.asarray(picture_of(output)) / 255
    rows, columns = (-(-length // BLOCK) for length in ink.shape)
    padded = np.pad(ink, [(0, rows * BLOCK - ink.shape[0]), (0, columns * BLOCK - ink.shape[1])])
    return padded.reshape(rows, BLOCK, columns, BLOCK).mean((1, 3))


def is_stale(committed, fresh):
    """Whether one output of a cell is not what comes out."""
    if committed.output_type != fresh.output_type or set(committed.get("data", ())) != set(fresh.get("data", ())):
        return True
    (words, numbers), (fresh_words, fresh_numbers) = text_of(committed), text_of(fresh)
    if words != fresh_words or not np.allclose(numbers, fresh_numbers, RELATIVE, ABSOLUTE):
        return True
    if "image/png" in committed.get("data", ()):
        a, b = ink_of(committed), ink_of(fresh)
        return a.shape != b.shape or bool(np.any(np.abs(a - b) > INK + np.maximum(a, b) / 2))
    return False


def stale(committed, fresh):
    """The numbers of the cells whose outputs are not what comes out."""
    pairs = zip(cells(committed), cells(fresh), strict=True)
    return [
        cell.execution_count
        for cell, other in pairs
        if len(cell.outputs) != len(other.outputs) or any(map(is_stale, cell.outputs, other.outputs))
    ]


@pytest.fixture(scope="module")
def committed():
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_outputs_are_there_and_in_order(committed):
    assert [cell.execution_count for cell in cells(committed)] == list(range(1, len(cells(committed)) + 1))
    outputs = [output for cell in cells(committed) for output in cell.outputs]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == 4
    assert not [output for output in outputs if output.output_type == "error"]


def test_the_operators_are_shown_as_they_are(committed):
    text = "\n".join(output.data["text/plain"] for cell in cells(committed)[1:3] for output in cell.outputs)
    for line in ("@jax.custom_jvp", "@ReverseModeOnly", "legendre_p3.defvjp(forward, backward)", "def vmap("):
        assert line in text
    sources = [(COMPARISONS.parent / package / "operator.py").read_text() for package in ("torchp3", "jaxp3")]
    assert [line for line in text.splitlines() if not any(line in source for source in sources)] == []


@pytest.mark.slow
def test_what_is_committed_is_what_comes_out(committed):
    fresh = copy.deepcopy(committed)
    NotebookClient(fresh, timeout=600, resources={"metadata": {"path": COMPARISONS}}).execute()
    assert stale(committed, fresh) == []


def of_text(cell, old, new):
    def change(notebook):
        (output,) = [output for output in cells(notebook)[cell - 1].outputs if old in str(output)]
        if "text" in output:
            output.text = output.text.replace(old, new, 1)
        else:
            output.data["text/plain"] = output.data["text/plain"].replace(old, new, 1)

    return change


def without_output(notebook):
    cells(notebook)[5].outputs.pop()


def erased(cell, part):
    """A part of a cell's picture is white: the middle, or a quarter."""

    def change(notebook):
        (output,) = [output for output in cells(notebook)[cell - 1].outputs if "image/png" in output.get("data", ())]
        picture = picture_of(output)
        width, height = picture.size
        box = {
            "middle": (width // 8, height // 8, 7 * width // 8, 7 * height // 8),
            "quarter": (0, 0, width // 2, height // 2),
        }
        picture.paste(255, box[part])
        file = BytesIO()
        picture.save(file, "png")
        output.data["image/png"] = b64encode(file.getvalue()).decode()

    return change


@pytest.mark.parametrize(
    ("change", "cell"),
    [
        (of_text(2, "save_for_backward", "saved_for_backward"), 2),
        (of_text(3, "* derivative(widen(x))", "* derivative(x)"), 3),
        (of_text(5, "True", "False"), 5),
        (of_text(6, "8.943", "8.953"), 6),
        (of_text(8, "agree", "differ"), 8),
        (of_text(11, "JAX, eager", "JAX, eagerly"), 11),
        (without_output, 6),
        *((erased(cell, part), cell) for cell in (4, 7, 8, 10) for part in ("middle", "quarter")),
    ],
)
def test_a_stale_cell_is_found(committed, change, cell):
    changed = copy.deepcopy(committed)
    change(changed)
    assert stale(changed, committed) == [cell]


@pytest.mark.parametrize(
    "change",
    [of_text(11, " ms", "0 ms"), of_text(8, "within 0.", "within 0.1"), of_text(6, "99 │ 209.9583", "99 │ 209.9584")],
)
def test_what_depends_on_the_machine_is_not_stale(committed, change):
    changed = copy.deepcopy(committed)
    change(changed)
    assert stale(changed, committed) == []
