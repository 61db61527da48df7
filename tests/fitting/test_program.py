"""PyTorch's compiled programs: found again by what they do, whatever became of the rest, and never taken for others."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch

import torchp3
from p3.fitting.training import blank_steps
from tests.support.problems import PROBLEMS
from torchp3 import operator
from torchp3.fitting import program, train
from torchp3.fitting.optimizer import initial_state

SPEC = PROBLEMS["asymmetric"].replace({"steps": 20, "log_every": 10})


def fingerprint_of(changes=None, about=None):
    """Of the step of a specification."""
    spec = SPEC.replace(changes or {})
    shard = train.place(spec)
    start = train.place_coefficients(spec, spec.start.model_dump())
    told = {name: torch.as_tensor(values[0]) for name, values in blank_steps(spec, 1).items()}
    arguments = (start, initial_state(spec.optimizer, start)), shard, told
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


def test_what_a_program_does_tells_programs_apart():
    changes = [
        {},
        {"dtype": "float64"},
        {"trace": False},
        {"batch_size": 10},
        {"batch_size": 1},
        {"optimizer": {"momentum": 0.9}},
        {"optimizer": {"momentum": 0.8}},
        {"optimizer": {"momentum": 0.9, "nesterov": True}},
        {"optimizer": {"weight_decay": 1e-9}},
        {"optimizer": {"clip_norm": 1.0}},
        {"optimizer": {"name": "adam"}},
        {"optimizer": {"name": "adam", "beta2": 0.99}},
    ]
    assert len({fingerprint_of(each) for each in changes}) == len(changes)


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
        lambda x, y: torch.tensor(2.0) * x + y,
        lambda x, y: torch.tensor(3.0) * x + y,
        lambda x, y: torch.as_tensor(np.array(2.0)) * x + y,
        lambda x, y: torch.tensor([1.0, 2.0]).sum() * x + y,
        lambda x, y: torch.tensor([2.0, 1.0]).sum() * x + y,
    ]
    digests = [program.fingerprint(function, (x, x.clone()), None) for function in functions]
    assert len(set(digests)) == len(functions)


@pytest.mark.parametrize("factor", [4, torch.tensor(4.0), np.float32(4)], ids=["number", "tensor", "NumPy"])
def test_another_rule_is_another_program(factor, monkeypatch):
    before = fingerprint_of()
    derivative = operator.derivative
    monkeypatch.setattr(operator, "derivative", lambda x: factor * derivative(x))
    assert fingerprint_of() != before


def test_whatever_else_decides_a_program_tells_programs_apart(tmp_path, monkeypatch):
    before = fingerprint_of()
    assert fingerprint_of(about={"cpp.threads": 2}) != before
    other = tmp_path / "other.py"
    other.write_text("# another version of this file\n", encoding="utf-8")
    for of, name, value in [
        (torch, "__version__", "2.99"),
        (torch.cpu, "get_capabilities", lambda: {"avx": False}),
        (program, "__file__", str(other)),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(of, name, value)
            assert fingerprint_of() != before, name
    assert fingerprint_of() == before


@pytest.fixture
def compiled(monkeypatch):
    """The paths and options with which programs would be compiled, and are not."""
    made = []
    monkeypatch.setattr(
        train, "load", mock.Mock(side_effect=[RuntimeError, RuntimeError, None] * 10)
    )  # not there, and then there
    monkeypatch.setattr(train, "trace", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(train, "compile_program", lambda *arguments: made.append((arguments[-1], arguments[-2])))
    return made


def make_loop(spec, length=2, fits=None):
    shard = train.place(spec)
    start = spec.start.model_dump()
    start = train.place_coefficients(spec, start if fits is None else {name: np.ones(fits) for name in start})
    train.compile_loop(spec, (start, initial_state(spec.optimizer, start)), shard, length)


def test_threads_are_for_many_numbers(compiled):
    for points, fits in [(2**14 - 1, None), (2**14, None), (2000, 2), (2000, 16)]:
        make_loop(SPEC.replace({"data": {"points": points}}), fits=fits)
    make_loop(SPEC.replace({"data": {"points": 2**14}, "batch_size": 10}))
    many = torch.get_num_threads()
    assert [options["cpp.threads"] for _, options in compiled] == [1, many, 1, many, 1]


def test_a_step_alone_and_other_numbers_of_fits_are_other_programs(compiled, tmp_path, monkeypatch):
    make_loop(SPEC)
    make_loop(SPEC, length=1)
    make_loop(SPEC, fits=2)
    make_loop(SPEC, fits=4)
    other = tmp_path / "other.py"
    other.write_text("# another version of this file\n", encoding="utf-8")
    monkeypatch.setattr(train, "__file__", str(other))
    make_loop(SPEC)
    assert len({path for path, _ in compiled}) == 5


def test_sums_of_many_points_are_of_another_program_whichever_is_compiled_first(compiled):
    for points in (2, 4096, 4097, 2**14 - 1):
        make_loop(SPEC.replace({"data": {"points": points}}))
    few, still_few, many, still_many = (path for path, _ in compiled)
    assert few == still_few != many == still_many


FIT = """
import sys, torchp3
from p3 import TrainingSpec
result = torchp3.fit(TrainingSpec.from_toml(sys.argv[1]))
assert result.compiled
print(result.coefficients)
print("torch._dynamo" in sys.modules or "torch._inductor" in sys.modules)
"""


DOUBLE = SPEC.replace({"data": {"points": 100}, "steps": 10, "dtype": "float64"})


def test_a_process_that_finds_a_program_does_not_load_the_compiler(tmp_path):
    fitted = torchp3.fit(DOUBLE)  # which compiles it, if no other test has
    assert fitted.compiled
    DOUBLE.to_toml(tmp_path / "spec.toml")
    command = [sys.executable, "-c", FIT, tmp_path / "spec.toml"]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == (f"{fitted.coefficients}\nFalse\n", "")  # to the last digit


@pytest.mark.slow
def test_the_next_process_does_not_load_the_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path / "programs"))
    SPEC.to_toml(tmp_path / "spec.toml")
    command = [sys.executable, "-c", FIT, tmp_path / "spec.toml"]
    # Under a umask that takes nothing away: what the one process writes is what the next one uses.
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, umask=0) for _ in range(2)]
    assert [run.stderr for run in runs] == ["", ""]
    (first, first_loads), (second, second_loads) = (run.stdout.splitlines() for run in runs)
    assert (first_loads, second_loads) == ("True", "False")
    assert first == second  # to the last digit


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: b""], ids=["truncated", "empty"])
def test_a_program_that_is_not_whole_is_made_again(damage, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path))
    usual = torchp3.fit(SPEC)
    (path,) = tmp_path.glob("*.pt2")
    path.write_bytes(damage(path.read_bytes()))
    program.load.cache_clear()
    again = torchp3.fit(SPEC)
    assert again.compiled
    assert again.losses.tobytes() == usual.losses.tobytes()
    assert len(path.read_bytes()) > 1000


@pytest.mark.parametrize("where", ["/dev/null/programs", "a file"])
def test_where_nothing_can_be_kept_a_program_is_for_this_process(where, tmp_path, monkeypatch):
    if where == "a file":
        where = tmp_path / "file"
        where.touch()
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(where))
    assert program.path_of("name.pt2") == program.scratch() / "name.pt2"
    assert program.scratch().is_dir()


def test_programs_are_in_the_users_cache_or_where_they_are_wanted(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path / "a"))
    assert program.path_of("name.pt2") == tmp_path / "a" / "name.pt2"
    monkeypatch.delenv("TORCHP3_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "c"))  # as PyTorch's compiler sets it when it loads
    assert program.path_of("name.pt2") == tmp_path / "b" / "torchp3" / "name.pt2"
    assert (tmp_path / "b" / "torchp3").is_dir()


# --- whose programs are run


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A directory of programs, with one in it, both of this user alone."""
    folder = tmp_path / "programs"
    folder.mkdir(0o700)
    (folder / "name.pt2").touch(0o600)
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(folder))
    program.warn_once.cache_clear()
    return folder


