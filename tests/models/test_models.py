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
    """The first difference is at the right layer, and no other cause is reported."""
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
    causes = [finding for finding in report.findings if finding.kind == "semantic"]
    if (pair.name, name) in SEVERAL:
        assert len(causes) > 1
    else:
        assert len(causes) <= 1, str(report)
