"""A training in PyTorch, as the checker takes it: a module, a loss function, an optimizer and a scheduler."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from p3.errors import InputError
from p3.parity.function import at_precision
from p3.parity.models.module import Module
from p3.parity.trainings import training
from p3.parity.trainings.training import COUNT, PARAMETER, ROLES, STATE, Arrays, Forward, State, Update
from p3.parity.tree import take_apart
from torchp3.function import from_array, is_inexact, to_array
from torchp3.module import ArrayModule
from torchp3.rules import Before, Group, Rule, rules

Clip = float | Callable[[Any], Any]  # the largest norm of the gradient; or called with the parameters


@dataclass(frozen=True, eq=False)
class Training(training.Training):
    """
    A training in PyTorch.

    Each step calls `backward` on the loss of a batch, clips the gradients, and calls `optimizer.step` and
    `scheduler.step`. The objects are copied and never changed.

    Parameters
    ----------
    model : a `torch.nn.Module`, in training or evaluation mode as it is trained
    loss : called as loss(model, batch), returns a scalar
    optimizer : of `torch.optim`, or derived from `torch.optim.Optimizer`, of the model's parameters
    scheduler : of `torch.optim.lr_scheduler`, stepped after each update
    clip : a norm for `torch.nn.utils.clip_grad_norm_`; or a function that is called with the parameters
    accumulate : how many batches an update takes; it is made with the mean of their gradients

    Examples
    --------
    >>> model = torch.nn.Linear(2, 1)
    >>> Training(model, lambda m, x: m(x).mean(), torch.optim.SGD(model.parameters(), 0.1)).name
    '<lambda>'
    """

    model: nn.Module
    loss: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    scheduler: Any = None
    clip: Clip | None = None
    accumulate: int = 1
    is_torch = True

    def __post_init__(self) -> None:
        """
        Say what is not given as it should be.

        Raises
        ------
        InputError
            The model is no module, the loss no function, or the optimizer none of the model's parameters.
        """
        if not isinstance(self.model, nn.Module):
            raise InputError(f"model is {type(self.model).__name__}; give a torch.nn.Module")
        if not callable(self.loss):
            raise InputError(f"loss= is {type(self.loss).__name__}; give a function of the model and a batch")
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise InputError(
                f"optimizer= is {type(self.optimizer).__name__}; give an optimizer of torch.optim, or one that is "
                "derived from torch.optim.Optimizer"
            )
        if isinstance(self.optimizer, torch.optim.LBFGS):
            raise InputError("optimizer= is LBFGS, which calls the loss several times a step, and cannot be checked")
        own = {id(x) for x in self.model.parameters()}
        given = [x for group in self.optimizer.param_groups for x in group["params"]]
        if any(id(x) not in own for x in given):
            raise InputError("optimizer= has parameters that the model does not have; make it of model.parameters()")
        if not isinstance(self.accumulate, int) or self.accumulate < 1:
            raise InputError(f"accumulate= is {self.accumulate!r}; give a number of batches, 1 or more")

    @property
    def name(self) -> str:
        """Of the loss."""
        return str(getattr(self.loss, "__name__", type(self.loss).__name__))

    @property
    def framework(self) -> str:
        """Name and version."""
        return f"PyTorch {torch.__version__}"

    def called(self, model: Any) -> Callable[..., Any]:
        """The loss as a function of a batch alone."""
        return partial(self.loss, model)

    def begin(self, precision: str) -> "Run":
        """The training before its first step."""
        return Run(self, precision)

    def as_module(self, values: Arrays | None = None) -> Module:
        """The loss as a model whose input is a batch."""
        module = ArrayModule(copy.deepcopy(self.model), calling=self.called)
        module.with_values(values or {})
        return module

    def rules(self) -> tuple[Rule, ...]:
        """The other ways to take a step."""
        return tuple(rules())


class Run(training.Run):
    """A training in one precision, in progress."""

    def __init__(self, training: Training, precision: str) -> None:
        """Before the first step."""
        self.training, self.precision = training, precision
        self.model, self.optimizer, self.scheduler = copy.deepcopy(
            (training.model, training.optimizer, training.scheduler)
        )
        track(self.optimizer)
        if precision:
            self.model.to(getattr(torch, precision))
        self.parameters = {path: x for path, x in self.model.named_parameters() if is_inexact(x)}
        self.states = {path: x for path, x in self.model.named_buffers() if is_inexact(x)}
        for parameter, remembered in self.optimizer.state.items():
            for key, value in remembered.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and is_inexact(value):
                    remembered[key] = value.to(parameter.dtype)
        self.accumulated: dict[str, Tensor] = {}
        self.count = 0
        self.loss: Any = None
        self.unused: set[str] = set()  # parameters without a gradient, which optimizers pass over

    def read(self) -> State:
        """A copy of what it holds."""
        found: dict[str, dict[str, np.ndarray]] = {
            PARAMETER: {path: to_array(x).copy() for path, x in self.parameters.items()},
            STATE: {path: to_array(x).copy() for path, x in self.states.items()},
        }
        for path, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                role = ROLES.get(key, key)
                if isinstance(value, Tensor | float | int):
                    array = np.array(to_array(value) if isinstance(value, Tensor) else value)
                    found.setdefault(role, {})["" if role == COUNT else path] = array
        return found

    def write(self, state: State) -> None:
        """Set what it holds."""
        with torch.no_grad():
            for held, role in ((self.parameters, PARAMETER), (self.states, STATE)):
                for path, array in state.get(role, {}).items():
                    if path in held:
                        held[path].copy_(from_array(np.array(array)))
            for path, x in self.parameters.items():
                for key, value in self.optimizer.state.get(x, {}).items():
                    given = state.get(ROLES.get(key, key), {}).get(path)
                    if given is not None and isinstance(value, Tensor) and ROLES.get(key) != COUNT:
                        value.copy_(from_array(np.array(given)))

    def batch(self, batch: Any) -> Any:
        """A batch as tensors, in the precision of the run."""
        arrays, structure = take_apart((batch,), lambda path, x: np.asarray(x))
        tensors = [from_array(np.array(x)) for x in at_precision(arrays, self.precision or "float32")]
        return structure.fill(tensors)[0]

    def back(self, batch: Any) -> None:
        """The loss of a batch, and its gradients in `.grad`."""
        for x in self.parameters.values():
            x.grad = None
        tensors = self.batch(batch)
        with torch.random.fork_rng(devices=[]):
            self.loss = self.training.loss(self.model, tensors)
            self.loss.backward()
        self.unused = {path for path, x in self.parameters.items() if x.grad is None}

    def check(self, batch: Any) -> None:
        """
        Check that the loss can be computed, is a scalar, and draws no random numbers.

        Raises
        ------
        InputError
            It is not so.
        """
        before = torch.random.get_rng_state()
        try:
            with torch.random.fork_rng(devices=[]):
                loss = self.training.loss(copy.deepcopy(self.model), self.batch(batch))
                after = torch.random.get_rng_state()
        except Exception as error:  # of whatever kind the loss raises
            line = " ".join(str(error).split())[:400]
            raise InputError(
                f"the loss in PyTorch raises {type(error).__name__} with the first batch: {line}; give batches that it "
                "takes"
            ) from error
        if not isinstance(loss, Tensor) or loss.shape:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"the loss in PyTorch is {what}; return a scalar, as loss.mean() gives")
        if not loss.requires_grad:
            raise InputError("the loss in PyTorch does not depend on the parameters; return a loss that has a gradient")
        if not torch.equal(before, after):
            raise InputError(
                "the loss in PyTorch draws random numbers, which the frameworks draw differently; set dropout's rate "
                "to 0 here, and check dropout with check_model, which gives both models the same masks"
            )

    def forward(self, batch: Any) -> Forward:
        """The loss of a batch and its gradients."""
        self.back(batch)
        return Forward(
            to_array(self.loss).copy(),
            self.gradients(),
            {path: to_array(x).copy() for path, x in self.states.items()},
        )

    def gradients(self) -> dict[str, np.ndarray]:
        """What is in `.grad`; 0 where there is none."""
        return {
            path: to_array(torch.zeros_like(x) if x.grad is None else x.grad).copy()
            for path, x in self.parameters.items()
        }

    def put(self, gradients: Arrays) -> None:
        """Set the gradients of the parameters that have one."""
        for path, x in self.parameters.items():
            is_there = path in gradients and path not in self.unused and x.requires_grad
            x.grad = from_array(np.array(gradients[path])).to(x.dtype) if is_there else None

    def update(self, gradients: Arrays, clipped: Arrays | None = None, rules: Sequence[training.Rule] = ()) -> Update:
        """Update the parameters."""
        self.put(gradients)
        rates = {
            path: float(group["lr"])
            for path, x in self.parameters.items()
            for group in self.optimizer.param_groups
            if any(x is y for y in group["params"])
        }
        own = [rule for rule in rules if isinstance(rule, Rule)]
        if not self.takes():
            return Update(None, None, False)
        applied = self.sum(own)
        applied |= self.clip(own)
        found = self.gradients()
        if clipped is not None:
            self.put(clipped)
        return Update(found, rates, self.advance(own) or applied)

    def takes(self) -> bool:
        """Whether the parameters are updated after this batch; if so, their gradients are those of all its batches."""
        size = self.training.accumulate
        if size == 1:
            return True
        self.count += 1
        for path, x in self.parameters.items():
            before = self.accumulated.get(path)
            if x.grad is None:
                continue
            self.accumulated[path] = x.grad / size if before is None else before + x.grad / size
        if self.count % size:
            return False
        for path, x in self.parameters.items():
            x.grad = self.accumulated.get(path)
        self.accumulated = {}
        return True

    def sum(self, own: Sequence[Rule]) -> bool:
        """Take the sum of the micro-batches' gradients for their mean, where a rule says so; whether the last does."""
        size = self.training.accumulate
        if size == 1 or not any(rule.is_sum for rule in own):
            return False
        for x in self.parameters.values():
            if x.grad is not None:
                x.grad = x.grad * size
        return own[-1].is_sum

    def clip(self, own: Sequence[Rule]) -> bool:
        """Clip the gradients; whether the last rule does it."""
        limit = self.training.clip
        if callable(limit):
            limit([x for x in self.parameters.values() if x.grad is not None])
        elif limit is not None:
            other = next((rule for rule in reversed(own) if rule.clip), None)
            if other is None or other.clip is None:
                torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)
            else:
                other.clip([x.grad for x in self.parameters.values() if x.grad is not None], limit)
                return other is own[-1]
        return False

    def advance(self, own: Sequence[Rule]) -> bool:
        """Step the optimizer and the scheduler; whether the last rule changes that."""
        if any(rule.finish for rule in own):
            before = {x: (x.detach().clone(), self.cloned(x)) for x in self.parameters.values()}
        applied = False
        with Regrouped(self.optimizer, own) as regrouped:
            self.optimizer.step()
            for rule in own:
                if rule.finish:
                    with torch.no_grad():
                        for group in self.optimizer.param_groups:
                            for x in group["params"]:
                                if x in before and x.grad is not None:
                                    state = self.optimizer.state.get(x, {})
                                    step = Before(before[x][0], x.detach(), x.grad, group, before[x][1], state)
                                    after = rule.finish(step)
                                    if after is not None:
                                        x.copy_(after)
                                        applied |= rule is own[-1]
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            self.scheduler.step(self.loss.detach())
        elif self.scheduler is not None:
            self.scheduler.step()
        return applied or regrouped.is_changed

    def cloned(self, x: Tensor) -> dict[str, Tensor]:
        """A copy of what the optimizer remembers of a parameter."""
        state: Mapping[str, Any] = self.optimizer.state.get(x, {})
        return {key: value.clone() for key, value in state.items() if isinstance(value, Tensor)}

    def step(self, batch: Any, rules: Sequence[training.Rule] = ()) -> np.ndarray:
        """One step; its loss."""
        self.back(batch)
        loss = to_array(self.loss).copy()
        own = [rule for rule in rules if isinstance(rule, Rule)]
        if self.takes():
            self.sum(own)
            self.clip(own)
            self.advance(own)
        return loss

    def remember(self) -> Any:
        """The options of the optimizer, the place in the schedule, and the gradients that are accumulated."""
        options = [{key: x for key, x in group.items() if key != "params"} for group in self.optimizer.param_groups]
        place = None if self.scheduler is None else copy.deepcopy(self.scheduler.state_dict())
        held = {x: dict(self.optimizer.state[x]) | self.cloned(x) for x in self.held()}
        return options, place, held, dict(self.accumulated), self.count

    def held(self) -> list[Tensor]:
        """The parameters of which the optimizer remembers something."""
        return [x for x in self.parameters.values() if self.optimizer.state.get(x)]

    def restore(self, remembered: Any, state: State) -> None:
        """The training as it was."""
        options, place, held, accumulated, self.count = remembered
        self.accumulated = dict(accumulated)
        for group, own in zip(self.optimizer.param_groups, options, strict=True):
            group.update(own)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(copy.deepcopy(place))
        for x in self.held():
            del self.optimizer.state[x]
        for x, remembered in held.items():
            copies = {key: value.clone() for key, value in remembered.items() if isinstance(value, Tensor)}
            self.optimizer.state[x] = {**remembered, **copies}
        self.write(state)


