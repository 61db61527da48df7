"""Nested inputs and results: what is an array, what it is called, and that functions get back what was given."""

from collections import namedtuple
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxp3
import p3
import torchp3
from p3 import InputError
from p3.parity.case import make_inputs
from tests.support.sine import Sine

Pair = namedtuple("Pair", "left right")
RANDOM = np.random.default_rng(0)
X, W, B = RANDOM.normal(size=(4, 3)), RANDOM.normal(size=(3, 2)), RANDOM.normal(size=2)


@dataclass(frozen=True)
class Layer:
    weight: object
    name: str = "dense"


def nothing():
    pass


@pytest.mark.parametrize(
    ("inputs", "paths"),
    [
        (X, ["inputs"]),
        ((X,), ["inputs[0]"]),
        ((X, 1.5, [1.0, 2.0]), ["inputs[0]", "inputs[1]", "inputs[2]"]),
        ({"x": X, "w": W}, ['inputs["x"]', 'inputs["w"]']),
        ({"p": {"b": [B, None], "a": (X, W)}}, ['inputs["p"]["a"][0]', 'inputs["p"]["a"][1]', 'inputs["p"]["b"][0]']),
        ((Pair(X, Layer(W)),), ["inputs[0].left", "inputs[0].right.weight"]),
        (({'a "quoted" key': X, 3: W},), ["inputs[0][3]", 'inputs[0]["a \\"quoted\\" key"]']),
    ],
)
def test_each_array_has_a_path(inputs, paths):
    assert list(make_inputs(inputs)[1].paths) == paths


def test_what_is_no_array_comes_back_untouched():
    given = ({"x": X, "axis": 0, "mode": "same", "none": None, "function": nothing}, Pair(Layer(W), [B]))
    arrays, structure = make_inputs(given)
    filled = structure.fill(arrays)
    assert {name: value for name, value in filled[0].items() if name != "x"} == {
        "axis": 0, "mode": "same", "none": None, "function": nothing,
    }  # fmt: skip
    assert list(filled[0]) == list(given[0])
    assert isinstance(filled[1], Pair)
    assert isinstance(filled[1].left, Layer)
    np.testing.assert_allclose(filled[1].right[0], B, rtol=1e-7)


def in_torch(params, x, *, scale=2.0):
    y = torch.tanh(x @ params["w"] + params["b"][0]) * scale
    return {"y": y, "more": [None, params["w"].sum()]}


def in_jax(params, x, *, scale=2.0):
    y = jnp.tanh(x @ params["w"] + params["b"][0]) * scale
    return {"more": [None, params["w"].sum()], "y": y}


PARAMETERS = {"w": W, "b": [B, None]}


@pytest.mark.parametrize("only", [["value", "vjp", "jvp", "rule"], pytest.param(None, marks=pytest.mark.slow)])
def test_a_right_port_of_nested_inputs_and_results_passes(only):
    inputs = {"params": PARAMETERS, "x": X, "scale": 3}
    report = p3.check(torch=in_torch, jax=in_jax, inputs=inputs, only=only, compiled=False)
    report.assert_ok()
    assert report.first is None
    assert report.differences == ()
    assert report.case.output_paths == ('output["more"][1]', 'output["y"]')


def test_a_difference_has_the_path_of_its_array():
    @jax.custom_vjp
    def times(x, w):
        return x @ w

    times.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, v: (v @ r[1].T, 1.01 * r[0].T @ v))
    report = p3.check(
        torch=lambda params, x: torch.tanh(x @ params["w"]),
        jax=lambda params, x: jnp.tanh(times(x, params["w"])),
        inputs={"params": {"w": W}, "x": X},
        only=["vjp"],
    )
    first = report.first
    assert (first.side, first.mode, first.quantity, first.path) == ("port", "eager", "vjp", 'inputs["params"]["w"]')
    assert first.kind == "semantic"
    assert first.got == pytest.approx(1.01 * first.expected)
    assert "1.01 times" in first.explanation
    assert {difference.path for difference in report.differences} == {'inputs["params"]["w"]'}
    assert "1.01 times" in report.to_html()
    assert report._repr_html_().startswith("<!doctype html>")


def test_the_side_named_first_is_the_reference():
    wrong = p3.check(jax=lambda x: 2 * x, torch=lambda x: 3 * x, inputs=B, only=["value"])
    assert (wrong.reference_framework.split()[0], wrong.port_framework.split()[0]) == ("JAX", "PyTorch")
    assert wrong.first.path == "output"


def test_arguments_can_be_chosen_by_name():
    sides = (as_operator(f, arguments=("params",)) for as_operator, f in
             ((torchp3.as_operator, in_torch), (jaxp3.as_operator, in_jax)))  # fmt: skip
    report = p3.parity.check(*sides, {"params": PARAMETERS, "x": X}, only=["vjp"])
    report.assert_ok()
    places = report.case.places(report.case.quantity("vjp"), "port")
    assert [place.path for place in places] == ['inputs["params"]["b"][0]', 'inputs["params"]["w"]']


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: p3.check(torch=in_torch, inputs=X), "are the two sides, and 1 of them given"),
        (lambda: p3.check(torch=in_torch, jax=in_jax, inputs=X, onyl=[]), "there is no option 'onyl'; there are"),
        (lambda: p3.check(torch=torch.sin, jax=jnp.sin, inputs={"a": "b"}), "inputs have no array in them; give"),
        (
            lambda: p3.parity.check(Sine(), torchp3.as_operator(torch.sin), {"x": X}),
            r"sine \(NumPy\) takes arrays alone, by position; give a tuple of them",
        ),
        (
            lambda: p3.check(
                torch=torchp3.as_operator(in_torch, arguments=("w",)), jax=in_jax, inputs={"params": PARAMETERS, "x": X}
            ),
            r"arguments \('w',\) are not all arguments with arrays in them: 'params', 'x'",
        ),
    ],
)
def test_what_cannot_be_checked_is_said(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_test_of_each_check_by_the_frameworks_names():
    test = p3.parity_test(torch=torch.sin, jax=jnp.sin, inputs=B, only=["value", "vjp"])
    (mark,) = test.pytestmark
    assert mark.args == ("check", ("value", "vjp"))
    test("vjp")
