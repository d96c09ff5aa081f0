"""What to do about records that would be dead letters, in words that know the route's mapping and a record.

Where a line of the route mends it, the remedy is that line: a unit for a time that is a number, a path to a field that
is in another object. Called by the trial, for `kbatchd check`; pure functions.
"""

from __future__ import annotations

import difflib
import json
import re
from itertools import islice
from typing import TYPE_CHECKING, Final

import orjson

from kbatchd.column_names import snake_case
from kbatchd.internal import INTERNAL
from kbatchd.mapping import TIMES
from kbatchd.paths import Path, parse_path, show_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kbatchd.catalogue import Column
    from kbatchd.config_mapping import RouteMapping
    from kbatchd.model import Record, Refusal

_REMEDIES = {
    "missing": "let the column be NULL, give it a default and put it into `omit`, or mend the producer",
    "null": "let the column be NULL, or mend the producer",
    "wrong_type": "change the column's type (jsonb takes anything), or mend the producer",
    "out_of_range": "give the column a wider type, or mend the producer",
    "null_byte": 'mend the producer, or say on_null_byte = "strip"; json and bytea can hold a NUL',
    "not_json": "mend the producer: a record is a JSON object in UTF-8",
    "not_object": "mend the producer: a record is a JSON object; where it is in an envelope, `value_field` says which",
    "no_value": 'make the route mode = "upsert", where a tombstone deletes, or mend the producer',
    "unknown_field": 'feed a column with it, or take out unknown_fields = "reject", or mend the producer',
    **dict.fromkeys((INTERNAL, "crashed", "silent"), "that is a fault of kbatchd: please report it, with this record"),
    "23505": "mend the producer, or make the route an upsert by this key",
    "23502": "let the column be NULL, or mend the producer",
    "23503": "insert what the foreign key needs first, or drop the key",
    "23514": "mend the records or the constraint; for a partitioned table, make the partition that is missing",
    "22001": "give the column a wider type",
    "22003": "give the column a wider type",
}
_REMEDY = "change the column's type, or mend the producer"

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
    return _REMEDIES_OF_TABLE.get(code, "mend the table")


def _of_code(code: str) -> str:
    return _REMEDIES.get(code, _REMEDY_OF_CODE if _SQLSTATE.fullmatch(code) else _REMEDY)


def remedy(why: Refusal, column: Column | None, mapping: RouteMapping, value: bytes | None) -> str:
    """Return the remedy for a refusal, of which this record's value is an example."""
    if column is None:
        return _of_code(why.code)
    said = mapping.of(column.name)
    record = value_object(value, mapping)
    if column.type_name in TIMES and said.unit is None:
        path = (column.name,) if said.field is None else parse_path(said.field)
        unit = _unit(_at(record, path))
        if unit is not None and said.source is None:
            return _line(column.name, f"{{ field = {_string(show_path(path))}, unit = {_string(unit)} }}")
        if why.code == "not_a_timestamp" and "offset" in why.message:
            other = "timestamp" if column.type_name == "timestamptz" else "timestamptz"
            return f"make the column a {other}, or mend the producer"
    if why.code == "missing" and said.field is None and said.source is None:
        like = _path_like(column.name, [record])
        if like is not None:
            return _line(column.name, _string(show_path(like)))
    return _of_code(why.code)


def _at(x: object, path: Path) -> object:
    for step in path:
        x = x.get(step) if isinstance(x, dict) and isinstance(step, str) else None
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
    fed = {*names, *mapping.columns, mapping.collects_into}
    for column in columns if names else ():
        if column in fed:
            continue
        path = _path_like(column, objects)
        longest = 2 * len(column) + 2
        likely = [name for name in islice(names, _MAX_NAMES) if name not in columns and len(name) <= longest]
        near = difflib.get_close_matches(column, likely, n=1)
        if path is not None:
            yield column, _line(column, _string(show_path(path)))
        elif near:
            yield column, f"{_line(column, _string(show_path((near[0],))))}  if field {near[0]} is meant"
        else:
            yield column, "put it into `omit`, or mend the producer"


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
    try:
        found = orjson.loads(value or b"null")
    except orjson.JSONDecodeError:
        return {}
    found = _at(found, mapping.envelope)
    return found if isinstance(found, dict) else {}


def _line(column: str, entry: str) -> str:
    return f"add to the route's [route.columns] the line  {_named(column)} = {entry}"


def _named(column: str) -> str:
    return column if re.fullmatch(r"[A-Za-z0-9_-]+", column) else _string(column)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # JSON's strings are TOML's as well
