"""Models in half and in mixed precision: each layer in the dtype that it runs in, and another dtype is a difference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from torch import nn

import p3

X = np.random.default_rng(0).normal(size=(6, 8))


class TorchNet(nn.Module):
    def __init__(self, autocast=False):
        super().__init__()
        torch.manual_seed(0)
        self.autocast = autocast
        self.one, self.norm, self.two = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.two(torch.relu(self.norm(self.one(x))))


class NnxNet(nnx.Module):
    def __init__(self, dtype=None, norm_dtype=None, param_dtype=jnp.float32):
        rngs = nnx.Rngs(0)
        self.one = nnx.Linear(8, 8, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(8, epsilon=1e-5, dtype=norm_dtype, param_dtype=param_dtype, rngs=rngs)
        self.two = nnx.Linear(8, 4, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

    def __call__(self, x):
        return self.two(jax.nn.relu(self.norm(self.one(x))))


def test_a_model_in_half_precision():
    report = p3.check_model(torch=TorchNet().to(torch.bfloat16), jax=NnxNet(param_dtype=jnp.bfloat16), inputs=X)
    assert report.ok, str(report)
    assert all("bfloat16" in row.forward for row in report.layers)


def test_autocast_against_the_dtypes_of_layers():
    port = NnxNet(dtype=jnp.bfloat16, norm_dtype=jnp.bfloat16)
    report = p3.check_model(torch=TorchNet(autocast=True), jax=port, inputs=X)
    assert report.ok, str(report)


WRONG = {
    "a norm in float32": (
        lambda: TorchNet().to(torch.bfloat16),
        {"param_dtype": jnp.bfloat16, "norm_dtype": jnp.float32},
        "it is float32 in the port, and bfloat16 in the reference",
    ),
    "a norm in bfloat16": (
        TorchNet,
        {"norm_dtype": jnp.bfloat16},
        "it is bfloat16 in the port, and float32 in the reference",
    ),
}


@pytest.mark.parametrize(("make", "options", "text"), WRONG.values(), ids=WRONG)
def test_another_dtype_is_named_once(make, options, text):
    report = p3.check_model(torch=make(), jax=NnxNet(**options), inputs=X)
    (cause,) = [finding for finding in report.findings if finding.kind == "semantic"]
    assert (cause.path, cause.quantity, cause.explanation) == ("norm", "output", text)
