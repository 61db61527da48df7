"""The result of one fit."""

import json
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FiniteFloat,
    NonNegativeFloat,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from p3.backends import BackendName
from p3.errors import InputError
from p3.fitting.section import describe
from p3.fitting.spec import TrainingSpec
from p3.fitting.training import TRACES


def _read_only_float64(numbers: Any) -> Any:
    try:
        array = np.array(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("it must be a list of numbers") from None
    array.setflags(write=False)
    return array


def _all_finite(array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise ValueError("all must be finite")
    return array


Numbers = Annotated[
    np.ndarray[Any, np.dtype[np.float64]],
    BeforeValidator(_read_only_float64),
    PlainSerializer(np.ndarray.tolist),
]
FiniteNumbers = Annotated[Numbers, AfterValidator(_all_finite)]


class Run(BaseModel):
    """
    What is known of any run.

    Attributes
    ----------
    backend : "torch" or "jax"
    spec : what was asked for
    device : where it ran, as the framework names it
    compiled : whether the loop was compiled; False where the specification says `jit = false`, or had to be ignored
    seconds : {"compile": ..., "run": ...}; wall-clock time to compile the loop (or to load what an eager one needs),
        and of the loop alone
    versions : of the framework and what it was run with
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, ser_json_inf_nan="constants")

    SAVED: ClassVar[str]  # what load says that a file is not

    backend: BackendName
    spec: TrainingSpec
    device: str
    compiled: bool
    seconds: dict[str, NonNegativeFloat]
    versions: dict[str, str]

    @model_validator(mode="after")
    def _timed(self) -> Self:
        if set(self.seconds) != {"compile", "run"}:
            raise ValueError(f"seconds must be compile and run, not {', '.join(self.seconds) or 'none'}")
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
            raise InputError(f"{path}: is not {cls.SAVED}: {describe(error, cls)}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not JSON: {error}") from error


class FitResult(Run):
    """
    What a fit came to.

    Attributes
    ----------
    coefficients : {"a": ..., "b": ..., "c": ..., "d": ...} after the last update
    losses : float64, shape (steps,): the loss before each update
    traces : "learning_rate" of each step, shape (steps,), and "coefficients" before it, their "gradients" and their
        "updates", shape (steps, 4) for a to d; empty where the specification says `trace = false`
    backend, spec, device, compiled, seconds, versions : as in `Run`
    """

    SAVED = "a saved fit"

    coefficients: dict[str, FiniteFloat]
    losses: FiniteNumbers
    traces: dict[str, FiniteNumbers] = {}

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if list(self.coefficients) != ["a", "b", "c", "d"]:
            raise ValueError(f"coefficients must be a, b, c, d, not {', '.join(self.coefficients)}")
        if self.losses.shape != (self.spec.steps,):
            raise ValueError(f"losses must hold one number for each of {self.spec.steps} steps, not {self.losses.size}")
        if self.traces and set(self.traces) != set(TRACES):
            raise ValueError(f"traces must be all of {', '.join(TRACES)}, or none")
        if not (self.losses >= 0).all():
            raise ValueError("losses must not be negative")
        for name, values in self.traces.items():
            shape = (self.spec.steps,) if name == "learning_rate" else (self.spec.steps, 4)
            if values.shape != shape:
                raise ValueError(f"traces.{name} must be of shape {shape}, not {values.shape}")
        return self

    def __str__(self) -> str:
        """The tutorial's closing line."""
        return closing_line(*self.coefficients.values())


def closing_line(a: float, b: float, c: float, d: float) -> str:
    """The tutorial's."""
    return f"Result: y = {a} + {b} * P3({c} + {d} x)"
