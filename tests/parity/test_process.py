"""The caller's process: its modes have no part in a check, and a check leaves it as it was."""

import os
import random
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import p3
from p3.parity.process import state_of
from tests.support.sine import Sine

X = np.array([[1.0, 2.0], [3.0, 4.5]])


def quiet(**functions):
    return p3.check(inputs=X, only=["value", "vjp", "process intact"], compiled=False, **functions)


def changes_settings(x):
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    os.environ["OF_A_TEST"] = "1"
    return torch.sin(x)


def sets_seeds(x):
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    return torch.sin(x)


def changes_jax(x):
    jax.config.update("jax_numpy_rank_promotion", "warn")
    np.seterr(all="raise")
    return jnp.sin(x)


def draws(x):
    torch.rand(1)
    random.random()
    np.random.random()
    return torch.sin(x)


def raises(x):
    torch.set_default_dtype(torch.float64)
    os.environ["OF_A_TEST"] = "1"
    raise ValueError("of no use")


def process_state():
    # Sine has no framework, so that this is Python's and NumPy's; the rest are PyTorch's and JAX's.
    return {
        **state_of(Sine()),
        "dtype": torch.get_default_dtype(),
        "random": torch.get_rng_state().tolist(),
        "jax": dict(jax.config.values),
    }


@pytest.mark.parametrize(
    ("functions", "names"),
    [
        (
            {"torch": changes_settings, "jax": jnp.sin},
            {"torch.set_default_dtype", "warnings.filters", "os.environ"},
        ),
        (
            {"torch": sets_seeds, "jax": jnp.sin},
            {"Python's random state", "NumPy's random state", "PyTorch's random state"},
        ),
        ({"torch": torch.sin, "jax": changes_jax}, {"jax_numpy_rank_promotion", "numpy.seterr"}),
    ],
)
def test_what_a_function_changes_is_told_and_put_back(functions, names):
    quiet(torch=torch.sin, jax=jnp.sin).assert_ok()
    before = process_state()
    report = quiet(**functions)
    assert process_state() == before
    (failed,) = report.failed
    assert failed.name == "process intact"
    assert {(finding.place.quantity, finding.explanation) for finding in failed.findings} == {
        (quantity, f"the call changes {name}") for quantity in ("value", "vjp") for name in names
    }


def test_who_draws_random_numbers_changes_nothing():
    quiet(torch=draws, jax=jnp.sin).assert_ok()


def test_a_function_that_raises_leaves_the_process_too():
    before = process_state()
    with pytest.raises(p3.InputError, match="of no use"):
        quiet(torch=raises, jax=jnp.sin)
    assert process_state() == before


@pytest.mark.parametrize(
    "mode",
    [
        lambda: torch.inference_mode(),
        lambda: torch.no_grad(),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: jax.debug_nans(True),
        lambda: jax.disable_jit(True),
        lambda: np.errstate(all="raise"),
    ],
    ids=["inference_mode", "no_grad", "autocast", "debug_nans", "disable_jit", "seterr"],
)
def test_the_callers_modes_have_no_part(mode):
    with mode():
        report = p3.check(torch=lambda x: torch.log(x @ x.T), jax=lambda x: jnp.log(x @ x.T), inputs=X, compiled=False)
    report.assert_ok()


def test_what_another_thread_changes_meanwhile_is_not_the_functions():
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            torch.rand(10)
            np.random.random()

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        for _ in range(3):
            quiet(torch=torch.sin, jax=jnp.sin).assert_ok()
    finally:
        stop.set()
        thread.join()
