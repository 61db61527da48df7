"""The four gradients at the start: against the chain rule by hand, and between the frameworks."""

import numpy as np
import pytest

from p3.backends import BACKENDS
from p3.fitting.data import make_points
from p3.fitting.exact import P3, gradient_terms
from p3.tolerance import GRADIENT
from tests.support.frameworks import loss_and_gradients
from tests.support.problems import PROBLEMS, fitted

AWAY = {"a": 0.3, "b": -1.2, "c": 0.25, "d": 0.4}  # where no symmetry makes a gradient vanish


@pytest.fixture(params=["start", "away"])
def coefficients(request, problem):
    return problem.start.model_dump() if request.param == "start" else AWAY


def test_gradients_are_the_chain_rules(backend, problem, coefficients, dtype):
    points = make_points(problem.replace({"dtype": dtype}))
    rounded = {name: float(np.dtype(dtype).type(value)) for name, value in coefficients.items()}
    _, gradients = loss_and_gradients(backend, rounded, *points)
    for name, terms in gradient_terms(rounded, points).items():
        size = float(np.abs(terms).sum())
        assert abs(gradients[name] - float(terms.sum())) <= GRADIENT.bound(dtype, size), name


def test_gradients_match_between_frameworks(problem, coefficients):
    # Tighter than it looks: one unit in the last place of b's gradient on the asymmetric problem is 5e-14 of its
    # largest term.
    points = make_points(problem.replace({"dtype": "float64"}))
    _, torch = loss_and_gradients("torch", coefficients, *points)
    _, jax = loss_and_gradients("jax", coefficients, *points)
    for name, terms in gradient_terms(coefficients, points).items():
        assert abs(torch[name] - jax[name]) <= 1e-13 * float(np.abs(terms).max()), name


def test_the_chain_rule_by_hand_is_the_derivative_of_the_loss():
    # By finite differences, so that the truth of the tests above is not taken on trust.
    points = make_points(PROBLEMS["asymmetric"].replace({"dtype": "float64"}))

    def loss(a, b, c, d):
        return float(np.sum((a + b * P3(c + d * points.x) - points.y) ** 2))

    for name, terms in gradient_terms(AWAY, points).items():
        step = 1e-5
        ahead, behind = (loss(**(AWAY | {name: AWAY[name] + sign * step})) for sign in (1, -1))
        assert float(terms.sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-7)


def test_the_asymmetric_problem_keeps_all_gradients_away_from_zero():
    spec = PROBLEMS["asymmetric"].replace({"dtype": "float64"})
    points = make_points(spec)
    coefficients = spec.start.model_dump()
    signs = set()
    for _ in range(spec.steps):
        terms = gradient_terms(coefficients, points)
        gradients = {name: float(values.sum()) for name, values in terms.items()}
        assert all(abs(gradients[name]) >= 0.01 * float(np.abs(terms[name]).sum()) for name in "abcd")
        signs.add(tuple(np.sign(list(gradients.values()))))
        coefficients = {
            name: value - spec.optimizer.learning_rate * gradients[name] for name, value in coefficients.items()
        }
    assert len(signs) == 1


# Of one step there is another program in PyTorch than of several, and for more than 4096 points yet another; each takes
# it seconds to compile.
@pytest.mark.parametrize(
    ("backend", "points", "steps"),
    [
        pytest.param(
            *(backend, points, steps),
            marks=pytest.mark.slow if steps == 1 or points == 100_000 or (backend, points) == ("torch", 5000) else [],
        )
        for backend in BACKENDS
        for points in (2047, 2048, 2049, 5000, 100_000)
        for steps in (2, 1)
    ],
)
def test_compiled_gradients_are_the_chain_rules_however_many_points_there_are(backend, points, steps):
    # Of a compiled step, whose sums are made in blocks in JAX, and by one thread or more in PyTorch.
    spec = PROBLEMS["asymmetric"].replace({"steps": steps, "data": {"points": points}})
    traces = fitted(backend, spec).traces
    before = dict(zip("abcd", traces["coefficients"][0].tolist(), strict=True))
    for name, terms in gradient_terms(before, make_points(spec)).items():
        got = traces["gradients"][0]["abcd".index(name)]
        assert abs(got - float(terms.sum())) <= GRADIENT.bound("float32", float(np.abs(terms).sum())), name
