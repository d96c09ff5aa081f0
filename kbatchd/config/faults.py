"""The words for what is wrong in a configuration file: pydantic's errors, each as one line about one key.

pydantic names a fault by the model, the union's branch and its own rules; a user knows the file's tables and keys. Used
by file.py while the file is loaded, before anything is forked.
"""

from __future__ import annotations

import difflib
import json
from datetime import date, datetime, time
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo
    from pydantic_core import ErrorDetails

#: Where a key stands, as pydantic names it: ("route", 1, "table").
Where = tuple[str | int, ...]

#: What is wrong, by key.
Faults = dict[Where, str]

#: What TOML calls the values that are not numbers.
_KINDS = {
    bool: "a boolean",
    str: "a string",
    list: "a list",
    dict: "a table",
    datetime: "a time",
    date: "a date",
    time: "a time",
}


def fault(what: str) -> PydanticCustomError:
    """Make the error of one of our rules; its text is shown as it is."""
    return PydanticCustomError("fault", "{what}", {"what": what})


def keys(table: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return a table's keys as the file names them."""
    return {field.alias or name: field for name, field in table.model_fields.items()}


def in_our_words(error: ValidationError, root: type[BaseModel]) -> Faults:
    """Turn pydantic's errors about the model `root` into ours; several about one key (a union's branches) are one."""
    faults: Faults = {}
    for detail in error.errors(include_url=False):
        if detail["type"] != "default_factory_not_called":  # the topic it leans on has a fault of its own
            where, table, field = _resolve(detail["loc"], root)
            faults.setdefault(where, _what(detail, table, field, root))
    return faults


def _resolve(loc: Where, root: type[BaseModel]) -> tuple[Where, type[BaseModel], FieldInfo | None]:
    """Find the key pydantic speaks of, without the parts it adds for a union's branches, and the table it is in."""
    table = root
    field: FieldInfo | None = None
    free_name = False
    for at, part in enumerate(loc):
        if isinstance(part, int) or free_name:
            free_name = False
            continue
        field = keys(table).get(part)
        inner = _inner_table(field) if field else None
        if inner is None:
            # A list's element or a free property is the last part of ours.
            return loc[: at + 1 + bool(field and get_origin(field.annotation))], table, field
        table = inner
        free_name = (
            field is not None and get_origin(field.annotation) is dict
        )  # [route.columns]: the next part is a name of the user's
    return loc, table, field


def _inner_table(field: FieldInfo) -> type[BaseModel] | None:
    """Return the table a key holds: its type, or the element of its tuple."""
    for annotation in (field.annotation, *get_args(field.annotation)):
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
    return None


def _what(detail: ErrorDetails, table: type[BaseModel], field: FieldInfo | None, root: type[BaseModel]) -> str:
    value = detail["input"]
    if detail["type"] == "fault":
        return detail["msg"]
    if field is None:
        return f"is an unknown key; {_nearest(str(detail['loc'][-1]), table, root)}"
    if detail["type"] == "missing":
        return f"is missing; {field.description}"
    if detail["type"] == "literal_error":
        shown = json.dumps(value, ensure_ascii=False, default=str)
    else:
        shown = _KINDS.get(type(value), str(value))  # never a string's own text: it may be a secret in a wrong place
    return f"is {shown}; allowed: {_allowed(field)}"


def _nearest(key: str, table: type[BaseModel], root: type[BaseModel]) -> str:
    """Say what an unknown key was probably meant to be."""
    near = difflib.get_close_matches(key, keys(table), n=1)
    if near:
        return f"did you mean {near[0]}?"
    for name, field in keys(root).items():
        inner = _inner_table(field)
        if inner is not None and key in keys(inner):
            return f"{key} belongs to [{name}]"
    return f"allowed: {', '.join(keys(table))}"


def _allowed(field: FieldInfo) -> str:
    annotation = _not_none(field.annotation)
    if get_origin(annotation) is Literal:
        return " or ".join(f'"{choice}"' for choice in get_args(annotation))
    if annotation in {int, float}:
        bounds = {type(bound): getattr(bound, type(bound).__name__.lower()) for bound in field.metadata}
        low, high = bounds.get(annotated_types.Ge), bounds.get(annotated_types.Le)
        number = "a whole number" if annotation is int else "a number of seconds"
        return f"{number} from {low:_}" + ("" if high is None else f" to {high:_}")
    if _inner_table(field) is not None:
        return "tables, [[route]]" if get_origin(annotation) is tuple else "a table"
    if get_origin(annotation) is tuple:
        return "a list of strings"
    if get_origin(annotation) is dict:
        return "a string, a number or a boolean for each property"
    return "a string"


def _not_none(annotation: Any) -> Any:  # noqa: ANN401 - so are annotations
    """Return what a key holds when it is there."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    return kinds[0] if get_origin(annotation) in {Union, UnionType} and len(kinds) == 1 else annotation
