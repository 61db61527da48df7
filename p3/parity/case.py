"""What is checked: two operators, the inputs, and what goes with them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, TypedDict

import numpy as np

from p3.errors import InputError
from p3.parity import truth
from p3.parity.function import Arrays, Function, at_precision, is_inexact, wide
from p3.parity.limit import limited
from p3.parity.mismatch import Mismatch, Pair, climb, in_epsilons, largest
from p3.parity.place import Place
from p3.parity.quantity import Groups, Quantity
from p3.parity.recorded import Recorded, RefusalError, Results, asked, digest
from p3.parity.tree import Structure, is_of, leaves, take_apart
from p3.parity.truth import Truth
from p3.tolerance import (
    COMPLEX_STEP,
    FLOOR,
    JOINT,
    JUMP,
    LADDER,
    LEAST_CONSTANT,
    MOST_NOISE,
    NEARLY,
    NOISE,
    NOISE_GROWTH,
    NOISE_JUMP,
    NOISY,
    ONE_CONSTANT,
    PARITY,
    RELIABLE,
    SINGLE_RELIABLE,
    SLOPE,
    SMOOTH_DIFFERENCE,
    TRUTH,
)

PRECISIONS = ("float64", "float32")
# By what every input is moved, of itself: to see how the result depends on it, and to see how it is rounded, which can
# be more, as where 1 − p cancels in the gradient of a softmax that is nearly 1.
ROUNDING = 2.0**-50
MOVES = (2.0**-16, ROUNDING)
NOISE_STEPS = (2.0**-22, 2.0**-16)  # the steps of second differences, of which the smaller crosses float32's numbers
SMOOTH_STEPS = (2.0**-18, 2.0**-6)  # the steps to see whether a difference changes with the inputs
BEND_STEP = 2.0**-7  # along tangents, to see whether a domain is curved
DRAWS = 4  # of random steps
CLOSED = "the closed form"
# What the groups of a quantity are, besides the inputs.
GROUPS_OF = {
    "vjp": ("cotangents",),
    "jvp": ("tangents",),
    "vjp of vjp": ("cotangents", "tangents"),
    "jvp of vjp": ("cotangents", "tangents"),
    "vjp of jvp": ("tangents", "cotangents"),
    "jvp of jvp": ("tangents", "tangents"),
}
DTYPES = ("float16", "bfloat16", "float32", "float64")


class Options(TypedDict, total=False):
    """
    How to check.

    Keys
    ----
    closed_form : f in NumPy, for arrays of float64 or complex128, if there is one
    surrogate : the rule is on purpose not the derivative, and is compared with the other side alone
    linear : whether the rule is linear in its cotangent; False for one that clips it, which is a surrogate as well
    points : more values to check every argument at: kinks, branch points
    awkward : more inputs to check at, by what is awkward about them: ties, nothing at all, a singular matrix
    project : a NumPy function that projects arguments onto the domain of the functions, such as the symmetric matrices.
        It is called with the same arguments as they are, and p3 applies it to every input that it generates
    keys : the positions or names of arguments that are random keys or states; their whole numbers are not varied, and
        no derivative is taken by their floating ones
    states : the positions or names of outputs that are states, such as running statistics; they are compared, and have
        no derivative
    edges : "fail" where the far ends of the numbers count as well: infinities, NaN, huge and subnormal numbers; else
        "report", and what differs there is said alone
    dtypes : in which to check what comes out
    compiled : whether to check compiled modes too, which takes seconds
    timeout : the seconds that each call of a function may take; None for as long as it takes
    seed : of the random cotangents, tangents and directions
    """

    closed_form: Callable[..., object] | None
    surrogate: bool
    linear: bool
    points: Iterable[float]
    awkward: Mapping[str, object]
    project: Callable[..., object] | None
    keys: Iterable[int | str]
    states: Iterable[int | str]
    edges: Literal["report", "fail"]
    dtypes: Iterable[str]
    compiled: bool
    timeout: float | None
    seed: int


@dataclass(frozen=True)
class Case:
    """
    What is checked.

    Attributes
    ----------
    reference, port : the two operators
    inputs : floating ones in float64, rounded to float32 so that both precisions see the same; or where they must stay
        in a domain, projected on it in float64
    structure : what is around the inputs
    closed_form, surrogate, linear, points, awkward, project, keys, states, edges, dtypes, compiled, timeout, seed : the
        `Options`; keys as the positions of arrays
    changes : what a side's value or vjp changes of the process, by side and method
    """

    reference: Recorded
    port: Recorded
    inputs: Arrays
    structure: Structure
    closed_form: Callable[..., object] | None = None
    surrogate: bool = False
    linear: bool = True
    points: tuple[float, ...] = ()
    awkward: Mapping[str, Arrays] = field(default_factory=dict)
    project: Callable[..., object] | None = None
    keys: tuple[int, ...] = ()
    states: tuple[int | str, ...] = ()
    edges: Literal["report", "fail"] = "report"
    dtypes: tuple[str, ...] = DTYPES
    compiled: bool = True
    timeout: float | None = None
    seed: int = 0
    changes: dict[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    _truths: dict[object, Truth] = field(default_factory=dict)
    _sizes: Results = field(default_factory=Results)
    _single: dict[object, tuple[bool, ...]] = field(default_factory=dict)

    @property
    def is_derivative(self) -> bool:
        """Whether the rule is meant to be the derivative."""
        return self.linear and not self.surrogate

    @property
    def sides(self) -> tuple[tuple[str, Recorded], ...]:
        """Both operators, by their sides."""
        return ("reference", self.reference), ("port", self.port)

    def random(self) -> np.random.Generator:
        """The same numbers each time."""
        return np.random.default_rng(self.seed)

    @cached_property
    def arguments(self) -> tuple[int, ...]:
        """The positions of the arguments that both sides differentiate."""
        return self.reference.arguments(self.inputs)

    @cached_property
    def values(self) -> Arrays:
        """The reference's outputs."""
        return self.reference.value(self.inputs)

    def differentiable(self, values: Arrays) -> Arrays:
        """The outputs of floating or complex dtype; states, which have no derivative, as zeros."""
        states = [any(is_of(path, state) for state in self.reference.states) for path in self.output_paths]
        return tuple(
            np.zeros_like(y) if is_state else y for y, is_state in zip(values, states, strict=True) if is_inexact(y)
        )

    def like(self, arrays: Arrays, salt: int) -> Arrays:
        """
        Random numbers of the arrays' shapes, away from 0, with few bits.

        They are odd multiples of 1/32 from 17/32 to 63/32, on both sides of 1, and none of them a number that a rule
        may clip its cotangent at.
        """
        random = np.random.default_rng([self.seed, salt])

        def real(shape: tuple[int, ...]) -> np.ndarray:
            return random.choice([-1.0, 1.0], shape) * (2 * random.integers(8, 32, shape) + 1) / 32

        return tuple(
            np.asarray(real(x.shape) + 1j * real(x.shape) if x.dtype.kind == "c" else real(x.shape)) for x in arrays
        )

    @cached_property
    def cotangents(self) -> Arrays:
        """One for each differentiable output."""
        return self.like(tuple(y for y in self.values if is_inexact(y)), 1)

    @cached_property
    def tangents(self) -> Arrays:
        """One for each differentiable argument."""
        return self.along(self.inputs, self.like(tuple(self.inputs[i] for i in self.arguments), 2))

    @cached_property
    def directions(self) -> Arrays:
        """Another tangent for each differentiable argument."""
        return self.along(self.inputs, self.like(tuple(self.inputs[i] for i in self.arguments), 7))

    def within(self, inputs: Arrays) -> Arrays:
        """The inputs, in the functions' domain."""
        if self.project is None:
            return inputs
        try:
            with np.errstate(all="ignore"), limited(Place("", "project")):
                given = self.structure.call(self.project, inputs, {})
        except (Exception, SystemExit) as error:  # a user's function raises anything, and may exit
            text = f"project cannot be called with arguments like the inputs: {type(error).__name__}: {error}"
            raise InputError(" ".join(text.split())) from error
        tree = self.structure.tree
        if isinstance(tree, Mapping) and isinstance(given, Mapping):
            given = {name: given[name] for name in tree if name in given}
        elif not isinstance(given, tuple):
            given = (given,)
        arrays, structure = take_apart(given, lambda path, x: np.asarray(x))
        if structure != self.structure or [x.shape for x in arrays] != [x.shape for x in inputs]:
            raise InputError("project must give as many arguments as it is given, of the same shapes")
        return tuple(y.astype(x.dtype) for x, y in zip(self.inputs, arrays, strict=True))

    def along(self, inputs: Arrays, tangents: Arrays) -> Arrays:
        """The tangents at some inputs, along the functions' domain."""
        if self.project is None:
            return tangents
        moving = [np.zeros_like(x) for x in inputs]
        for i, tangent in zip(self.arguments, tangents, strict=True):
            moving[i] = tangent
        steps, _ = truth.tangent_within(self.within, inputs, tuple(moving))
        return tuple(steps[i] for i in self.arguments)

    def moved(self, quantity: Quantity, random: np.random.Generator, by: float) -> Quantity:
        """A quantity of inputs that are moved by a fraction of themselves, in the functions' domain."""
        moved = quantity.moved(random, by)
        return moved._replace(groups=(self.within(moved.groups[0]), *moved.groups[1:]))

    @cached_property
    def elementwise(self) -> bool:
        """Whether each element of the outputs depends on its own inputs alone."""
        return self.project is None and truth.is_elementwise(
            self.reference.value, self.inputs, self.arguments, self.random()
        )

    def quantity(self, name: str) -> Quantity:
        """The value, a derivative, or a derivative of one."""
        groups: dict[str, Groups] = {
            "value": (self.inputs,),
            "vjp": (self.inputs, self.cotangents),
            "jvp": (self.inputs, self.tangents),
            "vjp of vjp": (self.inputs, self.cotangents, self.tangents),
            "jvp of vjp": (self.inputs, self.cotangents, self.tangents),
            "vjp of jvp": (self.inputs, self.tangents, self.cotangents),
            "jvp of jvp": (self.inputs, self.tangents, self.directions),
        }
        return Quantity(name, groups[name])

    def size(self, quantity: Quantity) -> Arrays:
        """The size that `PARITY` names, for each element of a quantity: the reference's, or the port's."""

        def size() -> Arrays:
            try:
                return self._size(quantity, self.reference)
            except RefusalError:
                return self._size(quantity, self.port)

        return self._sizes.get((quantity.name, digest(quantity.groups)), size)

    def is_near(self, got: np.ndarray, expected: np.ndarray, precision: str) -> bool:
        """Whether two results are surely within the tolerance, by half of a lower bound of the size."""
        size = np.abs(wide(expected))
        size = size if self.elementwise else np.maximum(size, JOINT.value * greatest(size))
        return not Pair(got, expected, size / 2).beyond(precision).any()

    def _size(self, quantity: Quantity, operator: Function) -> Arrays:
        random = self.random()
        still = tuple(map(wide, quantity.of(operator)))
        moves: dict[float, list[Arrays]] = {by: [] for by in MOVES}
        with np.errstate(all="ignore"):
            for by in DRAWS * MOVES:
                moved = self.moved(quantity, random, by).of(operator)
                moves[by].append(tuple(np.abs(wide(a) - b) / by for a, b in zip(moved, still, strict=True)))
            least_jumps = [JUMP.value / ROUNDING * greatest(np.abs(y)) for y in still]
            small = moves[ROUNDING]
            if not self.elementwise:  # a draw in which one element jumps says nothing of the others
                small = [
                    move
                    for move in small
                    if all(greatest(change) <= least for change, least in zip(move, least_jumps, strict=True))
                ] or small
            changed = []
            for k, least in enumerate(least_jumps):
                rounded_alone = [np.where(move[k] <= least, move[k], 0) for move in small]
                largest_change = np.max([*(move[k] for move in moves[MOVES[0]]), *rounded_alone], axis=0)
                changed.append(np.nan_to_num(largest_change, posinf=0.0))
            # Near the end of the numbers the sum of both overflows.
            sizes = [
                np.where(np.isfinite(np.abs(y) + change), np.abs(y) + change, np.abs(y))
                for y, change in zip(still, changed, strict=True)
            ]
        slopes = self.least_slopes(quantity) or (0.0,) * len(sizes)
        if self.elementwise:
            sizes = [np.maximum(size, FLOOR.value * typical(size)) for size in sizes]
        else:
            sizes = [np.maximum(size, JOINT.value * greatest(size)) for size in sizes]
        return tuple(np.fmax(size, slope) for size, slope in zip(sizes, slopes, strict=True))

    def least_slopes(self, quantity: Quantity) -> tuple[np.ndarray | float, ...]:
        """
        The size below which a derivative is rounding, by what the values and the inputs are; empty of a value.

        The correlation of two variables is 1 whatever they are, sin² + cos² is as well, and their derivatives are
        nothing but what cancels. It is by elements of an elementwise function whose arrays are all of one shape.
        """
        inputs, *others = quantity.groups
        if not others or (self.elementwise and inputs is not self.inputs):  # special numbers are each by themselves
            return ()
        values = [y for y in self.reference.value(inputs) if is_inexact(y)]
        moving = [inputs[i] for i in self.arguments]
        arrays = [*values, *moving, *(x for group in others for x in group)]
        by_element = self.elementwise and len({x.shape for x in arrays}) == 1

        def measure(x: np.ndarray) -> np.ndarray | float:
            return np.nan_to_num(np.abs(wide(x)), posinf=0.0) if by_element else greatest(np.abs(wide(x)))

        steps: list[Any] = [truth.step_sizes(x) if by_element else greatest(np.abs(x)) or np.inf for x in moving]
        factors = {
            number: sum(measure(v) for v in group)
            if group_of == "cotangents"
            else sum(measure(w) / step for w, step in zip(group, steps, strict=True))
            for number, (group_of, group) in enumerate(zip(GROUPS_OF[quantity.name], others, strict=True))
        }
        scale = SLOPE.value * sum(measure(y) for y in values)
        found: list[np.ndarray | float] = []
        for kind, by in quantity.derivative.arrays:
            product = scale
            for number, factor in factors.items():
                if not (by and number == 0):  # by a cotangent or tangent, which comes first, it is linear
                    product = product * factor
            found += [product / step for step in steps] if kind == "arguments" else [product] * len(values)
        return tuple(found)

    def true(self, quantity: Quantity, operator: Recorded) -> Truth | None:
        """
        What a quantity of a side should be by its own values, or by its own vjp for second derivatives.

        Of a side that computes in float32 inside, finite differences in float64 are mostly rounding: where they do not
        confirm what it gives, they are taken over steps that are large enough for float32.
        """
        key = (quantity.name, operator)
        if key not in self._truths:
            found = self._find_truth(quantity, operator, truth.EPSILON)
            if found is None:
                return None
            is_confirmed = found.method == CLOSED or self._confirms(found, quantity, operator)
            if not is_confirmed and any(self.is_single(quantity, operator)):
                found = self._find_truth(quantity, operator, truth.SINGLE)
                assert found is not None
            self._truths[key] = found
        return self._truths[key]

    def _confirms(self, known: Truth, quantity: Quantity, operator: Recorded) -> bool:
        """Whether a truth is known everywhere, and is what a side gives in float64."""
        results = quantity.of(operator)
        return [y.shape for y in results] == [y.shape for y in known.values] and all(
            is_reliable(known, value, error, size, got).all()
            and not Pair(got, value, size, allowed(error)).beyond("float64").any()
            for got, (size, value, error) in zip(results, self.with_sizes(quantity, known), strict=True)
        )

    def is_single(self, quantity: Quantity, operator: Function) -> tuple[bool, ...]:
        """
        Whether each array of a quantity is computed in float32 inside, whatever the side is given.

        Rounding shows as noise: a second difference over a small step that is about half an epsilon of float32, and
        that is no larger over a larger step. Where a function is smooth it is far smaller, and at a jump far larger.
        """
        key = quantity.name, digest(quantity.groups), operator
        if key not in self._single:
            sizes = self.size(quantity)
            fine, coarse = (self._second_differences(quantity, operator, by) for by in NOISE_STEPS)
            found = []
            for y, size, small, large in zip(quantity.of(operator), sizes, fine, coarse, strict=True):
                with np.errstate(all="ignore"):
                    seen = np.isfinite(size) & (size > 0) & (small <= NOISE_JUMP.value * greatest(np.abs(wide(y))))
                    small, large = (np.where(seen, y / size, 0) / truth.SINGLE for y in (small, large))
                    noisy = (small > NOISE.epsilons) & (small < MOST_NOISE.epsilons)
                    noisy &= large < NOISE_GROWTH.value * small
                found.append(bool(noisy.sum() >= max(1, NOISY.value * seen.sum())))
            self._single[key] = tuple(found)
        return self._single[key]

    def _second_differences(self, quantity: Quantity, operator: Function, by: float) -> Arrays:
        """|f(x + h) − 2f(x) + f(x − h)| of a quantity, the largest over some random steps h, a fraction of x."""
        still = tuple(map(wide, quantity.of(operator)))
        largest_of = [np.zeros(y.shape) for y in still]
        for seed in range(DRAWS):
            above, below = (
                tuple(map(wide, self.moved(quantity, np.random.default_rng([self.seed, seed]), sign * by).of(operator)))
                for sign in (1, -1)
            )
            with np.errstate(all="ignore"):
                for k, (a, y, b) in enumerate(zip(above, still, below, strict=True)):
                    largest_of[k] = np.fmax(largest_of[k], np.abs(a - 2 * y + b))
        return tuple(largest_of)

    def is_smooth(self, quantity: Quantity, k: int) -> bool:
        """
        Whether the sides' difference in one array stays as it is where the inputs move by a little.

        That of a fault does: the products of any two such differences have the mean of the squares. That of rounding
        changes at each move. Of a fault in some elements alone, these are beyond the tolerance of float32.
        """
        differences: list[np.ndarray] = []
        size = self.size(quantity)[k]
        with np.errstate(all="ignore"):
            for seed in range(2 * DRAWS):
                for by in SMOOTH_STEPS:
                    moved = self.moved(quantity, np.random.default_rng([self.seed, seed]), by)
                    port, reference = (wide(moved.of(operator)[k]) for operator in (self.port, self.reference))
                    differences.append((port - reference) / size)
            d = np.array([np.where(np.isfinite(x), x, 0) for x in differences])
            count, squares = len(d), (np.abs(d) ** 2).sum(0)
            products = (np.abs(d.sum(0)) ** 2 - squares) / (count - 1)
        moving = squares > 0
        far = squares > count * (PARITY.epsilons * truth.SINGLE) ** 2
        return any(
            some.any() and float((products[some] / squares[some]).mean()) > SMOOTH_DIFFERENCE.value
            for some in (moving, far)
        )

    def climb(
        self,
        quantity: Quantity,
        k: int | None,
        pairs: Mapping[str, Pair],
        operators: Iterable[Function],
        own: float = 0.0,
        shared: float = 0.0,
    ) -> Mismatch | None:
        """
        The precision ladder for one array of a quantity of some sides, or for all of them together where k is None.

        None within the tolerance. What is no rounding in float64 may be rounding in float32, where one of the sides
        computes in it inside.
        """
        mismatch = climb(pairs, own, shared)
        if mismatch is None or mismatch.kind != "semantic":
            return mismatch
        # What a constant makes that is rounded to float32 is as smooth as a fault's difference, and known by its size.
        least = 0.0 if quantity.derivative.order and self.has_constant else LEAST_CONSTANT.epsilons
        if least <= self._off(pairs) <= ONE_CONSTANT.epsilons:
            return mismatch._replace(kind="single precision")
        singles = [self.is_single(quantity, operator) for operator in operators]
        if not any(any(single) if k is None else single[k] for single in singles):
            return mismatch
        for name, pair in pairs.items():
            coarse = pair._replace(inside="float32")
            most = LADDER.epsilons * coarse.limit(name) - coarse.limit(name) + coarse.limits(name)
            if (coarse.epsilons(name) > most).any():
                return mismatch
        return mismatch._replace(kind="single precision")

    @cached_property
    def has_constant(self) -> bool:
        """Whether the sides' values differ by what rounding a constant to float32 makes."""
        return any(
            climb(pairs) is not None and LEAST_CONSTANT.epsilons <= self._off(pairs) <= ONE_CONSTANT.epsilons
            for pairs in self.pairs_of_sides(self.quantity("value")).values()
        )

    def alike_within(self, quantity: Quantity, k: int, pairs: Mapping[str, Pair]) -> bool:
        """
        Whether two gradients differ in nothing that moves inputs within the functions' domain.

        Of symmetric matrices PyTorch's gradient of cholesky is symmetric, and JAX's need not be; along any symmetric
        direction both are the same.
        """
        kinds = [kind for kind, _ in quantity.derivative.arrays for _ in self.arguments]
        if self.project is None or k >= len(kinds) or kinds[k] != "arguments":
            return False
        if quantity.derivative.arrays[0][0] != "arguments":
            return False
        if any((np.isfinite(wide(p.got)) != np.isfinite(wide(p.expected))).any() for p in pairs.values()):
            return False
        inputs, position = quantity.groups[0], self.arguments[k % len(self.arguments)]
        for seed in range(DRAWS):
            moving = [np.zeros_like(x) for x in inputs]
            moving[position] = truth.step_sizes(inputs[position]) * self.like((inputs[position],), 100 + seed)[0]
            step, error = (found[position] for found in truth.tangent_within(self.within, inputs, tuple(moving)))
            for precision, pair in pairs.items():
                got, expected = (np.asarray((wide(g) * step).real.sum()) for g in (pair.got, pair.expected))
                size = np.asarray((pair.size * np.abs(step)).sum())
                off = np.asarray((np.abs(wide(pair.got) - wide(pair.expected)) * allowed(error)).sum())
                if Pair(got, expected, size, off).beyond(precision).any():
                    return False
        return True

    @staticmethod
    def _off(pairs: Mapping[str, Pair]) -> float:
        """The largest difference in float64, in epsilons of float32."""
        if "float64" not in pairs:
            return 0.0
        return float(pairs["float64"].epsilons("float64").max(initial=0.0)) * truth.EPSILON / truth.SINGLE

    def _find_truth(self, quantity: Quantity, operator: Recorded, unit: float) -> Truth | None:
        if quantity.name == "value":
            if self.closed_form is None:
                return None
            return Truth(self.closed(self.inputs), tuple(np.zeros(y.shape) for y in self.values), CLOSED)

        unrecorded = operator.unrecorded

        def inexact(inputs: Arrays) -> Arrays:
            inputs = self.within(inputs)
            values = (
                asked(unrecorded, Place(operator.side, "value"), inputs)
                if self.closed_form is None
                else self.closed(inputs)
            )
            return self.differentiable(values)

        def gradient(inputs: Arrays) -> Arrays:
            return asked(unrecorded, Place(operator.side, "vjp"), self.within(inputs), self.cotangents)

        def tangent(inputs: Arrays) -> Arrays:
            return asked(unrecorded, Place(operator.side, "jvp"), self.within(inputs), self.tangents)

        elementwise = self.elementwise and len({x.shape for x in self.inputs}) == 1
        project = self.within if self.project is not None else None
        got = quantity.of(operator)
        if quantity.name == "jvp of vjp":
            return truth.true_jvp(gradient, self.inputs, self.arguments, self.tangents, unit)
        if quantity.name == "jvp of jvp":
            return truth.true_jvp(tangent, self.inputs, self.arguments, self.directions, unit)
        if quantity.name == "vjp of jvp":
            by_arguments = truth.true_vjp(
                tangent, self.inputs, self.arguments, self.cotangents, elementwise, self.random(), got, unit, project
            )
            # The jvp is linear in its tangent, and its transpose is the vjp.
            by_tangents = truth.true_vjp(
                inexact,
                self.inputs,
                self.arguments,
                self.cotangents,
                self.elementwise,
                self.random(),
                got[len(self.arguments) :],
                unit,
                project,
            )
            return Truth(
                by_arguments.values + by_tangents.values,
                by_arguments.errors + by_tangents.errors,
                by_arguments.method,
                unit,
            )
        if quantity.name == "vjp of vjp":
            of_arguments = truth.true_vjp(
                gradient, self.inputs, self.arguments, self.tangents, elementwise, self.random(), got, unit, project
            )
            # The vjp is linear in its cotangent, and its transpose is the jvp.
            of_cotangents = truth.true_jvp(inexact, self.inputs, self.arguments, self.tangents, unit)
            return Truth(
                of_arguments.values + of_cotangents.values,
                of_arguments.errors + of_cotangents.errors,
                of_arguments.method,
                unit,
            )

        if quantity.name == "jvp":
            return self._sharpen(
                truth.true_jvp(inexact, self.inputs, self.arguments, self.tangents, unit),
                self._complex_step(inexact, self.tangents),
            )
        found = truth.true_vjp(
            inexact, self.inputs, self.arguments, self.cotangents, self.elementwise, self.random(), got, unit, project
        )
        if not (self.elementwise and len(self.arguments) == 1 and len({x.shape for x in self.inputs}) == 1):
            return found
        slopes = truth.complex_step(
            inexact, self.inputs, self.arguments, tuple(np.ones(self.inputs[i].shape) for i in self.arguments)
        )
        if slopes is None:
            return found
        return self._sharpen(found, (np.sum([v * s for v, s in zip(self.cotangents, slopes, strict=True)], axis=0),))

    def _complex_step(self, f: truth.Values, tangents: Arrays) -> Arrays | None:
        """The complex step, where the inputs may leave the real numbers."""
        return None if self.project else truth.complex_step(f, self.inputs, self.arguments, tangents)

    def _sharpen(self, rough: Truth, sharp: Arrays | None) -> Truth:
        """The complex step's result where finite differences bear it out, which is where f is analytic."""
        if (
            sharp is None
            or rough.unit != truth.EPSILON
            or any(a.shape != b.shape for a, b in zip(rough.values, sharp, strict=True))
        ):
            return rough
        errors = []
        for value, error, exact in zip(rough.values, rough.errors, sharp, strict=True):
            known = error <= RELIABLE.value * (1 + np.abs(value))
            if not np.all(np.abs(value - exact)[known] <= allowed(error)[known]):
                return rough
            errors.append(np.where(known, COMPLEX_STEP.value * np.abs(exact).max(initial=0.0), error))
        return Truth(sharp, tuple(errors), "the complex step")

    def closed(self, inputs: Arrays) -> Arrays:
        """The closed form's values; an InputError where it raises."""
        assert self.closed_form is not None
        try:
            with limited(Place("", "closed_form")):
                result = self.structure.call(self.closed_form, inputs, {})
        except (Exception, SystemExit) as error:  # a user's function raises anything, and may exit
            text = f"closed_form cannot be called at the inputs, or near them: {type(error).__name__}: {error}"
            raise InputError(" ".join(text.split())) from error
        return tuple(np.asarray(y) for _, y in leaves(result, "output") if y is not None or result is None)

    def places(self, quantity: Quantity, side: str) -> list[Place]:
        """The place of each array of a quantity, for one side."""
        arguments = [self.structure.paths[i] for i in self.arguments]
        outputs = self.output_paths
        paths = {
            "outputs": outputs,
            "differentiable outputs": [p for p, y in zip(outputs, self.values, strict=True) if is_inexact(y)],
            "arguments": arguments,
        }
        return [Place(side, quantity.name, path, by) for kind, by in quantity.derivative.arrays for path in paths[kind]]

    def of(self, position: int) -> str:
        """The path of an input that is special, where there are others."""
        return self.structure.paths[position] if len(self.inputs) > 1 else ""

    @cached_property
    def output_paths(self) -> tuple[str, ...]:
        """What to call each output of the reference."""
        return self.reference.output_paths(self.inputs)

    def between_sides(self, quantity: Quantity) -> Iterator[tuple[int, Mismatch]]:
        """Where the sides differ: the array's number, and the worst difference over the precisions."""
        for k, pairs in self.pairs_of_sides(quantity).items():
            if climb(pairs) is None or (quantity.derivative.order == 2 and self.bends):
                continue
            operators = [operator for _, operator in self.sides]
            own = [self.own(quantity, operator, k) for operator in operators]
            mismatch = self.climb(quantity, k, pairs, operators, max(own), min(own))
            assert mismatch is not None
            if mismatch.kind == "semantic" and self.alike_within(quantity, k, pairs):
                continue
            if mismatch.kind == "single precision" and (
                any(x.dtype != wide(x).dtype for x in (pairs["float64"].got, pairs["float64"].expected))
                or (self._off(pairs) > ONE_CONSTANT.epsilons and self.is_smooth(quantity, k))
            ):  # a result of another dtype is no matter of what is inside, and what is smooth is no rounding
                mismatch = mismatch._replace(kind="semantic")
            yield k, mismatch

    @cached_property
    def bends(self) -> bool:
        """
        Whether the domain is curved, and the sides' gradients differ off it.

        Second derivatives then differ even along the domain, by the curvature times the gradient that is normal to it.
        """
        if self.project is None:
            return False
        vjp = self.quantity("vjp")
        if all(climb(pairs) is None for pairs in self.pairs_of_sides(vjp).values()):
            return False
        ahead, behind = (
            self.within(tuple(x + sign * BEND_STEP * w for x, w in zip(self.inputs, self._moving, strict=True)))
            for sign in (1, -1)
        )
        return any(
            greatest(np.abs(a - 2 * x + b)) > NEARLY.value * BEND_STEP * greatest(np.abs(x))
            for x, a, b in zip(self.inputs, ahead, behind, strict=True)
            if is_inexact(x)
        )

    @property
    def _moving(self) -> Arrays:
        """The tangents, and zeros for what has none."""
        moving = [np.zeros_like(x) for x in self.inputs]
        for i, tangent in zip(self.arguments, self.tangents, strict=True):
            moving[i] = tangent
        return tuple(moving)

    def shared(self, quantity: Quantity, k: int) -> float:
        """The smaller of both sides' own float32 rounding errors, in epsilons."""
        return min(self.own(quantity, side, k) for _, side in self.sides)

    def own(self, quantity: Quantity, operator: Function, k: int) -> float:
        """The float32 error of one array of a side from its own float64 result, in epsilons; 0 if it has none."""
        try:
            single, double = (quantity.of(operator, precision)[k] for precision in ("float32", "float64"))
            return largest(in_epsilons(single, double, self.size(quantity)[k], "float32"))
        except (RefusalError, ValueError, IndexError):  # another number of arrays or shape is a finding of its own
            return 0.0

    def pairs_of_sides(self, quantity: Quantity) -> dict[int, dict[str, Pair]]:
        """The port's and the reference's results, in each precision."""
        sizes = self.size(quantity)
        results = {
            precision: (quantity.of(self.port, precision), quantity.of(self.reference, precision))
            for precision in PRECISIONS
        }
        if self.elementwise and quantity.derivative.order:
            results = {
                precision: (self._where_defined(port, reference, precision), reference)
                for precision, (port, reference) in results.items()
            }
        return {
            k: {name: Pair(port[k], reference[k], size) for name, (port, reference) in results.items()}
            for k, size in enumerate(sizes)
        }

    def _where_defined(self, port: Arrays, reference: Arrays, precision: str) -> Arrays:
        """The port's derivatives; the reference's where neither side has a finite value, and so no derivative."""
        inputs = at_precision(self.inputs, precision)
        sides = [[wide(y) for y in side.value(inputs) if is_inexact(y)] for _, side in self.sides]
        nowhere = np.all([~np.isfinite(y) for values in sides for y in values], axis=0)
        if not nowhere.any():
            return port
        return tuple(
            np.where(nowhere, b, a).astype(a.dtype) if a.shape == b.shape == nowhere.shape else a
            for a, b in zip(port, reference, strict=True)
        )

    def with_sizes(self, quantity: Quantity, known: Truth) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Size, value and error of each array of a truth; its own size where a side's is less, as where that is 0."""
        for size, value, error in zip(self.size(quantity), known.values, known.errors, strict=True):
            # A size that is NaN, as where the reference's result is, says nothing.
            yield np.fmax(size, np.nan_to_num(np.abs(value), posinf=0.0)), value, error

    def from_truth(self, quantity: Quantity, operator: Recorded, known: Truth) -> Iterator[tuple[int, Mismatch]]:
        """Where a side differs from the truth by more than the truth may itself be off."""
        results = {precision: quantity.of(operator, precision) for precision in PRECISIONS}
        for k, (size, value, error) in enumerate(self.with_sizes(quantity, known)):
            reliable = is_reliable(known, value, error, size, results["float64"][k])
            pairs = {
                precision: Pair(
                    np.where(reliable, wide(result[k]), value), value, size, np.where(reliable, allowed(error), 0)
                )
                for precision, result in results.items()
                if result[k].shape == value.shape
            }
            if climb(pairs) is None:
                continue
            own, shared = self.own(quantity, operator, k), self.shared(quantity, k)
            mismatch = self.climb(quantity, k, pairs, [operator], own, shared)
            assert mismatch is not None
            yield k, mismatch


