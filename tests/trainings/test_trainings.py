"""Right trainings have no difference, and each planted fault is found at its step, as its quantity, with its cause."""

import pytest

import p3
from tests.support.trainings import FAULTS, RIGHT, STEPS

FEW = 12  # steps at which a planted fault shows
QUICK = ("adam and a cosine",)  # of the right ones; the others take minutes together
LONG = ("layer norm epsilon", "label smoothing", "batch norm epsilon", "batch norm momentum")  # compile larger models


def marked(names, are_slow):
    """The names, with those that are slow marked so."""
    return [pytest.param(name, marks=pytest.mark.slow) if are_slow(name) else name for name in names]


@pytest.mark.parametrize("name", marked(RIGHT, lambda name: name not in QUICK))
def test_right_trainings_have_no_difference(name):
    make, batches = RIGHT[name]
    torch, jax = make()
    report = p3.check_training(torch=torch, jax=jax, batches=batches(STEPS), steps=STEPS)
    assert report.ok, str(report)
    assert "Rounding does not explain" not in report.free, report.free


@pytest.mark.parametrize("name", marked(FAULTS, lambda name: name in LONG))
def test_faults_are_found_with_their_cause(name):
    fault = FAULTS[name]
    torch, jax = fault.make()
    report = p3.check_training(torch=torch, jax=jax, batches=fault.batches(FEW), steps=FEW)
    assert report.first is not None, str(report)
    assert (report.first.step, report.first.quantity, report.first.path) == fault[2:5], str(report)
    assert [finding.kind for finding in report.findings].count("semantic") == 1, str(report)
    finding = report.findings[0]
    assert fault.rule == finding.rule or fault.rule in finding.explanation, str(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["epsilon", "l2 for decoupled", "no clipping", "halved gradient"])
def test_faults_are_found_where_jax_is_the_reference(name):
    fault = FAULTS[name]
    torch, jax = fault.make()
    report = p3.check_training(jax=jax, torch=torch, batches=fault.batches(FEW), steps=FEW)
    assert report.first is not None, str(report)
    assert (report.first.step, report.first.quantity) == fault[2:4], str(report)
    assert [finding.kind for finding in report.findings].count("semantic") == 1, str(report)
