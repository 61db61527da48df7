"""What a check comes to."""

from collections.abc import Iterable
from itertools import compress
from typing import Literal, NamedTuple

from p3.parity.difference import Kind
from p3.parity.mismatch import Mismatch, describe_ladder
from p3.parity.place import Place
from p3.parity.quantity import Quantity

Verdict = Literal["passed", "failed", "single precision", "refused", "not applicable"]


class Refusal(NamedTuple):
    """
    A side raises.

    Attributes
    ----------
    place : whose it is, and where
    error : what was raised, in a line
    """

    place: Place
    error: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.place}: {self.error}"


class Finding(NamedTuple):
    """
    One thing that is not as it should be.

    Attributes
    ----------
    place : whose it is, and where
    against : what it was held against
    explanation : what it looks like
    mismatch : the worst element, where two arrays were compared
    inputs : the inputs there
    truth : the true value there, where it is known
    snippet : Python that shows it
    quantity : what differs, and of what
    refusal : what was raised, where that is what is wrong
    fault : the planted fault that the inputs do not show
    """

    place: Place
    against: str
    explanation: str
    mismatch: Mismatch | None = None
    inputs: tuple[complex | float, ...] = ()
    truth: complex | float | None = None
    snippet: str = ""
    quantity: Quantity | None = None
    refusal: Refusal | None = None
    fault: str = ""

    @property
    def kind(self) -> Kind:
        """As of its mismatch; whatever else is found is "semantic"."""
        return "semantic" if self.mismatch is None else self.mismatch.kind

    @property
    def is_wrong(self) -> bool:
        """Whether it is more than rounding, and no edge."""
        return self.kind == "semantic"

    def __str__(self) -> str:
        """One line."""
        line = f"{self.place}, against {self.against}: {self.explanation}"
        if self.mismatch is None:
            return line
        m = self.mismatch
        if m.kind == "edge":  # where nobody says which is right
            return line
        where = f" at {m.element}" if m.element else ""
        where += f", input {', '.join(f'{x:.9g}' for x in self.inputs)}" if self.inputs else ""
        known = "" if self.truth in (None, m.expected) else f" (true: {self.truth:.9g})"
        got, expected = digits(m.got, m.expected), digits(m.expected, m.got)
        return f"{line}; worst{where}: {got}, expected {expected}{known}; {describe_ladder(m)}"


class CheckResult(NamedTuple):
    """
    What one check comes to.

    Attributes
    ----------
    name : of the check
    verdict : "passed"; "failed"; "single precision", which is no failure, where the sides agree as well as float32
        allows that one of them computes in inside; "refused" where a side raises; or "not applicable"
    note : the figures, or the reason, in a line
    findings : what is wrong, and differences that are rounding
    refusals : what a side has not, and says so by raising
    seconds : that it took
    """

    name: str
    verdict: Verdict
    note: str
    findings: tuple[Finding, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    seconds: float = 0.0

    @property
    def is_right(self) -> bool:
        """Whether something was checked, and is right."""
        return self.verdict in ("passed", "single precision")


def judged(
    name: str,
    findings: Iterable[Finding],
    note: str,
    refusals: Iterable[Refusal] = (),
    edges: Literal["report", "fail"] = "report",
) -> CheckResult:
    """Failed where a finding is more than rounding, and no edge that is only reported; or else passed."""
    found, refused = list(findings), once(refusals)
    failing = [f.is_wrong or (edges == "fail" and f.kind == "edge") for f in found]
    wrong = list(compress(found, failing))
    findings = (*wrong, *(f for f, fails in zip(found, failing, strict=True) if not fails))
    if wrong:
        return CheckResult(name, "failed", briefly(name, wrong[0]), findings, refused)
    note = "; ".join([note, *(f"refused: {text}" for text in told(refused))])
    kinds = [finding.kind for finding in findings]
    if "rounding" in kinds:
        note += f"; {kinds.count('rounding')} beyond the tolerance, and rounding"
    if "edge" in kinds:
        note += f"; {kinds.count('edge')} edges"
    if "single precision" in kinds:
        return CheckResult(name, "single precision", f"{note}; something inside is float32", findings, refused)
    return CheckResult(name, "passed", note, findings, refused)


def once(refusals: Iterable[Refusal]) -> tuple[Refusal, ...]:
    """The refusals without duplicates; compared by repr, since NaN is not equal to itself, and −0 equals 0."""
    return tuple({repr(refusal): refusal for refusal in refusals}.values())


def told(refusals: Iterable[Refusal]) -> list[str]:
    """The refusals in words; what a side raises in several places, once."""
    places: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in refusals:
        places.setdefault((refusal.place.side, refusal.error), []).append(refusal)
    return [
        f"{same[0]}" + (f" (and in {len(same) - 1} other place{'s' * (len(same) > 2)})" if len(same) > 1 else "")
        for same in places.values()
    ]


def digits(x: complex | float, *others: complex | float) -> str:
    """A number in as few digits as tell it from others that are near it."""
    short = f"{x:.9g}"
    return short if all(x == other or f"{other:.9g}" != short for other in others) else f"{x:.17g}"


def briefly(check: str, finding: Finding) -> str:
    """The place and the explanation of a finding, without the side."""
    quantity = "" if finding.place.quantity == check else finding.place.quantity
    place = str(finding.place._replace(side="", quantity=quantity))
    return f"{place}: {finding.explanation}" if place else finding.explanation


def refused(name: str, refusals: Iterable[Refusal], findings: Iterable[Finding] = ()) -> CheckResult:
    """Nothing could be checked, since sides raise; the findings are rounding."""
    found = once(refusals)
    return CheckResult(name, "refused", "; ".join(told(found)), tuple(findings), found)
