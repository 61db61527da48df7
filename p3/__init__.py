"""
What both frameworks share: the specification, the points, closed forms, results and their comparison.

The names load on first use, so that a fit loads nothing of what compares or checks.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
