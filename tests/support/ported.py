"""Operators that people port today, each as a function in PyTorch and its port in JAX, and realistic mistakes in ports.

The ports have keyword arguments whose defaults are right; most mistakes are another value of one of them.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from jax import lax
from torch.nn import functional

from tests.support.faulty_ports import jax_rule, torch_rule

RANDOM = np.random.default_rng(2024)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape)


class Port(NamedTuple):
    """A function in PyTorch, its port in JAX, inputs, and options of `check`."""

    torch: Callable[..., Any]
    jax: Callable[..., Any]
    inputs: Any
    options: Mapping[str, Any] = MappingProxyType({})
    arguments: tuple[int, ...] | None = None  # to differentiate by


class Fault(NamedTuple):
    """A wrong port of the right one's PyTorch function, and what the line of the first cause matches."""

    right: str
    jax: Callable[..., Any]
    says: str = r"^\W*(value|shapes)"
    options: Mapping[str, Any] = MappingProxyType({})


RULE = r"vjp|jvp"
wrong = functools.partial

# ---- Attention: batch, heads, positions, features ----

HEADS = tuple(normal(1, 2, 4, 3) for _ in range(3))
KEPT = np.array([[True, True, False, True]])


def attention(q, k, v, bias=None, mask=None, scale=None, axis=-1, fill=-jnp.inf):
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask, scores, fill)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=axis), v)


def torch_causal(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def jax_causal(q, k, v, offset=0, **options):
    mask = jnp.tril(jnp.ones((q.shape[2], k.shape[2]), bool), offset)
    return attention(q, k, v, mask=mask, **options)


def jax_causal_after_softmax(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bhqd,bhkd->bhqk", q, k) / math.sqrt(q.shape[-1]))
    return jnp.einsum("bhqk,bhkd->bhqd", jnp.tril(weights), v)


def jax_causal_of_library(q, k, v, **options):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, is_causal=True, **options), 1, 2)


def torch_padded(q, k, v, kept):
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=kept[:, None, None, :])


def torch_padded_by_hand(q, k, v, kept):
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    scores = scores.masked_fill(~kept[:, None, None, :], torch.finfo(scores.dtype).min)
    return torch.softmax(scores, -1) @ v


def jax_padded(q, k, v, kept, invert=False, fill=None):
    fill = jnp.finfo(q.dtype).min if fill is None else fill
    return attention(q, k, v, mask=kept[:, None, None, :] ^ invert, fill=fill)


def jax_padded_or_zero(q, k, v, kept):
    """0 where no position is kept, as PyTorch's is."""
    return jax_padded(q, k, v, kept) * kept.any(-1)[:, None, None, None]


def jax_padded_of_library(q, k, v, kept):
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.nn.dot_product_attention(q, k, v, mask=kept[:, None, None, :]), 1, 2)


def torch_biased(q, k, v, bias):
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def jax_bias_before_scale(q, k, v, bias):
    return attention(q, k, v, bias / math.sqrt(q.shape[-1]))


GROUPED = (normal(1, 4, 3, 2), normal(1, 2, 3, 2), normal(1, 2, 3, 2))


def torch_grouped(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def jax_grouped(q, k, v, tiled=False):
    k, v = (jnp.tile(x, (1, 2, 1, 1)) if tiled else jnp.repeat(x, 2, axis=1) for x in (k, v))
    return attention(q, k, v)


def torch_alibi(q, k, v):
    slopes = torch.tensor([2.0 ** (-8 * (h + 1) / q.shape[1]) for h in range(q.shape[1])], dtype=q.dtype)
    at = torch.arange(q.shape[2])
    bias = slopes[:, None, None] * (at[None, :] - at[:, None])
    return torch_biased(q, k, v, bias.masked_fill(at[None, :] > at[:, None], -math.inf))


def jax_alibi(q, k, v, first=1, sign=1):
    slopes = 2.0 ** (-8 * jnp.arange(first, q.shape[1] + first, dtype=q.dtype) / q.shape[1])
    at = jnp.arange(q.shape[2])
    bias = sign * slopes[:, None, None] * (at[None, :] - at[:, None])
    return attention(q, k, v, bias, mask=at[None, :] <= at[:, None])


def torch_rope(x, positions, interleaved=False):
    half = x.shape[-1] // 2
    angles = positions[:, None].to(x.dtype) * 10000.0 ** (-torch.arange(half, dtype=x.dtype) / half)
    cos, sin = angles.cos(), angles.sin()
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def jax_rope(x, positions, interleaved=False, base=10000.0, first=0, sign=1, divide_by=None):
    half = x.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=x.dtype) / (divide_by or half))
    angles = (positions + first)[:, None].astype(x.dtype) * frequencies
    cos, sin = jnp.cos(angles), sign * jnp.sin(angles)
    if interleaved:
        a, b = x[..., 0::2], x[..., 1::2]
        return jnp.stack((a * cos - b * sin, a * sin + b * cos), -1).reshape(x.shape)
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate((a * cos - b * sin, a * sin + b * cos), -1)


ROPE = (normal(2, 3, 4), np.array([0, 1, 5]))

# ---- Normalization ----


def torch_rms_norm(x, weight):
    return functional.rms_norm(x, (x.shape[-1],), weight, 1e-6)


def torch_rms_norm_in_float32(x, weight):
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def jax_rms_norm(x, weight, epsilon=1e-6, inside=True, plus_one=False, mean=jnp.mean, axis=-1, dtype=None):
    wide = x if dtype is None else x.astype(dtype)
    square = mean(wide * wide, axis=axis, keepdims=True)
    normed = wide * lax.rsqrt(square + epsilon) if inside else wide / (jnp.sqrt(square) + epsilon)
    return (weight + 1 if plus_one else weight) * normed.astype(x.dtype)


ROWS = (normal(3, 5), normal(5))
NORMED = (normal(3, 5), normal(5), normal(5))


def torch_layer_norm(x, weight, bias):
    return functional.layer_norm(x, (x.shape[-1],), weight, bias)


def jax_layer_norm(x, weight, bias, epsilon=1e-5, ddof=0, inside=True, axis=-1):
    centred = x - x.mean(axis, keepdims=True)
    variance = x.var(axis, keepdims=True, ddof=ddof)
    scale = lax.rsqrt(variance + epsilon) if inside else 1 / (jnp.sqrt(variance) + epsilon)
    return centred * scale * weight + bias


def jax_layer_norm_of_stopped_statistics(x, weight, bias):
    mean, variance = lax.stop_gradient((x.mean(-1, keepdims=True), x.var(-1, keepdims=True)))
    return (x - mean) * lax.rsqrt(variance + 1e-5) * weight + bias


def layer_norm_rule(x, weight, bias, cotangent, forget_projection=False, single=False):
    """The gradient by hand."""
    scale = lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
    normed, v = (x - x.mean(-1, keepdims=True)) * scale, cotangent * weight
    along = 0 if forget_projection else normed * (v * normed).mean(-1, keepdims=True)
    gradient = scale * (v - v.mean(-1, keepdims=True) - along)
    if single:
        gradient = gradient.astype(jnp.float32)
    return gradient, (cotangent * normed).sum(0), cotangent.sum(0)


IMAGE = (normal(2, 4, 3), normal(4), normal(4))


def torch_group_norm(x, weight, bias):
    return functional.group_norm(x, 2, weight, bias)


