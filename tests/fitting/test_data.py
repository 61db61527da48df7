"""The points: made in float64, and rounded once."""

import io
import os
import struct
import tracemalloc
import zipfile

import mpmath
import numpy as np
import pyarrow
import pytest
from numpy.lib import format as npy_format
from pyarrow import parquet
from pydantic import ValidationError

from p3 import InputError, TrainingSpec
from p3.backends import load
from p3.fitting.data import count_points, evenly_spaced, make_points
from p3.fitting.section import describe
from p3.fitting.spec import FileData
from p3.fitting.training import batches
from tests.support.problems import PROBLEMS


def test_lower_precision_is_the_float64_points_rounded_once(problem):
    single = make_points(problem.replace({"dtype": "float32"}))
    double = make_points(problem.replace({"dtype": "float64"}))
    assert single.x.dtype == single.y.dtype == np.float32
    assert double.x.dtype == double.y.dtype == np.float64
    np.testing.assert_array_equal(single.x, double.x.astype(np.float32))
    np.testing.assert_array_equal(single.y, double.y.astype(np.float32))
    # Which is not what the target of the rounded x is: the test above can fail.
    assert (single.y != getattr(np, problem.data.target)(single.x)).any()


@pytest.mark.parametrize("target", ["sin", "cos", "exp", "tanh", "arctan", "cbrt"])
def test_each_target_is_the_function_of_its_name(target):
    points = make_points(TrainingSpec(dtype="float64").replace({"data": {"target": target, "points": 41, "low": -2.0}}))
    true = {"arctan": mpmath.atan, "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x))}.get(target)
    true = true or getattr(mpmath, target)
    np.testing.assert_allclose(points.y, [float(true(mpmath.mpf(float(x)))) for x in points.x], rtol=4e-16, atol=1e-16)


def test_the_ends_are_low_and_high():
    x = make_points(PROBLEMS["asymmetric"].replace({"dtype": "float64"})).x
    assert (x[0], x[-1], len(x)) == (-2.0, 1.0, 1500)
    np.testing.assert_allclose(np.diff(x), 3 / 1499, rtol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-np.pi, np.pi), (0.1, 0.7), (-5e-324, 5e-324)])
