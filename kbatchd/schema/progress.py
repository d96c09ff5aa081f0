"""Progress: how far each partition is in the table, and how it moves.

The truth about delivery is `kbatchd.progress`, in the same database as the rows. A claim (claiming.py) raises the
epoch; from then on only the claimant's session moves that partition, by compare-and-set in the transaction that holds
the rows. Called by the flusher; an operator moves it in by_hand.py.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString

import orjson

from kbatchd.errors import ConfigError, Fenced, SinkError
from kbatchd.lineage import Lineage
from kbatchd.model import Partition, Position

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import psycopg


#: The lines of a route and its topic.
OURS: LiteralString = """
    pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND route OPERATOR(pg_catalog.=) %(route)s
    AND topic OPERATOR(pg_catalog.=) %(topic)s"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who claims: the pipeline and route from the file, the table, and a name for people to read."""

    pipeline: str
    route: str
    topic: str
    target: str
    worker: str


def advance(
    connection: psycopg.Connection,
    owner: Owner,
    expected: Mapping[Partition, Position],
    next_offsets: Mapping[Partition, int],
    lineages: Mapping[Partition, Lineage] | None = None,
) -> None:
    """Move progress in the caller's transaction, if it stands where we left it under our own epoch; else Fenced.

    `expected` is where our last flush left each partition, never the offset of a first record: offsets have holes.
    `lineages` are those of partitions that records were read of, perhaps of more of them than this transaction has.
    """
    read = {p: lineage.below(next_offsets[p]) for p, lineage in (lineages or {}).items() if p in next_offsets}
    cursor = connection.execute(
        f"""
        UPDATE kbatchd.progress AS p
        SET next_offset = n.next_offset, updated_at = pg_catalog.clock_timestamp(),
            leader_epoch = COALESCE(n.leader_epoch, p.leader_epoch),
            leader_epochs = COALESCE(n.leader_epochs, p.leader_epochs),
            records_end = COALESCE(n.records_end, p.records_end)
        FROM ROWS FROM (
            pg_catalog.unnest(%(partitions)s::int[]), pg_catalog.unnest(%(epochs)s::bigint[]),
            pg_catalog.unnest(%(expected)s::bigint[]), pg_catalog.unnest(%(offsets)s::bigint[]),
            pg_catalog.unnest(%(leader_epoch)s::int[]), pg_catalog.unnest(%(leader_epochs)s::pg_catalog.jsonb[]),
            pg_catalog.unnest(%(records_end)s::bigint[])
        ) AS n(partition, epoch, expected, next_offset, leader_epoch, leader_epochs, records_end)
        WHERE {OURS}
          AND p.partition OPERATOR(pg_catalog.=) n.partition AND p.epoch OPERATOR(pg_catalog.=) n.epoch
          AND p.next_offset OPERATOR(pg_catalog.=) n.expected
          AND p.backend_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
        """,  # noqa: S608 - a constant
        {
            **keys_of(owner),
            "partitions": [partition.number for partition in next_offsets],
            "epochs": [expected[partition].epoch for partition in next_offsets],
            "expected": [expected[partition].next_offset for partition in next_offsets],
            "offsets": list(next_offsets.values()),
            "leader_epoch": [read[p].epoch if p in read else None for p in next_offsets],
            "leader_epochs": [orjson.dumps(read[p].epochs).decode() if p in read else None for p in next_offsets],
            "records_end": [read[p].end if p in read else None for p in next_offsets],
        },
    )
    if cursor.rowcount != len(next_offsets):
        raise _why_not_advanced(connection, owner, expected, next_offsets)


def lineages(connection: psycopg.Connection, owner: Owner) -> dict[int, Lineage]:
    """Read of which logs a route's partitions were read."""
    cursor = connection.execute(
        f"""
        SELECT partition, leader_epochs, records_end FROM kbatchd.progress
        WHERE {OURS}
        """,  # noqa: S608 - a constant
        keys_of(owner),
    )
    return {partition: lineage_of(epochs, end) for partition, epochs, end in cursor}


def keep_lineage(connection: psycopg.Connection, owner: Owner, partition: Partition, at: int | None) -> None:
    """Keep what holds of a log when progress is moved to `at`, in the caller's transaction; None: of another topic.

    A reader that goes on behind what was read does not know the epoch of the offset before it.
    """
    before = lineages(connection, owner)[partition.number]
    after = Lineage() if at is None else before.below(at)
    if at is not None and (before.end is None or at > before.end):
        after = after.unknown()
    connection.execute(
        f"""
        UPDATE kbatchd.progress
        SET leader_epoch = %(leader_epoch)s, leader_epochs = %(leader_epochs)s, records_end = %(records_end)s
        WHERE {OURS} AND partition OPERATOR(pg_catalog.=) %(partition)s
        """,  # noqa: S608 - a constant
        {
            **keys_of(owner),
            "partition": partition.number,
            "leader_epoch": after.epoch,
            "leader_epochs": orjson.dumps(after.epochs).decode(),
            "records_end": after.end,
        },
    )


def lineage_of(epochs: list[list[int]], end: int | None) -> Lineage:
    """Return what the columns say of it."""
    return Lineage(tuple((epoch, first) for epoch, first in epochs), end)


@contextmanager
def durable_transaction(connection: psycopg.Connection) -> Iterator[None]:
    """Commit to the disk whatever the session's synchronous_commit: where reading begins must not be forgotten."""
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        yield


def _why_not_advanced(
    connection: psycopg.Connection,
    owner: Owner,
    expected: Mapping[Partition, Position],
    next_offsets: Mapping[Partition, int],
) -> SinkError | ConfigError:
    """Find out, still in the failed transaction, which partitions are not ours any more.

    Those that are have moved already, as this transaction sees them.
    """
    rows = connection.execute(
        f"""
        SELECT partition, epoch, next_offset, backend_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
        FROM kbatchd.progress WHERE {OURS}
        """,  # noqa: S608 - a constant
        keys_of(owner),
    ).fetchall()
    stored = {Partition(owner.topic, number): ((epoch, offset), own) for number, epoch, offset, own in rows}
    ours = {partition: (expected[partition].epoch, expected[partition].next_offset) for partition in next_offsets}
    if any(not own and at == ours.get(partition) for partition, (at, own) in stored.items()):
        return ConfigError(
            "postgres.dsn leads to a pooler that changes sessions between transactions; "
            "kbatchd needs a session of its own: connect to PostgreSQL itself, or use session pooling"
        )
    moved = {partition: (epoch, next_offsets[partition]) for partition, (epoch, _) in ours.items()}
    return Fenced([p for p in moved if p not in stored or stored[p][0] not in {ours[p], moved[p]}] or list(moved))


def keys_of(owner: Owner) -> dict[str, str]:
    """Return the parameters that name an owner's lines."""
    return {
        "pipeline": owner.pipeline,
        "route": owner.route,
        "topic": owner.topic,
        "target": owner.target,
        "worker": owner.worker,
    }
