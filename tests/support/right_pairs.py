"""Pairs of functions, one in PyTorch and one in JAX, that are right ports of each other, and inputs for each."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

import jaxp3
import torchp3
from comparisons import tutorial

LINE = np.linspace(-3, 3, 101)
POSITIVE = np.linspace(0.1, 5, 101)
RANDOM = np.random.default_rng(11)


class Pair(NamedTuple):
    """A function in both frameworks, its inputs, and options of `check`."""

    torch: Callable[..., Any]
    jax: Callable[..., Any]
    inputs: Any
    options: Mapping[str, Any] = MappingProxyType({})


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape)


class TorchExp(torch.autograd.Function):
    """Saves its output, as is right where that is what the derivative is made of."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.exp()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx, cotangent):
        (y,) = ctx.saved_tensors
        return cotangent * y


@jax.custom_vjp
def jax_exp(x):
    return jnp.exp(x)


def jax_exp_forward(x):
    y = jax_exp(x)
    return y, y


jax_exp.defvjp(jax_exp_forward, lambda y, cotangent: (cotangent * y,))


class TorchScaledSine(torch.autograd.Function):
    """Two arguments, the second of which may be broadcast."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale):
        return scale * torch.sin(x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        x, scale = ctx.saved_tensors
        return (
            (cotangent * scale * torch.cos(x)).sum_to_size(x.shape),
            (cotangent * torch.sin(x)).sum_to_size(scale.shape),
        )


@jax.custom_jvp
def jax_scaled_sine(x, scale):
    return scale * jnp.sin(x)


@jax_scaled_sine.defjvp
def jax_scaled_sine_jvp(primals, tangents):
    (x, scale), (dx, dscale) = primals, tangents
    return jax_scaled_sine(x, scale), scale * jnp.cos(x) * dx + jnp.sin(x) * dscale


class TorchClippedIdentity(torch.autograd.Function):
    """A straight-through estimator: the rule is on purpose not the derivative."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.round()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent


@jax.custom_vjp
def jax_straight_through(x):
    return jnp.round(x)


jax_straight_through.defvjp(lambda x: (jnp.round(x), None), lambda _, cotangent: (cotangent,))


def torch_rms_norm(x, weight):
    return weight * x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)


def jax_rms_norm(x, weight):
    return weight * x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6)


