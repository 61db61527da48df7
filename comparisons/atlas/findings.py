"""What the checker finds of a pair, as plain data: at which place the frameworks differ, and how to see it."""

import io
from contextlib import redirect_stdout
from typing import Any, Literal

import jax
from pydantic import BaseModel

from comparisons.atlas.pairs import CHECKS, Pair
from comparisons.atlas.snippets import at_element, snippet
from p3.parity import ParityReport
from p3.parity.case import Case
from p3.parity.function import Arrays
from p3.parity.place import EAGER, Place
from p3.parity.quantity import Quantity
from p3.parity.result import CheckResult, Finding, Refusal, Verdict

SIDES = ("reference", "port")
PYTORCH_FIRST = dict(zip(SIDES, ("PyTorch", "JAX"), strict=True))
JAX_FIRST = dict(zip(SIDES, ("JAX", "PyTorch"), strict=True))


class Noticed(BaseModel):
    """
    Where in a check the frameworks differ.

    Attributes
    ----------
    check : its name
    refuses : the framework that raises there, and the other not; empty where both give numbers
    quantity, path, by, precision : as `p3.parity.place.Place` has them
    at : the special number, with nine digits, or what else is special of the inputs
    of : the path of the input that is special
    is_rounding : whether the checker takes it for rounding
    texts : what it says
    snippet : a program that shows it, if one can be made
    """

    check: str
    refuses: str = ""
    quantity: str
    path: str = ""
    by: str = ""
    precision: str = ""
    at: str = ""
    of: str = ""
    is_rounding: bool
    texts: list[str]
    snippet: str = ""

    @property
    def key(self) -> tuple[str, ...]:
        """What tells it from others."""
        return (
            self.check,
            self.refuses,
            self.quantity,
            self.path,
            self.by,
            self.precision,
            self.at,
            self.of,
        )

    @property
    def name(self) -> str:
        """Where it is, in words."""
        by = f"the {self.by} of {self.path}" if self.by else self.path
        at = f"at {self.at}" + (f" of {self.of}" if self.of else "") if self.at else self.of
        refuses = f"{self.refuses} refuses" if self.refuses else ""
        quantity = self.quantity if self.quantity != self.check or self.refuses else ""
        return f"{self.check}: " + ", ".join(filter(None, [refuses, quantity, by, self.precision, at]))


class Cell(BaseModel):
    """What a check of a pair comes to: the checker's verdict, or "error of the checker", and its note."""

    verdict: Verdict | Literal["error of the checker"]
    note: str


class Examined(BaseModel):
    """All that the checker says of a pair: a cell for each check, and the places where the frameworks differ."""

    cells: dict[str, Cell]
    places: list[Noticed]


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
    places: dict[tuple[str, ...], Noticed] = {}
    for report, names in zip(reports, (PYTORCH_FIRST, JAX_FIRST), strict=True):
        for check in report.checks:
            for place in places_of(pair, report, check, names):
                if place.key in places:
                    known = places[place.key]
                    known.texts = list(dict.fromkeys([*known.texts, *place.texts]))
                    known.is_rounding &= place.is_rounding
                else:
                    places[place.key] = place
    return Examined(cells=cells, places=list(places.values()))


def named(text: str, names: dict[str, str]) -> str:
    """The text, for people, with the frameworks' names for the sides."""
    for side, name in names.items():
        text = text.replace(f"the {side}", name)
    return text


def places_of(pair: Pair, report: ParityReport, check: CheckResult, names: dict[str, str]) -> list[Noticed]:
    """The places of a check, one for each finding and for each refusal of one side alone."""
    found = []
    refusals = {repr(refusal) for refusal in check.refusals}  # since NaN is not equal to itself
    for finding in check.findings:
        if repr(finding.refusal) in refusals:
            continue  # which is a place of its own
        found.append(
            noticed(
                check.name,
                finding.place,
                is_rounding=finding.kind == "rounding",
                texts=[named(str(finding), names)],
                snippet=of_finding(pair, report.case, finding),
            )
        )
    refused = {repr(refusal.place) for refusal in check.refusals}
    for refusal in check.refusals:
        other = SIDES[1 - SIDES.index(refusal.place.side)]
        if repr(refusal.place._replace(side=other)) not in refused:
            found.append(
                noticed(
                    check.name,
                    refusal.place,
                    refuses=names[refusal.place.side],
                    is_rounding=False,
                    texts=[named(str(refusal), names)],
                    snippet=of_refusal(pair, report.case, refusal),
                )
            )
    return found


def noticed(check: str, place: Place, **fields: Any) -> Noticed:
    """What was noticed at a place."""
    at = place.special if place.number is None else f"{place.number:.9g}"
    return Noticed(
        check=check,
        quantity=place.quantity,
        path=place.path,
        by=place.by,
        precision=place.precision,
        at=at,
        of=place.of,
        **fields,
    )


def of_finding(pair: Pair, case: Case, finding: Finding) -> str:
    """The program that shows a finding: of its element alone where that is all that matters."""
    quantity, mismatch, dtype = finding.quantity, finding.mismatch, finding.place.precision
    if quantity is None:
        return program(pair, case, case.quantity("value"), dtype, shown="dtype") if dtype else ""
    if mismatch is None:
        return program(pair, case, quantity, "float32", shown="shape")
    groups = quantity.groups
    shape = groups[0][0].shape
    if case.elementwise and len(mismatch.element) == len(shape) and all(x.shape == shape for g in groups for x in g):
        quantity = at_element(quantity, mismatch.element)
    return program(pair, case, quantity, dtype or mismatch.precision)


def of_refusal(pair: Pair, case: Case, refusal: Refusal) -> str:
    """The program that shows who raises."""
    place = refusal.place
    precision = place.precision or "float32"
    if place.mode != EAGER or (place.special and place.special not in case.awkward):
        return ""
    if place.special or place.number is not None:
        if place.quantity != "value":
            return ""
        inputs = case.awkward[place.special] if place.special else with_number(case, place)
        return program(pair, case, Quantity("value", (inputs,)), precision, raises=True)
    quantity = case.quantity(place.quantity)
    if case.elementwise and all(x.ndim == 1 for x in case.inputs):
        quantity = at_element(quantity, (0,))
    return program(pair, case, quantity, precision, raises=True)


def with_number(case: Case, place: Place) -> Arrays:
    """The inputs with a place's number in the first element of one."""
    inputs = list(case.inputs)
    position = case.structure.paths.index(place.of) if place.of else case.arguments[0]
    inputs[position] = inputs[position].copy()
    inputs[position][(0,) * inputs[position].ndim] = place.number
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
