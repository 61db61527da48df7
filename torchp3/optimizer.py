"""The update rule of the specification, from `torch.optim`."""

from jaxtyping import Float
from torch import Tensor
from torch.optim.sgd import sgd

from torchp3.model import Coefficients


def update(coefficients: Coefficients, gradients: Coefficients, learning_rate: Float[Tensor, ""]) -> Coefficients:
    """
    Gradient descent, coefficient − learning_rate · gradient, as a pure function.

    This is the rule inside `torch.optim.SGD`, on copies: the class changes its parameters in place, which the body of
    a compiled scan may not.
    """
    updated = [coefficient.clone() for coefficient in coefficients.values()]
    sgd(
        updated,
        list(gradients.values()),
        momentum_buffer_list=[None] * len(updated),
        lr=learning_rate,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        maximize=False,
        foreach=False,
        fused=False,
    )
    return dict(zip(coefficients, updated, strict=True))
