"""
A port with one mistake, for `p3 check` to find.

softplus(x, β) = log(1 + exp(βx))/β with a gradient for β too: ∂/∂x = σ(βx) and ∂/∂β = (x·σ(βx) − softplus(x, β))/β.
"""

import jax
import jax.numpy as jnp
import torch


class Softplus(torch.autograd.Function):
    """The original."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, beta):
        """The primal output."""
        return torch.nn.functional.softplus(beta * x) / beta

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Keep the residuals."""
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, cotangent):
        """The vjp."""
        x, beta = ctx.saved_tensors
        y, slope = torch.nn.functional.softplus(beta * x) / beta, torch.sigmoid(beta * x)
        gradients = cotangent * slope, cotangent * (x * slope - y) / beta
        return tuple(g.sum_to_size(argument.shape) for g, argument in zip(gradients, (x, beta), strict=True))


@jax.custom_vjp
def softplus(x, beta):
    """The port."""
    return jax.nn.softplus(beta * x) / beta


def forward(x, beta):
    """The primal output and the residuals."""
    return softplus(x, beta), (x, beta)


def backward(residuals, cotangent):
    """The vjp, which forgets a term of the gradient for β."""
    x, beta = residuals
    slope = jax.nn.sigmoid(beta * x)
    gradients = cotangent * slope, cotangent * x * slope / beta
    return tuple(sum_like(argument, g) for g, argument in zip(gradients, (x, beta), strict=True))


def sum_like(argument, gradient):
    """The transpose of broadcasting, which PyTorch has as `sum_to_size`."""
    return jax.vjp(lambda x: jnp.broadcast_to(x, gradient.shape), argument)[1](gradient)[0]


softplus.defvjp(forward, backward)
