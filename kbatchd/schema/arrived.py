"""Whether records have come into the table, for those who wait: past progress, durable, in no gap, no dead letter.

An offset below progress is not enough. It may be of a topic that was recreated, of a log that was truncated, or of what
was there before progress was: so progress tells under which leader epochs it has read, from which offsets on.

Only reads. Called by a gateway's database thread, with one query for all who wait.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from enum import Enum, auto
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

#: With several arrays `unnest` is syntax, and stands for pg_catalog's own: qualified there is no such function.
_SOUGHT = """
ROWS FROM (
    pg_catalog.unnest(%s::int[]), pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[]),
    pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::int[]),
    pg_catalog.unnest(%s::bigint[]), pg_catalog.unnest(%s::bigint[]), pg_catalog.unnest(%s::pg_catalog.float8[])
) AS s(asker, route, topic, topic_id, partition, first, last, since)
"""

#: Two clocks are compared, and a clock may be set.
CLOCK_SLACK_SECONDS = 1.0


class Arrived(Enum):
    """Whether a partition's progress is past some records."""

    YES = auto()
    NOT_YET = auto()  # or nobody can tell
    NEVER = auto()  # the log was truncated before them, and something else stands there now


class PartitionProgress(NamedTuple):
    """Where progress of a partition stands, and how it came there."""

    topic_id: str
    #: None: nobody knows yet where it begins.
    next_offset: int | None
    #: The first offset read under each leader epoch, ascending, and these epochs. What is below the first is not known.
    #: One that follows itself began a second time: somebody has moved progress over what was not read.
    firsts: list[int]
    epochs: list[int]
    #: The offset after the last record read; None: nothing has been read since progress was moved.
    records_end: int | None

    def past(self, epoch: int, first: int, last: int) -> Arrived:
        """Say whether these offsets of the same topic have been read as records of this leader epoch."""
        if self.next_offset is None or last >= min(self.next_offset, self.records_end or 0):
            return Arrived.NOT_YET
        begin, end = (bisect_right(self.firsts, offset) - 1 for offset in (first, last))
        if begin < 0 or any(before == after for before, after in pairwise(self.epochs[begin : end + 2])):
            return Arrived.NOT_YET
        read = set(self.epochs[begin : end + 1])
        if max(read) > epoch:
            return Arrived.NEVER
        return Arrived.YES if read == {epoch} else Arrived.NOT_YET


class Snapshot(NamedTuple):
    """Where a pipeline's partitions stand, by route, topic and number, and how far the WAL is written and flushed."""

    partitions: dict[tuple[str, str, int], PartitionProgress]
    wal_end: int
    wal_flushed: int
    #: What to add to our monotonic clock for the server's time in seconds since 1970; at most that.
    clock: float


class Sought(NamedTuple):
    """Offsets somebody asks for, both ends included; `asker` is whose they are; at `since` they did not exist."""

    asker: int
    route: str
    topic: str
    topic_id: str
    partition: int
    first: int
    last: int
    since: float


class DeadLetter(NamedTuple):
    """A record that was refused, and why."""

    partition: int
    offset: int
    code: str
    message: str
    column: str | None


def snapshot(connection: psycopg.Connection, pipeline: str) -> Snapshot:
    """Read where all partitions stand. What is seen is durable once the WAL is flushed up to `wal_end`.

    With synchronous_commit off a commit can be seen before it is on disk. Its record lies in the WAL below whatever
    end is read after it was seen: hence the order of the two statements.
    """
    rows = connection.execute(
        """
        SELECT route, topic, partition, topic_id, next_offset, leader_epochs, records_end
        FROM kbatchd.progress WHERE pipeline OPERATOR(pg_catalog.=) %s
        """,
        (pipeline,),
    ).fetchall()
    server = connection.execute(
        """
        SELECT (pg_catalog.pg_current_wal_insert_lsn() OPERATOR(pg_catalog.-) '0/0')::bigint,
               (pg_catalog.pg_current_wal_flush_lsn() OPERATOR(pg_catalog.-) '0/0')::bigint,
               EXTRACT(epoch FROM pg_catalog.clock_timestamp())::pg_catalog.float8
        """
    ).fetchone()
    assert server is not None
    partitions = {
        (route, topic, number): PartitionProgress(
            topic_id, offset, [first for _, first in read], [epoch for epoch, _ in read], end
        )
        for route, topic, number, topic_id, offset, read, end in rows
    }
    wal_end, wal_flushed, now = server
    return Snapshot(partitions, wal_end, wal_flushed, now - time.monotonic())


def lost_among(connection: psycopg.Connection, sought: Sequence[Sought], pipeline: str) -> set[int]:
    """Return the askers of whose records some were deleted before they were read.

    Only that kind of gap is of records that could be sought here: offsets of a truncated log, or of a topic that was
    recreated, are others' now.
    """
    cursor = connection.execute(
        f"""
        SELECT DISTINCT s.asker FROM {_SOUGHT} JOIN kbatchd.gaps AS g
        ON g.route OPERATOR(pg_catalog.=) s.route AND g.topic OPERATOR(pg_catalog.=) s.topic
           AND g.topic_id OPERATOR(pg_catalog.=) s.topic_id AND g.partition OPERATOR(pg_catalog.=) s.partition
        WHERE g.pipeline OPERATOR(pg_catalog.=) %s AND g.kind OPERATOR(pg_catalog.=) 'retention'
          AND g.first_offset OPERATOR(pg_catalog.<=) s.last AND g.last_offset OPERATOR(pg_catalog.>) s.first
          AND g.last_offset OPERATOR(pg_catalog.>) g.first_offset
        """,  # noqa: S608 - a constant
        (*_columns_of(sought), pipeline),
    )
    return {asker for (asker,) in cursor}


def dead_letters_among(
    connection: psycopg.Connection, sought: Sequence[Sought], pipeline: str
) -> dict[int, list[DeadLetter]]:
    """Return the dead letters among the sought, by asker: of the same topic, and not older than the record.

    A former log's, or a former topic's where no id was noted, had that offset before the record was.
    """
    cursor = connection.execute(
        f"""
        SELECT s.asker, d.partition, d."offset", d.code, d.message, d."column"
        FROM {_SOUGHT} JOIN kbatchd.dead_letters AS d
        ON d.route OPERATOR(pg_catalog.=) s.route AND d.topic OPERATOR(pg_catalog.=) s.topic
           AND d.partition OPERATOR(pg_catalog.=) s.partition
        WHERE d.pipeline OPERATOR(pg_catalog.=) %s
          AND d."offset" OPERATOR(pg_catalog.>=) s.first AND d."offset" OPERATOR(pg_catalog.<=) s.last
          AND (d.topic_id IS NULL OR d.topic_id OPERATOR(pg_catalog.=) s.topic_id)
          AND d.refused_at OPERATOR(pg_catalog.>=) pg_catalog.to_timestamp(s.since)
        ORDER BY s.asker, d.partition, d."offset"
        """,  # noqa: S608 - a constant
        (*_columns_of(sought), pipeline),
    )
    letters: dict[int, list[DeadLetter]] = {}
    for asker, *letter in cursor:
        letters.setdefault(asker, []).append(DeadLetter(*letter))
    return letters


def _columns_of(sought: Sequence[Sought]) -> list[list[object]]:
    return [list(column) for column in zip(*sought, strict=True)]
