"""The compiled encoder's Python side: which routes it takes, and how their columns are told to it.

native/ goes over a record's bytes once. It follows paths through objects, counts times that are numbers, has defaults
for what is missing, asks the record for its key and its other metadata, and takes the common types; a route that wants
more of any column is left to the Python encoders. Made by the row encoder (rows.py); no I/O. Optional: without a
compiler at the installation there is no such module as kbatchd.encode._native.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kbatchd.encode import fields
from kbatchd.encode.fast import FALSE, WHOLE_UNITS
from kbatchd.encode.mapping import Source
from kbatchd.encode.row_format import NULL

try:
    from kbatchd.encode._native import Encoder
except ImportError:
    Encoder = None  # type: ignore[assignment, misc]

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.config import RouteMapping
    from kbatchd.encode.mapping import Deletes, Feed
    from kbatchd.paths import Path
    from kbatchd.postgres.table import Column

#: Whether this installation has the compiled encoder.
COMPILED: Final = Encoder is not None

#: The types that it knows.
TYPES: Final = frozenset({
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "uuid",
    "date", "timestamp", "timestamptz", "json", "jsonb", "bytea",
})  # fmt: skip

#: What it asks of the record beside its value, and the types that this may go into. The method has the source's name.
_OF_RECORD: Final = {
    Source.KEY: frozenset({"text", "varchar", "bytea", "int2", "int4", "int8", "uuid"}),
    Source.TOPIC: frozenset({"text", "varchar"}),
    Source.TIMESTAMP: TYPES,
    Source.PARTITION: TYPES,
    Source.OFFSET: TYPES,
}

#: Objects in objects: it follows a path by calling itself.
_MAX_STEPS: Final = 32


def make_encoder(
    feeds: Sequence[Feed], mapping: RouteMapping, deletes: Deletes | None, literals: dict[str, bytes]
) -> Encoder | None:
    """Make the compiled encoder; None where it cannot take the route's records."""
    if mapping.format != "json" or mapping.collects_into or (deletes is not None and deletes.field):
        return None
    envelope, closed = mapping.envelope, mapping.unknown_fields == "reject"
    columns = []
    for feed in feeds:
        if feed.source is Source.CONSTANT:
            continue
        if not _is_known(feed) or (closed and feed.source is Source.VALUE):
            return None
        column = feed.column
        columns.append((_where(feed, envelope), *_kind_and_limit(feed), _missing(feed, literals), column.not_null))
    paths = [where for where, *_ in columns if not isinstance(where, str)]
    return Encoder(columns, envelope, closed) if columns and _can_be_followed(paths, envelope) else None


def _is_known(feed: Feed) -> bool:
    in_value = feed.source in {Source.FIELD, Source.VALUE}
    types = TYPES if in_value else _OF_RECORD.get(feed.source, frozenset())
    return feed.column.type_name in types and bool(feed.path) is in_value and not feed.json_text and feed.unit != "ns"


def _where(feed: Feed, envelope: Path) -> Path | str:
    """Return the path to what feeds a column, or the method of the record that gives it."""
    if feed.source in _OF_RECORD:
        return feed.source.name.lower()
    return envelope + feed.path if feed.source is Source.FIELD else feed.path


def _missing(feed: Feed, literals: dict[str, bytes]) -> bytes | None:
    """Return what a row has, with its length, for what is missing; None: the Python encoders decide."""
    if feed.literal is not None:
        return literals[feed.column.name]
    return NULL if feed.on_missing == "null" and not feed.column.not_null else None


def _can_be_followed(paths: Sequence[Path], envelope: Path) -> bool:
    """Say whether the paths lead through objects alone, and none to what another looks into or takes as well."""
    beginnings = {path[:size] for path in paths for size in range(len(path))}
    beginnings |= {envelope[: size + 1] for size in range(len(envelope))}
    return (
        all(isinstance(step, str) for path in (envelope, *paths) for step in path)
        and all(len(path) <= _MAX_STEPS for path in (envelope, *paths))
        and len(set(paths)) == len(paths)
        and beginnings.isdisjoint(paths)
    )


def _kind_and_limit(feed: Feed) -> tuple[str, int]:
    """Return what the compiled encoder calls a column's type, and its limit: see native/column.h."""
    column = feed.column
    if feed.unit is not None:
        return "epoch date" if column.type_name == "date" else "epoch", WHOLE_UNITS[feed.unit]
    return column.type_name, _limit(column)


def wrap(feeds: Sequence[Feed], literals: dict[str, bytes], count: int, *, deletes: bool) -> tuple[bytes, bytes] | None:
    """Return what a row begins and ends with instead, where it has constants, or may delete; None: as it is."""
    fixed = [literals.get(feed.column.name, NULL) for feed in feeds if feed.source is Source.CONSTANT]
    fixed += [FALSE] * deletes
    return (count.to_bytes(2), b"".join(fixed)) if fixed else None


def _limit(column: Column) -> int:
    """Return how many characters a varchar may have; -1: any number."""
    limited = column.type_name == "varchar" and column.typmod >= fields.VARCHAR_HEADER
    return column.typmod - fields.VARCHAR_HEADER if limited else -1
