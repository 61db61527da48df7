"""
Derivatives by finite differences and by the complex step, with an estimate of their error.

They need only a function's values: what a hand-written rule is held against first.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from p3.parity.function import Arrays, is_inexact, wide
from p3.tolerance import BEND, KINK, LEAST, NOTHING, PARITY, QUOTIENT, SHUFFLED, SINGLE_SMOOTH, SMOOTH, TRUTH

LEVELS = 8  # the number of steps, each half of the one before
FIRST_STEP = 2.0**-4  # relative to the argument
EPSILON = float(np.finfo(np.float64).eps)
SINGLE = float(np.finfo(np.float32).eps)
FINE_STEPS = {EPSILON: 2.0**-20, SINGLE: 2.0**-9}  # where rounding still leaves half the digits of a slope
COLUMNS = (
    32  # of a Jacobian that is not diagonal, at most so many are taken, at random, where a direction shows a fault
)
FEW = 4  # elements: of so few each is taken by itself

Values = Callable[[Arrays], Arrays]


class Truth(NamedTuple):
    """
    What should come out, and how well that is known.

    Attributes
    ----------
    values : of each output, or the gradient of each argument
    errors : estimates of the errors of their elements; infinite where nothing is known
    method : for people
    unit : the epsilon of the precision that the function is computed in: float64's, or float32's where that is inside
    """

    values: Arrays
    errors: Arrays
    method: str
    unit: float = EPSILON


def differentiate(f: Callable[[float], Arrays], levels: int = LEVELS, unit: float = EPSILON) -> tuple[Arrays, Arrays]:
    """
    df/dt at 0, and an estimate of its error, for each element of f's outputs by itself.

    Ridders' method: central differences with halved steps h, extrapolated to h = 0 in a Neville tableau, of which each
    element takes the entry that differs least from its neighbours.

    At a kink the extrapolations agree, on the mean of the slopes of both sides; there the second difference over h,
    which halves with h where a function is smooth, stays as it is, and is the error. Of a function that turns often
    within all steps they agree as well, on anything; it has another slope over a far smaller one.

    References
    ----------
    C. J. F. Ridders, Accurate computation of F'(x) and F'(x)F''(x), Advances in Engineering Software 4(2), 1982.
    """
    with np.errstate(all="ignore"):
        best: list[np.ndarray] = []
        errors: list[np.ndarray] = []
        previous: list[Arrays] = []
        still = tuple(map(wide, f(0.0)))
        bends: list[Arrays] = []
        for level in range(levels):
            h = FIRST_STEP * 2.0**-level
            pairs = list(zip(map(wide, f(h)), map(wide, f(-h)), strict=True))
            bends.append(
                tuple(np.abs(above - 2 * y + below) / h for (above, below), y in zip(pairs, still, strict=True))
            )
            row = [tuple((above - below) / (2 * h) for above, below in pairs)]
            rounding = [unit * (np.abs(above) + np.abs(below)) / h for above, below in pairs]
            if level == 0:
                best = [np.zeros_like(y) for y in row[0]]
                errors = [np.full(y.shape, np.inf) for y in row[0]]
            for order in range(1, level + 1):
                power = 4.0**order
                extrapolated = tuple(
                    fine + (fine - coarse) / (power - 1)
                    for fine, coarse in zip(row[order - 1], previous[order - 1], strict=True)
                )
                for k, y in enumerate(extrapolated):
                    error = np.maximum(np.abs(y - row[order - 1][k]), np.abs(y - previous[order - 1][k])) + rounding[k]
                    better = error < errors[k]
                    best[k] = np.where(better, y, best[k])
                    errors[k] = np.where(better, error, errors[k])
                row.append(extrapolated)
            previous = row
        h = FINE_STEPS[unit]
        for k, (above, below) in enumerate(zip(map(wide, f(h)), map(wide, f(-h)), strict=True)):
            astray = np.abs((above - below) / (2 * h) - best[k])
            least = QUOTIENT.epsilons * unit * (np.abs(above) + np.abs(below)) / h
            errors[k] = np.where(astray > least, np.fmax(astray, errors[k]), errors[k])
        for k, y in enumerate(best):
            last, before = bends[-1][k], bends[-2][k]
            is_kink = (last > BEND.value * before) & (last > QUOTIENT.epsilons * rounding[k] + KINK.value * np.abs(y))
            # Flat to the bit, f may be so by rounding alone, as 1 + erf(x) is far out, where it is small beside others.
            finite = np.abs(still[k][np.isfinite(still[k])])
            flat = (y == 0) & (last == 0)
            errors[k] = np.where(flat, np.fmax(errors[k], unit * finite.max(initial=0.0) / FIRST_STEP), errors[k])
            errors[k] = np.maximum(np.where(is_kink, np.maximum(last, errors[k]), errors[k]), LEAST.value * np.abs(y))
    return tuple(best), tuple(errors)


def step_sizes(x: np.ndarray) -> np.ndarray:
    """How far to move each element: its own size, or an eighth of a typical one if that is more."""
    sizes = np.abs(x)
    finite = sizes[np.isfinite(sizes) & (sizes > 0)]
    return np.asarray(np.maximum(sizes, np.median(finite) / 8 if finite.size else 1.0))


def moved(inputs: Arrays, position: int, by: np.ndarray) -> Arrays:
    """The inputs, one of them moved."""
    return (*inputs[:position], np.asarray(inputs[position] + by), *inputs[position + 1 :])


def along(f: Values, inputs: Arrays, position: int, step: np.ndarray) -> Callable[[float], Arrays]:
    """F as a function of how far one of its inputs is moved along a step."""
    return lambda t: f(moved(inputs, position, t * step))


def phases(x: np.ndarray) -> tuple[complex | float, ...]:
    """The directions that a number can move in: a complex one in two."""
    return (1.0, 1j) if x.dtype.kind == "c" else (1.0,)


def sum_to_shape(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The transpose of broadcasting from a shape: sums over the axes that it was repeated along."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    repeated = tuple(axis for axis, length in enumerate(shape) if length == 1 and x.shape[axis] != 1)
    return np.asarray(x.sum(axis=repeated, keepdims=True))


def is_elementwise(f: Values, inputs: Arrays, positions: tuple[int, ...], random: np.random.Generator) -> bool:
    """
    Whether every output has the broadcast inputs' shape and each of its elements depends on its own inputs alone.

    And on those in one way, wherever they are, which is seen where all inputs are of one shape: by shuffling them.

    Found by moving half of the elements, outside of which nothing may change, to the bit: those whose number has a
    binary digit of 1, and those that have it 0, digit by digit, so that any two are told apart. A single element tells
    nothing, and counts as no.
    """
    try:
        shape = np.broadcast_shapes(*(x.shape for x in inputs))
    except ValueError:
        return False
    still = f(inputs)
    if any(y.shape != shape for y in still) or np.prod(shape) < 2:
        return False
    for position in positions:
        x = inputs[position]
        numbers = random.permutation(x.size).reshape(x.shape)
        halves = [(numbers >> digit) & 1 == bit for digit in range(max(x.size - 1, 1).bit_length()) for bit in (0, 1)]
        for half in halves if x.size > 1 else ():
            changed = f(moved(inputs, position, np.where(half, FIRST_STEP * step_sizes(x), 0)))
            outside = ~np.broadcast_to(half, shape)
            pairs = zip(still, changed, strict=True)
            if not all(np.array_equal(y[outside], z[outside], equal_nan=True) for y, z in pairs):
                return False
    if len({x.shape for x in inputs}) > 1:
        return True
    order = random.permutation(inputs[0].size)
    shuffled = f(tuple(x.ravel()[order].reshape(x.shape) for x in inputs))
    # Vector instructions round otherwise than what is left over at the end.
    return all(
        np.allclose(y.ravel()[order], z.ravel(), rtol=SHUFFLED.value, atol=NOTHING.value, equal_nan=True)
        for y, z in zip(still, shuffled, strict=True)
    )


def true_jvp(f: Values, inputs: Arrays, positions: tuple[int, ...], tangents: Arrays, unit: float = EPSILON) -> Truth:
    """The Jacobian of the function's values times the tangents."""

    def along(t: float) -> Arrays:
        given = list(inputs)
        for position, tangent in zip(positions, tangents, strict=True):
            given[position] = np.asarray(given[position] + t * tangent)
        return f(tuple(given))

    return Truth(*differentiate(along, unit=unit), "finite differences", unit)


