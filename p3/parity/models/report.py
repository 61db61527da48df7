"""The report of a check of a model: text, JSON, and a page."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Literal, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from p3.parity.difference import Difference
from p3.parity.models.findings import Finding
from p3.parity.models.links import Match
from p3.parity.report import ORDER, Report, jsonable, plain

MOST_ROWS = 12  # of layers or parameters in a table on a terminal
COLOURS = {"differs": "bold red", "single precision": "green", "agrees": "green"}


class MatchRow(NamedTuple):
    """
    A row of the table of parameters.

    Attributes
    ----------
    reference, port : the paths
    transformation : from PyTorch to JAX, as an einops pattern
    is_equal : whether the sides held the same numbers
    """

    reference: str
    port: str
    transformation: str
    is_equal: bool


class LayerRow(NamedTuple):
    """
    A row of the table of layers.

    Attributes
    ----------
    reference, port : the paths
    kinds : the classes of both
    verdict : of its output and of its derivatives, and of the code that leads to its input
    forward, backward : how far the sides are apart, by precision, in its epsilons
    """

    reference: str
    port: str
    kinds: tuple[str, str]
    verdict: Literal["agrees", "single precision", "differs"]
    forward: dict[str, float]
    backward: dict[str, float]


@dataclass(frozen=True)
class ModelReport(Report):
    """
    What a check of a model found.

    Attributes
    ----------
    reference, reference_framework, port, port_framework : names
    findings : what is wrong, each cause once; then what is computed in single precision
    rows : the parameters that are matched
    layers : the layers that are compared, in the order in which the reference runs them
    match : which parameters belong together, to be saved and given again
    notes : what else a reader should know, in words
    mixed : the half precision that the reference computes in when it is given float32; empty where it does not
    """

    reference: str
    reference_framework: str
    port: str
    port_framework: str
    findings: tuple[Finding, ...]
    rows: tuple[MatchRow, ...]
    layers: tuple[LayerRow, ...]
    match: Match
    notes: tuple[str, ...]
    mixed: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing differs but by rounding or single precision."""
        return all(finding.kind != "semantic" for finding in self.findings)

    @property
    def title(self) -> str:
        """What was checked against what."""
        return f"{self.port} ({self.port_framework}) as a port of {self.reference} ({self.reference_framework})"

    @property
    def summary(self) -> str:
        """The verdict in a line."""
        if not self.ok:
            count = sum(finding.kind == "semantic" for finding in self.findings)
            return f"The port differs: {count} cause{'s' * (count > 1)}."
        layers = f"{len(self.layers)} layers agree, each at the reference's own inputs and cotangents"
        return f"The port is right: {layers}, and so do outputs and gradients from end to end."

    @property
    def differences(self) -> tuple[Difference, ...]:
        """What differs, the first cause first; then single precision."""
        found = [difference_of(finding) for finding in self.findings]
        return tuple(sorted(found, key=lambda difference: ORDER.index(difference.kind)))

    def to_html(self) -> str:
        """A page of its own, with the layers, a picture of their differences, and the parameters."""
        from p3.parity.models.page import page_of  # matplotlib and Jinja, which only a page needs

        return page_of(self)

    def __rich__(self) -> Group:
        """The verdict and the causes, what else there is to know, and the layers and parameters."""
        causes = [finding for finding in self.findings if finding.kind == "semantic"]
        others = [finding for finding in self.findings if finding.kind != "semantic"]
        lines = [Text(self.summary)]
        lines += [Text(f"{'First cause' if k == 0 else 'Also'}: {cause}") for k, cause in enumerate(causes)]
        lines += [Text(f"No failure: {finding}") for finding in others]
        lines += [Text(note) for note in self.notes]
        parts = (self._layers(), Text(""), self._parameters())
        return Group(Text(self.title, "bold"), *lines, Text(""), *parts)

    def _layers(self) -> Table:
        """A row a layer; layers that are alike but for their numbers are one row where they agree."""
        table = Table("layer", "in the port", "verdict", "forward", "backward", box=None, padding=(0, 2, 0, 0))
        groups: dict[tuple[str, str], list[LayerRow]] = {}
        for row in self.layers:
            name = row.reference if row.verdict == "differs" else re.sub(r"\d+", "#", row.reference)
            groups.setdefault((name, row.verdict), []).append(row)
        for (name, verdict), rows in groups.items():
            port = rows[0].port if len(rows) == 1 else re.sub(r"\d+", "#", rows[0].port)
            shown = rows[0].reference if len(rows) == 1 else f"{name} ({len(rows)})"
            errors = [epsilons([getattr(row, way) for row in rows]) for way in ("forward", "backward")]
            table.add_row(Text(shown), Text(port), Text(verdict, COLOURS[verdict]), *errors)
        return table

    def _parameters(self) -> Table:
        """A row a parameter; those of layers that are alike but for their numbers are one row."""
        table = Table("parameter", "in the port", "transformation", "equal", box=None, padding=(0, 2, 0, 0))
        groups: dict[tuple[str, str, str, bool], list[MatchRow]] = {}
        for row in self.rows:
            names = (re.sub(r"\d+", "#", path) for path in (row.reference, row.port))
            groups.setdefault((*names, row.transformation, row.is_equal), []).append(row)  # type: ignore[arg-type]
        for (reference, port, transformation, is_equal), rows in groups.items():
            one = len(rows) == 1
            table.add_row(
                Text(rows[0].reference if one else f"{reference} ({len(rows)})"),
                Text(rows[0].port if one else port),
                Text(transformation),
                "yes" if is_equal else "no",
            )
        return table

    def to_json(self) -> str:
        """All of it, as JSON; numbers that are not finite are strings."""
        found = {
            "reference": {"name": self.reference, "framework": self.reference_framework},
            "port": {"name": self.port, "framework": self.port_framework},
            "ok": self.ok,
            "findings": [
                {
                    **{key: value for key, value in asdict(finding).items() if key != "spot"},
                    "mismatch": finding.mismatch and finding.mismatch._asdict(),
                    "text": str(finding),
                }
                for finding in self.findings
            ],
            "layers": [row._asdict() for row in self.layers],
            "parameters": [row._asdict() for row in self.rows],
            "torch_only": self.match.torch_only,
            "jax_only": self.match.jax_only,
            "notes": self.notes,
        }
        return json.dumps(jsonable(found), indent=1, default=plain, allow_nan=False, ensure_ascii=False)


def epsilons(rows: list[dict[str, float]]) -> str:
    """The largest differences of some rows, in each precision."""
    found = {precision: max(row.get(precision, 0.0) for row in rows) for row in rows for precision in row}
    return ", ".join(f"{value:.3g} {precision}" for precision, value in found.items())


def difference_of(finding: Finding) -> Difference:
    """A finding, as data."""
    m = finding.mismatch
    return Difference(
        side="port",
        check="model",
        mode="eager",
        quantity=finding.quantity,
        path=finding.path,
        kind=finding.kind,
        got=None if m is None else m.got,
        expected=None if m is None else m.expected,
        epsilons=None if m is None else m.epsilons,
        explanation=finding.explanation,
        against="the reference's own inputs",
        tolerance=None if m is None else m.tolerance,
        precision="" if m is None else m.precision,
    )
