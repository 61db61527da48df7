"""A run goes on where it was, in either framework, after any end; what is not whole is refused."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from errno import ENOSPC
from hashlib import sha256

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from p3 import FitResult, InputError
from p3.backends import BACKENDS, load
from p3.fitting.checkpoint import Checkpoint
from tests.support.commands import EITHER_WAY, call
from tests.support.optimizers import RULES
from tests.support.problems import PROBLEMS

# Rounded in one framework for some steps and in the other for the rest.
CROSSED = 1e-12
OTHER = {"torch": "jax", "jax": "torch"}
BEGINNING = "specification.json"


def asymmetric(**changes):
    return PROBLEMS["asymmetric"].replace({"dtype": "float64", "steps": 80, "log_every": 30, "jit": False, **changes})


def command(backend, *flags):
    """The command with these flags, in this process."""
    return call(BACKENDS[backend].package, *flags)


def resume(backend, directory, spec, pieces=None):
    """Go on with a run; after some pieces, if that many are left, break off."""
    done = []

    def progress(step, loss):
        done.append(step)
        if len(done) == pieces and step + 1 < spec.steps:
            raise KeyboardInterrupt

    return load(backend).fit(spec, progress, Checkpoint(directory, resume=True))


@pytest.fixture(scope="module", params=RULES)
def whole(request, tmp_path_factory):
    """An uninterrupted run of each rule in PyTorch, with its checkpoints and its result."""
    spec = asymmetric(optimizer=RULES[request.param], batch_size=400, schedule={"name": "exponential"})
    directory = tmp_path_factory.mktemp("whole")
    return spec, directory, load("torch").fit(spec, checkpoint=directory)


def assert_same(result, expected):
    for name, value in expected.coefficients.items():
        assert result.coefficients[name] == pytest.approx(value, rel=CROSSED)
    np.testing.assert_allclose(result.losses, expected.losses, rtol=1e-11)
    assert result.traces.keys() == expected.traces.keys()


def test_what_is_recorded_may_be_a_column_of_something_larger(tmp_path):
    table = np.arange(20.0).reshape(5, 4)
    spec = PROBLEMS["asymmetric"].replace({"steps": 5, "dtype": "float64"})
    coefficients = spec.start.model_dump()
    Checkpoint(tmp_path).write(spec, 0, coefficients, {}, {"losses": table[:, 1]})
    saved = Checkpoint(tmp_path, resume=True).read(spec)
    assert saved.record["losses"].tolist() == table[:, 1].tolist()


@pytest.mark.parametrize("pieces", [1, *(pytest.param(pieces, marks=pytest.mark.slow) for pieces in (2, 3))])
def test_a_run_crosses_over_at_every_piece(whole, pieces, tmp_path):
    spec, directory, expected = whole
    for path in sorted(directory.iterdir())[:pieces]:
        shutil.copy(path, tmp_path)
    assert_same(resume("jax", tmp_path, spec), expected)
    # What JAX took is saved as PyTorch would have, and PyTorch goes on with it.
    (tmp_path / "000000000080.safetensors").unlink()
    assert_same(resume("torch", tmp_path, spec), expected)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["torch", "jax"])
def test_there_and_back_compiled(first, tmp_path):
    spec = asymmetric(optimizer=RULES["nesterov, weight decay"], steps=150, jit=True)
    backend = first
    Checkpoint(tmp_path).begin(spec)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            resume(backend, tmp_path, spec, pieces=1)
        backend = OTHER[backend]
    assert_same(resume(backend, tmp_path, spec), load("torch").fit(spec.replace({"jit": False})))


def test_a_run_that_is_done_is_only_read(tmp_path):
    spec = asymmetric()
    result = load("torch").fit(spec, checkpoint=tmp_path)
    again = resume("jax", tmp_path, spec)
    assert again.coefficients == result.coefficients
    assert np.array_equal(again.losses, result.losses)
    assert np.array_equal(again.traces["updates"], result.traces["updates"])
    assert again.seconds["run"] == 0


@pytest.mark.parametrize(("steps", "log_every"), [(20, 8), pytest.param(80, 30, marks=pytest.mark.slow)])
def test_float32_goes_on_to_the_bit(backend, steps, log_every, tmp_path):
    spec = asymmetric(dtype="float32", optimizer=RULES["adam"], steps=steps, log_every=log_every)
    Checkpoint(tmp_path).begin(spec)
    with pytest.raises(KeyboardInterrupt):
        resume(backend, tmp_path, spec, pieces=1)
    assert resume(backend, tmp_path, spec).coefficients == load(backend).fit(spec).coefficients


@pytest.mark.parametrize("elsewhere", [{"device": "gpu"}, {"devices": 4}, {"jit": True}])
def test_where_and_how_a_run_goes_on_is_no_part_of_it(elsewhere, tmp_path):
    spec = asymmetric(steps=2)
    Checkpoint(tmp_path).write(spec, 0, spec.start.model_dump(), {}, {"losses": np.ones(2)})
    assert Checkpoint(tmp_path, resume=True).read(spec.replace(elsewhere)).steps == 2


# --- what is refused


@pytest.fixture
def saved(tmp_path):
    spec = asymmetric()
    load("torch").fit(spec, checkpoint=tmp_path)
    return spec, tmp_path


def refusal(directory, spec):
    with pytest.raises(InputError) as caught:
        resume("torch", directory, spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_directory_with_a_run_is_not_written_over(saved):
    spec, directory = saved
    with pytest.raises(InputError, match="holds a run of 80 steps; resume it, or give another directory"):
        load("jax").fit(spec, checkpoint=directory)
    with pytest.raises(InputError, match="cannot be used for checkpoints: "):
        Checkpoint(next(directory.iterdir()))


def test_another_specification(saved):
    spec, directory = saved
    other = spec.replace({"optimizer": {"learning_rate": 1e-6}})
    assert "is of another run: optimizer.learning_rate is 5e-06 there and 1e-06 here" in refusal(directory, other)
    resume("jax", directory, spec.replace({"jit": True}))  # which is not part of the problem


@pytest.mark.parametrize("changes", [{"seed": 1}, {"batch_size": 50}, {"log_every": 40}, {"trace": False}])
def test_what_decides_the_pieces_is_part_of_the_problem(saved, changes):
    spec, directory = saved
    assert f"is of another run: {next(iter(changes))} is " in refusal(directory, spec.replace(changes))


FILES = [BEGINNING, "000000000030.safetensors"]  # in the order in which a run writes them


@pytest.mark.parametrize("whole", [0, 1], ids=["specification", "piece"])
def test_a_file_comes_to_its_place_whole_or_not_at_all(whole, tmp_path, monkeypatch):
    # Killed between the last byte and the move: what was done before is there, and nothing that is half written.
    replace, synced = os.replace, []

    def killed(*args):
        if len(synced) > whole:
            raise KeyboardInterrupt
        replace(*args)

    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(os, "fsync", synced.append)
    with pytest.raises(KeyboardInterrupt):
        load("torch").fit(asymmetric(), checkpoint=tmp_path)
    assert len(synced) == whole + 1
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".part"] == FILES[:whole]


def test_there_is_no_run_to_resume(tmp_path):
    with pytest.raises(InputError, match="there is no run to resume; give the directory of one, or leave out --resume"):
        Checkpoint(tmp_path / "typo", resume=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", [None, "notes.txt", ".abc.part", "weights.safetensors"])
def test_a_directory_without_a_run_is_not_resumed(backend, file, tmp_path):
    if file is not None:
        (tmp_path / file).touch()
    says = "there is no run to resume; give the directory of one, or leave out --resume"
    with pytest.raises(InputError, match=says):
        Checkpoint(tmp_path, resume=True)
    for more in ([], ["--steps", "3"]):  # whatever else is given
        finished = command(backend, "--checkpoint", tmp_path, "--resume", *more)
        assert (finished.returncode, finished.stdout) == (2, "")
        assert finished.stderr == f"{BACKENDS[backend].package}: {tmp_path}: {says}\n"


# --- a run of which no piece is saved yet


def begun(spec, directory, backend="torch"):
    """A run that is interrupted in its first piece."""

    class Interrupted(Checkpoint):
        def write(self, *_):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load(backend).fit(spec, checkpoint=Interrupted(directory))
    assert [path.name for path in directory.iterdir()] == [BEGINNING]


def test_a_run_without_a_piece_resumes_as_what_it_was(backend, tmp_path):
    # Tuples, null and floats that are written with an exponent go through JSON and back.
    spec = asymmetric(
        start={"a": 3.0}, schedule={"name": "multi_step", "milestones": (10, 20)}, optimizer={"learning_rate": 5e-7}
    )
    begun(spec, tmp_path, OTHER[backend])
    assert Checkpoint(tmp_path, resume=True).specification() == spec
    finished = command(backend, "--checkpoint", tmp_path, "--resume", "--output", tmp_path / "result.json")
    assert finished.returncode == 0, finished.stderr
    result = FitResult.load(tmp_path / "result.json")
    assert result.spec == spec
    assert result.coefficients == load(backend).fit(spec).coefficients


def test_a_run_that_is_killed_before_its_first_piece_leaves_its_specification(tmp_path):
    flags = ["--steps", "3000000", "--log-every", "3000000", "--start.a", "3", "--no-jit", "--checkpoint", tmp_path]
    with subprocess.Popen([sys.executable, "-m", "jaxp3", *flags]) as process:
        until = time.monotonic() + 120
        while not (tmp_path / BEGINNING).exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.kill()
    spec = Checkpoint(tmp_path, resume=True).specification()
    assert (spec.steps, spec.start.a, spec.jit) == (3000000, 3.0, False)


def test_a_run_that_has_begun_is_not_written_over(backend, tmp_path):
    begun(asymmetric(), tmp_path)
    says = "holds a run that has begun and has saved no step; resume it, or give another directory"
    with pytest.raises(InputError, match=says):
        load(backend).fit(asymmetric(), checkpoint=tmp_path)
    finished = command(backend, "--checkpoint", tmp_path)
    assert (finished.returncode, finished.stderr) == (2, f"{BACKENDS[backend].package}: {tmp_path}: {says}\n")


def test_a_run_that_has_begun_goes_on_with_its_own_specification_and_points(tmp_path):
    points = tmp_path / "points.csv"
    points.write_text("x,y\n0,1\n1,2\n2,4\n", encoding="utf-8")
    spec = asymmetric(data={"file": str(points)})
    begun(spec, tmp_path / "run")
    path = f"{tmp_path / 'run' / BEGINNING}: "
    assert refusal(tmp_path / "run", spec.replace({"steps": 81})) == (
        f"{path}is of another run: steps is 80 there and 81 here"
    )
    assert Checkpoint(tmp_path / "run", resume=True).read(spec.replace({"jit": True, "devices": 4})) is None
    points.write_text("x,y\n0,1\n1,2\n2,5\n", encoding="utf-8")
    os.utime(points, ns=(1, 1))
    assert refusal(tmp_path / "run", spec) == f"{path}is of other points than {points} has now"


def test_a_run_that_cannot_begin_leaves_its_directory_free(backend, tmp_path):
    for changes, says in [
        ({"data": {"file": str(tmp_path / "missing.csv")}}, "missing.csv: cannot be read"),
        ({"data": {"target": "exp", "high": 1e3}}, "is not finite"),
    ]:
        with pytest.raises(InputError, match=says):
            load(backend).fit(asymmetric(**changes), checkpoint=tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_a_full_disk_is_found_out_when_a_run_begins(backend, tmp_path, monkeypatch):
    def full(_):
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be used for checkpoints: No space left on device"):
        load(backend).fit(asymmetric(), checkpoint=tmp_path)


def test_a_specification_is_written_once_and_not_beside_pieces_of_earlier_versions(saved):
    spec, directory = saved
    before = (directory / BEGINNING).stat().st_mtime_ns
    resume("torch", directory, spec)
    assert (directory / BEGINNING).stat().st_mtime_ns == before
    (directory / BEGINNING).unlink()
    (directory / FILES[1]).with_stem("000000000080").unlink()
    assert resume("torch", directory, spec).losses.shape == (80,)
    assert Checkpoint(directory, resume=True).specification() == spec
    assert not (directory / BEGINNING).exists()


OTHERWISE = "; remove it to resume from the pieces that are saved, or give another directory"


@pytest.fixture(params=[False, True], ids=["alone", "with pieces"])
def beginning(request, tmp_path):
    """The specification's file of a run, with pieces and without."""
    if request.param:
        load("torch").fit(asymmetric(), checkpoint=tmp_path)
    else:
        Checkpoint(tmp_path).begin(asymmetric())
    return tmp_path / BEGINNING


