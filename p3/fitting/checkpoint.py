"""Checkpoints: a training run, piece by piece, in files that either framework can go on from."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from p3.errors import InputError
from p3.fitting.data import digest_of_points
from p3.fitting.section import describe, first_difference
from p3.fitting.spec import TrainingSpec

FORMAT = "p3 training piece, 2"
RUN_FORMAT = "p3 training run, 1"
ANYWHERE = ("device", "devices", "jit")  # fields of the specification that may change where a run goes on


class Saved(NamedTuple):
    """A run as far as it is saved: the steps that are done, what came of them, and what was recorded of each."""

    steps: int
    coefficients: dict[str, float]
    state: dict[str, dict[str, float]]
    record: dict[str, Float64[np.ndarray, "steps *coefficients"]]


class Checkpoint:
    """
    A directory with a file for each piece of a run, named by the steps that are done after it.

    A file holds the piece's record, the coefficients and the optimizer's state after it in the run's own dtype, the
    specification, and a digest of it all. It is written beside its place and moved there whole, so that a run killed at
    any moment leaves every piece that was done, and no other.

    Before its first piece, a run saves its specification in a file of its own, specification.json, so that a run that
    is killed with no piece done resumes as what it was. Runs of earlier versions have no such file.

    Raises
    ------
    InputError
        The directory cannot be used; or it holds a run already, and `resume` is not asked for; or it holds no run, and
        `resume` is asked for; or that run is of another specification, or a file of it is not whole.
    """

    def __init__(self, directory: str | PathLike[str], resume: bool = False) -> None:
        """The directory is made if need be."""
        self.directory = Path(directory)
        self.beginning = self.directory / "specification.json"
        if resume and not (self.beginning.is_file() or self.paths()):
            raise InputError(
                f"{directory}: there is no run to resume; give the directory of one, or leave out --resume"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{directory}: cannot be used for checkpoints: {error.strerror}") from error
        if self.paths() and not resume:
            raise InputError(
                f"{directory}: holds a run of {int(self.paths()[-1].stem)} steps; resume it, or give another directory"
            )
        if self.beginning.exists() and not resume:
            raise InputError(
                f"{directory}: holds a run that has begun and has saved no step; resume it, or give another directory"
            )

    def paths(self) -> list[Path]:
        """The files of the pieces, in order."""
        return sorted(path for path in self.directory.glob("*.safetensors") if path.stem.isdecimal())

    def specification(self) -> TrainingSpec | None:
        """The specification of the run that is there, if there is one."""
        if self.beginning.is_file():
            return _read_beginning(self.beginning)[0]
        paths = self.paths()
        return _read(paths[-1])[0] if paths else None

    def begin(self, spec: TrainingSpec) -> None:
        """Save the specification of a run that begins here; a run that goes on has saved it. Raises `InputError`."""
        if self.beginning.is_file() or self.paths():
            return
        about = {"format": RUN_FORMAT, "specification": spec.model_dump(mode="json"), "points": digest_of_points(spec)}
        content = json.dumps(about | {"digest": _digest_of_beginning(about)}, indent=2) + "\n"
        try:
            self._put(self.beginning, content.encode())
        except OSError as error:
            raise InputError(f"{self.directory}: cannot be used for checkpoints: {error.strerror}") from error

    def write(
        self,
        spec: TrainingSpec,
        first: int,
        coefficients: Mapping[str, float],
        state: Mapping[str, Mapping[str, float]],
        record: Mapping[str, np.ndarray],
    ) -> None:
        """Save a piece that began with step `first`. Raises `OSError`."""
        arrays = {"coefficients": np.array(list(coefficients.values()), spec.dtype)}
        arrays |= {f"state.{name}": np.array(list(values.values()), spec.dtype) for name, values in state.items()}
        # safetensors writes what lies in memory, whatever the strides.
        arrays |= {f"record.{name}": np.ascontiguousarray(values, spec.dtype) for name, values in record.items()}
        about = {
            "format": FORMAT,
            "first": str(first),
            "specification": spec.model_dump_json(),
            "points": digest_of_points(spec),
        }
        content = save(arrays, about | {"digest": _digest(arrays, about)})
        end = first + len(record["losses"])
        self._put(self.directory / f"{end:012}.safetensors", content)

    def _put(self, path: Path, content: bytes) -> None:
        """Write a file beside its place and move it there whole. Raises `OSError`."""
        with tempfile.NamedTemporaryFile(dir=self.directory, prefix=".", suffix=".part", delete=False) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(file.name, path)

    def read(self, spec: TrainingSpec) -> Saved | None:
        """The pieces that are there, of a run that must be of this specification; None if there are none."""
        if self.beginning.is_file():
            _require_same(self.beginning, *_read_beginning(self.beginning), spec)
        done, pieces = 0, []
        for path in self.paths():
            of_file, first, points, arrays = _read(path)
            _require_same(path, of_file, points, spec)
            if first != done:
                raise InputError(f"{path}: begins with step {first}, and the piece before it is not there")
            done = first + len(arrays["record.losses"])
            if done != int(path.stem):
                raise InputError(f"{path}: ends with step {done}, and has another name; give it its own again")
            pieces.append(arrays)
        if not pieces:
            return None
        last = pieces[-1]
        return Saved(
            done,
            _by_name(last["coefficients"]),
            {name.removeprefix("state."): _by_name(last[name]) for name in last if name.startswith("state.")},
            {
                name.removeprefix("record."): np.concatenate([piece[name] for piece in pieces]).astype(np.float64)
                for name in last
                if name.startswith("record.")
            },
        )


def _require_same(path: Path, of_file: TrainingSpec, points: str, spec: TrainingSpec) -> None:
    """Raise `InputError` if a file is of another specification than `spec`, or of other points than its file has."""
    difference = first_difference(of_file, spec, ignoring=ANYWHERE)
    if difference is not None:
        field, there, here = difference
        raise InputError(f"{path}: is of another run: {field} is {there} there and {here} here")
    if points != digest_of_points(spec):
        raise InputError(f"{path}: is of other points than {getattr(spec.data, 'file', 'there are')} has now")


def _by_name(values: np.ndarray) -> dict[str, float]:
    return dict(zip("abcd", values.tolist(), strict=True))


def _digest(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> str:
    """Of every name, number and word."""
    digest = hashlib.sha256()
    for part in _parts(arrays, about):
        digest.update(len(part).to_bytes(8) + part)
    return digest.hexdigest()


def _parts(arrays: Mapping[str, np.ndarray], about: Mapping[str, str]) -> Iterator[bytes]:
    for name in sorted(about):
        yield from (name.encode(), about[name].encode())
    for name in sorted(arrays):
        yield from (name.encode(), str((arrays[name].dtype, arrays[name].shape)).encode(), arrays[name].tobytes())


def _read(path: Path) -> tuple[TrainingSpec, int, str, dict[str, np.ndarray]]:
    """The specification, the first step, the points' digest and the arrays of a file. Raises `InputError`."""
    try:
        with safe_open(path, framework="numpy") as file:
            about: dict[str, Any] = file.metadata() or {}
            ours = about.get("format") == FORMAT  # others may have types that NumPy has not
            arrays = {name: file.get_tensor(name) for name in file.keys() if ours}  # noqa: SIM118  not a dict
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: is not a whole checkpoint: {error}; remove it to resume from the one before"
        ) from error
    if not ours and about.get("format", "").startswith(FORMAT.partition(",")[0]):
        raise InputError(f"{path}: is of another version of p3; resume it with that one, or give another directory")
    if not ours:
        raise InputError(f"{path}: is no checkpoint of a fit; give a directory of its own to --checkpoint")
    digest = about.pop("digest", "")
    if digest != _digest(arrays, about):
        raise InputError(f"{path}: was changed after it was written; remove it to resume from the one before")
    try:
        spec = TrainingSpec.model_validate_json(about["specification"])
    except ValidationError as error:
        raise InputError(f"{path}: is of another version: {describe(error, TrainingSpec)}") from error
    return spec, int(about["first"]), about["points"], arrays


def _digest_of_beginning(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _read_beginning(path: Path) -> tuple[TrainingSpec, str]:
    """The specification of a run that has begun, and the points' digest. Raises `InputError`."""
    otherwise = "remove it to resume from the pieces that are saved, or give another directory"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not a whole specification of a run: {error}; {otherwise}") from error
    tag = about.get("format") if isinstance(about, dict) else None
    if not str(tag).startswith(RUN_FORMAT.partition(",")[0]):
        raise InputError(f"{path}: is not the specification of a run; give a directory of its own to --checkpoint")
    if tag != RUN_FORMAT:
        raise InputError(f"{path}: is of another version of p3; resume it with that one, or give another directory")
    digest = about.pop("digest", "")
    if digest != _digest_of_beginning(about):
        raise InputError(f"{path}: was changed after it was written; {otherwise}")
    try:
        spec = TrainingSpec.model_validate_json(json.dumps(about.get("specification")))
    except ValidationError as error:
        raise InputError(f"{path}: is of another version: {describe(error, TrainingSpec)}; {otherwise}") from error
    return spec, str(about.get("points"))
