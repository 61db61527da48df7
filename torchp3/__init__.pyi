from .adapter import as_operator as as_operator
from .inspection import observe as observe
from .inspection import replay as replay
from .model import loss as loss
from .model import predict as predict
from .operator import LegendrePolynomial3 as LegendrePolynomial3
from .operator import legendre_p3 as legendre_p3
from .train import fit as fit
