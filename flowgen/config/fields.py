"""Fields of a configuration that are given by name and hold the object itself."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, TypeAdapter, ValidationError

from flowgen.core import InputError, lookup

__all__ = ["Section", "choice", "explain", "named", "record"]


def record(kind: str, made: type) -> Any:
    """Declare a field given as a table of the parameters of the dataclass `made`, which holds the object itself."""

    def build(value: Any) -> Any:
        if isinstance(value, made):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"{kind} is a table of {', '.join(field.name for field in dataclasses.fields(made))}")
        return _construct(kind, made, value)

    return Annotated[Any, PlainValidator(build), PlainSerializer(dataclasses.asdict)]


def choice(kind: str, table: Mapping[str, Any]) -> Any:
    """Declare a field that is given as a name, or as a table {name = ..., parameters}, and holds the object itself.

    What the table has is a class, whose parameters those are, or an object without any.
    """
    classes = tuple(made for made in table.values() if isinstance(made, type))

    def build(value: Any) -> Any:
        if isinstance(value, classes) or any(value is made for made in table.values()):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise InputError(f"{kind} needs a name: choose from {', '.join(table)}")
        parameters = {key: x for key, x in value.items() if key != "name"}
        made, title = lookup(kind, value["name"], table), f"{kind} {value['name']}"
        if made in classes:
            return _construct(title, made, parameters)
        _check_none(title, parameters)
        return made

    def dump(value: Any) -> Any:
        name = next(name for name, made in table.items() if made in (value, type(value)))
        return {"name": name, **dataclasses.asdict(value)} if type(value) in classes else name

    return Annotated[Any, PlainValidator(build), PlainSerializer(dump)]


def named(kind: str, table: Mapping[str, Any]) -> Any:
    """Declare a field that is given as a name, and holds the object of that name."""

    def build(value: Any) -> Any:
        return value if value in table.values() else lookup(kind, str(value), table)

    def dump(value: Any) -> str:
        return next(name for name, made in table.items() if made is value)

    return Annotated[Any, PlainValidator(build), PlainSerializer(dump)]


def _construct(kind: str, made: type, parameters: Mapping[str, Any]) -> Any:
    """Construct made(**parameters), with the parameters checked against the fields of the dataclass."""
    known = {field.name: field for field in dataclasses.fields(made)}
    if not known:
        _check_none(kind, parameters)
    for key in parameters:
        lookup(f"parameter of {kind}", key, known)
    try:
        return TypeAdapter(made).validate_python(dict(parameters))
    except ValidationError as error:
        raise InputError("; ".join(f"{kind}: {explain(dict(detail), None)}" for detail in error.errors())) from error


def _check_none(kind: str, parameters: Mapping[str, Any]) -> None:
    if parameters:
        raise InputError(f"{kind} has no parameters, and no {next(iter(parameters))}")


class Section(BaseModel):
    """A part of the configuration: immutable, without unknown keys, without infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def explain(detail: dict[str, Any], root: type[BaseModel] | None = None) -> str:
    """Return one clause of a validation error of the section `root`: the key, and what is wrong with it."""
    place = [str(part) for part in detail["loc"]]
    if detail["type"] == "extra_forbidden" and root is not None:
        section: Any = root
        for part in place[:-1]:
            section = section.model_fields[part].annotation
            section = next(filter(None, get_args(section)), section)  # of `Section | None`, the section
        near = difflib.get_close_matches(place[-1], section.model_fields, n=1, cutoff=0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        return f"unknown configuration key {'.'.join(place)}{hint}: choose from {', '.join(section.model_fields)}"
    if detail["type"] == "value_error":  # one of ours, which says all
        return detail["msg"].removeprefix("Value error, ")
    value = detail.get("input")
    given = f", not {value!r}" if isinstance(value, str | int | float) else ""
    return ": ".join(filter(None, [".".join(place), detail["msg"]])) + given
