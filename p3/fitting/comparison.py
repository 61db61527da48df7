"""Two fits side by side."""

from dataclasses import dataclass
from functools import cached_property
from io import StringIO

import numpy as np
from jaxtyping import Float64
from rich.console import Console, Group
from rich.table import Table

from p3.backends import BACKENDS
from p3.errors import InputError
from p3.fitting.data import make_points
from p3.fitting.divergence import first_divergence
from p3.fitting.exact import BestFit, best_fit
from p3.fitting.result import FitResult
from p3.fitting.section import first_difference
from p3.parity.difference import Difference
from p3.parity.mismatch import Pair
from p3.tolerance import COEFFICIENTS, ROOT_LOSS


@dataclass(frozen=True)
class Comparison:
    """
    Two results of one problem, and whether they differ by more than rounding.

    They agree when √loss before every update, and every coefficient after the last, are within the tolerances
    `ROOT_LOSS` and `COEFFICIENTS`, in epsilons of the coarser dtype of the two. A descent may make more than that of a
    rounding; then they agree when every step does what it should of its own numbers.
    """

    a: FitResult
    b: FitResult

    @property
    def sides(self) -> tuple[tuple[str, FitResult], ...]:
        """Both results, with their frameworks' names."""
        return tuple((BACKENDS[result.backend].title, result) for result in (self.a, self.b))

    @property
    def ok(self) -> bool:
        """Whether they agree."""
        if self.within_tolerance:
            return True
        return self.is_traced and self.first_divergence is None

    @property
    def within_tolerance(self) -> bool:
        """Whether losses and coefficients are."""
        return self.first_apart is None and not self._fitted.beyond(self.dtype).any()

    @property
    def is_traced(self) -> bool:
        """Whether every step of both was recorded, by runs of one dtype."""
        return bool(self.a.traces and self.b.traces and self.a.spec.dtype == self.b.spec.dtype)

    @cached_property
    def first_divergence(self) -> Difference | None:
        """The first step, and the first quantity in it, that differs by more than rounding; None if none is known."""
        return None if self.within_tolerance or not self.is_traced else first_divergence(self.a, self.b)

    @property
    def first_apart(self) -> int | None:
        """The first step, counted from 0, before which √loss is further apart than the tolerance; None if none is."""
        beyond = self._root_losses.beyond(self.dtype)
        return int(np.argmax(beyond)) if beyond.any() else None

    @property
    def dtype(self) -> str:
        """The coarser dtype of the two."""
        return max((self.a.spec.dtype, self.b.spec.dtype), key=lambda dtype: float(np.finfo(dtype).eps))

    @cached_property
    def root_loss_differences(self) -> Float64[np.ndarray, "steps"]:
        """|√loss of a − √loss of b| before each update, in epsilons of the size that `ROOT_LOSS` names."""
        return self._root_losses.epsilons(self.dtype)

    @cached_property
    def coefficient_difference(self) -> float:
        """The largest difference of a coefficient, in epsilons of the size that `COEFFICIENTS` names."""
        return float(self._fitted.epsilons(self.dtype).max())

    @cached_property
    def _root_losses(self) -> Pair:
        a, b = np.sqrt(self.a.losses), np.sqrt(self.b.losses)
        size = max(np.linalg.norm(self._y), a.max(), b.max())
        return Pair(a, b, np.asarray(size), tolerance=ROOT_LOSS)

    @cached_property
    def _fitted(self) -> Pair:
        a, b = (np.array(list(result.coefficients.values())) for result in (self.a, self.b))
        size = max(np.abs([a, b]).max(), np.abs(self._y).max())
        return Pair(a, b, np.asarray(size), tolerance=COEFFICIENTS)

    @cached_property
    def _y(self) -> Float64[np.ndarray, "points"]:
        return make_points(self.a.spec).y.astype(np.float64)

    @cached_property
    def best(self) -> BestFit:
        """The best fit there is, from the points before they are rounded to the dtype."""
        return best_fit(make_points(self.a.spec.replace({"dtype": "float64"})))

    @property
    def verdict(self) -> str:
        """One paragraph: whether they agree, by how much, and by which tolerance."""
        rule = (
            f"tolerance: √loss within {ROOT_LOSS.epsilons} {self.dtype} epsilons of {ROOT_LOSS.of}, "
            f"coefficients within {COEFFICIENTS.epsilons} of {COEFFICIENTS.of}"
        )
        if self.within_tolerance:
            return (
                f"agree: √loss at every step within {self.root_loss_differences.max():.2g} epsilons, coefficients "
                f"within {self.coefficient_difference:.2g}; {rule}"
            )
        apart = f"the coefficients are {self.coefficient_difference:.3g} epsilons apart"
        if self.first_apart is not None:
            apart = (
                f"before step {self.first_apart} √loss is {self.root_loss_differences[self.first_apart]:.3g} epsilons "
                f"apart, and {self.root_loss_differences.max():.3g} at the worst"
            )
        if not self.is_traced:
            return f"differ: {apart}; {rule}; to see why, fit both in one dtype with trace = true"
        if self.first_divergence is None:
            return f"agree step by step: {apart}, by rounding alone: each step is right for its own numbers; {rule}"
        return f"differ: {self.first_divergence}; {apart}; {rule}"

    def __rich__(self) -> Group:
        """The table of a terminal."""
        titles = [BACKENDS[result.backend].title for result in (self.a, self.b)]

        losses = Table("loss before step", *titles, "difference")
        for column in losses.columns:
            column.justify = "right"
        for step in self.a.spec.logged_steps():
            a, b = self.a.losses[step], self.b.losses[step]
            losses.add_row(str(step), f"{a:.9g}", f"{b:.9g}", f"{a - b:.1e}")
        losses.add_section()
        losses.add_row("best possible", f"{self.best.loss:.9g}", "", "")

        coefficients = Table("coefficient", *titles, "difference", "best possible")
        for column in coefficients.columns[1:]:
            column.justify = "right"
        for name, a in self.a.coefficients.items():
            b = self.b.coefficients[name]
            best = f"{self.best.coefficients[name]:.9g}" if self.best.coefficients else "none reaches it"
            coefficients.add_row(name, f"{a:.9g}", f"{b:.9g}", f"{a - b:.1e}", best)

        timings = Table("", *titles, title_justify="left")
        timings.columns[1].justify = timings.columns[2].justify = "right"
        results = (self.a, self.b)
        timings.add_row("device", *(result.device for result in results))
        timings.add_row("loop", *("compiled" if result.compiled else "eager" for result in results))
        timings.add_row("dtype", *(result.spec.dtype for result in results))
        timings.add_row("compile", *(f"{result.seconds['compile']:.2f} s" for result in results))
        timings.add_row("run", *(f"{1e3 * result.seconds['run']:.1f} ms" for result in results))

        return Group(losses, coefficients, timings, self.verdict)

    def __str__(self) -> str:
        """The same as plain text."""
        text = StringIO()
        Console(file=text, width=100, color_system=None, force_terminal=False, force_jupyter=False).print(self)
        return text.getvalue().rstrip()


def compare(a: FitResult, b: FitResult) -> Comparison:
    """
    Compare two results of one problem.

    Raises
    ------
    InputError
        The results differ in the data, the start, the steps or what decides them, and so are of two problems.
    """
    difference = first_difference(a.spec, b.spec, ignoring=("log_every", "trace", "dtype", "device", "devices", "jit"))
    if difference is not None:
        field, of_a, of_b = difference
        raise InputError(f"the results are of different problems: {field} is {of_a} in one and {of_b} in the other")
    return Comparison(a, b)