def jax_group_norm(x, weight, bias, epsilon=1e-5, interleaved=False, over=(2, 3)):
    n, c, t = x.shape
    grouped = x.reshape(n, c // 2, 2, t).swapaxes(1, 2) if interleaved else x.reshape(n, 2, c // 2, t)
    normed = (grouped - grouped.mean(over, keepdims=True)) * lax.rsqrt(grouped.var(over, keepdims=True) + epsilon)
    normed = (normed.swapaxes(1, 2) if interleaved else normed).reshape(x.shape)
    return normed * weight[:, None] + bias[:, None]


def torch_batch_norm(x, weight, bias, mean, variance):
    mean, variance = mean.clone(), variance.clone()
    y = functional.batch_norm(x, mean, variance, weight, bias, training=True, momentum=0.1)
    return y, mean.detach(), variance.detach()


def batch_norm_by_hand(x, weight, bias, mean, variance):
    n = x.shape[0] * x.shape[2]
    batch_mean, batch_variance = x.mean((0, 2)), x.var((0, 2), correction=0)
    y = (x - batch_mean[:, None]) * torch.rsqrt(batch_variance[:, None] + 1e-5) * weight[:, None] + bias[:, None]
    return y, 0.9 * mean + 0.1 * batch_mean, 0.9 * variance + 0.1 * batch_variance * n / (n - 1)


def jax_batch_norm(x, weight, bias, mean, variance, momentum=0.1, ddof=(0, 1), over=(0, 2)):
    batch_mean = x.mean(over, keepdims=True)
    y = (x - batch_mean) * lax.rsqrt(x.var(over, keepdims=True, ddof=ddof[0]) + 1e-5)
    running = [
        (1 - momentum) * old + momentum * new
        for old, new in ((mean, x.mean((0, 2))), (variance, x.var((0, 2), ddof=ddof[1])))
    ]
    return y * weight[:, None] + bias[:, None], *running


BATCH = (*IMAGE, normal(4), RANDOM.uniform(0.5, 2, size=4))


def torch_batch_norm_in_evaluation(x, weight, bias, mean, variance):
    return functional.batch_norm(x, mean, variance, weight, bias)


def jax_batch_norm_in_evaluation(x, weight, bias, mean, variance, epsilon=1e-5, root=jnp.sqrt):
    scale = weight / root(variance + epsilon)
    return x * scale[:, None] + (bias - mean * scale)[:, None]


def jax_instance_norm(x, epsilon=1e-5, axis=-1, ddof=0):
    return (x - x.mean(axis, keepdims=True)) * lax.rsqrt(x.var(axis, keepdims=True, ddof=ddof) + epsilon)


def torch_weight_norm(v, g):
    return g[:, None] * v / torch.linalg.vector_norm(v, dim=1, keepdim=True)


def jax_weight_norm(v, g, axis=1):
    return g[:, None] * v / jnp.linalg.norm(v, axis=axis, keepdims=True)


# ---- Gates, cells, routing ----


def torch_swiglu(x, gate, up, down):
    return (functional.silu(x @ gate.T) * (x @ up.T)) @ down.T


def jax_swiglu(x, gate, up, down, activation=jax.nn.silu):
    return (activation(x @ gate.T) * (x @ up.T)) @ down.T


SWIGLU = (normal(2, 3), normal(4, 3), normal(4, 3), normal(3, 4))


def torch_lstm(x, h, c, wx, wh, bias):
    return torch.lstm_cell(x, (h, c), wx, wh, bias, torch.zeros_like(bias))


def jax_lstm(x, h, c, wx, wh, bias, order="ifgo", forget_bias=0.0, last=jnp.tanh):
    gates = dict(zip(order, jnp.split(x @ wx.T + h @ wh.T + bias, 4, -1), strict=True))
    new = jax.nn.sigmoid(gates["f"] + forget_bias) * c + jax.nn.sigmoid(gates["i"]) * jnp.tanh(gates["g"])
    return jax.nn.sigmoid(gates["o"]) * last(new), new


LSTM = (normal(2, 3), normal(2, 2), normal(2, 2), normal(8, 3), normal(8, 2), normal(8))
GRU = (normal(2, 3), normal(2, 2), normal(6, 3), normal(6, 2), normal(6), normal(6))


def jax_gru(x, h, wx, wh, bx, bh, before=False, update=False, order="rzn"):
    xs = dict(zip(order, jnp.split(x @ wx.T + bx, 3, -1), strict=True))
    hs = dict(zip(order, jnp.split(h @ wh.T + bh, 3, -1), strict=True))
    r, z = jax.nn.sigmoid(xs["r"] + hs["r"]), jax.nn.sigmoid(xs["z"] + hs["z"])
    n = h.shape[-1]
    hidden = (r * h) @ wh[2 * n :].T + bh[2 * n :] if before else r * hs["n"]
    new = jnp.tanh(xs["n"] + hidden)
    return z * new + (1 - z) * h if update else (1 - z) * new + z * h


def torch_experts(x, router, experts, wide=True):
    weights = torch.softmax((x @ router).float() if wide else x @ router, -1)
    top, chosen = torch.topk(weights, 2, -1)
    top = (top / top.sum(-1, keepdim=True)).to(x.dtype)
    return torch.einsum("nk,nkd->nd", top, torch.einsum("nd,ndke->nke", x, experts[chosen].permute(0, 2, 1, 3)))


def jax_experts(x, router, experts, normalize=True, stop=False, axis=-1, dtype=jnp.float32):
    weights = jax.nn.softmax((x @ router).astype(dtype or x.dtype), axis=axis)
    top, chosen = lax.top_k(weights, 2)
    if normalize:
        top = top / top.sum(-1, keepdims=True)
    top = (lax.stop_gradient(top) if stop else top).astype(x.dtype)
    return jnp.einsum("nk,nd,nkde->ne", top, x, experts[chosen])


EXPERTS = (normal(3, 4), normal(4, 4), normal(4, 4, 2))


def torch_scan(u, delta, a, b, c):
    h, ys = torch.zeros_like(a), []
    for t in range(u.shape[0]):
        h = torch.exp(delta[t, :, None] * a) * h + delta[t, :, None] * b[t] * u[t, :, None]
        ys.append((h * c[t]).sum(-1))
    return torch.stack(ys)


def jax_scan(u, delta, a, b, c, reverse=False, late=False, by_delta=True):
    def step(h, now):
        u, delta, b, c = now
        old = h
        h = jnp.exp(delta[:, None] * a) * h + (delta[:, None] if by_delta else 1) * b * u[:, None]
        return h, ((old if late else h) * c).sum(-1)

    return lax.scan(step, jnp.zeros_like(a), (u, delta, b, c), reverse=reverse)[1]


SCAN = (
    normal(4, 2),
    RANDOM.uniform(0.1, 1, size=(4, 2)),
    -RANDOM.uniform(0.5, 2, size=(2, 3)),
    normal(4, 3),
    normal(4, 3),
)

# ---- Losses ----

LABELED = (normal(5, 4), np.array([0, 3, -100, 1, 3]))


def jax_cross_entropy(logits, labels, smoothing=0.0, count=True, over=None, reduce="mean", axis=-1):
    kept = labels != -100
    log_p = jax.nn.log_softmax(logits, axis=axis)
    chosen = jnp.take_along_axis(log_p, jnp.where(kept, labels, 0)[:, None], -1)[:, 0]
    if over == "others":
        k = logits.shape[-1]
        loss = -(1 - smoothing) * chosen - smoothing * (log_p.sum(-1) - chosen) / (k - 1)
    else:
        loss = -(1 - smoothing) * chosen - smoothing * log_p.mean(-1)
    total = (loss * kept).sum()
    return total if reduce == "sum" else total / (kept.sum() if count else len(labels))


def torch_focal(x, target):
    loss = functional.binary_cross_entropy_with_logits(x, target, reduction="none")
    p = torch.sigmoid(x)
    p_t = p * target + (1 - p) * (1 - target)
    alpha = 0.25 * target + 0.75 * (1 - target)
    return (alpha * (1 - p_t) ** 2 * loss).mean()


def jax_focal(x, target, gamma=2, alpha=0.25, stop=False, by_parts=False, reduce=jnp.mean):
    loss = jax.nn.softplus(x) - x * target
    if by_parts:  # whose derivatives at 0 add up to 0, not to 0.5
        loss = jnp.maximum(x, 0) - x * target + jnp.log1p(jnp.exp(-jnp.abs(x)))
    p = jax.nn.sigmoid(x)
    p_t = p * target + (1 - p) * (1 - target)
    weight = (1 - p_t) ** gamma
    return reduce(
        (alpha * target + (1 - alpha) * (1 - target)) * (lax.stop_gradient(weight) if stop else weight) * loss
    )


def torch_kl(log_q, log_p):
    log_q, log_p = torch.log_softmax(log_q, -1), torch.log_softmax(log_p, -1)
    return functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def jax_kl(log_q, log_p, reduce="batchmean", swap=False):
    log_q, log_p = jax.nn.log_softmax(log_q), jax.nn.log_softmax(log_p)
    if swap:
        log_q, log_p = log_p, log_q
    terms = jnp.exp(log_p) * (log_p - log_q)
    return terms.mean() if reduce == "mean" else terms.sum() / len(terms)


def torch_ctc(logits, labels):
    log_p = torch.log_softmax(logits, -1).transpose(0, 1)
    n, t = logits.shape[:2]
    return functional.ctc_loss(log_p, labels, torch.full((n,), t), torch.full((n,), labels.shape[1]), reduction="none")


def jax_ctc(logits, labels, blank=0):
    return optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), labels, jnp.zeros(labels.shape), blank_id=blank)


CTC = (normal(2, 7, 4), np.array([[1, 2, 1], [3, 2, 1]]))


def torch_huber(x, y):
    return functional.huber_loss(x, y, delta=1.5)


def jax_huber(x, y, divide=1.0, delta=1.5, reduce=jnp.mean):
    error = jnp.abs(x - y)
    return reduce(jnp.where(error <= delta, 0.5 * error**2, delta * (error - 0.5 * delta)) / divide)


def torch_smooth_l1(x, y):
    return functional.smooth_l1_loss(x, y, beta=1.5)


def torch_triplet(anchor, positive, negative):
    return functional.triplet_margin_loss(anchor, positive, negative, margin=1.0)


