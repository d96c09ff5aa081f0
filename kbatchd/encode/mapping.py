"""What feeds each column: a route's mapping, resolved against the columns of its table.

`row_columns` says which columns a record feeds, `resolve_feeds` where each has its value from. Both report all faults
at once. Called by the flusher when it has read a table, by the start-up checks, and by what opens the door; no I/O.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from typing import TYPE_CHECKING, Final, NamedTuple

from kbatchd.config import RouteMapping, literal
from kbatchd.encode.fields import Refused
from kbatchd.errors import ConfigError
from kbatchd.paths import parse_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kbatchd.encode.decoded import DecodedRecord
    from kbatchd.paths import Path
    from kbatchd.postgres.table import Column, Table

#: Columns that a time as a number can go into.
TIMES: Final = frozenset({"date", "timestamp", "timestamptz"})
#: Columns that take JSON as it is, and columns that take a text as it is.
JSONS: Final = frozenset({"json", "jsonb"})
TEXTS: Final = frozenset({"text", "varchar", "bpchar"})
_INTEGERS: Final = frozenset({"int2", "int4", "int8", "numeric"})


class Source(Enum):
    """Where a column has its value from."""

    FIELD = auto()  # a field of the record's object
    VALUE = auto()  # the whole value, or a field of the envelope
    KEY = auto()
    HEADER = auto()  # one header, the last of its name
    HEADERS = auto()  # all of them
    TIMESTAMP = auto()
    TOPIC = auto()
    PARTITION = auto()
    OFFSET = auto()
    NOW = auto()
    CONSTANT = auto()
    REST = auto()  # the fields that no other column takes


#: Sources for which the Kafka record is looked at.
OF_RECORD: Final = frozenset({
    Source.KEY, Source.HEADER, Source.HEADERS, Source.TIMESTAMP, Source.TOPIC, Source.PARTITION, Source.OFFSET,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Feed:
    """Where one column has its value from, and what is done to it."""

    column: Column
    source: Source = Source.FIELD
    #: The way to the field, inside the object or inside the JSON of another source; empty: all of it.
    path: Path = ()
    header: str = ""
    #: The constant, or the default of a field that is missing, as JSON.
    literal: bytes | None = None
    unit: str | None = None
    json_text: bool = False
    strips: bool = False
    on_missing: str = "null"

    @property
    def is_plain(self) -> bool:
        """Whether this is a field of the object as it is, of whatever name."""
        return (
            self.source is Source.FIELD
            and len(self.path) == 1
            and self.unit is None
            and self.literal is None
            and not self.json_text
            and (self.on_missing == "null" or self.column.not_null)
            and self.on_missing != "default"
        )


class Deletes(NamedTuple):
    """Which records delete a row instead of writing one: tombstones, and those whose field has this value."""

    #: The columns of the table's key.
    key: tuple[str, ...]
    #: A path from the value's root, outside any envelope; empty: tombstones only.
    field: Path = ()
    equals: object = None

    def by(self, decoded: DecodedRecord) -> bool:
        """Say whether a record, decoded, deletes."""
        if not self.field or decoded.whole is None:
            return False
        try:
            found = decoded.whole.at(self.field)
        except Refused:
            return False
        return type(found) is type(self.equals) and found == self.equals


def resolve_feeds(columns: Sequence[Column], mapping: RouteMapping) -> tuple[Feed, ...]:
    """Say where each of the columns of `row_columns` has its value from; ConfigError where that cannot be."""
    feeds = _feeds(columns, mapping)
    faults = [fault for feed in feeds for fault in _feed_faults(feed)]
    if faults:
        raise ConfigError(*faults)
    return feeds


def _feeds(columns: Sequence[Column], mapping: RouteMapping) -> tuple[Feed, ...]:
    return tuple(_feed(column, mapping, alone=len(columns) == 1) for column in columns)


def _feed(column: Column, mapping: RouteMapping, *, alone: bool) -> Feed:
    name = column.name
    if name == mapping.collects_into:
        return Feed(column, Source.REST)
    said = mapping.of(name)
    if said.is_constant:
        return Feed(column, Source.CONSTANT, literal=literal(said.constant))
    source = said.source
    if source is None and mapping.format == "raw" and alone:
        source = "value"
    path: Path = parse_path(said.field) if said.field is not None else ()
    if source is None and not path:
        path = (name,)
    header = source.removeprefix("header:") if source is not None and source.startswith("header:") else ""
    kind = Source.FIELD if source is None else Source.HEADER if header else Source[source.upper()]
    if kind is Source.VALUE and path and mapping.format == "json" and mapping.value_field is None:
        kind = Source.FIELD  # without an envelope the record is all of the value
    return Feed(
        column,
        kind,
        path,
        header,
        None if said.default is None else literal(said.default),
        _unit(kind, column) or said.unit,
        said.json_text,
        (said.on_null_byte or mapping.on_null_byte) == "strip",
        said.on_missing or mapping.on_missing,
    )


def _unit(source: Source, column: Column) -> str | None:
    """Return what the times of Kafka and of our clock count."""
    if column.type_name not in TIMES:
        return None
    return {Source.TIMESTAMP: "ms", Source.NOW: "us"}.get(source)


def _feed_faults(feed: Feed) -> Iterator[str]:
    column, source = feed.column, feed.source
    where = f"column {column.name} is of type {column.type}"
    if feed.unit is not None and column.type_name not in TIMES:
        yield f"{where}, and `unit` is for date, timestamp and timestamptz: take it out, or change the column's type"
    if source is Source.NOW and column.type_name not in TIMES:
        yield f'{where}, and the source "now" is for date, timestamp and timestamptz: change one of them'
    if source is Source.TIMESTAMP and column.type_name not in TIMES | _INTEGERS | TEXTS:
        yield f'{where}, and the source "timestamp" is for times, integers and text: change one of them'
    if source in {Source.PARTITION, Source.OFFSET} and column.type_name not in _INTEGERS | TEXTS:
        yield f"{where}, and a record's partition and offset are for integers and text: change one of them"
    if source in {Source.HEADERS, Source.REST} and column.type_name not in JSONS:
        what = "the headers" if source is Source.HEADERS else "`unknown_fields`"
        yield f"{where}, and {what} need a json or jsonb column: change one of them"


def known_fields(feeds: Sequence[Feed]) -> frozenset[str]:
    """Return the names of the object's fields that columns take.

    Of a field with a path into it, the column that collects the rest gets all: nothing is lost.
    """
    return frozenset(str(feed.path[0]) for feed in feeds if feed.source is Source.FIELD and len(feed.path) == 1)


def looked_into(feeds: Sequence[Feed]) -> frozenset[str]:
    """Return the names of the object's fields that columns take, or take something out of."""
    return frozenset(str(feed.path[0]) for feed in feeds if feed.source is Source.FIELD)


