"""Every optimizer and schedule is the same in both frameworks, and does what its paper says."""

import numpy as np
import pytest

from p3 import TrainingSpec
from p3.backends import BACKENDS, load
from p3.fitting.data import make_points
from p3.fitting.exact import P3
from p3.fitting.training import batches
from tests.support.frameworks import fitted_together
from tests.support.optimizers import RULES, SCHEDULES, SOME_COMPILED
from tests.support.problems import PROBLEMS

# In float64 200 steps take the frameworks apart by roundings, which the loss's curvature makes more of: measured 1e-16
# to 5e-15, and 5e-12 where clipping keeps Adam's steps long.
COEFFICIENTS_APART = 1e-11
# Of the largest rate. 1 + cos near π loses digits of a small rate to the cosine's own rounding, in any library.
RATES_APART = 1e-15

T = np.arange(200)  # steps
SCHEDULES_BY_HAND = {
    "step": 0.8 ** (T // 7),
    "multi_step": 0.2 ** sum(milestone <= T for milestone in (3, 50, 120)),
    "exponential": 0.97**T,
    "polynomial": (1 - T / 200) ** 2,
    "polynomial, held": (1 - np.minimum(T, 100) / 100) ** 1.5,
    "linear_warmup": 0.2 + 0.8 * np.minimum(T / 30, 1),
    "cosine": (1 + np.cos(np.pi * T / 200)) / 2,
    "cosine, held": 0.1 + 0.9 * (1 + np.cos(np.pi * np.minimum(T, 50) / 50)) / 2,
    "warmup_cosine": np.where(
        T < 30,
        0.2 + 0.8 * T / 30,
        0.01 + 0.99 * (1 + np.cos(np.pi * (np.clip(T, 30, 150) - 30) / 120)) / 2,
    ),
    "warm_restarts": (1 + np.cos(np.pi * (T % 13) / 13)) / 2,
    "one_cycle, top between steps": np.where(
        T <= 65.6,
        0.2 + 0.8 * (1 - np.cos(np.pi * T / 65.6)) / 2,
        0.01 + 0.99 * (1 + np.cos(np.pi * (T - 65.6) / (199 - 65.6))) / 2,
    ),
}


def asymmetric(**changes) -> TrainingSpec:
    return PROBLEMS["asymmetric"].replace({"dtype": "float64", "steps": 200, "log_every": 70, **changes})


def assert_together(spec: TrainingSpec) -> None:
    a, b = fitted_together(spec)
    for name in "abcd":
        assert a.coefficients[name] == pytest.approx(b.coefficients[name], rel=COEFFICIENTS_APART)
    assert a.losses == pytest.approx(b.losses, rel=COEFFICIENTS_APART)


@pytest.mark.parametrize("steps", [30, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("rule", RULES)
def test_the_frameworks_agree(rule, steps):
    assert_together(asymmetric(optimizer=RULES[rule], jit=False, steps=steps))


@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[] if rule == "sgd" else pytest.mark.slow) for rule in RULES]
)
def test_the_frameworks_agree_compiled(rule):
    assert_together(asymmetric(optimizer=RULES[rule]))


@pytest.mark.slow
@pytest.mark.parametrize("rule", SOME_COMPILED)
@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_as_eager(backend, rule):
    compiled, eager = (load(backend).fit(asymmetric(optimizer=RULES[rule], jit=jit)) for jit in (True, False))
    assert (compiled.compiled, eager.compiled) == (True, False)
    for name, values in compiled.traces.items():
        np.testing.assert_allclose(values, eager.traces[name], rtol=0, atol=1e-11 * np.abs(values).max())


@pytest.mark.parametrize("steps", [40, pytest.param(200, marks=pytest.mark.slow)])  # the schedule turns at step 30
@pytest.mark.parametrize("rule", ["adam", "rmsprop, momentum, centered", "dampening, weight decay"])
def test_a_schedule_and_batches_change_what_a_rule_remembers_alike(rule, steps):
    changes = {"schedule": SCHEDULES["warmup_cosine"], "batch_size": 128, "seed": 3, "jit": False}
    assert_together(asymmetric(optimizer=RULES[rule], steps=steps, **changes))


