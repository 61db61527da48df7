"""The closed forms themselves."""

import mpmath
import numpy as np
import pytest

from p3.fitting.data import Points, make_points
from p3.fitting.exact import P3, best_fit
from tests.support.problems import PROBLEMS


def test_p3_is_the_legendre_polynomial():
    for x in np.linspace(-3, 3, 61):
        assert P3(x) == pytest.approx(float(mpmath.legendre(3, mpmath.mpf(float(x)))), rel=1e-14, abs=1e-15)
    assert list(P3.coef) == [0, -1.5, 0, 2.5]


def test_the_best_fit_of_the_tutorial():
    best = best_fit(make_points(PROBLEMS["tutorial"].replace({"dtype": "float64"})))
    # Least squares on x and x³, solved for b and d: apart from this code, with the frameworks' measured figures.
    assert best.loss == pytest.approx(8.81716541, rel=1e-9)
    assert best.coefficients == pytest.approx(
        {"a": 0, "b": -2.234064896896141, "c": 0, "d": 0.255659789848863}, rel=1e-13, abs=1e-14
    )


@pytest.mark.parametrize("coefficients", [(0.3, -1.2, 0.25, 0.4), (-2.0, 0.7, -0.5, 1.1), (0.0, 1.0, 0.0, 1.0)])
def test_the_best_fit_finds_the_model_that_made_the_points(coefficients):
    a, b, c, d = coefficients
    x = np.linspace(-2, 3, 500)
    best = best_fit(Points(x, a + b * P3(c + d * x)))
    assert best.loss < 1e-20
    assert list(best.coefficients.values()) == pytest.approx(coefficients, rel=1e-9, abs=1e-11)


def test_no_neighbour_is_better():
    points = make_points(PROBLEMS["tutorial"].replace({"dtype": "float64", "data": {"low": -1.0}}))
    best = best_fit(points)

    def loss(a, b, c, d):
        return np.sum((a + b * P3(c + d * points.x) - points.y) ** 2)

    assert loss(**best.coefficients) == pytest.approx(best.loss, rel=1e-12)
    for name, value in best.coefficients.items():
        for step in (-1e-3, 1e-3):
            assert loss(**(best.coefficients | {name: value + step})) > best.loss


def test_a_cubic_without_turning_points_is_approached_and_not_reached():
    points = make_points(PROBLEMS["asymmetric"].replace({"dtype": "float64"}))
    best = best_fit(points)
    assert best.coefficients is None
    assert best.loss == pytest.approx(0.17951642269533896, rel=1e-9)


@pytest.mark.parametrize("points", [2, 3])
def test_fewer_points_than_coefficients(points):
    x = np.arange(points, dtype=np.float64)
    assert best_fit(Points(x, np.sin(x))).loss == pytest.approx(0, abs=1e-25)
