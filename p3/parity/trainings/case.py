"""Two trainings, stepped side by side: each step of the port from what the reference holds, and the port by itself."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from p3.parity.function import wide
from p3.parity.mismatch import Pair
from p3.parity.models.case import greatest
from p3.parity.trainings.pairing import Pairing
from p3.parity.trainings.training import COUNT, PARAMETER, STATE, Arrays, Forward, Rule, Run, State, Training, Update
from p3.tolerance import LEARNING_RATE

PRECISIONS = ("float64", "float32")
# The quantities, in the order in which a step computes them.
ORDER = (
    "parameter",
    "data",
    "output",
    "loss",
    "gradient",
    "state",
    "clipped gradient",
    "learning rate",
    "optimizer state",
    "update",
)
FORWARD = ORDER[: ORDER.index("state") + 1]  # what a step computes before the optimizer


class Key(NamedTuple):
    """
    One of the arrays that are compared in each step.

    Attributes
    ----------
    quantity : one of `ORDER`
    path : the reference's; of an optimizer's state with its role, as in "first moment of fc.weight"
    """

    quantity: str
    path: str


class Taken(NamedTuple):
    """
    A step that a side has taken.

    Attributes
    ----------
    before, after : what the side held
    forward, update : what it computed
    remembered : what else decided the update; None in float32
    """

    before: State
    forward: Forward
    update: Update
    after: State
    remembered: Any = None


Steps = dict[str, tuple[Taken, Taken]]  # by precision, of the reference and the port


@dataclass
class Side:
    """
    A training, and its runs.

    Attributes
    ----------
    training : as it was given
    runs : by precision; those of the port are set to what the reference holds before each step
    """

    training: Training
    runs: dict[str, Run]


@dataclass(eq=False)
class TrainingCase:
    """
    Two trainings.

    Attributes
    ----------
    reference, port : the sides
    pairing : of their arrays
    half : the half precision that a side computes the loss in; empty where there is none
    rules : by which PyTorch's side takes its steps, as the user accepts them
    state : what the reference holds, by precision
    largest_rate : the largest learning rate so far
    is_start : whether no step has been taken
    """

    reference: Side
    port: Side
    pairing: Pairing
    half: str = ""
    rules: Sequence[Rule] = ()
    state: dict[str, State] = field(default_factory=dict)
    largest_rate: float = 0.0
    is_start: bool = True

    def __post_init__(self) -> None:
        """Read the reference."""
        self.state = {precision: run.read() for precision, run in self.reference.runs.items()}

    def step(self, batch: Any) -> Steps:
        """One step of both sides, in each precision: of the port from what the reference held."""
        found = {}
        for precision, run in self.reference.runs.items():
            before = self.state[precision]
            forward = run.forward(batch)
            remembered = run.remember() if precision == "float64" else None
            update = run.update(forward.gradients, rules=self.rules)
            self.state[precision] = run.read()
            ours = Taken(before, forward, update, self.state[precision], remembered)
            found[precision] = ours, self.follow(precision, batch, ours)
        self.is_start = False
        return found

    def follow(self, precision: str, batch: Any, ours: Taken) -> Taken:
        """A step of the port from what the reference held, and with the reference's gradients."""
        run = self.port.runs[precision]
        before = self.pairing.state_to_port(ours.before)
        # In the first step each optimizer keeps the state that it starts with, so that both are compared.
        run.write({role: before[role] for role in (PARAMETER, STATE)} if self.is_start else before)
        forward = run.forward(batch)
        remembered = run.remember() if precision == "float64" else None
        gradients, clipped = self.given(ours)
        update = run.update(gradients, clipped, self.rules)
        return Taken(before, forward, update, run.read(), remembered)

    def given(self, ours: Taken) -> tuple[Arrays, Arrays | None]:
        """The reference's gradients, before and after clipping, as the port's."""
        clipped = ours.update.clipped
        return (
            self.pairing.to_port("gradient", ours.forward.gradients),
            None if clipped is None else self.pairing.to_port("gradient", clipped),
        )

    def compare(self, ours: Taken, theirs: Taken, step: int, precision: str) -> Iterator[tuple[Key, Pair]]:
        """Everything that a step computes in one precision."""
        if not self.half or precision == "float32":
            yield from self.compare_forward(ours.forward, theirs.forward)
        yield from self.compare_update(ours, theirs, step, precision)

    def compare_forward(self, ours: Forward, theirs: Forward) -> Iterator[tuple[Key, Pair]]:
        """The loss, the gradients and the running statistics."""
        yield Key("loss", ""), Pair(theirs.loss, ours.loss, np.abs(wide(ours.loss)))
        yield from alike("gradient", "", [*self.pairing.aligned("gradient", ours.gradients, theirs.gradients)])
        for path, got, expected in self.pairing.aligned(STATE, ours.states, theirs.states):
            yield Key("state", path), Pair(got, expected, np.asarray(greatest(expected)))

    def compare_update(self, ours: Taken, theirs: Taken, step: int, precision: str) -> Iterator[tuple[Key, Pair]]:
        """The clipped gradients, the learning rates, what the optimizers remember, and the updates."""
        aligned = self.pairing.aligned
        if ours.update.clipped is not None and theirs.update.clipped is not None:
            yield from alike("clipped gradient", "", [*aligned("gradient", ours.update.clipped, theirs.update.clipped)])
        yield from self.compare_rates(ours.update, theirs.update, step, precision)
        for role in (role for role in ours.after if role in theirs.after and role not in (PARAMETER, STATE)):
            if role == COUNT:
                pair = Pair(theirs.after[COUNT][""], ours.after[COUNT][""], np.asarray(0.0))
                yield Key("optimizer state", "count of steps"), pair
            else:
                pairs = [*aligned(role, ours.after[role], theirs.after[role])]
                yield from alike("optimizer state", f"{role} of ", pairs)
        befores = aligned(PARAMETER, ours.before[PARAMETER], theirs.before[PARAMETER])
        held = {path: greatest(before) for path, _, before in befores}
        pairs = [*aligned(PARAMETER, moved(ours), moved(theirs))]
        largest = max((greatest(expected) for *_, expected in pairs), default=0.0)
        for path, got, expected in pairs:
            yield Key("update", path), Pair(got, expected, np.asarray(largest + held[path]))

    def compare_rates(self, ours: Update, theirs: Update, step: int, precision: str) -> Iterator[tuple[Key, Pair]]:
        """The learning rates; one for all where the reference has one."""
        if ours.learning_rates is None or theirs.learning_rates is None:
            return
        pairs: dict[str, tuple[float, float]] = {}
        for link in self.pairing.links[PARAMETER]:
            paths = (link.torch[0].path, link.jax.path)
            mine, yours = paths if self.pairing.is_torch_first else paths[::-1]
            if mine in ours.learning_rates and yours in theirs.learning_rates:
                pairs[self.pairing.names[link]] = (theirs.learning_rates[yours], ours.learning_rates[mine])
        if len(set(pairs.values())) == 1:
            pairs = {"": next(iter(pairs.values()))}
        for path, (got, expected) in pairs.items():
            self.largest_rate = max(self.largest_rate, abs(expected))
            growth = 1 + step / 4 if precision == "float64" else 1.0
            size = np.asarray(self.largest_rate * growth)
            yield Key("learning rate", path), Pair(np.asarray(got), np.asarray(expected), size, tolerance=LEARNING_RATE)


def alike(quantity: str, prefix: str, pairs: list[tuple[str, np.ndarray, np.ndarray]]) -> Iterator[tuple[Key, Pair]]:
    """Pairs that are all measured by the size of the largest array, since a gradient of 0 has rounding errors too."""
    size = np.asarray(max((greatest(expected) for *_, expected in pairs), default=0.0))
    for path, got, expected in pairs:
        yield Key(quantity, prefix + path), Pair(got, expected, size)


def moved(taken: Taken) -> dict[str, np.ndarray]:
    """The updates of the parameters."""
    before = taken.before[PARAMETER]
    return {path: wide(x) - wide(before[path]) for path, x in taken.after[PARAMETER].items() if path in before}
