"""What to do about records that would be dead letters, in words that know the route's mapping and a record.

Where a line of the route fixes it, the remedy is that line: a unit for a time that is a number, a path to a field that
is in another object. Called by the trial, for `kbatchd check`; pure functions.
"""

from __future__ import annotations

import difflib
import re
from itertools import islice
from typing import TYPE_CHECKING, Final

import orjson

from kbatchd.config import TEXT_SOURCES
from kbatchd.encode.headers import read_headers
from kbatchd.encode.internal import INTERNAL
from kbatchd.encode.mapping import TIMES
from kbatchd.paths import Path, parse_path, show_path
from kbatchd.shapes.column_names import snake_case
from kbatchd.shapes.table_text import BARE_KEY, toml_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kbatchd.config import RouteMapping
    from kbatchd.model import Record, Refusal
    from kbatchd.postgres.table import Column

_REMEDIES = {
    "missing": "let the column be NULL, give it a default and put it into `omit`, or fix the producer",
    "null": "let the column be NULL, or fix the producer",
    "wrong_type": "change the column's type (jsonb takes anything), or fix the producer",
    "out_of_range": "give the column a wider type, or fix the producer",
    "null_byte": 'fix the producer, or say on_null_byte = "strip"; json and bytea can hold a NUL',
    "not_json": "fix the producer: a record is a JSON object in UTF-8",
    "not_object": "fix the producer: a record is a JSON object; where it is in an envelope, `value_field` says which",
    "no_value": 'make the route mode = "upsert", where a tombstone deletes, or fix the producer',
    "unknown_field": 'feed a column with it, or take out unknown_fields = "reject", or fix the producer',
    **dict.fromkeys((INTERNAL, "crashed", "silent"), "that is a fault of kbatchd: please report it, with this record"),
    "23505": "fix the producer, or make the route an upsert by this key",
    "23502": "let the column be NULL, or fix the producer",
    "23503": "insert what the foreign key needs first, or drop the key",
    "23514": "fix the records or the constraint; for a partitioned table, make the partition that is missing",
    "22001": "give the column a wider type",
    "22003": "give the column a wider type",
}
_REMEDY = "change the column's type, or fix the producer"

#: Of what a trigger, a CHECK's function or an index's expression says, whatever the code.
_REMEDY_OF_CODE = "look at the table's triggers, checks and functions, which refuse these rows"
_SQLSTATE = re.compile("[0-9A-Z]{5}")

#: Of errors that are about no row.
_REMEDIES_OF_TABLE = {
    "42501": "GRANT what is named to the daemon's role; a sequence needs USAGE",
    "55P03": "somebody holds a lock on the table; run the check again",
}

#: Seconds since 1970 from 1990 to 2100; no number is such a time in two units.
_SECONDS: Final = range(631_152_000, 4_102_444_800)
_UNITS: Final = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_NUMBER = re.compile(r"-?[0-9]{1,25}(?:\.[0-9]{1,25})?")

#: Names that are looked at for one like a column's, objects that are looked into, and how deep.
_MAX_NAMES: Final = 1_000
_MAX_OBJECTS: Final = 100
_MAX_DEPTH: Final = 4


def of_table(code: str) -> str:
    """Return the remedy for what PostgreSQL says of no row."""
    return _REMEDIES_OF_TABLE.get(code, "fix the table")


def _of_code(code: str) -> str:
    return _REMEDIES.get(code, _REMEDY_OF_CODE if _SQLSTATE.fullmatch(code) else _REMEDY)


def remedy(
    why: Refusal, column: Column | None, mapping: RouteMapping, value: bytes | None, record: Record | None = None
) -> str:
    """Return the remedy for a refusal, of which this value, and its record, are an example."""
    if column is None:
        return _of_code(why.code)
    said = mapping.of(column.name)
    if column.type_name in TIMES and said.unit is None:
        unit = _unit(_given(column.name, mapping, value, record))
        if unit is not None and (said.source is None or said.source.startswith(TEXT_SOURCES)):
            return _change(column.name, mapping, unit=unit)
        if why.code == "not_a_timestamp" and "offset" in why.message:
            other = "timestamp" if column.type_name == "timestamptz" else "timestamptz"
            return f"make the column a {other}, or fix the producer"
    if why.code == "missing" and said.field is None and said.source is None:
        found = _elsewhere(column.name, mapping, [value])
        if found is not None:
            return found
    return _of_code(why.code)


def _given(column: str, mapping: RouteMapping, value: bytes | None, record: Record | None) -> object:
    """Return what a record has for a column, wherever the mapping takes it from; None where it has nothing."""
    said = mapping.of(column)
    source, path = said.source, () if said.field is None else parse_path(said.field)
    if source is None and mapping.format == "json":
        return _at(value_object(value, mapping), path or (column,))
    if source in {None, "value"}:
        return _at(_loaded(value), path)
    text = None
    if record is not None and source == "key":
        text = record.key()
    elif record is not None and source is not None and source.startswith("header:"):
        text = next((text for name, text in read_headers(record) if name == source.removeprefix("header:")), None)
    return _at(_loaded(text), path)


def _at(x: object, path: Path) -> object:
    for step in path:
        if isinstance(x, dict) and isinstance(step, str):
            x = x.get(step)
        else:
            x = x[step] if isinstance(x, list) and isinstance(step, int) and step < len(x) else None
    return x


