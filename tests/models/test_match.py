import os

os.environ["HF_HUB_OFFLINE"] = "1"

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen, nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from p3.errors import InputError
from p3.parity.models.equality import compared
from p3.parity.models.links import Match, Parameter
from p3.parity.models.match import match

Arrays = dict[str, np.ndarray]


def of_torch(model: torch.nn.Module) -> list[Parameter]:
    """The descriptions of a model of PyTorch."""
    modules = dict(model.named_modules())
    found: dict[int, Parameter] = {}
    named = [(False, *x) for x in model.named_parameters(remove_duplicate=False)]
    named += [(True, *x) for x in model.named_buffers(remove_duplicate=False)]
    for is_state, path, tensor in named:
        if id(tensor) in found:
            known = found[id(tensor)]
            found[id(tensor)] = replace(known, aliases=(*known.aliases, path))
            continue
        layer = path.rpartition(".")[0]
        parents = [".".join(layer.split(".")[:i]) for i in range(layer.count(".") + 1)]
        found[id(tensor)] = Parameter(
            path,
            layer,
            type(modules[layer]).__name__,
            tensor.detach().numpy(),
            is_state,
            parents=tuple((parent, type(modules[parent]).__name__) for parent in parents),
        )
    return list(found.values())


def of_tree(tree: Mapping[str, Any], kinds: Mapping[str, str] | None = None, is_state: bool = False) -> list[Parameter]:
    """The descriptions of nested dicts of arrays."""
    flat = {".".join(map(str, path)): np.asarray(array) for path, array in flatten_dict(dict(tree)).items()}
    return [
        Parameter(path, layer := path.rpartition(".")[0], (kinds or {}).get(layer, ""), array, is_state)
        for path, array in flat.items()
    ]


def of_linen(variables: Mapping[str, Any], kinds: Mapping[str, str]) -> list[Parameter]:
    """The descriptions of the variables of a model of flax.linen."""
    return [x for name, tree in variables.items() for x in of_tree(tree, kinds, name != "params")]


def kind_of(library: str, layer: Any) -> str:
    """The class of a layer, with what changes the layout of its kernel."""
    return f"{library}.{type(layer).__name__}" + "(transpose_kernel=True)" * getattr(layer, "transpose_kernel", False)


def of_nnx(model: nnx.Module) -> list[Parameter]:
    """The descriptions of a model of flax.nnx."""
    kinds = {
        ".".join(map(str, path)): kind_of("nnx", node)
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Module)
    }
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return [
        Parameter(
            ".".join(map(str, path)),
            layer := ".".join(map(str, path[:-1])),
            kinds.get(layer, ""),
            np.asarray(variable[...]),
            isinstance(variable, nnx.BatchStat),
        )
        for path, variable in state
    ]


def of_eqx(model: eqx.Module, root: str = "") -> list[Parameter]:
    """The descriptions of a model of equinox."""
    found = []
    for path, array in jax.tree_util.tree_leaves_with_path(eqx.filter(model, eqx.is_array)):
        owner, kind, words = model, "", []
        for key in path:
            if isinstance(owner, eqx.Module):
                home = "eqx.nn." if type(owner).__module__.startswith("equinox") else ""
                kind = home + type(owner).__name__
            words.append(str(getattr(key, "name", getattr(key, "idx", getattr(key, "key", None)))))
            owner = getattr(owner, words[-1]) if hasattr(key, "name") else owner[getattr(key, "idx", words[-1])]
        found.append(Parameter(".".join(words), ".".join(words[:-1]), kind, np.asarray(array)))
    return found


def arrays_of(parameters: Sequence[Parameter]) -> Arrays:
    return {x.path: x.array for x in parameters}


def pairs_of(found: Match) -> list[tuple[str, str]]:
    return [("+".join(map(str, link.torch)), str(link.jax)) for link in found.links]


def patterns_of(found: Match) -> dict[str, str]:
    return {str(link.torch[0]): link.pattern for link in found.links}


def checked(mine: Sequence[Parameter], theirs: Sequence[Parameter]) -> tuple[Match, Arrays]:
    """The match of the two, and the arrays of JAX with PyTorch's numbers; nothing is left over."""
    found = match(mine, theirs)
    assert (found.torch_only, found.jax_only) == ((), ())
    assert Match.from_json(found.to_json()) == found
    x, like = arrays_of(mine), arrays_of(theirs)
    rng = np.random.default_rng(0)
    for link in found.links:
        pieces = [x[part.path] for part in link.torch]
        y = link.to_jax(pieces)
        assert y.shape == link.jax.of(like[link.jax.path]).shape
        whole = np.zeros_like(like[link.jax.path], dtype=y.dtype)
        whole[link.jax.index(whole.shape)] = y
        back = link.to_torch(whole)
        if link.is_sum:
            np.testing.assert_array_equal(sum(back), sum(part.of(x[part.path]) for part in link.torch))
        else:
            np.testing.assert_array_equal(back[0], link.torch[0].of(pieces[0]))
        gradient = rng.normal(size=whole.shape)
        to_torch = link.gradient_to_torch(gradient)
        inner = sum(np.vdot(g, part.of(a)) for g, part, a in zip(to_torch, link.torch, pieces, strict=True))
        np.testing.assert_allclose(inner, np.vdot(link.jax.of(gradient), y))
    return found, found.to_jax(x, {path: array.astype(np.float64) for path, array in like.items()})


@pytest.fixture(autouse=True)
def wide():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield
    torch.set_default_dtype(before)


def drawn(model: torch.nn.Module) -> torch.nn.Module:
    """The model with all parameters and running statistics random, those that begin as constants too."""
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if tensor.ndim == 1 else tensor.normal_()
    return model.eval()


def into_nnx(model: nnx.Module, arrays: Arrays) -> nnx.Module:
    for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))):
        variable.set_value(jnp.asarray(arrays[".".join(map(str, path))]))
    return model


def into_eqx(model: eqx.Module, arrays: Arrays) -> Any:
    paths = [x.path for x in of_eqx(model)]
    dynamic, static = eqx.partition(model, eqx.is_array)
    tree = jax.tree.structure(dynamic)
    return eqx.combine(jax.tree.unflatten(tree, [jnp.asarray(arrays[path]) for path in paths]), static)


