"""Devices that share the points fit what one fits alone, and where one of them is lost all of them end."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import import_module
from random import Random

import numpy as np
import pytest

import jaxp3.fitting.distributed
import p3
from comparisons.scaling.processes import ended, environments, run_commands, running
from p3 import FitResult, InputError, LostProcessError, TrainingSpec
from p3.backends import BACKENDS, load
from p3.fitting.checkpoint import Checkpoint
from p3.fitting.data import make_points, make_shard
from p3.fitting.starts import random_starts
from p3.fitting.training import PATIENCE, ROLL_CALL, Outset, require_same
from tests.support.commands import call
from tests.support.optimizers import RULES
from tests.support.problems import COMPARISONS, PROBLEMS, fitted

SAME = 1e-12  # relative, of sums in float64 that are taken in another order

SLOW = pytest.mark.slow
KILLS = 20  # in each framework
LONGEST = 2  # times the patience: once to connect, and once more to give up
SLOWER = 3  # how many times longer a task may take than it took just before, since the machine may have other work
HANGS = 1800  # seconds after which a test gives up on a process; nothing here takes as long, even on a busy machine
WORKER = [sys.executable, "-m", "tests.support.worker"]  # at the root, where `running` starts all processes
EAGER = ["command", "--no-jit", "--steps", "20"]  # of worker.py: loads the framework, and computes for a moment
ASYMMETRIC = PROBLEMS["asymmetric"].replace({"dtype": "float64", "log_every": 30})

CASES = {
    "tutorial": PROBLEMS["tutorial"].replace({"dtype": "float64", "steps": 200}),
    "asymmetric": ASYMMETRIC.replace({"steps": 200}),
    "parts that are not whole": ASYMMETRIC.replace({"steps": 100, "jit": False, "data": {"points": 1501}}),
    "fewer points than processes": ASYMMETRIC.replace({"steps": 40, "jit": False, "data": {"points": 2}}),
    "batches": ASYMMETRIC.replace({"steps": 60, "jit": False, "batch_size": 100, "optimizer": RULES["adam"]}),
    "eager": ASYMMETRIC.replace({"steps": 60, "jit": False}),
}


def patient(backend, count, patience):
    """The environments of processes that wait for each other for so many seconds."""
    return [environment | {"PATIENCE": str(patience)} for environment in environments(backend, count)]


def run_worker(backend, count, task, *arguments, patience=PATIENCE):
    """A task of worker.py in each of several processes that are told of each other."""
    commands = [[*WORKER, backend, task, *arguments]] * count
    with running(commands, patient(backend, count, patience)) as processes:
        return ended(processes, HANGS)


def usual_seconds(backend, task, *arguments):
    """The seconds that two processes take for a task now: the pace of the machine, by which limits are set."""
    begin = time.monotonic()
    for ending in run_worker(backend, 2, task, *arguments):
        assert ending.code == 0, ending.errors
    return time.monotonic() - begin


def patience_for(usual):
    """The seconds that a process waits for another one, whose task usually takes that long."""
    return max(PATIENCE, math.ceil(SLOWER * usual))


def longest_wait(patience, usual):
    """The seconds within which a process ends that has lost another one, if the task usually takes that long."""
    return LONGEST * patience + ROLL_CALL + SLOWER * usual


def assert_same(result: FitResult, alone: FitResult) -> None:
    """Of the tutorial's problem a and c are zero but for rounding, so theirs is relative to the largest coefficient."""
    size = max(map(abs, alone.coefficients.values()))
    for name, value in alone.coefficients.items():
        assert abs(result.coefficients[name] - value) <= SAME * size, name
    np.testing.assert_allclose(result.losses, alone.losses, rtol=SAME, atol=0)
    assert result.traces.keys() == alone.traces.keys()
    assert result.compiled == result.spec.jit


def write_specs(specs, directory):
    """The specifications in a file, as the task `fits` of worker.py takes them."""
    path = directory / "specs.json"
    path.write_text(json.dumps([spec.model_dump(mode="json") for spec in specs]))
    return path


def assert_all_same(backend, count, specs, directory, **alone):
    """Fits by so many processes come to what fits by one do, which may be told otherwise in part."""
    for ending in run_worker(backend, count, "fits", write_specs(specs, directory), directory):
        assert ending.code == 0, ending.errors
    assert_saved_are_same(backend, count, specs, directory, **alone)


