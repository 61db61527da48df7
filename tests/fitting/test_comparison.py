"""Results and their comparison: saved whole, compared by the tolerance, and refused when they are not comparable."""

import html
import json
import re

import numpy as np
import pytest

from p3 import FitResult, InputError, TrainingSpec, compare
from p3.fitting.data import make_points
from p3.fitting.page import write_comparison
from p3.tolerance import COEFFICIENTS, ROOT_LOSS
from tests.support.problems import PROBLEMS, fitted

SPEC = TrainingSpec(steps=300)


@pytest.fixture
def results():
    return fitted("torch", SPEC), fitted("jax", SPEC)


def with_losses(result, losses):
    return result.model_validate(result.model_dump() | {"losses": losses})


def test_a_saved_result_is_the_same_to_the_bit(backend, dtype, tmp_path):
    result = fitted(backend, SPEC.replace({"dtype": dtype}))
    result.save(tmp_path / "result.json")
    loaded = FitResult.load(tmp_path / "result.json")
    assert loaded.losses.dtype == np.float64
    assert loaded.losses.tobytes() == result.losses.tobytes()
    assert loaded.model_dump(exclude={"losses"}) == result.model_dump(exclude={"losses"})


def test_a_result_is_read_only(results):
    with pytest.raises(ValueError, match="read-only"):
        results[0].losses[0] = 0


def test_agreement(results):
    comparison = compare(*results)
    assert comparison.ok
    assert comparison.first_divergence is None
    assert comparison.verdict.startswith("agree: ")


@pytest.mark.parametrize("beyond", [0.9, 1.1])
def test_a_loss_beyond_the_tolerance_is_the_first_divergence(results, beyond):
    a, _ = results
    size = np.linalg.norm(make_points(SPEC).y)  # which is more than any √loss here
    losses = a.losses.copy()
    losses[200] = (np.sqrt(losses[200]) + beyond * ROOT_LOSS.bound("float32", size)) ** 2
    losses[250] = 2 * losses[250] if beyond > 1 else losses[250]
    comparison = compare(a, with_losses(a, losses))
    assert comparison.first_apart == (200 if beyond > 1 else None)
    assert comparison.ok == (beyond < 1)
    assert ("differ: rounding: at step 200 PyTorch's loss is " in comparison.verdict) == (beyond > 1)
    assert ("; before step 200 √loss is " in comparison.verdict) == (beyond > 1)


@pytest.mark.parametrize("beyond", [0.9, 1.1])
def test_a_coefficient_beyond_the_tolerance(results, beyond):
    a, _ = results
    size = max(map(abs, a.coefficients.values()))
    coefficients = a.coefficients | {"d": a.coefficients["d"] + beyond * COEFFICIENTS.bound("float32", size)}
    comparison = compare(a, a.model_copy(update={"coefficients": coefficients}))
    assert comparison.first_apart is None
    assert comparison.ok == (beyond < 1)
    assert comparison.verdict.startswith(
        "agree: " if beyond < 1 else "differ: not reproduced: at step 299 PyTorch's coe"
    )
    assert ("; the coefficients are " in comparison.verdict) == (beyond > 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_never_agree(bad):
    a = fitted("torch", SPEC.replace({"steps": 10, "jit": False}))
    assert compare(a, a).ok
    losses = a.losses.copy()
    losses[7] = bad
    assert not compare(a, a.model_copy(update={"losses": losses})).ok
    assert not compare(a, a.model_copy(update={"coefficients": a.coefficients | {"c": bad}})).ok


def test_a_learning_rate_off_by_a_thousandth_is_no_rounding():
    a = fitted("torch", SPEC)
    b = fitted("jax", SPEC.replace({"optimizer": {"learning_rate": 5.005e-6}}))
    assert not compare(a, b.model_copy(update={"spec": a.spec})).ok


def test_the_coarser_dtype_decides():
    single, double = fitted("torch", SPEC), fitted("torch", SPEC.replace({"dtype": "float64"}))
    comparison = compare(double, single)
    assert comparison.dtype == "float32"
    assert comparison.ok


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed is 0 in one and 1 in the other"),
        ({"steps": 200}, "steps is 300 in one and 200 in the other"),
        ({"start": {"a": 1.0}}, r"start\.a is 0\.0 in one and 1\.0 in the other"),
        ({"data": {"points": 10}}, r"data\.points is 2000 in one and 10 in the other"),
        ({"optimizer": {"learning_rate": 1e-6}}, r"optimizer\.learning_rate is 5e-06 in one and 1e-06 in the other"),
    ],
)
def test_results_of_different_problems_are_not_compared(results, changes, message):
    with pytest.raises(InputError, match=message):
        compare(results[0], fitted("jax", SPEC.replace(changes)))


