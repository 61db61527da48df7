"""`p3.convert` writes one model's parameters into the other, and back to the same bits."""

import numpy as np
import pytest
import torch
from flax import nnx

import p3
from p3.parity.frameworks import as_module
from p3.parity.models.equality import compared
from tests.models import test_models
from tests.models.test_models import PAIRS, marked

pytestmark = test_models.pytestmark

# Two biases of PyTorch's are one in JAX, so that what comes back is their sum.
SUMMED = ("lstm", "gru")


def held(model):
    return {parameter.path: parameter.array for parameter in as_module(model).parameters({})}


@pytest.mark.parametrize("pair", [marked(pair) for pair in PAIRS])
def test_there_and_back(pair):
    """A model that is made anew has the same bits, once the port's parameters are written into it."""
    model, port = pair.torch(), pair.jax()
    match = p3.check_model(torch=model, jax=port, inputs=pair.inputs()).match
    port = p3.convert(model, port, match)
    sides = (as_module(side).parameters({}) for side in (model, port))
    assert all(found.is_equal for found in compared(match, *sides))
    again = pair.torch()
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    p3.convert(port, again, match)
    before, after = held(model), held(again)
    matched = {part.path for link in match.links for part in link.torch}
    for path in matched:
        if pair.name.startswith(SUMMED) and ".bias_" in path:
            continue
        np.testing.assert_array_equal(after[path], before[path], path)


def test_an_nnx_module_is_changed_in_place():
    model, port = torch.nn.Linear(2, 3), nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert p3.convert(model, port) is port
    np.testing.assert_array_equal(port.kernel[...], model.weight.detach().numpy().T)


def test_two_models_of_one_framework():
    with pytest.raises(p3.InputError, match=r"both models are of PyTorch .*; give one of PyTorch and one of JAX"):
        p3.convert(torch.nn.Linear(2, 3), torch.nn.Linear(2, 3))
