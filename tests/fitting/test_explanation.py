"""`p3 explain` shows the step that training takes, by hand and by both frameworks, and says when they do not agree."""

import re
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

import jaxp3.fitting.train
import torchp3
import torchp3.fitting.train
from p3 import InputError, TrainingSpec
from p3.cli import p3_command
from p3.fitting.exact import P3
from p3.fitting.explanation import LINKS, explain
from tests.support.problems import PROBLEMS


def asymmetric(**changes):
    return PROBLEMS["asymmetric"].replace({"dtype": "float64", "steps": 60, "jit": False, **changes})


@pytest.mark.parametrize("step", [0, 30, 59])
@pytest.mark.parametrize(
    "changes",
    [{}, {"batch_size": 100, "optimizer": {"name": "adam"}, "schedule": {"name": "one_cycle"}}],
)
def test_it_is_the_step_of_the_run(step, changes):
    spec = asymmetric(**changes)
    explanation = explain(spec.replace({"devices": 2}), step)
    traces = torchp3.fit(spec).traces
    assert list(explanation.coefficients.values()) == traces["coefficients"][step].tolist()
    assert explanation.learning_rate == traces["learning_rate"][step]
    for backend in ("torch", "jax"):
        assert list(explanation.gradients[backend].values()) == pytest.approx(traces["gradients"][step], rel=1e-12)
        assert list(explanation.updates[backend].values()) == pytest.approx(traces["updates"][step], rel=1e-9)
    assert explanation.ok


def test_every_link_is_by_hand_what_it_is_by_the_frameworks_and_by_differences():
    explanation = explain(asymmetric(), 7, (3, 1000))
    for key in LINKS:
        for column, point in enumerate(explanation.shown):
            exact = explanation.link_by_hand(key, point)
            for links in explanation.links.values():
                if key not in ("x", "y"):
                    assert getattr(links, key)[column] == pytest.approx(exact, rel=1e-12)
            by_differences = explanation.link_by_differences(key, point)
            assert (by_differences is None) == (key not in ("incoming", "slope", "outgoing"))
            if by_differences is not None:
                assert by_differences == pytest.approx(exact, rel=1e-9)
    for name, terms in explanation.by_hand.terms.items():
        assert explanation.differences[name] == pytest.approx(float(terms.sum()), rel=1e-9)
        assert explanation.hand_update(name) == pytest.approx(explanation.updates["torch"][name], rel=1e-9)


def test_the_numbers_of_a_point_by_hand():
    explanation = explain(asymmetric(), 0, (3,))
    x, y = explanation.points.x[3], explanation.points.y[3]
    a, b, c, d = asymmetric().start.model_dump().values()
    z = c + d * x
    r = a + b * P3(z) - y
    slope = 1.5 * (5 * z * z - 1)
    expected = dict(zip(LINKS, (x, y, z, P3(z), a + b * P3(z), r, 2 * r * b, slope, 2 * r * b * slope), strict=True))
    assert {key: explanation.link_by_hand(key, 3) for key in LINKS} == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("train", [torchp3.fitting.train, jaxp3.fitting.train])
def test_a_wrong_gradient_is_told(train, monkeypatch):
    loss_and_gradients = train.loss_and_gradients

    def changed(*args):
        value, gradients = loss_and_gradients(*args)
        return value, {**gradients, "c": 1.000001 * gradients["c"]}

    monkeypatch.setattr(train, "loss_and_gradients", changed)
    explanation = explain(asymmetric(), 3)
    assert not explanation.ok
    assert str(explanation).endswith("do not agree.")


@pytest.mark.parametrize("dtype", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
@pytest.mark.parametrize(
    "changes",
    [
        {"start": {"a": 1e8}},
        {"start": {"c": 1e4}},
        {"data": {"low": 0.0, "high": 1e6}, "start": {"d": 1e-6}},
        {"data": {"low": 1900.0, "high": 2020.0}, "start": {"c": -32.66667, "d": 1 / 60}},
    ],
)
def test_large_numbers_are_no_disagreement(changes, dtype):
    assert explain(TrainingSpec(jit=False, dtype=dtype).replace(changes)).ok


def test_wrong_differences_are_told():
    explanation = explain(asymmetric(), 3)
    assert replace(explanation, spec=asymmetric()).ok
    explanation.differences["d"] *= 1 + 1e-5
    assert not explanation.ok


def test_an_update_by_hand_is_of_plain_descent_alone():
    decayed = explain(asymmetric(optimizer={"weight_decay": 100.0}), 3)
    for name in "abcd":
        assert decayed.hand_update(name) == pytest.approx(decayed.updates["jax"][name], rel=1e-9)
    for optimizer in ({"momentum": 0.9}, {"clip_norm": 1.0}, {"clip_value": 1.0}, {"name": "adam"}):
        assert explain(asymmetric(optimizer=optimizer), 3).hand_update("a") is None


def test_the_command():
    flags = ["--steps", "60", "--no-jit", "--step", "5", "--points", "0,700"]
    result = CliRunner().invoke(p3_command(), ["explain", *flags], standalone_mode=False)
    assert result.return_value == 0
    assert "Step 5 of 60 in float32" in result.output
    assert re.findall(r"point (\d+)", result.output) == ["0", "700"]
    assert result.output.strip().endswith("agree.")


@pytest.mark.parametrize(
    ("step", "shown", "says"),
    [
        (60, None, "there is no step 60; the specification has steps 0 to 59"),
        (-1, None, "there is no step -1"),
        (0, (1500,), "there is no point 1500; the step sees points 0 to 1499"),
    ],
)
def test_what_there_is_not(step, shown, says):
    with pytest.raises(InputError, match=re.escape(says)):
        explain(asymmetric(), step, shown)


def test_float32_is_as_exact_as_float32():
    explanation = explain(asymmetric(dtype="float32"), 10)
    assert explanation.ok
    assert explanation.links["torch"].value.dtype == np.float32
