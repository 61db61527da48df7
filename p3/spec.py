"""The training specification: everything that decides a fit, and nothing about a framework."""

import tomllib
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from p3.errors import InputError

Target = Literal["sin", "cos", "exp", "tanh", "arctan", "cbrt"]


class _Section(BaseModel):
    """Frozen, so that a result can keep its specification; strict, so that `steps = "2000"` is refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True)


class Data(_Section):
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


class Start(_Section):
    """The coefficients before the first update."""

    a: FiniteFloat = Field(0.0, description="Offset of the prediction.")
    b: FiniteFloat = Field(-1.0, description="Factor of the prediction.")
    c: FiniteFloat = Field(0.0, description="Offset inside P3.")
    d: FiniteFloat = Field(0.3, description="Factor of x inside P3.")


class Optimizer(_Section):
    """The update rule and its hyperparameters."""

    name: Literal["sgd"] = Field("sgd", description="Update rule; sgd is coefficient -= learning_rate * gradient.")
    learning_rate: Annotated[FiniteFloat, Field(gt=0)] = Field(5e-6, description="Size of a step.")


class TrainingSpec(_Section):
    """
    Fit y = target(x) by ŷ = a + b · P3(c + d·x), minimising the sum (not the mean) of (ŷ − y)² by gradient descent.

    The default is the problem of the tutorial "Learning PyTorch with Examples: Defining new autograd functions":
    sin over [−π, π] at 2000 points, 2000 steps at learning rate 5e-6, float32.

    Raises
    ------
    pydantic.ValidationError
        A field is unknown, of the wrong type, or out of range. `from_toml` raises `InputError` instead.
    """

    data: Data = Field(Data(), description="The points to fit.")
    start: Start = Field(Start(), description="The coefficients before the first update.")
    optimizer: Optimizer = Field(Optimizer(), description="The update rule.")
    steps: Annotated[int, Field(ge=1, le=10**12)] = Field(2000, description="Number of updates.")
    log_every: Annotated[int, Field(ge=1, le=10**12)] = Field(
        100, description="Report the loss once in this many steps."
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="Type of all arithmetic.")
    device: Literal["cpu", "gpu", "auto"] = Field("auto", description="Where to run; auto takes a GPU if there is one.")
    jit: bool = Field(True, description="Compile the training loop, or run it eagerly.")

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
        """Write every field, so that the file still says the same when a default changes. Raises `OSError`."""
        Path(path).write_text(tomli_w.dumps(self.model_dump()), encoding="utf-8")

    def replace(self, changes: dict[str, Any]) -> Self:
        """A copy with the fields in `changes` (nested, like the TOML file) changed and all validated again."""
        return type(self).model_validate(_merged(self.model_dump(), changes))

    def logged_steps(self) -> list[int]:
        """The steps, counted from 0, whose loss is reported: each log_every-th, as in the tutorial, and the last."""
        return [*range(self.log_every - 1, self.steps - 1, self.log_every), self.steps - 1]


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return fields | {
        name: _merged(fields[name], value) if isinstance(value, dict) and isinstance(fields.get(name), dict) else value
        for name, value in changes.items()
    }


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """A validation error of `model` on one line: the field, the value given, and what is allowed."""
    first, *others = error.errors(include_url=False)
    field = ".".join(str(part) for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            message = (
                f"{field} is not a field; allowed here: {', '.join(_table(model, first['loc'][:-1]).model_fields)}"
            )
        case "model_type":
            allowed = ", ".join(_table(model, first["loc"]).model_fields)
            message = f"{field} = {first['input']!r}: it must be a table with {allowed}"
        case "value_error":
            message = f"{field}: {first['ctx']['error']}".removeprefix(": ")
        case "missing":
            message = f"{field} is missing"
        case _:
            message = f"{field} = {first['input']!r}: {first['msg'].replace('Input should be', 'it must be')}"
    return message + (f" (and {len(others)} more)" if others else "")


def _table(model: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    """The model of the table at a path of field names."""
    for name in path:
        table = model.model_fields[str(name)].annotation
        assert isinstance(table, type)
        model = table
    return model
