"""The points of a fit, made once for every framework."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from p3.errors import InputError
from p3.spec import TrainingSpec


class Points(NamedTuple):
    """What is fitted: y at x, both in the specification's dtype."""

    x: Float[np.ndarray, "points"]
    y: Float[np.ndarray, "points"]


def make_points(spec: TrainingSpec) -> Points:
    """
    Evenly spaced x in [low, high] and y = target(x), computed in float64 and rounded once to the dtype.

    The frameworks' own `linspace` and `sin` differ in the last bit at half of the tutorial's points, which is enough
    to part two float32 fits; so neither makes its own data.

    Raises
    ------
    InputError
        A point is not finite in the specification's dtype.
    """
    data = spec.data
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.linspace(data.low, data.high, data.points)
        y = getattr(np, data.target)(x)
        points = Points(x.astype(spec.dtype), y.astype(spec.dtype))
    if not (np.isfinite(points.x).all() and np.isfinite(points.y).all()):
        raise InputError(
            f"data: {data.target} over [{data.low!r}, {data.high!r}] is not finite in {spec.dtype}; narrow the interval"
        )
    return points
