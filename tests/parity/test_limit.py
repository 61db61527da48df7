"""A call that takes longer than it may fails its check, in one line, and nothing waits for it."""

import mmap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import jaxp3
import p3
import torchp3
from p3 import InputError, parity
from p3.parity import limit
from tests.support.commands import run
from tests.support.right_pairs import LINE


def until_small(x):
    """The square root by Newton's method, until the error is 1e-6: never, in half precision."""
    y = 1 + 0 * x
    while (y * y - x).abs().max() > 1e-6:
        y = 0.5 * (y + x / y)
    return 0.5 * (y + x / y)


POSITIVE = np.linspace(1.0, 3.0, 5)


def check(in_torch, in_jax, **options):
    return parity.check(torchp3.as_operator(in_torch), jaxp3.as_operator(in_jax), POSITIVE, **options)


def test_a_loop_without_end_in_half_precision_fails_that_check():
    report = check(
        until_small, jnp.sqrt, only=["value", "low precision", "repeatable"], timeout=2.0, dtypes=["float16"]
    )
    assert [result.name for result in report.failed] == ["low precision"]
    (finding,) = report["low precision"].findings
    assert str(finding) == "the reference, float16, value, against its time limit: it takes longer than 2 s"


def test_a_loop_that_catches_exceptions_is_interrupted():
    def stubborn(x):
        while x.dtype == torch.float32:
            with suppress(Exception):
                time.sleep(0.01)
        return torch.sin(x)

    report = check(stubborn, jnp.sin, only=["value"], timeout=0.5)
    assert "takes longer than 0.5 s" in report["value"].note


HOARDS = {
    "torch": lambda x: [torch.ones(2**25, dtype=x.dtype) for _ in range(24)] and x,
    "jax": lambda x: [jnp.ones(2**25, x.dtype) for _ in range(24)] and x,
    "closed_form": lambda x: [np.ones(2**25) for _ in range(24)] and x,
}


@pytest.fixture
def little_memory(monkeypatch):
    """The process can allocate 1 GiB more than it has."""
    resource = pytest.importorskip("resource")
    if limit.memory_left() is None:  # macOS has no /proc, and CUDA reserves more addresses than the machine has memory
        pytest.skip("a check's memory is limited on Linux without an NVIDIA GPU alone, and this machine is another")
    with open("/proc/self/statm") as reserved:
        most = int(reserved.read().split()[0]) * mmap.PAGESIZE + 2**30
    monkeypatch.setattr(limit, "memory_left", lambda: most)
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    assert resource.getrlimit(resource.RLIMIT_AS) == before


@pytest.mark.parametrize("side", HOARDS)
def test_a_function_that_takes_all_memory_is_an_error_of_the_input(side, little_memory):
    given = {"torch": torch.sin, "jax": jnp.sin, "inputs": POSITIVE} | {side: HOARDS[side]}
    with pytest.raises(InputError, match=r"cannot be called.*([Mm]emory|Unable to allocate)"):
        p3.check(**given, only="value")


def test_a_function_that_takes_all_memory_in_half_precision_is_told_by_that_check(little_memory):
    report = check(
        lambda x: HOARDS["torch"](x) and x.sin() if x.dtype == torch.float16 else x.sin(),
        jnp.sin,
        only=["value", "dtypes"],
        dtypes=["float16", "float32"],
    )
    assert report["value"].verdict == "passed"
    assert "can't allocate memory" in report["dtypes"].note


def test_checks_in_threads_leave_the_limit_of_memory_as_it_was(little_memory):
    with ThreadPoolExecutor(3) as pool:
        reports = list(pool.map(lambda _: check(torch.sin, jnp.sin, only="value"), range(6)))
    assert all(report.ok for report in reports)


def test_a_function_that_takes_too_long_at_once_is_an_error_of_the_input():
    with pytest.raises(InputError, match=r"the reference, value: it takes longer than 0\.2 s"):
        check(lambda x: [time.sleep(0.01) for _ in range(1000)] and x, jnp.sin, timeout=0.2)
    with pytest.raises(InputError, match=r"closed_form: it takes longer than 0\.2 s"):
        check(torch.sin, jnp.sin, timeout=0.2, closed_form=lambda x: [time.sleep(0.01) for _ in range(1000)] and x)


@pytest.mark.parametrize("timeout", [0, -1.0, "soon"])
def test_a_timeout_is_a_number_of_seconds(timeout):
    with pytest.raises(InputError, match="no number of seconds above 0"):
        check(torch.sin, jnp.sin, timeout=timeout)


def test_with_time_enough_all_is_as_without():
    sides = torchp3.as_operator(torch.sin), jaxp3.as_operator(lambda x: 1.01 * jnp.sin(x))
    plain, limited = (
        parity.check(*sides, LINE, only=["value", "vjp", "jvp", "batched"], **options)
        for options in ({}, {"timeout": 60.0})
    )
    assert str(plain) == str(limited)
    assert threading.active_count() < 20


ENDLESS = """
import jax, jax.numpy as jnp, torch
def f(x): return torch.sin(x)
def g(x):
    most = 10 if x.dtype == jnp.float16 else -1
    loop = jax.lax.while_loop(lambda n: n < most, lambda n: (n + 1) % 7, 0)
    return jnp.where(loop > 100, x, jnp.sin(x))
"""


@pytest.mark.slow
def test_what_cannot_be_interrupted_is_left_and_the_command_ends(tmp_path):
    (tmp_path / "my_ops.py").write_text(ENDLESS)
    sides = ["my_ops:f", "my_ops:g", "--input", "linspace(0.5, 1, 5)"]
    options = ["--only", "value", "--only", "low precision", "--timeout", "2"]
    begin = time.monotonic()
    finished = run("p3", "check", *sides, *options, cwd=tmp_path)
    assert finished.returncode == 1, finished.stderr
    assert "the port, float16, value, against its time limit: it takes longer than 2 s" in finished.stdout
    assert time.monotonic() - begin < 100
