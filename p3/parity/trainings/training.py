"""What the checker of trainings asks of a framework: a training that can be set to any state, and takes one step."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from p3.parity.models.module import Module

Arrays = Mapping[str, np.ndarray]  # by path
# What a training holds: by role ("parameter", "state", "first moment", ...) and path. A number that is of no one
# parameter, as the count of steps, has the path "".
State = Mapping[str, Arrays]

PARAMETER, STATE, COUNT = "parameter", "state", "count"

# The roles of what optimizers remember of each parameter, by the names that torch.optim, optax and their users give.
ROLES = {
    "exp_avg": "first moment",
    "mu": "first moment",
    "grad_avg": "first moment",
    "exp_avg_sq": "second moment",
    "exp_inf": "second moment",
    "square_avg": "second moment",
    "nu": "second moment",
    "e_g": "second moment",
    "max_exp_avg_sq": "largest second moment",
    "nu_max": "largest second moment",
    "momentum_buffer": "momentum",
    "trace": "momentum",
    "sum": "sum of squares",
    "sum_of_squares": "sum of squares",
    "acc_delta": "mean square of updates",
    "e_x": "mean square of updates",
    "step": COUNT,
    "count": COUNT,
}


class Forward(NamedTuple):
    """
    What a training computes of a batch.

    Attributes
    ----------
    loss : before the update
    gradients : of the loss with respect to each parameter
    states : running statistics and the like, afterwards
    """

    loss: np.ndarray
    gradients: Arrays
    states: Arrays


class Update(NamedTuple):
    """
    What an optimizer does with the gradients of a step.

    Attributes
    ----------
    clipped : the gradients after clipping; None where the optimizer does not show them
    learning_rates : of each parameter; None where the optimizer does not show them
    by_rule : whether the last of the rules that were given changes how the update is made
    """

    clipped: Arrays | None
    learning_rates: Mapping[str, float] | None
    by_rule: bool = False


@dataclass(frozen=True)
class Rule:
    """
    Another way to take a step, which porters confuse with the right one.

    Attributes
    ----------
    name : as a user accepts it
    text : how, as a condition: "weight decay is added to the gradient (L2)"
    quantity : what it changes first: "clipped gradient", "learning rate", "optimizer state" or "update"
    is_rounding : whether it is no mistake, but changes a step as much as computing constants in single precision may
    """

    name: str
    text: str
    quantity: str
    is_rounding: bool = False


class Run(ABC):
    """A training in one precision, in progress. It works on copies; the user's objects are never changed."""

    @abstractmethod
    def read(self) -> State:
        """A copy of what it holds."""

    @abstractmethod
    def write(self, state: State) -> None:
        """Set what it holds; roles and paths that are not given, or that it does not have, stay as they are."""

    @abstractmethod
    def check(self, batch: Any) -> None:
        """
        Check that the loss can be computed, is a scalar, and draws no random numbers; and that the optimizer takes it.

        Raises
        ------
        InputError
            It is not so.
        """

    @abstractmethod
    def forward(self, batch: Any) -> Forward:
        """The loss of a batch and its gradients. Running statistics are updated."""

    @abstractmethod
    def update(self, gradients: Arrays, clipped: Arrays | None = None, rules: Sequence[Rule] = ()) -> Update:
        """
        Update the parameters.

        Parameters
        ----------
        gradients : of the loss
        clipped : with which the optimizer continues after clipping; its own where they are None
        rules : other ways to do it, of those that `rules` has
        """

    @abstractmethod
    def step(self, batch: Any, rules: Sequence[Rule] = ()) -> np.ndarray:
        """One step; its loss."""

    @abstractmethod
    def remember(self) -> Any:
        """What else than `read` gives decides the next step, such as the place in a schedule."""

    @abstractmethod
    def restore(self, remembered: Any, state: State) -> None:
        """The training as it was."""


class Training(ABC):
    """
    A training in some framework.

    Attributes
    ----------
    name : of the loss function
    framework : the framework's name and version
    is_torch : whether that is PyTorch
    """

    is_torch: bool

    @property
    @abstractmethod
    def name(self) -> str:
        """Of the loss."""

    @property
    @abstractmethod
    def framework(self) -> str:
        """Name and version."""

    @abstractmethod
    def begin(self, precision: str) -> Run:
        """The training before its first step, in "float64" or "float32"; in "" as it is."""

    @abstractmethod
    def as_module(self, values: Arrays | None = None) -> Module:
        """The loss as a model whose input is a batch, with other parameters and states at some paths."""

    def rules(self) -> tuple[Rule, ...]:
        """The other ways to take a step, as far as this framework's side can take them."""
        return ()


Progress = Callable[[str, int, int], None]