def refusals(path, by_command=False):
    """What is said of a specification's file, whoever asks."""
    said = refusal(path.parent, asymmetric())
    with pytest.raises(InputError) as caught:
        Checkpoint(path.parent, resume=True).specification()
    assert str(caught.value) == said
    if by_command:
        finished = command("torch", "--checkpoint", path.parent, "--resume")
        assert (finished.returncode, finished.stderr) == (2, f"torchp3: {said}\n")
    return said.removeprefix(f"{path}: ")


@pytest.mark.parametrize("keep", [0, 5, 100, -3])
def test_a_truncated_specification(beginning, keep):
    beginning.write_bytes(beginning.read_bytes()[:keep])
    said = refusals(beginning, by_command=keep == 5)
    assert said.startswith("is not a whole specification of a run: ")
    assert said.endswith(OTHERWISE)


def test_an_altered_specification_of_a_run(beginning):
    content = beginning.read_bytes()
    for position in random.Random(0).sample(range(len(content) - 2), 60):
        changed = bytearray(content)
        changed[position] ^= 1
        beginning.write_bytes(changed)
        if json.loads(content) != _parsed(changed):  # white space
            assert refusals(beginning).endswith((OTHERWISE, "directory", "to --checkpoint"))
    beginning.write_bytes(content.replace(b'"a": 0.', b'"a": 1.'))
    assert refusals(beginning, by_command=True) == "was changed after it was written" + OTHERWISE


