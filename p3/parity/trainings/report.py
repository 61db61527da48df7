"""The report of a check of a training: text, JSON, and a page."""

import json
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from p3.parity.difference import Difference
from p3.parity.report import ORDER, Report, jsonable, plain
from p3.parity.trainings.findings import Finding

MOST_ROWS = 12  # of quantities or parameters in a table on a terminal


class QuantityRow(NamedTuple):
    """
    A row of the table of quantities.

    Attributes
    ----------
    quantity : what is compared in each step
    worst : the largest difference of any array at any step, by precision, in its epsilons
    step : where that of float32 is
    """

    quantity: str
    worst: dict[str, float]
    step: int


class Trace(NamedTuple):
    """
    What is recorded of each step.

    Attributes
    ----------
    losses : of the reference, and of the port by itself, in float32
    apart : how far the port is from the reference in one step from the same state, by precision, in its epsilons
    drift : how far the parameters of the port by itself are from the reference's, as a fraction of their norm
    rounding : the same of the reference in float32 and in float64: what rounding alone does
    """

    losses: tuple[np.ndarray, np.ndarray]
    apart: dict[str, np.ndarray]
    drift: np.ndarray
    rounding: np.ndarray


@dataclass(frozen=True)
class TrainingReport(Report):
    """
    What a check of a training found.

    Attributes
    ----------
    reference, reference_framework, port, port_framework : names
    steps : that were compared
    findings : what is wrong, each cause once; then what is no failure
    quantities : how far the sides are apart in each quantity, each step from the reference's own state
    trace : the losses and the differences of each step
    free : how far apart the port is that runs by itself, in words
    unshown : which of the mistakes that porters make these batches could not have shown, in words
    shown : how many mistakes they could have shown
    accepted : the accepted differences that were there, in words
    notes : what else a reader should know, in words
    """

    reference: str
    reference_framework: str
    port: str
    port_framework: str
    steps: int
    findings: tuple[Finding, ...]
    quantities: tuple[QuantityRow, ...]
    trace: Trace
    free: str
    shown: int
    unshown: tuple[str, ...]
    accepted: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing differs but by rounding or single precision."""
        return all(finding.kind != "semantic" for finding in self.findings)

    @property
    def title(self) -> str:
        """What was checked against what."""
        return f"{self.port} ({self.port_framework}) trained as {self.reference} ({self.reference_framework})"

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        if not self.ok:
            count = sum(finding.kind == "semantic" for finding in self.findings)
            return f"The trainings differ: {count} cause{'s' * (count > 1)}."
        return (
            f"The trainings do the same: in each of {self.steps} steps, taken from the reference's own state, nothing "
            "differs by more than rounding."
        )

    @property
    def differences(self) -> tuple[Difference, ...]:
        """What differs, the first cause first; then single precision and rounding."""
        found = [difference_of(finding) for finding in self.findings]
        return tuple(sorted(found, key=lambda difference: ORDER.index(difference.kind)))

    def to_html(self) -> str:
        """A page of its own, with pictures of the losses and of the differences step by step."""
        from p3.parity.trainings.page import page_of  # matplotlib and Jinja, which only a page needs

        return page_of(self)

    def __rich__(self) -> Group:
        """The verdict and the causes, the free run, what else there is to know, and the quantities."""
        causes = [finding for finding in self.findings if finding.kind == "semantic"]
        others = [finding for finding in self.findings if finding.kind != "semantic"]
        lines = [Text(self.summary)]
        lines += [Text(f"{'First cause' if k == 0 else 'Also'}: {cause}") for k, cause in enumerate(causes)]
        lines += [Text(f"No failure: {finding}") for finding in others]
        lines += [Text(text) for text in (self.free, *self.accepted, *self.notes, self.power) if text]
        return Group(*lines, Text(""), self._quantities())

    @property
    def power(self) -> str:
        """Whether these batches could have shown mistakes, in words."""
        if not self.shown + len(self.unshown):
            return ""
        text = f"These steps could have shown {self.shown} of {self.shown + len(self.unshown)} common mistakes"
        if not self.unshown:
            return f"{text}."
        return f"{text}, and not that {'; or that '.join(self.unshown[:3])}" + (
            f"; or {len(self.unshown) - 3} more." if len(self.unshown) > 3 else "."
        )

    def _quantities(self) -> Table:
        """A row a quantity."""
        names = ("quantity", "float64 epsilons", "float32 epsilons", "at step")
        table = Table(*names, box=None, padding=(0, 2, 0, 0), pad_edge=False)
        for row in self.quantities:
            half = {name: x for name, x in row.worst.items() if name not in ("float64", "float32")}
            cells = [f"{row.worst[name]:.3g}" if name in row.worst else "" for name in ("float64", "float32")]
            if half:
                cells[1] = ", ".join(f"{x:.3g} {name}" for name, x in half.items())
            table.add_row(row.quantity, *cells, str(row.step))
        return table

    def to_json(self) -> str:
        """All of it, as JSON; numbers that are not finite are strings."""
        found = {
            "reference": {"name": self.reference, "framework": self.reference_framework},
            "port": {"name": self.port, "framework": self.port_framework},
            "ok": self.ok,
            "steps": self.steps,
            "findings": [
                {
                    **asdict(finding),
                    "mismatch": finding.mismatch and finding.mismatch._asdict(),
                    "also": [key._asdict() for key in finding.also],
                    "text": str(finding),
                }
                for finding in self.findings
            ],
            "quantities": [row._asdict() for row in self.quantities],
            "trace": {
                "losses": [x.tolist() for x in self.trace.losses],
                "apart": {name: x.tolist() for name, x in self.trace.apart.items()},
                "drift": self.trace.drift.tolist(),
                "rounding": self.trace.rounding.tolist(),
            },
            "free": self.free,
            "shown": self.shown,
            "unshown": self.unshown,
            "accepted": self.accepted,
            "notes": self.notes,
        }
        return json.dumps(jsonable(found), indent=1, default=plain, allow_nan=False, ensure_ascii=False)


def difference_of(finding: Finding) -> Difference:
    """A finding, as data."""
    m = finding.mismatch
    return Difference(
        side="port",
        check="training",
        mode="eager",
        quantity=finding.quantity,
        path=finding.path,
        kind=finding.kind,
        got=None if m is None else m.got,
        expected=None if m is None else m.expected,
        epsilons=None if m is None else m.epsilons,
        explanation=finding.explanation,
        against="the reference",
        tolerance=None if m is None else m.tolerance,
        step=finding.step,
        precision="" if m is None else m.precision,
    )
