"""The commands' flags, one for each field of the specification, so that neither can drift from it."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from p3.errors import InputError
from p3.fitting.section import describe, kinds
from p3.fitting.spec import TrainingSpec


class WholeNumbers(click.ParamType[tuple[int, ...]]):
    """Whole numbers between commas."""

    name = "INTEGER,..."

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        """The numbers."""
        try:
            return tuple(int(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not whole numbers between commas, as in 100,200", parameter, context)


def specification_flags() -> Iterator[click.Option]:
    """A flag for each field, dotted where the file has a table, without a default of its own."""
    for name, field in TrainingSpec.model_fields.items():
        tables = kinds(field.annotation)
        if not tables:
            yield _flag(name, [field], "")
        fields: dict[str, list[FieldInfo]] = {}
        owners: dict[str, list[str]] = {}
        for tag, table in tables.items():
            for inner, inner_field in table.model_fields.items():
                fields.setdefault(inner, []).append(inner_field)
                owners.setdefault(inner, []).append(tag)
        for inner, same in fields.items():
            yield _flag(f"{name}.{inner}", same, ", ".join(owners[inner]) if len(same) < len(tables) else "")


def _flag(path: str, fields: list[FieldInfo], owners: str) -> click.Option:
    """The flag of a field that some kinds of a table have."""
    flag, kind = "--" + path.replace("_", "-"), _type(fields[0].annotation)
    metavar = None
    if isinstance(kind, click.Choice) and len(fields) > 1:  # the name of a kind of table: the table says what it may be
        metavar = "|".join(str(field.default) for field in fields)
        kind, fields = str, fields[:1]
    if kind is bool:
        flag += "/--no-" + flag.removeprefix("--")
    limits = "; ".join([*([f"of {owners}"] if owners else []), *_limits(fields)])
    name = path.replace(".", "__")
    return click.Option([flag, name], type=kind, default=None, metavar=metavar, help=f"{_said(fields)} [{limits}]")


def _type(annotation: Any) -> Any:
    """What click makes of a field's type."""
    if get_origin(annotation) is Literal:
        return click.Choice(get_args(annotation))
    if get_origin(annotation) is tuple:
        return WholeNumbers()
    for member in get_args(annotation):  # of X | None, and of what has bounds
        return _type(member)
    return annotation


def _said(fields: list[FieldInfo]) -> str:
    """What the fields' descriptions say, once."""
    return " Or: ".join(dict.fromkeys(str(field.description) for field in fields))


def _limits(fields: list[FieldInfo]) -> Iterator[str]:
    """The defaults and the bounds of fields of one name, for their help."""
    defaults = dict.fromkeys(
        "none" if field.default is None or field.is_required() else str(field.default) for field in fields
    )
    yield f"default {' or '.join(defaults)}"
    bounds = [bound for member in (fields[0], *_members(fields[0].annotation)) for bound in member.metadata]
    for said, name in (("above", "gt"), ("at least", "ge"), ("below", "lt"), ("at most", "le")):
        yield from (f"{said} {getattr(bound, name)}" for bound in bounds if hasattr(bound, name))


def _members(annotation: Any) -> Iterator[FieldInfo]:
    """The parts of X | None, with their bounds."""
    for member in get_args(annotation):
        yield from (part for part in getattr(member, "__metadata__", ()) if isinstance(part, FieldInfo))


def specification(spec_file: str | None, flags: dict[str, Any], default: TrainingSpec | None = None) -> TrainingSpec:
    """The file's specification, or the default one, with the flags that were given laid over it."""
    spec = (default or TrainingSpec()) if spec_file is None else TrainingSpec.from_toml(spec_file)
    changes: dict[str, Any] = {}
    for path, value in flags.items():
        if value is not None:
            table, _, field = path.rpartition("__")
            (changes.setdefault(table, {}) if table else changes)[field] = value
    try:
        return spec.replace(changes)
    except ValidationError as error:
        raise InputError(describe(error, TrainingSpec)) from error
