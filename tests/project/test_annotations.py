"""The shapes and types in the signatures are true of what passes through, in everything but PyTorch's compiled loop."""

import subprocess
import sys

import pytest

# In a process of its own, since the check is put in while a package is imported. torch.compile cannot trace it.
PROGRAM = """
from jaxtyping import TypeCheckError, install_import_hook

with install_import_hook(["torchp3", "jaxp3"], "beartype.beartype"):
    import jaxp3.fitting.train, torchp3.fitting.train

import p3, torch

for dtype in ("float32", "float64"):
    spec = p3.TrainingSpec(steps=5, log_every=2, dtype=dtype)
    torchp3.fit(spec.replace({"jit": False}))
    jaxp3.fit(spec.replace({"jit": False}))
    jaxp3.fit(spec)

for wrong in ("1", torch.zeros(2, dtype=torch.int64)):
    try:
        torchp3.legendre_p3(wrong)
    except TypeCheckError:
        print("refused")
"""


@pytest.mark.slow
def test_what_passes_through_is_what_the_signatures_say():
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert finished.stdout == "refused\nrefused\n"  # so the check was in