def true_vjp(
    f: Values,
    inputs: Arrays,
    positions: tuple[int, ...],
    cotangents: Arrays,
    elementwise: bool,
    random: np.random.Generator,
    got: Arrays,
    unit: float = EPSILON,
    project: Values | None = None,
) -> Truth:
    """
    The cotangents times the Jacobian of the function's values.

    That is the gradient g with Σ Re(cotangent · Jw) = Σ Re(g · w) for every tangent w.

    Of an elementwise function all elements move at once. Of any other all elements of an argument move along a random
    direction w, which sees each of them; where that bears out the gradient that was got, it is the truth. Where not, or
    where the function is not smooth along w, one element is moved after the other, `COLUMNS` of them at most, to say
    where: first the one that halving the direction comes to. Inputs that must stay in a domain, which f projects to,
    move along a direction that stays there, and the gradient is known along that alone.
    """
    if project is not None:
        return true_vjp_within(project, f, inputs, positions, cotangents, random, got, unit)
    values: list[np.ndarray] = []
    errors: list[np.ndarray] = []
    method = "finite differences"
    for position in positions:
        x = inputs[position]
        sizes = step_sizes(x)
        if elementwise:
            gradient, error = elementwise_gradient(f, inputs, position, cotangents, sizes, unit)
        else:
            gradient, error = np.zeros(x.shape, wide(x).dtype), np.full(x.shape, np.inf)
            columns = random.permutation(x.size)
            if x.size > FEW:
                borne_out = Borne(f, inputs, position, cotangents, sizes, wide(got[len(values)]), random, unit)
                if borne_out.by(np.ones(x.shape, bool)):
                    values.append(borne_out.got)
                    errors.append(np.zeros(x.shape))
                    method = "finite differences along a random direction"
                    continue
                columns = np.array([*borne_out.suspects(), *columns])
            columns = columns[:COLUMNS]
            if len(columns) < x.size:
                method = f"finite differences, in {COLUMNS} of {x.size} elements"
            for column in columns:
                index = np.unravel_index(column, x.shape)
                gradient[index], error[index] = column_gradient(
                    f, inputs, position, cotangents, index, float(sizes[index]), unit
                )
        values.append(gradient)
        errors.append(error)
    return Truth(tuple(values), tuple(errors), method, unit)


