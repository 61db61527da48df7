"""
The ways to take a step that porters confuse: clipping, weight decay, epsilons, bias correction, momentum.

Each changes how PyTorch's side takes a step. Where one makes it agree with the other side, that is the cause.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from p3.parity.trainings import training

Group = dict[str, Any]  # of parameters, with their options, as in `optimizer.param_groups`

EPSILONS = (1e-3, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12, 1e-15, 0.0)
DECAYS = (0.0, 1e-4, 1e-3, 1e-2, 0.1)
BETAS = ((0.9, 0.999), (0.9, 0.99), (0.9, 0.98), (0.9, 0.95), (0.9, 0.9), (0.95, 0.99), (0.5, 0.999), (0.0, 0.999))
MOMENTA = (0.0, 0.5, 0.9, 0.95, 0.99)
LIPSCHITZ = (0.9, 0.95, 0.99, 0.999)
INITIAL_SUM = 0.1  # at which optax.adagrad starts


class Before(NamedTuple):
    """
    A parameter and what is known of it before and after a step.

    Attributes
    ----------
    before, after : the parameter
    gradient : after clipping
    group : its options
    old, new : what the optimizer remembers of it, before and after
    """

    before: Tensor
    after: Tensor
    gradient: Tensor
    group: Group
    old: dict[str, Tensor]
    new: dict[str, Tensor]

    def number(self, name: str) -> float:
        """An option; 0 where there is none."""
        return float(self.group.get(name) or 0.0)

    @property
    def betas(self) -> tuple[float, float]:
        """The decay of both moments."""
        first, second = self.group["betas"]
        return float(first), float(second)


@dataclass(frozen=True)
class Rule(training.Rule):
    """
    A way to take a step.

    Attributes
    ----------
    options : of a group and one of its parameters, the options that are others; none where the rule is not about it
    clip : clips the gradients of parameters to a norm in another way
    finish : the parameter after the step; it may change what the optimizer remembers; None where it is not about it
    is_sum : whether the gradients of micro-batches are added, and not averaged
    """

    options: Callable[[Group, Tensor], Group] | None = None
    clip: Callable[[list[Tensor], float], None] | None = None
    finish: Callable[[Before], Tensor | None] | None = None
    is_sum: bool = False


def option(name: str, value: Any) -> Callable[[Group, Tensor], Group]:
    """One option that has another value."""
    return lambda group, _: {name: value} if name in group and group[name] != value else {}


def l2(group: Group, parameter: Tensor) -> Group:
    """Weight decay that is added to the gradient, where it is decoupled."""
    is_decoupled = group.get("weight_decay") and group.get("decoupled_weight_decay")
    return {"decoupled_weight_decay": False} if is_decoupled else {}


def not_l2(group: Group, parameter: Tensor) -> Group:
    """Decoupled weight decay, where Adam adds it to the gradient."""
    is_l2 = group.get("weight_decay") and group.get("decoupled_weight_decay") is False
    return {"decoupled_weight_decay": True} if is_l2 else {}


def undecayed(group: Group, parameter: Tensor) -> Group:
    """No weight decay of biases and of the weights of norms, which have one axis."""
    return {"weight_decay": 0.0} if group.get("weight_decay") and parameter.ndim < 2 else {}


def without_first(group: Group, parameter: Tensor) -> Group:
    """The other kind of momentum."""
    if not group.get("momentum") or "nesterov" not in group or group.get("dampening"):
        return {}
    return {"nesterov": not group["nesterov"]}


def decoupled(step: Before) -> Tensor | None:
    """Decoupled weight decay of an optimizer that has L2 only, as SGD."""
    decay, rate = step.number("weight_decay"), step.number("lr")
    if not decay or "momentum" not in step.group or "alpha" in step.group:
        return None
    momentum, dampening = step.number("momentum"), step.number("dampening")
    direction = step.gradient
    if momentum:
        old = step.old.get("momentum_buffer")
        buffer = direction.clone() if old is None else momentum * old + (1 - dampening) * direction
        step.new["momentum_buffer"].copy_(buffer)
        direction = direction + momentum * buffer if step.group.get("nesterov") else buffer
    return step.before - rate * direction - rate * decay * step.before


def decay_without_rate(step: Before) -> Tensor | None:
    """Decoupled weight decay that is not multiplied by the learning rate."""
    decay = step.number("weight_decay")
    if not decay or not step.group.get("decoupled_weight_decay"):
        return None
    return step.after + (step.number("lr") - 1) * decay * step.before


def decay_after(step: Before) -> Tensor | None:
    """Decoupled weight decay of the parameter after the rest of the step."""
    decay, rate = step.number("weight_decay"), step.number("lr")
    if not decay or not step.group.get("decoupled_weight_decay"):
        return None
    moved = step.after - (1 - rate * decay) * step.before
    return (step.before + moved) * (1 - rate * decay)


def moments(step: Before) -> tuple[Tensor, Tensor, float, float] | None:
    """The first moment, the second moment, and the factors that correct their bias, of Adam and AdamW."""
    if not {"exp_avg", "exp_avg_sq", "step"} <= step.new.keys() or "betas" not in step.group:
        return None
    count = float(step.new["step"])
    beta1, beta2 = step.betas
    second = step.new.get("max_exp_avg_sq", step.new["exp_avg_sq"])
    return step.new["exp_avg"], second, 1 - beta1**count, 1 - beta2**count


def kept(step: Before) -> Tensor:
    """The parameter after decoupled weight decay alone."""
    decay = step.number("weight_decay")
    return step.before * (1 - step.number("lr") * decay) if step.group.get("decoupled_weight_decay") else step.before


def epsilon_in_root(and_outside: bool) -> Callable[[Before], Tensor | None]:
    """Epsilon added to the second moment, and not to its root, or to both."""

    def finish(step: Before) -> Tensor | None:
        epsilon, rate = step.number("eps"), step.number("lr")
        if not epsilon:
            return None
        outside = epsilon if and_outside else 0.0
        found = moments(step)
        if found is not None:
            first, second, first_bias, second_bias = found
            return kept(step) - rate * (first / first_bias) / ((second / second_bias + epsilon).sqrt() + outside)
        if "sum" in step.new:
            return step.before - rate * decayed(step) / ((step.new["sum"] + epsilon).sqrt() + outside)
        if "square_avg" in step.new and "alpha" in step.group and not step.number("momentum"):
            average = step.new["square_avg"]
            if step.group.get("centered"):
                average = average - step.new["grad_avg"] ** 2
            return step.before - rate * decayed(step) / ((average + epsilon).sqrt() + outside)
        return None

    return finish


def decayed(step: Before) -> Tensor:
    """The gradient with L2."""
    return step.gradient + step.number("weight_decay") * step.before


def uncorrected(first: bool, second: bool) -> Callable[[Before], Tensor | None]:
    """No correction of the bias of the first or the second moment."""

    def finish(step: Before) -> Tensor | None:
        found = moments(step)
        if found is None:
            return None
        m, v, first_bias, second_bias = found
        m, v = m / (1.0 if first else first_bias), v / (1.0 if second else second_bias)
        return kept(step) - step.number("lr") * m / (v.sqrt() + step.number("eps"))

    return finish


def counted(by: int) -> Callable[[Before], Tensor | None]:
    """The correction of the bias as of another step."""

    def finish(step: Before) -> Tensor | None:
        found = moments(step)
        count = float(step.new["step"]) + by if found is not None else 0.0
        if found is None or count <= 0:
            return None
        m, v, *_ = found
        beta1, beta2 = step.betas
        m, v = m / (1 - beta1**count), v / (1 - beta2**count)
        after: Tensor = kept(step) - step.number("lr") * m / (v.sqrt() + step.number("eps"))
        return after

    return finish


def with_single_constants(step: Before) -> Tensor | None:
    """The correction of the bias with numbers that are an epsilon of float32 less, as computing in float32 may give."""
    found = moments(step)
    if found is None:
        return None
    first, second, first_bias, second_bias = found
    epsilon = torch.finfo(torch.float32).eps
    m, v = first / (first_bias - epsilon), second / (second_bias - epsilon)
    after: Tensor = kept(step) - step.number("lr") * m / (v.sqrt() + step.number("eps"))
    return after


def largest_corrected(step: Before) -> Tensor | None:
    """AMSGrad's maximum of second moments after their bias is corrected, as optax has it."""
    if "max_exp_avg_sq" not in step.new:
        return None
    beta1, beta2 = step.betas
    count = float(step.new["step"])
    corrected = step.new["exp_avg_sq"] / (1 - beta2**count)
    old = step.old.get("max_exp_avg_sq")
    largest = corrected if old is None else torch.maximum(old, corrected)
    step.new["max_exp_avg_sq"].copy_(largest)
    first = step.new["exp_avg"] / (1 - beta1**count)
    after: Tensor = kept(step) - step.number("lr") * first / (largest.sqrt() + step.number("eps"))
    return after


