"""The points of a fit, made or read once for every framework."""

import csv
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from p3.errors import InputError
from p3.spec import FileData, TrainingSpec


class Points(NamedTuple):
    """What is fitted: y at x, both in the specification's dtype."""

    x: Float[np.ndarray, "points"]
    y: Float[np.ndarray, "points"]


def make_points(spec: TrainingSpec) -> Points:
    """
    Evenly spaced x in [low, high] and y = target(x), or the columns of a file, in float64 rounded once to the dtype.

    The frameworks' own `linspace` and `sin` differ in the last bit at half of the tutorial's points, which is enough
    to part two float32 fits; so neither makes its own data.

    Raises
    ------
    InputError
        A point is not finite in the specification's dtype; or the file cannot be read, or is not of such points.
    """
    data = spec.data
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(data, FileData):
            x, y = read_points(data)
        else:
            x = np.linspace(data.low, data.high, data.points)
            y = getattr(np, data.target)(x)
        points = Points(x.astype(spec.dtype), y.astype(spec.dtype))
    finite = np.isfinite(points.x) & np.isfinite(points.y)
    if not finite.all():
        row = int(np.argmin(finite))
        if isinstance(data, FileData):
            raise InputError(f"{data.file}: row {row + 1} is too large for {spec.dtype}: {x[row]}, {y[row]}")
        raise InputError(
            f"data: {data.target} over [{data.low!r}, {data.high!r}] is not finite in {spec.dtype}; narrow the interval"
        )
    if spec.batch_size is not None and spec.batch_size > len(x):
        raise InputError(f"batch_size = {spec.batch_size} is more than the {len(x)} points")
    return points


def count_points(spec: TrainingSpec) -> int:
    """How many points there are. Raises `InputError`."""
    return len(read_points(spec.data).x) if isinstance(spec.data, FileData) else spec.data.points


def read_points(data: FileData) -> Points:
    """
    Two columns of a CSV file with a header, of an .npz file, or of a Parquet file, in float64.

    Raises
    ------
    InputError
        There is no such file or column; a row has no two finite numbers; or there are not two rows.
    """
    path = Path(data.file)
    try:
        return _read(path, data.x, data.y, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=4)
def _read(path: Path, x: str, y: str, _written: int) -> Points:
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path}: is not of a known kind; give one that ends in {', '.join(READERS)}")
    columns = read(path, (x, y))
    lengths = [len(column) for column in columns]
    if lengths[0] != lengths[1]:
        raise InputError(f"{path}: {x} has {lengths[0]} rows and {y} has {lengths[1]}; they must have as many")
    if lengths[0] < 2:
        raise InputError(f"{path}: has {lengths[0]} row{'s' * (lengths[0] != 1)} of points; a fit needs 2 at least")
    for name, column in zip((x, y), columns, strict=True):
        if not np.isfinite(column).all():
            row = int(np.argmin(np.isfinite(column)))
            raise InputError(f"{path}: row {row + 1} of {name} is {float(column[row])}; it must be a finite number")
        column.setflags(write=False)
    return Points(*columns)


def _read_csv(path: Path, names: tuple[str, str]) -> tuple[Float64[np.ndarray, "rows"], ...]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or ())
            _require(path, names, header)
            for name in names:
                if header.count(name) > 1:
                    raise InputError(f"{path}: has {header.count(name)} columns {name!r}; give each a name of its own")
            columns: tuple[list[float], ...] = ([], [])
            for row, values in enumerate(reader):
                if None in values:
                    raise InputError(f"{path}: row {row + 1} has more than the {len(header)} fields of the header")
                for name, column in zip(names, columns, strict=True):
                    column.append(_number(path, row, name, values[name]))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not CSV: {error}") from error
    return tuple(np.array(column, np.float64) for column in columns)


def _number(path: Path, row: int, name: str, text: str | None) -> float:
    try:
        if text and "_" in text:  # which float would leave out
            raise ValueError
        return float(text or "")
    except ValueError:
        said = "missing" if not text else repr(text)
        raise InputError(f"{path}: row {row + 1} of {name} is {said}; it must be a number") from None


def _read_npz(path: Path, names: tuple[str, str]) -> tuple[Float64[np.ndarray, "rows"], ...]:
    try:
        with zipfile.ZipFile(path):  # not an .npy under another name
            pass
        with np.load(path, allow_pickle=False) as file:
            _require(path, names, list(file))
            return tuple(_column(path, name, file[name]) for name in names)
    except OSError:
        raise
    except InputError:
        raise
    except Exception as error:  # zipfile's and NumPy's own kinds
        raise InputError(f"{path}: cannot be read as an .npz file: {error}") from error


def _read_parquet(path: Path, names: tuple[str, str]) -> tuple[Float64[np.ndarray, "rows"], ...]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise InputError(f'{path}: needs pyarrow; install it with: pip install "pyarrow>=17"') from None
    try:
        _require(path, names, parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=list(dict.fromkeys(names)))
    except ArrowException as error:
        raise InputError(f"{path}: is not a Parquet file: {error}") from error
    return tuple(_column(path, name, table[name].to_numpy()) for name in names)


def _column(path: Path, name: str, values: np.ndarray) -> Float64[np.ndarray, "rows"]:
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise InputError(f"{path}: {name} is {values.dtype} of shape {values.shape}; it must be a column of numbers")
    return np.array(values, np.float64)


def _require(path: Path, names: tuple[str, str], there: list[str]) -> None:
    for name in names:
        if name not in there:
            raise InputError(f"{path}: has no column {name!r}; there are {', '.join(map(repr, there)) or 'none'}")


READERS: dict[str, Callable[[Path, tuple[str, str]], tuple[Float64[np.ndarray, "rows"], ...]]] = {
    ".csv": _read_csv,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}
