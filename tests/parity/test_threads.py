"""Checks in several threads: every verdict is right, and no other thread ever sees a scaled rule."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxp3
import torchp3
from p3 import parity
from p3.backends import load
from tests.support.problems import PROBLEMS, fitted

POINTS = np.linspace(-3, 3, 51)
WRONG = jax.custom_vjp(lambda x: jnp.sin(x))
WRONG.defvjp(lambda x: (jnp.sin(x), x), lambda x, cotangent: (1.01 * cotangent * jnp.cos(x),))

jitted = jax.jit(jaxp3.legendre_p3)
compiled = torch.compile(lambda x: torchp3.legendre_p3(x) + 0, backend="aot_eager")


def torch_gradient(f):
    x = torch.tensor([0.5], requires_grad=True)
    return torch.autograd.grad(f(x).sum(), x)[0].item()


def gradients(backend):
    """P3'(0.5), which is 0.375, in the ways in which users compute it."""
    if backend == "torch":
        half = torch.tensor([0.5])
        return [
            torch_gradient(torchp3.legendre_p3),
            torch.func.vjp(torchp3.legendre_p3, half)[1](torch.ones(1))[0].item(),
        ]
    return [
        float(jax.grad(jaxp3.legendre_p3)(0.5)),
        float(jax.grad(jitted)(0.5)),
        float(jax.jit(jax.grad(jaxp3.legendre_p3))(0.5)),
        float(jax.jvp(jaxp3.legendre_p3_custom_jvp, (0.5,), (1.0,))[1]),
    ]


def of_compiled(backend):
    """The same, compiled; PyTorch's compiler works for one thread at a time, and the others wait."""
    if backend == "torch":
        fresh = torch.compile(lambda x: torchp3.legendre_p3(x) * 1, backend="aot_eager")
        return [torch_gradient(compiled), torch_gradient(fresh)]
    return [float(jax.jit(jax.grad(lambda x: jaxp3.legendre_p3(x) * 1))(0.5))]


def as_operator(backend):
    """P3, also by way of what is compiled already."""
    if backend == "torch":
        return torchp3.as_operator(lambda x: (torchp3.legendre_p3(x) + compiled(x)) / 2)
    return jaxp3.as_operator(lambda x: (jaxp3.legendre_p3(x) + jitted(x)) / 2)


def modes(operator):
    """Where something can be called between the passes, which in torch.func Dynamo cannot break its graph for."""
    ways = {"eager": operator, **operator.transformed(), **operator.compiled()}
    return {name: way for name, way in ways.items() if name != "torch.compile of torch.func"}


def test_other_threads_never_see_a_scaled_rule(backend):
    spec = PROBLEMS["tutorial"].replace({"steps": 20, "log_every": 20})
    before, of_compiled_before = gradients(backend), of_compiled(backend)
    assert set(before + of_compiled_before) == {0.375}
    losses = fitted(backend, spec).losses.tolist()
    half, one = (np.array([0.5], np.float32),), (np.array([1.0], np.float32),)
    for name, mode in modes(as_operator(backend)).items():
        with ThreadPoolExecutor(2) as others:
            waiting, seen = [], []

            def between(others=others, waiting=waiting, seen=seen):
                """Called while the rule is scaled in this thread, between its forward and its backward pass."""
                waiting.append(others.submit(of_compiled, backend))
                seen.append(others.submit(gradients, backend).result())
                seen.append(others.submit(load(backend).fit, spec).result().losses.tolist())

            (scaled,) = mode.scaled(4.0).interrupted(between).vjp(half, one)
            assert seen == [before, losses], name
            assert [future.result() for future in waiting] == [of_compiled_before], name
        assert scaled == 4 * 0.375, name
        assert mode.vjp(half, one)[0] == 0.375, name
        assert gradients(backend) == before, name
        assert of_compiled(backend) == of_compiled_before, name


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
@pytest.mark.parametrize("count", [2, 8])
def test_checks_in_threads(count, compiled):
    before = gradients("torch"), gradients("jax")
    right = torchp3.as_operator(torchp3.legendre_p3), jaxp3.as_operator(jaxp3.legendre_p3)
    wrong = torchp3.as_operator(torch.sin), jaxp3.as_operator(WRONG)
    only = ["vjp", "jvp", "vjp of vjp", "jvp of vjp", "transformed", "rule", *(["compiled"] if compiled else [])]
    ready = threading.Barrier(count)

    def check(number):
        ready.wait()
        return parity.check(*(wrong if number % 2 else right), POINTS, only=only, compiled=compiled)

    with ThreadPoolExecutor(count) as threads:
        reports = list(threads.map(check, range(count)))
    for number, report in enumerate(reports):
        assert [result.name for result in report.failed] == (
            ["vjp", "vjp of vjp", "jvp of vjp"] if number % 2 else []
        ), str(report)
        assert "ran in eager" in report["rule"].note
    assert (gradients("torch"), gradients("jax")) == before