def tangent_within(project: Values, inputs: Arrays, moving: Arrays) -> tuple[Arrays, Arrays]:
    """
    The derivative of a projection along some steps of the inputs, and an estimate of its error.

    These are steps that, to first order, stay in the domain.
    """
    return differentiate(lambda t: project(tuple(np.asarray(x + t * w) for x, w in zip(inputs, moving, strict=True))))


def true_vjp_within(
    project: Values,
    f: Values,
    inputs: Arrays,
    positions: tuple[int, ...],
    cotangents: Arrays,
    random: np.random.Generator,
    got: Arrays,
    unit: float,
) -> Truth:
    """What `true_vjp` finds of inputs that stay in a domain: the got gradient, right along a random direction there."""
    values: list[np.ndarray] = []
    errors: list[np.ndarray] = []
    for position in positions:
        moving = [np.zeros_like(x) if is_inexact(x) else np.zeros(x.shape) for x in inputs]
        sizes = step_sizes(inputs[position])
        moving[position] = sizes * random.uniform(0.5, 1.0, sizes.shape) * random.choice([-1.0, 1.0], sizes.shape)
        step, _ = tangent_within(project, inputs, tuple(moving))

        def product(t: float, step: Arrays = step) -> Arrays:
            outputs = f(tuple(np.asarray(x + t * w) if is_inexact(x) else x for x, w in zip(inputs, step, strict=True)))
            return (np.asarray(sum(float((v * wide(y)).real.sum()) for v, y in zip(cotangents, outputs, strict=True))),)

        (slope,), (error,) = differentiate(product, levels=5, unit=unit)
        terms = [(wide(g) * step[i]).real for g, i in zip(got, positions, strict=False)]
        size = sum(float(np.abs(term).sum()) for term in terms)
        off = float(slope) - sum(float(term.sum()) for term in terms)
        gradient = wide(got[len(values)])
        if abs(off) <= TRUTH.value * float(error) + PARITY.epsilons * unit * size:
            off = 0.0
        along, length = step[position], float((np.abs(step[position]) ** 2).sum())
        values.append(gradient + off / length * along.conj() if length else gradient)
        errors.append(np.full(gradient.shape, float(error) / np.sqrt(length) if length and off else 0.0))
    return Truth(tuple(values), tuple(errors), "finite differences along a direction in the domain", unit)


