"""Forward and backward take no more memory than the tutorial's operator does, and steps no more than their record."""

import subprocess
import sys

import pytest

from tests.support.problems import COMPARISONS

# The most that the process ever held, less what it held before, in bytes. In a process of its own, since that never
# falls.
PROGRAM = """
import sys
import numpy as np

POINTS = 10**7

def peak():
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

def measure(run, x):
    run(x[:1000])  # what is loaded on first use is not counted
    before = peak()
    run(x)
    return peak() - before

def tutorial():
    from tutorial import LegendrePolynomial3  # of comparisons, where this runs
    return with_torch(LegendrePolynomial3.apply)

def with_torch(f):
    import torch

    def run(x):
        x = x.detach().requires_grad_()
        f(x).backward(torch.ones(len(x)))

    return measure(run, torch.ones(POINTS))

def with_jax(f):
    import jax, jax.numpy as jnp

    def run(x):
        y, vjp = jax.vjp(f, x)
        jax.block_until_ready(vjp(jnp.ones(len(x))))

    return measure(run, jnp.ones(POINTS))

def ours(name):
    if name == "torch":
        import torchp3
        return with_torch(torchp3.legendre_p3)
    import jaxp3
    return with_jax(getattr(jaxp3, name))

print(tutorial() if sys.argv[1] == "tutorial" else ours(sys.argv[1]))
"""


def peak(name: str) -> int:
    command = [sys.executable, "-c", PROGRAM, name]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, cwd=COMPARISONS).stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "legendre_p3", "legendre_p3_custom_jvp"])
def test_the_peak_is_at_most_the_tutorials(name):
    ours, tutorials = peak(name), peak("tutorial")
    print(f"{name}: {ours / 4e7:.2f} arrays of x's size, the tutorial's {tutorials / 4e7:.2f}")
    assert ours <= tutorials


STEPS = """
import sys
from p3 import TrainingSpec
from p3.backends import load

backend, trace = sys.argv[1], sys.argv[2] == "True"
spec = TrainingSpec(log_every=1000, trace=trace).replace({"data": {"points": 100}})

def peak(steps):
    load(backend).fit(spec.replace({"steps": steps}))
    return 1024 * int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])

few = peak(100_000)
print((peak(1_000_000) - few) / 900_000)
"""


@pytest.mark.slow
@pytest.mark.parametrize("trace", [False, True])
def test_a_step_takes_no_more_memory_than_its_record(backend, trace):
    # In float64 a loss, and with traces a learning rate and three times four numbers; the schedule has a rate besides.
    recorded = 8 * (2 + (13 if trace else 0))
    finished = subprocess.run(
        [sys.executable, "-c", STEPS, backend, str(trace)], capture_output=True, text=True, check=True
    )
    # The result validates arrays of its own, which is twice as much for a moment.
    assert float(finished.stdout) < 3 * recorded