def jax_triplet(anchor, positive, negative, squared=False, margin=1.0, epsilon=1e-6):
    def distance(other):
        square = jnp.square(anchor - other + epsilon).sum(-1)
        return square if squared else jnp.sqrt(square)

    return jnp.maximum(distance(positive) - distance(negative) + margin, 0).mean()


def torch_distillation(student, teacher):
    t = 2.0
    q, p = torch.log_softmax(student / t, -1), torch.softmax(teacher / t, -1)
    return functional.kl_div(q, p, reduction="batchmean") * t * t


def jax_distillation(student, teacher, t=2.0, squared=True, xlogy=jax.scipy.special.xlogy):
    q, p = jax.nn.log_softmax(student / t), jax.nn.softmax(teacher / t)
    loss = (xlogy(p, p) - p * q).sum(-1).mean()
    return loss * t * t if squared else loss


# ---- Indices ----

TABLE = (np.array([1, 3, 0, 3, 2]), normal(4, 3))


def torch_embedding(indices, table):
    return functional.embedding(indices, table, padding_idx=0)


def jax_embedding(indices, table, padding=0):
    if padding is not None:
        table = table.at[padding].set(lax.stop_gradient(table[padding]))
    return table[indices]


SCATTER = (normal(4, 3), np.array([[0, 2, 1], [0, 0, 1]]), normal(2, 3))


def torch_scatter(x, indices, source):
    return x.scatter_add(0, indices, source)


def jax_scatter(x, indices, source, how="add", axis=0):
    other = jnp.arange(x.shape[1])[None, :]
    return getattr(x.at[indices, other], how)(source)


SEGMENTS = (normal(5, 2), np.array([0, 2, 2, 0, 1]))


def torch_segment_mean(x, segments):
    total = torch.zeros((4, x.shape[1]), dtype=x.dtype).index_add(0, segments, x)
    count = torch.zeros(4, dtype=x.dtype).index_add(0, segments, torch.ones(len(x), dtype=x.dtype))
    return total / count.clamp(min=1)[:, None]


def jax_segment_mean(x, segments, least=1, mean=True):
    total = jax.ops.segment_sum(x, segments, 4)
    count = jax.ops.segment_sum(jnp.ones(len(x), x.dtype), segments, 4)
    return total / jnp.maximum(count, least)[:, None] if mean else total


def torch_index_add(x, indices, source):
    return x.index_add(0, indices, source, alpha=2)


def jax_index_add(x, indices, source, alpha=2, unique=False):
    if unique:
        return x.at[indices].set(x[indices] + alpha * source)
    return x.at[indices].add(alpha * source)


def torch_gather(x, indices):
    return torch.gather(x, 1, indices)


def jax_gather(x, indices, axis=1):
    return jnp.take_along_axis(x, indices, axis=axis)


# ---- Rules that are no derivatives ----


def fake_quantize(module, x):
    return module.clip(module.round(x / 0.25), -8, 7) * 0.25


torch_quantizer = torch_rule(
    lambda x: fake_quantize(torch, x), lambda x, v: v * ((x / 0.25 >= -8) & (x / 0.25 <= 7)).to(v.dtype)
)
jax_quantizer = jax_rule(
    lambda x: fake_quantize(jnp, x), lambda x, v: v * ((x / 0.25 >= -8) & (x / 0.25 <= 7)).astype(v.dtype)
)


def jax_quantizer_by_stopping(x, clip=True, levels=(-8, 7)):
    clipped = jnp.clip(x, 0.25 * levels[0], 0.25 * levels[1]) if clip else x
    return clipped + lax.stop_gradient(fake_quantize(jnp, x) - clipped)


def torch_lsq(x, s):
    """Learned step size: the step's gradient is scaled."""
    factor = 1 / math.sqrt(x.numel() * 7)
    s = (s - s * factor).detach() + s * factor
    y = (x / s).clamp(-8, 7)
    return ((y.round() - y).detach() + y) * s


def jax_lsq(x, s, scaled=True, rounded=True, low=-8):
    factor = 1 / math.sqrt(x.size * 7) if scaled else 1
    s = lax.stop_gradient(s - s * factor) + s * factor
    y = jnp.clip(x / s, low, 7)
    y = lax.stop_gradient(jnp.round(y) - y) + y if rounded else lax.stop_gradient(jnp.round(y))
    return y * s


QUANTIZED = np.array([-3.1, -1.03, -0.41, 0.07, 0.66, 1.21, 2.9])

torch_reversal = torch_rule(lambda x: x.clone(), lambda x, v: -0.5 * v)
jax_reversal = jax_rule(lambda x: x, lambda x, v: -0.5 * v)


def torch_gumbel_hard(x, noise):
    y = torch.softmax((x + noise) / 0.5, -1)
    hard = functional.one_hot(y.argmax(-1), y.shape[-1]).to(y.dtype)
    return hard - y.detach() + y


def jax_gumbel(x, noise, t=0.5, hard=False, axis=-1, soft=True):
    y = jax.nn.softmax((x + noise) / t, axis=axis)
    if not hard:
        return y
    one_hot = jax.nn.one_hot(y.argmax(-1), y.shape[-1], dtype=y.dtype)
    return one_hot + (y - lax.stop_gradient(y) if soft else 0)


# ---- Implicit layers and linear algebra ----


def solved(module, w, x):
    z = module.zeros_like(x)
    for _ in range(80):
        z = module.tanh(w @ z + x)
    return z


def torch_fixed_point_rule(w, x, v):
    z = torch_fixed_point.apply(w, x)
    slope = 1 - z * z
    u = torch.linalg.solve((torch.eye(len(x), dtype=x.dtype) - slope[:, None] * w).mT, v) * slope
    return u[:, None] * z[None, :], u


torch_fixed_point = torch_rule(lambda w, x: solved(torch, w, x), torch_fixed_point_rule)


def jax_solve(a, b):
    """In single precision where the arguments have half; JAX solves in no less."""
    wide = jnp.promote_types(b.dtype, jnp.float32)
    return jnp.linalg.solve(a.astype(wide), b.astype(wide)).astype(b.dtype)


def fixed_point_in_jax(transpose=True, forget_w=False, one_step=False, single=False):
    def rule(w, x, v):
        z = function(w, x)
        slope = 1 - z * z
        matrix = jnp.eye(len(x), dtype=x.dtype) - slope[:, None] * w
        u = (v if one_step else jax_solve(matrix.T if transpose else matrix, v)) * slope
        u = u.astype(jnp.float32) if single else u
        return (jnp.zeros_like(w) if forget_w else u[:, None] * z[None, :]), u

    function = jax_rule(lambda w, x: solved(jnp, w, x), rule)
    return function


@jax.custom_jvp
def jax_fixed_point_by_jvp(w, x):
    return solved(jnp, w, x)


@jax_fixed_point_by_jvp.defjvp
def jax_fixed_point_jvp(primals, tangents):
    (w, x), (dw, dx) = primals, tangents
    z = jax_fixed_point_by_jvp(w, x)
    slope = 1 - z * z
    return z, jax_solve(jnp.eye(len(x), dtype=x.dtype) - slope[:, None] * w, slope * (dw @ z + dx))


FIXED = (0.25 * normal(3, 3), normal(3))
LOWER = normal(3, 3)
POSITIVE_DEFINITE = LOWER @ LOWER.T + 2 * np.eye(3)
SYMMETRIC = LOWER + LOWER.T + np.diag([0.0, 4.0, 9.0])
PROJECTED = {"project": lambda x: (x + x.T) / 2}


def torch_cholesky(x):
    return torch.linalg.cholesky((x + x.mT) / 2)


def jax_cholesky(x, upper=False, symmetric=True):
    factor = jnp.linalg.cholesky(
        (x + x.T) / 2 if symmetric else jnp.tril(x) + jnp.tril(x, -1).T, symmetrize_input=False
    )
    return factor.T if upper else factor


def torch_matrix_log(x):
    values, vectors = torch.linalg.eigh((x + x.mT) / 2)
    return (vectors * values.log()) @ vectors.mT


def jax_matrix_log(x, transposed=False, f=jnp.log):
    values, vectors = jnp.linalg.eigh((x + x.T) / 2)
    return (vectors.T * f(values)) @ vectors if transposed else (vectors * f(values)) @ vectors.T


def torch_gaussian(x, mean, covariance):
    return torch.distributions.MultivariateNormal(mean, (covariance + covariance.mT) / 2, validate_args=False).log_prob(
        x
    )


def jax_gaussian(x, mean, covariance, half=0.5, constant=True):
    factor = jnp.linalg.cholesky((covariance + covariance.T) / 2)
    z = jax.scipy.linalg.solve_triangular(factor, x - mean, lower=True)
    log_determinant = 2 * jnp.log(jnp.diagonal(factor)).sum()
    return -half * log_determinant - 0.5 * (z * z).sum() - constant * 0.5 * len(x) * math.log(2 * math.pi)


SOLVE = (normal(3, 3) + 3 * np.eye(3), normal(3, 2))

# ---- Convolutions, pooling, resizing ----


