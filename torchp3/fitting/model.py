"""The model that is fitted, and the loss of the fit."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from torchp3.operator import legendre_p3

# Of one fit, or of many at once: then each has one number for each of them.
Coefficients = dict[str, Float[Tensor, "*fits"]]


def predict(coefficients: Coefficients, x: Float[Tensor, "*points"]) -> Float[Tensor, "*points"]:
    """ŷ = a + b · P3(c + d·x)."""
    a, b, c, d = (coefficients[name] for name in "abcd")
    return a + b * legendre_p3(c + d * x)


def loss(
    coefficients: Coefficients,
    x: Float[Tensor, "*points"],
    y: Float[Tensor, "*points"],
    own: Bool[Tensor, "*points"] | None = None,
) -> Float[Tensor, ""]:
    """The sum of the squared residuals, Σ (ŷ − y)²; of the points that are one's own, where not all are."""
    residual = predict(coefficients, x) - y
    if own is not None:
        residual = torch.where(own, residual, 0.0)
    return (residual * residual).sum()
