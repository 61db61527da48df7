"""
PyTorch: the operator P3, the model that uses it, and its fit.

The names load on first use, so that `python -m torchp3 --help`, or the message that a framework is
missing, need none.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