def assert_saved_are_same(backend, count, specs, directory, **alone):
    for number, spec in enumerate(specs):
        result = FitResult.load(directory / f"{number}.json")
        assert result.spec == spec.replace({"devices": count})
        assert_same(result, fitted(backend, spec.replace(alone)))


SHORT = {"steps": 4, "log_every": 2, "jit": False}
PIECE = "000000000002.safetensors"
ALONE = {  # what is wrong in the second process alone: a change to the specification, and what both say
    "another file": (
        {"data": {"file": "points.csv"}},
        "points.csv has other points in process 1 than in process 0; give",
    ),
    "no file": ({"data": {"file": "missing.csv"}}, "missing.csv: cannot be read: No such file or directory"),
    "a point that the other one has not": (
        {"data": {"file": "large.csv"}},
        "large.csv: row 2 is too large for float32",
    ),
    "a run of another specification": ({"seed": 1}, "is of another run: seed is 0 there and 1 here"),
    "a run that is further on": ({}, "the checkpoint has 0 steps in process 0 and 2 in process 1; give a directory"),
}


def write_folders(backend, folder):
    """The cases above and one in which all is well, in a file, with a folder for each process beside it."""
    first, second = folder / "0", folder / "1"
    for path in (first, second):
        for run in ALONE:
            (path / run).mkdir(parents=True)
        (path / "large.csv").write_text("x,y\n0,0\n1,1e39\n")
        (path / "points.csv").write_text(f"x,y\n0,0\n1,{path.name}\n")
    (first / "missing.csv").write_text("x,y\n0,0\n1,1\n")
    load(backend).fit(TrainingSpec(**SHORT), checkpoint=Checkpoint(folder / "run"))
    for run in ("a run of another specification", "a run that is further on"):
        shutil.copy(folder / "run" / PIECE, second / run)
    cases = [*((SHORT | changes, run) for run, (changes, _) in ALONE.items()), (SHORT, "all is well")]
    (folder / "cases.json").write_text(json.dumps(cases))
    return folder / "cases.json"


# What is compiled is of several processes alone, and takes them seconds.
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=SLOW)], ids=["eager", "compiled too"])
def test_two_processes(backend, compiled, tmp_path):
    """One after the other, since to start the processes is most of the time."""
    ASYMMETRIC.replace({"steps": 1, "jit": False}).to_toml(tmp_path / "marked.toml")
    specs = [spec for spec in CASES.values() if compiled or not spec.jit]
    tasks = {
        "fits": [write_specs(specs, tmp_path), tmp_path],
        "marked": [tmp_path / "marked.toml"],
        "in_folders_of_their_own": [write_folders(backend, tmp_path)],
    }
    words = [word for task, arguments in tasks.items() for word in (task, *arguments, "then")][:-1]
    endings = run_worker(backend, 2, *words)
    for is_first, ending in zip((True, False), endings, strict=True):
        assert ending.code == 0, ending.errors
        told = re.sub(r"^\[Gloo\].*\n", "", ending.output, flags=re.M)
        _, *parts = re.split(r"^(\w+):\n", told, flags=re.M)
        outputs = dict(zip(parts[::2], parts[1::2], strict=True))
        assert list(outputs) == list(tasks)
        assert_marked(outputs["marked"])
        assert_none_does_what_one_cannot(outputs["in_folders_of_their_own"], is_first)
    assert_saved_are_same(backend, 2, specs, tmp_path)


def assert_none_does_what_one_cannot(output, is_first):
    """And where all is well the first process alone saves both pieces."""
    saved = "2" if is_first else "0"
    for line, message in zip(output.splitlines(), [*(message for _, message in ALONE.values()), saved], strict=True):
        assert message in line


@SLOW
def test_three_processes_fit_what_one_does(backend, tmp_path):
    # Those that are compiled go to the end, below.
    assert_all_same(backend, 3, [spec for spec in CASES.values() if not spec.jit], tmp_path)


@SLOW
@pytest.mark.parametrize("count", [2, 3])
def test_compiled_processes_fit_what_one_does_to_the_end(backend, count, tmp_path):
    assert_all_same(backend, count, [PROBLEMS[name].replace({"dtype": "float64"}) for name in PROBLEMS], tmp_path)


