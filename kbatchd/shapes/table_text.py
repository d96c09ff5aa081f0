"""An inferred table as text: the CREATE TABLE for psql, and the [[route]] for the file.

Pure functions; used by `kbatchd infer`.
"""

from __future__ import annotations

import json
import re
from datetime import date, time
from typing import TYPE_CHECKING

from kbatchd.errors import ConfigError
from kbatchd.paths import show_path
from kbatchd.printable import printable
from kbatchd.shapes.column_names import quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kbatchd.shapes.inference import Inferred, InferredColumn

#: A key of TOML that needs no quotes.
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")

#: A name in SQL, in quotes or not, behind its schema or not.
_NAME = r'(?:[^\W\d][\w$]*|"(?:[^"\0]|"")+")'
_TABLE = re.compile(rf"(?:{_NAME}\.)?{_NAME}")


def table_of_topic(topic: str) -> str:
    """Name the table for a topic: the topic's own name, as a plain one."""
    name = re.sub(r"[^a-z0-9_]", "_", topic.lower())[:63]
    return f"public.{quoted(f'_{name}'[:63] if name[0].isdigit() else name)}"


def check_name(table: str) -> None:
    """Raise ConfigError for what is no table's name in SQL."""
    if not _TABLE.fullmatch(table):
        raise ConfigError(f"{table!r} is not a table's name: write schema.table, as in SQL")


def create_table(inferred: Inferred, table: str) -> str:
    """Write the statement, with what a person should know in comments."""
    key = inferred.key
    primary = key if key is not None and key.type == "uuid" else None
    lines = []
    for number, column in enumerate(inferred.columns):
        text = f"    {quoted(column.name)} {column.type}"
        text += " PRIMARY KEY" if column is primary else " NOT NULL" * column.not_null
        text += "," * (number + 1 < len(inferred.columns))
        lines.append(text + (f"  -- {printable(note)}" if (note := _note(column)) else ""))
    parts = [f"CREATE TABLE {table} (", *lines, ");"]
    if key is not None and primary is None:
        parts.append(f"-- All different in the sample, and perhaps a key:  ALTER TABLE {printable(table)} "
                     f"ADD PRIMARY KEY ({printable(quoted(key.name))});")  # fmt: skip
    if inferred.repeated_key is not None:
        name = printable(inferred.repeated_key)
        key_list = f"[{printable(json.dumps(inferred.repeated_key))}]"
        parts.append(f"-- {name} comes more than once: for one row each, make it the PRIMARY KEY, and add to the "
                     f'route  mode = "upsert"  and  key = {key_list}')  # fmt: skip
    return "\n".join((*parts, *_remarks(inferred))) + "\n"


def _note(column: InferredColumn) -> str:
    """Say which field it is, where the column has another name, and what else a person should know."""
    return ": ".join(filter(None, ["" if column.is_named_alike else show_path(column.path), column.note]))


def route(topic: str, table: str, columns: Sequence[InferredColumn]) -> str:
    """Write the route, with the mapping of the columns that are not the field of their own name as it is."""
    mapped = [column for column in columns if column.unit is not None or not column.is_named_alike]
    head = ["[[route]]", f"topic = {toml_value(topic)}", f"table = {toml_value(table)}"]
    return "\n".join([*head, *(["", "[route.columns]", *map(_entry, mapped)] if mapped else []), ""])


def _entry(column: InferredColumn) -> str:
    field = toml_value(show_path(column.path))
    said = field if column.unit is None else f"{{ field = {field}, unit = {toml_value(column.unit)} }}"
    return f"{column.name if BARE_KEY.fullmatch(column.name) else toml_value(column.name)} = {said}"


def toml_value(x: object) -> str:
    """Write a value of the file. JSON's strings are TOML's as well, what is not printable escaped as TOML does it."""
    if isinstance(x, dict):
        return f"{{ {', '.join(f'{toml_value(name)} = {toml_value(inner)}' for name, inner in x.items())} }}"
    if isinstance(x, list):
        return f"[{', '.join(map(toml_value, x))}]"
    if isinstance(x, (date, time)):
        return x.isoformat()
    text = json.dumps(x, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)


def commented(text: str) -> str:
    """Make each line a comment of SQL."""
    return "".join(f"-- {printable(line)}".rstrip() + "\n" for line in text.splitlines())


def _remarks(inferred: Inferred) -> Iterator[str]:
    for name, why in inferred.left_out:
        yield f"-- Left out: field {printable(json.dumps(name))}: {why}"
    if inferred.refused:
        yield f"-- {inferred.refused} of the records are not JSON objects: they will be dead letters"
