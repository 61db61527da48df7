"""P3(x) = (5x³ − 3x)/2 as a `jax.custom_vjp` with its own backward rule."""

import jax
from jax import Array
from jaxtyping import Float


def polynomial(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """P3(x) = x (5x² − 3)/2."""
    return x * (2.5 * x * x - 1.5)


def derivative(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """P3'(x) = 3(5x² − 1)/2."""
    return 7.5 * x * x - 1.5


@jax.custom_vjp
def legendre_p3(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """
    The degree-3 Legendre polynomial P3(x) = (5x³ − 3x)/2 of each element of x, differentiable twice and more.

    Reference: NIST Digital Library of Mathematical Functions, §18.5(iv).

    >>> legendre_p3(jnp.array([-1.0, 0.0, 1.0]))
    Array([-1., -0., 1.], dtype=float32)
    """
    return polynomial(x)


def forward(x: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The primal output and the residual x, so that the backward pass can be differentiated again."""
    return polynomial(x), x


def backward(x: Float[Array, "..."], cotangent: Float[Array, "..."]) -> tuple[Float[Array, "..."]]:
    """The vjp: the output's cotangent times P3'(x) is the input's."""
    return (cotangent * derivative(x),)


legendre_p3.defvjp(forward, backward)
