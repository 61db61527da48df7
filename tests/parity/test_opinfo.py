"""Functions that both frameworks ship, at the inputs of PyTorch's own tests: no alarm but what the atlas lists."""

import pickle
import subprocess
import sys

import jax
import optax
import pytest
import torch

import jaxp3
import torchp3
from comparisons.atlas.differences import Atlas
from comparisons.atlas.pairs import load_pairs
from p3 import InputError, parity
from tests.support.problems import COMPARISONS

CHECKS = ("value", "vjp", "jvp", "vjp of vjp", "jvp of vjp", "batched", "shapes", "special values")
FIRST = {"value", "vjp", "jvp"}  # where one of these differs, what follows from it may as well
PARTS = 6


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    pytest.importorskip("expecttest", reason="PyTorch's OpInfo needs expecttest")
    path = tmp_path_factory.mktemp("opinfo") / "samples"
    made = subprocess.run([sys.executable, "-m", "tests.support.opinfo", path], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    found = pickle.loads(path.read_bytes())
    assert len(found) >= 60
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", range(PARTS))
def test_no_alarm_but_what_the_atlas_lists(part, samples):
    atlas, pairs = Atlas.model_validate_json((COMPARISONS / "atlas" / "atlas.json").read_bytes()), load_pairs()
    checked = 0
    for name in list(samples)[part::PARTS]:
        pair = pairs[name]
        sides = (
            torchp3.as_operator(pair.function(pair.torch, torch=torch)),
            jaxp3.as_operator(pair.function(pair.jax, jax=jax, optax=optax)),
        )
        try:
            report = parity.check(*sides, samples[name], compiled=False, only=CHECKS)
        except InputError:  # a sample for which one of both is not defined
            continue
        listed = {place.check for difference in atlas.entries[name].differences for place in difference.places}
        if not listed & FIRST:
            assert {result.name for result in report.failed} <= listed, f"{name}: {report}"
        checked += 1
    assert checked >= 60 / PARTS