def torch_fft_convolution(x, w):
    n = x.shape[-1] + w.shape[-1] - 1
    return torch.fft.irfft(torch.fft.rfft(x, n) * torch.fft.rfft(w, n), n)[..., : x.shape[-1]]


def jax_fft_convolution(x, w, pad=True, correlate=False):
    n = x.shape[-1] + w.shape[-1] - 1 if pad else x.shape[-1]
    spectrum = jnp.fft.rfft(w, n)
    return jnp.fft.irfft(jnp.fft.rfft(x, n) * (spectrum.conj() if correlate else spectrum), n)[..., : x.shape[-1]]


def torch_convolution(x, w, b):
    return functional.conv1d(x, w, b, stride=2, padding=1)


def jax_convolution(x, w, b, padding=((1, 1),), flip=False, stride=2):
    w = w[..., ::-1] if flip else w
    return lax.conv_general_dilated(x, w, (stride,), padding) + b[:, None]


def torch_convolution_2d(x, w):
    return functional.conv2d(x, w, padding=1, dilation=2)


def jax_convolution_2d(x, w, dilation=2, dimensions=("NCHW", "OIHW", "NCHW")):
    return lax.conv_general_dilated(
        x, w, (1, 1), ((1, 1), (1, 1)), rhs_dilation=(dilation, dilation), dimension_numbers=dimensions
    )


def torch_depthwise(x, w):
    return functional.conv1d(functional.pad(x, (2, 0)), w, groups=x.shape[1])


def jax_depthwise(x, w, pad=(2, 0)):
    return lax.conv_general_dilated(x, w, (1,), (pad,), feature_group_count=x.shape[1])


def torch_transposed(x, w):
    return functional.conv_transpose1d(x, w, stride=2, padding=1, output_padding=1)


def jax_transposed(x, w, flip=True, pad=(1, 2)):
    w = w.swapaxes(0, 1)
    return lax.conv_general_dilated(x, w[..., ::-1] if flip else w, (1,), (pad,), lhs_dilation=(2,))


def torch_max_pool(x):
    return functional.max_pool2d(x, 2, stride=2, padding=1)


def jax_max_pool(x, fill=-jnp.inf, stride=2, padding=1):
    pads = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    return lax.reduce_window(x, fill, lax.max, (1, 1, 2, 2), (1, 1, stride, stride), pads)


def torch_average_pool(x):
    return functional.avg_pool1d(x, 3, stride=1, padding=1)


def jax_average_pool(x, include=True):
    def total(y):
        return lax.reduce_window(y, 0.0, lax.add, (1, 1, 3), (1, 1, 1), ((0, 0), (0, 0), (1, 1)))

    return total(x) / (3 if include else total(jnp.ones_like(x)))


def torch_pixel_shuffle(x):
    return functional.pixel_shuffle(x, 2)


def jax_pixel_shuffle(x, order=(0, 1, 4, 2, 5, 3), first="c"):
    n, c, h, w = x.shape
    shape = (n, c // 4, 2, 2, h, w) if first == "c" else (n, 2, 2, c // 4, h, w)
    x = x.reshape(shape)
    x = x if first == "c" else x.transpose(0, 3, 1, 2, 4, 5)
    return x.transpose(order).reshape(n, c // 4, 2 * h, 2 * w)


def torch_resize(x, align_corners=False):
    return functional.interpolate(x, size=(6, 5), mode="bilinear", align_corners=align_corners)


def torch_shrink(x):
    return functional.interpolate(x, size=(2, 2), mode="bilinear", align_corners=False)


def jax_resize(x, size=(6, 5), method="bilinear", antialias=False):
    return jax.image.resize(x, (*x.shape[:2], *size), method, antialias=antialias)


def jax_resize_aligned(x):
    for axis, n in ((2, 6), (3, 5)):
        at = jnp.linspace(0, x.shape[axis] - 1, n)
        low = jnp.clip(jnp.floor(at).astype(int), 0, x.shape[axis] - 2)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(4)]).astype(x.dtype)
        x = jnp.take(x, low, axis) * (1 - share) + jnp.take(x, low + 1, axis) * share
    return x


# ---- Distances and reductions ----

POINTS = (normal(3, 4), normal(3, 4))


def torch_cosine(x, y):
    return functional.cosine_similarity(x, y)


def safe_norm(x, axis=None, keepdims=False):
    """The Euclidean norm, whose derivative at 0 is 0, as PyTorch's is."""
    square = (x * x).sum(axis, keepdims=keepdims)
    return jnp.where(square == 0, 0.0, jnp.sqrt(jnp.where(square == 0, 1.0, square)))


def jax_cosine(x, y, axis=-1, power=1, norm=safe_norm, epsilon=1e-8):
    norms = [jnp.maximum(norm(z, axis=axis), epsilon) ** power for z in (x, y)]
    return (x * y).sum(axis) / (norms[0] * norms[1])


def jax_cosine_without_epsilon(x, y):
    return (x * y).sum(-1) / jnp.sqrt((x * x).sum(-1) * (y * y).sum(-1))


def torch_pairwise(x):
    square = ((x[:, None] - x[None]) ** 2).sum(-1)
    zero = square == 0
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, square)))


def jax_pairwise(x, safe=True, root=True):
    square = ((x[:, None] - x[None]) ** 2).sum(-1)
    if not root:
        return square
    if not safe:
        return jnp.sqrt(square)
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


def torch_logsumexp(x):
    return 0.5 * torch.logsumexp(x / 0.5, -1)


def jax_logsumexp(x, t=0.5, after=True, axis=-1):
    return (0.5 if after else 1) * jax.nn.logsumexp(x / t, axis=axis)


def torch_cumulative(x):
    return torch.cumsum(x, 1) / torch.arange(1, x.shape[1] + 1)


def jax_cumulative(x, axis=1, exclusive=False, first=1):
    total = jnp.cumsum(x, axis=axis) - (x if exclusive else 0)
    return total / jnp.arange(first, x.shape[1] + first)


def torch_dropout(x, kept):
    return torch.where(kept, x / 0.75, 0.0)


def jax_dropout(x, kept, divide=0.75, rule=False):
    return jnp.where(kept, x / divide, 0.0)


def torch_clipped(x):
    """Scaled to norm 1 at most."""
    return x * torch.clamp(1 / (torch.linalg.vector_norm(x) + 1e-6), max=1)


def jax_clipped(x, stop=False, norm=safe_norm):
    scale = jnp.minimum(1 / (norm(x) + 1e-6), 1)
    return x * (lax.stop_gradient(scale) if stop else scale)


# ---- Others ----


def torch_contrastive(x, y):
    x, y = functional.normalize(x, dim=-1), functional.normalize(y, dim=-1)
    logits, labels = x @ y.T / 0.1, torch.arange(len(x))
    return (functional.cross_entropy(logits, labels) + functional.cross_entropy(logits.T, labels)) / 2


def jax_contrastive(x, y, t=0.1, one_way=False, normalize=True):
    if normalize:
        x, y = (z / jnp.maximum(safe_norm(z, axis=-1, keepdims=True), 1e-12) for z in (x, y))
    logits = x @ y.T / t
    losses = [-jnp.diagonal(jax.nn.log_softmax(z)).mean() for z in (logits, logits.T)]
    return losses[0] if one_way else sum(losses) / 2


def torch_codes(x, book):
    """The nearest codes, straight-through, and the two losses."""
    nearest = book[torch.cdist(x, book).argmin(-1)]
    loss = ((nearest - x.detach()) ** 2).mean() + 0.25 * ((nearest.detach() - x) ** 2).mean()
    return x + (nearest - x).detach(), loss


def jax_codes(x, book, beta=0.25, through=True, stop=lax.stop_gradient, exchanged=False):
    nearest = book[((x[:, None] - book) ** 2).sum(-1).argmin(-1)]
    losses = ((nearest - stop(x)) ** 2).mean(), ((stop(nearest) - x) ** 2).mean()
    losses = losses[::-1] if exchanged else losses
    return (x + lax.stop_gradient(nearest - x) if through else nearest), losses[0] + beta * losses[1]


def torch_sparsemax(x):
    ordered = x.sort(-1, descending=True).values
    total, k = ordered.cumsum(-1) - 1, torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    size = (k * ordered > total).sum(-1, keepdim=True)
    return torch.relu(x - total.gather(-1, size - 1) / size)


def jax_sparsemax(x, off=1, stop=False):
    ordered = -jnp.sort(-x, -1)
    total, k = jnp.cumsum(ordered, -1) - 1, jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    size = (k * ordered > total).sum(-1, keepdims=True)
    threshold = jnp.take_along_axis(total, size - off, -1) / size
    return jax.nn.relu(x - (lax.stop_gradient(threshold) if stop else threshold))