def last(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


SPACE = {1: (7,), 2: (6, 7), 3: (4, 5, 6)}
KERNEL = {1: (3,), 2: (2, 3), 3: (2, 3, 4)}
RNGS = nnx.Rngs(0)


def torch_conv(n: int, transposed: bool = False, i: int = 2, o: int = 4, groups: int = 1) -> torch.nn.Module:
    name = f"Conv{'Transpose' * transposed}{n}d"
    return getattr(torch.nn, name)(i, o, KERNEL[n], groups=groups, stride=2 if transposed else 1)


def flax_conv(library: Any, n: int, i: int, o: int, groups: int = 1) -> Any:
    extra = {"in_features": i, "rngs": nnx.Rngs(0), "out_features": o} if library is nnx else {"features": o}
    return library.Conv(kernel_size=KERNEL[n], padding="VALID", feature_group_count=groups, **extra)


def flax_transposed(library: Any, n: int, i: int, o: int, transpose_kernel: bool) -> Any:
    extra = {"in_features": i, "rngs": nnx.Rngs(0), "out_features": o} if library is nnx else {"features": o}
    strides = (2,) * n
    return library.ConvTranspose(
        kernel_size=KERNEL[n], padding="VALID", strides=strides, transpose_kernel=transpose_kernel, **extra
    )


# The layer of PyTorch, that of the other library, and the shape of the input in PyTorch.
FLAX_LAYERS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[Any], Any], tuple[int, ...]]] = {
    "linear": (lambda: torch.nn.Linear(3, 5), lambda m: dense(m, 3, 5), (2, 3)),
    "square": (lambda: torch.nn.Linear(4, 4), lambda m: dense(m, 4, 4), (2, 4)),
    "from 1": (lambda: torch.nn.Linear(1, 4), lambda m: dense(m, 1, 4), (2, 1)),
    "general": (lambda: torch.nn.Linear(12, 6), lambda m: general(m, 12, (2, 3)), (2, 12)),
    "square general": (lambda: torch.nn.Linear(6, 6), lambda m: general(m, 6, (2, 3)), (2, 6)),
    "norm": (lambda: torch.nn.LayerNorm(4), lambda m: norm(m, "LayerNorm", 4), (2, 4)),
    "rms": (lambda: torch.nn.RMSNorm(4, eps=1e-5), lambda m: norm(m, "RMSNorm", 4), (2, 4)),
    "conv1d": (lambda: torch_conv(1), lambda m: flax_conv(m, 1, 2, 4), (2, 2, 7)),
    "conv2d": (lambda: torch_conv(2), lambda m: flax_conv(m, 2, 2, 4), (2, 2, 6, 7)),
    "conv3d": (lambda: torch_conv(3), lambda m: flax_conv(m, 3, 2, 4), (2, 2, 4, 5, 6)),
    "square conv": (lambda: torch_conv(2, i=3, o=3), lambda m: flax_conv(m, 2, 3, 3), (2, 3, 6, 7)),
    "grouped conv": (lambda: torch_conv(2, groups=2), lambda m: flax_conv(m, 2, 2, 4, 2), (2, 2, 6, 7)),
    **{
        f"transposed conv{n}d, {i} to {o}{', transpose_kernel' * t}": (
            lambda n=n, i=i, o=o: torch_conv(n, True, i, o),
            lambda m, n=n, i=i, o=o, t=t: flax_transposed(m, n, i, o, t),
            (2, i, *SPACE[n]),
        )
        for n, i, o, t in [
            (1, 2, 4, False),
            (2, 2, 4, False),
            (3, 2, 4, False),
            (2, 3, 3, False),
            (2, 1, 3, False),
            (1, 2, 4, True),
            (2, 2, 4, True),
            (2, 3, 3, True),
            (2, 1, 3, True),
            (2, 1, 1, True),
        ]
    },
}


def dense(library: Any, i: int, o: int) -> Any:
    return nnx.Linear(i, o, rngs=nnx.Rngs(0)) if library is nnx else linen.Dense(o)


def general(library: Any, i: int, o: tuple[int, ...]) -> Any:
    return nnx.LinearGeneral(i, o, rngs=nnx.Rngs(0)) if library is nnx else linen.DenseGeneral(o)


def norm(library: Any, kind: str, n: int) -> Any:
    return getattr(nnx, kind)(n, epsilon=1e-5, rngs=nnx.Rngs(0)) if library is nnx else getattr(linen, kind)(1e-5)


@pytest.mark.parametrize("library", [nnx, linen], ids=["nnx", "linen"])
@pytest.mark.parametrize("name", FLAX_LAYERS)
def test_layer_of_flax(name, library):
    make, make_other, shape = FLAX_LAYERS[name]
    layer, other = drawn(make()), make_other(library)
    x = np.random.default_rng(1).normal(size=shape)
    moved = last(x)
    if library is nnx:
        found, arrays = checked(of_torch(layer), of_nnx(other))
        y = into_nnx(other, arrays)(moved)
    else:
        variables = other.init(jax.random.key(0), moved)
        kinds = {"": kind_of("linen", other)}
        found, arrays = checked(of_torch(layer), of_linen(variables, kinds))
        y = other.apply({"params": arrays}, moved)
    assert not found.guessed
    expected = last(layer(torch.tensor(x)).detach().numpy())
    np.testing.assert_allclose(np.reshape(y, expected.shape), expected, rtol=1e-7, atol=1e-12)


BATCH_NORMS = {
    "nnx": lambda: nnx.BatchNorm(4, use_running_average=True, epsilon=1e-5, rngs=nnx.Rngs(0)),
    "linen": lambda: linen.BatchNorm(use_running_average=True, epsilon=1e-5),
}


@pytest.mark.parametrize("library", BATCH_NORMS)
def test_batch_norm_of_flax(library):
    layer, other = drawn(torch.nn.BatchNorm2d(4)), BATCH_NORMS[library]()
    x = np.random.default_rng(1).normal(size=(2, 4, 5, 6))
    if library == "nnx":
        found, arrays = checked(of_torch(layer), of_nnx(other))
        y = into_nnx(other, arrays)(last(x))
    else:
        variables = other.init(jax.random.key(0), last(x))
        found, arrays = checked(of_torch(layer), of_linen(variables, {"": "linen.BatchNorm"}))
        y = other.apply({k: {name: arrays[name] for name in v} for k, v in variables.items()}, last(x))
    assert found.ignored == ("num_batches_tracked",)
    np.testing.assert_allclose(y, last(layer(torch.tensor(x)).detach().numpy()))


KEY = jax.random.key(0)
EQX_LAYERS: dict[str, tuple[Callable[[], torch.nn.Module], Callable[[], Any], tuple[int, ...]]] = {
    "linear": (lambda: torch.nn.Linear(3, 5), lambda: eqx.nn.Linear(3, 5, key=KEY), (3,)),
    "square": (lambda: torch.nn.Linear(4, 4), lambda: eqx.nn.Linear(4, 4, key=KEY), (4,)),
    "norm": (lambda: torch.nn.LayerNorm(4), lambda: eqx.nn.LayerNorm(4), (4,)),
    "square norm": (lambda: torch.nn.LayerNorm((3, 3)), lambda: eqx.nn.LayerNorm((3, 3)), (3, 3)),
    "group norm": (lambda: torch.nn.GroupNorm(2, 4), lambda: eqx.nn.GroupNorm(2, 4), (4, 5)),
    "rms": (lambda: torch.nn.RMSNorm(4, 1e-5), lambda: eqx.nn.RMSNorm(4, 1e-5, use_bias=False), (4,)),
    **{
        f"conv{n}d, {groups} groups": (
            lambda n=n, groups=groups: torch_conv(n, groups=groups),
            lambda n=n, groups=groups: eqx.nn.Conv(n, 2, 4, KERNEL[n], groups=groups, key=KEY),
            (2, *SPACE[n]),
        )
        for n, groups in [(1, 1), (2, 1), (3, 1), (2, 2)]
    },
    **{
        f"transposed conv{n}d, {i} to {o}, {groups} groups": (
            lambda n=n, i=i, o=o, groups=groups: torch_conv(n, True, i, o, groups),
            lambda n=n, i=i, o=o, groups=groups: eqx.nn.ConvTranspose(n, i, o, KERNEL[n], 2, groups=groups, key=KEY),
            (i, *SPACE[n]),
        )
        for n, i, o, groups in [
            (1, 2, 4, 1),
            (2, 3, 3, 1),
            (3, 2, 4, 1),
            (2, 1, 1, 1),
            (2, 1, 3, 1),
            (2, 4, 6, 2),
            (1, 4, 4, 4),
            (2, 4, 4, 2),
        ]
    },
}


