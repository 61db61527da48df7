"""Checks of ordinary layers take no more memory than such a layer's training would."""

import json
import subprocess
import sys

import pytest

from p3 import parity
from tests.support.problems import ROOT

# By 10⁹ bytes. A process that has imported both frameworks and done nothing holds 0.5.
MOST = {"RMSNorm": 1.5, "linear": 2.0, "causal attention": 2.0, "convolution": 2.0}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the most memory that a process has held is Linux's figure")
@pytest.mark.parametrize("name", MOST)
def test_a_layer_is_checked_within_its_memory(name):
    finished = subprocess.run(
        [sys.executable, "-m", "tests.support.layers", name], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = json.loads(finished.stdout)
    assert set(found["verdicts"]) == set(parity.CHECKS) - {"compiled"}
    assert "failed" not in found["verdicts"].values()
    assert found["bytes"] <= MOST[name] * 1e9