def _unit(x: object) -> str | None:
    """Return what a number counts since 1970, if it is a time of our days."""
    if type(x) not in {int, float, str} or not _NUMBER.fullmatch(str(x)):
        return None
    number = int(float(str(x)))
    return next((unit for unit, many in _UNITS.items() if number // many in _SECONDS), None)


def unfed_columns(
    columns: Sequence[str], mapping: RouteMapping, values: Sequence[bytes | None]
) -> Iterator[tuple[str, str]]:
    """Find columns that no record has a field for, with what to do: a slip of the pen, mostly."""
    objects = [value_object(value, mapping) for value in values if mapping.format == "json"]
    names = set().union(*objects)
    for column in columns if names else ():
        said = mapping.of(column)
        if column == mapping.collects_into or said.source is not None or said.is_constant:
            continue
        path = (column,) if said.field is None else parse_path(said.field)
        if any(_has(each, path) for each in objects):
            continue
        found = _elsewhere(column, mapping, values)
        longest = 2 * len(column) + 2
        likely = [name for name in islice(names, _MAX_NAMES) if name not in columns and len(name) <= longest]
        near = difflib.get_close_matches(column, likely, n=1)
        if found is not None:
            yield column, found
        elif near:
            yield column, f"{_change(column, mapping, field=show_path((near[0],)))}  if field {near[0]} is meant"
        elif said.field is not None:
            yield column, f"correct its field {said.field} in [route.columns], or fix the producer"
        else:
            yield column, "put it into `omit`, or fix the producer"


def _has(x: object, path: Path) -> bool:
    """Tell whether there is a field at the path, be it null."""
    holder, last = _at(x, path[:-1]), path[-1]
    if isinstance(holder, list):
        return isinstance(last, int) and last < len(holder)
    return isinstance(holder, dict) and last in holder


def _elsewhere(column: str, mapping: RouteMapping, values: Sequence[bytes | None]) -> str | None:
    """Return the line that feeds a column from another object of the records, or from beside their envelope."""
    like = _path_like(column, [value_object(value, mapping) for value in values])
    if like is not None:
        return _change(column, mapping, field=show_path(like))
    if mapping.envelope:
        whole = [found for value in values if isinstance(found := _loaded(value), dict)]
        like = (column,) if any(column in each for each in whole) else _path_like(column, whole)
        if like is not None and like[: len(mapping.envelope)] != mapping.envelope:
            return _change(column, mapping, source="value", field=show_path(like))
    return None


def _path_like(column: str, objects: Sequence[dict[str, object]]) -> Path | None:
    """Return the path to a field in another object that a column may be named after: customer_city, or city alone."""
    last: dict[Path, None] = {}
    for path in islice(_paths(objects), _MAX_NAMES):
        if "_".join(snake_case(str(step)) for step in path) == snake_case(column):
            return path
        if path[-1] == column:
            last[path] = None
    return next(iter(last)) if len(last) == 1 else None


def _paths(objects: Sequence[dict[str, object]]) -> Iterator[Path]:
    for each in objects[:_MAX_OBJECTS]:
        waiting: list[tuple[Path, dict[str, object]]] = [((), each)]
        for path, x in waiting:
            for name, inner in islice(x.items(), _MAX_NAMES):
                if path:
                    yield (*path, name)
                if isinstance(inner, dict) and len(path) + 1 < _MAX_DEPTH:
                    waiting.append(((*path, name), inner))


def scattered_key(
    key: Sequence[str], mapping: RouteMapping, records: Sequence[Record], values: Sequence[bytes | None]
) -> str | None:
    """Find a row's key that comes under several records' keys: they may lie in several partitions, in no order."""
    seen: dict[str, bytes | None] = {}
    for record, value in zip(records, values, strict=True):
        fields = value_object(value, mapping)
        if all(type(fields.get(name)) in {str, int, float, bool} for name in key):
            shown = repr([fields[name] for name in key])
            if seen.setdefault(shown, record.key()) != record.key() or record.key() is None:
                return shown
    return None


def value_object(value: bytes | None, mapping: RouteMapping) -> dict[str, object]:
    """Return the object whose fields the columns are, {} where there is none that orjson reads."""
    found = _at(_loaded(value), mapping.envelope)
    if mapping.envelope and isinstance(found, str):
        found = _loaded(found.encode())
    return found if isinstance(found, dict) else {}


def _loaded(text: bytes | None) -> object:
    try:
        return orjson.loads(text or b"null")
    except orjson.JSONDecodeError:
        return None


def _change(column: str, mapping: RouteMapping, **changed: str) -> str:
    """Write the line of the mapping that has these changes, and keeps what it says already."""
    said = mapping.of(column)
    if not {"source", "field"} & changed.keys() and said.source is None and said.field is None:
        changed["field"] = show_path((column,))
    given = {name: getattr(said, name) for name in said.model_fields_set}
    keys = sorted({**given, **changed}.items(), key=lambda item: list(type(said).model_fields).index(item[0]))
    pairs = ", ".join(f"{name} = {toml_value(x)}" for name, x in keys)
    entry = toml_value(changed["field"]) if [name for name, _ in keys] == ["field"] else f"{{ {pairs} }}"
    line = f"the line  {column if BARE_KEY.fullmatch(column) else toml_value(column)} = {entry}"
    where = "the route's [route.columns]"
    return f"change in {where} to {line}" if column in mapping.columns else f"add to {where} {line}"
