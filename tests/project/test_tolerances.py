"""Every tolerance stands in p3/tolerance.py with its reason, as far as the source shows it."""

import ast
import re
from pathlib import Path

import pytest

import p3.tolerance
from p3.tolerance import Threshold, Tolerance

ROOT = Path(__file__).parents[2]
SMALL = 1e-2  # a positive number below it looks like a tolerance

# The small numbers that are no tolerances, by file and by the text of their statement's first line.
NO_TOLERANCES = {
    ("p3/parity/case.py", "ROUNDING = 2.0**-50"): "by how much inputs are moved, to see how a function rounds",
    (
        "p3/parity/case.py",
        "MOVES = (2.0**-16, ROUNDING)",
    ): "by how much inputs are moved, to see how a function changes",
    ("p3/parity/checks/domain.py", "BESIDE = 2.0**-18"): "by how much inputs are moved, to see how a function rounds",
    ("p3/parity/truth.py", "FIRST_STEP = 2.0**-4"): "the first step of finite differences",
    ("p3/parity/case.py", "NOISE_STEPS = (2.0**-22, 2.0**-16)"): "by how much inputs are moved, to see float32's noise",
    ("p3/parity/case.py", "SMOOTH_STEPS = (2.0**-18,"): "by how much inputs are moved, to see what is smooth",
    ("p3/parity/case.py", "BEND_STEP = 2.0**-7"): "by how much inputs are moved, to see whether a domain is curved",
    ("p3/parity/truth.py", "FINE_STEPS = {EPSILON: 2.0**-20"): "the last step of finite differences",
    ("p3/parity/truth.py", "h = 2.0**-60 *"): "the complex step",
    ("p3/parity/models/case.py", "STEP = 2.0**-20"): "by how much numbers are moved, to see how large terms are",
    ("p3/parity/models/case.py", "MOVES = (2.0**-18,"): "by how much numbers are moved, to see what is smooth",
    ("torchp3/confusions.py", "MOMENTA = (0.001,"): "momenta that libraries have",
    ("torchp3/conventions.py", "EPSILONS = (1e-3,"): "the constants that porters add before they divide",
    ("torchp3/rules.py", "EPSILONS = (1e-3,"): "the epsilons that optimizers have",
    ("torchp3/rules.py", "DECAYS = (0.0,"): "the weight decays that optimizers have",
    ("torchp3/rules.py", "factor = (limit / (norm_of(gradients) + 1e-6))"): "what clip_grad_norm_ adds to the norm",
    ("p3/fitting/explanation.py", "H = 2.0**-21"): "the step of central differences",
}


def is_small(node: ast.AST) -> bool:
    """Whether it is a small positive number, or one written as a power with a negative exponent."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return ast.unparse(node.right).lstrip("-").isdigit() and isinstance(node.right, ast.UnaryOp)
    return isinstance(node, ast.Constant) and isinstance(node.value, float) and 0 < node.value < SMALL


def is_number_of_epsilons(node: ast.AST) -> bool:
    """Whether it is a number times an epsilon, as in 4 * np.finfo(dtype).eps."""
    if not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult)):
        return False
    names = ("eps", "EPSILON", "epsilon")
    sides = [side.func if isinstance(side, ast.Call) else side for side in (node.left, node.right)]
    return any(getattr(side, "attr", getattr(side, "id", None)) in names for side in sides) and any(
        isinstance(side, ast.Constant) for side in sides
    )


def looks_like_a_tolerance(node: ast.AST) -> bool:
    """Whether it is a small number, a number of epsilons, or a tolerance that is given to a function or left to it."""
    if isinstance(node, ast.keyword) and node.arg in ("rtol", "atol", "rel", "abs", "tol"):
        return isinstance(node.value, ast.Constant) and node.value.value != 0
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("allclose", "isclose")
    ):
        return not {"rtol", "atol"} <= {keyword.arg for keyword in node.keywords}  # with defaults of its own
    return is_small(node) or is_number_of_epsilons(node)


def found_in(name: str, source: str) -> list[str]:
    """What looks like a tolerance in a module, but for hyperparameters' defaults and `NO_TOLERANCES`."""
    lines, found = source.splitlines(), []

    def visit(node: ast.AST, statement: str) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field":
            return
        if isinstance(node, ast.stmt):
            statement = lines[node.lineno - 1].strip()
        if looks_like_a_tolerance(node) and not any(
            name == file and statement.startswith(text) for file, text in NO_TOLERANCES
        ):
            found.append(f"{name}: {statement}")
        for child in ast.iter_child_nodes(node):
            visit(child, statement)

    visit(ast.parse(source), "")
    return found


def modules() -> dict[str, str]:
    """The source of every module of the three packages but the table's."""
    paths = [path for package in ("p3", "torchp3", "jaxp3") for path in (ROOT / package).rglob("*.py")]
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    del sources["p3/tolerance.py"]
    return sources


def test_no_tolerance_stands_elsewhere():
    assert [found for name, source in modules().items() for found in found_in(name, source)] == []


@pytest.mark.parametrize(
    "planted",
    [
        "CLOSE = 1e-6",
        "CLOSE: float = 2.0**-20",
        "LIMITS = {'float32': 1e-5}",
        "def close(a, b):\n    return abs(a - b) <= 1e-7 * abs(b)",
        "def close(a, b):\n    return abs(a - b) <= 4 * np.finfo(a.dtype).eps * abs(b)",
        "BOUND = epsilon('float32') * 8",
        "numpy.allclose(a, b)",
        "numpy.allclose(a, b, rtol=0.1, atol=0)",
        "check(f, atol=1)",
    ],
)
@pytest.mark.parametrize("name", ["p3/parity/case.py", "torchp3/operator.py", "jaxp3/fitting/train.py"])
def test_a_planted_tolerance_is_found(name, planted):
    assert found_in(name, f"{modules()[name]}\n\n{planted}\n") == [f"{name}: {planted.splitlines()[-1].strip()}"]


def test_every_exception_is_there():
    sources = modules()
    for name, statement in NO_TOLERANCES:
        assert any(line.strip().startswith(statement) for line in sources[name].splitlines()), statement


def test_every_row_of_the_table_has_a_reason_and_a_use():
    rows = {name: row for name, row in vars(p3.tolerance).items() if isinstance(row, Tolerance | Threshold)}
    assert len(rows) >= 30
    sources = [*modules().values(), *(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/*/*.py"))]
    for name, row in rows.items():
        assert all((row.of, row.reason)), name
        assert any(re.search(rf"\b{name}\b", source) for source in sources), name
