"""One step of training with its numbers: the chain rule link by link, by hand and by both frameworks."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from io import StringIO
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console, Group
from rich.table import Table

from p3.backends import BACKENDS, Backend, BackendName, load
from p3.errors import InputError
from p3.fitting.checkpoint import Checkpoint
from p3.fitting.data import Points, count_points, make_points
from p3.fitting.exact import P3, Chain, chain
from p3.fitting.optimizers import Sgd
from p3.fitting.spec import TrainingSpec
from p3.fitting.training import batches
from p3.tolerance import CENTRAL_DIFFERENCE, STEP_GRADIENT

H = 2.0**-21  # between the cube root of extended precision's epsilon and its square root
EAGER_STEPS = 2000  # more of them are worth a compilation
LINKS = {
    "x": "x",
    "y": "y",
    "z": "z = c + d·x",
    "value": "P3(z)",
    "prediction": "ŷ = a + b·P3(z)",
    "residual": "r = ŷ − y",
    "incoming": "incoming gradient, ∂loss/∂P3(z) = 2r·b",
    "slope": "local derivative, P3'(z) = 1.5·(5z² − 1)",
    "outgoing": "outgoing gradient, ∂loss/∂z = incoming · local",
}


class Links(NamedTuple):
    """What one framework computes for the chosen points, forward and backward."""

    z: np.ndarray
    value: np.ndarray
    prediction: np.ndarray
    residual: np.ndarray
    incoming: np.ndarray
    slope: np.ndarray
    outgoing: np.ndarray


@dataclass(frozen=True)
class Explanation:
    """
    A step, its coefficients, and what became of them.

    Attributes
    ----------
    spec, step : which step of what, counted from 0
    shown : the numbers of the points that are shown
    coefficients : before the step, in PyTorch's run
    learning_rate : of the step
    points : that the step sees
    links : of each framework, for the points that are shown
    gradients, updates : of each framework, from the same coefficients and the same gradients before
    """

    spec: TrainingSpec
    step: int
    shown: tuple[int, ...]
    coefficients: dict[str, float]
    learning_rate: float
    points: Points
    links: Mapping[BackendName, Links]
    gradients: Mapping[BackendName, dict[str, float]]
    updates: Mapping[BackendName, dict[str, float]]

    @cached_property
    def by_hand(self) -> Chain:
        """The chain rule by hand, in extended precision."""
        return chain(self.coefficients, self.points)

    @cached_property
    def differences(self) -> dict[str, float]:
        """The loss's derivative by each coefficient, by central differences in extended precision."""

        def loss(name: str, by: np.longdouble) -> np.longdouble:
            moved: dict[str, Any] = {**self.coefficients, name: np.longdouble(self.coefficients[name]) + by}
            return np.longdouble((chain(moved, self.points).residual ** 2).sum())

        return {name: central_difference(partial(loss, name), scale) for name, scale in self.scales.items()}

    @cached_property
    def scales(self) -> dict[str, float]:
        """How far a coefficient must go to matter: to move a prediction, or z, by as much as there is of it."""
        c, d = self.coefficients["c"], self.coefficients["d"]
        x = float(np.abs(self.points.x).max())
        z = abs(c) + abs(d) * x or 1.0
        prediction = float(self.by_hand.sizes["a"].max()) / 2 or 1.0
        return {"a": prediction, "b": prediction / (7.5 * z**3 + 1.5 * z), "c": z, "d": z / (x or 1.0)}

    @property
    def ok(self) -> bool:
        """Whether both frameworks' gradients are the chain rule's, and the differences bear it out."""
        for name, terms in self.by_hand.terms.items():
            exact, size = float(terms.sum()), float(self.by_hand.sizes[name].sum())
            bound = STEP_GRADIENT.bound(self.spec.dtype, size)
            if not all(abs(gradients[name] - exact) <= bound for gradients in self.gradients.values()):
                return False
            rounding = np.finfo(np.longdouble).eps * (self.by_hand.sizes["a"] ** 2).sum() / (H * self.scales[name])
            if not abs(self.differences[name] - exact) <= CENTRAL_DIFFERENCE.value * size + float(rounding):
                return False
        return True

    def hand_update(self, name: str) -> float | None:
        """The update by hand, of plain gradient descent."""
        optimizer = self.spec.optimizer
        if not isinstance(optimizer, Sgd) or optimizer.momentum or optimizer.clip_norm or optimizer.clip_value:
            return None
        gradient = float(self.by_hand.terms[name].sum()) + optimizer.weight_decay * self.coefficients[name]
        return -self.learning_rate * gradient

    def __rich__(self) -> Group:
        """Tables for a terminal."""
        titles = [BACKENDS[name].title for name in self.links]
        values = ", ".join(f"{name} = {value:.9g}" for name, value in self.coefficients.items())
        parts: list[Any] = [
            f"Step {self.step} of {self.spec.steps} in {self.spec.dtype}, before which {values}; "
            f"the loss is Σ(ŷ − y)² over {len(self.points.x)} points.\n"
        ]
        for column, point in enumerate(self.shown):
            table = right(Table(f"point {point}", "by hand", *titles, "by differences"))
            for key, title in LINKS.items():
                exact = self.link_by_hand(key, point)
                given = key in ("x", "y")
                computed = [exact if given else getattr(links, key)[column] for links in self.links.values()]
                table.add_row(title, *map(number, (exact, *computed, self.link_by_differences(key, point))))
            parts.append(table)
        table = right(Table("summed over all points", "by hand", *titles, "by differences"))
        terms = {"a": "2r", "b": "2r·P3(z)", "c": "outgoing", "d": "outgoing · x"}
        for name, term in terms.items():
            computed = [gradients[name] for gradients in self.gradients.values()]
            exact = float(self.by_hand.terms[name].sum())
            table.add_row(f"∂loss/∂{name} = Σ {term}", *map(number, (exact, *computed, self.differences[name])))
        parts.append(table)
        rule = f"{self.spec.optimizer.name}, learning rate {self.learning_rate:.9g}"
        table = right(Table(rule, "by hand", *titles, "after it"))
        for name in "abcd":
            computed = [updates[name] for updates in self.updates.values()]
            after = self.coefficients[name] + computed[0]
            table.add_row(f"update of {name}", *map(number, (self.hand_update(name), *computed, after)))
        verdict = "agree" if self.ok else "do not agree"
        return Group(*parts, table, f"The chain rule by hand, {' and '.join(titles)}, and the differences {verdict}.")

    def link_by_hand(self, key: str, point: int) -> float:
        """One link of the chain at a point."""
        if key in ("x", "y"):
            return float(getattr(self.points, key)[point])
        incoming = 2 * self.by_hand.residual[point] * self.coefficients["b"]
        if key == "incoming":
            return float(incoming)
        if key == "outgoing":
            return float(incoming * self.by_hand.slope[point])
        return float(getattr(self.by_hand, key)[point])

    def link_by_differences(self, key: str, point: int) -> float | None:
        """One derivative of the chain at a point; None where the link is none."""
        a, b, z, y = self.coefficients["a"], self.coefficients["b"], self.by_hand.z[point], self.points.y[point]
        functions = {
            "incoming": lambda by: (a + b * (P3(z) + by) - y) ** 2,
            "slope": lambda by: P3(z + by),
            "outgoing": lambda by: (a + b * P3(z + by) - y) ** 2,
        }
        return central_difference(functions[key]) if key in functions else None

    def __str__(self) -> str:
        """The same as plain text."""
        text = StringIO()
        Console(file=text, width=120, color_system=None, force_terminal=False, force_jupyter=False).print(self)
        return text.getvalue().rstrip()


