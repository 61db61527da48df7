"""The model that is fitted, and the loss of the fit."""

from jax import Array
from jaxtyping import Float

from jaxp3.operator import legendre_p3

# Of one fit, or of many at once: then each has one number for each of them.
Coefficients = dict[str, Float[Array, "*fits"]]


def predict(coefficients: Coefficients, x: Float[Array, "*points"]) -> Float[Array, "*points"]:
    """ŷ = a + b · P3(c + d·x)."""
    a, b, c, d = (coefficients[name] for name in "abcd")
    return a + b * legendre_p3(c + d * x)


def loss(coefficients: Coefficients, x: Float[Array, "*points"], y: Float[Array, "*points"]) -> Float[Array, ""]:
    """The sum of the squared residuals, Σ (ŷ − y)²."""
    residual = predict(coefficients, x) - y
    return (residual * residual).sum()
