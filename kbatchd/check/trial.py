"""A trial: real records on the daemon's own way into their table, and back out again.

The route's encoder makes the rows, the sink's own code copies (and merges) them and finds those that PostgreSQL
refuses; then everything is rolled back. Nothing stays but the numbers that sequences gave. Called by the checkup.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg

from kbatchd.check import remedies
from kbatchd.check.findings import Finding, Level
from kbatchd.errors import SinkError
from kbatchd.model import DELETED
from kbatchd.postgres import catalogue
from kbatchd.sink.insertion import Insertion
from kbatchd.sink.targets import build_target, fill_batch
from kbatchd.sink.upsert import Staging

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kbatchd.config import Route
    from kbatchd.model import Record, Refusal
    from kbatchd.postgres.connection import Connection
    from kbatchd.postgres.table import Column
    from kbatchd.sink.batch import Batch
    from kbatchd.sink.batch_copy import Target

#: A record that is in the table already meets its own row.
_ALREADY_THERE = {"23505", "23P01"}


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
        remedy = remedies.of_table(error.sqlstate or "")
        yield Finding(Level.FAULT, where, f"rows cannot be copied to {target.table}: {text}", remedy)
    except SinkError as error:
        yield Finding(Level.FAULT, where, str(error), "run the check again")
    if target.waits_for_partition:
        yield from _without_partition(where, records, trial)
    columns = {column.name: column for column in target.table.columns}
    yield from _refusals(where, route, columns, records, trial.refused, next_offsets)
    named = [name for name in target.layouts[0] if name != DELETED]
    for column, what in remedies.unfed_columns(named, route, values):
        yield Finding(Level.WARNING, where, f"column {column} is a field of none of {len(values)} records", what)
    key = remedies.scattered_key(route.key, route, records, values) if route.mode == "upsert" else None
    if key is not None:
        yield Finding(
            Level.WARNING,
            where,
            f"the records' keys do not determine the table's key ({', '.join(route.key)}): "
            f"{key[:60]} comes under several, or under none",
            "give each record its row's key as its own, so that its changes stay in one partition, in order",
        )


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
    where: str,
    route: Route,
    columns: Mapping[str, Column],
    records: Sequence[Record],
    refused: Mapping[int, Refusal],
    next_offsets: Mapping[int, int],
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
        first = records[indexes[0]]
        remedy = remedies.remedy(why, columns.get(column or ""), route, first.value(), first)
        yield Finding(level, where, f"{what} (the first: {_place(first)})", remedy)


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