def assert_not_used(reason, *more):
    """Neither this program is used nor any of these, and one line says why."""
    names = ["name.pt2", *more]
    with pytest.warns(RuntimeWarning) as caught:
        paths = [program.path_of(name) for name in names]
    assert paths == [program.scratch() / name for name in names]
    (said,) = (str(warning.message) for warning in caught)
    assert said == (
        f"the cache of compiled programs is not used: {reason}; make it writable by this user alone (chown, "
        "chmod go-w), or set TORCHP3_CACHE_DIR to another directory"
    )
    assert program.scratch().stat().st_mode & 0o777 == 0o700


as_root = pytest.mark.skipif(getattr(os, "getuid", lambda: None)() != 0, reason="only root can give files away")
SOMEBODY = 54321


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077], ids=oct)
def test_the_directory_is_made_for_its_user_alone(umask, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path / "a" / "b"))
    before = os.umask(umask)
    try:
        assert program.path_of("name.pt2") == tmp_path / "a" / "b" / "name.pt2"
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "b")] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750], ids=oct)
def test_others_may_read_programs(mode, cache):
    cache.chmod(mode)
    (cache / "name.pt2").chmod(0o644)
    assert program.path_of("name.pt2") == cache / "name.pt2"
    assert program.path_of("new.pt2") == cache / "new.pt2"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720, 0o702], ids=oct)
