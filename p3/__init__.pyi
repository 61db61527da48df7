from . import parity as parity
from .errors import DivergenceError as DivergenceError
from .errors import InputError as InputError
from .errors import LostProcessError as LostProcessError
from .fitting.comparison import Comparison as Comparison
from .fitting.comparison import compare as compare
from .fitting.result import FitResult as FitResult
from .fitting.spec import TrainingSpec as TrainingSpec
from .parity.difference import Difference as Difference
from .parity.frameworks import check as check
from .parity.frameworks import check_model as check_model
from .parity.frameworks import check_training as check_training
from .parity.frameworks import convert as convert
from .parity.frameworks import parity_test as parity_test
from .parity.models.report import ModelReport as ModelReport
from .parity.report import ParityReport as ParityReport
from .parity.trainings.report import TrainingReport as TrainingReport

__version__: str
