"""Fits: the tutorial's numbers, parity between the frameworks, the rule that ran, and how a fit can end."""

import importlib
import pickle

import jax
import numpy as np
import pytest
import torch

from p3 import DivergenceError, InputError, TrainingSpec, compare
from p3.backends import BACKENDS, load
from p3.fitting.data import Points, make_points
from p3.fitting.exact import P3, best_fit
from tests.support.marker import with_and_without_marker
from tests.support.problems import PROBLEMS, fitted

# What the tutorial prints: the loss before steps 99, 199, ..., 1999, and the coefficients after the last.
TUTORIAL_LOSSES = [
    209.95834350585938,
    144.66018676757812,
    100.70249938964844,
    71.03519439697266,
    50.97850799560547,
    37.403133392333984,
    28.206867218017578,
    21.97318458557129,
    17.7457275390625,
    14.877889633178711,
    12.93176555633545,
    11.610918998718262,
    10.71425724029541,
    10.10548210144043,
    9.692106246948242,
    9.411375045776367,
    9.220745086669922,
    9.091285705566406,
    9.003360748291016,
    8.943639755249023,
]
TUTORIAL_B, TUTORIAL_D = -2.208526849746704, 0.2554861009120941


@pytest.mark.parametrize(
    ("backend", "jit"),
    [("torch", True), ("torch", False), ("jax", True), pytest.param("jax", False, marks=pytest.mark.slow)],
    ids=["torch-compiled", "torch-eager", "jax-compiled", "jax-eager"],
)
def test_the_tutorials_table(backend, jit):
    result = fitted(backend, TrainingSpec(jit=jit))
    np.testing.assert_allclose(result.losses[99::100], TUTORIAL_LOSSES, rtol=2e-6)
    assert result.coefficients["b"] == pytest.approx(TUTORIAL_B, rel=1e-6)
    assert result.coefficients["d"] == pytest.approx(TUTORIAL_D, rel=1e-6)
    assert abs(result.coefficients["a"]) < 1e-6
    assert abs(result.coefficients["c"]) < 1e-6
    assert result.compiled == jit


def of(problem, dtype, jit):
    """The problem, with fewer steps where they are eager: JAX takes 3 ms for one. The slow tests take all of them."""
    return problem.replace({"dtype": dtype, "jit": jit} | ({} if jit else {"steps": 50}))


def assert_coefficients_match(spec):
    by_torch, by_jax = fitted("torch", spec).coefficients, fitted("jax", spec).coefficients
    # In the tutorial's problem a and c are zero but for rounding, so theirs is relative to the largest coefficient.
    zero = {"a", "c"} if spec.data == PROBLEMS["tutorial"].data else set()
    largest = max(map(abs, by_torch.values()))
    for name in "abcd":
        assert abs(by_torch[name] - by_jax[name]) <= 1e-11 * (largest if name in zero else abs(by_torch[name])), name


def test_float64_coefficients_match_between_frameworks(problem, jit):
    assert_coefficients_match(of(problem, "float64", jit))


def test_every_step_matches_between_frameworks(problem, dtype, jit):
    spec = of(problem, dtype, jit)
    comparison = compare(fitted("torch", spec), fitted("jax", spec))
    assert comparison.ok, comparison.verdict


@pytest.mark.slow
def test_eager_fits_match_to_the_last_step(problem, dtype):
    spec = problem.replace({"dtype": dtype, "jit": False})
    comparison = compare(fitted("torch", spec), fitted("jax", spec))
    assert comparison.ok, comparison.verdict
    if dtype == "float64":
        assert_coefficients_match(spec)
    for backend in BACKENDS:
        comparison = compare(fitted(backend, spec.replace({"jit": True})), fitted(backend, spec))
        assert comparison.ok, comparison.verdict


def test_compiled_and_eager_match(backend, problem, dtype):
    spec = of(problem, dtype, False)
    comparison = compare(fitted(backend, spec.replace({"jit": True})), fitted(backend, spec))
    assert comparison.ok, comparison.verdict


