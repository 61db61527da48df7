"""The points: made in float64, and rounded once."""

import mpmath
import numpy as np
import pytest
from conftest import PROBLEMS

from p3 import TrainingSpec
from p3.data import make_points


def test_lower_precision_is_the_float64_points_rounded_once(problem):
    single = make_points(problem.replace({"dtype": "float32"}))
    double = make_points(problem.replace({"dtype": "float64"}))
    assert single.x.dtype == single.y.dtype == np.float32
    assert double.x.dtype == double.y.dtype == np.float64
    np.testing.assert_array_equal(single.x, double.x.astype(np.float32))
    np.testing.assert_array_equal(single.y, double.y.astype(np.float32))
    # Which is not what the target of the rounded x is: the test above can fail.
    assert (single.y != getattr(np, problem.data.target)(single.x)).any()


@pytest.mark.parametrize("target", ["sin", "cos", "exp", "tanh", "arctan", "cbrt"])
def test_each_target_is_the_function_of_its_name(target):
    points = make_points(TrainingSpec(dtype="float64").replace({"data": {"target": target, "points": 41, "low": -2.0}}))
    true = {"arctan": mpmath.atan, "cbrt": lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x))}.get(target)
    true = true or getattr(mpmath, target)
    np.testing.assert_allclose(points.y, [float(true(mpmath.mpf(float(x)))) for x in points.x], rtol=4e-16, atol=1e-16)


def test_the_ends_are_low_and_high():
    x = make_points(PROBLEMS["asymmetric"].replace({"dtype": "float64"})).x
    assert (x[0], x[-1], len(x)) == (-2.0, 1.0, 1500)
    np.testing.assert_allclose(np.diff(x), 3 / 1499, rtol=1e-12)