def test_a_directory_that_others_can_write_is_not_used(mode, cache):
    cache.chmod(mode)
    assert_not_used(f"other users can write to {cache}", "new.pt2")


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602], ids=oct)
def test_a_program_that_others_can_write_is_not_used(mode, cache):
    (cache / "name.pt2").chmod(mode)
    assert_not_used(f"other users can write to {cache / 'name.pt2'}")
    assert program.path_of("new.pt2") == cache / "new.pt2"


def test_another_users_directory_is_not_used(cache, monkeypatch):
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert_not_used(f"{cache} belongs to another user")


@as_root
def test_root_uses_nothing_of_another_users(cache):
    os.chown(cache / "name.pt2", SOMEBODY, -1)
    assert_not_used(f"{cache / 'name.pt2'} belongs to another user")
    os.chown(cache, SOMEBODY, -1)
    assert_not_used(f"{cache} belongs to another user", "new.pt2")


def test_a_link_is_as_safe_as_what_it_leads_to(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path / "link"))
    (tmp_path / "link").symlink_to(cache)
    assert program.path_of("name.pt2") == tmp_path / "link" / "name.pt2"
    cache.chmod(0o777)
    assert_not_used(f"other users can write to {tmp_path / 'link'}")


def test_a_link_in_the_directory_is_as_safe_as_what_it_leads_to(cache, tmp_path):
    (cache / "name.pt2").rename(tmp_path / "elsewhere")
    (cache / "name.pt2").symlink_to(tmp_path / "elsewhere")
    assert program.path_of("name.pt2") == cache / "name.pt2"
    (tmp_path / "elsewhere").chmod(0o666)
    assert_not_used(f"other users can write to {cache / 'name.pt2'}")


@as_root
def test_another_users_link_and_what_it_leads_to_are_not_used(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path / "link"))
    (tmp_path / "link").symlink_to(cache)
    os.chown(tmp_path / "link", SOMEBODY, -1, follow_symlinks=False)
    assert_not_used(f"{tmp_path / 'link'} belongs to another user")
    os.chown(tmp_path / "link", os.getuid(), -1, follow_symlinks=False)
    os.chown(cache, SOMEBODY, -1)
    program.warn_once.cache_clear()
    assert_not_used(f"{tmp_path / 'link'} belongs to another user")


def test_a_directory_that_others_can_replace_is_not_used(cache, tmp_path):
    tmp_path.chmod(0o1777)  # as /tmp is
    assert program.path_of("name.pt2") == cache / "name.pt2"
    tmp_path.chmod(0o777)
    assert_not_used(f"all users can replace what is in {tmp_path}")


