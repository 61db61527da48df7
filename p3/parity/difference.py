"""What differs between two sides, as data."""

from dataclasses import dataclass
from typing import Literal

from p3.parity.place import EAGER

Kind = Literal["semantic", "single precision", "edge", "rounding", "not reproduced"]


@dataclass(frozen=True)
class Difference:
    """
    One thing that is not as it should be.

    Attributes
    ----------
    side : whose it is, "reference" or "port"; of a training the framework
    check : by which check it was found
    mode : "eager", or in which mode, dtype or shape, or at which special values
    quantity : "value", "vjp", "jvp of vjp", ...; of a training "gradient", "update", ...
    path : of the array in the reference's inputs or outputs, as in `inputs["w"]`; of a training the coefficient, or the
        element of the data or of the prediction, as in "x[3]"; empty where it is of none
    kind : "semantic"; "single precision" if a side computes in float32 inside, whatever it is given, and rounding there
        explains it; "edge" if it is at an infinity, a NaN, a huge or a subnormal number that no given input has;
        "rounding" if it shrinks with the precision's epsilon; or "not reproduced", of a training in
        float32, if it is too large for rounding and the same training in float64 does not have it
    got, expected : the values where it is worst; None where no two values were compared
    epsilons : how far apart they are, in epsilons of the precision and of the size that the tolerance names
    explanation : what it looks like
    against : what `expected` is by: the other side, the closed form, finite differences
    tolerance : how many epsilons rounding explains; None where no two values were compared
    step : of a training, counted from 0
    by : "cotangent" or "tangent", where a derivative of second order is by that of the array
    precision : of the epsilons; empty where no two values were compared
    """

    side: str
    check: str
    mode: str
    quantity: str
    path: str
    kind: Kind
    got: complex | float | None
    expected: complex | float | None
    epsilons: float | None
    explanation: str
    against: str = ""
    tolerance: float | None = None
    step: int | None = None
    by: str = ""
    precision: str = ""

    def __str__(self) -> str:
        """One sentence."""
        step = "" if self.step is None else f"at step {self.step} "
        side = f"the {self.side}" if self.side in ("reference", "port") else self.side
        what = f"{self.quantity} of {self.path}" if self.path else self.quantity
        if self.path.startswith(self.quantity):  # as in "prediction[3]"
            what = self.path
        what += f" by its {self.by}" if self.by else ""
        what += f" ({self.mode})" if self.mode != EAGER and self.step is None else ""
        if self.tolerance is None:
            return f"{self.kind}: {step}{side}'s {what}: {self.explanation}"
        return (
            f"{self.kind}: {step}{side}'s {what} is {self.got:.17g}, and by {self.against} {self.expected:.17g}: "
            f"{self.epsilons:.3g} epsilons apart, where rounding explains {self.tolerance:g}"
        )