@pytest.mark.parametrize("name", EQX_LAYERS)
def test_layer_of_equinox(name):
    make, make_other, shape = EQX_LAYERS[name]
    layer, other = drawn(make()), make_other()
    x = np.random.default_rng(1).normal(size=(1, *shape))
    found, arrays = checked(of_torch(layer), of_eqx(other))
    assert not found.guessed
    y = into_eqx(other, arrays)(jnp.asarray(x[0]))
    np.testing.assert_allclose(y, layer(torch.tensor(x)).detach().numpy()[0], atol=1e-12)


def test_batch_norm_of_equinox():
    layer = drawn(torch.nn.BatchNorm1d(4))
    other, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="ema")
    mean, variance = state.get(other.ema_state_index)
    theirs = of_eqx(other)
    theirs = [x for x in theirs if "index" not in x.path and "counter" not in x.path]
    theirs += [
        Parameter(f"ema_state_index.{i}", "", "eqx.nn.BatchNorm", np.asarray(array), True)
        for i, array in enumerate((mean, variance))
    ]
    theirs.append(Parameter("ema_first_time_index", "", "eqx.nn.BatchNorm", np.array(True), True))
    found, arrays = checked(of_torch(layer), theirs)
    assert set(found.ignored) == {"num_batches_tracked", "ema_first_time_index"}
    np.testing.assert_array_equal(arrays["ema_state_index.0"], layer.running_mean)
    np.testing.assert_array_equal(arrays["ema_state_index.1"], layer.running_var)


@pytest.mark.parametrize("library", ["nnx", "linen", "eqx"])
def test_embedding(library):
    layer = torch.nn.Embedding(4, 4)
    if library == "linen":
        theirs = of_linen(linen.Embed(4, 4).init(KEY, jnp.zeros(2, int)), {"": "linen.Embed"})
    elif library == "nnx":
        theirs = of_nnx(nnx.Embed(4, 4, rngs=nnx.Rngs(0)))
    else:
        theirs = of_eqx(eqx.nn.Embedding(4, 4, key=KEY))
    found, arrays = checked(of_torch(layer), theirs)
    assert not found.guessed
    np.testing.assert_array_equal(next(iter(arrays.values())), layer.weight.detach())