def test_the_table_holds_what_a_reader_wants(results):
    text = str(compare(*results))
    for step in (99, 199, 299):
        assert f"{results[0].losses[step]:.9g}" in text
    for name in "abcd":
        assert f"{results[1].coefficients[name]:.9g}" in text
    for word in ("PyTorch", "JAX", "best possible", "8.81716541", "compile", "run", "compiled", "tolerance"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


def test_the_table_without_a_best_fit():
    spec = PROBLEMS["asymmetric"].replace({"steps": 5})
    assert "none reaches it" in str(compare(fitted("torch", spec), fitted("jax", spec)))


SAVED_WRONG = [
    ("", "is not JSON"),
    ("{", "is not JSON"),
    ("[1]", "is not a saved fit"),
    ("{}", "is not a saved fit: backend is missing"),
    ('{"losses": "much"}', "is not a saved fit: "),
]


@pytest.mark.parametrize(("text", "message"), SAVED_WRONG)
def test_a_file_that_is_no_result(text, message, tmp_path):
    (tmp_path / "result.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=rf"result\.json: {message}") as caught:
        FitResult.load(tmp_path / "result.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda saved: saved["losses"].pop(), "losses must hold one number for each of 300 steps, not 299"),
        (lambda saved: saved["losses"].append([1.0]), "losses: it must be a list of numbers"),
        (lambda saved: saved["losses"].append(float("nan")), "losses: all must be finite"),
        (
            lambda saved: saved["coefficients"].update(a=float("inf")),
            r"coefficients\.a = inf: it must be a finite number",
        ),
        (lambda saved: saved["traces"].pop("coefficients"), "traces must be all of learning_rate, coeff"),
        (
            lambda saved: saved["traces"]["updates"].pop(),
            r"traces\.updates must be of shape \(300, 4\), not \(299, 4\)",
        ),
        (lambda saved: saved["losses"].__setitem__(5, -1.0), "losses must not be negative"),
        (lambda saved: saved["seconds"].pop("run"), "seconds must be compile and run, not compile"),
        (
            lambda saved: saved.update(coefficients=[[1.0] * 4] * 1000),
            r"coefficients = \[\[1.{50,60} \.\.\.: it must be",
        ),
        (lambda saved: saved["coefficients"].pop("a"), "coefficients must be a, b, c, d, not b, c, d"),
        (lambda saved: saved["spec"].update(steps=0), r"spec\.steps = 0: it must be greater than or equal to 1"),
        (lambda saved: saved.update(backend="numpy"), "backend = 'numpy': it must be 'torch' or 'jax'"),
    ],
)
def test_a_result_that_was_tampered_with(results, change, message, tmp_path):
    saved = results[0].model_dump(mode="json")
    change(saved)
    path = tmp_path / "result.json"
    path.write_text(json.dumps(saved), encoding="utf-8")
    with pytest.raises(InputError, match=message):
        FitResult.load(path)


def test_the_page_holds_everything_in_one_file(tmp_path):
    spec = SPEC.replace({"steps": 30, "jit": False})
    comparison = compare(fitted("torch", spec), fitted("jax", spec))
    page = write_comparison(comparison, tmp_path / "report").read_text(encoding="utf-8")
    assert page.count("<svg") == 3
    assert not re.search(r"(src|href)=.https?:", page)
    assert html.escape(comparison.verdict, quote=False) in page.replace("&#39;", "'").replace("&#34;", '"')
    assert "torch 2." in page
    assert "learning_rate = 5e-06" in page
    for name in ("torch", "jax"):
        assert FitResult.load(tmp_path / "report" / f"{name}.json").coefficients == fitted(name, spec).coefficients


def test_the_page_of_two_runs_of_one_framework(tmp_path):
    a, b = (fitted("torch", SPEC.replace({"steps": 30, "jit": False, "log_every": every})) for every in (30, 10))
    write_comparison(compare(a, b), tmp_path)
    saved = [FitResult.load(tmp_path / f"torch-{number}.json").spec.log_every for number in (1, 2)]
    assert saved == [30, 10]


def test_the_page_of_runs_without_traces(tmp_path):
    spec = SPEC.replace({"steps": 30, "jit": False, "trace": False})
    page = write_comparison(compare(fitted("torch", spec), fitted("jax", spec)), tmp_path).read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "there is nothing to draw step by step" in page
