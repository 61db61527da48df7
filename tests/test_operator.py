"""legendre_p3 is the polynomial, its derivatives are the polynomial's, and they come from the hand-written rule."""

import jax
import jax.test_util
import numpy as np
import pytest
import torch
from frameworks import forget_compiled, operator_derivative

import jaxp3
import torchp3
from p3.backends import load
from p3.exact import P3
from p3.tolerance import OPERATOR

ROOTS = [-np.sqrt(3 / 5), 0.0, np.sqrt(3 / 5), -np.sqrt(1 / 5), np.sqrt(1 / 5)]  # of P3, and of P3'


def points(dtype: str) -> np.ndarray:
    random = np.random.default_rng(3).uniform(-np.pi, np.pi, 1000)
    near_roots = np.concatenate([root + np.linspace(-1e-3, 1e-3, 101) for root in ROOTS])
    return np.concatenate([random, near_roots, [-1.0, 1.0, -0.5, 0.5]]).astype(dtype)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_value_and_derivatives_are_the_polynomials(backend, order, dtype, jit):
    x = points(dtype)
    answer = operator_derivative(backend, order, jit)(x)
    exact = P3.deriv(order) if order else P3
    size = np.max(np.abs(exact.coef[:, None] * x.astype(np.float64) ** np.arange(len(exact.coef))[:, None]), axis=0)
    assert answer.dtype == x.dtype
    assert np.all(np.abs(answer - exact(x.astype(np.float64))) <= OPERATOR.bound(dtype, size))


@pytest.mark.parametrize(("x", "value", "slope"), [(-1, -1, 6), (0, 0, -1.5), (0.5, -0.4375, 0.375), (1, 1, 6)])
def test_exact_answers(backend, x, value, slope, dtype):
    at = np.array([x], dtype)
    assert operator_derivative(backend, 0, False)(at) == value
    assert operator_derivative(backend, 1, False)(at) == slope


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 4), (2, 1, 3)])
def test_shapes_are_kept(backend, shape):
    x = np.random.default_rng(0).uniform(-1, 1, shape)
    for order in (0, 1):
        assert operator_derivative(backend, order, False)(x).shape == shape


def test_one_by_one_under_vmap_is_all_at_once(backend):
    x = points("float32")
    one_by_one = {
        "torch": lambda: torch.vmap(torch.func.grad(torchp3.legendre_p3))(torch.from_numpy(x)).numpy(),
        "jax": lambda: np.asarray(jax.vmap(jax.grad(jaxp3.legendre_p3))(x)),
    }[backend]()
    np.testing.assert_array_equal(one_by_one, operator_derivative(backend, 1, False)(x))


def test_gradcheck():
    x = torch.from_numpy(points("float64")[::20]).requires_grad_()
    assert torch.autograd.gradcheck(torchp3.legendre_p3, x)
    assert torch.autograd.gradgradcheck(torchp3.legendre_p3, x)


def test_check_grads():
    # On scalars, since check_grads multiplies its tolerance by the number of elements. 1e-6 is what finite
    # differences in float64 come to.
    with jax.enable_x64(True):
        for x in points("float64")[::20]:
            jax.test_util.check_grads(jaxp3.legendre_p3, (x,), order=2, modes=("rev",), atol=1e-6, rtol=1e-6)


def torch_gradient(x, compiled):
    function = torch.compile(torchp3.legendre_p3, fullgraph=True) if compiled else torchp3.legendre_p3
    x = torch.from_numpy(x).requires_grad_()
    (gradient,) = torch.autograd.grad(function(x).sum(), x)
    return gradient.numpy()


def jax_gradient(x, compiled):
    gradient = jax.grad(lambda x: jaxp3.legendre_p3(x).sum())
    return np.asarray((jax.jit(gradient) if compiled else gradient)(x))


def test_the_hand_written_rule_is_what_runs(backend, jit, monkeypatch):
    x = points("float32")
    gradient = {"torch": torch_gradient, "jax": jax_gradient}[backend]
    true = gradient(x, jit)
    operator = __import__(f"{load(backend).__name__}.operator", fromlist=["derivative"])
    derivative = operator.derivative
    monkeypatch.setattr(operator, "derivative", lambda x: 4 * derivative(x))  # a power of two is exact
    forget_compiled()
    marked = gradient(x, jit)
    forget_compiled()
    np.testing.assert_array_equal(marked, 4 * true)


def test_the_residual_is_x_alone():
    kept = []
    x = torch.linspace(-1, 1, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        torchp3.legendre_p3(x)
    assert [tensor.data_ptr() for tensor in kept] == [x.data_ptr()]

    _, vjp = jax.vjp(jaxp3.legendre_p3, jax.numpy.linspace(-1, 1, 1000))
    assert [residual.shape for residual in jax.tree.leaves(vjp)] == [(1000,)]
