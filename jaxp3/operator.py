"""P3(x) = (5x³ − 3x)/2 as a `jax.custom_vjp`, and as a `jax.custom_jvp`, with its own derivative rules."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Inexact

from p3.errors import dtype_error

DTYPES = (jnp.float16, jnp.bfloat16, jnp.float32, jnp.float64, jnp.complex64, jnp.complex128)


def polynomial(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """P3(x) = x (5x² − 3)/2."""
    return x * (2.5 * x * x - 1.5)


def derivative(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """P3'(x) = 3(5x² − 1)/2."""
    return 7.5 * x * x - 1.5


def array(x: Any) -> Inexact[Array, "*shape"]:
    """Make an array of a Python float or complex number, and refuse what P3 is not defined for."""
    if isinstance(x, float | complex):  # as NumPy's float64 is, and JAX's own literals
        return jnp.asarray(x)
    if not isinstance(x, Array | np.ndarray | np.generic) or x.dtype not in DTYPES:
        given = x.dtype if isinstance(x, Array | np.ndarray) else type(x)
        raise dtype_error(str(given), "jnp.asarray(x, dtype=jnp.float32)")
    return x if isinstance(x, Array) else jnp.asarray(x)  # which would round float64 where 64-bit types are off


def widen(x: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """Half precision as float32, any other as it is: the precision to compute in, before one rounding."""
    return x.astype(jnp.float32) if x.dtype in (jnp.float16, jnp.bfloat16) else x


@jax.custom_jvp
def legendre_p3_custom_jvp(x: Inexact[Array, "*shape"] | float | complex) -> Inexact[Array, "*shape"]:
    """
    `legendre_p3` with forward mode: the same values, the same reverse mode, and jvp, jacfwd and linearize as well.

    A `jax.custom_jvp`, whose reverse mode JAX derives by transposing the hand-written jvp.
    """
    x = array(x)
    return polynomial(widen(x)).astype(x.dtype)


@partial(jax.checkpoint, prevent_cse=False)  # so that the residual is x, as in legendre_p3, and not P3'(x)
def pushforward(x: Inexact[Array, "*shape"], tangent: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """The input's tangent times P3'(x) is the output's."""
    return (widen(tangent) * derivative(widen(x))).astype(x.dtype)


@legendre_p3_custom_jvp.defjvp
def jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    """The jvp: the primal output, which may be differentiated again, and its tangent."""
    (x,), (tangent,) = primals, tangents
    x = array(x)
    return legendre_p3_custom_jvp(x), pushforward(x, tangent)


class ReverseModeOnly(jax.custom_vjp[Array]):
    """A `jax.custom_vjp` that says what to use where it is asked for forward mode, which none can have."""

    def __call__(self, *args: Any, **kwargs: Any) -> Array:
        """Call the function, or raise the TypeError that names the other one."""
        try:
            return super().__call__(*args, **kwargs)
        except (TypeError, NotImplementedError) as error:
            if "to a custom_vjp function" not in str(error) and "'custom_lin'" not in str(error):
                raise
            raise TypeError(
                "legendre_p3 is a jax.custom_vjp, which has no forward mode (jvp, jacfwd, linearize); "
                "use jaxp3.legendre_p3_custom_jvp, which has both modes"
            ) from error


@ReverseModeOnly
def legendre_p3(x: Inexact[Array, "*shape"] | float | complex) -> Inexact[Array, "*shape"]:
    """
    The degree-3 Legendre polynomial P3(x) = (5x³ − 3x)/2 of each element of x, in x's shape and dtype.

    Differentiable any number of times in reverse mode, by the hand-written rule P3'(x) = (15x² − 3)/2, whose residual
    is x alone, and then in forward mode (`jax.hessian`). Forward mode first needs `legendre_p3_custom_jvp`. The
    gradient of complex x follows JAX's convention: the cotangent times P3'(x), with no conjugate (`torchp3` has one).
    comparisons/modes/modes.md has every transform.

    Parameters
    ----------
    x : of float16, bfloat16, float32, float64, complex64 or complex128, of any shape; a Python float or complex number
        is taken as an array of no dimensions and JAX's default dtype, and 64-bit types are 32-bit ones where JAX has
        them switched off

    Raises
    ------
    TypeError
        x is anything else, integers among it; or forward mode is asked for. Where JAX finds that out later, as in
        `jax.linearize` and inside `jax.jit`, the message is its own.

    Notes
    -----
    Of the usual forms, x·(2.5·x·x − 1.5) has the least error. With ε the dtype's epsilon, that of P3(x) is at most 2ε
    of the larger of 2.5|x|³ and 1.5|x|, ε/2 for each of the four roundings. The derivative's is 1.5ε of the larger of
    7.5x² and 1.5, the gradient's 2ε, with the cotangent's rounding; complex ones' 5ε.
    `jax.jit` fuses multiply and add, which leaves out roundings: its results differ from the others', within the bound.
    Half precision is computed in float32 and rounded once: 0.51ε. The form overflows only where the result does
    (`0.5 * (5 * x**3 - 3 * x)` does so sooner, and makes of ±∞ a NaN), so P3(±∞) = ±∞, P3'(±∞) = ∞ and P3(±0) = ∓0.
    A NaN stays a NaN; complex infinities become NaN, as in any complex product. The gradient overflows where P3'(x)
    does, however small the cotangent. On a CPU, JAX takes subnormal numbers for 0 in all arithmetic (jax issue 16200),
    so that P3 of one is 0 there, and −1.5x on a GPU and in PyTorch; float16's are none once they are float32.

    References
    ----------
    NIST Digital Library of Mathematical Functions, §18.5(iv).

    Examples
    --------
    >>> legendre_p3(jnp.array([-1.0, 0.0, 1.0]))
    Array([-1., -0., 1.], dtype=float32)
    """
    x = array(x)
    return polynomial(widen(x)).astype(x.dtype)


def forward(x: Any) -> tuple[Inexact[Array, "*shape"], Inexact[Array, "*shape"]]:
    """The primal output and the residual x, both of which can be differentiated again, by the hand-written rules."""
    x = array(x)
    return legendre_p3_custom_jvp(x), x


def backward(x: Inexact[Array, "*shape"], cotangent: Inexact[Array, "*shape"]) -> tuple[Inexact[Array, "*shape"]]:
    """The vjp: the output's cotangent times P3'(x) is the input's."""
    return ((widen(cotangent) * derivative(widen(x))).astype(x.dtype),)


legendre_p3.defvjp(forward, backward)