class Regrouped:
    """While it lasts, an optimizer has the options of some rules, in as many groups as that takes."""

    def __init__(self, optimizer: torch.optim.Optimizer, own: Sequence[Rule]) -> None:
        """Nothing is changed yet."""
        self.optimizer, self.changes = optimizer, [rule.options for rule in own if rule.options]
        self.last = own[-1].options if own else None
        self.groups = optimizer.param_groups
        self.is_changed = False

    def __enter__(self) -> "Regrouped":
        """Change the groups."""
        if not self.changes:
            return self
        groups: list[Group] = []
        for group in self.groups:
            parts: dict[str, Group] = {}
            for x in group["params"]:
                other: Group = {}
                for change in self.changes:
                    new = change({**group, **other}, x)
                    self.is_changed |= bool(new) and change is self.last
                    other |= new
                part = parts.setdefault(repr(other), {**group, **other, "params": []})
                part["params"].append(x)
            groups += parts.values()
        self.optimizer.param_groups = groups
        return self

    def __exit__(self, *raised: object) -> None:
        """Put them back."""
        self.optimizer.param_groups = self.groups


def track(optimizer: torch.optim.Optimizer) -> None:
    """Let a scheduler see the steps of a copied optimizer, as it does with those that it is made for."""
    step = optimizer.step

    def tracked(*args: Any, **kwargs: Any) -> Any:
        optimizer._opt_called = True  # type: ignore[attr-defined]  # which schedulers look at, and no class declares
        return step(*args, **kwargs)

    tracked._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # the same
    optimizer.step = tracked  # type: ignore[method-assign]  # as schedulers do themselves