def is_reliable(known: Truth, value: np.ndarray, error: np.ndarray, size: np.ndarray, got: np.ndarray) -> np.ndarray:
    """Where a truth is sure enough to be compared with what was got: by its size, or by the largest of both if less."""
    both = np.abs(np.concatenate([value.ravel(), wide(got).ravel()]))
    most = both[np.isfinite(both)].max(initial=0.0)
    limit = RELIABLE if known.unit == truth.EPSILON else SINGLE_RELIABLE
    return np.asarray((error <= limit.value * np.minimum(size, most)) & np.isfinite(value))


def greatest(size: np.ndarray) -> float:
    """The largest that is finite."""
    return float(size[np.isfinite(size)].max(initial=0.0))


def typical(size: np.ndarray) -> float:
    """The median of those that are finite and not 0."""
    some = size[np.isfinite(size) & (size > 0)]
    return float(np.median(some)) if some.size else 0.0


def allowed(error: np.ndarray) -> np.ndarray:
    """How far a truth may be off, from the estimate of its error."""
    with np.errstate(invalid="ignore"):
        return np.asarray(TRUTH.value * error)


def make_inputs(inputs: object) -> tuple[Arrays, Structure]:
    """
    The arrays that are checked, and what is around them, from what the user gave.

    Raises
    ------
    InputError
        One is no array of numbers, or has a number that float32 cannot hold; or all are empty.
    """
    arrays, structure = take_apart(inputs, rounded)
    if not arrays:
        raise InputError("inputs have no array in them; give an array of numbers, or a tuple or a dict with such")
    floating = [x for x in arrays if is_inexact(x)]
    if floating and not any(x.size for x in floating):
        raise InputError("no floating or complex input has an element, so that nothing could show a fault; give some")
    return arrays, structure


def rounded(path: str, given: object) -> np.ndarray:
    """An input as an array whose floating numbers are float64, and numbers of float32."""
    try:
        x = np.asarray(given)
    except (ValueError, TypeError, RuntimeError) as error:  # PyTorch's, of what requires grad or is bfloat16
        raise InputError(f"{path} is no array that NumPy can read: {' '.join(str(error).split())}") from error
    if x.dtype.kind not in "fciub" and not is_inexact(x):
        raise InputError(f"{path} is {type(given).__name__} of dtype {x.dtype}; give an array of numbers")
    if is_inexact(x):
        with np.errstate(over="ignore"):
            single = wide(x.astype(np.complex64 if x.dtype.kind == "c" else np.float32))
        if not np.array_equal(np.isfinite(single), np.isfinite(wide(x))):
            raise InputError(f"{path} has numbers beyond float32's largest; give smaller ones")
        x = single
    return x
