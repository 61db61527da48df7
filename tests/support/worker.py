"""
What each process does that test_distributed.py starts: `python -m tests.support.worker BACKEND TASK ARGUMENTS`.

Several tasks have the word `then` between them. What each prints comes after a line with its name.
"""

import json
import os
import sys
from errno import ENOSPC
from importlib import import_module
from pathlib import Path

import numpy as np

from p3 import InputError, TrainingSpec, cli
from p3.backends import BACKENDS, load
from p3.fitting import training
from p3.fitting.checkpoint import Checkpoint
from tests.support.marker import with_and_without_marker

if "PATIENCE" in os.environ:
    training.PATIENCE = int(os.environ["PATIENCE"])
backend, *words = sys.argv[1:]
package = load(backend)
distributed = import_module(f"{BACKENDS[backend].package}.fitting.distributed")


def fits(specs, output):
    """All of the specifications in a file of JSON, shared by all devices; the first process saves the results."""
    for number, fields in enumerate(json.loads(Path(specs).read_text())):
        with_devices = TrainingSpec.model_validate_json(json.dumps({**fields, "devices": distributed.process_count()}))
        result = package.fit(with_devices)
        if distributed.process_index() == 0:
            result.save(f"{output}/{number}.json")


def in_folders_of_their_own(cases):
    """Fits with other files in each process: what they say, or how many pieces are saved there."""
    os.chdir(Path(cases).parent / str(distributed.process_index()))
    for changes, run in json.loads(Path(cases).read_text()):
        spec = TrainingSpec(devices=distributed.process_count()).replace(changes)
        checkpoint = Checkpoint(run, resume=any(Path(run).glob("*.safetensors")))
        try:
            package.fit(spec, checkpoint=checkpoint)
        except InputError as error:
            print(error)
        else:
            print(len(checkpoint.paths()))


def on_a_full_disk(directory):
    """A run of which no piece can be saved, as the first process alone finds out."""

    class OnAFullDisk(Checkpoint):
        def write(self, *_):
            raise OSError(ENOSPC, os.strerror(ENOSPC))

    spec = TrainingSpec(devices=distributed.process_count(), steps=40, log_every=20, jit=False)
    package.fit(spec, checkpoint=OnAFullDisk(directory))


def scheduled():
    """By which policy the threads that this process starts are scheduled."""
    print(os.sched_getscheduler(0) == os.SCHED_BATCH)


def checkpointed(spec, directory):
    """A run that goes on from where it was."""
    with_devices = TrainingSpec.from_toml(spec).replace({"devices": distributed.process_count()})
    package.fit(with_devices, checkpoint=Checkpoint(directory, resume=True))


def marked(spec):
    """The first update of a fit that all devices share, with the rule as it is, and with its derivative multiplied."""
    with_devices = TrainingSpec.from_toml(spec).replace({"devices": distributed.process_count()})
    before = with_devices.start.model_dump()

    def first_update():
        after = package.fit(with_devices).coefficients
        return {name: after[name] - before[name] for name in before}

    print(json.dumps(with_and_without_marker(backend, 4, first_update)))


def memory(points, steps):
    """The most that a process of a fit of so many points ever held, in bytes."""
    spec = TrainingSpec(steps=int(steps), devices=distributed.process_count(), dtype="float64")
    spec = spec.replace({"data": {"points": int(points)}, "optimizer": {"learning_rate": 1e-2 / int(points)}})
    result = package.fit(spec)
    assert result.compiled
    assert np.isfinite(result.losses).all()
    # Not getrusage's figure, which begins with what the process had held that started this one.
    print(1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]))


THEN = "then"
TASKS = (fits, marked, in_folders_of_their_own, on_a_full_disk, scheduled, checkpointed, memory)

if words[0] == "command":  # that of the package itself, which connects the processes
    sys.argv[1:] = words[1:]
    getattr(cli, package.__name__)()
with distributed.joined(TrainingSpec()):
    while words:
        end = words.index(THEN) if THEN in words else len(words)
        (task, *arguments), words = words[:end], words[end + 1 :]
        print(f"{task}:")
        {do.__name__: do for do in TASKS}[task](*arguments)