def damped_first(step: Before) -> Tensor | None:
    """Momentum whose first step is dampened too."""
    momentum, dampening = step.number("momentum"), step.number("dampening")
    if not momentum or not dampening or step.old.get("momentum_buffer") is not None:
        return None
    buffer = (1 - dampening) * decayed(step)
    step.new["momentum_buffer"].copy_(buffer)
    return step.before - step.number("lr") * buffer


def averaged_momentum(step: Before) -> Tensor | None:
    """Momentum that is an average, as with dampening = momentum at each step."""
    momentum = step.number("momentum")
    if not momentum or "dampening" not in step.group or step.number("dampening"):
        return None
    old = step.old.get("momentum_buffer")
    buffer = (1 - momentum) * decayed(step) + (0 if old is None else momentum * old)
    step.new["momentum_buffer"].copy_(buffer)
    return step.before - step.number("lr") * buffer


def other_start(step: Before) -> Tensor | None:
    """Adagrad's sum of squares that starts at another number."""
    if "sum" not in step.new or "lr_decay" not in step.group:
        return None
    start = step.number("initial_accumulator_value")
    step.new["sum"].add_(INITIAL_SUM - start)
    return step.before - step.number("lr") * decayed(step) / (step.new["sum"].sqrt() + step.number("eps"))


