"""Whether records have come into the table, for those who wait: beyond progress, durable, in no gap, no dead letter.

Only reads. Called by a gateway's database thread, with one query for all who wait.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kbatchd import progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

_SOUGHT = """
unnest(%s::int[], %s::text[], %s::text[], %s::text[], %s::int[], %s::bigint[], %s::bigint[])
AS s(asker, route, topic, topic_id, partition, first, last)
"""


class Standing(NamedTuple):
    """Where a pipeline's partitions stand, by route, topic and number, and how far the WAL is written and flushed."""

    partitions: dict[tuple[str, str, int], progress.ProgressRow]
    wal_end: int
    wal_flushed: int


class Sought(NamedTuple):
    """Offsets somebody asks for, both ends included; `asker` is whose they are."""

    asker: int
    route: str
    topic: str
    topic_id: str
    partition: int
    first: int
    last: int


class DeadLetter(NamedTuple):
    """A record that was refused, and why."""

    partition: int
    offset: int
    code: str
    message: str
    column: str | None


def standing(connection: psycopg.Connection, pipeline: str) -> Standing:
    """Read where all partitions stand. What is seen is durable once the WAL is flushed up to `wal_end`.

    With synchronous_commit off a commit can be seen before it is on disk. Its record lies in the WAL below whatever
    end is read after it was seen: hence the order of the two statements.
    """
    rows = progress.show(connection, pipeline)
    wal = connection.execute(
        "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, (pg_current_wal_flush_lsn() - '0/0')::bigint"
    ).fetchone()
    assert wal is not None
    return Standing({(row.route, row.topic, row.partition): row for row in rows}, *wal)


def lost_among(connection: psycopg.Connection, pipeline: str, sought: Sequence[Sought]) -> set[int]:
    """Return the askers whose offsets lie in a recorded gap of the topic as it is."""
    cursor = connection.execute(
        f"""
        SELECT DISTINCT s.asker FROM {_SOUGHT} JOIN kbatchd.gaps AS g
        USING (route, topic, topic_id, partition)
        WHERE g.pipeline = %s AND g.first_offset <= s.last AND g.last_offset > s.first
        """,  # noqa: S608 - a constant
        (*_columns_of(sought), pipeline),
    )
    return {asker for (asker,) in cursor}


def dead_letters_among(
    connection: psycopg.Connection, pipeline: str, sought: Sequence[Sought], max_age_seconds: float
) -> dict[int, list[DeadLetter]]:
    """Return the dead letters among the sought, by asker; older ones may be of a topic that is no more."""
    cursor = connection.execute(
        f"""
        SELECT s.asker, d.partition, d."offset", d.code, d.message, d."column"
        FROM {_SOUGHT} JOIN kbatchd.dead_letters AS d USING (route, topic, partition)
        WHERE d.pipeline = %s AND d."offset" BETWEEN s.first AND s.last
          AND d.refused_at > now() - make_interval(secs => %s)
        ORDER BY s.asker, d.partition, d."offset"
        """,  # noqa: S608 - a constant
        (*_columns_of(sought), pipeline, max_age_seconds),
    )
    letters: dict[int, list[DeadLetter]] = {}
    for asker, *letter in cursor:
        letters.setdefault(asker, []).append(DeadLetter(*letter))
    return letters


def _columns_of(sought: Sequence[Sought]) -> list[list[object]]:
    return [list(column) for column in zip(*sought, strict=True)]
