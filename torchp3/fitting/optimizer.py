"""The update rules of the specification, from `torch.optim`."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim.adadelta import adadelta
from torch.optim.adagrad import adagrad
from torch.optim.adam import adam
from torch.optim.adamax import adamax
from torch.optim.rmsprop import rmsprop
from torch.optim.sgd import sgd

from p3.fitting import optimizers
from p3.fitting.optimizers import Optimizer
from torchp3.fitting.model import Coefficients

State = dict[str, Coefficients]


def initial_state(optimizer: Optimizer, coefficients: Coefficients) -> State:
    """What the rule remembers of each coefficient, before the first step."""
    return {name: {key: torch.zeros_like(value) for key, value in coefficients.items()} for name in optimizer.state}


def update(
    optimizer: Optimizer,
    coefficients: Coefficients,
    gradients: Coefficients,
    state: State,
    count: Float[Tensor, ""],
    learning_rate: Float[Tensor, ""],
) -> tuple[Coefficients, State]:
    """
    One step of the rule, as a pure function; `count` steps came before it.

    These are the rules inside the classes of `torch.optim`, on copies: a class changes its parameters in place, which
    the body of a compiled scan may not.
    """
    updated = [coefficient.clone() for coefficient in coefficients.values()]
    remembered = {name: [value.clone() for value in values.values()] for name, values in state.items()}
    clipped = clip(optimizer, list(gradients.values()))
    counts = [] if isinstance(optimizer, optimizers.Sgd) else [count.clone() for _ in updated]
    capturable = torch.compiler.is_compiling()  # that the count and the learning rate are tensors, and no numbers
    rate = learning_rate if capturable else learning_rate.item()
    common: dict[str, Any] = {"lr": rate, "weight_decay": optimizer.weight_decay, "maximize": False, "foreach": False}
    match optimizer:
        case optimizers.Sgd():
            if optimizer.dampening:
                remembered["momentum"] = undamped(optimizer, updated, clipped, remembered["momentum"], count)
            sgd(
                updated,
                clipped,
                [*remembered["momentum"]] if optimizer.momentum else [None] * len(updated),
                momentum=optimizer.momentum,
                dampening=optimizer.dampening,
                nesterov=optimizer.nesterov,
                fused=False,
                **common,
            )
        case optimizers.Adam() | optimizers.Adamw():
            adam(
                updated,
                clipped,
                remembered["first_moment"],
                remembered["second_moment"],
                [],
                counts,
                beta1=optimizer.beta1,
                beta2=optimizer.beta2,
                eps=optimizer.epsilon,
                decoupled_weight_decay=optimizer.name == "adamw",
                amsgrad=False,
                capturable=capturable,
                fused=False,
                **common,
            )
        case optimizers.Adamax():
            adamax(
                updated,
                clipped,
                remembered["first_moment"],
                remembered["infinity_norm"],
                counts,
                beta1=optimizer.beta1,
                beta2=optimizer.beta2,
                eps=optimizer.epsilon,
                capturable=capturable,
                **common,
            )
        case optimizers.Adagrad():
            adagrad(
                updated,
                clipped,
                remembered["sum_of_squares"],
                counts,
                eps=optimizer.epsilon,
                lr_decay=0.0,
                fused=False,
                **common,
            )
        case optimizers.Rmsprop():
            rmsprop(
                updated,
                clipped,
                remembered["mean_square"],
                remembered.get("mean", []),
                remembered.get("momentum", []),
                counts,
                alpha=optimizer.decay,
                eps=optimizer.epsilon,
                momentum=optimizer.momentum,
                centered=optimizer.centered,
                capturable=capturable,
                **common,
            )
        case optimizers.Adadelta():
            adadelta(
                updated,
                clipped,
                remembered["mean_square"],
                remembered["mean_square_step"],
                counts,
                rho=optimizer.decay,
                eps=optimizer.epsilon,
                capturable=capturable,
                **common,
            )
    return name_values(coefficients, updated), {
        name: name_values(coefficients, values) for name, values in remembered.items()
    }


def clip(optimizer: Optimizer, gradients: list[Tensor]) -> list[Tensor]:
    """
    The gradient, each element of it no larger than `clip_value`, and then as a whole no longer than `clip_norm`.

    `torch.nn.utils.clip_grad_norm_` adds 1e-6 to the norm before it divides by it, and so clips to a little less.
    """
    if gradients[0].ndim:  # of many fits at once, each clipped by its own norm
        return torch.func.vmap(partial(clip, optimizer))(gradients)
    if optimizer.clip_value is not None:
        gradients = [gradient.clamp(-optimizer.clip_value, optimizer.clip_value) for gradient in gradients]
    if optimizer.clip_norm is not None:
        factor = (optimizer.clip_norm / get_total_norm(gradients, foreach=False)).clamp(max=1.0)
        gradients = [gradient * factor for gradient in gradients]
    return gradients


def undamped(
    optimizer: optimizers.Sgd,
    coefficients: list[Tensor],
    gradients: list[Tensor],
    momenta: list[Tensor],
    count: Float[Tensor, ""],
) -> list[Tensor]:
    """
    Momenta of which the first step comes out as the gradient itself, which `torch.optim.SGD` does not dampen.

    It knows the first step by a momentum of None, which a compiled loop cannot have in its first step alone.
    """
    first = count == 0
    return [
        torch.where(first, optimizer.dampening / optimizer.momentum * (g + optimizer.weight_decay * c), m)
        for c, g, m in zip(coefficients, gradients, momenta, strict=True)
    ]


def name_values(coefficients: Coefficients, values: list[Tensor]) -> Coefficients:
    """The values by the coefficients' names."""
    return dict(zip(coefficients, values, strict=True))