def ascended(group: Group, parameter: Tensor) -> Group:
    """The opposite direction."""
    return {"maximize": not group["maximize"]} if "maximize" in group else {}


def norm_of(gradients: list[Tensor]) -> Tensor:
    """The norm of all of them together."""
    norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x) for x in gradients]))
    return norm


def exactly(gradients: list[Tensor], limit: float) -> None:
    """By the norm without the 1e-6 that `clip_grad_norm_` adds to it."""
    factor = (limit / norm_of(gradients)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def with_millionth(gradients: list[Tensor], limit: float) -> None:
    """By `torch.nn.utils.clip_grad_norm_`."""
    factor = (limit / (norm_of(gradients) + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor)


def never(gradients: list[Tensor], limit: float) -> None:
    """Not at all."""


def one_by_one(gradients: list[Tensor], limit: float) -> None:
    """The gradient of each parameter by its own norm."""
    for gradient in gradients:
        exactly([gradient], limit)


def by_value(gradients: list[Tensor], limit: float) -> None:
    """Each element."""
    for gradient in gradients:
        gradient.clamp_(-limit, limit)


def always(gradients: list[Tensor], limit: float) -> None:
    """To the norm, where it is less too."""
    factor = limit / norm_of(gradients)
    for gradient in gradients:
        gradient.mul_(factor)


def rules() -> Iterator[Rule]:
    """The catalogue. Those that change less are first, as the first that explains a difference is named."""
    clipped = "clipped gradient"
    yield Rule("clip_grad_norm_ 1e-6", "clip_grad_norm_ does not add 1e-6 to the norm", clipped, clip=exactly)
    yield Rule("no clipping", "gradients are not clipped", clipped, clip=never)
    text = "the gradient of each parameter is clipped by its own norm"
    yield Rule("clipping one by one", text, clipped, clip=one_by_one)
    yield Rule("clipping by value", "each element of the gradients is clipped", clipped, clip=by_value)
    text = "gradients are scaled to the norm even where theirs is less"
    yield Rule("clipping always", text, clipped, clip=always)
    state, update = "optimizer state", "update"
    text = "the gradients of micro-batches are added, and not averaged"
    yield Rule("sum of micro-batches", text, state, is_sum=True)
    text = "weight decay is added to the gradient (L2), and not decoupled"
    yield Rule("L2 for decoupled weight decay", text, state, options=l2)
    text = "weight decay is decoupled, and not added to the gradient (L2)"
    yield Rule("decoupled weight decay for L2", text, state, options=not_l2)
    yield Rule("decoupled weight decay for L2 in SGD", text, state, finish=decoupled)
    text = "biases and the weights of norms have no weight decay"
    yield Rule("weight decay of biases and norms", text, update, options=undecayed)
    text = "weight decay is not multiplied by the learning rate"
    yield Rule("weight decay without the learning rate", text, update, finish=decay_without_rate)
    text = "weight decay is applied after the rest of the step"
    yield Rule("weight decay last", text, update, finish=decay_after)
    for decay in DECAYS:
        yield Rule(f"weight_decay={decay:g}", f"weight_decay={decay:g}", update, options=option("weight_decay", decay))
    for epsilon in EPSILONS:
        yield Rule(f"eps={epsilon:g}", f"eps={epsilon:g}", update, options=option("eps", epsilon))
    text = "epsilon is added inside the root"
    yield Rule("epsilon in the root", text, update, finish=epsilon_in_root(and_outside=False))
    text = "epsilon is added inside the root as well"
    yield Rule("epsilon in the root too", text, update, finish=epsilon_in_root(and_outside=True))
    text = "the bias of the moments is not corrected"
    yield Rule("no bias correction", text, update, finish=uncorrected(True, True))
    text = "the bias of the second moment is not corrected"
    yield Rule("no bias correction of the second moment", text, update, finish=uncorrected(False, True))
    text = "the bias of the first moment is not corrected"
    yield Rule("no bias correction of the first moment", text, update, finish=uncorrected(True, False))
    text = "the bias of the moments is corrected by numbers in single precision"
    yield Rule("constants in single precision", text, update, True, finish=with_single_constants)
    for by in (1, -1):
        text = f"steps are counted from {1 + by} and not from 1 in the correction of the bias"
        yield Rule(f"count {'+' if by > 0 else '-'}1", text, update, finish=counted(by))
    for betas in BETAS:
        yield Rule(f"betas={betas}", f"betas={betas}", state, options=option("betas", betas))
    for alpha in LIPSCHITZ:
        yield Rule(f"alpha={alpha:g}", f"alpha={alpha:g}", state, options=option("alpha", alpha))
    for rho in LIPSCHITZ:
        yield Rule(f"rho={rho:g}", f"rho={rho:g}", state, options=option("rho", rho))
    for momentum in MOMENTA:
        yield Rule(f"momentum={momentum:g}", f"momentum={momentum:g}", state, options=option("momentum", momentum))
    for dampening in (0.0, 0.5, 0.9):
        text = f"dampening={dampening:g}"
        yield Rule(text, text, state, options=option("dampening", dampening))
    yield Rule("nesterov", "momentum is Nesterov's where it is not, or not where it is", update, options=without_first)
    yield Rule("dampened first step", "the first step of momentum is dampened too", state, finish=damped_first)
    text = "momentum averages the gradients, with dampening as large as momentum"
    yield Rule("averaged momentum", text, state, finish=averaged_momentum)
    for on in (True, False):
        yield Rule(f"amsgrad={on}", f"amsgrad={on}", update, options=option("amsgrad", on))
    text = "AMSGrad takes the largest second moment after the correction of its bias"
    yield Rule("AMSGrad after bias correction", text, state, finish=largest_corrected)
    for on in (True, False):
        yield Rule(f"centered={on}", f"centered={on}", update, options=option("centered", on))
    text = f"the sum of squares starts at {INITIAL_SUM}"
    yield Rule("initial sum of squares", text, state, finish=other_start)
    yield Rule("opposite direction", "the step goes in the opposite direction", update, options=ascended)