def _parsed(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "is not the specification of a run; give a directory of its own to --checkpoint"),
        ("{}", "is not the specification of a run; give"),
        ('{"format": 3}', "is not the specification of a run; give"),
        ('{"format": "p3 training run, 0"}', "is of another version of p3; resume it with that one, or give another"),
        ('{"format": "p3 training run, 1"}', "was changed after it was written; "),
        ("[" * 10**5, "is not a whole specification of a run: maximum recursion"),
        ("\xff", "is not a whole specification of a run: 'utf-8' codec can't decode"),
        ("1" * 5000, "is not a whole specification of a run: Exceeds the limit"),
    ],
    ids=range(8),
)
def test_a_foreign_specification(content, says, tmp_path):
    (tmp_path / BEGINNING).write_bytes(content.encode("latin-1"))
    assert refusals(tmp_path / BEGINNING).startswith(says)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"specification": {"momentum": 1}}, "is of another version: momentum is not a field; allowed here: data"),
        ({"specification": None}, "is of another version: "),
        ({"points": 3}, "is of other points than there are has now"),
    ],
)
def test_a_specification_of_other_fields_with_the_right_digest(changes, says, tmp_path):
    Checkpoint(tmp_path).begin(asymmetric())
    about = json.loads((tmp_path / BEGINNING).read_text()) | changes
    about.pop("digest")
    digest = sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    (tmp_path / BEGINNING).write_text(json.dumps(about | {"digest": digest}))
    assert says in refusal(tmp_path, asymmetric())


