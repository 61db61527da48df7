"""What the checker finds of a pair, as plain data: at which place the frameworks differ, and how to see it."""

import io
from contextlib import redirect_stdout
from typing import Any, Literal

import jax
from pydantic import BaseModel

from comparisons.atlas.pairs import CHECKS, Pair
from comparisons.atlas.snippets import at_element, snippet
from p3.parity import ParityReport
from p3.parity.case import DTYPES, Case
from p3.parity.function import Arrays
from p3.parity.quantity import Quantity
from p3.parity.result import CheckResult, Finding, Refusal

SIDES = ("the reference", "the port")
PYTORCH_FIRST = dict(zip(SIDES, ("PyTorch", "JAX"), strict=True))
JAX_FIRST = dict(zip(SIDES, ("JAX", "PyTorch"), strict=True))
METHODS = ("value", "vjp", "jvp", "vjp of vjp", "jvp of vjp")


class Place(BaseModel):
    """
    Where in a check the frameworks differ.

    Attributes
    ----------
    check : its name
    name : what differs, and where
    is_rounding : whether the checker takes it for rounding
    texts : what it says
    snippet : a program that shows it, if one can be made
    """

    check: str
    name: str
    is_rounding: bool
    texts: list[str]
    snippet: str = ""


class Cell(BaseModel):
    """What a check of a pair comes to: the checker's verdict, or "error of the checker", and its note."""

    verdict: Literal["passed", "failed", "refused", "not applicable", "error of the checker"]
    note: str


class Examined(BaseModel):
    """All that the checker says of a pair: a cell for each check, and the places where the frameworks differ."""

    cells: dict[str, Cell]
    places: list[Place]


def examine(pair: Pair) -> Examined:
    """Run the checker on a pair."""
    try:
        reports = pair.check()
    except Exception as error:  # whatever the checker cannot express
        cell = Cell(verdict="error of the checker", note=f"{type(error).__name__}: {error}")
        return Examined(cells=dict.fromkeys(CHECKS, cell), places=[])
    cells = {
        check.name: Cell(verdict=check.verdict, note=named(check.note, PYTORCH_FIRST)) for check in reports[0].checks
    }
    places: dict[str, Place] = {}
    for report, names in zip(reports, (PYTORCH_FIRST, JAX_FIRST), strict=True):
        for check in report.checks:
            for place in places_of(pair, report, check, names):
                if place.name in places:
                    known = places[place.name]
                    known.texts = list(dict.fromkeys([*known.texts, *place.texts]))
                    known.is_rounding &= place.is_rounding
                else:
                    places[place.name] = place
    return Examined(cells=cells, places=list(places.values()))


def named(text: str, names: dict[str, str]) -> str:
    """The text with the frameworks' names for the sides."""
    for side, name in names.items():
        text = text.replace(f"{side}'s", f"{name}'s").replace(side, name)
    return text


def places_of(pair: Pair, report: ParityReport, check: CheckResult, names: dict[str, str]) -> list[Place]:
    """The places of a check, one for each finding and for each refusal of one side alone."""
    found = []
    for finding in check.findings:
        if any(str(refusal) in finding.explanation for refusal in check.refusals):
            continue  # which is a place of its own
        name = f"{check.name}: {finding.part}{f' {finding.where}' if finding.where else ''}"
        m = finding.mismatch
        found.append(
            Place(
                check=check.name,
                name=name,
                is_rounding=m is not None and m.kind == "rounding",
                texts=[named(str(finding), names)],
                snippet=of_finding(pair, report.case, finding),
            )
        )
    refused = {(refusal.side, refusal.doing) for refusal in check.refusals}
    for refusal in check.refusals:
        other = SIDES[1 - SIDES.index(refusal.side)]
        if (other, refusal.doing) not in refused:
            found.append(
                Place(
                    check=check.name,
                    name=f"{check.name}: {names[refusal.side]} refuses {refusal.doing}",
                    is_rounding=False,
                    texts=[f"{names[refusal.side]}, {refusal.doing}: {refusal.error}"],
                    snippet=of_refusal(pair, report.case, refusal),
                )
            )
    return found


def of_finding(pair: Pair, case: Case, finding: Finding) -> str:
    """The program that shows a finding: of its element alone where that is all that matters."""
    if finding.where in DTYPES and finding.quantity is None:
        return program(pair, case, case.quantity("value"), finding.where, shown="dtype")
    quantity, mismatch = finding.quantity, finding.mismatch
    if quantity is None:
        return ""
    if mismatch is None:
        return program(pair, case, quantity, "float32", shown="shape")
    precision = finding.where if finding.where in DTYPES else mismatch.precision
    groups = quantity.groups
    shape = groups[0][0].shape
    if case.elementwise and len(mismatch.element) == len(shape) and all(x.shape == shape for g in groups for x in g):
        quantity = at_element(quantity, mismatch.element)
    return program(pair, case, quantity, precision)


def of_refusal(pair: Pair, case: Case, refusal: Refusal) -> str:
    """The program that shows who raises: where and what is in the refusal's words."""
    *modes, method = refusal.doing.split(", ")
    numbers = [mode for mode in modes if mode.startswith("at ") and mode not in case.awkward]
    at = {mode: with_point(case, mode) for mode in numbers} | dict(case.awkward)
    if method not in METHODS or any(mode not in (*DTYPES, *at) for mode in modes):
        return ""
    precision = next((mode for mode in modes if mode in DTYPES), "float32")
    inputs = next((at[mode] for mode in modes if mode in at), case.inputs)
    if inputs is case.inputs:
        quantity = case.quantity(method)
        if case.elementwise and all(x.ndim == 1 for x in case.inputs):
            quantity = at_element(quantity, (0,))
        return program(pair, case, quantity, precision, raises=True)
    if method != "value":
        return ""
    return program(pair, case, Quantity("value", "value", (inputs,)), precision, raises=True)


def with_point(case: Case, mode: str) -> Arrays:
    """The inputs with a number in the first element of one, as in "at nan of argument 1"."""
    number, *argument = mode.removeprefix("at ").split(" of argument ")
    inputs = list(case.inputs)
    position = int(argument[0]) if argument else case.arguments[0]
    inputs[position] = inputs[position].copy()
    inputs[position][(0,) * inputs[position].ndim] = float(number)
    return tuple(inputs)


def program(pair: Pair, case: Case, quantity: Quantity, precision: str, **options: Any) -> str:
    """The program of a quantity."""
    return snippet(pair.torch, pair.jax, list(pair.inputs), case.values, quantity, precision, **options)


def run(program: str) -> str:
    """What a program prints."""
    output = io.StringIO()
    before = jax.config.jax_enable_x64
    try:
        with redirect_stdout(output):
            exec(program, {})
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}, in the program\n{program}") from error
    finally:
        jax.config.update("jax_enable_x64", before)
    return output.getvalue()
