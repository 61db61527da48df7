"""What the tables of the specification have in common, and how a mistake in one is told."""

from collections.abc import Collection, Iterator
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, ValidationError


class Section(BaseModel):
    """Frozen, so that a result can keep its specification; strict, so that `steps = "2000"` is refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", validate_default=True)


def named(default: str) -> Discriminator:
    """Tells the kinds of a table apart by the field `name`, which may be left out for the default one."""
    return Discriminator(
        lambda given: given.get("name", default) if isinstance(given, dict) else getattr(given, "name", default)
    )


def kinds(annotation: Any) -> dict[str, type[Section]]:
    """The models that a field's value may be one of, by their tags, if there are several; none where it is no table."""
    if isinstance(annotation, type):
        return {"": annotation} if issubclass(annotation, Section) else {}
    found: dict[str, type[Section]] = {}
    for member in get_args(annotation):
        tags = [part.tag for part in getattr(member, "__metadata__", ()) if isinstance(part, Tag)]
        if tags:
            found[tags[0]] = get_args(member)[0]
    return found


def merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The fields with changes, table by table; one that is told to be of another kind keeps nothing of what it was."""

    def change(old: Any, new: Any) -> Any:
        if not (isinstance(old, dict) and isinstance(new, dict)):
            return new
        is_other = new.get("name", old.get("name")) != old.get("name") or ("file" in new and "file" not in old)
        return new if is_other else merged(old, new)

    return fields | {name: change(fields.get(name), value) for name, value in changes.items()}


def leaves(fields: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field that is no table, by its dotted path."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def first_difference(a: Section, b: Section, ignoring: Collection[str]) -> tuple[str, Any, Any] | None:
    """The path of the first field that differs, and both values."""
    of_a, of_b = (dict(leaves(section.model_dump(exclude=set(ignoring)))) for section in (a, b))
    for path in of_a | of_b:
        values = of_a.get(path, "not there"), of_b.get(path, "not there")
        if values[0] != values[1]:
            return path, *values
    return None


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """A validation error of `model` on one line: the field, the value given, and what is allowed."""
    first, *others = error.errors(include_url=False)
    path, table = _resolved(model, first["loc"])
    field = ".".join(path)
    match first["type"]:
        case "extra_forbidden":
            message = f"{field} is not a field; allowed here: {', '.join(table.model_fields)}"
        case "model_type":
            message = f"{field} = {first['input']!r}: it must be a table with {', '.join(table.model_fields)}"
        case "value_error":
            message = f"{field}: {first['ctx']['error']}".removeprefix(": ")
        case "union_tag_invalid":
            message = f"{field}.name = {first['ctx']['tag']!r}: it must be one of {first['ctx']['expected_tags']}"
        case "missing":
            message = f"{field} is missing"
        case _:
            given = repr(first["input"])
            given = given if len(given) < 80 else f"{given[:60]} ..."
            message = f"{field} = {given}: {first['msg'].replace('Input should be', 'it must be')}".removeprefix(" = ")
    return message + (f" (and {len(others)} more)" if others else "")


def _resolved(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], type[BaseModel]]:
    """The path of field names that an error's location stands for, and the table where it ends."""
    path: list[str] = []
    parts: Iterator[str] = map(str, location)
    for part in parts:
        path.append(part)
        choices = kinds(model.model_fields[part].annotation) if part in model.model_fields else {}
        tag = "" if "" in choices else next(parts, None) if choices else None
        if tag is not None:
            model = choices[tag]
    return path, model