def test_a_file_of_types_that_numpy_has_not(saved):
    spec, directory = saved
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (directory / "000000000060.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"1")
    assert "is no checkpoint of a fit" in refusal(directory, spec)


def test_an_altered_specification(saved):
    spec, directory = saved
    path = directory / "000000000060.safetensors"
    with safe_open(path, framework="numpy") as file:
        names = file.keys()  # of safetensors' own file, which cannot be iterated over itself
        arrays, about = {name: file.get_tensor(name) for name in names}, file.metadata()
    save_file(arrays, path, about | {"specification": about["specification"].replace(":5e-6", ":6e-6")})
    assert "was changed after it was written" in refusal(directory, spec)


def test_a_data_file_that_changed(tmp_path):
    points = tmp_path / "points.csv"
    points.write_text("x,y\n0,1\n1,2\n2,4\n", encoding="utf-8")
    spec = asymmetric(data={"file": str(points)})
    load("torch").fit(spec, checkpoint=tmp_path / "run")
    points.write_text("x,y\n0,1\n1,2\n2,5\n", encoding="utf-8")
    assert "is of other points than" in refusal(tmp_path / "run", spec)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_truncated_file(saved, keep):
    spec, directory = saved
    path = directory / "000000000060.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert re.search("060.safetensors: is not a whole checkpoint: .*; remove it to resume", refusal(directory, spec))


def test_an_altered_file(saved):
    spec, directory = saved
    path = directory / "000000000060.safetensors"
    content = bytearray(path.read_bytes())
    for position in random.Random(0).sample(range(len(content)), 40):
        changed = content.copy()
        changed[position] ^= 1
        path.write_bytes(changed)
        assert "060.safetensors: " in refusal(directory, spec)


def test_a_foreign_file(saved):
    spec, directory = saved
    save_file({"weight": np.zeros(3)}, directory / "000000000060.safetensors")
    assert "is no checkpoint of a fit" in refusal(directory, spec)


def test_a_missing_piece(saved):
    spec, directory = saved
    (directory / "000000000060.safetensors").unlink()
    assert "begins with step 60, and the piece before it is not there" in refusal(directory, spec)


def test_a_renamed_piece(saved):
    spec, directory = saved
    (directory / "000000000080.safetensors").rename(directory / "000000000081.safetensors")
    assert "ends with step 80, and has another name" in refusal(directory, spec)


def test_a_file_says_what_it_is(saved):
    spec, directory = saved
    with safe_open(directory / "000000000060.safetensors", framework="numpy") as file:
        assert json.loads(file.metadata()["specification"]) == json.loads(spec.model_dump_json())
        assert set(file.keys()) == {"coefficients"} | {
            f"record.{name}" for name in ("losses", "learning_rate", "coefficients", "gradients", "updates")
        }


# --- killed and interrupted

RUNNER = """
import os, random, signal, sys, tempfile, time, torch, torchp3
from p3 import TrainingSpec
from p3.fitting.checkpoint import Checkpoint
from p3.errors import InputError

torch.set_num_threads(1)
directory, kills = sys.argv[1], int(sys.argv[2])
spec = TrainingSpec.from_toml(sys.argv[3])
chance = random.Random(7)
with tempfile.TemporaryDirectory() as folder:
    torchp3.fit(spec.replace({"steps": 20}))  # loads libraries
    begin = time.monotonic()
    torchp3.fit(spec.replace({"steps": 400}), checkpoint=folder + "/run")
    usual = time.monotonic() - begin
done = 0
for _ in range(kills):
    child = os.fork()
    if child == 0:
        torchp3.fit(spec, checkpoint=Checkpoint(directory, resume=True))
        os._exit(0)
    time.sleep(chance.uniform(0.0, 2 * usual))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    saved = Checkpoint(directory, resume=True).read(spec)  # raises if a file is not whole
    steps = saved.steps if saved else 0
    assert steps >= done, (steps, done)
    assert steps % spec.log_every == 0
    done = steps
print(done)
"""


@pytest.mark.slow
def test_kills_at_random_moments_lose_the_piece_in_progress_alone(tmp_path):
    spec = asymmetric(steps=10**5, log_every=20, optimizer=RULES["adam"])
    spec.to_toml(tmp_path / "spec.toml")
    Checkpoint(tmp_path / "run").begin(spec)
    finished = subprocess.run(
        [sys.executable, "-c", RUNNER, tmp_path / "run", "50", tmp_path / "spec.toml"], capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stderr
    done = int(finished.stdout)
    assert done > 20 * 50  # some pieces were done between kills
    whole = load("torch").fit(spec.replace({"steps": done}))
    saved = Checkpoint(tmp_path / "run", resume=True).read(spec)
    assert saved.coefficients == whole.coefficients
    assert np.array_equal(saved.record["losses"], whole.losses)


@pytest.mark.parametrize("backend", [pytest.param("torch", marks=pytest.mark.slow), "jax"])
def test_an_interrupt_ends_with_the_piece_and_says_how_to_go_on(backend, tmp_path):
    command = [sys.executable, "-m", BACKENDS[backend].package]
    flags = ["--no-jit", "--steps", "20000", "--log-every", "50", "--checkpoint", str(tmp_path / "a run")]
    process = subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout.readline().startswith("49 ")
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    last = int(output.splitlines()[-1].split()[0]) if output else 49
    again = f"{BACKENDS[backend].package} --checkpoint '{tmp_path / 'a run'}' --resume"
    assert errors == f"{BACKENDS[backend].package}: interrupted; saved up to step {last}: go on with {again}\n"
    paths = Checkpoint(tmp_path / "a run", resume=True).paths()
    assert int(paths[-1].stem) == last + 1


@EITHER_WAY
@pytest.mark.parametrize("earlier", [False, True], ids=["", "of an earlier version"])
def test_the_command_goes_on_with_the_runs_own_specification(earlier, command, tmp_path):
    load("torch").fit(asymmetric(), checkpoint=tmp_path)
    (tmp_path / "000000000080.safetensors").unlink()
    if earlier:
        (tmp_path / BEGINNING).unlink()
    resumed = ["jaxp3", "--checkpoint", tmp_path, "--resume"]
    finished = command(*resumed)
    assert finished.stdout.startswith("79 "), finished.stderr
    other = call(*resumed, "--steps", "90")
    assert other.returncode == 2
    assert "is of another run: steps is 80 there and 90 here" in other.stderr


def test_resuming_needs_a_directory(backend):
    package = BACKENDS[backend].package
    assert call(package, "--resume").returncode == 2
    assert call(package, "--resume").stderr == (
        f"{package}: --resume needs the directory of the run; give it with --checkpoint\n"
    )
