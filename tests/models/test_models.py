"""Models and their ports: right ones pass, and of a faulty one the first difference names the layer, and its cause."""

import re

import pytest

import p3
from tests.support.models import Fault, Pair, pairs

# What every run of the tests checks; the rest is slow.
QUICK = ("mlp-nnx", "mlp-function", "unet-linen", "dropout-linen")
PAIRS = pairs()
# Faults that are found elsewhere than where a perfect tool would point, with what is named instead and the reason.
NO_LAYERS = "the port is a function that names no layers, so that only the outputs and gradients can be compared"
ELSEWHERE = {
    **{
        ("transformer-scanned", name): ("output", NO_LAYERS)
        for name in ("reversed_blocks", "no_scale", "heads_last", "bfloat16")
    },
    ("transformer-scanned", "detached_residual"): ("blocks.0.attention.k.weight", NO_LAYERS),
    ("heads-function", "embedding_scaled"): ("output.latent", NO_LAYERS),
    ("gpt2-linen", "layer_missing"): (
        "transformer.h.0.ln_2.weight",
        "the port's one ln_2 is matched with that of the second block, so that the first block's seems to be missing",
    ),
}
# Faults that no comparison of values can show, with the reason.
UNSEEN = {
    ("dropout-equinox", "one_key"): "the reference's masks are put in, so that it is not seen that two are equal",
}
# Faults of which only the place is named, by port: the first difference is told, and not what it comes of.
UNNAMED = {
    "attention-nnx": "mask_of_queries",
    "bert": "token_types",
    "bert-linen": "heads",
    "convnext-equinox": "no_layer_scale transposed_image",
    "convnext-nnx": "norm_before_pool no_layer_scale",
    "gpt2": "heads position_offset exact mask_ignored",
    "gpt2-linen": "relu",
    "gru-equinox": "reversed gates",
    "gru-linen": "reversed",
    "gru-nnx": "reset_before reversed",
    "heads-equinox": "mask_ignored mean_of_all",
    "heads-function": "embedding_scaled mask_inverted",
    "heads-linen": "mask_inverted max_pool",
    "heads-nnx": "mask_ignored embedding_scaled",
    "llama": "mask_ignored positions_doubled",
    "llama-equinox": "rope_base kv_tiled position_offset",
    "llama-nnx": "epsilon_outside kv_tiled",
    "lstm-equinox": "carry_swapped gates",
    "lstm-linen": "reversed carry_swapped",
    "lstm-nnx": "carry_swapped reversed",
    "mixer-equinox": "reversed_blocks not_transposed last_block_skipped",
    "mixer-nnx": "reversed_blocks not_transposed",
    "mlp-function": "epsilon_outside",
    "resnet-equinox": "relu_before_sum",
    "resnet-nnx": "residual_twice",
    "resnet-nnx-training": "relu_before_sum",
    "transformer-equinox": "residual_twice qk_swapped",
    "transformer-linen": "heads_last embedding_scaled width_scale",
    "transformer-scanned": "reversed_blocks heads_last detached_residual",
    "unet-equinox": "parts_swapped",
    "unet-linen": "parts_swapped",
    "unet-nnx": "other_padding detached_skip",
}
# More than one cause is reported of these, with the reason.
REVERSED = "each layer has the parameters of another block, and layers of different kinds are told apart"
SEVERAL = {("mixer-nnx", "reversed_blocks"): REVERSED, ("mixer-equinox", "reversed_blocks"): REVERSED}

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]


def marked(pair: Pair, *rest):
    marks = () if pair.name in QUICK else pytest.mark.slow
    return pytest.param(pair, *rest, marks=marks, id="-".join((pair.name, *rest[:1])))


def check(pair: Pair, **faults) -> p3.ModelReport:
    return p3.check_model(torch=pair.torch(), jax=pair.jax(**faults), inputs=pair.inputs())


@pytest.mark.parametrize("pair", [marked(pair) for pair in PAIRS])
def test_right_port(pair):
    """Nothing is left over, and no layer, gradient or state differs."""
    report = check(pair)
    assert report.ok, str(report)
    assert (report.match.torch_only, report.match.jax_only) == ((), ())
    assert report.layers or pair.library == "function"


@pytest.mark.parametrize(
    ("pair", "name", "fault"), [marked(pair, name, fault) for pair in PAIRS for name, fault in pair.faults.items()]
)
def test_faulty_port(pair: Pair, name: str, fault: Fault):
    """The first difference is at the right layer, its cause is named, and no other is reported."""
    report = check(pair, **fault.keywords)
    if (pair.name, name) in UNSEEN:
        assert report.ok
        return
    assert report.first is not None, str(report)
    expected = (fault.path,) if isinstance(fault.path, str) else fault.path
    first = report.findings[0]
    named = {first.path, first.path.rpartition(".")[0], *re.findall(r"[\w.]+", first.title)}
    if (pair.name, name) in ELSEWHERE:
        assert first.path == ELSEWHERE[pair.name, name][0], str(report)
    else:
        assert named & set(expected), str(report)
    if name not in UNNAMED.get(pair.name, "").split():
        assert re.search(fault.cause, first.explanation), str(report)
    causes = [finding for finding in report.findings if finding.kind == "semantic"]
    if (pair.name, name) in SEVERAL:
        assert len(causes) > 1
    else:
        assert len(causes) <= 1, str(report)


def test_most_causes_are_named():
    """Of at least 100 of the faults, the test above asks for the cause and not only for the place."""
    faults = [(pair.name, name) for pair in PAIRS for name in pair.faults]
    unnamed = [(pair, name) for pair, names in UNNAMED.items() for name in names.split()]
    assert set(unnamed) <= set(faults)
    assert len(faults) - len(unnamed) - len(UNSEEN) >= 100
