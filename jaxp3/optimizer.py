"""The update rule of the specification, from `optax`."""

import optax
from jax import Array
from jaxtyping import Float

from jaxp3.model import Coefficients


def update(coefficients: Coefficients, gradients: Coefficients, learning_rate: Float[Array, ""]) -> Coefficients:
    """Gradient descent, coefficient − learning_rate · gradient, as a pure function."""
    sgd = optax.sgd(learning_rate)
    updates, _ = sgd.update(gradients, sgd.init(coefficients))
    return optax.apply_updates(coefficients, updates)
