"""
Ordinary layers in both frameworks.

`python -m tests.support.layers NAME` checks one by every check that is not compiled, and prints the names of those that
did not pass and the most memory that the process has held, in bytes.
"""

import json
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

RANDOM = np.random.default_rng(0)


def rms_norm_torch(x, weight):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def rms_norm_jax(x, weight):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight


def attention_torch(q, k, v):  # by hand, since PyTorch's own has no second derivatives on a CPU
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return torch.einsum("bhqk,bhkd->bhqd", torch.softmax(scores, -1), v)


def attention_jax(q, k, v):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) / np.sqrt(q.shape[-1]).astype(q.dtype)
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, -1), v)


def convolution_jax(x, filters):
    return jax.lax.conv_general_dilated(x, filters, (1, 1), "VALID")


LAYERS = {
    "RMSNorm": (rms_norm_torch, rms_norm_jax, (RANDOM.normal(size=(64, 512)), RANDOM.normal(size=512))),
    "linear": (torch.matmul, jnp.matmul, (RANDOM.normal(size=(64, 256)), RANDOM.normal(size=(256, 256)))),
    "causal attention": (
        attention_torch,
        attention_jax,
        tuple(RANDOM.normal(size=(2, 4, 64, 32)) for _ in range(3)),
    ),
    "convolution": (
        functional.conv2d,
        convolution_jax,
        (RANDOM.normal(size=(16, 3, 32, 32)), RANDOM.normal(size=(16, 3, 3, 3))),
    ),
}


def most_memory():
    """Linux's own figure, in bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


def main(name):
    import p3

    warnings.simplefilter("ignore")
    in_torch, in_jax, inputs = LAYERS[name]
    report = p3.check(torch=in_torch, jax=in_jax, inputs=inputs, compiled=False)
    verdicts = {check.name: check.verdict for check in report.checks}
    print(json.dumps({"verdicts": verdicts, "bytes": most_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
