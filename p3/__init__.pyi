from . import parity as parity
from .errors import DivergenceError as DivergenceError
from .errors import InputError as InputError
from .errors import LostProcessError as LostProcessError
from .fitting.comparison import Comparison as Comparison
from .fitting.comparison import compare as compare
from .fitting.result import FitResult as FitResult
from .fitting.spec import TrainingSpec as TrainingSpec

__version__: str
