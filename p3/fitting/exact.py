"""Closed forms: what both frameworks are held against, computed by neither."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.polynomial import Legendre, Polynomial

from p3.fitting.data import Points

# P3(x) = (5x³ − 3x)/2. Its coefficients −3/2 and 5/2 are exact in binary, and so are those of its derivatives.
P3 = Legendre.basis(3).convert(kind=Polynomial)


class BestFit(NamedTuple):
    """
    The least loss that a + b·P3(c + d·x) can come to on some points.

    Attributes
    ----------
    loss : sum of squared errors of the best cubic, which no choice of coefficients goes below
    coefficients : a, b, c, d with d > 0 that reach it, (a, −b, −c, −d) being the same function;
        None where the best cubic has no turning points, as b·P3 has, and the loss is approached but never reached
    """

    loss: float
    coefficients: dict[str, float] | None


def best_fit(points: Points) -> BestFit:
    """
    The best fit in closed form.

    Least squares gives the best cubic α₀ + α₁x + α₂x² + α₃x³. Expanding a + b·P3(c + d·x) and comparing powers,

        α₃ = (5/2) b d³    α₂ = (15/2) b c d²    α₁ = (15/2) b c² d − (3/2) b d    α₀ = a + b·P3(c)

    so c/d = α₂/(3α₃), then b·d = (2/3)(3α₃(c/d)² − α₁), then d² = α₃/((5/2) b d), which has a real solution when
    α₃ and b·d have the same sign.
    """
    x, y = points.x.astype(np.float64), points.y.astype(np.float64)
    cubic = Polynomial.fit(x, y, deg=min(3, len(x) - 1))
    loss = float(np.sum((cubic(x) - y) ** 2))
    alpha = np.zeros(4)
    power_series = cubic.convert().coef
    alpha[: len(power_series)] = power_series
    if alpha[3] == 0:
        return BestFit(loss, None)
    c_over_d = alpha[2] / (3 * alpha[3])
    b_times_d = (2 / 3) * (3 * alpha[3] * c_over_d**2 - alpha[1])
    if alpha[3] * b_times_d <= 0:
        return BestFit(loss, None)
    d = np.sqrt(alpha[3] / (2.5 * b_times_d))
    b, c = b_times_d / d, c_over_d * d
    a = alpha[0] - b * P3(c)
    return BestFit(loss, {"a": float(a), "b": float(b), "c": float(c), "d": float(d)})


class Chain(NamedTuple):
    """
    Every link of the chain rule by hand, point by point, in extended precision where the platform has it.

    Attributes
    ----------
    z : c + d·x
    value, slope : P3(z) and P3'(z)
    prediction : ŷ = a + b·P3(z)
    residual : r = ŷ − y
    terms : of each coefficient's gradient, the sum over the points of

            ∂/∂a: 2r    ∂/∂b: 2r·P3(z)    ∂/∂c: 2r·b·P3'(z)    ∂/∂d: 2r·b·P3'(z)·x

    sizes : of the terms, with |a| + |b|·V + |y| for |r|, V = 3(5Z³ + Z)/2 for |P3(z)|, 3(10Z² + 1)/2 for |P3'(z)| and
        Z = |c| + |d·x|: what their rounding is relative to, though they cancel. As z is rounded by epsilons of Z, P3 is
        by epsilons of Z·P3'(Z), and P3' of Z·P3''(Z)
    """

    z: Float[np.ndarray, "*steps points"]
    value: Float[np.ndarray, "*steps points"]
    slope: Float[np.ndarray, "*steps points"]
    prediction: Float[np.ndarray, "*steps points"]
    residual: Float[np.ndarray, "*steps points"]
    terms: dict[str, Float[np.ndarray, "*steps points"]]
    sizes: dict[str, Float[np.ndarray, "*steps points"]]


def chain(coefficients: Mapping[str, float | Float[np.ndarray, "*steps"]], points: Points) -> Chain:
    """The chain rule at some coefficients, or at those of several steps at once; with points for all, or for each."""
    a, b, c, d = (np.asarray(coefficients[name], np.longdouble)[..., None] for name in "abcd")
    x, y = points.x.astype(np.longdouble), points.y.astype(np.longdouble)
    z = c + d * x
    value, slope = P3(z), P3.deriv()(z)
    prediction = a + b * value
    residual = prediction - y
    terms = {"a": 2 * residual, "b": 2 * residual * value, "c": 2 * residual * b * slope}
    terms["d"] = terms["c"] * x
    z_size = np.abs(c) + np.abs(d * x)
    value_size, slope_size = 7.5 * z_size**3 + 1.5 * z_size, 15 * z_size**2 + 1.5
    residual_size = np.abs(a) + np.abs(b) * value_size + np.abs(y)
    sizes = {"a": 2 * residual_size, "b": 2 * residual_size * value_size}
    sizes["c"] = 2 * residual_size * np.abs(b) * slope_size
    sizes["d"] = sizes["c"] * np.abs(x)
    return Chain(z, value, slope, prediction, residual, terms, sizes)


def gradient_terms(coefficients: Mapping[str, float], points: Points) -> dict[str, Float[np.ndarray, "points"]]:
    """For each coefficient the terms, one a point, whose sum is ∂loss/∂coefficient, as `Chain` has them."""
    return chain(coefficients, points).terms
