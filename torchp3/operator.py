"""P3(x) = (5x³ − 3x)/2 as a `torch.autograd.Function` with its own backward rule."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def polynomial(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """P3(x) = x (5x² − 3)/2."""
    return x * (2.5 * x * x - 1.5)


def derivative(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """P3'(x) = 3(5x² − 1)/2."""
    return 7.5 * x * x - 1.5


class LegendrePolynomial3(torch.autograd.Function):
    """The residual is x, so that the backward pass can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The primal output."""
        return polynomial(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Float[Tensor, "..."]], output: Float[Tensor, "..."]) -> None:
        """Keep the residual."""
        (x,) = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, cotangent: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The vjp: the output's cotangent times P3'(x) is the input's."""
        (x,) = ctx.saved_tensors
        return cotangent * derivative(x)


def legendre_p3(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """
    The degree-3 Legendre polynomial P3(x) = (5x³ − 3x)/2 of each element of x, differentiable twice and more.

    Reference: NIST Digital Library of Mathematical Functions, §18.5(iv).

    >>> legendre_p3(torch.tensor([-1.0, 0.0, 1.0]))
    tensor([-1., -0., 1.])
    """
    return LegendrePolynomial3.apply(x)