class Apart(torch.nn.Module):
    """Attention with a linear layer for each of query, key, value and output."""

    def __init__(self, size: int, heads: int, kv_heads: int | None = None) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        depth = size // heads
        self.q_proj = torch.nn.Linear(size, size)
        self.k_proj = torch.nn.Linear(size, self.kv_heads * depth)
        self.v_proj = torch.nn.Linear(size, self.kv_heads * depth)
        self.o_proj = torch.nn.Linear(size, size)

    def projected(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (y.unflatten(-1, (-1, x.shape[-1] // self.heads)).transpose(-2, -3) for y in self.projected(x))
        k, v = (y.repeat_interleave(self.heads // self.kv_heads, dim=-3) for y in (k, v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.o_proj(y.transpose(-2, -3).flatten(-2))


class Fused(Apart):
    """The same with one layer for query, key and value."""

    def __init__(self, size: int, heads: int, kv_heads: int | None = None) -> None:
        super().__init__(size, heads, kv_heads)
        self.lengths = [x.out_features for x in (self.q_proj, self.k_proj, self.v_proj)]
        del self.q_proj, self.k_proj, self.v_proj
        self.qkv = torch.nn.Linear(size, sum(self.lengths))

    def projected(self, x: torch.Tensor) -> Sequence[torch.Tensor]:
        return self.qkv(x).split(self.lengths, dim=-1)


class Whole(torch.nn.Module):
    """PyTorch's own."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(size, heads, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attn(x, x, x)[0]


ATTENTIONS = {
    "whole": lambda: Whole(6, 2),
    "apart": lambda: Apart(6, 2),
    "fused": lambda: Fused(6, 2),
}


@pytest.mark.parametrize("library", ["nnx", "linen", "eqx"])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention(name, library):
    layer = drawn(ATTENTIONS[name]())
    x = np.random.default_rng(1).normal(size=(1, 5, 6))
    if library == "nnx":
        other = nnx.MultiHeadAttention(2, 6, decode=False, dtype=jnp.float64, rngs=nnx.Rngs(0))
        found, arrays = checked(of_torch(layer), of_nnx(other))
        y = into_nnx(other, arrays)(x)
    elif library == "linen":
        other = linen.MultiHeadDotProductAttention(2)
        variables = other.init(KEY, x, x)
        kinds = dict.fromkeys(("query", "key", "value", "out"), "linen.DenseGeneral")
        found, arrays = checked(of_torch(layer), of_linen(variables, kinds))
        y = other.apply({"params": unflatten_dict({tuple(k.split(".")): v for k, v in arrays.items()})}, x, x)
    else:
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        other = eqx.nn.MultiheadAttention(2, 6, key=KEY, **biases)
        found, arrays = checked(of_torch(layer), of_eqx(other))
        y = into_eqx(other, arrays)(*[jnp.asarray(x[0])] * 3)[None]
    assert not found.guessed
    # The softmax of nnx is in float32.
    tolerance = {"atol": 1e-5} if library == "nnx" else {"atol": 1e-12}
    np.testing.assert_allclose(y, layer(torch.tensor(x)).detach().numpy(), **tolerance)


@pytest.mark.parametrize("name", ["apart", "fused"])
def test_grouped_query_attention(name):
    layer = drawn({"apart": Apart, "fused": Fused}[name](8, 4, 2))
    other = nnx.MultiHeadAttention(4, 8, num_kv_heads=2, decode=False, dtype=jnp.float64, rngs=nnx.Rngs(0))
    x = np.random.default_rng(1).normal(size=(1, 5, 8))
    _, arrays = checked(of_torch(layer), of_nnx(other))
    np.testing.assert_allclose(into_nnx(other, arrays)(x), layer(torch.tensor(x)).detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 18), (6, 3, 2, 3), (3, 6, 6)])
def test_one_array_of_jax_for_query_key_and_value(shape):
    layer = Apart(6, 2)
    rng = np.random.default_rng(0)
    bias = shape[1:] if len(shape) != 3 else (3, 6)
    tree = {"qkv": {"kernel": rng.normal(size=shape), "bias": rng.normal(size=bias)}}
    tree["out"] = {"kernel": rng.normal(size=(6, 6)), "bias": rng.normal(size=6)}
    _, arrays = checked(of_torch(layer), of_tree(tree))
    x = rng.normal(size=6)
    y = np.tensordot(x, arrays["qkv.kernel"], axes=(0, 1 if len(shape) == 3 else 0)) + arrays["qkv.bias"]
    expected = np.concatenate([z.detach() for z in layer.projected(torch.tensor(x))])
    np.testing.assert_allclose(y.reshape(-1), expected)


def test_fused_with_heads_side_by_side():
    layer = torch.nn.ModuleDict({"query_key_value": torch.nn.Linear(6, 18)})
    weight = layer["query_key_value"].weight.detach().numpy().reshape(2, 3, 3, 6)
    tree = {
        name: {"kernel": np.moveaxis(weight[:, i], -1, 0), "bias": np.zeros((2, 3))}
        for i, name in enumerate(["query", "key", "value"])
    }
    found, arrays = checked(of_torch(layer), of_tree(tree))
    assert found.is_loaded
    np.testing.assert_array_equal(arrays["key.kernel"], tree["key"]["kernel"])


def run_flax(cell: Any, x: np.ndarray, call: Callable[..., Any], carry: Any) -> np.ndarray:
    ys = []
    for row in x:
        carry, y = call(carry, row)
        ys.append(y)
    return np.stack(ys)


def numbered(name: str, i: int, parameters: Sequence[Parameter]) -> list[Parameter]:
    def inside(path: str) -> str:
        return ".".join(filter(None, (name, str(i), path)))

    return [replace(x, path=inside(x.path), layer=inside(x.layer)) for x in parameters]


def cell_of(
    library: str, kind: str, i: int, h: int
) -> tuple[list[Parameter], Callable[[Arrays, np.ndarray], np.ndarray]]:
    """A recurrent cell of a library, and its outputs for parameters and a sequence."""
    zero = jnp.zeros(h)
    carry = (zero, zero) if "LSTM" in kind else zero
    if library == "nnx":
        cell = getattr(nnx, kind)(i, h, dtype=jnp.float64, rngs=nnx.Rngs(0))
        return of_nnx(cell), lambda arrays, x: run_flax(cell, x, into_nnx(cell, arrays), carry)
    if library == "linen":
        cell = getattr(linen, kind)(h)
        tree = cell.init(KEY, carry, jnp.zeros(i))["params"]

        def call(arrays: Arrays, x: np.ndarray) -> np.ndarray:
            params = unflatten_dict({tuple(k.split(".")): v for k, v in arrays.items()})
            return run_flax(cell, x, lambda c, row: cell.apply({"params": params}, c, row), carry)

        return of_tree(tree, {path: "linen.Dense" for path in tree}), call
    cell = getattr(eqx.nn, kind)(i, h, key=KEY)

    def states(arrays: Arrays, x: np.ndarray) -> np.ndarray:
        filled, state, ys = into_eqx(cell, arrays), carry, []
        for row in x:
            state = filled(row, state)
            ys.append(state[0] if "LSTM" in kind else state)
        return np.stack(ys)

    return of_eqx(cell), states


CELLS = [
    ("nnx", "LSTMCell"),
    ("nnx", "OptimizedLSTMCell"),
    ("nnx", "GRUCell"),
    ("nnx", "SimpleCell"),
    ("linen", "LSTMCell"),
    ("linen", "OptimizedLSTMCell"),
    ("linen", "GRUCell"),
    ("linen", "SimpleCell"),
    ("eqx", "LSTMCell"),
    ("eqx", "GRUCell"),
]


@pytest.mark.parametrize("inputs", [3, 4])
@pytest.mark.parametrize(("library", "kind"), CELLS)
def test_recurrent(library, kind, inputs):
    """Two layers, against a cell for each."""
    name = {"L": "LSTM", "O": "LSTM", "G": "GRU", "S": "RNN"}[kind[0]]
    layer = drawn(getattr(torch.nn, name)(inputs, 4, num_layers=2))
    if (library, kind) == ("nnx", "GRUCell"):  # which has no bias for the hidden state's part of the new one
        with torch.no_grad():
            layer.bias_hh_l0[8:] = layer.bias_hh_l1[8:] = 0
    mine, theirs = of_torch(layer), []
    cells = [cell_of(library, kind, i, 4) for i in (inputs, 4)]
    for i, (parameters, _) in enumerate(cells):
        theirs += numbered("rnns", i, parameters)
    if (library, kind) == ("nnx", "GRUCell"):
        found = match(mine, theirs)
        assert (found.torch_only, found.jax_only) == (("bias_hh_l0[8:12]", "bias_hh_l1[8:12]"), ())
        arrays = found.to_jax(arrays_of(mine), {x.path: x.array.astype(float) for x in theirs})
    else:
        found, arrays = checked(mine, theirs)
    assert not found.guessed
    x = np.random.default_rng(1).normal(size=(5, inputs))
    y = x
    for i, (_, call) in enumerate(cells):
        y = call({path.removeprefix(f"rnns.{i}."): a for path, a in arrays.items() if f"s.{i}." in path}, y)
    np.testing.assert_allclose(y, layer(torch.tensor(x))[0].detach().numpy())


def test_bidirectional():
    layer = drawn(torch.nn.LSTM(4, 4, num_layers=2, bidirectional=True))
    theirs = []
    for i in range(2):
        for word in ("backward", "forward"):  # in the order of the alphabet, as trees are
            cell = cell_of("nnx", "OptimizedLSTMCell", 4 if i == 0 else 8, 4)[0]
            theirs += [
                replace(x, path=f"birnn_{i}.{word}_rnn.cell.{x.path}", layer=f"birnn_{i}.{word}_rnn.cell.{x.layer}")
                for x in cell
            ]
    found, arrays = checked(of_torch(layer), theirs)
    np.testing.assert_array_equal(
        arrays["birnn_1.backward_rnn.cell.dense_h.kernel"], layer.weight_hh_l1_reverse.detach().T
    )
    assert not found.guessed


def test_recurrent_in_a_plain_tree():
    layer = drawn(torch.nn.LSTM(4, 4))
    tree = {"w_ih": np.zeros((4, 16)), "w_hh": np.zeros((4, 16)), "b": np.zeros(16)}
    _, arrays = checked(of_torch(layer), of_tree(tree))
    np.testing.assert_array_equal(arrays["w_hh"], layer.weight_hh_l0.detach().T)
    np.testing.assert_array_equal(arrays["b"], (layer.bias_ih_l0 + layer.bias_hh_l0).detach())
    same = {path: np.zeros(x.shape) for path, x in layer.state_dict().items()}
    _, arrays = checked(of_torch(layer), of_tree({"lstm": same}))
    np.testing.assert_array_equal(arrays["lstm.bias_hh_l0"], layer.bias_hh_l0.detach())


MODELS = {
    "GPT2LMHead": (
        "GPT2Config",
        {"n_layer": 3, "n_head": 2, "n_embd": 8, "vocab_size": 11, "n_positions": 16},
    ),
    **{
        name: (
            config,
            {
                "hidden_size": 8,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "intermediate_size": 8,  # so that no shape tells the layers of the MLP apart
                "vocab_size": 11,
                "max_position_embeddings": 16,
                **more,
            },
        )
        for name, config, more in [
            ("BertForMaskedLM", "BertConfig", {}),
            ("BertForSequenceClassification", "BertConfig", {}),
            ("RobertaForMaskedLM", "RobertaConfig", {}),
            ("ViTForImageClassification", "ViTConfig", {"image_size": 8, "patch_size": 4, "num_labels": 3}),
            ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 1}),
        ]
    },
}
CLASSES = {name: {"GPT2LMHead": "GPT2LMHeadModel"}.get(name, name) for name in MODELS}


@pytest.fixture(scope="module")
def transformers():
    return importlib.import_module("transformers")


def pair_of(transformers: Any, name: str) -> tuple[list[Parameter], list[Parameter]]:
    config, values = MODELS[name]
    made = getattr(transformers, config)(**values)
    torch_model = getattr(transformers, CLASSES[name])(made)
    with jax.enable_x64(False):
        flax_model = getattr(transformers, f"Flax{CLASSES[name]}")(made)
    return of_torch(torch_model), of_tree(flax_model.params)


def by_name(path: str) -> str:
    """The path in flax that transformers gives to one of PyTorch."""
    path = re.sub(r"decoder\.(bias)$", r"\1", path)
    return re.sub(r"\.(weight|kernel|embedding|scale)$", ".weight", path)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_model_of_transformers(transformers, name, is_shuffled):
    mine, theirs = pair_of(transformers, name)
    rng = np.random.default_rng(0)
    if is_shuffled:
        mine = [mine[i] for i in rng.permutation(len(mine))]
        theirs = [theirs[i] for i in rng.permutation(len(theirs))]
    found = match(mine, theirs)
    assert (found.torch_only, found.jax_only) == ((), ())
    for link in found.links:
        assert by_name(link.torch[0].path) == by_name(link.jax.path)
    patterns = {link.pattern for link in found.links if link.jax.path.endswith("kernel")}
    assert patterns <= {"o i -> i o", "i o -> o i", "o i x y -> x y i o"}
    assert not found.is_loaded


def renamed(
    parameters: Sequence[Parameter], words: Sequence[tuple[str, str]]
) -> tuple[list[Parameter], dict[str, str]]:
    """The parameters with other words, and the old path of each new one."""
    done = []
    for x in parameters:
        path = x.path
        for pattern, word in words:
            path = re.sub(pattern, word, path)
        done.append(replace(x, path=path, layer=path.rpartition(".")[0]))
    return done, {new.path: old.path for new, old in zip(done, parameters, strict=True)}


RENAMED = [
    (
        "GPT2LMHead",
        [
            (r"transformer\.h\.(\d)", r"decoder.block_\1"),
            (r"ln_1", "attention_norm"),
            (r"ln_2", "ffn_norm"),
            (r"mlp.c_fc", "feed_forward.up_proj"),
            (r"mlp.c_proj", "feed_forward.down_proj"),
            (r"attn.c_attn", "self_attention.qkv"),
            (r"attn.c_proj", "self_attention.out"),
            (r"wte", "token_embedding"),
            (r"wpe", "position_embedding"),
            (r"ln_f", "final_layer_norm"),
        ],
    ),
    (
        "LlamaForCausalLM",
        [
            (r"model\.layers\.(\d)", r"transformer.h_\1"),
            (r"self_attn.(.)_proj", r"attention.w\1"),
            (r"gate_proj", "w1"),
            (r"down_proj", "w2"),
            (r"up_proj", "w3"),
            (r"input_layernorm.weight", "ln_1.scale"),
            (r"post_attention_layernorm.weight", "ln_2.scale"),
            (r"embed_tokens", "wte"),
        ],
    ),
    (
        "ViTForImageClassification",
        [
            (r"vit\.encoder\.layer\.(\d)", r"Transformer.encoderblock_\1"),
            (r"layernorm_before", "LayerNorm_0"),
            (r"layernorm_after", "LayerNorm_1"),
            (r"attention\.attention\.", "MultiHeadDotProductAttention_0."),
            (r"attention\.output\.dense", "MultiHeadDotProductAttention_0.out"),
            (r"intermediate\.dense", "MlpBlock_0.Dense_0"),
            (r"(\d)\.output\.dense", r"\1.MlpBlock_0.Dense_1"),
            (r"vit.layernorm", "Transformer.encoder_norm"),
            (r"vit.embeddings.position_embeddings", "Transformer.posembed_input.pos_embedding"),
            (r"vit.embeddings.patch_embeddings.projection", "embedding"),
            (r"vit.embeddings.cls_token", "cls"),
            (r"classifier", "head"),
        ],
    ),
    (
        "BertForMaskedLM",
        [
            (r"bert\.encoder\.layer\.(\d)\.", r"layers_\1."),
            (r"attention\.self\.(.).*\.", r"attn.\1."),
            (r"attention\.output\.dense", "attn.o"),
            (r"attention\.output\.LayerNorm", "norm1"),
            (r"intermediate\.dense", "mlp.fc1"),
            (r"(\d)\.output\.dense", r"\1.mlp.fc2"),
            (r"(\d)\.output\.LayerNorm", r"\1.norm2"),
        ],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "words"), RENAMED, ids=[name for name, _ in RENAMED])
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_other_words(transformers, name, words, is_shuffled):
    mine, theirs = pair_of(transformers, name)
    right = {str(link.jax): str(link.torch[0]) for link in match(mine, theirs).links}
    theirs, old = renamed(theirs, words)
    if is_shuffled:
        theirs = [theirs[i] for i in np.random.default_rng(0).permutation(len(theirs))]
    found = match(mine, theirs)
    assert {str(link.jax): str(link.torch[0]) for link in found.links} == {
        new: right[path] for new, path in old.items()
    }


def stacked(parameters: Sequence[Parameter], pattern: str) -> list[Parameter]:
    """The parameters with one array for all layers, whose path has the number of the layer left out."""
    done: dict[str, list[Parameter]] = {}
    for x in parameters:
        done.setdefault(re.sub(pattern, "", x.path), []).append(x)
    return [
        replace(xs[0], path=path, layer=path.rpartition(".")[0], array=np.stack([x.array for x in xs]))
        if len(xs) > 1
        else xs[0]
        for path, xs in done.items()
    ]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT2LMHead", "BertForMaskedLM", "ViTForImageClassification", "LlamaForCausalLM"])
def test_stacked_layers(transformers, name):
    mine, theirs = pair_of(transformers, name)
    right = {str(link.jax): str(link.torch[0]) for link in match(mine, theirs).links}
    found = match(mine, stacked(theirs, r"\.\d+(?=\.)"))
    assert (found.torch_only, found.jax_only) == ((), ())
    for link in found.links:
        number = link.jax.cuts[0].start if link.jax.cuts else 0
        path = re.sub(r"(layers?|h)\.", rf"\1.{number}.", link.jax.path, count=1) if link.jax.cuts else link.jax.path
        assert right[path] == link.torch[0].path


def test_stacked_layers_with_heads():
    """A scan over attention with its projections apart, for layers of PyTorch with one projection."""
    layers = torch.nn.ModuleList([torch.nn.MultiheadAttention(6, 2) for _ in range(3)])
    model = torch.nn.ModuleDict({"layers": layers})
    other = nnx.vmap(lambda rngs: nnx.MultiHeadAttention(2, 6, decode=False, rngs=rngs))(nnx.Rngs(0).split(3))
    theirs = [replace(x, path=f"layers.attn.{x.path}", layer=f"layers.attn.{x.layer}") for x in of_nnx(other)]
    found, arrays = checked(of_torch(model), theirs)
    weight = layers[1].in_proj_weight.detach().numpy()[6:12]
    np.testing.assert_array_equal(arrays["layers.attn.key.kernel"][1].reshape(6, 6), weight.T)
    assert not found.guessed


class Tied(torch.nn.Module):
    def __init__(self, is_tied: bool) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(7, 4)
        self.proj = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 7, bias=False)
        if is_tied:
            self.head.weight = self.embed.weight


@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("is_tied_in_jax", [False, True])
def test_tied(is_tied, is_tied_in_jax):
    tree = {"tok": {"embedding": np.zeros((7, 4))}, "proj": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)}}
    if not is_tied_in_jax:
        tree["head"] = {"kernel": np.zeros((4, 7))}
    theirs = of_tree(tree)
    if is_tied_in_jax:
        theirs[0] = replace(theirs[0], aliases=("head.embedding",))
    mine = of_torch(Tied(is_tied))
    found, arrays = checked(mine, theirs)
    assert len(found.links) == (3 if is_tied and is_tied_in_jax else 4)
    by_path = {str(link.jax): (str(link.torch[0]), link.pattern) for link in reversed(found.links)}
    assert by_path["tok.embedding"] == ("embed.weight", "")
    if not is_tied_in_jax:
        assert by_path["head.kernel"] == ("embed.weight" if is_tied else "head.weight", "o i -> i o")
    back = found.to_torch(arrays, arrays_of(mine))
    assert not is_tied or not np.any(back["embed.weight"] - arrays_of(mine)["embed.weight"])


def test_order_decides_where_names_say_nothing():
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4) for _ in range(12)])
    tree = {str(i): {"b": np.zeros(4), "w": np.zeros((4, 4))} for i in range(12)}
    for theirs in (of_tree(tree), of_tree(dict(sorted(tree.items())))):
        assert pairs_of(match(of_torch(model), theirs)) == [
            (f"{i}.{a}", f"{i}.{b}") for i in range(12) for a, b in (("weight", "w"), ("bias", "b"))
        ]
    letters = {"abcdefghijkl"[i]: {"b": np.zeros(4), "w": np.zeros((4, 4))} for i in range(12)}
    found = match(of_torch(model), of_tree(letters))
    assert [jax for _, jax in pairs_of(found)] == [f"{x}.{y}" for x in letters for y in ("w", "b")]
    assert {guess.of for guess in found.guessed} == {"partner", "layout"}
    flat = [np.zeros((4, 4)) if i % 2 == 0 else np.zeros(4) for i in range(24)]
    found = match(of_torch(model), [Parameter(str(i), "", "", array) for i, array in enumerate(flat)])
    assert [jax for _, jax in pairs_of(found)] == [str(i) for i in range(24)]


def test_numbers_that_count_otherwise():
    """A sequence of PyTorch counts what has no parameters; flax.linen counts each kind of layer by itself."""
    linear, activation = torch.nn.Linear, torch.nn.ReLU
    model = torch.nn.Sequential(
        linear(4, 4),
        torch.nn.LayerNorm(4),
        activation(),
        linear(4, 4),
        torch.nn.LayerNorm(4),
        activation(),
        linear(4, 4),
    )
    layers = {f"Dense_{i}": {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)} for i in range(3)}
    layers |= {f"LayerNorm_{i}": {"scale": np.zeros(4), "bias": np.zeros(4)} for i in range(2)}
    kinds = {name: f"linen.{name[:-2]}" for name in layers}
    rng = np.random.default_rng(0)
    for _ in range(3):
        theirs = of_tree(layers, kinds)
        found = match(of_torch(model), [theirs[i] for i in rng.permutation(len(theirs))])
        assert dict(pairs_of(found)) == {
            "0.weight": "Dense_0.kernel",
            "0.bias": "Dense_0.bias",
            "1.weight": "LayerNorm_0.scale",
            "1.bias": "LayerNorm_0.bias",
            "3.weight": "Dense_1.kernel",
            "3.bias": "Dense_1.bias",
            "4.weight": "LayerNorm_1.scale",
            "4.bias": "LayerNorm_1.bias",
            "6.weight": "Dense_2.kernel",
            "6.bias": "Dense_2.bias",
        }


def test_the_two_layers_of_an_mlp():
    model = torch.nn.ModuleDict({"fc1": torch.nn.Linear(4, 4), "fc2": torch.nn.Linear(4, 4)})
    for first, second in [("c_fc", "c_proj"), ("up_proj", "down_proj"), ("Dense_0", "Dense_1"), ("wi", "wo")]:
        tree = {name: {"kernel": np.zeros((4, 4)), "bias": np.zeros(4)} for name in (second, first)}
        found = match(of_torch(model), of_tree({"mlp": tree}))
        assert dict(pairs_of(found))["fc1.weight"] == f"mlp.{first}.kernel"
        assert dict(pairs_of(found))["fc2.bias"] == f"mlp.{second}.bias"
        assert {guess.of for guess in found.guessed} == {"layout"}


class Block(torch.nn.Module):
    """A layer of a user, with parameters of its own."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.cls_token = torch.nn.Parameter(torch.randn(1, 1, size))
        self.pos_embed = torch.nn.Parameter(torch.randn(1, size, size))
        self.gamma = torch.nn.Parameter(torch.randn(size))
        self.weight = torch.nn.Parameter(torch.randn(out, size))


def test_parameters_of_a_custom_layer():
    model = torch.nn.ModuleDict({"a": Block(4, 4), "b": Block(4, 5)})

    def tree(out: int) -> dict[str, np.ndarray]:
        return {
            "cls_token": np.zeros((1, 4)),
            "gamma": np.zeros((1, 1, 4)),
            "kernel": np.zeros((4, out)),
            "pos_embed": np.zeros((4, 4)),
        }

    found, _ = checked(of_torch(model), of_tree({"a": tree(4), "b": tree(5)}, {"a": "Block", "b": "Block"}))
    patterns = patterns_of(found)
    # What is not square tells what the square one is.
    assert patterns["a.weight"] == patterns["b.weight"] == "a b -> b a"
    assert {str(guess.link.torch[0]) for guess in found.guessed} == {"a.pos_embed", "b.pos_embed"}
    assert patterns["a.pos_embed"] == "1 b c -> b c"


def test_loaded_numbers_tell_the_layout_and_the_partner():
    model = torch.nn.Sequential(*[torch.nn.Linear(4, 4, bias=False) for _ in range(3)])
    weights = [x.weight.detach().numpy().astype(np.float32) for x in model]
    tree = {"a": {"w": weights[2]}, "b": {"w": weights[0]}, "c": {"w": weights[1]}}
    found = match(of_torch(model), of_tree(tree))
    assert found.is_loaded
    assert not found.guessed
    assert pairs_of(found) == [("0.weight", "b.w"), ("1.weight", "c.w"), ("2.weight", "a.w")]
    assert set(patterns_of(found).values()) == {""}


GIVEN = {
    "no such path": (
        {"0.wieght": "a.w"},
        r"'0.wieght', which the model in PyTorch does not have; the nearest is '0.weight'",
    ),
    "no such path in JAX": ({"0.weight": "a.v"}, r"'a.v', which the model in JAX does not have"),
    "another shape": ({"0.weight": "a.b"}, r"of shape \(4, 4\) and 'a.b' of shape \(4,\), no order of"),
    "no pattern": ({"0.weight": ("a.w", "o i -> i")}, "which einops does not take"),
    "another shape's pattern": ({"0.weight": ("a.w", "o i -> (o i)")}, r"which makes it of shape \(16,\)"),
}


def test_given():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 6))
    tree = {name: {"b": np.zeros(n), "w": np.zeros((4, n))} for name, n in (("a", 4), ("b", 6))}
    tree["c"] = {"w": np.zeros((2, 3, 4))}
    theirs = of_tree(tree)
    found = match(of_torch(model), theirs, {"0.weight": "a.w", "1.weight": ("c.w", "(h d) i -> h d i")})
    assert dict(pairs_of(found)) == {"0.weight": "a.w", "1.weight": "c.w", "0.bias": "a.b", "1.bias": "b.b"}
    assert found.jax_only == ("b.w",)
    found = match(of_torch(model), theirs, {"0.weight": ("a.w", "o i -> o i")})
    assert patterns_of(found)["0.weight"] == "o i -> o i"
    assert not [guess for guess in found.guessed if str(guess.link.torch[0]) == "0.weight"]


@pytest.mark.parametrize("name", GIVEN)
def test_given_wrong(name):
    given, message = GIVEN[name]
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    theirs = of_tree({"a": {"b": np.zeros(4), "w": np.zeros((4, 4))}})
    with pytest.raises(InputError, match=message) as raised:
        match(of_torch(model), theirs, given)
    assert "\n" not in str(raised.value)


def loaded(mine: Sequence[Parameter], theirs: Sequence[Parameter]) -> list[Parameter]:
    """The arrays of JAX with PyTorch's numbers, in their own dtypes."""
    arrays = match(mine, theirs).to_jax(arrays_of(mine), arrays_of(theirs))
    return [replace(x, array=arrays[x.path]) for x in theirs]


def faults(mine: Sequence[Parameter], theirs: Sequence[Parameter]) -> dict[str, Any]:
    return {str(x.link.jax): x for x in compared(match(mine, theirs), mine, theirs) if not x.is_equal}


@pytest.mark.slow
def test_what_is_wrong(transformers):
    mine, theirs = pair_of(transformers, "BertForMaskedLM")
    mine = [replace(x, array=x.array.astype(np.float64)) for x in mine]
    theirs = loaded(mine, theirs)
    assert theirs[0].array.dtype == np.float32
    assert match(mine, theirs).is_loaded
    assert not faults(mine, theirs)

    path = "bert.encoder.layer.{}.attention.self.{}.kernel".format
    arrays = arrays_of(theirs)
    changed = {
        path(0, "query"): arrays[path(0, "query")].T,
        path(1, "query"): arrays[path(2, "query")],
        path(2, "query"): arrays[path(1, "query")],
        path(0, "key"): arrays[path(0, "key")] + 1,
        path(1, "key"): arrays[path(1, "key")].reshape(8, 2, 4)[:, ::-1].reshape(8, 8),
        path(2, "key"): arrays[path(1, "value")].T,
        path(2, "value"): arrays[path(2, "value")].reshape(8, 4, 2).swapaxes(1, 2).reshape(8, 8),
    }
    found = faults(mine, [replace(x, array=changed.get(x.path, x.array)) for x in theirs])
    assert set(found) == set(changed)
    layout = found[path(0, "query")]
    assert (layout.fault, layout.link.pattern, layout.instead.pattern) == ("layout", "o i -> i o", "")
    assert layout.instead.torch == layout.link.torch
    other = found[path(1, "query")]
    assert (other.fault, other.instead.pattern) == ("parameter", "o i -> i o")
    assert str(other.instead.torch[0]) == "bert.encoder.layer.2.attention.self.query.weight"
    assert found[path(0, "key")].fault == "values"
    assert (found[path(1, "key")].fault, found[path(1, "key")].axis, found[path(1, "key")].order) == (
        "order",
        1,
        (1, 0),
    )
    other = found[path(2, "key")]
    assert (other.fault, other.instead.pattern) == ("parameter", "")
    assert str(other.instead.torch[0]) == "bert.encoder.layer.1.attention.self.value.weight"
    assert found[path(2, "value")].order == (0, 2, 4, 6, 1, 3, 5, 7)


def test_what_is_wrong_with_a_transposed_convolution_and_a_sum():
    layer = torch_conv(2, True)
    theirs = of_nnx(flax_transposed(nnx, 2, 2, 4, False))
    theirs = loaded(of_torch(layer), theirs)
    assert not faults(of_torch(layer), theirs)
    turned = [replace(x, array=x.array[::-1, ::-1] if x.array.ndim == 4 else x.array) for x in theirs]
    found = faults(of_torch(layer), turned)["kernel"]
    assert (found.fault, found.link.flipped, found.instead.flipped) == ("flip", ("x", "y"), ())

    layer = drawn(torch.nn.LSTM(4, 4))
    mine, theirs = of_torch(layer), of_nnx(nnx.OptimizedLSTMCell(4, 4, rngs=nnx.Rngs(0)))
    theirs = loaded(mine, theirs)
    assert not faults(mine, [replace(x, array=x.array.astype(np.float32)) for x in theirs])
    one = layer.bias_ih_l0.detach().numpy().astype(np.float32)
    order = [0, 1, 3, 2]
    wrong = [
        replace(x, array=one if x.path.endswith("bias") else x.array.reshape(4, 4, 4)[:, order].reshape(4, 16))
        for x in theirs
    ]
    found = faults(mine, wrong)
    assert found["dense_h.bias"].fault == "parameter"
    assert list(map(str, found["dense_h.bias"].instead.torch)) == ["bias_ih_l0"]
    assert (found["dense_i.kernel"].fault, found["dense_i.kernel"].order) == ("order", (0, 1, 3, 2))


def test_a_square_kernel_that_is_not_transposed_is_said_where_others_tell_the_layout():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 5))
    first, second = (x.weight.detach().numpy() for x in model)
    biases = [x.bias.detach().numpy() for x in model]
    theirs = of_tree({"0": {"w": first, "b": biases[0]}, "1": {"w": second.T, "b": biases[1]}})
    found = faults(of_torch(model), theirs)
    assert list(found) == ["0.w"]
    assert (found["0.w"].fault, found["0.w"].instead.pattern) == ("layout", "")


def flax_layer(attentions: Sequence[str], norms: int) -> dict[str, Any]:
    """The parameters of a layer of a transformer with two heads; all its shapes are square."""
    heads = {name: {"kernel": np.zeros((8, 2, 4)), "bias": np.zeros((2, 4))} for name in ("query", "key", "value")}
    attention = heads | {"out": {"kernel": np.zeros((2, 4, 8)), "bias": np.zeros(8)}}
    layer = {name: dict(attention) for name in attentions}
    layer |= {f"norm{i + 1}": {"scale": np.zeros(8), "bias": np.zeros(8)} for i in range(norms)}
    return layer | {"mlp": {name: {"kernel": np.zeros((8, 8)), "bias": np.zeros(8)} for name in ("fc1", "fc2")}}


def test_transformer_of_torch():
    """As many layers as heads, so that shapes do not tell a bias with heads from one of all layers."""
    layer = torch.nn.TransformerEncoderLayer(8, 2, 8)
    model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    found, _ = checked(of_torch(model), of_tree({"layers": {str(i): flax_layer(["attn"], 2) for i in range(2)}}))
    pairs = dict(pairs_of(found))
    assert pairs["layers.1.self_attn.in_proj_bias[8:16]"] == "layers.1.attn.key.bias"
    assert pairs["layers.0.linear2.weight"] == "layers.0.mlp.fc2.kernel"

    model = torch.nn.TransformerDecoder(torch.nn.TransformerDecoderLayer(8, 2, 8), 2)
    tree = {f"layers_{i}": flax_layer(["cross_attn", "self_attn"], 3) for i in range(2)}
    found, _ = checked(of_torch(model), of_tree(tree))
    pairs = dict(pairs_of(found))
    assert pairs["layers.1.self_attn.out_proj.weight"] == "layers_1.self_attn.out.kernel"
    assert pairs["layers.0.multihead_attn.in_proj_weight[16:24]"] == "layers_0.cross_attn.value.kernel"
    assert pairs["layers.0.norm3.bias"] == "layers_0.norm3.bias"


class Residual(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4)
        self.conv2, self.bn2 = torch.nn.Conv2d(4, 4, 3), torch.nn.BatchNorm2d(4)
        self.downsample = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), torch.nn.BatchNorm2d(4))