class Borne:
    """Whether finite differences along a direction bear out a gradient that was got, of one argument."""

    def __init__(
        self,
        f: Values,
        inputs: Arrays,
        position: int,
        cotangents: Arrays,
        sizes: np.ndarray,
        got: np.ndarray,
        random: np.random.Generator,
        unit: float,
    ) -> None:
        """The direction is random, of steps as large as the elements."""
        self.f, self.inputs, self.position, self.cotangents, self.got = f, inputs, position, cotangents, got
        self.unit = unit
        signs = random.choice([-1.0, 1.0], sizes.shape)
        turned = np.exp(0.25j * np.pi) if got.dtype.kind == "c" else 1.0  # by both parts of a complex number
        self.direction = np.asarray(sizes * random.uniform(0.5, 1.0, sizes.shape) * signs * turned)

    def by(self, mask: np.ndarray) -> bool:
        """Whether they do where only the elements of a mask are moved."""
        slope, error, terms = self.along(mask)
        with np.errstate(all="ignore"):
            size = float(np.abs(terms).sum())
            bound = TRUTH.value * error + PARITY.epsilons * self.unit * size
            smooth = SMOOTH if self.unit == EPSILON else SINGLE_SMOOTH
            is_smooth = error <= smooth.value * size or size == 0
            return is_smooth and bool(abs(slope - float(terms.sum())) <= bound)

    def along(self, mask: np.ndarray) -> tuple[float, float, np.ndarray]:
        """The derivative of Σ Re(cotangent · f) along the masked direction, its error, and the terms it should sum."""
        step = np.where(mask, self.direction, 0)

        def product(t: float) -> Arrays:
            moved_outputs = self.f(moved(self.inputs, self.position, t * step))
            pairs = zip(self.cotangents, moved_outputs, strict=True)
            return (np.asarray(sum(float((v * wide(y)).real.sum()) for v, y in pairs)),)

        (slope,), (error,) = differentiate(product, levels=5, unit=self.unit)
        with np.errstate(all="ignore"):
            return float(slope), float(error), (self.got * step).real

    def suspects(self) -> list[int]:
        """The element that comes of halving the direction, each time to a half that is not borne out."""
        numbers = np.arange(self.got.size).reshape(self.got.shape)
        low, high = 0, self.got.size
        while high - low > 1:
            middle = (low + high) // 2
            halves = [(low, middle), (middle, high)]
            wrong = [half for half in halves if not self.by((numbers >= half[0]) & (numbers < half[1]))]
            if not wrong:
                return []
            low, high = wrong[0]
        return [low]


def elementwise_gradient(
    f: Values, inputs: Arrays, position: int, cotangents: Arrays, sizes: np.ndarray, unit: float
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of one argument, and its error, where each element moves only its own outputs."""
    x = inputs[position]
    gradient, error = np.zeros(x.shape, wide(x).dtype), np.zeros(x.shape)
    for phase in phases(x):
        slopes, slope_errors = differentiate(along(f, inputs, position, phase * sizes), unit=unit)
        for slope, slope_error, cotangent in zip(slopes, slope_errors, cotangents, strict=True):
            with np.errstate(invalid="ignore"):
                part = sum_to_shape((cotangent * slope).real, x.shape) / sizes
                error = error + sum_to_shape(np.abs(cotangent) * slope_error, x.shape) / sizes
            gradient = gradient + (part if phase == 1.0 else -1j * part)
    return gradient, error


def column_gradient(
    f: Values, inputs: Arrays, position: int, cotangents: Arrays, index: tuple[np.intp, ...], size: float, unit: float
) -> tuple[complex | float, float]:
    """The gradient of one element, and its error."""
    x = inputs[position]
    gradient: complex | float = 0.0
    error = 0.0
    for phase in phases(x):
        step = np.zeros(x.shape, wide(x).dtype)
        step[index] = phase * size
        slopes, slope_errors = differentiate(along(f, inputs, position, step), levels=5, unit=unit)
        with np.errstate(invalid="ignore"):
            part = sum(float((v * s).real.sum()) for v, s in zip(cotangents, slopes, strict=True)) / size
            error += sum(float((np.abs(v) * e).sum()) for v, e in zip(cotangents, slope_errors, strict=True)) / size
        gradient += part if phase == 1.0 else -1j * part
    return gradient, error


def complex_step(f: Values, inputs: Arrays, positions: tuple[int, ...], tangents: Arrays) -> Arrays | None:
    """
    The Jacobian times the tangents by Im f(x + ih·w)/h, exact to rounding, or None where f takes no complex numbers.

    Right only for analytic functions, so that it must be held against finite differences before it is believed.

    References
    ----------
    W. Squire and G. Trapp, Using complex variables to estimate derivatives of real functions, SIAM Review 40(1), 1998.
    """
    if any(x.dtype.kind == "c" or not is_inexact(x) for x in inputs):
        return None
    moving = np.concatenate([np.abs(inputs[position]).ravel() for position in positions])
    h = 2.0**-60 * float(moving[moving > 0].min(initial=1.0))  # small beside every input, so that its square is nothing
    given = [x.astype(np.complex128) for x in inputs]
    for position, tangent in zip(positions, tangents, strict=True):
        given[position] = np.asarray(given[position] + 1j * h * tangent)
    try:
        results = f(tuple(given))
    except (Exception, SystemExit):  # whatever is raised for numbers that a function does not take
        return None
    return tuple(y.imag / h for y in results) if all(y.dtype.kind == "c" for y in results) else None
