"""The model that is fitted, and the loss of the fit."""

from jaxtyping import Float
from torch import Tensor

from torchp3.operator import legendre_p3

# Of one fit, or of many at once: then each has one number for each of them.
Coefficients = dict[str, Float[Tensor, "*fits"]]


def predict(coefficients: Coefficients, x: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """ŷ = a + b · P3(c + d·x)."""
    a, b, c, d = (coefficients[name] for name in "abcd")
    return a + b * legendre_p3(c + d * x)


def loss(coefficients: Coefficients, x: Float[Tensor, "*points"], y: Float[Tensor, "*points"]) -> Float[Tensor, ""]:
    """The sum of the squared residuals, Σ (ŷ − y)²."""
    residual = predict(coefficients, x) - y
    return (residual * residual).sum()