def test_where_there_are_no_user_ids_nothing_is_checked(cache, monkeypatch):
    cache.chmod(0o777)
    monkeypatch.delattr(os, "getuid")
    assert program.path_of("name.pt2") == cache / "name.pt2"


def test_a_program_that_is_not_used_is_not_loaded(cache, compiled):
    cache.chmod(0o777)
    with pytest.warns(RuntimeWarning, match=f"is not used: other users can write to {cache}; "):
        make_loop(SPEC)
    ((path, _),) = compiled
    assert path.parent == program.scratch()
    assert {call.args for call in train.load.call_args_list} == {(path,)}


def test_the_command_says_in_one_line_that_the_cache_is_not_used(cache):
    cache.chmod(0o777)
    finished = subprocess.run(
        [sys.executable, "-m", "torchp3", "--steps", "20"],
        capture_output=True,
        text=True,
        env=os.environ | {"CXX": "no-such-compiler"},  # to compile would take long
    )
    assert finished.returncode == 0
    said, eagerly = finished.stderr.splitlines()
    assert "runs eagerly: No working C++ compiler" in eagerly
    assert said.startswith(f"torchp3: the cache of compiled programs is not used: other users can write to {cache}; ")
    assert [path.name for path in cache.iterdir()] == ["name.pt2"]


@pytest.mark.slow
def test_a_program_comes_to_its_place_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(program.os, "replace", mock.Mock(side_effect=OSError("the process ends here")))
    with pytest.raises(OSError, match="ends here"):
        torchp3.fit(SPEC)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []


@pytest.mark.slow
def test_threads_and_processes_may_need_a_program_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path / "programs"))
    SPEC.to_toml(tmp_path / "spec.toml")
    command = [sys.executable, "-c", FIT, tmp_path / "spec.toml"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    specs = [SPEC, SPEC, SPEC.replace({"optimizer": {"name": "adam"}}), SPEC.replace({"optimizer": {"momentum": 0.5}})]
    for _ in range(3):
        with ThreadPoolExecutor(len(specs)) as pool:
            results = list(pool.map(torchp3.fit, specs))
        assert not torch.compiler.is_compiling()
    for spec, result in zip(specs, results, strict=True):
        assert result.losses.tobytes() == torchp3.fit(spec).losses.tobytes()
    outputs = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # The second line, whether the process loaded the compiler, depends on which of them was first.
    assert outputs[0].splitlines()[0] == outputs[1].splitlines()[0]


def assert_all_numbers_of_points_and_steps_compile():
    # Without Dynamo, which takes a size for any or for this one by what else it has traced in this process.
    with torch.compiler.set_stance("fail_on_recompile"):
        for points, steps in [(100, 10), (7, 30), (50, 50), (2, 2), (2000, 100)]:
            spec = DOUBLE.replace({"data": {"points": points}, "steps": steps, "log_every": steps})
            compiled, eager = torchp3.fit(spec), torchp3.fit(spec.replace({"jit": False}))
            assert compiled.losses == pytest.approx(eager.losses, rel=1e-12)


def test_one_program_does_for_all_numbers_of_points_and_steps(monkeypatch):
    load = mock.Mock(wraps=program.load)
    monkeypatch.setattr(train, "load", load)
    assert_all_numbers_of_points_and_steps_compile()
    assert len({call.args for call in load.call_args_list}) == 1


@pytest.mark.slow
def test_one_program_is_kept_for_all_numbers_of_points_and_steps(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHP3_CACHE_DIR", str(tmp_path))
    assert_all_numbers_of_points_and_steps_compile()
    assert len(list(tmp_path.glob("*.pt2"))) == 1


def test_a_caller_who_traces_sees_no_flag_left_behind():
    def refuse(*_):
        raise ValueError("refused")

    with pytest.raises(ValueError, match="refused"):
        program.fingerprint(refuse, (torch.ones(2),), None)
    assert not torch.compiler.is_compiling()