def first_updates(backend, rule) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients, updates and coefficients of the first steps."""
    result = load(backend).fit(asymmetric(optimizer=rule, steps=3, jit=False))
    return result.traces["gradients"], result.traces["updates"], result.traces["coefficients"]


def test_the_first_steps_by_hand(backend):
    g, u, x = first_updates(backend, {"name": "sgd", "learning_rate": 1e-6})
    np.testing.assert_allclose(u, -1e-6 * g, rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "sgd", "learning_rate": 1e-6, "momentum": 0.5, "dampening": 0.25})
    np.testing.assert_allclose(u[0], -1e-6 * g[0], rtol=1e-9)
    np.testing.assert_allclose(u[1], -1e-6 * (0.5 * g[0] + 0.75 * g[1]), rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "sgd", "learning_rate": 1e-6, "momentum": 0.5, "nesterov": True})
    np.testing.assert_allclose(u[0], -1e-6 * 1.5 * g[0], rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "sgd", "learning_rate": 1e-6, "weight_decay": 1000.0})
    np.testing.assert_allclose(u, -1e-6 * (g + 1000 * x), rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "adam", "learning_rate": 1e-3, "epsilon": 10.0})
    np.testing.assert_allclose(u[0], -1e-3 * g[0] / (np.abs(g[0]) + 10), rtol=1e-9)
    m, v = (0.09 * g[0] + 0.1 * g[1]) / 0.19, (0.000999 * g[0] ** 2 + 0.001 * g[1] ** 2) / 0.001999
    np.testing.assert_allclose(u[1], -1e-3 * m / (np.sqrt(v) + 10), rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "adamw", "learning_rate": 1e-3, "epsilon": 10.0, "weight_decay": 0.5})
    np.testing.assert_allclose(u[0], -1e-3 * (g[0] / (np.abs(g[0]) + 10) + 0.5 * x[0]), rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "adamax", "epsilon": 10.0})
    np.testing.assert_allclose(u[0], -1e-3 * g[0] / (np.abs(g[0]) + 10), rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "adagrad", "learning_rate": 1e-3, "epsilon": 10.0})
    np.testing.assert_allclose(u[1], -1e-3 * g[1] / (np.sqrt(g[0] ** 2 + g[1] ** 2) + 10), rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "rmsprop", "decay": 0.75, "epsilon": 10.0, "momentum": 0.5})
    first = g[0] / (np.sqrt(0.25 * g[0] ** 2) + 10)
    second = g[1] / (np.sqrt(0.1875 * g[0] ** 2 + 0.25 * g[1] ** 2) + 10)
    np.testing.assert_allclose(u[1], -1e-3 * (0.5 * first + second), rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "rmsprop", "decay": 0.75, "epsilon": 10.0, "centered": True})
    np.testing.assert_allclose(u[0], -1e-3 * g[0] / (np.sqrt(0.25 - 0.0625) * np.abs(g[0]) + 10), rtol=1e-9)
    g, u, x = first_updates(backend, {"name": "adadelta", "learning_rate": 0.5, "decay": 0.75, "epsilon": 4.0})
    np.testing.assert_allclose(u[0], -0.5 * 2 * g[0] / np.sqrt(0.25 * g[0] ** 2 + 4), rtol=1e-9)


def test_clipping_by_hand(backend):
    g, u, _ = first_updates(backend, {"name": "sgd", "learning_rate": 1e-6, "clip_value": 100.0})
    assert np.abs(g[0]).max() > 100
    np.testing.assert_allclose(u[0], -1e-6 * np.clip(g[0], -100, 100), rtol=1e-9)
    g, u, _ = first_updates(backend, {"name": "sgd", "learning_rate": 1e-6, "clip_value": 300.0, "clip_norm": 50.0})
    clipped = np.clip(g[0], -300, 300)
    assert np.abs(g[0]).max() > 300
    np.testing.assert_allclose(u[0], -1e-6 * clipped * 50 / np.linalg.norm(clipped), rtol=1e-9)
    g, u, _ = first_updates(backend, {"name": "sgd", "learning_rate": 1e-6, "clip_norm": 100.0})
    np.testing.assert_allclose(u[0], -1e-6 * g[0] * 100 / np.linalg.norm(g[0]), rtol=1e-9)
    g, u, _ = first_updates(backend, {"name": "sgd", "learning_rate": 1e-6, "clip_norm": 1e9})
    np.testing.assert_allclose(u[0], -1e-6 * g[0], rtol=1e-9)


# --- schedules


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rates_in_the_compiled_loop_are_those_by_hand(schedule):
    fits = fitted_together(asymmetric(schedule=SCHEDULES[schedule]))
    of_torch, of_jax = (fit.traces["learning_rate"] for fit in fits)  # as the loops themselves say
    np.testing.assert_allclose(of_torch, of_jax, rtol=0, atol=RATES_APART * of_jax.max())
    assert len(set(of_jax)) > 1
    if schedule in SCHEDULES_BY_HAND:
        eager = load("torch").fit(asymmetric(schedule=SCHEDULES[schedule], jit=False)).traces["learning_rate"]
        for rates in (of_torch, of_jax, eager):
            np.testing.assert_allclose(rates, 5e-6 * SCHEDULES_BY_HAND[schedule], rtol=0, atol=5e-20)


# --- batches


def test_batches_are_a_shuffle_of_the_points_each_time_through():
    spec = asymmetric(batch_size=128, seed=3)
    rows = batches(spec, 0, 22)  # of 1500 points, 11 batches a time
    assert rows.shape == (22, 128)
    for epoch in (rows[:11], rows[11:]):
        assert len(set(epoch.ravel())) == 11 * 128
    assert not np.array_equal(rows[:11], rows[11:])
    assert np.array_equal(batches(spec, 9, 5), rows[9:14])
    assert not np.array_equal(batches(asymmetric(batch_size=128, seed=4), 0, 22), rows)
    assert np.array_equal(np.sort(batches(asymmetric(batch_size=1500), 5, 1)[0]), np.arange(1500))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_is_the_points_with_its_numbers(backend):
    one = asymmetric(batch_size=100, seed=1, steps=3, jit=False)
    losses = load(backend).fit(one).losses
    x, y = (array[batches(one, 0, 1)[0]] for array in make_points(one))
    a, b, c, d = one.start.model_dump().values()
    assert losses[0] == pytest.approx(np.sum((a + b * P3(c + d * x) - y) ** 2), rel=1e-12)


# --- traces


@pytest.mark.parametrize(
    ("rule", "jit"),
    [
        ("sgd", True),
        ("nesterov, weight decay", False),
        pytest.param("nesterov, weight decay", True, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_traces_are_the_steps(backend, rule, jit):
    result = load(backend).fit(asymmetric(optimizer=RULES[rule], jit=jit, steps=150))
    traces = result.traces
    assert list(traces["coefficients"][0]) == list(result.spec.start.model_dump().values())
    after = np.vstack([traces["coefficients"][1:], list(result.coefficients.values())])
    np.testing.assert_allclose(traces["coefficients"] + traces["updates"], after, rtol=0, atol=1e-16)
    assert traces["learning_rate"] == pytest.approx(np.full(150, 5e-6), rel=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_traces_can_be_left_out(backend):
    spec = asymmetric(jit=False, steps=5)
    with_traces, without = (load(backend).fit(spec.replace({"trace": trace})) for trace in (True, False))
    assert without.traces == {}
    assert np.array_equal(with_traces.losses, without.losses)