def torch_kernel(x, y, width):
    return torch.exp(-(torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / (2 * width**2))


def jax_kernel(x, y, width, two=2, power=2):
    return jnp.exp(-((x[:, None] - y) ** 2).sum(-1) / (two * width**power))


def torch_runge_kutta(x, w):
    def f(x):
        return torch.tanh(x @ w)

    for _ in range(2):
        a = f(x)
        b = f(x + 0.05 * a)
        c = f(x + 0.05 * b)
        x = x + 0.1 / 6 * (a + 2 * b + 2 * c + f(x + 0.1 * c))
    return x


def jax_runge_kutta(x, w, weights=(1, 2, 2, 1), half=0.05):
    def step(x, _):
        a = jnp.tanh(x @ w)
        b = jnp.tanh((x + half * a) @ w)
        c = jnp.tanh((x + half * b) @ w)
        d = jnp.tanh((x + 0.1 * c) @ w)
        return x + 0.1 / 6 * sum(share * k for share, k in zip(weights, (a, b, c, d), strict=True)), None

    return lax.scan(step, x, None, 2)[0]


def torch_adam(p, g, m, v):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    return p - 0.01 * (m / (1 - 0.9**3)) / (torch.sqrt(v / (1 - 0.999**3)) + 1e-8), m, v


def jax_adam(p, g, m, v, correct=True, inside=False):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    a, b = (m / (1 - 0.9**3), v / (1 - 0.999**3)) if correct else (m, v)
    return p - 0.01 * a / (jnp.sqrt(b + 1e-8) if inside else jnp.sqrt(b) + 1e-8), m, v


def torch_grid_sample(x, grid):
    return functional.grid_sample(x, grid, align_corners=True)


def jax_grid_sample(x, grid, exchanged=False, aligned=True):
    h, w = x.shape[2:]
    at_x, at_y = (grid[..., 1], grid[..., 0]) if exchanged else (grid[..., 0], grid[..., 1])

    def sample(image, at_y, at_x):
        at = [(at_y + 1) / 2 * (h - 1), (at_x + 1) / 2 * (w - 1)]
        if not aligned:
            at = [((at_y + 1) * h - 1) / 2, ((at_x + 1) * w - 1) / 2]
        return jax.vmap(lambda channel: jax.scipy.ndimage.map_coordinates(channel, at, 1, mode="constant"))(image)

    return jax.vmap(sample)(x, at_y, at_x)


def torch_elman(xs, h, wx, wh):
    hs = []
    for x in xs:
        h = torch.tanh(x @ wx.T + h @ wh.T)
        hs.append(h)
    return torch.stack(hs), h


def jax_elman(xs, h, wx, wh, stop=False, transposed=True):
    def step(h, x):
        h = lax.stop_gradient(h) if stop else h
        h = jnp.tanh(x @ wx.T + h @ (wh.T if transposed else wh))
        return h, h

    last, hs = lax.scan(step, h, xs)
    return hs, last


def jax_leaky_relu(x, slope=0.01):
    return jnp.where(x > 0, x, slope * x)


def jax_celu(x, alpha=1.0):
    return jnp.where(x >= 0, x, alpha * jnp.expm1(jnp.minimum(x, 0) / alpha))


def jax_deviation(x, ddof=1):
    return safe_norm(x - x.mean(-1, keepdims=True), axis=-1) / math.sqrt(x.shape[-1] - ddof)


LINE = np.linspace(-3, 3, 13) + 0.01
SURROGATE = {"surrogate": True}
WIDE = {"dtypes": ("float32", "float64")}  # JAX has no half precision there

RIGHT = {
    "causal attention": Port(torch_causal, jax_causal, HEADS),
    "causal attention of the library": Port(torch_causal, jax_causal_of_library, HEADS),
    "attention, padded": Port(torch_padded_by_hand, jax_padded, (*HEADS, KEPT)),
    "attention, padded, of the library": Port(torch_padded_by_hand, jax_padded_of_library, (*HEADS, KEPT)),
    "scaled_dot_product_attention, padded": Port(torch_padded, jax_padded_or_zero, (*HEADS, KEPT)),
    "attention, additive mask": Port(torch_biased, attention, (*HEADS, normal(4, 4))),
    "grouped queries": Port(torch_grouped, jax_grouped, GROUPED),
    "ALiBi": Port(torch_alibi, jax_alibi, HEADS),
    "RoPE, halves": Port(torch_rope, jax_rope, ROPE),
    "RoPE, interleaved": Port(
        functools.partial(torch_rope, interleaved=True), functools.partial(jax_rope, interleaved=True), ROPE
    ),
    "RMSNorm": Port(torch_rms_norm, jax_rms_norm, ROWS),
    "RMSNorm in float32": Port(torch_rms_norm_in_float32, functools.partial(jax_rms_norm, dtype=jnp.float32), ROWS),
    "LayerNorm": Port(torch_layer_norm, jax_layer_norm, NORMED),
    "GroupNorm": Port(torch_group_norm, jax_group_norm, IMAGE),
    "BatchNorm in evaluation": Port(
        torch_batch_norm_in_evaluation, jax_batch_norm_in_evaluation, BATCH, arguments=(0, 1, 2)
    ),
    "instance norm": Port(functional.instance_norm, jax_instance_norm, IMAGE[0]),
    "weight norm": Port(torch_weight_norm, jax_weight_norm, (normal(3, 4), normal(3))),
    "SwiGLU": Port(torch_swiglu, jax_swiglu, SWIGLU),
    "GELU": Port(functional.gelu, functools.partial(jax.nn.gelu, approximate=False), LINE),
    "GELU by tanh": Port(functools.partial(functional.gelu, approximate="tanh"), jax.nn.gelu, LINE),
    "LSTM cell": Port(torch_lstm, jax_lstm, LSTM),
    "GRU cell": Port(torch.gru_cell, jax_gru, GRU),
    "selective scan": Port(torch_scan, jax_scan, SCAN),
    "cross entropy": Port(functional.cross_entropy, jax_cross_entropy, LABELED),
    "cross entropy, smoothed": Port(
        functools.partial(functional.cross_entropy, label_smoothing=0.1),
        functools.partial(jax_cross_entropy, smoothing=0.1),
        LABELED,
    ),
    "focal loss": Port(torch_focal, jax_focal, (normal(6), np.array([0.0, 1, 1, 0, 0, 1]))),
    "KL divergence": Port(torch_kl, jax_kl, POINTS),
    "Huber": Port(torch_huber, jax_huber, (3 * normal(6), normal(6))),
    "smooth L1": Port(torch_smooth_l1, functools.partial(jax_huber, divide=1.5), (3 * normal(6), normal(6))),
    "triplet": Port(torch_triplet, jax_triplet, (*POINTS, normal(3, 4))),
    "distillation": Port(torch_distillation, jax_distillation, POINTS),
    "scatter_add": Port(torch_scatter, jax_scatter, SCATTER),
    "segment mean": Port(torch_segment_mean, jax_segment_mean, SEGMENTS),
    "index_add": Port(torch_index_add, jax_index_add, (normal(4, 3), np.array([0, 2, 2]), normal(3, 3))),
    "gather": Port(torch_gather, jax_gather, (normal(3, 3), np.array([[0, 2, 1], [1, 1, 0], [2, 0, 0]]))),
    "quantizer": Port(torch_quantizer, jax_quantizer, QUANTIZED, SURROGATE),
    "quantizer by stopping": Port(torch_quantizer, jax_quantizer_by_stopping, QUANTIZED, SURROGATE),
    "gradient reversal": Port(torch_reversal, jax_reversal, LINE, SURROGATE),
    "Gumbel softmax": Port(lambda x, g: torch.softmax((x + g) / 0.5, -1), jax_gumbel, POINTS),
    "Gumbel softmax, hard": Port(torch_gumbel_hard, functools.partial(jax_gumbel, hard=True), POINTS, SURROGATE),
    "fixed point": Port(torch_fixed_point, fixed_point_in_jax(), FIXED),
    "fixed point by a jvp": Port(torch_fixed_point, jax_fixed_point_by_jvp, FIXED),
    "fixed point, unrolled": Port(functools.partial(solved, torch), jax_fixed_point_by_jvp, FIXED),
    "Cholesky": Port(torch_cholesky, jax_cholesky, POSITIVE_DEFINITE),
    "Cholesky, projected": Port(torch.linalg.cholesky, jnp.linalg.cholesky, POSITIVE_DEFINITE, PROJECTED),
    "eigvalsh": Port(torch.linalg.eigvalsh, jnp.linalg.eigvalsh, SYMMETRIC, PROJECTED),
    "matrix logarithm": Port(torch_matrix_log, jax_matrix_log, POSITIVE_DEFINITE),
    "Gaussian": Port(torch_gaussian, jax_gaussian, (normal(3), normal(3), POSITIVE_DEFINITE)),
    "solve": Port(torch.linalg.solve, jnp.linalg.solve, SOLVE),
    "slogdet": Port(lambda x: torch.linalg.slogdet(x)[1], lambda x: jnp.linalg.slogdet(x)[1], SOLVE[0]),
    "FFT convolution": Port(torch_fft_convolution, jax_fft_convolution, (normal(2, 5), normal(3))),
    "conv1d": Port(torch_convolution, jax_convolution, (normal(2, 2, 6), normal(3, 2, 3), normal(3))),
    "conv2d": Port(torch_convolution_2d, jax_convolution_2d, (normal(1, 2, 5, 5), normal(2, 2, 3, 3))),
    "depthwise": Port(torch_depthwise, jax_depthwise, (normal(1, 3, 5), normal(3, 1, 3))),
    "transposed": Port(torch_transposed, jax_transposed, (normal(1, 2, 4), normal(2, 3, 3))),
    "max pool": Port(torch_max_pool, jax_max_pool, -1 - np.abs(normal(1, 2, 4, 4))),
    "average pool": Port(torch_average_pool, jax_average_pool, normal(1, 2, 5)),
    "pixel shuffle": Port(torch_pixel_shuffle, jax_pixel_shuffle, normal(1, 8, 2, 2)),
    "resize": Port(torch_resize, jax_resize, normal(1, 1, 3, 3)),
    "resize, corners aligned": Port(
        functools.partial(torch_resize, align_corners=True), jax_resize_aligned, normal(1, 1, 3, 3)
    ),
    "resize, smaller": Port(torch_shrink, functools.partial(jax_resize, size=(2, 2)), normal(1, 1, 5, 5)),
    "cosine similarity": Port(torch_cosine, jax_cosine, POINTS),
    "pairwise distance": Port(torch_pairwise, jax_pairwise, normal(4, 2)),
    "logsumexp": Port(torch_logsumexp, jax_logsumexp, normal(3, 3)),
    "cumulative mean": Port(torch_cumulative, jax_cumulative, normal(3, 3)),
    "dropout": Port(torch_dropout, jax_dropout, (normal(2, 4), np.array([[1, 0, 1, 1], [0, 1, 1, 0]], bool))),
    "contrastive": Port(torch_contrastive, jax_contrastive, POINTS),
    "vector quantizer": Port(torch_codes, jax_codes, (normal(4, 2), normal(3, 2)), SURROGATE),
    "sparsemax": Port(torch_sparsemax, jax_sparsemax, normal(3, 4)),
    "RBF kernel": Port(torch_kernel, jax_kernel, (normal(3, 2), normal(4, 2), np.array(1.3))),
    "Runge-Kutta": Port(torch_runge_kutta, jax_runge_kutta, (normal(2, 3), normal(3, 3))),
    "Adam": Port(torch_adam, jax_adam, (normal(4), normal(4), normal(4), RANDOM.uniform(0.1, 1, size=4))),
    "grid_sample": Port(
        torch_grid_sample, jax_grid_sample, (normal(1, 2, 3, 4), RANDOM.uniform(-0.9, 0.9, size=(1, 2, 2, 2)))
    ),
    "Elman network": Port(torch_elman, jax_elman, (normal(3, 2, 2), normal(2, 3), normal(3, 2), normal(3, 3))),
    "hard swish": Port(functional.hardswish, jax.nn.hard_swish, LINE),
    "Mish": Port(functional.mish, jax.nn.mish, LINE),
    "softplus": Port(functools.partial(functional.softplus, beta=2), lambda x: jax.nn.softplus(2 * x) / 2, LINE),
    "matrix exponential": Port(torch.linalg.matrix_exp, jax.scipy.linalg.expm, 0.5 * normal(3, 3), WIDE),
    "singular values": Port(torch.linalg.svdvals, functools.partial(jnp.linalg.svd, compute_uv=False), normal(3, 2)),
    "pseudoinverse": Port(torch.linalg.pinv, jnp.linalg.pinv, normal(4, 2)),
    "sorted": Port(lambda x: torch.sort(x, -1).values, lambda x: jnp.sort(x, -1), normal(2, 5)),
    "quantile": Port(lambda x: torch.quantile(x, 0.3), lambda x: jnp.quantile(x, 0.3), normal(7)),
    "cumulative product": Port(lambda x: torch.cumprod(x, 0), jnp.cumprod, normal(5)),
    "leaky ReLU": Port(functional.leaky_relu, jax_leaky_relu, LINE),
    "CELU": Port(functools.partial(functional.celu, alpha=2.0), functools.partial(jax_celu, alpha=2.0), LINE),
    "experts, routed in the inputs' precision": Port(
        functools.partial(torch_experts, wide=False), functools.partial(jax_experts, dtype=None), EXPERTS
    ),
    "standard deviation": Port(lambda x: x.std(-1), jax_deviation, normal(3, 4)),
    "clipped norm": Port(torch_clipped, jax_clipped, normal(5)),
    "LayerNorm with a rule": Port(torch_layer_norm, jax_rule(jax_layer_norm, layer_norm_rule), NORMED),
    "BatchNorm by hand": Port(batch_norm_by_hand, jax_batch_norm, BATCH),
    "BatchNorm": Port(torch_batch_norm, jax_batch_norm, BATCH, {"keys": (3, 4), "states": (1, 2)}),
    "BatchNorm, its output": Port(
        lambda *inputs: torch_batch_norm(*inputs)[0],
        lambda *inputs: jax_batch_norm(*inputs)[0],
        BATCH,
        {"keys": (3, 4)},
    ),
    "CTC": Port(torch_ctc, jax_ctc, CTC),
    "experts": Port(torch_experts, jax_experts, EXPERTS),
    "embedding": Port(torch_embedding, jax_embedding, TABLE, SURROGATE),
}

# Right ports that fail for now: no test runs them.
FALSE_ALARMS: dict[str, Port] = {
    # At a step of 0, by which it divides, the sides have different tangents.
    "LSQ": Port(torch_lsq, jax_lsq, (QUANTIZED, np.array(0.25)), SURROGATE),
    # At 0 the sides' conventions differ.
    "leaky ReLU of the libraries": Port(functional.leaky_relu, jax.nn.leaky_relu, LINE),
    "ELU": Port(functional.elu, jax.nn.elu, LINE),
    # A gradient, or a second one, that is 0 but for rounding.
    "a constant": Port(
        lambda x: torch.sin(x) ** 2 + torch.cos(x) ** 2,
        lambda x: jnp.sin(x) ** 2 + jnp.cos(x) ** 2,
        np.array([-1.03, -0.41, 0.07]),
    ),
    "a quotient multiplied": Port(
        lambda x, s: x / s * s, lambda x, s: x / s * s, (np.array([-1.03, -0.41, 0.07]), np.array(0.3))
    ),
}

FAULTS = {
    "scale missing": Fault("causal attention", wrong(jax_causal, scale=1.0)),
    "scale by the width, not its root": Fault("causal attention", wrong(jax_causal, scale=1 / 3)),
    "causal mask one off": Fault("causal attention", wrong(jax_causal, offset=1)),
    "softmax over queries": Fault("causal attention", wrong(jax_causal, axis=-2)),
    "masked after softmax": Fault("causal attention", jax_causal_after_softmax),
    "causal mask forgotten": Fault("causal attention", attention),
    "scale missing in the library's": Fault("causal attention of the library", wrong(jax_causal_of_library, scale=1.0)),
    "padding forgotten": Fault("attention, padded", lambda q, k, v, kept: attention(q, k, v)),
    "padding inverted": Fault("attention, padded", wrong(jax_padded, invert=True)),
    "masked by 0": Fault("attention, padded", wrong(jax_padded, fill=0.0)),
    "NaN where all is padded": Fault(
        "scaled_dot_product_attention, padded", wrong(jax_padded, fill=-jnp.inf), "integers"
    ),
    "the mean where all is padded": Fault("scaled_dot_product_attention, padded", jax_padded, "integers"),
    "additive mask scaled": Fault("attention, additive mask", jax_bias_before_scale),
    "heads tiled": Fault("grouped queries", wrong(jax_grouped, tiled=True)),
    "slopes from 0": Fault("ALiBi", wrong(jax_alibi, first=0)),
    "slopes' sign": Fault("ALiBi", wrong(jax_alibi, sign=-1)),
    "halves for interleaved": Fault("RoPE, interleaved", jax_rope),
    "interleaved for halves": Fault("RoPE, halves", wrong(jax_rope, interleaved=True)),
    "turned the other way": Fault("RoPE, halves", wrong(jax_rope, sign=-1)),
    "another base": Fault("RoPE, halves", wrong(jax_rope, base=500000.0)),
    "positions from 1": Fault("RoPE, halves", wrong(jax_rope, first=1)),
    "frequencies over the whole width": Fault("RoPE, halves", wrong(jax_rope, divide_by=4)),
    "RMSNorm, another epsilon": Fault("RMSNorm", wrong(jax_rms_norm, epsilon=1e-5)),
    "RMSNorm, epsilon outside": Fault("RMSNorm", wrong(jax_rms_norm, inside=False)),
    "RMSNorm, another epsilon in float32": Fault(
        "RMSNorm in float32", wrong(jax_rms_norm, dtype=jnp.float32, epsilon=1e-5)
    ),
    "RMSNorm, weight plus 1": Fault("RMSNorm", wrong(jax_rms_norm, plus_one=True)),
    "RMSNorm, sum for mean": Fault("RMSNorm", wrong(jax_rms_norm, mean=jnp.sum)),
    "LayerNorm, another epsilon": Fault("LayerNorm", wrong(jax_layer_norm, epsilon=1e-6)),
    "LayerNorm, epsilon outside": Fault("LayerNorm", wrong(jax_layer_norm, inside=False)),
    "LayerNorm, unbiased": Fault("LayerNorm", wrong(jax_layer_norm, ddof=1)),
    "LayerNorm, axis": Fault("LayerNorm", wrong(jax_layer_norm, axis=0)),
    "LayerNorm, statistics stopped": Fault("LayerNorm", jax_layer_norm_of_stopped_statistics, RULE),
    "LayerNorm, a term forgotten": Fault(
        "LayerNorm", jax_rule(jax_layer_norm, wrong(layer_norm_rule, forget_projection=True)), RULE
    ),
    "LayerNorm, rule in float32": Fault(
        "LayerNorm", jax_rule(jax_layer_norm, wrong(layer_norm_rule, single=True)), RULE
    ),
    "GroupNorm, groups interleaved": Fault("GroupNorm", wrong(jax_group_norm, interleaved=True)),
    "GroupNorm, another epsilon": Fault("GroupNorm", wrong(jax_group_norm, epsilon=1e-6)),
    "GroupNorm, over positions alone": Fault("GroupNorm", wrong(jax_group_norm, over=(3,))),
    "BatchNorm, momentum inverted": Fault("BatchNorm", wrong(jax_batch_norm, momentum=0.9)),
    "BatchNorm, running variance biased": Fault("BatchNorm", wrong(jax_batch_norm, ddof=(0, 0))),
    "BatchNorm, batch variance unbiased": Fault("BatchNorm", wrong(jax_batch_norm, ddof=(1, 1))),
    "BatchNorm, over the batch alone": Fault("BatchNorm", wrong(jax_batch_norm, over=(0,))),
    "BatchNorm in evaluation, no root": Fault(
        "BatchNorm in evaluation", wrong(jax_batch_norm_in_evaluation, root=lambda x: x)
    ),
    "BatchNorm in evaluation, another epsilon": Fault(
        "BatchNorm in evaluation", wrong(jax_batch_norm_in_evaluation, epsilon=1e-3)
    ),
    "instance norm, axis": Fault("instance norm", wrong(jax_instance_norm, axis=1)),
    "instance norm, unbiased": Fault("instance norm", wrong(jax_instance_norm, ddof=1)),
    "weight norm, axis": Fault("weight norm", wrong(jax_weight_norm, axis=0)),
    "gate and up exchanged": Fault("SwiGLU", lambda x, gate, up, down: jax_swiglu(x, up, gate, down)),
    "GELU for SiLU": Fault("SwiGLU", wrong(jax_swiglu, activation=jax.nn.gelu)),
    "sigmoid for SiLU": Fault("SwiGLU", wrong(jax_swiglu, activation=jax.nn.sigmoid)),
    "tanh GELU for erf's": Fault("GELU", jax.nn.gelu),
    "erf GELU for tanh's": Fault("GELU by tanh", wrong(jax.nn.gelu, approximate=False)),
    "quick GELU": Fault("GELU", lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "gate order": Fault("LSTM cell", wrong(jax_lstm, order="ifog")),
    "forget bias": Fault("LSTM cell", wrong(jax_lstm, forget_bias=1.0)),
    "cell's last tanh": Fault("LSTM cell", wrong(jax_lstm, last=lambda x: x)),
    "reset before the product": Fault("GRU cell", wrong(jax_gru, before=True)),
    "update inverted": Fault("GRU cell", wrong(jax_gru, update=True)),
    "reset and update exchanged": Fault("GRU cell", wrong(jax_gru, order="zrn")),
    "experts' weights not normalized": Fault("experts", wrong(jax_experts, normalize=False)),
    "router stopped": Fault("experts", wrong(jax_experts, stop=True), RULE),
    "softmax over tokens": Fault("experts", wrong(jax_experts, axis=0)),
    "router in half precision": Fault("experts", wrong(jax_experts, dtype=jnp.bfloat16)),
    "scanned backwards": Fault("selective scan", wrong(jax_scan, reverse=True)),
    "state before the step": Fault("selective scan", wrong(jax_scan, late=True)),
    "step not multiplied": Fault("selective scan", wrong(jax_scan, by_delta=False)),
    "ignored labels counted": Fault("cross entropy", wrong(jax_cross_entropy, count=False)),
    "sum for mean": Fault("cross entropy", wrong(jax_cross_entropy, reduce="sum")),
    "softmax over the batch": Fault("cross entropy", wrong(jax_cross_entropy, axis=0)),
    "smoothing over the others": Fault(
        "cross entropy, smoothed", wrong(jax_cross_entropy, smoothing=0.1, over="others")
    ),
    "smoothing forgotten": Fault("cross entropy, smoothed", jax_cross_entropy),
    "focal, gamma": Fault("focal loss", wrong(jax_focal, gamma=1)),
    "focal, alpha": Fault("focal loss", wrong(jax_focal, alpha=0.75)),
    "focal, weight stopped": Fault("focal loss", wrong(jax_focal, stop=True), RULE),
    "focal, no derivative at 0": Fault("focal loss", wrong(jax_focal, by_parts=True), "special values.*at 0"),
    "KL, mean": Fault("KL divergence", wrong(jax_kl, reduce="mean")),
    "KL, exchanged": Fault("KL divergence", wrong(jax_kl, swap=True)),
    "CTC, blank last": Fault("CTC", wrong(jax_ctc, blank=3)),
    "Huber divided": Fault("Huber", wrong(jax_huber, divide=1.5)),
    "Huber, delta 1": Fault("Huber", wrong(jax_huber, delta=1.0)),
    "smooth L1 not divided": Fault("smooth L1", jax_huber),
    "triplet squared": Fault("triplet", wrong(jax_triplet, squared=True)),
    "triplet, no epsilon": Fault("triplet", wrong(jax_triplet, epsilon=0.0)),
    "triplet, margin": Fault("triplet", wrong(jax_triplet, margin=0.2)),
    "temperature not squared": Fault("distillation", wrong(jax_distillation, squared=False)),
    "temperature missing": Fault("distillation", wrong(jax_distillation, t=1.0)),
    "0 log 0": Fault("distillation", wrong(jax_distillation, xlogy=lambda x, y: x * jnp.log(y)), "special values.*NaN"),
    "padding's gradient": Fault("embedding", wrong(jax_embedding, padding=None), RULE),
    "another padding": Fault("embedding", wrong(jax_embedding, padding=1), RULE),
    "set for add": Fault("scatter_add", wrong(jax_scatter, how="set")),
    "largest for sum": Fault("scatter_add", wrong(jax_scatter, how="max")),
    "empty segments": Fault("segment mean", wrong(jax_segment_mean, least=0)),
    "segment sum for mean": Fault("segment mean", wrong(jax_segment_mean, mean=False)),
    "repeated indices added once": Fault("index_add", wrong(jax_index_add, unique=True)),
    "alpha missing": Fault("index_add", wrong(jax_index_add, alpha=1)),
    "gathered along the other axis": Fault("gather", wrong(jax_gather, axis=0)),
    "straight-through without clip": Fault("quantizer", wrong(jax_quantizer_by_stopping, clip=False), RULE),
    "levels of another width": Fault("quantizer", wrong(jax_quantizer_by_stopping, levels=(-4, 3)), RULE),
    "rounding without a gradient": Fault("quantizer", lambda x: fake_quantize(jnp, x), RULE),
    "LSQ, gradient not scaled": Fault("LSQ", wrong(jax_lsq, scaled=False), RULE),
    "LSQ, no straight-through": Fault("LSQ", wrong(jax_lsq, rounded=False), RULE),
    "LSQ, symmetric levels": Fault("LSQ", wrong(jax_lsq, low=-7)),
    "not reversed": Fault("gradient reversal", jax_rule(lambda x: x, lambda x, v: 0.5 * v), RULE),
    "reversed in full": Fault("gradient reversal", jax_rule(lambda x: x, lambda x, v: -v), RULE),
    "temperature forgotten": Fault("Gumbel softmax", wrong(jax_gumbel, t=1.0)),
    "soft for hard": Fault("Gumbel softmax, hard", jax_gumbel),
    "hard without a gradient": Fault("Gumbel softmax, hard", wrong(jax_gumbel, hard=True, soft=False), RULE),
    "solved without transposing": Fault("fixed point", fixed_point_in_jax(transpose=False), RULE),
    "second argument forgotten": Fault("fixed point", fixed_point_in_jax(forget_w=True), RULE),
    "one step back": Fault("fixed point", fixed_point_in_jax(one_step=True), RULE),
    "rule in float32": Fault("fixed point", fixed_point_in_jax(single=True), RULE),
    "upper for lower": Fault("Cholesky", wrong(jax_cholesky, upper=True)),
    "lower half alone": Fault("Cholesky", wrong(jax_cholesky, symmetric=False), RULE),
    "eigenvalues descending": Fault("eigvalsh", lambda x: jnp.linalg.eigvalsh(x)[::-1]),
    "singular values for eigenvalues": Fault(
        "eigvalsh", lambda x: jnp.sort(jnp.linalg.svd(x, compute_uv=False)), "value|symm"
    ),
    "eigenvectors transposed": Fault("matrix logarithm", wrong(jax_matrix_log, transposed=True)),
    "log1p for log": Fault("matrix logarithm", wrong(jax_matrix_log, f=jnp.log1p)),
    "log determinant halved twice": Fault("Gaussian", wrong(jax_gaussian, half=0.25)),
    "constant forgotten": Fault("Gaussian", wrong(jax_gaussian, constant=False)),
    "solved for the transpose": Fault("solve", lambda a, b: jnp.linalg.solve(a.T, b)),
    "log10 of the determinant": Fault("slogdet", lambda x: jnp.log10(jnp.abs(jnp.linalg.det(x)))),
    "circular": Fault("FFT convolution", wrong(jax_fft_convolution, pad=False)),
    "correlation for convolution": Fault("FFT convolution", wrong(jax_fft_convolution, correlate=True)),
    "padded on the right alone": Fault("conv1d", wrong(jax_convolution, padding=((0, 2),))),
    "valid for padded": Fault("conv1d", wrong(jax_convolution, padding="VALID")),
    "SAME for padding 1": Fault("conv1d", wrong(jax_convolution, padding="SAME")),
    "kernel flipped": Fault("conv1d", wrong(jax_convolution, flip=True)),
    "stride forgotten": Fault("conv1d", wrong(jax_convolution, stride=1)),
    "kernel's axes exchanged": Fault("conv2d", wrong(jax_convolution_2d, dimensions=("NCHW", "IOHW", "NCHW"))),
    "height and width exchanged": Fault("conv2d", wrong(jax_convolution_2d, dimensions=("NCHW", "OIWH", "NCHW"))),
    "dilation forgotten": Fault("conv2d", wrong(jax_convolution_2d, dilation=1)),
    "not causal": Fault("depthwise", wrong(jax_depthwise, pad=(1, 1))),
    "transposed, kernel not flipped": Fault("transposed", wrong(jax_transposed, flip=False)),
    "transposed, padding on the other side": Fault("transposed", wrong(jax_transposed, pad=(2, 1))),
    "padded by 0": Fault("max pool", wrong(jax_max_pool, fill=0.0)),
    "pooled without padding": Fault("max pool", wrong(jax_max_pool, padding=0)),
    "padding not counted": Fault("average pool", wrong(jax_average_pool, include=False)),
    "shuffled by rows": Fault("pixel shuffle", wrong(jax_pixel_shuffle, order=(0, 1, 4, 3, 5, 2))),
    "channels last in the shuffle": Fault("pixel shuffle", wrong(jax_pixel_shuffle, first="r")),
    "corners aligned": Fault("resize", jax_resize_aligned),
    "corners not aligned": Fault("resize, corners aligned", jax_resize),
    "nearest": Fault("resize", wrong(jax_resize, method="nearest")),
    "antialiased": Fault("resize, smaller", wrong(jax_resize, size=(2, 2), antialias=True)),
    "cosine, axis": Fault("cosine similarity", wrong(jax_cosine, axis=0)),
    "cosine, squared norms": Fault("cosine similarity", wrong(jax_cosine, power=2)),
    "cosine, NaN of zeros": Fault("cosine similarity", jax_cosine_without_epsilon, "special values.*NaN"),
    "cosine, NaN in the gradient of zeros": Fault(
        "cosine similarity", wrong(jax_cosine, norm=jnp.linalg.norm), "special values.*vjp.*NaN"
    ),
    "root not safe": Fault("pairwise distance", wrong(jax_pairwise, safe=False), RULE),
    "squared distance": Fault("pairwise distance", wrong(jax_pairwise, root=False)),
    "logsumexp, temperature missing": Fault("logsumexp", wrong(jax_logsumexp, t=1.0)),
    "logsumexp, not multiplied": Fault("logsumexp", wrong(jax_logsumexp, after=False)),
    "logsumexp, axis": Fault("logsumexp", wrong(jax_logsumexp, axis=0)),
    "cumulative, axis": Fault("cumulative mean", wrong(jax_cumulative, axis=0)),
    "cumulative, exclusive": Fault("cumulative mean", wrong(jax_cumulative, exclusive=True)),
    "dropout not scaled": Fault("dropout", wrong(jax_dropout, divide=1.0)),
    "dropout scaled by the dropped share": Fault("dropout", wrong(jax_dropout, divide=0.25)),
    "dropout's rule without the mask": Fault(
        "dropout", jax_rule(jax_dropout, lambda x, kept, v: (v / 0.75, None)), RULE
    ),
    "contrastive, one way": Fault("contrastive", wrong(jax_contrastive, one_way=True)),
    "contrastive, temperature": Fault("contrastive", wrong(jax_contrastive, t=0.07)),
    "contrastive, not normalized": Fault("contrastive", wrong(jax_contrastive, normalize=False)),
    "codes, not straight-through": Fault("vector quantizer", wrong(jax_codes, through=False), RULE),
    "codes, nothing stopped": Fault("vector quantizer", wrong(jax_codes, stop=lambda x: x), RULE),
    "codes, losses exchanged": Fault("vector quantizer", wrong(jax_codes, exchanged=True), RULE),
    "codes, beta": Fault("vector quantizer", wrong(jax_codes, beta=1.0)),
    "sparsemax, threshold": Fault("sparsemax", wrong(jax_sparsemax, off=2)),
    "sparsemax, threshold stopped": Fault("sparsemax", wrong(jax_sparsemax, stop=True), RULE),
    "kernel without 2": Fault("RBF kernel", wrong(jax_kernel, two=1)),
    "kernel's width not squared": Fault("RBF kernel", wrong(jax_kernel, power=1)),
    "Runge-Kutta, weights": Fault("Runge-Kutta", wrong(jax_runge_kutta, weights=(1, 2, 1, 2))),
    "Runge-Kutta, half steps": Fault("Runge-Kutta", wrong(jax_runge_kutta, half=0.1)),
    "Adam, not corrected": Fault("Adam", wrong(jax_adam, correct=False)),
    "Adam, epsilon inside": Fault("Adam", wrong(jax_adam, inside=True)),
    "sampled at (y, x)": Fault("grid_sample", wrong(jax_grid_sample, exchanged=True)),
    "sampled between corners": Fault("grid_sample", wrong(jax_grid_sample, aligned=False)),
    "truncated through time": Fault("Elman network", wrong(jax_elman, stop=True), RULE),
    "recurrent weights transposed": Fault("Elman network", wrong(jax_elman, transposed=False)),
    "another slope": Fault("leaky ReLU", wrong(jax_leaky_relu, slope=0.2)),
    "CELU's alpha forgotten": Fault("CELU", jax_celu),
    "swish for hard swish": Fault("hard swish", jax.nn.silu),
    "softplus not divided": Fault("softplus", lambda x: jax.nn.softplus(2 * x)),
    "exponential of each element": Fault("matrix exponential", jnp.exp),
    "Taylor's series cut off": Fault(
        "matrix exponential", lambda x: jnp.eye(3) + x + x @ x / 2 + x @ x @ x / 6 + x @ x @ x @ x / 24
    ),
    "squared singular values": Fault("singular values", lambda x: jnp.linalg.eigvalsh(x.T @ x)[::-1]),
    "sorted descending": Fault("sorted", lambda x: -jnp.sort(-x, -1)),
    "sorted along the other axis": Fault("sorted", lambda x: jnp.sort(x, 0)),
    "lower quantile": Fault("quantile", lambda x: jnp.quantile(x, 0.3, method="lower")),
    "deviation, biased": Fault("standard deviation", wrong(jax_deviation, ddof=0)),
    "deviation, NaN in the gradient of equal numbers": Fault(
        "standard deviation", lambda x: x.std(-1, ddof=1), "special values.*vjp.*NaN"
    ),
    "norm, NaN in the gradient of zeros": Fault(
        "clipped norm", wrong(jax_clipped, norm=jnp.linalg.norm), "special values.*vjp.*NaN"
    ),
    "norm stopped": Fault("clipped norm", wrong(jax_clipped, stop=True), RULE),
}


# Wrong ports that pass for now: no test runs them.
MISSED: dict[str, Fault] = {}
