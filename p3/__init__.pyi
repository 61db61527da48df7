from . import parity as parity
from .comparison import Comparison as Comparison
from .comparison import compare as compare
from .errors import DivergenceError as DivergenceError
from .errors import InputError as InputError
from .errors import LostProcessError as LostProcessError
from .result import FitResult as FitResult
from .spec import TrainingSpec as TrainingSpec

__version__: str