PAIRS = {
    "p3": Pair(torchp3.legendre_p3, jaxp3.legendre_p3, LINE),
    "p3, custom_jvp": Pair(torchp3.legendre_p3, jaxp3.legendre_p3_custom_jvp, LINE),
    "p3, complex": Pair(torchp3.legendre_p3, jaxp3.legendre_p3, LINE + 1j * LINE[::-1] ** 2 / 3),
    "exp, of its output": Pair(TorchExp, jax_exp, LINE),
    "scaled sine": Pair(TorchScaledSine, jax_scaled_sine, (LINE, POSITIVE)),
    "scaled sine, broadcast": Pair(TorchScaledSine, jax_scaled_sine, (LINE, np.array([1.5]))),
    "scaled sine, a scalar": Pair(TorchScaledSine, jax_scaled_sine, (LINE, np.array(1.5))),
    "straight-through rounding": Pair(TorchClippedIdentity, jax_straight_through, LINE + 0.01, {"surrogate": True}),
    "sin": Pair(torch.sin, jnp.sin, LINE),
    "tanh": Pair(torch.tanh, jnp.tanh, LINE),
    "log": Pair(torch.log, jnp.log, POSITIVE),
    "sqrt": Pair(torch.sqrt, jnp.sqrt, POSITIVE),
    "expm1": Pair(torch.expm1, jnp.expm1, LINE),
    "log1p": Pair(torch.log1p, jnp.log1p, POSITIVE),
    "atan": Pair(torch.atan, jnp.arctan, LINE),
    "sigmoid": Pair(torch.sigmoid, jax.nn.sigmoid, LINE),
    "softplus": Pair(functional.softplus, jax.nn.softplus, LINE),
    "silu": Pair(functional.silu, jax.nn.silu, LINE),
    "gelu, by tanh": Pair(lambda x: functional.gelu(x, approximate="tanh"), jax.nn.gelu, LINE),
    "relu": Pair(torch.relu, jax.nn.relu, LINE + 0.01),
    "erf": Pair(torch.erf, jax.scipy.special.erf, LINE),
    "power": Pair(lambda x: x**3, lambda x: x**3, LINE),
    # Finite differences know nothing where a function turns often between their points, and must know that.
    "high frequency": Pair(
        lambda x: torch.sin(3000 * x), lambda x: jnp.sin(3000 * x), np.concatenate([LINE, LINE / 3000])
    ),
    "oscillation without end": Pair(lambda x: torch.sin(1 / x), lambda x: jnp.sin(1 / x), LINE + 1e-4),
    "sawtooth": Pair(lambda x: torch.frac(100 * x), lambda x: 100 * x - jnp.trunc(100 * x), LINE + 0.001),
    # One element of a row has nearly all of it, and what is left of the gradient is rounding.
    "softmax of large numbers": Pair(
        lambda x: torch.softmax(x, -1),
        lambda x: jax.nn.softmax(x, -1),
        10 * np.random.default_rng(3).normal(size=(5, 7)),
    ),
    # Each element depends on its own input alone, and on where it is.
    "positional weights": Pair(lambda x: x * torch.arange(x.shape[-1]), lambda x: x * jnp.arange(x.shape[-1]), LINE),
    "a mask": Pair(lambda x: x * (torch.arange(101) < 60), lambda x: x * (jnp.arange(101) < 60), LINE),
    "reciprocal": Pair(lambda x: 1 / x, lambda x: 1 / x, POSITIVE),
    "product": Pair(torch.mul, jnp.multiply, (LINE, POSITIVE)),
    "quotient": Pair(torch.div, jnp.divide, (LINE, POSITIVE)),
    "distance": Pair(
        lambda x, y: torch.sqrt(x * x + y * y), lambda x, y: jnp.sqrt(x * x + y * y), (LINE + 0.01, POSITIVE)
    ),
    "atan2": Pair(torch.atan2, jnp.arctan2, (LINE + 0.01, POSITIVE)),
    "where": Pair(
        lambda x, y: torch.where(x > 0, x * y, y), lambda x, y: jnp.where(x > 0, x * y, y), (LINE + 0.01, POSITIVE)
    ),
    "relu at its kink": Pair(torch.relu, jax.nn.relu, np.arange(-8, 9) / 4),
    "clamp at its kinks": Pair(
        lambda x: torch.clamp(x, -1, 1),
        lambda x: jnp.where(x < -1, -1, jnp.where(x > 1, 1, x)),
        np.arange(-8, 9) / 4,
    ),
    "beside the largest": Pair(lambda x: x / x.max(), lambda x: x / x.max(), np.array([2, 0.6, 0.7, 0.8, 0.9])),
    "beside the first": Pair(lambda x: x - x[0], lambda x: x - x[0], normal(6)),
    "softmax of one": Pair(lambda x: torch.softmax(x, -1), lambda x: jax.nn.softmax(x, -1), normal(1)),
    "cancelled": Pair(
        lambda x: torch.cos(x + 1) - math.cos(1), lambda x: jnp.cos(x + 1) - math.cos(1), np.arange(-3.0, 4)
    ),
    "overflowing alike in float16": Pair(
        lambda x: torch.sqrt(x * x + 1), lambda x: jnp.sqrt(x * x + 1), np.linspace(-1000, 1000, 9)
    ),
    "tiny": Pair(lambda x: x * x * x, lambda x: x * x * x, np.linspace(1e-20, 1e-19, 9), {"dtypes": ["float32"]}),
    "Fourier transform": Pair(torch.fft.rfft, jnp.fft.rfft, normal(8)),
    "convolution": Pair(
        torch.nn.functional.conv1d,
        lambda x, w: jax.lax.conv_general_dilated(x, w, (1,), "VALID"),
        (normal(1, 2, 9), normal(3, 2, 3)),
    ),
    "the largest three and where": Pair(
        lambda x: tuple(torch.topk(x, 3)), lambda x: tuple(jax.lax.top_k(x, 3)), normal(9)
    ),
    "an index of no dimensions": Pair(lambda x, i: x[i] ** 2, lambda x, i: x[i] ** 2, (normal(4), np.array(3))),
    "a sum of one": Pair(lambda x: x.sum(), lambda x: x.sum(), np.array(0.5)),
    "sum": Pair(torch.sum, jnp.sum, LINE),
    "mean square": Pair(lambda x: (x * x).mean(), lambda x: (x * x).mean(), LINE),
    "logsumexp": Pair(
        lambda x: torch.logsumexp(x, -1), lambda x: jax.scipy.special.logsumexp(x, axis=-1), normal(5, 7)
    ),
    "softmax": Pair(lambda x: torch.softmax(x, -1), lambda x: jax.nn.softmax(x, axis=-1), normal(5, 7)),
    "layer norm": Pair(
        lambda x: functional.layer_norm(x, (7,)),
        lambda x: (x - x.mean(-1, keepdims=True)) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5),
        normal(5, 7),
    ),
    "rms norm": Pair(torch_rms_norm, jax_rms_norm, (normal(5, 7), normal(7))),
    "matrix product": Pair(torch.matmul, jnp.matmul, (normal(4, 5), normal(5, 3))),
    "transpose": Pair(lambda x: x.T * 2, lambda x: x.T * 2, normal(4, 5)),
    "cumulative sum": Pair(lambda x: torch.cumsum(x, 0), lambda x: jnp.cumsum(x), LINE),
    "two outputs": Pair(lambda x: (torch.sin(x), torch.cos(x)), lambda x: (jnp.sin(x), jnp.cos(x)), LINE),
    "an index": Pair(lambda x, i: x[i] ** 2, lambda x, i: x[i] ** 2, (LINE, np.array([3, 1, 4, 1, 5]))),
    "complex product": Pair(torch.mul, jnp.multiply, (normal(20) + 1j * normal(20), normal(20) + 1j * normal(20))),
    "square modulus": Pair(lambda z: (z * z.conj()).real, lambda z: (z * z.conj()).real, normal(20) + 1j * normal(20)),
}