def test_blocks_that_are_counted_through():
    """ResNet as torchvision writes it, against that of flax's examples."""
    model = torch.nn.ModuleDict(
        {
            "conv1": torch.nn.Conv2d(3, 4, 7),
            "bn1": torch.nn.BatchNorm2d(4),
            "layer1": torch.nn.Sequential(Residual(), Residual()),
            "layer2": torch.nn.Sequential(Residual(), Residual()),
            "fc": torch.nn.Linear(4, 5),
        }
    )

    def conv(size: int, i: int = 4) -> dict[str, np.ndarray]:
        return {"kernel": np.zeros((size, size, i, 4)), "bias": np.zeros(4)}

    def norms(names: Sequence[str], *leaves: str) -> dict[str, Any]:
        return {name: {leaf: np.zeros(4) for leaf in leaves} for name in names}

    inner = ("BatchNorm_0", "BatchNorm_1", "norm_proj")
    block = {"Conv_0": conv(3), "Conv_1": conv(3), "conv_proj": conv(1)} | norms(inner, "scale", "bias")
    params = {"conv_init": conv(7, 3)} | norms(["bn_init"], "scale", "bias")
    params |= {f"ResNetBlock_{i}": block for i in range(4)}
    params["Dense_0"] = {"kernel": np.zeros((4, 5)), "bias": np.zeros(5)}
    stats = norms(["bn_init"], "mean", "var") | {f"ResNetBlock_{i}": norms(inner, "mean", "var") for i in range(4)}
    theirs = of_linen({"params": params, "batch_stats": stats}, {})
    rng = np.random.default_rng(0)
    found = match(of_torch(model), [theirs[i] for i in rng.permutation(len(theirs))])
    assert (found.torch_only, found.jax_only) == ((), ())
    words = {"conv1": "Conv_0", "conv2": "Conv_1", "downsample.0": "conv_proj"}
    words |= {"bn1": "BatchNorm_0", "bn2": "BatchNorm_1", "downsample.1": "norm_proj"}
    for mine, other in pairs_of(found):
        if inside := re.fullmatch(r"layer(\d)\.(\d)\.(.*)\.\w+", mine):
            assert other.startswith(f"ResNetBlock_{2 * int(inside[1]) - 2 + int(inside[2])}.{words[inside[3]]}.")


