"""The report of a check: a table, JSON, and a page."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from p3.parity.case import Case
from p3.parity.difference import Difference
from p3.parity.quantity import DERIVATIVES
from p3.parity.result import CheckResult, Finding

COLOURS = {
    "passed": "green",
    "failed": "bold red",
    "single precision": "green",
    "refused": "yellow",
    "not applicable": "dim",
}
# The checks of which a failure can follow from that of a value or a derivative.
CONSEQUENT = (
    "vjp", "jvp", "vjp of vjp", "jvp of vjp", "vjp of jvp", "jvp of jvp", "adjoint", "special values", "integers"
)  # fmt: skip
MOST_LINES = 3  # of one check
LONGEST = 160  # characters of a refusal
ORDER = ("semantic", "not reproduced", "edge", "single precision", "rounding")


class Report(ABC):
    """What a check of operators, models or trainings found, in the forms that all have."""

    @property
    @abstractmethod
    def ok(self) -> bool:
        """Whether nothing is wrong."""

    @property
    @abstractmethod
    def differences(self) -> tuple[Difference, ...]:
        """What differs, the gravest first."""

    @property
    def first(self) -> Difference | None:
        """The first difference; None where there is none."""
        return next(iter(self.differences), None)

    @abstractmethod
    def to_html(self) -> str:
        """A page of its own."""

    def _repr_html_(self) -> str:
        return self.to_html()

    def assert_ok(self) -> None:
        """Raise an AssertionError that says what is wrong, if anything is."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        """The report, as plain text."""
        return as_text(self.__rich__())

    @abstractmethod
    def __rich__(self) -> Group:
        """The report, for a terminal."""


@dataclass(frozen=True)
class ParityReport(Report):
    """
    What every check came to.

    Attributes
    ----------
    reference, reference_framework, port, port_framework : names
    case : what was checked
    checks : the results, in order
    """

    reference: str
    reference_framework: str
    port: str
    port_framework: str
    case: Case
    checks: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return not self.failed

    @property
    def failed(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "failed")

    @property
    def title(self) -> str:
        """What was checked against what."""
        return f"{self.port} ({self.port_framework}) as a port of {self.reference} ({self.reference_framework})"

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        counts = [f"{sum(c.verdict == verdict for c in self.checks)} {verdict}" for verdict in COLOURS]
        return f"{'The port is right' if self.ok else 'The port is not shown to be right'}: {', '.join(counts)}."

    @property
    def differences(self) -> tuple[Difference, ...]:
        """What is wrong, in the order of the checks; then edges, single precision and rounding."""
        found = [
            difference_of(check.name, finding)
            for check in self.checks
            for finding in check.findings
            if finding.place.side != "inputs"
        ]
        return tuple(sorted(found, key=lambda difference: ORDER.index(difference.kind)))

    def to_html(self) -> str:
        """A page of its own, with a picture of the differences."""
        from p3.parity.page import page_of  # matplotlib and Jinja, which only a page needs

        return page_of(self)

    def __getitem__(self, name: str) -> CheckResult:
        """The result of a check by its name."""
        return {check.name: check for check in self.checks}[name]

    def __str__(self) -> str:
        """The table, as plain text."""
        return as_text(self.__rich__())

    def __rich__(self) -> Group:
        """The verdict and the first cause, the checks, what else is wrong, a program that shows it, and the verdict."""
        verdict = [Text(self.summary)]
        if self.causes:
            verdict += [Text(f"First cause: {line(*self.causes[0])}")]
        parts: list[Any] = [Text(self.title, "bold"), *verdict, Text(""), self._table()]
        others = list(self.others())
        parts += [Text(""), *map(Text, others)] if others else []
        parts += [Text("\nThis program shows it:"), Text(self.snippet, "dim")] if self.snippet else []
        return Group(*parts, *([Text(""), *verdict] if self.causes else []))

    def _table(self) -> Table:
        """A row a check; where something is wrong, what is right or refused for one reason is in a row together."""
        table = Table("check", "verdict", "what it shows", box=None, padding=(0, 2, 0, 0))
        rows: dict[tuple[str, str], list[str]] = {}
        for check in self.checks:
            note = check.note
            if self.ok:
                table.add_row(check.name, Text(check.verdict, COLOURS[check.verdict]), Text(note))
                continue
            if check.verdict == "failed":
                cause = self.follows_from(check)
                note = f"follows from {cause}" if cause else note
            elif check.verdict == "refused":
                note = shortened(str(check.refusals[0]._replace(place=check.refusals[0].place._replace(quantity=""))))
            else:
                note = ""
            rows.setdefault((check.verdict, note), []).append(check.name)
        if not self.ok:
            for verdict in ("failed", "refused", "single precision", "not applicable", "passed"):
                for (found, note), names in rows.items():
                    if found == verdict:
                        table.add_row(", ".join(names), Text(verdict, COLOURS[verdict]), Text(note))
        return table

    def others(self) -> Iterator[str]:
        """What is wrong besides the first cause, and no consequence of another; then edges."""
        for check in self.failed:
            found = [finding for name, finding in self.causes[1:] if name == check.name]
            yield from (line(check.name, finding) for finding in found[:MOST_LINES])
            if len(found) > MOST_LINES:
                yield f"{check.name}: {len(found) - MOST_LINES} more"
        for check in self.checks:
            edges = [f for f in check.findings if f.kind == "edge"] if check.verdict != "failed" else []
            for quantity in dict.fromkeys(finding.place.quantity for finding in edges):
                of_it = [finding.place.at for finding in edges if finding.place.quantity == quantity]
                yield f"edges, no failure: {quantity} differs {', '.join(dict.fromkeys(of_it))}"

    @cached_property
    def causes(self) -> tuple[tuple[str, Finding], ...]:
        """What is wrong, each once, by the name of its check: without what follows from something before it."""
        found: list[tuple[str, Finding]] = []
        seen: set[str] = set()
        for check in self.failed:
            for finding in check.findings:
                place = repr(finding.place)
                if self.is_failure(finding) and place not in seen and not self._cause_of(check, finding):
                    found.append((check.name, finding))
                seen.add(place)
        return tuple(found)

    @property
    def snippet(self) -> str:
        """A program that shows the first cause that one can be made of; empty where there is none."""
        return next((finding.snippet for _, finding in self.causes if finding.snippet), "")

    def is_failure(self, finding: Finding) -> bool:
        """Whether a finding is one that its check fails for."""
        return finding.is_wrong or (finding.kind == "edge" and self.case.edges == "fail")

    def follows_from(self, check: CheckResult) -> str:
        """The name of an earlier check that all failures of a check follow from; empty where one does not."""
        causes = [self._cause_of(check, finding) for finding in check.findings if self.is_failure(finding)]
        return causes[0] if causes and all(causes) else ""

    def _cause_of(self, check: CheckResult, finding: Finding) -> str:
        """
        The name of an earlier check that failed for what a finding is computed by; empty where none did.

        Special values and second derivatives are wrong where the value or the first derivative is. What a mode, dtype
        or shape alone changes follows from nothing.
        """
        if check.name not in CONSEQUENT or not finding.place.quantity:
            return ""
        needed = DERIVATIVES[finding.place.quantity].combinators
        for earlier in self.failed:
            if earlier.name == check.name:
                return ""
            if earlier.name not in DERIVATIVES:
                continue
            made_by = DERIVATIVES[earlier.name].combinators
            is_part = made_by == needed[: len(made_by)] or not made_by
            # A finding against the truth is of its own side alone, and follows from no difference of the sides.
            sides = {f.place.side for f in earlier.findings if self.is_failure(f)}
            if is_part and finding.place.side in sides:
                return earlier.name
        return ""

    def to_json(self) -> str:
        """All of it, as JSON; numbers that are not finite are strings."""
        return json.dumps(
            {
                "reference": {"name": self.reference, "framework": self.reference_framework},
                "port": {"name": self.port, "framework": self.port_framework},
                "ok": self.ok,
                "inputs": [{"dtype": x.dtype.name, "shape": list(x.shape)} for x in self.case.inputs],
                "checks": [
                    {
                        **check._asdict(),
                        "findings": [as_json(finding) for finding in check.findings],
                        "refusals": [
                            jsonable({**refusal.place._asdict(), "error": refusal.error}) for refusal in check.refusals
                        ],
                    }
                    for check in self.checks
                ],
            },
            indent=1,
            default=plain,
            allow_nan=False,
            ensure_ascii=False,
        )


def as_text(report: Group) -> str:
    """A report as plain text."""
    file = StringIO()
    Console(file=file, width=150, force_terminal=False, color_system=None).print(report)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def shortened(text: str) -> str:
    """The text, or its beginning where it is long."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def line(check: str, finding: Finding) -> str:
    """A finding in one line, without the quantity if the check has the same name."""
    quantity = "" if finding.place.quantity == check else finding.place.quantity
    return f"{check}: {finding._replace(place=finding.place._replace(quantity=quantity))}"


