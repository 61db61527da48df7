"""What a check comes to."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from p3.parity.mismatch import Mismatch, describe_ladder
from p3.parity.quantity import Quantity

Verdict = Literal["passed", "failed", "refused", "not applicable"]


class Finding(NamedTuple):
    """
    One thing that is not as it should be.

    Attributes
    ----------
    side : "the reference" or "the port"
    against : what it was held against
    part : which output, or which argument's gradient
    explanation : what it looks like
    mismatch : the worst element, where there is one
    inputs : the inputs there
    truth : the true value there, where it is known
    snippet : Python that shows it
    path : of the array, in the reference's inputs or outputs
    where : at which special values, where it is at such
    quantity : what differs, and of what
    """

    side: str
    against: str
    part: str
    explanation: str
    mismatch: Mismatch | None = None
    inputs: tuple[complex | float, ...] = ()
    truth: complex | float | None = None
    snippet: str = ""
    where: str = ""
    quantity: Quantity | None = None
    path: str = ""

    def __str__(self) -> str:
        """One line."""
        line = f"{self.side}, {self.part}, against {self.against}: {self.explanation}"
        if self.mismatch is None:
            return line
        m = self.mismatch
        where = f" at {m.element}" if m.element else ""
        where += f", input {', '.join(f'{x:.9g}' for x in self.inputs)}" if self.inputs else ""
        known = "" if self.truth is None else f" (true: {self.truth:.9g})"
        return (
            f"{line}; worst{where}: {m.got:.9g}, expected {m.expected:.9g}{known}, {m.epsilons:.3g} {m.precision} "
            f"epsilons; {describe_ladder(m)}"
        )


class Refusal(NamedTuple):
    """
    A side raises.

    Attributes
    ----------
    side : "the reference" or "the port"
    doing : which quantity, after the mode or dtype that it was in
    error : what was raised, in a line
    """

    side: str
    doing: str
    error: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.side}, {self.doing}: {self.error}"


class CheckResult(NamedTuple):
    """
    What one check comes to.

    Attributes
    ----------
    name : of the check
    verdict : "passed", "failed", "refused" where a side raises, or "not applicable"
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


def judged(name: str, findings: Iterable[Finding], note: str, refusals: Iterable[Refusal] = ()) -> CheckResult:
    """Failed where a finding is more than rounding, or else passed."""
    found, refused = list(findings), tuple(dict.fromkeys(refusals))
    note = "; ".join([note, *(f"refused: {refusal}" for refusal in refused)])
    wrong = [finding for finding in found if finding.mismatch is None or finding.mismatch.kind == "semantic"]
    findings = (*wrong, *(finding for finding in found if finding not in wrong))
    if wrong:
        return CheckResult(name, "failed", wrong[0].explanation, findings, refused)
    if findings:
        note += f"; {len(findings)} beyond the tolerance, and rounding"
    return CheckResult(name, "passed", note, findings, refused)


def refused(name: str, refusals: Iterable[Refusal], findings: Iterable[Finding] = ()) -> CheckResult:
    """Nothing could be checked, since sides raise; the findings are rounding."""
    found = tuple(dict.fromkeys(refusals))
    return CheckResult(name, "refused", "; ".join(map(str, found)), tuple(findings), found)