def test_patches_as_a_dense_layer():
    model = torch.nn.ModuleDict({"patch": torch.nn.Conv2d(3, 8, 2, 2)})
    theirs = of_tree({"patch": {"kernel": np.zeros((12, 8)), "bias": np.zeros(8)}}, {"patch": "linen.Dense"})
    found, _ = checked(of_torch(model), theirs)
    assert patterns_of(found)["patch.weight"] == "o i x y -> (x y i) o"
    assert [(str(guess.link.jax), guess.of) for guess in found.guessed] == [("patch.kernel", "layout")]


def test_gradients_of_a_tied_array_are_added_up():
    mine = of_torch(Tied(True))
    tree = {"tok": {"embedding": np.ones((7, 4))}, "head": {"kernel": np.ones((4, 7))}}
    tree["proj"] = {"kernel": np.ones((4, 4)), "bias": np.ones(4)}
    theirs = of_tree(tree)
    gradients = match(mine, theirs).gradient_to_torch(arrays_of(theirs), arrays_of(mine))
    np.testing.assert_array_equal(gradients["embed.weight"], 2)
    np.testing.assert_array_equal(gradients["proj.weight"], 1)


def test_half_precision_is_compared_in_its_own():
    model = torch.nn.Linear(4, 5)
    theirs = of_tree({"kernel": np.zeros((4, 5), jnp.bfloat16), "bias": np.zeros(5, np.float16)})
    mine = of_torch(model)
    arrays = match(mine, theirs).to_jax(arrays_of(mine), arrays_of(theirs))
    theirs = [replace(x, array=arrays[x.path]) for x in theirs]
    assert theirs[0].array.dtype == jnp.bfloat16
    found = match(mine, theirs)
    assert found.is_loaded
    assert all(x.is_equal for x in compared(found, mine, theirs))
