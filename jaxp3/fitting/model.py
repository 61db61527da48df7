"""The model that is fitted, and the loss of the fit."""

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from jaxp3.operator import legendre_p3

# Of one fit, or of many at once: then each has one number for each of them.
Coefficients = dict[str, Float[Array, "*fits"]]


def predict(coefficients: Coefficients, x: Float[Array, "*points"]) -> Float[Array, "*points"]:
    """ŷ = a + b · P3(c + d·x)."""
    a, b, c, d = (coefficients[name] for name in "abcd")
    return a + b * legendre_p3(c + d * x)


def loss(
    coefficients: Coefficients,
    x: Float[Array, "*points"],
    y: Float[Array, "*points"],
    own: Bool[Array, "*points"] | None = None,
) -> Float[Array, ""]:
    """The sum of the squared residuals, Σ (ŷ − y)²; of the points that are one's own, where not all are."""
    residual = predict(coefficients, x) - y
    if own is not None:
        residual = jnp.where(own, residual, 0.0)
    return (residual * residual).sum()
