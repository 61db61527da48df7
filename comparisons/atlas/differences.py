"""The differences of the atlas: the places that the checker found, by the explanations that people wrote."""

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict

from comparisons.atlas.findings import Cell, Examined, Noticed
from comparisons.atlas.pairs import CHECKS, Pair

EXPLANATIONS = Path(__file__).with_name("explanations.toml")

Kind = Literal["bug", "accuracy", "convention", "coverage", "rounding", "unexplained"]
# From the one that matters most: a cell shows the first that it has.
KINDS: tuple[Kind, ...] = ("unexplained", "bug", "accuracy", "convention", "coverage", "rounding")
Names = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]
Verdict = Literal[
    "agree", "neither has it", "not applicable", "error of the checker",
    "unexplained", "bug", "accuracy", "convention", "coverage", "rounding",
]  # fmt: skip


class Where(BaseModel):
    """
    Some places of a pair: those whose fields are among the ones given here, and where none is given, any.

    Attributes
    ----------
    check, quantity, path, by, precision, at, of : as `Noticed` has them, one or several
    refuses : the framework that raises; where it is empty, both give numbers
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    check: Names = ()
    refuses: str = ""
    quantity: Names = ()
    path: Names = ()
    by: Names = ()
    precision: Names = ()
    at: Names = ()
    of: Names = ()

    def covers(self, place: Noticed) -> bool:
        """Whether a place is one of them."""
        return place.refuses == self.refuses and all(
            getattr(place, field) in names for field, names in self if field != "refuses" and names
        )


class Explanation(BaseModel):
    """
    Why the frameworks differ at some places, by somebody who understood it.

    Attributes
    ----------
    kind : rounding; accuracy, where both converge to the truth, one with fewer digits; convention, a choice, such as
        the gradient at a kink; coverage, where one refuses a mode or dtype; or bug
    at : for each pair, the places that it explains
    text : what each gives and at which input, and what is right
    snippet : a program that shows it, where the one that is made of the place is not the best
    confirmation : a program that fails where it is not so, without the checker; of each bug and accuracy
    surprise : the rank among the most surprising ones
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Kind
    at: dict[str, list[Where]]
    text: str
    snippet: str = ""
    confirmation: str = ""
    surprise: int | None = None

    def covers(self, pair: str, place: Noticed) -> bool:
        """Whether a place of a pair is explained by it."""
        return any(where.covers(place) for where in self.at.get(pair, []))


class Difference(BaseModel):
    """
    A difference of one pair.

    Attributes
    ----------
    kind, text, confirmation, surprise : the explanation's
    places : what the checker noticed
    snippet, output : a program that shows it, and what it prints
    """

    kind: Kind
    text: str
    places: list[Noticed]
    snippet: str = ""
    output: str = ""
    confirmation: str = ""
    surprise: int | None = None


class Entry(BaseModel):
    """A pair, the verdict and the checker's note for each check, and the differences."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    pair: Pair
    verdicts: dict[str, Verdict]
    cells: dict[str, Cell]
    differences: list[Difference]


class Atlas(BaseModel):
    """All pairs; `versions`, `machine`, `environment` and `date` say with what it was made."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    versions: dict[str, str]
    machine: str
    environment: dict[str, str]
    date: str
    entries: dict[str, Entry]

    def counts(self) -> dict[str, int]:
        """How many differences there are of each kind."""
        found = Counter(d.kind for entry in self.entries.values() for d in entry.differences)
        return {kind: found[kind] for kind in KINDS if kind in found or kind != "unexplained"}

    def cells(self) -> Counter[str]:
        """How many cells have each verdict."""
        return Counter(verdict for entry in self.entries.values() for verdict in entry.verdicts.values())

    def surprises(self) -> list[tuple[str, Difference]]:
        """The most surprising differences, in order, each with the name of the first pair that has it."""
        found: dict[int, tuple[str, Difference]] = {}
        for name, entry in self.entries.items():
            for difference in entry.differences:
                if difference.surprise is not None:
                    found.setdefault(difference.surprise, (name, difference))
        return [found[rank] for rank in sorted(found)]


def load_explanations(path: Path = EXPLANATIONS) -> list[Explanation]:
    """All explanations."""
    return [Explanation(**found) for found in tomllib.loads(path.read_text(encoding="utf-8"))["difference"]]


def entry(name: str, pair: Pair, examined: Examined, explanations: list[Explanation]) -> Entry:
    """What the checker found of a pair, explained."""
    differences: list[Difference] = []
    left = list(examined.places)
    for explanation in explanations:
        places = [place for place in left if explanation.covers(name, place)]
        left = [place for place in left if place not in places]
        if places:
            given = explanation.model_dump(exclude={"at", "snippet"})
            differences.append(
                Difference(**given, places=told(places), snippet=explanation.snippet or first_snippet(places))
            )
    for check in CHECKS:
        places = [place for place in left if place.check == check]
        rounding = [place for place in places if place.is_rounding]
        differences += [as_rounding(place) for place in rounding]
        places = [place for place in places if place not in rounding]
        if places:
            text = "Nobody has explained this yet: " + "; ".join(text for place in places for text in place.texts)
            differences.append(
                Difference(kind="unexplained", text=text, places=told(places), snippet=first_snippet(places))
            )
    return Entry(pair=pair, verdicts=verdicts(examined, differences), cells=examined.cells, differences=differences)


def as_rounding(place: Noticed) -> Difference:
    """A difference that is as many epsilons in one precision as in the other, as the checker says it."""
    return Difference(kind="rounding", text="; ".join(place.texts), places=told([place]), snippet=place.snippet)


def told(places: list[Noticed]) -> list[Noticed]:
    """What the checker says of the places, without their programs, of which the difference has one."""
    return [place.model_copy(update={"snippet": ""}) for place in places]


def first_snippet(places: list[Noticed]) -> str:
    """The first program that there is."""
    return next((place.snippet for place in places if place.snippet), "")


def verdicts(examined: Examined, differences: list[Difference]) -> dict[str, Verdict]:
    """The verdict on each check: the most important kind of its differences, or that there are none."""
    result: dict[str, Verdict] = {}
    for check, cell in examined.cells.items():
        kinds = {d.kind for d in differences if any(place.check == check for place in d.places)}
        if kinds:
            result[check] = min(kinds, key=KINDS.index)
        elif cell.verdict == "refused":
            result[check] = "neither has it"
        elif cell.verdict in ("not applicable", "error of the checker"):
            result[check] = cell.verdict
        else:
            result[check] = "agree"
    return result


def unused(examined: Mapping[str, Examined], explanations: list[Explanation]) -> Iterator[tuple[str, Where]]:
    """The pairs and entries of explanations that match no place, as after a framework has fixed the difference."""
    for explanation in explanations:
        for name, given in explanation.at.items():
            places = examined[name].places if name in examined else []
            for where in given:
                if not any(where.covers(place) for place in places):
                    yield name, where