def row_columns(table: Table, mapping: RouteMapping) -> tuple[Column, ...]:
    """Return the columns that a record feeds; ConfigError with all faults when some cannot be fed."""
    named = {*mapping.columns, *filter(None, [mapping.collects_into])}
    if mapping.format == "raw" and named:
        columns = tuple(column for column in table.columns if column.name in named)
    else:
        columns = tuple(
            column
            for column in table.columns
            if column.name in named or not (column.generated or column.identity or column.name in mapping.omit)
        )
    faults = [
        *_omit_faults(table, mapping.omit),
        *_named_faults(table, named),
        *_default_faults(table, columns, mapping),
        *_raw_faults(table, columns, mapping),
        *(fault for feed in _feeds(columns, mapping) for fault in _feed_faults(feed)),
    ]
    if not columns:
        faults.append(f"table {table}: no column is left for the records: take some out of `omit`")
    if faults:
        raise ConfigError(*faults)
    return columns


def _omit_faults(table: Table, omit: Sequence[str]) -> Iterator[str]:
    columns = {column.name: column for column in table.columns}
    for name in omit:
        column = columns.get(name)
        if column is None:
            yield f"table {table}: omit names column {name}, which is not there: correct it, or take it out of `omit`"
        elif _must_be_fed(column):
            yield (
                f"table {table}: omitted column {name} is NOT NULL and has no default: "
                f"give it one, or take it out of `omit`"
            )


def _must_be_fed(column: Column) -> bool:
    return column.not_null and not (column.has_default or column.generated or column.identity)


def _named_faults(table: Table, named: set[str]) -> Iterator[str]:
    columns = {column.name: column for column in table.columns}
    for name in sorted(named - set(columns)):
        yield f"table {table}: the mapping names column {name}, which is not there: correct it, or take it out"
    for name in sorted(named & set(columns)):
        if columns[name].generated:
            yield f"table {table}: column {name} is generated, PostgreSQL alone computes it: take it out of the mapping"


def _default_faults(table: Table, columns: Sequence[Column], mapping: RouteMapping) -> Iterator[str]:
    """Name columns whose default a missing field would not get, though the column may not be NULL."""
    defaults = [
        column.name for column in columns if column.not_null and column.has_default and _may_be_null(column, mapping)
    ]
    if defaults:
        # JSON's strings are TOML's as well, whatever is in a column's name.
        line = f"omit = {json.dumps([*mapping.omit, *defaults], ensure_ascii=False)}"
        yield (
            f"table {table}: {', '.join(defaults)}: NOT NULL with a default, which PostgreSQL applies to omitted "
            f'columns only: add to the route the line  {line}  or on_missing = "default" where only some records lack '
            f'the field, or "reject" where none may'
        )


def _may_be_null(column: Column, mapping: RouteMapping) -> bool:
    said = mapping.of(column.name)
    given = said.is_constant or said.default is not None or said.source is not None
    return not given and column.name != mapping.collects_into and (said.on_missing or mapping.on_missing) == "null"


def _raw_faults(table: Table, columns: Sequence[Column], mapping: RouteMapping) -> Iterator[str]:
    if mapping.format != "raw":
        return
    if mapping.value_field is not None or mapping.unknown_fields != "ignore":
        yield f'table {table}: format = "raw" has no fields: take out `value_field` and `unknown_fields`'
    sources = {name: said.source for name, said in mapping.columns.items() if not said.is_constant}
    if not mapping.columns and len(columns) != 1:
        yield f'table {table}: format = "raw", and several columns: say which takes the value, with source = "value"'
    for name in sorted(name for name, source in sources.items() if source is None):
        yield f'table {table}: format = "raw" has no field for column {name}: give it a `source` or a `constant`'
    fed = {column.name for column in columns}
    for column in table.columns if mapping.columns else ():
        if column.name not in fed and column.name not in mapping.omit and _must_be_fed(column):
            yield f"table {table}: column {column.name} is NOT NULL without a default: say in the mapping what feeds it"
