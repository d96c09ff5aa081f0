"""A trial: real records on the daemon's own way into their table, and back out again.

The route's encoder makes the rows, the sink's own code copies (and merges) them and finds those that PostgreSQL
refuses; then everything is rolled back. Nothing stays but the numbers that sequences gave. Called by the checkup.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import psycopg

from kbatchd import catalogue
from kbatchd.errors import SinkError
from kbatchd.findings import Finding, Level
from kbatchd.insertion import Insertion
from kbatchd.model import DELETED
from kbatchd.targets import build_target, fill_batch
from kbatchd.upsert import Staging

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kbatchd.batch import Batch
    from kbatchd.batch_copy import Target
    from kbatchd.config import Route
    from kbatchd.model import Record, Refusal
    from kbatchd.postgres import Connection

_SQLSTATE = re.compile("[0-9A-Z]{5}")

#: A record that is in the table already meets its own row.
_ALREADY_THERE = {"23505", "23P01"}

_REMEDIES = {
    "missing": "let the column be NULL, give it a default and put it into `omit`, or mend the producer",
    "null": "let the column be NULL, or mend the producer",
    "wrong_type": "change the column's type (jsonb takes anything), or mend the producer",
    "out_of_range": "give the column a wider type, or mend the producer",
    "null_byte": "mend the producer; json and bytea can hold a NUL",
    "not_json": "mend the producer: a record is a JSON object in UTF-8",
    "not_object": "mend the producer: a record is a JSON object",
    "no_value": 'make the route mode = "upsert", where a tombstone deletes, or mend the producer',
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

#: Of errors that are about no row.
_REMEDIES_OF_TABLE = {
    "42501": "GRANT what is named to the daemon's role; a sequence needs USAGE",
    "55P03": "somebody holds a lock on the table; run the check again",
}


def run(
    connection: Connection,
    pipeline: str,
    route: Route,
    records: Sequence[Record],
    next_offsets: Mapping[int, int],
) -> Iterator[Finding]:
    """Try these records; `next_offsets` tells which of them are in the table already."""
    where = f"route {route.name}"
    target, encoder = build_target(pipeline, route, "check", catalogue.read_table(connection, route.table))
    values = [record.value() for record in records]
    batch = fill_batch(encoder, records, values)
    # It finds all that is refused, and stops for nothing.
    patient = replace(target, max_dead_letters=0, max_internal=0, max_alike=0, waits_for_partition=False)
    trial = _Trial(connection, batch, patient)
    try:
        if target.merge is not None:
            Staging(connection).prepare(target.merge)
        trial.run()
    except psycopg.Error as error:
        text = error.diag.message_primary or " ".join(str(error).split())
        remedy = _REMEDIES_OF_TABLE.get(error.sqlstate or "", "mend the table")
        yield Finding(Level.FAULT, where, f"rows cannot be copied to {target.table}: {text}", remedy)
    except SinkError as error:
        yield Finding(Level.FAULT, where, str(error), "run the check again")
    if target.waits_for_partition:
        yield from _without_partition(where, records, trial)
    yield from _refusals(where, records, trial.refused, next_offsets)
    yield from _unfed(where, route, target.layouts[0], values)
    if route.mode == "upsert":
        yield from _scattered_keys(where, route, records, values)


class _Trial(Insertion):
    """A batch that goes in and out again."""

    def __init__(self, connection: Connection, batch: Batch, target: Target) -> None:
        super().__init__(connection, batch, target)
        self.refused: dict[int, Refusal] = {}

    def account(self, last: int, dead: Mapping[int, Refusal]) -> None:  # noqa: ARG002
        """Take note, let deferred constraints speak, and undo it all."""
        self.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        self.refused.update(dead)
        raise psycopg.Rollback


def _refusals(
    where: str, records: Sequence[Record], refused: Mapping[int, Refusal], next_offsets: Mapping[int, int]
) -> Iterator[Finding]:
    """Sum up what would be dead letters; when that is every record, the route is at fault."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    for index, why in refused.items():
        record = records[index]
        known = (record.offset() or 0) < next_offsets.get(record.partition() or 0, 0)
        if not (known and why.code in _ALREADY_THERE):
            groups.setdefault((why.code, why.column), []).append(index)
    total = sum(map(len, groups.values()))
    level = Level.FAULT if total == len(records) else Level.WARNING
    for (code, column), indexes in groups.items():
        why = refused[indexes[0]]
        share = f"{len(indexes)} of {len(records)} records would be dead letters"
        what = f"{share}: {code}{(column and f', column {column}') or ''}: {why.message}"
        remedy = _REMEDIES.get(code, _REMEDY_OF_CODE if _SQLSTATE.match(code) else _REMEDY)
        yield Finding(level, where, f"{what} (the first: {_place(records[indexes[0]])})", remedy)


def _without_partition(where: str, records: Sequence[Record], trial: _Trial) -> Iterator[Finding]:
    """Tell of the records for which the route would wait; they are no dead letters."""
    reasons = {index: trial.refused.pop(index) for index in trial.without_partition if index in trial.refused}
    if reasons:
        first = min(reasons)
        what = f"{len(reasons)} of {len(records)} records have no partition to go to, and the route would wait"
        remedy = f'{trial.without_partition[first]}, or set on_missing_partition = "dead_letter"'
        place = _place(records[first])
        yield Finding(Level.FAULT, where, f"{what}: {reasons[first].message} (the first: {place})", remedy)


def _place(record: Record) -> str:
    return f"{record.topic()}[{record.partition()}] at {record.offset()}"


def _unfed(where: str, route: Route, columns: Sequence[str], values: Sequence[bytes | None]) -> Iterator[Finding]:
    """Find columns that no record has a field for: a slip of the pen, mostly."""
    names: set[str] = set()
    for value in values if route.format == "json" and route.value_field is None else ():
        names.update(_object(value))
    fed = {*names, *route.columns, route.collects_into, DELETED}
    for column in columns if names else ():
        if column not in fed:
            near = difflib.get_close_matches(column, names - set(columns), n=1)
            hint = f"rename it, if field {near[0]} is meant" if near else "put it into `omit`, or mend the producer"
            yield Finding(Level.WARNING, where, f"column {column} is a field of none of {len(values)} records", hint)


def _scattered_keys(
    where: str, route: Route, records: Sequence[Record], values: Sequence[bytes | None]
) -> Iterator[Finding]:
    """Find rows' keys that come under several records' keys: they may lie in several partitions, in no order."""
    seen: dict[bytes, bytes | None] = {}
    for record, value in zip(records, values, strict=True):
        fields = _object(value)
        if all(name in fields for name in route.key):
            key = orjson.dumps([fields[name] for name in route.key])
            if seen.setdefault(key, record.key()) != record.key() or record.key() is None:
                yield Finding(
                    Level.WARNING,
                    where,
                    f"the records' keys do not determine the table's key ({', '.join(route.key)}): "
                    f"{key.decode()[:60]} comes under several, or under none",
                    "give each record its row's key as its own, so that its changes stay in one partition, in order",
                )
                return


def _object(value: bytes | None) -> dict[str, object]:
    try:
        record = orjson.loads(value or b"null")
    except orjson.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}
