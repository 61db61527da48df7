"""Places are data: words are made of them, and nothing is read out of words."""

import jax.numpy as jnp
import pytest
import torch

import jaxp3
import torchp3
from p3 import parity
from p3.parity import checks, result
from p3.parity.place import Place
from tests.support.faulty_ports import FAULTY
from tests.support.right_pairs import LINE


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (Place("port", "value"), "the port, value"),
        (Place("port", "vjp", 'inputs["w"]'), 'the port, vjp, inputs["w"]'),
        (
            Place("reference", "vjp of jvp", "inputs[0]", "tangent"),
            "the reference, vjp of jvp, the tangent of inputs[0]",
        ),
        (Place("port", "vjp", "inputs", mode="torch.func"), "the port, torch.func, vjp, inputs"),
        (Place("port", "value", "output", precision="float16"), "the port, float16, value, output"),
        (Place("port", "jvp", "output", number=-0.0, of="inputs[1]"), "the port, at -0 of inputs[1], jvp, output"),
        (Place("port", "vjp", "inputs", number=1e-45), "the port, at 1e-45, vjp, inputs"),
        (Place("port", "value", special="times 1000", of="inputs[0]"), "the port, inputs[0] times 1000, value"),
        (Place("port", "vjp", "inputs", special="ties"), "the port, ties, vjp, inputs"),
        (Place("inputs", "vjp"), "the inputs, vjp"),
    ],
)
def test_words(place, words):
    assert str(place) == words


def test_a_derivative_by_the_cotangent_has_a_place_of_its_own():
    faulty = FAULTY["detached cotangent"]
    report = parity.check(faulty.reference, faulty.port, faulty.inputs, only=["vjp of vjp"])
    places = {finding.place for finding in report["vjp of vjp"].findings}
    assert {(place.path, place.by) for place in places} == {("output", "cotangent")}


def test_a_function_that_gives_other_arrays_later_fails_in_a_line():
    calls = []

    def fickle(x):
        calls.append(1)
        return (torch.sin(x), x) if len(calls) > 20 and len(calls) % 3 == 0 else torch.sin(x)

    report = parity.check(jaxp3.as_operator(jnp.sin), torchp3.as_operator(fickle), LINE, compiled=False)
    assert not report.ok
    assert "a function does not return the same number of arrays" in str(report)


CHECKED = {
    "a faulty rule": (FAULTY["not summed over a broadcast axis"], None),
    "a port that raises": (FAULTY["in PyTorch: raises for NaN"], None),
    "two subgradients": (FAULTY["another subgradient of abs"], ["vjp", "special values", "power"]),
    "half precision": (FAULTY["wrong in half precision alone"], ["value", "low precision", "dtypes"]),
}


def outcome(report):
    """All that a report says, but for its words."""
    return [
        (
            check.name,
            check.verdict,
            [(repr(finding.place), finding.mismatch, finding.fault) for finding in check.findings],
            [repr(refusal.place) for refusal in check.refusals],
        )
        for check in report.checks
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CHECKED)
def test_no_words_are_read(name, monkeypatch):
    faulty, only = CHECKED[name]

    def run():
        options = {**faulty.options, "compiled": False}
        return outcome(parity.check(faulty.reference, faulty.port, faulty.inputs, only=only, **options))

    before = run()
    for made_of in (Place, result.Finding, result.Refusal):
        monkeypatch.setattr(made_of, "__str__", lambda self: "some words")
    for words in ("at", "circumstances", "array"):
        monkeypatch.setattr(Place, words, "other words")
    for module in (checks.derivatives, checks.modes, checks.domain):
        monkeypatch.setattr(module, "explain", lambda *args: "more words")
    monkeypatch.setattr(result, "describe_ladder", lambda mismatch: "a ladder")
    assert run() == before
