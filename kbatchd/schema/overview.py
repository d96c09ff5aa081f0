"""What the schema kbatchd tells an observer: progress and its owners, the ledger, dead letters by cause, gaps.

Only reads; each statement is bounded, whatever the tables have grown to. Called by the monitor's watcher thread and by
`kbatchd status`, each on a connection of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from psycopg.rows import class_row

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg


#: So many of the youngest dead letters are sorted by cause, and so many causes are shown.
DEAD_LETTERS_LOOKED_AT = 10_000


MAX_CAUSES = 50


#: So much of a dead letter's key and value is shown.
SHOWN_BYTES = 2_048


class Claimed(NamedTuple):
    """One line of progress, and the session that has claimed it."""

    route: str
    topic: str
    topic_id: str
    partition: int
    #: None: its beginning is not known yet.
    next_offset: int | None
    epoch: int
    owner: str | None
    target: str
    updated_at: datetime
    #: When it was claimed, and by which process; None: never.
    claimed_at: datetime | None
    host: str | None
    pid: int | None
    #: Why it stands still: see halting.py.
    halted: str | None
    #: Whether that session is still there.
    is_held: bool


class Bin(NamedTuple):
    """What was committed for a route in some seconds from `at` on, a time in seconds since 1970."""

    at: float
    route: str
    rows: int
    dead_letters: int
    #: The longest time from a batch's first record to its commit.
    slowest_seconds: float


@dataclass(frozen=True, slots=True)
class Cause:
    """Dead letters of one route, code and column, and the youngest of them."""

    route: str
    code: str
    column: str | None
    count: int
    first_at: datetime
    last_at: datetime
    topic: str
    partition: int
    offset: int
    message: str
    key: bytes | None
    value: bytes | None
    value_bytes: int | None


@dataclass(frozen=True, slots=True)
class RecordedGap:
    """A line of kbatchd.gaps."""

    route: str
    topic: str
    partition: int
    kind: str
    first_offset: int
    last_offset: int
    recorded_at: datetime


def read_claimed(connection: psycopg.Connection, pipeline: str) -> list[Claimed]:
    """Read all progress of a pipeline, and which of the sessions that claimed it are there."""
    rows = connection.execute(
        """
        SELECT p.route, p.topic, p.topic_id, p.partition, p.next_offset, p.epoch, p.owner, p.target, p.updated_at,
               p.claimed_at, p.host, p.pid, p.halted, a.pid IS NOT NULL
        FROM kbatchd.progress AS p
        LEFT JOIN pg_catalog.pg_stat_activity AS a
            ON a.pid OPERATOR(pg_catalog.=) p.backend_pid
            AND a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
            AND a.application_name OPERATOR(pg_catalog.=) ('kbatchd ' OPERATOR(pg_catalog.||) p.owner)
        WHERE p.pipeline OPERATOR(pg_catalog.=) %s ORDER BY p.route, p.topic, p.partition
        """,
        (pipeline,),
    )
    return [Claimed(*row) for row in rows]


def read_bins(connection: psycopg.Connection, pipeline: str, since: float, seconds: float) -> list[Bin]:
    """Add up the ledger since a time, in bins of so many seconds."""
    rows = connection.execute(
        """
        SELECT (pg_catalog.floor(extract(epoch FROM committed_at) OPERATOR(pg_catalog./) %(seconds)s)
                OPERATOR(pg_catalog.*) %(seconds)s)::pg_catalog.float8 AS at, route,
               pg_catalog.sum(rows)::bigint, pg_catalog.sum(dead_letters)::bigint,
               pg_catalog.max(fill_seconds OPERATOR(pg_catalog.+)
                   extract(epoch FROM committed_at OPERATOR(pg_catalog.-) started_at))::pg_catalog.float8
        FROM kbatchd.batches
        WHERE pipeline OPERATOR(pg_catalog.=) %(pipeline)s
          AND committed_at OPERATOR(pg_catalog.>=) pg_catalog.to_timestamp(%(since)s)
        GROUP BY 1, 2 ORDER BY 1, 2
        """,
        {"pipeline": pipeline, "since": since, "seconds": seconds},
    )
    return [Bin(*row) for row in rows]


def read_refusals(connection: psycopg.Connection, pipeline: str) -> dict[str, int]:
    """Count, of each route, the dead letters since its last row, in the last hour's ledger; of some there are none.

    A route whose every record is refused looks well otherwise: it has an owner, and no lag.
    """
    rows = connection.execute(
        """
        SELECT b.route, pg_catalog.sum(b.dead_letters)::bigint FROM kbatchd.batches AS b
        WHERE b.pipeline OPERATOR(pg_catalog.=) %(pipeline)s
          AND b.committed_at OPERATOR(pg_catalog.>) (pg_catalog.now() OPERATOR(pg_catalog.-) interval '1 hour')
          AND b.dead_letters OPERATOR(pg_catalog.>) 0
          AND b.id OPERATOR(pg_catalog.>) coalesce((
              SELECT pg_catalog.max(good.id) FROM kbatchd.batches AS good
              WHERE good.pipeline OPERATOR(pg_catalog.=) b.pipeline AND good.route OPERATOR(pg_catalog.=) b.route
                AND good.rows OPERATOR(pg_catalog.>) 0 AND good.committed_at OPERATOR(pg_catalog.>)
                    (pg_catalog.now() OPERATOR(pg_catalog.-) interval '1 hour')), 0)
        GROUP BY b.route
        """,
        {"pipeline": pipeline},
    )
    return dict(rows.fetchall())


def read_causes(connection: psycopg.Connection, pipeline: str) -> list[Cause]:
    """Sort the open ones of the youngest dead letters by route, code and column; the most frequent first."""
    with connection.cursor(row_factory=class_row(Cause)) as cursor:
        return cursor.execute(
            """
            WITH young AS (
                SELECT id, route, code, "column", refused_at, state FROM kbatchd.dead_letters
                WHERE pipeline OPERATOR(pg_catalog.=) %(pipeline)s ORDER BY id DESC LIMIT %(looked_at)s
            ), causes AS (
                SELECT route, code, "column", pg_catalog.count(*), pg_catalog.min(refused_at) AS first_at,
                       pg_catalog.max(refused_at) AS last_at, pg_catalog.max(id) AS id
                FROM young WHERE state OPERATOR(pg_catalog.=) 'open'
                GROUP BY route, code, "column"
                ORDER BY pg_catalog.count(*) DESC, pg_catalog.max(id) DESC LIMIT %(causes)s
            )
            SELECT c.route, c.code, c."column", c.count, c.first_at, c.last_at, d.topic, d.partition, d."offset",
                   pg_catalog.left(d.message, %(bytes)s) AS message, substring(d.key FOR %(bytes)s) AS key,
                   substring(d.value FOR %(bytes)s) AS value, pg_catalog.octet_length(d.value) AS value_bytes
            FROM causes AS c JOIN kbatchd.dead_letters AS d ON d.id OPERATOR(pg_catalog.=) c.id
            ORDER BY c.count DESC, c.id DESC
            """,
            {
                "pipeline": pipeline,
                "looked_at": DEAD_LETTERS_LOOKED_AT,
                "causes": MAX_CAUSES,
                "bytes": SHOWN_BYTES,
            },
        ).fetchall()


def read_gaps(connection: psycopg.Connection, pipeline: str, count: int = 20) -> list[RecordedGap]:
    """Read the youngest gaps."""
    with connection.cursor(row_factory=class_row(RecordedGap)) as cursor:
        return cursor.execute(
            """
            SELECT route, topic, partition, kind, first_offset, last_offset, recorded_at
            FROM kbatchd.gaps WHERE pipeline OPERATOR(pg_catalog.=) %s ORDER BY id DESC LIMIT %s
            """,
            (pipeline, count),
        ).fetchall()
