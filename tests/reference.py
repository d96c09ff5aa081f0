"""docs/configuration.md, made from the models of the file: `make docs` writes it, a test compares it.

Each table of the file is a section, each key a row: what it takes, its default, and the models' own description.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from kbatchd.config import Config
from kbatchd.config.faults import keys

HEAD = """\
# The configuration file

<!-- Made from the models by `make docs`; do not edit. -->

One TOML file, named with `--config FILE`. Every key has a default but the addresses and the routes. Unknown keys are
refused, and all faults are reported at once, each with its line: `kbatchd check-config --config FILE`. Durations are in
seconds, sizes in bytes. A relative path is taken from the directory of the file.
[config/kbatchd.toml](../config/kbatchd.toml) is the same as a file to start from.

A running daemon reads the file again on SIGHUP (`systemctl reload kbatchd`): see [operations](operations.md).
"""

#: Numbers from here on are written in groups of three digits.
LONG = 10_000

WORDS = {
    str: "string",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    Path: "path",
    datetime: "time",
    Any: "any value",
    type(None): "",
}


def reference() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_section("", Config)])


def _section(name: str, table: type[BaseModel]) -> Iterator[str]:
    """Give a table's own keys, then the tables within it."""
    fields = sorted(keys(table).items(), key=lambda item: not item[1].is_required())
    rows = [row for key, field in fields if (row := _row(key, field))]
    if name:
        yield f"## `{name}`\n"
        yield f"{_summary(table)}\n"
    else:
        yield "## Before the first table\n"
    if rows:
        yield "| key | takes | default | meaning |"
        yield "|---|---|---|---|"
        yield from rows
        yield ""
    for key, field in keys(table).items():
        inner = _table(field)
        if inner is not None:
            yield from _section(_head(name, key, field), inner)


def _head(outer: str, key: str, field: FieldInfo) -> str:
    path = f"{outer.strip('[]')}.{key}".strip(".")
    if outer and not _is_plain_table(field):
        return path
    return f"[[{path}]]" if get_origin(field.annotation) is tuple else f"[{path}]"


def _is_plain_table(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _summary(table: type[BaseModel]) -> str:
    text = " ".join((table.__doc__ or "").split()).partition(". ")[0].rstrip(".")
    text = text.partition(": ")[2] or text
    return f"{text[:1].upper()}{text[1:]}."


def _row(key: str, field: FieldInfo) -> str:
    if _table(field) is not None:
        return ""
    return f"| `{key}` | {_takes(field)} | {_default(field)} | {_cell(field.description or '')} |"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _table(field: FieldInfo) -> type[BaseModel] | None:
    """Return the table that a key is, or is a list, a union or a mapping of."""
    types = (each for each in _types(field.annotation) if isinstance(each, type))
    return next((each for each in types if issubclass(each, BaseModel)), None)


def _types(annotation: object) -> Iterator[object]:
    """Give the types within a type, without what is said about them."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal or not arguments:
        yield annotation
        return
    for argument in arguments:
        if get_origin(argument) is not None or isinstance(argument, type) or argument is Any:
            yield from _types(argument)


def _takes(field: FieldInfo) -> str:
    annotation = field.annotation
    types = list(_types(annotation))
    choices = [f'`"{choice}"`' for each in types if get_origin(each) is Literal for choice in get_args(each)]
    words = [WORDS[each] for each in types if each in WORDS]
    text = ", ".join(dict.fromkeys(each for each in [*choices, *words] if each))
    if tuple in {get_origin(each) for each in (annotation, *get_args(annotation), *_unwrapped(annotation))}:
        return f"list of {text}s"
    if get_origin(annotation) is dict:
        return "a table of properties"
    return text + _bounds(field)


def _unwrapped(annotation: object) -> Iterator[object]:
    """Give the types of a union without what is said about them."""
    for argument in get_args(annotation):
        yield from get_args(argument)[:1]


def _bounds(field: FieldInfo) -> str:
    low = next((each.ge for each in field.metadata if isinstance(each, annotated_types.Ge)), None)
    high = next((each.le for each in field.metadata if isinstance(each, annotated_types.Le)), None)
    if low is None and high is None:
        return ""
    return f" from {_number(low)}" + ("" if high is None else f" to {_number(high)}")


def _number(value: object) -> str:
    """Write a number as the file would have it: long ones in groups."""
    return f"{value:_}" if isinstance(value, int | float) and value >= LONG else str(value)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if field.default_factory is not None or default is None or default in ("", (), {}):
        return "[]" if default == () else "none" if field.default_factory is None else "see there"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, int | float):
        return f"`{_number(default)}`"
    return f'`"{default}"`'


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