# PyTorch compiles another program of one step alone, which takes it seconds.
STEPS = pytest.mark.parametrize("steps", [2, pytest.param(1, marks=pytest.mark.slow)])


@STEPS
def test_the_first_update_is_the_gradients(backend, jit, steps):
    # One step of plain descent from a start where all gradients are exact: P3(1) = 1, P3'(1) = 6, y = 0.
    spec = TrainingSpec().replace(
        {
            "data": {"points": 2, "low": -1.0, "high": 1.0, "target": "sin"},
            "start": {"a": 0.0, "b": 1.0, "c": 0.0, "d": 1.0},
            "optimizer": {"learning_rate": 0.125},
            "steps": steps,
            "dtype": "float64",
            "jit": jit,
        }
    )
    residual = 1 - np.sin(1.0)  # at x = 1, and its negative at x = −1
    result = load(backend).fit(spec)
    after = after_one_step(result)
    assert result.losses[0] == pytest.approx(2 * residual**2, rel=1e-15)
    assert after["a"] == pytest.approx(0, abs=1e-15)
    assert after["b"] == pytest.approx(1 - 0.125 * 4 * residual, rel=1e-15)
    assert after["c"] == pytest.approx(0, abs=1e-15)
    assert after["d"] == pytest.approx(1 - 0.125 * 24 * residual, rel=1e-15)


def after_one_step(result):
    """The coefficients."""
    if result.spec.steps == 1:
        return result.coefficients
    return dict(zip("abcd", result.traces["coefficients"][1].tolist(), strict=True))


@STEPS
def test_the_hand_written_rule_is_what_fit_uses(backend, jit, steps):
    # The gradients of c and d pass through the rule; those of a and b do not.
    spec = PROBLEMS["asymmetric"].replace({"steps": steps, "dtype": "float64", "jit": jit})

    def first_update():
        after = after_one_step(load(backend).fit(spec))
        return {name: after[name] - before for name, before in spec.start.model_dump().items()}

    true, marked = with_and_without_marker(backend, 4, first_update)
    for name, factor in {"a": 1, "b": 1, "c": 4, "d": 4}.items():
        assert marked[name] == pytest.approx(factor * true[name], rel=1e-10), name


@pytest.mark.parametrize(
    ("backend", "steps", "log_every", "jit"),
    [
        # By default not the pieces of one step that PyTorch compiles another program for.
        pytest.param(
            *(backend, *pieces, jit),
            marks=pytest.mark.slow if backend == "torch" and jit and pieces not in [(6, 3), (4, 4)] else [],
        )
        for backend in BACKENDS
        for pieces in [(1, 100), (7, 3), (6, 3), (5, 1), (4, 4), (3, 2)]
        for jit in (True, False)
    ],
)
def test_pieces_add_up(backend, steps, log_every, jit):
    # However the steps are cut into pieces, they are the steps of one long fit, and progress names each piece's last.
    spec = PROBLEMS["asymmetric"].replace({"dtype": "float64", "steps": steps, "log_every": log_every, "jit": jit})
    seen = []
    result = load(backend).fit(spec, lambda step, loss: seen.append((step, loss)))
    long = {} if jit else {"steps": 10, "log_every": 10}
    whole = fitted(backend, PROBLEMS["asymmetric"].replace({"dtype": "float64", "jit": jit, **long}))
    np.testing.assert_allclose(result.losses, whole.losses[:steps], rtol=1e-14)
    assert seen == [(step, result.losses[step]) for step in spec.logged_steps()]


def test_descent_approaches_the_best_fit(backend):
    spec = TrainingSpec().replace({"dtype": "float64", "steps": 20_000, "log_every": 10_000})
    result = load(backend).fit(spec)
    best = best_fit(make_points(spec))
    assert result.losses[-1] == pytest.approx(best.loss, rel=1e-9)
    assert result.coefficients == pytest.approx(best.coefficients, rel=1e-6, abs=1e-9)


