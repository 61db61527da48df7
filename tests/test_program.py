"""PyTorch's compiled programs: found again by what they do, whatever became of the rest, and never taken for others."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from conftest import PROBLEMS

import torchp3
from p3.training import blank_steps
from torchp3 import operator, program, train
from torchp3.optimizer import initial_state

SPEC = PROBLEMS["asymmetric"].replace({"steps": 20, "log_every": 10})


def fingerprint_of(changes=None, about=None):
    """Of the step of a specification."""
    spec = SPEC.replace(changes or {})
    x, y = train.place(spec)
    start = train.place_coefficients(spec, spec.start.model_dump())
    told = {name: torch.as_tensor(values[0]) for name, values in blank_steps(spec, 1).items()}
    arguments = (start, initial_state(spec.optimizer, start)), x, y, told
    return program.fingerprint(partial(train.step, spec), arguments, about)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": {"points": 77}},
        {"data": {"target": "sin", "low": -1.0}},
        {"start": {"a": 3.0}},
        {"steps": 7},
        {"optimizer": {"learning_rate": 1e-3}},
        {"schedule": {"name": "cosine"}},
        {"seed": 5},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_a_program_is_given_does_not_tell_programs_apart(changes):
    assert fingerprint_of(changes) == fingerprint_of()


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "float64"},
        {"trace": False},
        {"batch_size": 10},
        {"batch_size": 1},
        {"data": {"points": 1000}, "batch_size": 10},
        {"optimizer": {"momentum": 0.9}},
        {"optimizer": {"momentum": 0.8}},
        {"optimizer": {"momentum": 0.9, "nesterov": True}},
        {"optimizer": {"weight_decay": 1e-9}},
        {"optimizer": {"clip_norm": 1.0}},
        {"optimizer": {"name": "adam"}},
        {"optimizer": {"name": "adam", "beta2": 0.99}},
    ],
    ids=str,
)
def test_what_a_program_does_tells_programs_apart(changes):
    assert fingerprint_of(changes) != fingerprint_of()


def test_every_operation_and_every_number_tells_programs_apart():
    x = torch.ones(3)
    functions = [
        lambda x, y: x + y,
        lambda x, y: y + x,
        lambda x, y: x + x,
        lambda x, y: x - y,
        lambda x, y: torch.add(x, y, alpha=2),
        lambda x, y: (x + y, x + y),
        lambda x, y: (x + y, y),
        lambda x, y: x + y.double(),
    ]
    digests = [program.fingerprint(function, (x, x.clone()), None) for function in functions]
    assert len(set(digests)) == len(functions)


def test_another_rule_is_another_program(monkeypatch):
    before = fingerprint_of()
    derivative = operator.derivative
    monkeypatch.setattr(operator, "derivative", lambda x: 4 * derivative(x))
    assert fingerprint_of() != before


def test_other_options_are_another_program():
    assert fingerprint_of(about={"cpp.threads": 1}) != fingerprint_of(about={"cpp.threads": 2})


FIT = """
import sys, torchp3
from p3 import TrainingSpec
result = torchp3.fit(TrainingSpec.from_toml(sys.argv[1]))
assert result.compiled
print(result.coefficients, "torch._dynamo" in sys.modules or "torch._inductor" in sys.modules)
"""


def test_the_next_process_does_not_load_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "programs"))
    SPEC.to_toml(tmp_path / "spec.toml")
    command = [sys.executable, "-c", FIT, tmp_path / "spec.toml"]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(2)]
    assert [run.stderr for run in runs] == ["", ""]
    (first, first_loads), (second, second_loads) = (run.stdout.strip().rsplit(" ", 1) for run in runs)
    assert (first_loads, second_loads) == ("True", "False")
    assert first == second  # to the last digit


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: b""], ids=["truncated", "empty"])
def test_a_program_that_is_not_whole_is_made_again(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    usual = torchp3.fit(SPEC)
    (path,) = tmp_path.glob("*.pt2")
    path.write_bytes(damage(path.read_bytes()))
    program.load.cache_clear()
    again = torchp3.fit(SPEC)
    assert again.compiled
    assert again.losses.tobytes() == usual.losses.tobytes()
    assert len(path.read_bytes()) > 1000


def test_where_nothing_can_be_kept_a_program_is_for_this_process(monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/cache")
    assert program.directory() == program.scratch()
    assert program.scratch().is_dir()


def test_programs_are_where_pytorch_keeps_its_own_or_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "a"))
    assert program.directory() == tmp_path / "a"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert program.directory() == tmp_path / "b" / "torchp3"
    assert program.directory().is_dir()


def test_one_program_does_for_all_numbers_of_points_and_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for points, steps in [(100, 10), (7, 30), (50, 50), (2, 2), (2000, 100)]:
        spec = SPEC.replace({"data": {"points": points}, "steps": steps, "log_every": steps, "dtype": "float64"})
        compiled, eager = torchp3.fit(spec), torchp3.fit(spec.replace({"jit": False}))
        assert compiled.losses == pytest.approx(eager.losses, rel=1e-12)
    assert len(list(tmp_path.glob("*.pt2"))) == 1


def test_a_caller_who_traces_sees_no_flag_left_behind():
    def refuse(*_):
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        program.fingerprint(refuse, (torch.ones(2),), None)
    assert not torch.compiler.is_compiling()
