"""Second derivatives by every pair of modes: the reference's own mistakes are named as the reference's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.scipy.special import logsumexp
from torch.nn import functional

import jaxp3
import torchp3
from p3 import parity

SECOND = ("vjp of vjp", "jvp of vjp", "vjp of jvp", "jvp of jvp")
MATRIX = np.random.default_rng(3).normal(size=(3, 3))


def normalised(axis):
    def normalise(x):
        return (x - x.mean(axis, keepdims=True)) / jnp.sqrt(x.var(axis, keepdims=True) + 1e-5)

    return normalise


# Of which PyTorch's jvp of the jvp is wrong, without a word.
WRONG_IN_PYTORCH = {
    "det": (torch.linalg.det, jnp.linalg.det, MATRIX),
    "slogdet": (lambda x: tuple(torch.linalg.slogdet(x)), lambda x: tuple(jnp.linalg.slogdet(x)), MATRIX),
    "solve": (torch.linalg.solve, jnp.linalg.solve, (MATRIX, MATRIX[0] + 1)),
    "layer_norm": (lambda x: functional.layer_norm(x, (3,)), normalised(-1), MATRIX),
    "batch_norm": (lambda x: functional.batch_norm(x, None, None, training=True), normalised(0), MATRIX),
}


@pytest.mark.parametrize("name", WRONG_IN_PYTORCH)
def test_a_wrong_jvp_of_the_jvp_is_named_as_the_references(name):
    in_torch, in_jax, inputs = WRONG_IN_PYTORCH[name]
    report = parity.check(torchp3.as_operator(in_torch), jaxp3.as_operator(in_jax), inputs, only=["jvp of jvp"])
    assert {difference.side for difference in report.differences} == {"reference"}
    assert {difference.quantity for difference in report.differences} == {"jvp of jvp"}
    assert report["jvp of jvp"].note.startswith("the port's is true; the reference's is wrong, output")
    report.assert_ok()  # since it is no fault of the port


def test_nan_of_the_reference_alone_is_the_references():
    rows = np.array([[1.0, 0.0, 2.0], [3.0, 4.0, 5.0]])
    sides = torchp3.as_operator(lambda x: torch.cumprod(x, 1)), jaxp3.as_operator(lambda x: jnp.cumprod(x, 1))
    report = parity.check(*sides, rows, only="vjp of jvp")
    assert {difference.side for difference in report.differences} == {"reference"}
    report.assert_ok()


def test_a_second_derivative_that_is_refused_shows_no_detached_residual():
    distance = torchp3.as_operator(lambda x: torch.cdist(x, x + 1))

    def in_jax(x):
        return jnp.sqrt(((x[:, None] - x[None] - 1) ** 2).sum(-1))

    report = parity.check(
        distance, jaxp3.as_operator(in_jax), np.random.default_rng(0).normal(size=(3, 4)), only="power"
    )
    assert "detached residual" not in report["power"].note


def test_what_else_differs_is_no_mistake_of_the_references():
    in_torch, in_jax, inputs = WRONG_IN_PYTORCH["layer_norm"]
    report = parity.check(
        torchp3.as_operator(lambda x: (in_torch(x), torch.sin(x))),
        jaxp3.as_operator(lambda x: (in_jax(x), 2 * jnp.sin(x))),
        inputs,
        only=["jvp of jvp"],
    )
    assert not report.ok
    assert {(difference.side, difference.path) for difference in report.differences} == {
        ("reference", "output[0]"),
        ("port", "output[1]"),
    }


@pytest.mark.parametrize("name", WRONG_IN_PYTORCH)
def test_a_port_that_has_the_wrong_second_derivative_fails(name):
    in_torch, in_jax, inputs = WRONG_IN_PYTORCH[name]
    report = parity.check(jaxp3.as_operator(in_jax), torchp3.as_operator(in_torch), inputs, only=["jvp of jvp"])
    assert not report.ok
    assert {difference.side for difference in report.differences} == {"port"}


@pytest.mark.parametrize(
    "function",
    [
        torchp3.as_operator(torchp3.legendre_p3),
        torchp3.as_operator(torchp3.legendre_p3).transformed()["torch.func"],
        jaxp3.as_operator(jaxp3.legendre_p3),
        jaxp3.as_operator(jaxp3.legendre_p3_custom_jvp),
    ],
    ids=["torchp3.legendre_p3", "torch.func of it", "jaxp3.legendre_p3", "jaxp3.legendre_p3_custom_jvp"],
)
def test_p3s_second_derivatives_are_right_or_raise(function):
    x = np.linspace(-2, 2, 9)
    v, w = np.linspace(1, 2, 9), np.linspace(-1, 1, 9)
    slope, bend = 7.5 * x**2 - 1.5, 15 * x
    expected = {
        "vjp_of_vjp": (v * w * bend, w * slope),
        "jvp_of_vjp": (v * w * bend,),
        "vjp_of_jvp": (v * w * bend, w * slope),
        "jvp_of_jvp": (v * w * bend,),
    }
    forward = 0
    for method, arrays in expected.items():
        try:
            got = getattr(function, method)((x,), (v,), (w,))
        except NotImplementedError:
            forward += 1
            continue
        for a, b in zip(got, arrays, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-14)
    assert forward == (2 if function.name == "legendre_p3" and function.framework.startswith("JAX") else 0)


@pytest.mark.parametrize(
    ("in_torch", "in_jax"),
    [(torch.softmax, jax.nn.softmax), (torch.log_softmax, jax.nn.log_softmax), (torch.logsumexp, logsumexp)],
)
def test_where_dual_numbers_cannot_be_gone_back_through_torch_func_is_taken(in_torch, in_jax):
    report = parity.check(
        torchp3.as_operator(lambda x: in_torch(x, 0)),
        jaxp3.as_operator(lambda x: in_jax(x, 0)),
        np.random.default_rng(0).normal(size=(4, 3)),
        only="vjp of jvp",
    )
    assert report["vjp of jvp"].verdict == "passed"


def test_functions_that_are_right_have_no_finding_of_second_order():
    def f(x, w):
        return jnp.tanh(x @ w)

    inputs = (np.random.default_rng(1).normal(size=(3, 4)), np.random.default_rng(2).normal(size=(4, 2)))
    report = parity.check(
        torchp3.as_operator(lambda x, w: torch.tanh(x @ w)), jaxp3.as_operator(jax.jit(f)), inputs, only=SECOND
    )
    assert [(result.verdict, result.findings) for result in report.checks] == [("passed", ())] * 4