RULES = [(torchp3.LegendrePolynomial3, "backward"), (torchp3.LegendrePolynomial3, "jvp")] + [
    (kind, "__call__") for kind in (jax.custom_vjp, jax.custom_jvp)
]


@pytest.fixture(autouse=True)
def rules_are_what_they_were():
    before = [kind.__dict__[name] for kind, name in RULES]
    yield
    assert all(kind.__dict__[name] is rule for (kind, name), rule in zip(RULES, before, strict=True))


def test_rules_are_put_back_whatever_happens(backend):
    def stop():
        raise KeyboardInterrupt

    for mode in modes(as_operator(backend)).values():
        with pytest.raises(KeyboardInterrupt):
            mode.scaled(4.0).interrupted(stop).vjp((np.array([0.5]),), (np.array([1.0]),))
    with ThreadPoolExecutor(1) as other:
        assert set(gradients(backend) + other.submit(gradients, backend).result() + of_compiled(backend)) == {0.375}


def test_a_rule_is_scaled_in_two_threads_of_which_one_ends_first(backend):
    operator, half, one = as_operator(backend), (np.array([0.5]),), (np.array([1.0]),)
    begun, ended = threading.Event(), threading.Event()

    def first():
        begun.wait()
        (scaled,) = operator.scaled(8.0).vjp(half, one)
        ended.set()
        return scaled

    def between():
        begun.set()
        ended.wait()

    with ThreadPoolExecutor(1) as other:
        waiting = other.submit(first)
        assert operator.scaled(4.0).interrupted(between).vjp(half, one)[0] == 4 * 0.375
        assert waiting.result() == 8 * 0.375


def test_a_function_may_wait_for_a_thread_that_runs_an_operator(backend):
    inner, half, one = as_operator(backend), (np.array([0.5]),), (np.array([1.0]),)
    p3_of = {"torch": torchp3.legendre_p3, "jax": jaxp3.legendre_p3}[backend]
    seen = []

    def f(x):
        with ThreadPoolExecutor(1) as other:
            seen.append(other.submit(inner.vjp, half, one).result()[0].item())
        return p3_of(x)

    operator = {"torch": torchp3, "jax": jaxp3}[backend].as_operator(f)
    assert operator.scaled(4.0).vjp(half, one)[0] == 4 * 0.375
    assert operator.value(half)[0] == pytest.approx(-0.4375)
    assert set(seen) == {0.375}


def test_an_operator_within_a_function_is_not_scaled(backend):
    inner, half, one = as_operator(backend), (np.array([0.5]),), (np.array([1.0]),)
    p3_of = {"torch": torchp3.legendre_p3, "jax": jaxp3.legendre_p3}[backend]
    seen = []

    def f(x):
        seen.extend(way.vjp(half, one)[0].item() for way in (inner, inner.scaled(2.0)))
        return p3_of(x)

    operator = {"torch": torchp3, "jax": jaxp3}[backend].as_operator(f)
    assert operator.scaled(4.0).vjp(half, one)[0] == 4 * 0.375
    assert set(seen[::2]) == {0.375}
    assert set(seen[1::2]) == {2 * 0.375}


def test_an_inherited_rule_is_scaled_once():
    class Heir(torchp3.LegendrePolynomial3):
        """The rules are its base's."""

    operator = torchp3.as_operator(lambda x: Heir.apply(x) + torchp3.LegendrePolynomial3.apply(x))
    assert operator.scaled(4.0).vjp((np.array([0.5]),), (np.array([1.0]),))[0] == 4 * 0.75


def test_a_rule_under_checkpoint_is_found():
    operator = jaxp3.as_operator(jax.checkpoint(jaxp3.legendre_p3))
    assert operator.rules((np.array([0.5]),)) == ("legendre_p3",)