def test_a_fit_that_diverges_says_where(backend, jit):
    spec = TrainingSpec().replace({"optimizer": {"learning_rate": 1e-2}, "jit": jit})
    with pytest.raises(DivergenceError, match=r"diverged at step (\d+): loss (inf|nan); .*learning rate") as caught:
        load(backend).fit(spec)
    assert not np.isfinite(caught.value.loss)
    # Of the steps before that one every loss is finite, so it is the first; the last update alone may not be.
    try:
        before = load(backend).fit(spec.replace({"steps": caught.value.step})).losses[-1]
    except DivergenceError as error:
        before = error.loss
    assert np.isfinite(before)


def test_an_update_that_diverges_is_noticed_without_a_next_loss(backend):
    spec = TrainingSpec(jit=False, steps=1).replace({"optimizer": {"learning_rate": 1e38}})
    with pytest.raises(DivergenceError, match="diverged at step 0"):
        load(backend).fit(spec)


def test_gpu_where_there_is_none(backend):
    if has_gpu(backend):
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=r"device = 'gpu', but .* finds no CUDA GPU; use 'cpu' or 'auto'"):
        load(backend).fit(TrainingSpec(device="gpu"))


@pytest.mark.gpu
def test_gpu_agrees_with_cpu(backend, problem, dtype, jit):
    if not has_gpu(backend):
        pytest.skip("needs a GPU that the framework can use")
    spec = problem.replace({"dtype": dtype, "jit": jit})
    on_gpu = load(backend).fit(spec.replace({"device": "gpu"}))
    comparison = compare(on_gpu, fitted(backend, spec.replace({"device": "cpu"})))
    assert on_gpu.device != "cpu"
    assert comparison.ok, comparison.verdict


def has_gpu(backend):
    try:
        importlib.import_module(f"{load(backend).__name__}.fitting.device").find_device("gpu")
    except InputError:
        return False
    return True


def test_data_that_is_not_finite(backend):
    spec = TrainingSpec().replace({"data": {"target": "exp", "high": 100.0}})
    with pytest.raises(InputError, match=r"data: exp over \[-3.14\d*, 100.0\] is not finite in float32"):
        load(backend).fit(spec)


def test_the_points_are_the_shared_ones(backend, dtype, jit, monkeypatch):
    # Points that no framework would make by itself: were a fit to make its own, its first loss would not be theirs.
    random = np.random.default_rng(5)
    points = Points(*random.uniform(-1, 1, (2, 100)).astype(dtype))
    monkeypatch.setattr(
        importlib.import_module(f"{load(backend).__name__}.fitting.train"),
        "make_shard",
        lambda spec, device: points._asdict(),
    )
    result = load(backend).fit(TrainingSpec(dtype=dtype, jit=jit, steps=2))
    residual = -P3(0.3 * points.x.astype(np.float64)) - points.y
    assert result.losses[0] == pytest.approx(np.sum(residual**2), rel=8 * float(np.finfo(dtype).eps))


def test_the_callers_settings_do_not_reach_a_fit(backend, jit):
    spec = PROBLEMS["asymmetric"].replace({"steps": 20, "jit": jit})
    usual = load(backend).fit(spec)
    with torch.inference_mode(), jax.enable_x64(True):
        assert load(backend).fit(spec).losses.tobytes() == usual.losses.tobytes()


def test_a_divergence_can_be_sent_between_processes():
    error = pickle.loads(pickle.dumps(DivergenceError(7, float("inf"), 0.5)))
    assert (error.step, error.loss, error.learning_rate) == (7, float("inf"), 0.5)
    assert "diverged at step 7: loss inf; try a learning rate below 0.5" in str(error)


def test_a_fit_leaves_no_global_state(backend):
    before = (jax.config.jax_enable_x64, torch.get_default_dtype(), torch.random.get_rng_state().tolist())
    load(backend).fit(TrainingSpec(dtype="float64", steps=2))
    assert (jax.config.jax_enable_x64, torch.get_default_dtype(), torch.random.get_rng_state().tolist()) == before
