"""Progress as an operator sees and moves it: what there is, a gap accepted, a partition read from elsewhere.

Each of them raises the epoch, so the reader must claim again. Called by `kbatchd progress`, in its main thread; the
flusher accepts gaps where the route says so, in its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from psycopg.rows import class_row

from kbatchd.errors import ConfigError, Fenced
from kbatchd.model import Gap, GapKind, Partition
from kbatchd.schema.ledger import write_ledger
from kbatchd.schema.progress import OURS, Owner, durable_transaction, keep_lineage, keys_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import psycopg


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """One line of kbatchd.progress."""

    route: str
    topic: str
    partition: int
    #: None: its beginning is not known yet.
    next_offset: int | None
    epoch: int
    owner: str | None
    target: str
    topic_id: str
    updated_at: datetime
    #: Who has claimed it last, and when; None: nobody.
    host: str | None
    pid: int | None
    claimed_at: datetime | None
    #: Why it stands still: see halting.py.
    halted: str | None


def accept(connection: psycopg.Connection, owner: Owner, gap: Gap, epoch: int) -> None:
    """Record the gap and let reading go on behind it; the epoch goes up, so the reader must claim again.

    Raises Fenced when the partition is no longer under this epoch, is of another topic than the gap, or does not stand
    at the gap any more.
    """
    with durable_transaction(connection):
        moved = connection.execute(
            f"""
            UPDATE kbatchd.progress
            SET next_offset = %(resume_at)s, topic_id = %(next_topic_id)s, epoch = epoch OPERATOR(pg_catalog.+) 1,
                halted = NULL, updated_at = pg_catalog.now()
            WHERE {OURS} AND partition OPERATOR(pg_catalog.=) %(partition)s
              AND epoch OPERATOR(pg_catalog.=) %(epoch)s AND topic_id OPERATOR(pg_catalog.=) %(topic_id)s
              AND next_offset OPERATOR(pg_catalog.=) ANY (ARRAY[%(first)s, %(last)s])
            """,  # noqa: S608 - a constant
            {
                **keys_of(owner),
                "partition": gap.partition.number,
                "resume_at": gap.resume_at,
                "topic_id": gap.topic_id,
                "next_topic_id": gap.next_topic_id or gap.topic_id,
                "first": gap.first,
                "last": gap.last,
                "epoch": epoch,
            },
        ).rowcount
        if not moved:
            raise Fenced([gap.partition])
        keep_lineage(connection, owner, gap.partition, None if gap.next_topic_id else gap.resume_at)
        where = (owner.pipeline, owner.route, owner.topic, gap.partition.number)
        for line in gap.lines():
            connection.execute(
                """
                INSERT INTO kbatchd.gaps
                    (pipeline, route, topic, partition, topic_id, next_topic_id, kind, first_offset, last_offset)
                VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
                """,
                (*where, line.topic_id, line.next_topic_id, line.kind.value, line.first, line.last),
            )
        stood = gap.last if gap.kind is GapKind.TRUNCATION else gap.first
        write_ledger(connection, owner, "gap", {gap.partition: (stood, gap.resume_at)})


def set_progress(connection: psycopg.Connection, owner: Owner, partition: Partition, next_offset: int) -> int | None:
    """Move a partition by hand; return where it stood, None if it had not begun, or its progress was lost.

    The epoch goes up, so a running worker reads again from there.
    """
    keys = {**keys_of(owner), "partition": partition.number, "next_offset": next_offset}
    with durable_transaction(connection):
        row = connection.execute(
            f"""
            UPDATE kbatchd.progress AS p
            SET next_offset = %(next_offset)s, epoch = p.epoch OPERATOR(pg_catalog.+) 1,
                updated_at = pg_catalog.now(), halted = NULL
            FROM (
                SELECT next_offset FROM kbatchd.progress
                WHERE {OURS} AND partition OPERATOR(pg_catalog.=) %(partition)s
                FOR UPDATE  -- a flush may be about to move it
            ) AS old
            WHERE {OURS}
              AND p.partition OPERATOR(pg_catalog.=) %(partition)s
            RETURNING old.next_offset
            """,  # noqa: S608 - a constant
            keys,
        ).fetchone()
        if row is None and not _add_lost(connection, keys):
            raise ConfigError(f"route {owner.route}: there is no progress of {partition}; see `kbatchd progress show`")
        keep_lineage(connection, owner, partition, next_offset)
        stood: Any = None if row is None else row[0]
        write_ledger(connection, owner, "set", {partition: (stood, next_offset)})
    return None if stood is None else int(stood)


def _add_lost(connection: psycopg.Connection, keys: Mapping[str, object]) -> bool:
    """Give a partition that has lost its progress one again, beside that of the others."""
    return bool(
        connection.execute(
            f"""
            INSERT INTO kbatchd.progress (pipeline, route, topic, partition, topic_id, target, next_offset, partitions)
            SELECT pipeline, route, topic, %(partition)s, topic_id, target, %(next_offset)s, partitions
            FROM kbatchd.progress WHERE {OURS}
              AND greatest(partitions, partition OPERATOR(pg_catalog.+) 1) OPERATOR(pg_catalog.>) %(partition)s
            ORDER BY partition LIMIT 1
            """,  # noqa: S608 - a constant
            keys,
        ).rowcount
    )


def show(connection: psycopg.Connection, pipeline: str) -> list[ProgressRow]:
    """Read all progress of a pipeline, in the order of routes and partitions."""
    with connection.cursor(row_factory=class_row(ProgressRow)) as cursor:
        return cursor.execute(
            """
            SELECT route, topic, partition, next_offset, epoch, owner, target, topic_id, updated_at, host, pid,
                   claimed_at, halted
            FROM kbatchd.progress WHERE pipeline OPERATOR(pg_catalog.=) %s ORDER BY route, topic, partition
            """,
            (pipeline,),
        ).fetchall()
