"""
The fit of the tutorial's problem with JAX: its model, optimizer and loop.

The names load on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
