"""The result of one fit."""

import json
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FiniteFloat,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from p3.backends import BackendName
from p3.errors import InputError
from p3.section import describe
from p3.spec import TrainingSpec
from p3.training import TRACES


def _read_only_float64(numbers: Any) -> Any:
    try:
        array = np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("it must be a list of numbers") from None
    if not np.isfinite(array).all():
        raise ValueError("all must be finite")
    array.setflags(write=False)
    return array


Numbers = Annotated[
    np.ndarray[Any, np.dtype[np.float64]],
    BeforeValidator(_read_only_float64),
    PlainSerializer(np.ndarray.tolist),
]


class FitResult(BaseModel):
    """
    What a fit came to.

    Attributes
    ----------
    backend : "torch" or "jax"
    spec : what was asked for
    device : where it ran, as the framework names it
    compiled : whether the loop was compiled; False where the specification says `jit = false`, or had to be ignored
    coefficients : {"a": ..., "b": ..., "c": ..., "d": ...} after the last update
    losses : float64, shape (steps,): the loss before each update
    traces : "learning_rate" of each step, shape (steps,), and "coefficients" before it, their "gradients" and their
        "updates", shape (steps, 4) for a to d; empty where the specification says `trace = false`
    seconds : {"compile": ..., "run": ...}; wall-clock time to compile the loop (or to load what an eager one needs),
        and of the loop alone
    versions : of the framework and what it was run with
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    backend: BackendName
    spec: TrainingSpec
    device: str
    compiled: bool
    coefficients: dict[str, FiniteFloat]
    losses: Numbers
    traces: dict[str, Numbers] = {}
    seconds: dict[str, float]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if list(self.coefficients) != ["a", "b", "c", "d"]:
            raise ValueError(f"coefficients must be a, b, c, d, not {', '.join(self.coefficients)}")
        if self.losses.shape != (self.spec.steps,):
            raise ValueError(f"losses must hold one number for each of {self.spec.steps} steps, not {self.losses.size}")
        for name, values in self.traces.items():
            shape = (self.spec.steps,) if name == "learning_rate" else (self.spec.steps, 4)
            if name not in TRACES or values.shape != shape:
                raise ValueError(f"traces.{name} must be one of {', '.join(TRACES)}, of the shape that belongs to it")
        return self

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result as JSON, every number to its last bit. Raises `OSError`."""
        Path(path).write_text(self.model_dump_json() + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote. Raises `InputError`."""
        try:
            return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise InputError(f"{path}: is not a saved fit: {describe(error, cls)}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not JSON: {error}") from error

    def __str__(self) -> str:
        """The tutorial's closing line."""
        a, b, c, d = self.coefficients.values()
        return f"Result: y = {a} + {b} * P3({c} + {d} x)"