# Right where both have a value, and known to differ elsewhere: what the check must say of them.
DIFFERENCES = {
    "the tutorial's p3": (
        Pair(tutorial.LegendrePolynomial3, jaxp3.legendre_p3, LINE),
        "special values",
        r"NaN on one side alone",
    ),
    "solve": (
        Pair(
            torch.linalg.solve,
            jnp.linalg.solve,
            (normal(4, 4) + 4 * np.eye(4), normal(4, 2)),
            {"points": (np.nan,)},
        ),
        "special values",
        r"at nan of inputs\[0\], value, output, .* it is .*, and the reference's nan",
    ),
    "determinant": (
        Pair(torch.linalg.det, jnp.linalg.det, normal(4, 4) + 4 * np.eye(4), {"points": (np.inf,)}),
        "special values",
        r"at inf, vjp, inputs, .* it is 0, and the reference's nan",
    ),
    "hypot": (
        Pair(torch.hypot, jnp.hypot, (LINE + 0.01, POSITIVE)),
        "special values",
        r"at inf of inputs\[0\], .* it is nan",
    ),
    "the second derivative of lgamma": (
        Pair(torch.lgamma, jax.scipy.special.gammaln, POSITIVE),
        "vjp of vjp",
        r"of the largest element off",  # PyTorch's trigamma is, by 1e-11
    ),
}
