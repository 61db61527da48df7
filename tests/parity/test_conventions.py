"""Where the values differ, the convention that porters confuse is named."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

import jaxp3
import torchp3
from p3 import check, parity

RANDOM = np.random.default_rng(0)
ROWS = 0.3 * RANDOM.normal(size=(4, 8))
SQUARE = RANDOM.normal(size=(8, 8))
LABELS = np.array([0, 3, -100, 7])
IMAGES, KERNEL = RANDOM.normal(size=(1, 2, 6, 6)), RANDOM.normal(size=(3, 2, 3, 3))
HEADS = tuple(np.random.default_rng(seed).normal(size=(2, 5, 4)) for seed in range(3))


def layer_norm(x, epsilon):
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred * centred).mean(-1, keepdims=True) + epsilon)


def convolution(x, kernel, padding):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(padding, padding)] * 2)


def attention(q, k, v, scale=0.5, offset=None):
    scores = scale * q @ k.swapaxes(-1, -2)
    if offset is not None:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool), offset), scores, -jnp.inf)
    return jax.nn.softmax(scores) @ v


def attention_in_torch(q, k, v):
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    kept = torch.tril(torch.ones(scores.shape[-2:], dtype=torch.bool))
    return torch.softmax(scores.masked_fill(~kept, -torch.inf), -1) @ v


def rotated_in_torch(x):
    first, second = x.chunk(2, -1)
    angles = torch.arange(4, dtype=x.dtype)
    return torch.cat((first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()), -1)


def rotated_interleaved(x):
    first, second, angles = x[..., 0::2], x[..., 1::2], jnp.arange(4, dtype=x.dtype)
    turned = first * jnp.cos(angles) - second * jnp.sin(angles), second * jnp.cos(angles) + first * jnp.sin(angles)
    return jnp.stack(turned, -1).reshape(x.shape)


def swiglu_in_torch(x):
    gate, up = x.chunk(2, -1)
    return functional.silu(gate) * up


def swiglu_exchanged(x):
    up, gate = jnp.split(x, 2, -1)
    return jax.nn.silu(gate) * up


def cross_entropy(logits, labels, smoothing=0.0, mean=True, ignored=-100):
    log_probabilities, kept = jax.nn.log_softmax(logits), labels != ignored
    chosen = jnp.take_along_axis(log_probabilities, jnp.where(kept, labels, 0)[:, None], 1)[:, 0]
    losses = kept * -((1 - smoothing) * chosen + smoothing * log_probabilities.mean(-1))
    return losses.sum() / kept.sum() if mean else losses.sum()


def rms(x, epsilon=1e-3):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + epsilon)


PLANTED = {
    "LayerNorm's epsilon": (lambda x: functional.layer_norm(x, (8,)), lambda x: layer_norm(x, 1e-6), ROWS, "eps=1e-06"),
    "no epsilon": (lambda x: functional.layer_norm(x, (8,)), lambda x: layer_norm(x, 0.0), ROWS, "eps=0.0"),
    "RMSNorm's epsilon": (
        lambda x: functional.rms_norm(x, (8,), eps=1e-5),
        lambda x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6),
        ROWS,
        "eps=1e-06",
    ),
    "epsilon by hand": (
        lambda x: rms(x, 1e-5),
        lambda x: x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-6),
        ROWS,
        "small constant that is added is 1e-06",
    ),
    "epsilon outside the root": (
        rms,
        lambda x: x / (jnp.sqrt((x * x).mean(-1, keepdims=True)) + 1e-3),
        ROWS,
        "outside the root",
    ),
    "epsilon inside the root": (
        lambda x: x / (torch.sqrt((x * x).mean(-1, keepdim=True)) + 1e-3),
        lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 1e-3),
        ROWS,
        "inside the root",
    ),
    "GELU by tanh": (functional.gelu, jax.nn.gelu, ROWS, "gelu has approximate='tanh'"),
    "GELU by erf": (
        lambda x: functional.gelu(x, approximate="tanh"),
        lambda x: jax.nn.gelu(x, approximate=False),
        ROWS,
        "gelu has approximate='none'",
    ),
    "variance by n": (lambda x: x.var(-1), lambda x: x.var(-1), ROWS, "correction=0"),
    "standard deviation by n − 1": (
        lambda x: x.std(-1, unbiased=False),
        lambda x: x.std(-1, ddof=1),
        ROWS,
        "correction=1",
    ),
    "softmax's axis": (lambda x: torch.softmax(x, -1), lambda x: jax.nn.softmax(x, 0), ROWS, "softmax has dim=(0|-2)"),
    "sum for mean": (lambda x: (x * x).mean(), lambda x: (x * x).sum(), ROWS, "the mean is a sum"),
    "mean for sum": (lambda x: (x * x).sum(-1), lambda x: (x * x).mean(-1), ROWS, "the sum is a mean"),
    "a loss's sum": (
        lambda x: functional.mse_loss(x, torch.zeros_like(x)),
        lambda x: (x * x).sum(),
        ROWS,
        "reduction='sum'",
    ),
    "cross entropy's sum": (
        functional.cross_entropy,
        lambda x, y: cross_entropy(x, y, mean=False),
        (ROWS, LABELS),
        "reduction='sum'",
    ),
    "label smoothing": (
        functional.cross_entropy,
        lambda x, y: cross_entropy(x, y, smoothing=0.1),
        (ROWS, LABELS),
        "label_smoothing=0.1",
    ),
    "another ignored label": (
        functional.cross_entropy,
        lambda x, y: cross_entropy(x, y, ignored=0),
        (ROWS, np.array([0, 3, 0, 7])),
        "ignore_index=0",
    ),
    "batchmean": (
        lambda x: functional.kl_div(torch.log_softmax(x, -1), torch.softmax(2 * x, -1), reduction="mean"),
        lambda x: (jax.nn.softmax(2 * x) * (jax.nn.log_softmax(2 * x) - jax.nn.log_softmax(x))).sum() / 4,
        ROWS,
        "reduction='batchmean'",
    ),
    "leaky ReLU's slope": (
        lambda x: functional.leaky_relu(x, 0.2),
        jax.nn.leaky_relu,
        ROWS,
        "negative_slope=0.01",
    ),
    "a transposed weight": (functional.linear, lambda x, w: x @ w, (ROWS, SQUARE), "the weight is transposed"),
    "a transposed matrix": (lambda x, w: x @ w, lambda x, w: x @ w.T, (ROWS, SQUARE), "the weight is transposed"),
    "a flipped kernel": (
        lambda x, w: functional.conv2d(x, w, padding=1),
        lambda x, w: convolution(x, w[:, :, ::-1, ::-1], 1),
        (IMAGES, KERNEL),
        "the kernel is flipped",
    ),
    "attention without its scale": (
        functional.scaled_dot_product_attention,
        lambda q, k, v: attention(q, k, v, scale=1.0),
        HEADS,
        "scale=1.0",
    ),
    "attention by hand without its scale": (
        attention_in_torch,
        lambda q, k, v: attention(q, k, v, scale=1.0, offset=0),
        HEADS,
        "there is no scale",
    ),
    "a causal mask forgotten": (
        lambda q, k, v: functional.scaled_dot_product_attention(q, k, v, is_causal=True),
        attention,
        HEADS,
        "is_causal=False",
    ),
    "a causal mask off by one": (
        attention_in_torch,
        lambda q, k, v: attention(q, k, v, offset=1),
        HEADS,
        "tril has diagonal=1",
    ),
    "interleaved rotary embeddings": (rotated_in_torch, rotated_interleaved, ROWS, "interleaved"),
    "gate and value exchanged": (swiglu_in_torch, swiglu_exchanged, ROWS, "the halves are exchanged"),
    "corners": (
        lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True),
        lambda x: jax.image.resize(x, (1, 2, 12, 12), "bilinear"),
        IMAGES,
        "align_corners=False",
    ),
    "FFT's norm": (torch.fft.fft, lambda x: jnp.fft.fft(x, norm="ortho"), ROWS, "norm='ortho'"),
    "cosine similarity's epsilon": (
        lambda x: functional.normalize(x, dim=-1, eps=1.0),
        lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12),
        ROWS,
        "eps=",
    ),
}


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides")
@pytest.mark.parametrize("side", ["reference", pytest.param("port", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (k % 3 > 0)) for k, name in enumerate(PLANTED)]
)
def test_the_convention_is_named_on_the_first_lines(name, side):
    in_torch, in_jax, inputs, says = PLANTED[name]
    sides = torchp3.as_operator(in_torch), jaxp3.as_operator(in_jax)
    report = parity.check(*(sides if side == "reference" else sides[::-1]), inputs, only="value")
    assert not report.ok
    assert f"both agree if in the {side} " in report.first.explanation
    assert re.search(says, report.first.explanation), report.first.explanation


def test_there_are_as_many_as_should_be():
    assert len(PLANTED) >= 30


@pytest.mark.parametrize(
    ("in_torch", "in_jax"),
    [
        (torch.sin, lambda x: 1.01 * jnp.sin(x)),
        (functional.gelu, jnp.tanh),
        (lambda x: functional.layer_norm(x, (8,)), lambda x: layer_norm(x, 1e-5) + 1e-3),
    ],
)
def test_where_none_explains_the_difference_none_is_named(in_torch, in_jax):
    report = parity.check(torchp3.as_operator(in_torch), jaxp3.as_operator(in_jax), ROWS, only="value")
    assert not report.ok
    assert "both agree" not in str(report)


HIDDEN = {
    "a slope that no input has": (
        lambda x: functional.leaky_relu(x).sum(),
        lambda x: jax.nn.leaky_relu(x).sum(),
        np.linspace(0.1, 2, 5),
        "leaky_relu has negative_slope=0.1",
    ),
    "small errors alone": (
        functional.huber_loss,
        lambda x, y: jnp.where(abs(x - y) < 1, (x - y) ** 2 / 2, abs(x - y) - 0.5).mean(),
        (ROWS[0] / 9, ROWS[1] / 9),
        "huber_loss has delta=0.5",
    ),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_a_convention_that_the_inputs_do_not_show_is_named_with_what_to_do(name):
    in_torch, in_jax, inputs, hidden = HIDDEN[name]
    report = check(torch=in_torch, jax=in_jax, inputs=inputs, only="power")
    assert report["power"].verdict == "failed"
    says = f"the values at these inputs are the same if {hidden}; add inputs at which they are not"
    assert says in " ".join(str(report).split())


SHOWN = {
    "every element has a special number": (functional.leaky_relu, jax.nn.leaky_relu, np.linspace(0.1, 2, 5)),
    "a weight that is not symmetric": (functional.linear, lambda x, weight: x @ weight.T, (ROWS, SQUARE)),
    "a symmetric weight, whose gradient is not": (
        functional.linear,
        lambda x, weight: x @ weight.T,
        (ROWS, SQUARE + SQUARE.T),
    ),
    "a sum that is 0": (torch.sum, jnp.sum, np.linspace(-3, 3, 7)),
    "an epsilon in large numbers": (
        lambda x: functional.layer_norm(x, (8,)),
        lambda x: layer_norm(x, 1e-5),
        100 * ROWS,
    ),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_convention_that_the_inputs_show_counts_as_a_fault_that_is_noticed(name):
    in_torch, in_jax, inputs = SHOWN[name]
    result = check(torch=in_torch, jax=in_jax, inputs=inputs, only="power")["power"]
    without = parity.check(jaxp3.as_operator(in_jax), jaxp3.as_operator(in_jax), inputs, only="power")["power"]
    assert (result.verdict, without.verdict) == ("passed", "passed")
    assert int(result.note.split()[2]) > int(without.note.split()[2])


def test_no_convention_changes_what_has_none():
    assert list(torchp3.as_operator(torch.sin).variants((ROWS,))) == []
    values = dict(torchp3.as_operator(functional.gelu).variants((ROWS,)))
    assert set(values) == {"gelu has approximate='none'", "gelu has approximate='tanh'"}
