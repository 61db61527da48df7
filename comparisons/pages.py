"""What several comparisons share: the repository's root, the parts of pages, the machine, and times for people."""

import os
import platform
from pathlib import Path

import click

ROOT = Path(__file__).parent.parent  # the repository, in which the commands run


def bounds(comparison: str) -> tuple[str, str]:
    """The lines between which a comparison's command writes its part of a page."""
    return f"<!-- {comparison}: written by python -m comparisons.{comparison} -->", f"<!-- end of {comparison} -->"


def write_part(page: Path, part: str) -> None:
    """Replace a part of a page, from the part's first line to its last."""
    begin, *_, end = part.splitlines()
    before, opened, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not (opened and closed):  # what stands behind would be lost
        raise click.ClickException(f"{page} has no part between the lines {begin!r} and {end!r}; add the two lines")
    page.write_text(before + part + after, encoding="utf-8")


def machine() -> str:
    """The number of cores and the processor that this runs on."""
    name = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    return f"{os.cpu_count()} cores of {name}"


def seconds(value: float) -> str:
    """A time to three digits, in the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"
