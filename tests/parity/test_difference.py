"""A difference as a sentence, and the edge cases of the error scale that decides whether there is one."""

import numpy as np
import pytest

from p3 import Difference
from p3.parity.mismatch import Pair, climb
from p3.tolerance import HALF_PARITY, PARITY, STEP_DATA, UPDATE

ONES = np.ones(3)


def difference(**changes):
    fields = {
        "side": "JAX",
        "check": "training",
        "mode": "compiled",
        "quantity": "gradient",
        "path": "a",
        "kind": "semantic",
        "got": 1.5,
        "expected": 1.0,
        "epsilons": 2.0**51,
        "explanation": "it is 1.5 times what it should be",
        "against": "the chain rule by hand",
        "tolerance": 4.0,
        "step": 7,
    }
    return Difference(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "semantic: at step 7 JAX's gradient of a is 1.5, and by the chain rule by hand 1: "),
        ({"quantity": "loss", "path": ""}, "semantic: at step 7 JAX's loss is 1.5, and by"),
        ({"quantity": "prediction", "path": "prediction[3]"}, "semantic: at step 7 JAX's prediction[3] is 1.5"),
        (
            {"side": "port", "step": None, "path": 'inputs["w"]', "mode": "at 0"},
            'semantic: the port\'s gradient of inputs["w"] (at 0) is 1.5',
        ),
        (
            {"side": "port", "step": None, "quantity": "vjp of jvp", "by": "tangent", "mode": "eager"},
            "semantic: the port's vjp of jvp of a by its tangent is 1.5",
        ),
        (
            {"side": "port", "step": None, "got": None, "expected": None, "epsilons": None, "tolerance": None},
            "semantic: the port's gradient of a (compiled): it is 1.5 times what it should be",
        ),
    ],
)
def test_a_difference_is_a_sentence(changes, says):
    assert str(difference(**changes)).startswith(says)


def test_the_sentence_ends_with_the_figures():
    assert str(difference()).endswith(": 2.25e+15 epsilons apart, where rounding explains 4")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_in_both_is_no_difference_and_in_one_is_infinite(bad):
    given = np.array([1.0, bad, 1.0])
    assert climb({"float64": Pair(given, given.copy(), ONES)}) is None
    for pair in (Pair(given, ONES, ONES), Pair(ONES, given, ONES)):
        found = climb({"float64": pair})
        assert (found.element, found.epsilons, found.kind) == ((1,), np.inf, "semantic")


@pytest.mark.parametrize("size", [0.0, np.inf, np.nan])
def test_a_size_that_is_not_finite_excuses_nothing(size):
    assert Pair(ONES, ONES + 1e-15, np.full(3, size)).beyond("float64").all()
    assert not Pair(ONES, ONES, np.full(3, size)).beyond("float64").any()


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_a_tolerance_of_0_is_equality(precision):
    given = np.array([1.0, -3e20, 0.0, 1e-40], precision)
    for towards in (-np.inf, np.inf):
        other = np.nextafter(given, np.array(towards, precision))
        assert Pair(given, other, np.abs(given), tolerance=STEP_DATA).beyond(precision).all()
    assert not Pair(given, given.copy(), np.abs(given), tolerance=STEP_DATA).beyond(precision).any()


@pytest.mark.parametrize(("epsilons", "is_beyond"), [(4, False), (5, True)])
def test_the_tolerance_is_that_of_the_pair(epsilons, is_beyond):
    other = ONES + epsilons * np.finfo("float64").eps
    found = climb({"float64": Pair(other, ONES, ONES, tolerance=UPDATE._replace(epsilons=4))})
    assert (found is not None) == is_beyond
    assert found is None or found.tolerance == 4


def test_in_half_precision_parity_is_that_of_half_precision():
    limits = {precision: Pair(ONES, ONES, ONES).limit(precision) for precision in ("bfloat16", "float16", "float32")}
    assert limits == {"bfloat16": HALF_PARITY.epsilons, "float16": HALF_PARITY.epsilons, "float32": PARITY.epsilons}
    assert Pair(ONES, ONES, ONES, tolerance=UPDATE).limit("bfloat16") == UPDATE.epsilons
