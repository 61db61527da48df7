"""The fixtures of all tests."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from p3 import TrainingSpec
from p3.backends import BACKENDS, BackendName
from tests.support.problems import PROBLEMS


@pytest.fixture(scope="session", autouse=True)
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is compiled is compiled by these tests, and shared by all their processes and those that they start."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("TORCHP3_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
            patch.setenv(variable, str(base / variable))
        # Of what calls the kernels, which is most of a program and computes nothing.
        patch.setenv("AOT_INDUCTOR_COMPILE_WRAPPER_OPT_LEVEL", "O0")
        # That the compiler knows this processor is otherwise tried in every process, which takes seconds.
        patch.setenv("TORCHINDUCTOR_VEC_ISA_OK", "1")
        # JAX compiles each operation anew in each process, and keeps by itself only what takes a second.
        for option, value in {
            "jax_compilation_cache_dir": str(base / "JAX_COMPILATION_CACHE_DIR"),
            "jax_persistent_cache_min_compile_time_secs": 0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }.items():
            patch.setenv(option.upper(), str(value))
            if "jax" in sys.modules:  # which reads the environment when it is imported
                sys.modules["jax"].config.update(option, value)
        yield


@pytest.fixture(scope="session", autouse=True)
def interrupts() -> Iterator[None]:
    """Processes that the tests start can be interrupted, also where a shell has started the tests in its background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    return request.param


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> TrainingSpec:
    return PROBLEMS[request.param]


@pytest.fixture(params=[True, False], ids=["compiled", "eager"])
def jit(request: pytest.FixtureRequest) -> bool:
    return request.param
