"""`check_model`: whether a model is a right port of another, and the first layer that differs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from p3.parity.models.case import ModelCase, make_case
from p3.parity.models.equality import Comparison, compared
from p3.parity.models.findings import Findings
from p3.parity.models.links import Link, Match
from p3.parity.models.module import Module
from p3.parity.models.report import LayerRow, MatchRow, ModelReport
from p3.parity.models.tape import Event

Progress = Callable[[str, int, int], None]


def check_model(
    reference: Module,
    port: Module,
    inputs: object,
    *,
    match: Mapping[str, Any] | Match | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ModelReport:
    """As `p3.check_model`, of models that `as_module` has made."""
    case = make_case(reference, port, inputs, match, seed)
    stages: list[tuple[str, Callable[[], object]]] = [
        ("matching parameters", lambda: case.match),
        ("running the reference", lambda: case.sizes),
        ("running the layers of the port", lambda: case.by_layer),
        ("running the port from end to end", lambda: case.from_end_to_end),
    ]
    with np.errstate(all="ignore"):
        case = with_other_layouts(case)
    findings = Findings(case)
    stages.append(("looking for causes", lambda: findings.all))
    with np.errstate(all="ignore"):  # of masks that are the least number, and of whatever the models compute
        for done, (name, run) in enumerate(stages):
            if progress is not None:
                progress(name, done, len(stages))
            run()
        layers = layer_rows(case, findings)
    return ModelReport(
        reference.name,
        reference.framework,
        port.name,
        port.framework,
        findings.all,
        tuple(match_row(case, found) for found in compared(case.match, *case.torch_and_jax)),
        layers,
        case.match,
        tuple(notes(case)),
        case.mixed,
    )


def with_other_layouts(case: ModelCase) -> ModelCase:
    """
    The case; with square matrices of unknown layers transposed, where the models agree then and do not agree as it is.

    Where the port holds other numbers, and the layers' kinds are unknown, only this shows the layout.
    """
    guessed = {guess.link for guess in case.match.guessed if guess.of == "layout"}
    if not guessed or not case.from_end_to_end.failing:
        return case
    links = [
        replace(link, pattern=transposed(link.pattern)) if link in guessed and is_square(case, link) else link
        for link in case.match.links
    ]
    other = replace(case, given=replace(case.match, links=tuple(links)))
    return case if other.from_end_to_end.failing else other


def transposed(pattern: str) -> str:
    """The pattern of a matrix, or of one of several that are stacked, with its last two axes in the other order."""
    if not pattern:
        return "o i -> i o"
    left, right = pattern.split(" -> ")
    *stacked, a, b = right.split()
    other = " ".join([*stacked, b, a])
    return "" if other == left else f"{left} -> {other}"


def is_square(case: ModelCase, link: Link) -> bool:
    """Whether both arrays of a link are square matrices, alone or as one of several that are stacked."""
    arrays = {parameter.path: parameter.array for parameter in (*case.reference_parameters, *case.port_parameters)}
    shapes = [[size for size in part.of(arrays[part.path]).shape if size != 1] for part in (*link.torch, link.jax)]
    return all(len(shape) == 2 and len(set(shape)) == 1 for shape in shapes)


def match_row(case: ModelCase, found: Comparison) -> MatchRow:
    """A link, as a row."""
    link = found.link
    torch, jax = " + ".join(map(str, link.torch)), str(link.jax)
    reference, port = (torch, jax) if case.is_torch_first else (jax, torch)
    pattern = link.pattern or "as it is"
    if link.flipped:
        pattern += f", {' and '.join(link.flipped)} reversed"
    return MatchRow(reference, port, pattern, found.is_equal)


def layer_rows(case: ModelCase, findings: Findings) -> tuple[LayerRow, ...]:
    """The layers, with how far the sides are apart."""
    rows = []
    failing = {finding.path: finding.kind for finding in reversed(findings.all)}
    failing |= {path: finding.kind for finding in findings.all for path in finding.also}
    for unit in case.units:
        errors: list[dict[str, float]] = []
        for what, measures in (("value", findings.comparison.measures), ("cotangent", findings.backward.measures)):
            found: dict[str, float] = {}
            for spot, by_precision in measures.items():
                if spot.what == what and isinstance(spot.name, Event) and spot.name.point.layer == unit.reference:
                    for precision, measure in by_precision.items():
                        found[precision] = max(found.get(precision, 0.0), measure.largest)
            errors.append(found)
        kinds = (
            findings.kinds["reference"].get(unit.reference, ""),
            findings.kinds["port"].get(unit.port, ""),
        )
        kind = failing.get(unit.reference)
        verdict = "differs" if kind == "semantic" else kind if kind == "single precision" else "agrees"
        rows.append(LayerRow(unit.reference, unit.port, kinds, verdict, errors[0], errors[1]))
    return tuple(rows)


def notes(case: ModelCase) -> list[str]:
    """What else a reader should know."""
    found = []
    if not case.match.is_loaded:
        found.append("The two held different numbers; the reference's parameters were put into a copy of the port.")
    changed = [str(layout) for layout in case.port_scout[3] if not layout.is_identity]
    if changed:
        found.append(f"The port takes its inputs with {changed[0]}.")
    if case.port_scout[2]:
        found.append(f"The port is {case.port_scout[2]}.")
    for name, only in (("PyTorch", case.match.torch_only), ("JAX", case.match.jax_only)):
        if only:
            found.append(f"Only {name} has {', '.join(map(str, only[:8]))}{' and more' * (len(only) > 8)}.")
    return found
