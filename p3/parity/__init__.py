"""
The checker of ports: whether a function in one framework does what another does, derivatives and all.

The names load on first use, since the comparison of two fits needs few of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
