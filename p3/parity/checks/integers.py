"""Whole numbers and truth values: labels, indices and masks, in other orders, repeated and all equal."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from p3.parity.case import PRECISIONS, Case, allowed
from p3.parity.checks.domain import raised
from p3.parity.checks.identities import products
from p3.parity.function import Arrays, is_inexact
from p3.parity.mismatch import Pair, climb, explain
from p3.parity.place import Place
from p3.parity.quantity import Quantity
from p3.parity.recorded import RefusalError, asked
from p3.parity.result import CheckResult, Finding, Refusal, judged, refused
from p3.parity.truth import true_jvp


class Variation(NamedTuple):
    """
    Inputs of which one has its whole numbers otherwise.

    Attributes
    ----------
    place : which array it is, and how the numbers are otherwise
    inputs : with the other numbers
    is_meant : whether the function surely takes such numbers; of a permutation it is not known that it takes repeats
    """

    place: Place
    inputs: Arrays
    is_meant: bool = True


def integers(case: Case) -> CheckResult:
    """The sides have the same value and gradient for other whole numbers and masks, made of the given ones."""
    findings: list[Finding] = []
    refusals: list[Refusal] = []
    tried: dict[str, None] = {}
    for variation in variations(case):
        for name, groups in (("value", ()), ("vjp", (case.cotangents,)))[: 2 if case.cotangents else 1]:
            quantity = Quantity(name, (variation.inputs, *groups))
            results: dict[str, Arrays] = {}
            for side, operator in case.sides:
                here = variation.place._replace(side=side, quantity=name)
                try:
                    results[side] = asked(operator, here, *quantity.groups)
                except RefusalError as refusal:
                    refusals.append(refusal.refusal)
                    if side == "port" and "reference" in results and variation.is_meant and not refusal.is_meant:
                        findings.append(raised(refusal))
            if len(results) < 2:
                break  # the numbers may not be what the function is for
            found = list(compared(case, variation.place, quantity, results))
            if found and not variation.is_meant and not shows_a_fault(case, quantity):
                break
            tried[variation.place.special] = None
            findings += found
            if findings and findings[-1].place.at == variation.place.at:
                break  # a gradient of other values says nothing new
    if not tried and not findings:
        if refusals:
            return refused("integers", refusals)
        return CheckResult("integers", "not applicable", "no input has whole numbers or truth values to vary")
    return judged("integers", findings, f"{', '.join(tried)}: alike")


def compared(case: Case, place: Place, quantity: Quantity, results: dict[str, Arrays]) -> Iterator[Finding]:
    """Where the sides differ in a quantity at other whole numbers."""
    shapes = [[y.shape for y in arrays] for arrays in results.values()]
    if shapes[0] != shapes[1]:
        text = f"it is of shapes {shapes[1]}, and the reference's of {shapes[0]}"
        yield Finding(place._replace(side="port", quantity=quantity.name), "the reference", text, quantity=quantity)
        return
    if all(case.is_near(got, expected, "float64") for expected, got in zip(*results.values(), strict=True)):
        return
    sizes = case.size(quantity)
    port, reference = ({p: quantity.of(side, p) for p in PRECISIONS} for side in (case.port, case.reference))
    ordinary = case.quantity(quantity.name)
    for k, (of, size) in enumerate(zip(case.places(ordinary, "port"), sizes, strict=True)):
        pairs = {p: Pair(port[p][k], reference[p][k], size) for p in PRECISIONS}
        if climb(pairs) is None:
            continue
        own = [case.own(quantity, operator, k) for _, operator in case.sides]
        mismatch = case.climb(ordinary, k, pairs, [case.reference, case.port], max(own), min(own))
        if mismatch is not None and not case.alike_within(quantity, k, pairs):
            here = place._replace(side="port", quantity=of.quantity, path=of.path, by=of.by)
            text = explain(port["float64"][k], reference["float64"][k], {})
            yield Finding(here, "the reference", text, mismatch, quantity=quantity)


def shows_a_fault(case: Case, quantity: Quantity) -> bool:
    """
    Whether a difference at numbers that the function may not be meant for is a fault, as the reference's vjp is true.

    It is not where rows are put at places of which some are equal; which row is last is each framework's choice.
    """
    if quantity.name != "vjp":
        return False

    def values(inputs: Arrays) -> Arrays:
        return case.differentiable(asked(case.reference.unrecorded, Place("reference", "value"), inputs))

    inputs, cotangents = quantity.groups
    try:
        pulled = quantity.of(case.reference)
        true = true_jvp(values, inputs, case.arguments, case.tangents)
    except RefusalError:
        return False
    off = sum(float((np.abs(v) * error).sum()) for v, error in zip(cotangents, true.errors, strict=True))
    pair = products(cotangents, true.values, pulled, case.tangents, 0.0)
    return not pair._replace(allowance=allowed(np.asarray(off))).beyond("float64").any()


def variations(case: Case) -> Iterator[Variation]:
    """
    The inputs with the numbers of one of whole numbers or truth values in another order, repeated, and all equal.

    All numbers are given ones. What is sorted stays so, as segments' numbers may have to be. It is not known whether a
    permutation of 0, 1, … that is not sorted has to be one. Random keys are left as they are.
    """
    random = case.random()
    for position, x in enumerate(case.inputs):
        if is_inexact(x) or position in case.keys or x.size < 2:
            continue
        is_sorted = x.ndim == 1 and bool((x[:-1] <= x[1:]).all())
        found = {"in another order": random.permutation(x.ravel()).reshape(x.shape)}
        found["with repeats"] = random.choice(np.unique(x), x.shape)
        is_meant = is_sorted or not is_permutation(x)
        if is_meant:
            found |= {f"all {number}": np.full_like(x, number) for number in (x.min(), x.max())}
        for special, numbers in found.items():
            varied = np.sort(numbers) if is_sorted else numbers
            if not np.array_equal(varied, x):
                inputs = (*case.inputs[:position], varied.astype(x.dtype), *case.inputs[position + 1 :])
                place = Place("", "", special=special, of=case.structure.paths[position])
                yield Variation(place, inputs, is_meant or special == "in another order")


def is_permutation(x: np.ndarray) -> bool:
    """Whether the numbers are 0, 1, … in some order."""
    return x.ndim == 1 and x.dtype.kind != "b" and np.array_equal(np.sort(x), np.arange(x.size))
