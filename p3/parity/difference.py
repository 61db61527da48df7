"""What differs between two sides, as data."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["semantic", "rounding", "not reproduced"]


@dataclass(frozen=True)
class Difference:
    """
    One thing that is not as it should be.

    Attributes
    ----------
    side : whose it is, "reference" or "port"
    check : by which check it was found
    mode : "eager", or in which mode, dtype or shape, or at which special values
    quantity : "value", "vjp", "jvp of vjp", ...
    path : of the array in the reference's inputs or outputs, as in `inputs["w"]`; empty where it is of none
    kind : "semantic"; "rounding" if it shrinks with the precision's epsilon; or "not reproduced", of a training that
        was run again in float64, if it is not there and too large for rounding
    got, expected : the values where it is worst; None where no two values were compared
    epsilons : how far apart they are
    explanation : what it looks like
    against : what `expected` is by: the other side, the closed form, finite differences
    tolerance : how many epsilons rounding explains; None where no two values were compared
    step : of a training, counted from 0
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