def difference_of(check: str, finding: Finding) -> Difference:
    """A finding of a check, as data."""
    m = finding.mismatch
    return Difference(
        side=finding.place.side,
        check=check,
        mode=finding.place.circumstances or finding.place.mode,
        quantity=finding.place.quantity,
        path=finding.place.path,
        kind=finding.kind,
        got=None if m is None else m.got,
        expected=None if m is None else m.expected,
        epsilons=None if m is None else m.epsilons,
        explanation=finding.explanation,
        against=finding.against,
        tolerance=None if m is None else m.tolerance,
        by=finding.place.by,
        precision="" if m is None else m.precision,
    )


def as_json(finding: Finding) -> dict[str, Any]:
    """A finding, with numbers as they are where JSON has them."""
    found = finding._asdict()
    del found["quantity"]  # arrays, which the snippet has where they are few
    found |= found.pop("place")._asdict()
    found["mismatch"] = None if finding.mismatch is None else finding.mismatch._asdict()
    found["refusal"] = None if finding.refusal is None else finding.refusal.error
    return {key: jsonable(value) for key, value in found.items()}


def jsonable(value: Any) -> Any:
    """Numbers that JSON does not have, as strings."""
    if isinstance(value, Mapping):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(item) for item in value]
    if isinstance(value, complex) or (isinstance(value, float) and not np.isfinite(value)):
        return str(value)
    return value


def plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    return value.item()
