"""The report of a check: a table, JSON, and a page."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from p3.parity.case import Case
from p3.parity.difference import Difference
from p3.parity.result import CheckResult, Finding

COLOURS = {
    "passed": "green",
    "failed": "bold red",
    "single precision": "green",
    "refused": "yellow",
    "not applicable": "dim",
}
ORDER = ("semantic", "not reproduced", "edge", "single precision", "rounding")


@dataclass(frozen=True)
class ParityReport:
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

    @property
    def first(self) -> Difference | None:
        """The first difference; None where there is none."""
        return next(iter(self.differences), None)

    def to_html(self) -> str:
        """A page of its own, with a picture of the differences."""
        from p3.parity.page import page_of  # matplotlib and Jinja, which only a page needs

        return page_of(self)

    def _repr_html_(self) -> str:
        return self.to_html()

    def __getitem__(self, name: str) -> CheckResult:
        """The result of a check by its name."""
        return {check.name: check for check in self.checks}[name]

    def assert_ok(self) -> None:
        """Raise an AssertionError that says what is wrong, if anything is."""
        if not self.ok:
            raise AssertionError(str(self))

    def __str__(self) -> str:
        """The table, as plain text."""
        console = Console(file=StringIO(), width=150, force_terminal=False, color_system=None)
        console.print(self)
        return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]

    def __rich__(self) -> Group:
        """The table, and below it what is wrong."""
        table = Table("check", "verdict", "what it shows", title=Text(self.title), title_justify="left")
        for check in self.checks:
            table.add_row(check.name, Text(check.verdict, COLOURS[check.verdict]), Text(check.note))
        parts: list[Any] = [table]
        for check in self.failed:
            for finding in check.findings:
                parts += [Text(f"\n{line(check.name, finding)}")]
                parts += [Text(finding.snippet, "dim")] if finding.snippet else []
        return Group(*parts, Text(f"\n{self.summary}"))

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