@pytest.mark.parametrize("count", [2, 3, 1501])
def test_a_part_is_of_numpys_linspace_to_the_bit(low, high, count):
    whole = np.linspace(low, high, count)
    data = TrainingSpec().replace({"data": {"points": count, "low": low, "high": high}}).data
    for rows in (range(count), range(1, count), range(count - 1), range(count // 2, count // 2)):
        assert evenly_spaced(data, rows).tobytes() == whole[rows.start : rows.stop].tobytes()


# --- one's own


FROM = np.linspace(-2, 1, 40)


def file_spec(path, **changes):
    return TrainingSpec().replace(
        {"data": {"file": str(path), **changes.pop("columns", {})}, "steps": 20, "jit": False, **changes}
    )


@pytest.fixture(params=["csv", "npz", "parquet"])
def path(request, tmp_path):
    """exp at 40 points, in each kind of file, among other columns."""
    path = tmp_path / f"points.{request.param}"
    x, y = FROM, np.exp(FROM)
    if request.param == "csv":
        rows = "".join(f"{a!r},{i},{b!r}\n" for i, (a, b) in enumerate(zip(x.tolist(), y.tolist(), strict=True)))
        path.write_text("\ufefftime,number,y\n" + rows, encoding="utf-8")
    elif request.param == "npz":
        np.savez(path, number=np.arange(40), time=x, y=y)
    else:
        parquet.write_table(pyarrow.table({"number": np.arange(40), "time": x, "y": y}), path)
    return path


@pytest.mark.parametrize("rows", [range(40), range(7, 19), range(39, 40), range(5, 5), range(30, 50)])
def test_a_part_of_a_file(path, rows):
    spec = file_spec(path, columns={"x": "time"}, dtype="float64")
    assert count_points(spec) == 40
    part = make_points(spec, rows)
    assert part.x.tolist() == FROM[rows.start : rows.stop].tolist()
    assert part.y.tolist() == np.exp(FROM)[rows.start : rows.stop].tolist()


def test_a_part_of_a_parquet_file_is_read_from_its_groups_of_rows_alone(tmp_path, monkeypatch):
    parquet.write_table(pyarrow.table({"x": FROM, "y": np.exp(FROM)}), tmp_path / "points.parquet", row_group_size=8)
    read, groups = parquet.ParquetFile.read_row_group, []
    monkeypatch.setattr(
        parquet.ParquetFile, "read_row_group", lambda file, group, **of: groups.append(group) or read(file, group, **of)
    )
    part = make_points(file_spec(tmp_path / "points.parquet", dtype="float64"), range(10, 25))
    assert part.x.tolist() == FROM[10:25].tolist()
    assert groups == [1, 2, 3]


def test_a_part_of_an_npz_file_is_all_that_is_held(tmp_path):
    count = 8 * 10**6
    np.savez(tmp_path / "points.npz", x=np.arange(count), y=np.arange(count))
    tracemalloc.start()
    part = make_points(file_spec(tmp_path / "points.npz", dtype="float64"), range(count - 10, count))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert part.y.tolist() == list(range(count - 10, count))
    assert most < 8 * count  # bytes of one column; it is passed over in pieces of 16 MiB


def test_a_number_that_is_none_is_told_by_its_row_in_the_whole_file(path):
    spec = file_spec(path, columns={"x": "time"})
    path.write_text("time,y\n0,0\n1,1\n2,nan\n", encoding="utf-8") if path.suffix == ".csv" else (
        np.savez(path, time=np.arange(3.0), y=[0, 1, np.nan])
        if path.suffix == ".npz"
        else parquet.write_table(pyarrow.table({"time": np.arange(3.0), "y": [0, 1, np.nan]}), path)
    )
    with pytest.raises(InputError, match="row 3 of y is nan; it must be a finite number"):
        make_points(spec, range(2, 3))
    assert make_points(spec, range(2)).y.tolist() == [0, 1]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_files_points_are_fitted_as_they_are(path, backend):
    spec = file_spec(path, columns={"x": "time"}, dtype="float64")
    points = make_points(spec)
    assert points.x.tolist() == FROM.tolist()
    assert points.y.tolist() == np.exp(FROM).tolist()
    same = TrainingSpec().replace(
        {
            "data": {"points": 40, "low": -2.0, "high": 1.0, "target": "exp"},
            "steps": 20,
            "jit": False,
            "dtype": "float64",
        }
    )
    assert load(backend).fit(spec).coefficients == load(backend).fit(same).coefficients


def test_a_files_points_come_in_batches(path):
    spec = file_spec(path, columns={"x": "time"}, batch_size=7)
    assert set(batches(spec, 0, 5).ravel()) <= set(range(40))
    assert load("torch").fit(spec).losses.shape == (20,)
    with pytest.raises(InputError, match="batch_size = 41 is more than the 40 points"):
        make_points(spec.replace({"batch_size": 41}))


def test_a_file_that_changes_is_read_again(tmp_path):
    path = tmp_path / "points.csv"
    for last in ("4", "5"):
        path.write_text(f"x,y\n1,2\n3,{last}\n", encoding="utf-8")
        os.utime(path, ns=(int(last), int(last)))
        assert make_points(file_spec(path)).y.tolist() == [2, float(last)]


REFUSED = {
    "no file": (None, r"points\.csv: cannot be read: No such file or directory"),
    "empty": ("", "has no column 'x'; there are none"),
    "no column": ("x,z\n1,2\n", "has no column 'y'; there are 'x', 'z'"),
    "text": ("x,y\n1,2\n3,four\n", "row 2 of y is 'four'; it must be a number"),
    "a hole": ("x,y\n1,2\n,4\n", "row 2 of x is missing; it must be a number"),
    "a short row": ("x,y\n1,2\n3\n", "row 2 of y is missing; it must be a number"),
    "NaN": ("x,y\n1,2\n3,4\n5,nan\n", "row 3 of y is nan; it must be a finite number"),
    "infinity": ("x,y\n1,2\n-inf,4\n", "row 2 of x is -inf; it must be a finite number"),
    "too large": ("x,y\n1,2\n3,1e300\n", r"row 2 is too large for float32: 3\.0, 1e\+300"),
    "an underscore": ("x,y\n1,2\n1_0,4\n", "row 2 of x is '1_0'; it must be a number"),
    "two columns of a name": ("x,y,y\n1,2,3\n", "has 2 columns 'y'; give each a name of its own"),
    "decimal commas": ("x,y\n0,5,1,5\n", "row 1 has more than the 2 fields of the header"),
    "one point": ("x,y\n1,2\n", "has 1 row of points; a fit needs 2 at least"),
    "no point": ("x,y\n", "has 0 rows of points; a fit needs 2 at least"),
    "an open quote": ('x,y,note\n1,2,\n3,4,"cut\n5,6,\n', "is not CSV: unexpected end of data"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_bad_file_is_refused_with_its_row(what, tmp_path):
    text, says = REFUSED[what]
    if text is not None:
        (tmp_path / "points.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=says) as caught:
        make_points(file_spec(tmp_path / "points.csv"))
    assert "\n" not in str(caught.value)


def test_other_bad_files(tmp_path):
    for name, write, says in (
        (
            "points.npz",
            lambda p: np.savez(p, x=np.ones(3), y=np.ones(4)),
            "x has 3 rows and y has 4; they must have as",
        ),
        ("points.npz", lambda p: np.savez(p, x=np.ones((3, 2)), y=np.ones(3)), r"x is float64 of shape \(3, 2\)"),
        (
            "points.npz",
            lambda p: p.write_bytes(b"\x93NUMPY" + bytes(99)),
            "cannot be read as an .npz file: File is not a z",
        ),
        (
            "points.npz",
            lambda p: np.savez(p, x=np.ones(3, bool), y=np.ones(3)),
            r"x is bool of shape \(3,\); it must be",
        ),
        ("points.npz", lambda p: np.savez(p, x=np.array(["a"]), y=np.ones(1)), r"x is <U1 of shape \(1,\)"),
        ("points.npz", lambda p: p.write_bytes(b"no zip"), "cannot be read as an .npz file: File is not a zip file"),
        ("points.parquet", lambda p: p.write_bytes(b"no parquet"), "is not a Parquet file"),
        ("points.csv", lambda p: p.write_bytes(b"x,y\n\xff,2\n"), "is not CSV"),
        ("points.xls", lambda p: p.write_bytes(b""), "give one that ends in .csv, .npz, .parquet"),
        ("points.csv", lambda p: p.mkdir(), "cannot be read: Is a directory"),
    ):
        directory = tmp_path / name.replace(".", "") / str(abs(hash(says)))
        directory.mkdir(parents=True)
        write(directory / name)
        with pytest.raises(InputError, match=says) as caught:
            make_points(file_spec(directory / name))
        assert "\n" not in str(caught.value)


# --- a file whose header says something else than the file holds

PARTS = [None, range(3, 9), range(0)]


def npy(numbers, shape=None, **changes):
    """The bytes of an .npy member with any header."""
    header = {"descr": numbers.dtype.str, "fortran_order": False, "shape": shape or numbers.shape, **changes}
    file = io.BytesIO()
    npy_format.write_array_header_1_0(file, header)
    return file.getvalue() + numbers.tobytes()


def write_npz(path, compression=zipfile.ZIP_STORED, **members):
    """An archive of these bytes, each with the right CRC."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize("rows", PARTS, ids=str)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((1000,), "holds 40 rows of y, and its header says 1000; write the file again"),
        ((10**30,), f"holds 40 rows of y, and its header says {10**30}; write"),
        ((10,), "holds more rows of y than the 10 of its header; write the file again"),
        ((-5,), "holds more rows of y than the -5 of its header; write the file again"),
        ((10**30, 2), rf"y is float64 of shape \({10**30}, 2\); it must be a column of numbers"),
        ((), r"y is float64 of shape \(\); it must be a column of numbers"),
    ],
    ids=str,
)
def test_a_members_header_says_another_shape(shape, says, compression, rows, tmp_path):
    y = np.exp(FROM)
    header = npy(y, shape) if shape else npy(y).replace(b"(40,)", b"()   ")
    path = write_npz(tmp_path / "points.npz", compression, x=npy(np.resize(FROM, 40)), y=header)
    with pytest.raises(InputError, match=says) as caught:
        make_points(file_spec(path), rows)
    assert "\n" not in str(caught.value)
    if compression == zipfile.ZIP_STORED and rows is None:
        with pytest.raises(InputError, match=says):
            count_points(file_spec(path))


@pytest.mark.parametrize("rows", PARTS, ids=str)
@pytest.mark.parametrize("cut", [1, 8, 100])
def test_a_member_that_ends_too_early(cut, rows, tmp_path):
    path = write_npz(tmp_path / "points.npz", x=npy(FROM), y=npy(np.exp(FROM))[:-cut])
    with pytest.raises(InputError, match=f"holds {40 - -(-cut // 8)} rows of y, and its header says 40"):
        make_points(file_spec(path), rows)


@pytest.mark.parametrize("rows", PARTS, ids=str)
@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "deflated"])
def test_a_flipped_bit_of_a_member(compressed, rows, tmp_path):
    path, x = tmp_path / "points.npz", np.sqrt(np.arange(10**4))  # more than zipfile reads at once
    (np.savez_compressed if compressed else np.savez)(path, x=x, y=x)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") - 40] ^= 1  # in the last numbers of y
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"cannot be read as an \.npz file: ") as caught:
        make_points(file_spec(path), rows)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rows", [range(40), range(3, 9)], ids=str)
@pytest.mark.parametrize("descr", [">f8", "<f8", ">f4", ">i8", "<u2", "<f2"])
def test_numbers_of_every_type_and_order(descr, rows, tmp_path):
    x, y = (np.arange(0, 40 * step, step).astype(descr) for step in (1, 2))
    path = write_npz(tmp_path / "points.npz", x=npy(x, fortran_order=True), y=npy(y))
    part = make_points(file_spec(path, dtype="float64"), rows)
    assert part.x.tolist() == list(rows)
    assert part.y.tolist() == [2 * row for row in rows]


def test_a_member_of_no_numbers(tmp_path):
    objects = np.array([None, 1.0], object)
    for member, says in [
        (npy(np.zeros(2, [("a", "<f8")]), descr=[("a", "<f8")]), r"x is \[\('a', '<f8'\)\] of shape \(2,\)"),
        (npy(np.zeros(2), descr="|O"), r"x is object of shape \(2,\)"),
        (npy(np.zeros(2), descr="<c16"), r"x is complex128 of shape \(2,\)"),
        (b"\x93NUMPY\x03\x00" + npy(objects.astype(float))[8:], r"x is of \.npy format \(3, 0\); it must be a column"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "cannot be read as an .npz file: EOF: reading array header"),
        (b"", "cannot be read as an .npz file: EOF: reading magic string"),
    ]:
        path = write_npz(tmp_path / f"{abs(hash(says))}.npz", x=member, y=npy(np.zeros(2)))
        with pytest.raises(InputError, match=says) as caught:
            make_points(file_spec(path))
        assert "\n" not in str(caught.value)


def parquet_that_says(path, rows, of):
    """A Parquet file of 20 rows in one group, whose footer or whose row group says that there are others."""
    table = pyarrow.table({"x": np.arange(20.0), "y": np.arange(20.0)})
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    content = bytearray(path.read_bytes())
    footer = len(content) - 8 - struct.unpack("<I", content[-8:-4])[0]
    places = [place for place in range(footer, len(content) - 8) if content[place] == 2 * 20]  # as Thrift writes 20
    content[{"footer": places[0], "row group": places[-1]}[of]] = 2 * rows
    path.write_bytes(content)
    metadata = parquet.read_metadata(path)
    assert rows == (metadata.num_rows if of == "footer" else metadata.row_group(0).num_rows)
    return path


@pytest.mark.parametrize(("rows", "of"), [(10, "footer"), (40, "footer"), (10, "row group"), (40, "row group")])
@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_parquet_files_footer_says_another_count(rows, of, part, tmp_path):
    path = parquet_that_says(tmp_path / "points.parquet", rows, of)
    with pytest.raises(InputError, match=r"holds \d\d rows of x( in row group 0)?, and its header says \d\d; write"):
        make_points(file_spec(path), part)


def test_a_flipped_bit_of_a_parquet_file_that_has_checksums(tmp_path):
    path = tmp_path / "points.parquet"
    table = pyarrow.table({"x": FROM, "y": np.exp(FROM)})
    parquet.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[content.index(np.exp(FROM).tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="CRC checksum verification failed") as caught:
        make_points(file_spec(path))
    assert "\n" not in str(caught.value)


def test_what_pyarrow_says_in_several_lines_is_one(tmp_path):
    path = tmp_path / "points.parquet"
    parquet.write_table(pyarrow.table({"x": FROM, "y": FROM}), path)
    path.write_bytes(path.read_bytes()[:4] + b"\xff" * 8 + path.read_bytes()[12:])  # the first page's header
    with pytest.raises(InputError, match=r"points\.parquet: cannot be read: Couldn't deserialize thrift") as caught:
        make_points(file_spec(path))
    assert "\n" not in str(caught.value)


def test_a_file_has_no_function():
    with pytest.raises(ValidationError) as caught:
        TrainingSpec().replace({"data": {"file": "a.csv", "points": 5}})
    assert describe(caught.value, TrainingSpec) == "data.points is not a field; allowed here: file, x, y"
    spec = TrainingSpec().replace({"data": {"file": "a.csv"}})
    assert spec.replace({"data": {"y": "height"}}).data == FileData(file="a.csv", y="height")
    assert spec.replace({"data": {"file": "b.csv"}}).data == FileData(file="b.csv")
    with pytest.raises(ValidationError, match=r"data\.file\.target"):  # and the file is not left out in silence
        spec.replace({"data": {"target": "cos"}})
