"""The atlas's pairs of functions: read from pairs.toml, and compared by the parity checker."""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.image
import jax.scipy.linalg
import jax.scipy.ndimage
import jax.scipy.special
import mpmath
import numpy as np
import optax
import scipy.linalg
import scipy.special
import torch
from pydantic import BaseModel, ConfigDict

import jaxp3.function
import torchp3
from p3.parity import ParityReport, check
from p3.parity.function import Arrays, Function
from p3.parity.inputs import parse_input

PAIRS = Path(__file__).with_name("pairs.toml")
CHECKS = (
    "value",
    "vjp",
    "jvp",
    "vjp of vjp",
    "jvp of vjp",
    "batched",
    "dtypes",
    "low precision",
    "shapes",
    "special values",
)
DIGITS = 50  # of mpmath's numbers, which is far more than float64 has


class AsUsersCallIt(jaxp3.function.ArrayFunction):
    """A function that is never compiled as a whole, so that its results are those of users who do not compile it."""

    def quick(self, inputs: Arrays, cotangents: Arrays) -> Function:
        """The function itself."""
        return self


class Pair(BaseModel):
    """
    A function that both frameworks ship.

    Attributes
    ----------
    torch, jax : it, as an expression of the arguments
    inputs : an expression for each argument, as `p3.parity.inputs.parse_input` takes them
    points, awkward : as `p3.parity.check` has them
    true : the function in NumPy, SciPy or, by `exactly`, mpmath
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    torch: str
    jax: str
    inputs: dict[str, str]
    points: tuple[float, ...] = ()
    awkward: dict[str, dict[str, str]] = {}
    true: str | None = None

    def function(self, expression: str, **modules: Any) -> Callable[..., Any]:
        """An expression of the project's own as a function of the arguments."""
        function = eval(f"lambda {', '.join(self.inputs)}: {expression}", modules)
        function.__name__ = expression
        return function  # type: ignore[no-any-return]

    def sides(self) -> tuple[Function, Function]:
        """The function in PyTorch, and in JAX."""
        return (
            torchp3.as_operator(self.function(self.torch, torch=torch)),
            AsUsersCallIt(self.function(self.jax, jax=jax, optax=optax), self.jax, None, ()),
        )

    def options(self) -> dict[str, Any]:
        """The options of `p3.parity.check`."""
        given: dict[str, Any] = {"points": self.points, "compiled": False}
        given["awkward"] = {name: arrays(inputs) for name, inputs in self.awkward.items()}
        if self.true is not None:
            given["closed_form"] = self.function(self.true, numpy=np, scipy=scipy, mpmath=mpmath, exactly=exactly)
        return given

    def check(self) -> tuple[ParityReport, ParityReport]:
        """
        What the checker says of JAX's function as a port of PyTorch's.

        And, of low precision, of PyTorch's as one of JAX's, since the checker forgives a port what the reference lacks.
        """
        in_torch, in_jax = self.sides()
        inputs, options = arrays(self.inputs), self.options()
        return (
            check(in_torch, in_jax, inputs, only=CHECKS, **options),
            check(in_jax, in_torch, inputs, only=["low precision"], **options),
        )


def arrays(inputs: dict[str, str]) -> Arrays:
    """The arrays of the arguments."""
    return tuple(map(parse_input, inputs.values()))


def exactly(f: Callable[..., Any], *inputs: np.ndarray) -> np.ndarray:
    """An mpmath function of each element, rounded once; NaN where it has no value."""

    def of(*numbers: float) -> float:
        with mpmath.workdps(DIGITS):
            try:
                return float(f(*map(mpmath.mpf, numbers)))
            except (ArithmeticError, ValueError, TypeError):  # a pole, or a complex value
                return float("nan")

    return np.vectorize(of, otypes=[float])(*inputs)


def load_pairs(path: Path = PAIRS) -> dict[str, Pair]:
    """All pairs, by their names."""
    families = tomllib.loads(path.read_text(encoding="utf-8"))
    return {f"{family}.{name}": Pair(**pair) for family, members in families.items() for name, pair in members.items()}
