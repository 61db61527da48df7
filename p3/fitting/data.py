"""The points of a fit, made or read once for every framework."""

import csv
import hashlib
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64
from numpy.lib import format as npy_format

from p3.errors import InputError
from p3.fitting.spec import Data, FileData, TrainingSpec


class Points(NamedTuple):
    """What is fitted: y at x, both in the specification's dtype."""

    x: Float[np.ndarray, "points"]
    y: Float[np.ndarray, "points"]


def make_points(spec: TrainingSpec, rows: range | None = None) -> Points:
    """
    Evenly spaced x in [low, high] and y = target(x), or the columns of a file, in float64 rounded once to the dtype.

    All of them, or those whose numbers are in `rows`, without ever holding the others: the same numbers to the bit.

    The frameworks' own `linspace` and `sin` differ in the last bit at half of the tutorial's points, which is enough
    to part two float32 fits; so neither makes its own data.

    Raises
    ------
    InputError
        A point is not finite in the specification's dtype; or the file cannot be read, or is not of such points.
    """
    data = spec.data
    rows = range(sys.maxsize) if rows is None else rows
    with np.errstate(over="ignore", invalid="ignore"):
        if isinstance(data, FileData):
            count, (x, y) = read_points(data, rows)
        else:
            count = data.points
            x = evenly_spaced(data, rows[:count])
            y = getattr(np, data.target)(x)
        is_read = isinstance(data, FileData)  # and kept for who reads it next
        points = Points(x.astype(spec.dtype, copy=is_read), y.astype(spec.dtype, copy=is_read))
    finite = np.isfinite(points.x) & np.isfinite(points.y)
    if not finite.all():
        row = int(np.argmin(finite))
        if isinstance(data, FileData):
            raise InputError(f"{data.file}: row {rows[row] + 1} is too large for {spec.dtype}: {x[row]}, {y[row]}")
        raise InputError(
            f"data: {data.target} over [{data.low!r}, {data.high!r}] is not finite in {spec.dtype}; narrow the interval"
        )
    if spec.batch_size is not None and spec.batch_size > count:
        raise InputError(f"batch_size = {spec.batch_size} is more than the {count} points")
    return points


def count_points(spec: TrainingSpec) -> int:
    """How many points there are. Raises `InputError`."""
    return read_points(spec.data, range(0)).length if isinstance(spec.data, FileData) else spec.data.points


def make_shard(spec: TrainingSpec, device: int) -> dict[str, np.ndarray]:
    """
    The points of one of the devices that share them: x and y, and which of all the points these are.

    The points are cut into parts of one length. What the last parts lack of it is filled up, so that all devices run
    the same program; "count" says how many of a part are points, where not all parts are whole. The steps of batches
    know the points by their numbers; for these "first" says the number of the first.

    Raises
    ------
    InputError
        As `make_points`.
    """
    if spec.devices == 1:
        return make_points(spec)._asdict()
    points = count_points(spec)
    size = -(-points // spec.devices)
    first = min(device * size, points)
    own = make_points(spec, range(first, min(first + size, points)))
    missing = size - len(own.x)
    shard = {name: np.pad(array, (0, missing)) if missing else array for name, array in own._asdict().items()}
    if spec.batch_size is not None:
        shard["first"] = np.array([first])
    if spec.batch_size is not None or size * spec.devices > points:
        shard["count"] = np.array([len(own.x)])
    return shard


def evenly_spaced(data: Data, rows: range) -> Float64[np.ndarray, "rows"]:
    """What `numpy.linspace` gives at these places."""
    x = np.arange(rows.start, rows.stop, dtype=np.float64)
    intervals, width = data.points - 1, data.high - data.low
    if width / intervals:
        x *= width / intervals
    else:  # too small a number
        x /= intervals
        x *= width
    x += data.low
    if intervals in rows:
        x[-1] = data.high
    return x


class FilePoints(NamedTuple):
    """How many points a file has, and some of them."""

    length: int
    points: Points


def read_points(data: FileData, rows: range) -> FilePoints:
    """
    Two columns of a CSV file with a header, of an .npz file, or of a Parquet file, in float64, of these rows.

    Raises
    ------
    InputError
        There is no such file or column; the file is damaged, or has more or fewer rows than its header says; a row has
        no two finite numbers; or there are not two rows.
    """
    path = Path(data.file)
    try:
        return _read(path, data.x, data.y, rows, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or _first_line(error)}") from error


def digest_of_points(spec: TrainingSpec) -> str:
    """SHA-256 of the file that they are in; "" where the specification says what they are. Raises `InputError`."""
    if not isinstance(spec.data, FileData):
        return ""
    path = Path(spec.data.file)
    try:
        return _digest(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


@lru_cache(maxsize=8)
def _digest(path: Path, _written: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=8)
def _read(path: Path, x: str, y: str, rows: range, _written: int) -> FilePoints:
    read = READERS.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path}: is not of a known kind; give one that ends in {', '.join(READERS)}")
    columns = read(path, (x, y), rows)
    count, other = (column.length for column in columns)
    if count != other:
        raise InputError(f"{path}: {x} has {count} rows and {y} has {other}; they must have as many")
    if count < 2:
        raise InputError(f"{path}: has {count} row{'s' * (count != 1)} of points; a fit needs 2 at least")
    for name, column in zip((x, y), columns, strict=True):
        finite = np.isfinite(column.values)
        if not finite.all():
            row = int(np.argmin(finite))
            given = float(column.values[row])
            raise InputError(f"{path}: row {rows[row] + 1} of {name} is {given}; it must be a finite number")
        column.values.setflags(write=False)
    return FilePoints(count, Points(*(column.values for column in columns)))


class _Column(NamedTuple):
    """How many rows a column has, and some of them."""

    length: int
    values: Float64[np.ndarray, "rows"]


def _read_csv(path: Path, names: tuple[str, str], rows: range) -> tuple[_Column, ...]:
    count = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)  # a quote that is never closed would swallow the rows after it
            header = list(reader.fieldnames or ())
            _require(path, names, header)
            for name in names:
                if header.count(name) > 1:
                    raise InputError(f"{path}: has {header.count(name)} columns {name!r}; give each a name of its own")
            columns: tuple[list[float], ...] = ([], [])
            for row, values in enumerate(reader):
                count += 1
                if None in values:
                    raise InputError(f"{path}: row {row + 1} has more than the {len(header)} fields of the header")
                if row in rows:
                    for name, column in zip(names, columns, strict=True):
                        column.append(_number(path, row, name, values[name]))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not CSV: {error}") from error
    return tuple(_Column(count, np.array(column, np.float64)) for column in columns)


