"""The training specification: everything that decides a fit, and nothing about a framework."""

import tomllib
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import Discriminator, Field, FiniteFloat, Tag, ValidationError, model_validator

from p3.errors import InputError
from p3.fitting.optimizers import REFUSED, Optimizer, Sgd
from p3.fitting.schedules import Constant, OneCycle, Schedule, WarmupCosine
from p3.fitting.section import Section, describe, merged

Target = Literal["sin", "cos", "exp", "tanh", "arctan", "cbrt"]


class Data(Section):
    """The points (x, y): x evenly spaced over [low, high], y = target(x)."""

    points: Annotated[int, Field(ge=2, le=10**12)] = Field(2000, description="Number of points.")
    low: FiniteFloat = Field(-3.141592653589793, description="First x.")
    high: FiniteFloat = Field(3.141592653589793, description="Last x; above low.")
    target: Target = Field("sin", description="The function to fit, by its NumPy name.")

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low = {self.low!r} must be less than high = {self.high!r}")
        return self


class FileData(Section):
    """The points (x, y): two columns of a file, which is looked for from the working directory."""

    file: str = Field(description="A file with the points: .csv with a header, .npz, or .parquet.")
    x: str = Field("x", description="The column of x.")
    y: str = Field("y", description="The column of y.")


class Start(Section):
    """The coefficients before the first update."""

    a: FiniteFloat = Field(0.0, description="Offset of the prediction.")
    b: FiniteFloat = Field(-1.0, description="Factor of the prediction.")
    c: FiniteFloat = Field(0.0, description="Offset inside P3.")
    d: FiniteFloat = Field(0.3, description="Factor of x inside P3.")


def _has_file(given: Any) -> bool:
    return isinstance(given, dict) and "file" in given


class TrainingSpec(Section):
    """
    Fit y = target(x) by ŷ = a + b · P3(c + d·x), minimising the sum (not the mean) of (ŷ − y)² by gradient descent.

    The default is the problem of the tutorial "Learning PyTorch with Examples: Defining new autograd functions":
    sin over [−π, π] at 2000 points, 2000 steps at learning rate 5e-6, float32.

    Raises
    ------
    pydantic.ValidationError
        A field is unknown, of the wrong type, or out of range. `from_toml` raises `InputError` instead.
    """

    data: Annotated[
        Annotated[Data, Tag("function")] | Annotated[FileData, Tag("file")],
        Discriminator(lambda given: "file" if isinstance(given, FileData) or _has_file(given) else "function"),
    ] = Field(Data(), description="The points to fit.")
    start: Start = Field(Start(), description="The coefficients before the first update.")
    optimizer: Optimizer = Field(Sgd(), description="The update rule.")
    schedule: Schedule = Field(Constant(), description="The learning rate over the steps.")
    batch_size: Annotated[int, Field(ge=1, le=10**12)] | None = Field(
        None, description="Points that a step sees; all where none is given."
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Of the order of batches, and of random starts.")
    steps: Annotated[int, Field(ge=1, le=10**12)] = Field(2000, description="Number of updates.")
    log_every: Annotated[int, Field(ge=1, le=10**12)] = Field(
        100, description="Report the loss once in this many steps."
    )
    trace: bool = Field(True, description="Keep gradients, updates and coefficients of every step with the result.")
    dtype: Literal["float32", "float64"] = Field("float32", description="Type of all arithmetic.")
    device: Literal["cpu", "gpu", "auto"] = Field("auto", description="Where to run; auto takes a GPU if there is one.")
    devices: Annotated[int, Field(ge=1, le=10**6)] = Field(
        1, description="Devices that share the points, each with a part of them; with PyTorch a process for each."
    )
    jit: bool = Field(True, description="Compile the training loop, or run it eagerly.")

    @model_validator(mode="before")
    @classmethod
    def _refused_optimizer(cls, given: Any) -> Any:
        optimizer = given.get("optimizer") if isinstance(given, dict) else None
        name = optimizer.get("name") if isinstance(optimizer, dict) else None
        plain = name.lower().replace("-", "") if isinstance(name, str) else ""
        if plain in REFUSED:
            raise ValueError(f"optimizer.name = {name!r} is not the same in both: {REFUSED[plain]}")
        return given

    @model_validator(mode="after")
    def _batch_of_points(self) -> Self:
        if self.batch_size is not None and isinstance(self.data, Data) and self.batch_size > self.data.points:
            raise ValueError(f"batch_size = {self.batch_size} is more than data.points = {self.data.points}")
        return self

    @model_validator(mode="after")
    def _schedule_of_steps(self) -> Self:
        match self.schedule:
            case WarmupCosine(warmup_steps=warmup) if warmup >= self.decay_steps:
                raise ValueError(
                    f"schedule.warmup_steps = {warmup} must be less than the {self.decay_steps} steps of the decay"
                )
            case OneCycle(warmup_fraction=fraction) if fraction * self.steps <= 1:
                raise ValueError(f"schedule.warmup_fraction = {fraction} of {self.steps} steps must be more than one")
        return self

    @property
    def decay_steps(self) -> int:
        """The step at which the schedule's decay ends; that after the last where it names no other."""
        return getattr(self.schedule, "decay_steps", None) or self.steps

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> Self:
        """Read a specification; a field that the file leaves out keeps its default. Raises `InputError`."""
        try:
            return cls.model_validate(tomllib.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise InputError(f"{path}: {describe(error, cls)}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: is not TOML: {error}") from error

    def to_toml(self, path: str | PathLike[str]) -> None:
        """Write every field that has a value, whatever becomes of the defaults. Raises `OSError`."""
        Path(path).write_text(self.to_toml_text(), encoding="utf-8")

    def to_toml_text(self) -> str:
        """The same as text."""
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def replace(self, changes: dict[str, Any]) -> Self:
        """A copy with the fields in `changes` (nested, like the TOML file) changed and all validated again."""
        return type(self).model_validate(merged(self.model_dump(), changes))

    def logged_steps(self) -> list[int]:
        """The steps, counted from 0, whose loss is reported: each log_every-th, as in the tutorial, and the last."""
        return [*range(self.log_every - 1, self.steps - 1, self.log_every), self.steps - 1]
