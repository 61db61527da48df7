"""The checker of ports: whether a function in one framework does what another does, derivatives and all."""

from p3.parity.case import DTYPES
from p3.parity.checker import CHECKS, check
from p3.parity.function import Function
from p3.parity.report import ParityReport
from p3.parity.result import CheckResult, Finding
from p3.parity.testing import parity_test

Operator = Function  # by its earlier name

__all__ = ["CHECKS", "DTYPES", "CheckResult", "Finding", "Function", "Operator", "ParityReport", "check", "parity_test"]
