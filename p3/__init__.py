"""What both frameworks share: the specification, the points, closed forms, results and their comparison."""

from p3 import parity
from p3.comparison import Comparison, compare
from p3.errors import DivergenceError, InputError
from p3.result import FitResult
from p3.spec import TrainingSpec

__all__ = ["Comparison", "DivergenceError", "FitResult", "InputError", "TrainingSpec", "compare", "parity"]
