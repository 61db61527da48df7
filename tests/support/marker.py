"""A hand-written rule whose derivative is multiplied, which shows where it is the rule that runs."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any
from unittest import mock

from p3.backends import BackendName, load


def forget_compiled() -> None:
    """Drop every compiled program, so that the next one is traced anew; what is not loaded has compiled none."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    if "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()


def with_and_without_marker(backend: BackendName, factor: float, compute: Callable[[], Any]) -> tuple[Any, Any]:
    """What is computed with the rule as it is, and with its derivative multiplied, each compiled anew."""
    operator = import_module(f"{load(backend).__name__}.operator")
    derivative = operator.derivative
    forget_compiled()
    true = compute()
    forget_compiled()
    with mock.patch.object(operator, "derivative", lambda x: factor * derivative(x)):
        marked = compute()
    forget_compiled()
    return true, marked
