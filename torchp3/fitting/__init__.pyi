from . import distributed as distributed
from .inspection import observe as observe
from .inspection import replay as replay
from .model import loss as loss
from .model import predict as predict
from .starts import fit_starts as fit_starts
from .train import fit as fit
