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

import numpy as np
import pytest
from conftest import PROBLEMS
from safetensors import safe_open
from safetensors.numpy import save_file
from test_optimizers import RULES

from p3 import InputError
from p3.backends import BACKENDS, load
from p3.checkpoint import Checkpoint

# Rounded in one framework for some steps and in the other for the rest.
CROSSED = 1e-12
OTHER = {"torch": "jax", "jax": "torch"}


def asymmetric(**changes):
    return PROBLEMS["asymmetric"].replace({"dtype": "float64", "steps": 80, "log_every": 30, "jit": False, **changes})


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


@pytest.mark.parametrize("pieces", [1, pytest.param(2, marks=pytest.mark.slow), 3])
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


def test_float32_goes_on_to_the_bit(backend, tmp_path):
    spec = asymmetric(dtype="float32", optimizer=RULES["adam"])
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


def test_a_piece_comes_to_its_place_whole_or_not_at_all(tmp_path, monkeypatch):
    # Killed between the last byte and the move: what was done before is there, and nothing that is half written.
    def killed(*args):
        raise KeyboardInterrupt

    synced = []
    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(os, "fsync", synced.append)
    with pytest.raises(KeyboardInterrupt):
        load("torch").fit(asymmetric(), checkpoint=tmp_path)
    assert Checkpoint(tmp_path, resume=True).paths() == []
    assert len(synced) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]


def test_there_is_no_run_to_resume(tmp_path):
    with pytest.raises(InputError, match="there is no run to resume; give the directory of one, or leave out --resume"):
        Checkpoint(tmp_path / "typo", resume=True)
    assert not list(tmp_path.iterdir())


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
from p3.checkpoint import Checkpoint
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
    (tmp_path / "run").mkdir()
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


def test_the_command_goes_on_with_the_runs_own_specification(tmp_path):
    load("torch").fit(asymmetric(), checkpoint=tmp_path)
    (tmp_path / "000000000080.safetensors").unlink()
    begin = time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-m", "jaxp3", "--checkpoint", tmp_path, "--resume"], capture_output=True, text=True
    )
    assert finished.stdout.startswith("79 "), (finished.stderr, time.perf_counter() - begin)
    other = subprocess.run(
        [sys.executable, "-m", "jaxp3", "--checkpoint", tmp_path, "--resume", "--steps", "90"],
        capture_output=True,
        text=True,
    )
    assert other.returncode == 2
    assert "is of another run: steps is 80 there and 90 here" in other.stderr
    lonely = subprocess.run([sys.executable, "-m", "jaxp3", "--resume"], capture_output=True, text=True)
    assert (lonely.returncode, lonely.stderr) == (
        2,
        "jaxp3: --resume needs the directory of the run; give it with --checkpoint\n",
    )