def central_difference(f: Callable[[np.longdouble], Any], scale: float = 1.0) -> float:
    """df/dt at 0, to about 12 digits in extended precision, of a function that changes over `scale`."""
    h = np.longdouble(H * scale)
    return float((f(h) - f(-h)) / (2 * h))


def number(value: float | None) -> str:
    """To nine digits, and nothing for none."""
    return "" if value is None else f"{value:.9g}"


def right(table: Table) -> Table:
    """The table, its numbers to the right."""
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def explain(spec: TrainingSpec, step: int = 0, shown: tuple[int, ...] | None = None) -> Explanation:
    """
    Train up to a step, and take it apart.

    Parameters
    ----------
    spec : of the training
    step : counted from 0
    shown : the numbers of the points to show, among those that the step sees; three of them where None

    Raises
    ------
    InputError
        There is no such step, or no such point.
    """
    if not 0 <= step < spec.steps:
        raise InputError(f"there is no step {step}; the specification has steps 0 to {spec.steps - 1}")
    count = spec.batch_size or count_points(spec)
    shown = shown if shown is not None else tuple(dict.fromkeys((0, count // 4, count // 2)))
    for point in shown:
        if not 0 <= point < count:
            raise InputError(f"there is no point {point}; the step sees points 0 to {count - 1}")
    spec = spec.replace({"devices": 1})  # a step is the same, whoever shares the points
    packages = {name: load(name) for name in BACKENDS}
    traces = record_up_to(spec, step)
    coefficients = by_name(traces["coefficients"][step])
    points = make_points(spec)
    if spec.batch_size is not None:
        order = batches(spec, step, 1)[0]
        points = Points(points.x[order], points.y[order])
    chosen = Points(points.x[list(shown)], points.y[list(shown)])
    return Explanation(
        spec,
        step,
        shown,
        coefficients,
        float(traces["learning_rate"][step]),
        points,
        {name: links_of(package, coefficients, chosen) for name, package in packages.items()},
        {name: package.observe(spec, step, coefficients).gradients for name, package in packages.items()},
        {name: by_name(package.replay(spec, traces)[step]) for name, package in packages.items()},
    )


class _ReachedError(Exception):
    """The run has come to the step."""


def record_up_to(spec: TrainingSpec, step: int) -> Mapping[str, np.ndarray]:
    """What PyTorch's run of the specification records up to a step, with which it ends."""
    spec = spec.replace({"log_every": step + 1, "trace": True, "jit": spec.jit and step >= EAGER_STEPS})

    def reached(at: int, loss: float) -> None:
        raise _ReachedError

    with TemporaryDirectory() as directory:
        checkpoint = Checkpoint(directory)
        with suppress(_ReachedError):
            load("torch").fit(spec, reached, checkpoint)
        saved = checkpoint.read(spec)
        assert saved is not None
        return saved.record


def links_of(package: Backend, coefficients: Mapping[str, float], points: Points) -> Links:
    """The links that a framework computes, the local derivative and the outgoing gradient by the hand-written rule."""
    x, y = points
    a, b, c, d = (np.array(coefficients[name], x.dtype) for name in "abcd")
    operator = package.as_operator(package.legendre_p3)
    (z,) = package.as_operator(lambda c, d, x: c + d * x).value((c, d, x))
    (value,) = operator.value((z,))
    (prediction,) = package.as_operator(lambda a, b, value: a + b * value).value((a, b, value))
    (residual,) = package.as_operator(lambda prediction, y: prediction - y).value((prediction, y))
    squares = package.as_operator(lambda value, a, b, y: (a + b * value - y) ** 2, arguments=(0,))
    (incoming,) = squares.vjp((value, a, b, y), (np.ones_like(y),))
    (slope,) = operator.vjp((z,), (np.ones_like(z),))
    (outgoing,) = operator.vjp((z,), (incoming,))
    return Links(z, value, prediction, residual, incoming, slope, outgoing)


def by_name(values: np.ndarray) -> dict[str, float]:
    """Four numbers by the coefficients' names."""
    return dict(zip("abcd", values.tolist(), strict=True))
