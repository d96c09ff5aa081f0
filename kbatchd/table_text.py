"""An inferred table as text: the CREATE TABLE for psql, and the [[route]] for the file.

Pure functions; used by `kbatchd infer`.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.inference import Inferred

_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
#: Words that are no names without quotes: PostgreSQL's reserved ones.
_RESERVED: Final = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
    column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
    from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
    localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
    returning right select session_user similar some symmetric system_user table tablesample then to trailing true union
    unique user using variadic verbose when where window with
    """.split()  # noqa: SIM905 - a word a line would be a page
)


def quoted(name: str) -> str:
    """Quote a name where SQL needs it."""
    return name if _PLAIN.fullmatch(name) and name not in _RESERVED else '"' + name.replace('"', '""') + '"'


def table_of_topic(topic: str) -> str:
    """Name the table for a topic: the topic's own name, as a plain one."""
    name = re.sub(r"[^a-z0-9_]", "_", topic.lower())[:63]
    return f"public.{quoted(f'_{name}'[:63] if name[0].isdigit() else name)}"


def create_table(inferred: Inferred, table: str) -> str:
    """Write the statement, with what a person should know in comments."""
    key = inferred.key
    primary = key if key is not None and key.type == "uuid" else None
    lines = []
    for number, column in enumerate(inferred.columns):
        text = f"    {quoted(column.name)} {column.type}"
        text += " PRIMARY KEY" if column is primary else " NOT NULL" * column.not_null
        text += "," * (number + 1 < len(inferred.columns))
        lines.append(text + (f"  -- {_comment(column.note)}" if column.note else ""))
    parts = [f"CREATE TABLE {table} (", *lines, ");"]
    if key is not None and primary is None:
        parts.append(f"-- All different in the sample, and perhaps a key:  ALTER TABLE {_comment(table)} "
                     f"ADD PRIMARY KEY ({_comment(quoted(key.name))});")  # fmt: skip
    if inferred.repeated_key is not None:
        name = _comment(inferred.repeated_key)
        parts.append(f'-- {name} comes more than once: for one row each, make it the PRIMARY KEY, and add to the '
                     f'route  mode = "upsert"  and  key = [{_comment(json.dumps(inferred.repeated_key))}]')  # fmt: skip
    return "\n".join((*parts, *_remarks(inferred))) + "\n"


def route(topic: str, table: str) -> str:
    """Write the route."""
    # JSON's strings are TOML's as well.
    return f"[[route]]\ntopic = {json.dumps(topic)}\ntable = {json.dumps(table, ensure_ascii=False)}\n"


def commented(text: str) -> str:
    """Make each line a comment of SQL."""
    return "".join(f"-- {_comment(line)}\n" for line in text.splitlines())


def _remarks(inferred: Inferred) -> Iterator[str]:
    for name, why in inferred.left_out:
        yield f"-- Left out: field {_comment(json.dumps(name))}: {why}"
    if inferred.refused:
        yield f"-- {inferred.refused} of the records are no JSON objects: they will be dead letters"


def _comment(text: str) -> str:
    """Keep a text from ending its line."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)