@SLOW
def test_compiled_batches_and_parts_that_are_not_whole(backend, tmp_path):
    cases = ("batches", "parts that are not whole", "fewer points than processes")
    assert_all_same(backend, 3, [CASES[name].replace({"jit": True}) for name in cases], tmp_path, jit=False)


def assert_marked(output):
    """The gradients of c and d pass through the rule; those of a and b do not."""
    true, marked = json.loads(output.splitlines()[-1])
    for name, factor in {"a": 1, "b": 1, "c": 4, "d": 4}.items():
        assert marked[name] == pytest.approx(factor * true[name], rel=1e-10), name


@SLOW
def test_the_hand_written_rule_is_what_compiled_processes_use(backend, tmp_path):
    ASYMMETRIC.replace({"steps": 1}).to_toml(tmp_path / "spec.toml")
    for ending in run_worker(backend, 2, "marked", tmp_path / "spec.toml"):
        assert ending.code == 0, ending.errors
        assert_marked(ending.output)


@SLOW
@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="a policy of Linux's")
def test_a_thread_that_wakes_waits_for_the_one_that_runs(backend):
    for ending in run_worker(backend, 2, "scheduled"):
        assert ending.output.endswith("True\n"), ending.errors


# --- parts


@pytest.mark.parametrize("points", [2, 3, 1500, 1501])
@pytest.mark.parametrize("devices", [2, 3, 7])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_parts_together_are_the_points_and_no_device_has_more_than_its_part(points, devices, batch_size):
    spec = PROBLEMS["asymmetric"].replace({"devices": devices, "batch_size": batch_size, "data": {"points": points}})
    shards = [make_shard(spec, device) for device in range(devices)]
    whole = make_points(spec)
    assert {len(shard["x"]) for shard in shards} == {len(shard["y"]) for shard in shards} == {-(-points // devices)}
    counts = [int(shard["count"][0]) if "count" in shard else len(shard["x"]) for shard in shards]
    for name in ("x", "y"):
        together = np.concatenate([shard[name][:count] for shard, count in zip(shards, counts, strict=True)])
        assert together.tobytes() == getattr(whole, name).tobytes()
    if batch_size is not None:
        assert [int(shard["first"][0]) for shard in shards] == [sum(counts[:device]) for device in range(devices)]


def test_one_device_has_all_as_they_are():
    spec = PROBLEMS["asymmetric"]
    assert make_shard(spec, 0).keys() == {"x", "y"}


def test_processes_must_go_on_alike():
    spec = TrainingSpec()
    require_same([Outset(spec, "", True, 20), Outset(spec, "", True, 20)])
    with pytest.raises(InputError, match=r"steps is 2000 in process 0 and 10 in process 1; give all of them one"):
        require_same([Outset(spec, "", False, 0), Outset(spec.replace({"steps": 10}), "", False, 0)])
    with pytest.raises(InputError, match=r"devices is 2 in process 0 and 4 in process 1; give all of them one"):
        require_same([Outset(spec.replace({"devices": devices}), "", False, 0) for devices in (2, 4)])
    with pytest.raises(InputError, match=r"process 0 has a checkpoint and process 1 has none; give all of them the"):
        require_same([Outset(spec, "", saves, 0) for saves in (True, False)])
    with pytest.raises(InputError, match=r"process 1 has a checkpoint and process 0 has none"):
        require_same([Outset(spec, "", saves, 0) for saves in (False, True)])
    with pytest.raises(InputError, match=r"the checkpoint has 20 steps in process 0 and 0 in process 2; give a dir"):
        require_same([Outset(spec, "", True, 20), Outset(spec, "", True, 20), Outset(spec, "", True, 0)])


# --- commands


def test_devices_of_one_process(tmp_path):
    command = [sys.executable, "-m", "jaxp3", COMPARISONS / "asymmetric.toml", "--dtype", "float64"]
    output = tmp_path / "result.json"
    finished = subprocess.run(
        [*command, "--devices", "2", "--output", output], capture_output=True, text=True, check=True
    )
    assert finished.stderr == ""
    result = FitResult.load(output)
    assert result.spec.devices == 2
    assert_same(result, fitted("jax", PROBLEMS["asymmetric"].replace({"dtype": "float64"})))


@SLOW
def test_devices_of_several_processes(tmp_path):
    output = tmp_path / "result.json"
    flags = [COMPARISONS / "asymmetric.toml", "--dtype", "float64", "--devices", "4", "--steps", "200"]
    for ending in run_commands("jax", [[*flags, "--output", output]] * 2):
        assert ending.code == 0, ending.errors
    assert FitResult.load(output).spec.devices == 4
    assert_same(
        FitResult.load(output), fitted("jax", PROBLEMS["asymmetric"].replace({"dtype": "float64", "steps": 200}))
    )


@SLOW
def test_torchrun(tmp_path):
    # The command of the README, in the environment of these tests.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    flags = ["--dtype", "float64", "--no-jit", "--steps", "60", "--output", tmp_path / "result.json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    arguments = [[*command, "--rdzv-endpoint", "127.0.0.1:0", "--rdzv-backend", "c10d", "-m", "torchp3", *flags]]
    with running([[*arguments[0][: -len(flags)], COMPARISONS / "asymmetric.toml", *flags]], [environment]) as started:
        (ending,) = ended(started, HANGS)
    assert ending.code == 0, ending.errors
    assert ending.output.count("Result: y = ") == 1
    assert [line.split()[0] for line in ending.output.splitlines()[:-1]] == ["59"]
    assert_same(FitResult.load(tmp_path / "result.json"), fitted("torch", CASES["eager"].replace({"log_every": 100})))


@pytest.mark.parametrize("backend", [pytest.param("torch", marks=SLOW), "jax"])
def test_what_is_shown_and_written_is_so_once(backend, tmp_path):
    flags = ["--steps", "20", "--log-every", "10", "--no-jit", "--output"]
    first, second = run_commands(backend, [[*flags, tmp_path / "result.json"], [*flags, tmp_path / "other.json"]])
    assert first.code == second.code == 0, (first.errors, second.errors)
    told = [line for line in first.output.splitlines() if not line.startswith("[Gloo]")]
    assert [line.split()[0] for line in told] == ["9", "19", "Result:"]
    assert not [line for line in second.output.splitlines() if not line.startswith("[Gloo]")]
    assert FitResult.load(tmp_path / "result.json").spec.devices == 2
    assert not (tmp_path / "other.json").exists()


def test_more_devices_than_there_are(backend):
    message = "devices = 3, and there are 1 processes"
    with pytest.raises(InputError, match=message):
        load(backend).fit(TrainingSpec(devices=3))
    finished = call("torchp3", "--devices", "3")
    assert finished.returncode == 2
    assert finished.stderr == (
        "torchp3: devices = 3, and there are 1 processes, each for one device; start as many: "
        "torchrun --nproc-per-node 3 -m torchp3\n"
    )


# --- checkpoints


@SLOW
@pytest.mark.parametrize("first", [2, 3])
def test_a_run_goes_on_in_any_number_of_processes_of_either_framework(backend, first, tmp_path):
    flags = [COMPARISONS / "asymmetric.toml", "--dtype", "float64", "--no-jit", "--steps", "90", "--log-every", "30"]
    run = tmp_path / "run"
    for ending in run_commands(backend, [[*flags, "--checkpoint", run]] * first):
        assert ending.code == 0, ending.errors
    (run / "000000000090.safetensors").unlink()
    (run / "000000000060.safetensors").unlink()
    expected = fitted(backend, ASYMMETRIC.replace({"steps": 90, "jit": False}))
    for other in BACKENDS:
        alone, many = tmp_path / f"{other} 1", tmp_path / f"{other} 2"
        shutil.copytree(run, alone)
        shutil.copytree(run, many)
        assert_same(load(other).fit(expected.spec, checkpoint=Checkpoint(alone, resume=True)), expected)
        output = tmp_path / f"{other}.json"
        for ending in run_commands(other, [["--checkpoint", many, "--resume", "--output", output]] * (5 - first)):
            assert ending.code == 0, ending.errors
        assert FitResult.load(output).spec.devices == 5 - first
        assert_same(FitResult.load(output), expected)


# --- what goes wrong


@SLOW
def test_what_one_process_alone_comes_to_it_says_at_once(backend, tmp_path):
    patience = patience_for(usual_seconds(backend, *EAGER))
    begin = time.monotonic()
    first, second = run_worker(backend, 2, "on_a_full_disk", tmp_path / "run", patience=patience)
    assert time.monotonic() - begin < patience
    assert first.code == (1 if backend == "torch" else 2)  # which is the command's
    assert "[Errno 28] No space left on device\n" in first.errors
    assert second.code != 0


@SLOW
@pytest.mark.parametrize("saves", [True, False], ids=["saved", "not saved"])
def test_an_interrupt_of_one_process_ends_all(backend, saves, tmp_path):
    flags = ["--no-jit", "--steps", str(10**6), "--log-every", "20"]
    if saves:
        flags += ["--checkpoint", tmp_path / "run"]
    package = BACKENDS[backend].package
    patience = patience_for(usual_seconds(backend, *EAGER))
    command = [*WORKER, backend, "command", *flags]
    with running([command] * 2, patient(backend, 2, patience)) as started:
        while not (line := started[0].stdout.readline()).startswith("59 "):
            assert line, "the process has ended"
        begin = time.monotonic()
        started[1].send_signal(signal.SIGINT)
        first, second = ended(started, HANGS)
    assert time.monotonic() - begin < patience
    assert second.code == 130
    if saves:
        assert first.code == 130
        for ending in (first, second):
            assert f"{package}: interrupted; saved up to step " in ending.errors
    else:
        assert f"{package}: interrupted\n" in second.errors
        assert first.code == 1
        assert f"{package}: process 0 of 2 has lost process 1, which ended" in first.errors


@SLOW
def test_processes_with_other_specifications(backend):
    endings = run_commands(backend, [["--no-jit", "--steps", "10"], ["--no-jit", "--steps", "20"]])
    for ending in endings:
        assert ending.code == 2
        assert "steps is 10 in process 0 and 20 in process 1; give all of them one" in ending.errors


@SLOW
def test_processes_with_other_devices():
    for ending in run_commands("jax", [["--devices", "2"], ["--devices", "4"]]):
        assert ending.code == 2
        assert "devices is 2 in process 0 and 4 in process 1; give all of them one" in ending.errors


@SLOW
def test_processes_of_which_one_has_a_checkpoint(backend, tmp_path):
    for ending in run_commands(backend, [["--checkpoint", tmp_path / "run"], []]):
        assert ending.code == 2
        assert "process 0 has a checkpoint and process 1 has none; give all of them the same" in ending.errors


def test_where_one_process_cannot_compile_none_does(backend, monkeypatch):
    train = import_module(f"{BACKENDS[backend].package}.fitting.train")

    def gather(_, value):  # as if another process had answered the other way
        return [value, not value] if isinstance(value, bool) else [value]

    monkeypatch.setattr(train, "gather", gather)
    with pytest.raises(InputError, match="some compile the loop and some cannot; have all compile, or give jit = fal"):
        load(backend).fit(TrainingSpec(**SHORT))


@SLOW
def test_processes_of_which_one_cannot_compile(backend):
    # The process that cannot compile waits for the other one, which on a busy machine compiles for over a minute.
    task = ["command", "--steps", "20"]
    told = patient(backend, 2, patience_for(usual_seconds(backend, *task)))
    told[0] |= {"torch": {"TORCH_COMPILE_DISABLE": "1"}, "jax": {"JAX_DISABLE_JIT": "1"}}[backend]
    with running([[*WORKER, backend, *task]] * 2, told) as started:
        for ending in ended(started, HANGS):
            assert ending.code == 2, ending.errors
            assert "of the processes some compile the loop and some cannot; have all compile, or give" in ending.errors


def test_many_starts_are_no_fit_to_share(backend):
    spec = TrainingSpec(devices=2)
    with pytest.raises(InputError, match="devices = 2, and many fits at once are by one device, in one process; leave"):
        load(backend).fit_starts(spec, random_starts(spec, 5))


@SLOW
def test_processes_of_many_starts(backend):
    for ending in run_commands(backend, [["--starts", "5"]] * 2):
        assert ending.code == 2
        assert "devices = 2, and many fits at once are by one device, in one process; leave devices" in ending.errors


FRAMEWORKS_OWN = ("Number of processes must", "Error initializing torch.distributed", "invalid literal for int")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1"}, "JAX_COORDINATOR_ADDRESS=127.0.0.1; give the first process's host"),
        (
            {"JAX_COORDINATOR_ADDRESS": None},
            "JAX_NUM_PROCESSES is set, and JAX_COORDINATOR_ADDRESS is not; set both, or",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:99999"},
            "JAX_COORDINATOR_ADDRESS=127.0.0.1:99999; give the first proc",
        ),
        ({"JAX_COORDINATOR_ADDRESS": "127.0.0.1:x"}, "JAX_COORDINATOR_ADDRESS=127.0.0.1:x; give the first process's"),
        ({"JAX_NUM_PROCESSES": ""}, "JAX_NUM_PROCESSES=; give a whole number"),
        ({"JAX_NUM_PROCESSES": None}, "Number of processes must be defined; give JAX_NUM_PROCESSES and JAX_PROCESS_ID"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES=two; give a whole number"),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID=-1; give a whole number"),
        ({"JAX_PROCESS_ID": "2"}, "JAX_PROCESS_ID=2 of JAX_NUM_PROCESSES=2; count the processes from 0"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE=x; give a whole number"),
        ({"RANK": None}, "Error initializing torch.distributed using env:// rendezvous: environment variable RANK exp"),
        ({"RANK": "2"}, "RANK=2 of WORLD_SIZE=2; count the processes from 0"),
        pytest.param(
            {"MASTER_PORT": "x"},
            "invalid literal for int() with base 10: 'x'; start all processes by torchrun",
            marks=SLOW,  # one that PyTorch says in a process of its own does by default
        ),
    ],
    ids=lambda value: " ".join(f"{name}={told}" for name, told in value.items()) if isinstance(value, dict) else "",
)
def test_processes_that_are_told_nonsense(changes, message):
    backend = "jax" if next(iter(changes)).startswith("JAX") else "torch"
    environment = {name: value for name, value in (environments(backend, 2)[0] | changes).items() if value is not None}
    package = BACKENDS[backend].package
    if message.startswith(FRAMEWORKS_OWN):  # which the framework says while it connects, once in a process
        finished = subprocess.run([sys.executable, "-m", package], env=environment, capture_output=True, text=True)
    else:
        finished = call(package, env=environment, clear=True)
    assert finished.returncode == 2
    assert finished.stderr.startswith(f"{package}: {message}")
    assert finished.stderr.count("\n") == 1


@SLOW
def test_a_process_that_never_comes(backend):
    # Of two, each of which waits for the other and a third.
    patience, usual = 4, usual_seconds(backend, *EAGER)
    begin = time.monotonic()
    with running([[*WORKER, backend, "scheduled"]] * 2, patient(backend, 3, patience)[:2]) as started:
        endings = ended(started, HANGS)
    assert time.monotonic() - begin < longest_wait(patience, usual)
    for index, ending in enumerate(endings):
        assert ending.code == 1
        assert f"process {index} of 3 has lost another process, which ended or does not answer" in ending.errors


def compile_before(backend, spec, folder):
    """
    Compile what the two processes of a test run, so that they are not at that when one of them is lost.

    Returns the seconds that they usually take from then on, which are spent on loading the framework and the programs.
    """
    few = spec.replace({"steps": 20})
    few.to_toml(folder / "few.toml")
    Checkpoint(folder / "few").begin(few)
    task = ["checkpointed", folder / "few.toml", folder / "few"]
    usual_seconds(backend, *task)
    return usual_seconds(backend, *task)


def test_whatever_line_jax_names_the_store_in_a_process_is_lost(monkeypatch):
    monkeypatch.setattr(jaxp3.fitting.distributed, "process_count", lambda: 2)
    spec = ASYMMETRIC.replace({"devices": 2})
    message = (
        "UNAVAILABLE: recvmsg:Connection reset by peer\nAdditional GRPC error information from remote target "
        "coordination_service while calling /xla.coordination.CoordinationService/GetKeyValue:"
    )
    lost_it = r"process 0 of 2 has lost process 1, .*Connection reset by peer\)"
    with pytest.raises(LostProcessError, match=lost_it), jaxp3.fitting.distributed.watched(spec):
        raise RuntimeError(message)
    with pytest.raises(RuntimeError, match="of another kind"), jaxp3.fitting.distributed.watched(spec):
        raise RuntimeError("of another kind")


def lost(backend, told, command, what, when, victim):
    """
    Two processes, of which one is sent a signal at some moment: the seconds until the other one ends.

    JAX may abort a process before it can speak for itself, where the one that the others are told of each other by is
    the one that is lost.
    """
    with running([command] * 2, told) as started:
        time.sleep(when)
        os.kill(started[victim].pid, what)
        begin = time.monotonic()
        (ending,) = ended([started[1 - victim]], HANGS)
        if what != signal.SIGSTOP:
            assert started[victim].wait(HANGS) == -what
    seconds = time.monotonic() - begin
    print(f"{backend}, {when:.1f} s: {ending.code} after {seconds:.1f} s: {ending.errors[-400:]}")
    assert ending.code in ((1,) if backend == "torch" else (1, -signal.SIGABRT))
    who = f"process {1 - victim} of 2 has lost "
    said = (f"{who}process {victim},", f"{who}another process,") if ending.code == 1 else ("that another task died",)
    assert any(words in ending.errors for words in said)
    return seconds


@SLOW
def test_whoever_is_killed_the_other_one_ends_and_the_run_goes_on(backend, tmp_path):
    spec = ASYMMETRIC.replace({"steps": 10**6, "log_every": 20})
    spec.to_toml(tmp_path / "spec.toml")
    run = tmp_path / "run"
    Checkpoint(run).begin(spec)
    command = [*WORKER, backend, "checkpointed", tmp_path / "spec.toml", run]
    usual = compile_before(backend, spec, tmp_path)
    patience, chance, done = max(5, math.ceil(usual)), Random(7), 0
    for _ in range(KILLS):
        when, victim = chance.uniform(0, 2 * usual), chance.randrange(2)
        seconds = lost(backend, patient(backend, 2, patience), command, signal.SIGKILL, when, victim)
        assert seconds < longest_wait(patience, usual)
        saved = Checkpoint(run, resume=True).read(spec)  # raises if a file is not whole
        steps = saved.steps if saved else 0
        assert steps >= done
        done = steps
    assert done > 20 * KILLS  # some pieces were done between kills
    whole = load(backend).fit(spec.replace({"steps": done}))
    np.testing.assert_allclose(saved.record["losses"], whole.losses, rtol=SAME, atol=0)


@SLOW
def test_a_process_that_is_told_to_end_does(backend, tmp_path):
    spec = ASYMMETRIC.replace({"steps": 10**6, "log_every": 20})
    spec.to_toml(tmp_path / "spec.toml")
    usual = compile_before(backend, spec, tmp_path)
    Checkpoint(tmp_path / "run").begin(spec)
    patience = patience_for(usual)
    command = [*WORKER, backend, "checkpointed", tmp_path / "spec.toml", tmp_path / "run"]
    seconds = lost(backend, patient(backend, 2, patience), command, signal.SIGTERM, SLOWER * usual, 0)
    assert seconds < longest_wait(patience, usual)


@SLOW
def test_a_process_that_stops_answering(backend, tmp_path):
    spec = ASYMMETRIC.replace({"steps": 10**6, "log_every": 20})
    spec.to_toml(tmp_path / "spec.toml")
    usual = compile_before(backend, spec, tmp_path)
    Checkpoint(tmp_path / "run").begin(spec)
    patience = max(10, math.ceil(usual))
    command = [*WORKER, backend, "checkpointed", tmp_path / "spec.toml", tmp_path / "run"]
    for victim in range(2):
        seconds = lost(backend, patient(backend, 2, patience), command, signal.SIGSTOP, SLOWER * usual, victim)
        assert seconds < longest_wait(patience, usual)


@SLOW
def test_ten_to_the_eighth_points_in_two_processes_within_three_gibibytes_each(backend):
    for ending in run_worker(backend, 2, "memory", str(10**8), "3"):
        assert ending.code == 0, ending.errors
        held = int(ending.output.splitlines()[-1])
        print(f"{backend}: {held / 2**30:.2f} GiB")
        assert held < 3 * 2**30


def test_a_lost_process_is_told_in_one_line():
    assert str(LostProcessError(0, 3, [1, 2], "closed")) == (
        "process 0 of 3 has lost process 1 and 2, which ended or does not answer (closed); start all of them again: "
        "with --checkpoint and --resume they go on from the last piece that was saved"
    )
    assert p3.LostProcessError is LostProcessError
