"""Fields of a configuration that are given by name and hold the object itself."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final, get_args

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import core_schema

from flowgen.core import InputError, lookup

__all__ = ["Choice", "Record", "Section", "default", "explain"]


@final
@dataclass(frozen=True, eq=False)
class Record:
    """Metadata of a field that holds an object of the dataclass `made`, and is given as a table of its parameters."""

    kind: str
    made: type

    def read(self, value: Any) -> Any:
        if isinstance(value, self.made):
            return value
        if not isinstance(value, Mapping):
            names = ", ".join(field.name for field in dataclasses.fields(self.made))
            raise InputError(f"{self.kind} is a table of {names}")
        return _construct(self.kind, self.made, value)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _schema(self.read, dataclasses.asdict)


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """Metadata of a field that holds an object of a table, and is given by its name or as {name = ..., parameters}.

    What the table has is a class, whose parameters those are, or an object without any.
    """

    kind: str
    table: Mapping[str, Any]

    def read(self, value: Any) -> Any:
        if isinstance(value, self._classes) or value in self.table.values():
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
            raise InputError(f"{self.kind} needs a name: choose from {', '.join(self.table)}")
        parameters = {key: x for key, x in value.items() if key != "name"}
        made, title = lookup(self.kind, value["name"], self.table), f"{self.kind} {value['name']}"
        if isinstance(made, type):
            return _construct(title, made, parameters)
        _check_none(title, parameters)
        return made

    def write(self, value: Any) -> Any:
        name = next(name for name, made in self.table.items() if made in (value, type(value)))
        return {"name": name, **dataclasses.asdict(value)} if type(value) in self._classes else name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return _schema(self.read, self.write)

    @property
    def _classes(self) -> tuple[type, ...]:
        return tuple(made for made in self.table.values() if isinstance(made, type))


def default(made: Callable[..., Any], argument: str) -> Any:
    """Return the default of an argument of what a setting is for, so that it is written once."""
    return inspect.signature(made).parameters[argument].default


def _schema(read: Callable[[Any], Any], write: Callable[[Any], Any]) -> core_schema.CoreSchema:
    written = core_schema.plain_serializer_function_ser_schema(write)
    return core_schema.no_info_plain_validator_function(read, serialization=written)


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
