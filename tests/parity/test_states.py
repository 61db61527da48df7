"""Outputs that are states, such as running statistics: they are compared, and no derivative is taken of them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

import jaxp3
import torchp3
from p3 import InputError, check, parity
from tests.support.ported import BATCH, jax_batch_norm, torch_batch_norm

ONLY = ["value", "vjp", "jvp", "vjp of vjp", "transformed", "batched"]
STATISTICS = {"keys": (3, 4), "states": (1, 2), "compiled": False}


def normalized(x):
    return x - x.mean(), x.mean().detach()


def normalized_in_jax(x):
    return x - x.mean(), x.mean()


LINE = np.linspace(-1, 2, 7)


def test_a_state_has_no_derivative_on_either_side():
    assert not check(torch=normalized, jax=normalized_in_jax, inputs=LINE, only=ONLY, compiled=False).ok
    check(torch=normalized, jax=normalized_in_jax, inputs=LINE, only=ONLY, compiled=False, states=1).assert_ok()


def test_a_state_is_compared():
    def doubled(x):
        return x - x.mean(), 2 * x.mean()

    report = check(torch=normalized, jax=doubled, inputs=LINE, only=ONLY, compiled=False, states=(1,))
    assert [(d.quantity, d.path) for d in report.differences] == [("value", "output[1]")]


def test_what_is_no_state_is_differentiated():
    report = check(
        torch=lambda x: (x - x.mean(), x.mean()),
        jax=lambda x: (x - jax.lax.stop_gradient(x.mean()), x.mean()),
        inputs=LINE,
        only="vjp",
        compiled=False,
        states=(1,),
    )
    assert not report.ok


@pytest.mark.parametrize("states", [("mean",), "mean"])
def test_a_state_has_a_name(states):
    def named(f):
        return lambda x: dict(zip(("y", "mean"), f(x), strict=True))

    check(
        torch=named(normalized), jax=named(normalized_in_jax), inputs=LINE, only=ONLY, compiled=False, states=states
    ).assert_ok()


def test_a_state_that_there_is_not_is_refused():
    with pytest.raises(InputError, match=r"^there is no output 'mean'; there are output\[0\], output\[1\]$"):
        check(torch=normalized, jax=normalized_in_jax, inputs=LINE, states="mean")


@pytest.mark.parametrize("package", [torchp3, jaxp3])
def test_an_operator_has_states_of_its_own(package):
    f = normalized if package is torchp3 else normalized_in_jax
    operator = package.as_operator(f, states=(1,))
    ones = (np.ones(7), np.array(1.0))
    assert np.array_equal(operator.vjp((LINE,), ones)[0], np.zeros(7))
    assert operator.jvp((LINE,), ones[:1])[1] == 0
    assert "states=(1,)" in operator.program


def test_floating_states_among_the_arguments_are_not_differentiated_by():
    report = check(torch=torch_batch_norm, jax=jax_batch_norm, inputs=BATCH, only=["value", "vjp"], **STATISTICS)
    assert report.ok
    assert len(report.case.cotangents) == 3
    assert [report.case.structure.paths[i] for i in report.case.arguments] == ["inputs[0]", "inputs[1]", "inputs[2]"]


@pytest.mark.slow
def test_batch_norm_with_its_running_statistics_is_right_in_every_check():
    check(torch=torch_batch_norm, jax=jax_batch_norm, inputs=BATCH, keys=(3, 4), states=(1, 2)).assert_ok()


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        ({"momentum": 0.9}, "both agree if in the reference momentum multiplies the old state"),
        ({"ddof": (0, 0)}, "both agree if in the reference the running variance has correction=0"),
    ],
)
def test_the_convention_of_a_running_statistic_is_named(mistake, says):
    report = check(
        torch=torch_batch_norm,
        jax=lambda *inputs: jax_batch_norm(*inputs, **mistake),
        inputs=BATCH,
        only="value",
        **STATISTICS,
    )
    assert not report.ok
    assert re.search(says, str(report).split("\n\n")[0].replace("\n", " "))


def test_batch_norm_without_states_is_one_all_the_same():
    def f(x):
        return functional.batch_norm(x, None, None, training=True)

    parity.check(torchp3.as_operator(f), torchp3.as_operator(f), BATCH[0], only="value").assert_ok()


def test_a_mask_of_dropout_that_is_recorded_is_an_input_of_both_sides():
    torch.manual_seed(0)
    kept = functional.dropout(torch.ones(5, 4), 0.25).numpy() > 0
    check(
        torch=lambda x, kept: torch.where(kept, x / 0.75, 0),
        jax=lambda x, kept: jnp.where(kept, x / 0.75, 0),
        inputs=(np.linspace(-1, 2, 20).reshape(5, 4), kept),
        only=ONLY,
        compiled=False,
    ).assert_ok()
