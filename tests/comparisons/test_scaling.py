"""What a second process gains: docs/devices.md has what was measured, and the model of the cost is not far off."""

import json
import subprocess
import sys

import pytest

from comparisons.pages import ROOT
from comparisons.scaling import scaling


def numbered(fields):
    """JSON's keys are words, and these are numbers of points."""
    return {int(key) if key.isdecimal() else key: value for key, value in fields.items()}


MADE = json.loads((ROOT / "comparisons" / "scaling" / "scaling.json").read_text(), object_hook=numbered)


def test_the_docs_part_is_what_was_measured():
    page = ROOT / "docs" / "devices.md"
    assert scaling.page_part(MADE) in page.read_text()


@pytest.mark.parametrize("backend", MADE["measured"])
def test_the_model_is_within_a_quarter_of_what_was_measured(backend):
    measured = MADE["measured"][backend]
    for name, predicted in scaling.predictions(measured).items():
        for points, seconds in predicted.items():
            assert seconds == pytest.approx(measured["steps"][name][points], rel=0.25), (name, points)


def test_the_model_of_a_machine_that_is_known():
    # A microsecond to begin, 1 ns a cached point, 2 or 3 ns one from memory, 1 ms to meet, and nothing a byte.
    def step(points, on_the_bus):
        return 1e-6 + points * (1e-9 if points <= scaling.CACHED else {1: 2e-9, 2: 3e-9}[on_the_bus])

    sizes = scaling.SIZES
    measured = {
        "steps": {
            "alone": {n: step(n, 1) for n in sizes},
            "half alone": {n: step(n // 2, 1) for n in sizes},
            "halves side by side": {n: step(n // 2, 2) for n in sizes},
            "shared": {n: 1e-3 + step(n // 2, 2) for n in sizes},
        },
        "collective": {5: 1e-3, 10**6: 1e-3},
    }
    cost = scaling.cost_of(measured)
    assert cost.begin == pytest.approx(1e-6, rel=0.01)
    assert cost.cached == pytest.approx(1e-9, rel=0.01)
    assert cost.streamed == pytest.approx({1: 2e-9, 2: 3e-9}, rel=0.01)
    assert cost.communicate(1) == 0
    assert cost.communicate(2) == pytest.approx(1e-3, rel=0.01)
    assert cost.communicate(8) == pytest.approx(3e-3, rel=0.01)
    assert cost.communicate(8, is_tree=False) == pytest.approx(7e-3, rel=0.01)
    assert scaling.enough(cost, 2, True) == pytest.approx(9e-3 / 2e-9, rel=0.01)


@pytest.mark.slow
def test_a_small_measurement(tmp_path):
    command = [sys.executable, "-m", "comparisons.scaling", "--small", "--turns", "1"]
    files = ["--output", tmp_path / "scaling.json", "--plot", tmp_path / "scaling.png"]
    finished = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert "| PyTorch | 10⁴ |" in finished.stdout
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def weak_scaling(steps):
    """What two processes reach of two fits side by side, of 5·10^7 points each; the memory bus is one for both."""
    return steps["halves side by side"][10**8] / steps["shared"][10**8]


@pytest.mark.parametrize("backend", MADE["measured"])
def test_two_processes_reached_most_of_what_two_fits_side_by_side_did(backend):
    assert weak_scaling(MADE["measured"][backend]["steps"]) >= 0.85


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("backend", MADE["measured"])
def test_two_processes_reach_most_of_what_two_fits_side_by_side_do(backend):
    # By hand, as `pytest -m alone -n 0`: each step waits for the slower of the two, whom another program may hold up.
    reached = weak_scaling(scaling.in_two_processes(backend, [10**8], 5)["steps"])
    print(f"{backend}: {reached:.0%}")
    assert reached >= 0.85