def _number(path: Path, row: int, name: str, text: str | None) -> float:
    try:
        if text and "_" in text:  # which float would leave out
            raise ValueError
        return float(text or "")
    except ValueError:
        said = "missing" if not text else repr(text)
        raise InputError(f"{path}: row {row + 1} of {name} is {said}; it must be a number") from None


def _read_npz(path: Path, names: tuple[str, str], rows: range) -> tuple[_Column, ...]:
    try:
        with zipfile.ZipFile(path) as archive:
            _require(path, names, [member.removesuffix(".npy") for member in archive.namelist()])
            columns = []
            for name in names:
                with archive.open(f"{name}.npy") as file:  # `numpy.load` would hold it whole
                    columns.append(_read_npy(path, name, file, rows))
            return tuple(columns)
    except (OSError, InputError, MemoryError):
        raise
    except Exception as error:  # zipfile's and NumPy's own kinds
        raise InputError(f"{path}: cannot be read as an .npz file: {_first_line(error)}") from error


def _read_npy(path: Path, name: str, file: IO[bytes], rows: range) -> _Column:
    """Some rows of a column. It is read to its end: only there zipfile checks its CRC, and its header may be wrong."""
    version = npy_format.read_magic(file)
    if version not in HEADERS:  # NumPy writes others for structured types alone
        raise InputError(f"{path}: {name} is of .npy format {version}; it must be a column of numbers")
    shape, _, dtype = HEADERS[version](file)
    _require_column(path, name, shape, dtype)
    length, size = shape[0], dtype.itemsize
    first, stop = (min(end, max(length, 0)) for end in (rows.start, rows.stop))
    before = sum(map(len, _blocks(file, first * size)))
    own = b"".join(_blocks(file, (stop - first) * size))
    after = sum(map(len, _blocks(file, (length - stop) * size + 1)))  # one more, which must not be there
    there = before + len(own) + after
    if there > length * size:
        raise InputError(f"{path}: holds more rows of {name} than the {length} of its header; write the file again")
    _require_rows(path, name, there // size, length)
    return _Column(length, np.array(np.frombuffer(own, dtype), np.float64))


def _blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    """The next `size` bytes, piece by piece, as far as the file goes."""
    while size > 0 and (block := file.read(min(size, 2**20))):
        yield block
        size -= len(block)


def _read_parquet(path: Path, names: tuple[str, str], rows: range) -> tuple[_Column, ...]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise InputError(f'{path}: needs pyarrow; install it with: pip install "pyarrow>=17"') from None
    try:
        file = parquet.ParquetFile(path, page_checksum_verification=True)  # where there are checksums
        _require(path, names, file.schema_arrow.names)
        parts: tuple[list[np.ndarray], ...] = ([np.empty(0)], [np.empty(0)])
        first = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if first < rows.stop and rows.start < first + count:
                table = file.read_row_group(group, columns=list(dict.fromkeys(names)))
                for name, part in zip(names, parts, strict=True):
                    values = table[name].to_numpy()
                    _require_column(path, name, values.shape, values.dtype)
                    _require_rows(path, f"{name} in row group {group}", len(values), count)
                    part.append(values[max(rows.start - first, 0) : rows.stop - first].astype(np.float64))
            first += count
    except ArrowException as error:
        raise InputError(f"{path}: is not a Parquet file: {_first_line(error)}") from error
    for name in names:
        _require_rows(path, name, first, file.metadata.num_rows)
    return tuple(_Column(first, np.concatenate(part)) for part in parts)


def _first_line(error: Exception) -> str:
    """What an error says, which pyarrow and NumPy say in several lines; its kind where it says nothing."""
    return str(error).partition("\n")[0] or type(error).__name__


def _require_column(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 1 or dtype.kind not in "fiu":
        raise InputError(f"{path}: {name} is {dtype} of shape {shape}; it must be a column of numbers")


def _require_rows(path: Path, what: str, there: int, said: int) -> None:
    if there != said:
        raise InputError(f"{path}: holds {there} rows of {what}, and its header says {said}; write the file again")


def _require(path: Path, names: tuple[str, str], there: list[str]) -> None:
    for name in names:
        if name not in there:
            raise InputError(f"{path}: has no column {name!r}; there are {', '.join(map(repr, there)) or 'none'}")


HEADERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}
READERS: dict[str, Callable[[Path, tuple[str, str], range], tuple[_Column, ...]]] = {
    ".csv": _read_csv,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}
