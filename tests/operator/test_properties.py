"""Whatever the shape, dtype, strides and values, legendre_p3 and its gradient are what NumPy has in the same form."""

import hypothesis.extra.numpy as arrays
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxp3
import torchp3
from p3.tolerance import COMPLEX_OPERATOR
from tests.support.frameworks import to_numpy, to_torch

KINDS = [np.dtype(kind) for kind in ("float16", ml_dtypes.bfloat16, "float32", "float64", "complex64", "complex128")]


@st.composite
def inputs(draw, kind):
    """An array with strides of its own, and a cotangent of its shape."""
    wide = np.dtype("float64") if kind.kind != "c" else np.dtype("complex128")
    # Of a complex product that overflows every library makes something else, so those stay small.
    elements = (
        st.floats(width=32, allow_subnormal=False)
        if kind.kind != "c"
        else st.complex_numbers(max_magnitude=1e3, allow_nan=False, allow_subnormal=False)
    )
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    with np.errstate(over="ignore"):
        x = draw(arrays.arrays(wide, shape, elements=elements)).astype(kind)
    cotangent = draw(arrays.arrays(wide, shape, elements=st.floats(-8, 8, width=16))).astype(kind)
    axes = draw(st.permutations(range(len(shape))))
    step = draw(st.sampled_from([1, 2]))
    return x, cotangent, axes, step


def rearranged(x, axes, step):
    """Transposed, every other element of the first axis, and repeated along a new one without being copied."""
    x = x.transpose(axes) if isinstance(x, np.ndarray | jax.Array) else x.permute(axes)
    x = x[::step] if x.ndim else x
    return x[None] if isinstance(x, np.ndarray | jax.Array) else x.expand(1, *x.shape)


def reference(x, cotangent, conjugate):
    wide = x.astype(np.promote_types(x.dtype, np.float32) if x.dtype != ml_dtypes.bfloat16 else np.float32)
    slope = 7.5 * wide * wide - 1.5
    value = wide * (2.5 * wide * wide - 1.5)
    return value.astype(x.dtype), (cotangent * (slope.conj() if conjugate else slope)).astype(x.dtype)


def assert_same(answer, expected, x, flushed):
    assert (answer.shape, answer.dtype) == (expected.shape, expected.dtype)
    if x.dtype.kind == "c":
        bound = COMPLEX_OPERATOR.epsilons * np.finfo(x.dtype).eps * np.maximum(7.5 * np.abs(x) ** 3, 7.5) * 12
        assert np.all(np.abs(answer - expected) <= bound)
        return
    answer, expected = answer.astype(np.float64), expected.astype(np.float64)
    if flushed:  # XLA's arithmetic on a CPU takes subnormal numbers for 0
        tiny = float(ml_dtypes.finfo(x.dtype).tiny) if x.dtype != np.float16 else 0.0
        answer, expected = (np.where(np.abs(side) <= tiny, 0.0, side) for side in (answer, expected))
    np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("examples", [6, pytest.param(1_700, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_any_array(kind, examples):
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(inputs(kind))
    def check(drawn):
        x, cotangent, axes, step = drawn
        view, cotangent_view = rearranged(x, axes, step), rearranged(cotangent, axes, step)
        with np.errstate(all="ignore"):
            value, torch_gradient = reference(view, cotangent_view, conjugate=True)
            _, jax_gradient = reference(view, cotangent_view, conjugate=False)

        leaf = rearranged(to_torch(x), axes, step).detach().requires_grad_()
        output = torchp3.legendre_p3(leaf)
        (gradient,) = torch.autograd.grad(output, leaf, rearranged(to_torch(cotangent), axes, step))
        assert_same(to_numpy(output.detach()), value, view, flushed=False)
        assert_same(to_numpy(gradient), torch_gradient, view, flushed=False)

        with jax.enable_x64(x.dtype in (np.float64, np.complex128)):
            array, cotangent_array = (rearranged(jnp.asarray(a), axes, step) for a in (x, cotangent))
            for f in (jaxp3.legendre_p3, jaxp3.legendre_p3_custom_jvp):
                output, vjp = jax.vjp(f, array)
                assert_same(np.asarray(output), value, view, flushed=True)
                assert_same(np.asarray(vjp(cotangent_array)[0]), jax_gradient, view, flushed=True)

    check()
