"""What the demo finds in the database: how far it is, and at the end whether each record is there exactly once.

Called by `kbatchd demo` in its main thread, on a connection of its own. Only reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import psycopg

OUTCOME = """
    SELECT pg_catalog.count(*), pg_catalog.count(DISTINCT id), pg_catalog.min(id), pg_catalog.max(id),
           (SELECT coalesce(pg_catalog.sum(next_offset), 0)::bigint FROM kbatchd.progress)
      FROM public.requests
"""
SUMMARY = """
    SELECT pg_catalog.count(*),
           coalesce(pg_catalog.sum("rows"), 0)::bigint,
           coalesce(pg_catalog.percentile_disc(0.5) WITHIN GROUP (ORDER BY "rows"), 0),
           coalesce(extract(
               epoch FROM pg_catalog.max(committed_at) OPERATOR(pg_catalog.-) pg_catalog.min(started_at)
           ), 0)::pg_catalog.float8
      FROM kbatchd.batches
     WHERE "rows" OPERATOR(pg_catalog.>) 0
"""


class Outcome(NamedTuple):
    """What the table holds and what progress says, when all is done."""

    rows: int
    distinct_ids: int
    first_id: int | None
    last_id: int | None
    next_offsets: int

    def proves(self, records: int) -> bool:
        """Tell whether every record became one row, and progress stands behind the last of them."""
        return self == Outcome(records, records, 0, records - 1, records)


class Summary(NamedTuple):
    """How it went, from the ledger."""

    batches: int
    rows: int
    median_rows: int
    seconds: float


def rows_in_ledger(connection: psycopg.Connection) -> int:
    """Count what was committed, dead letters too: without them a refused record would look like a standstill."""
    # From the ledger, not from the table: counting 300,000 rows many times a second is work of its own.
    row = connection.execute(
        'SELECT coalesce(pg_catalog.sum("rows" OPERATOR(pg_catalog.+) dead_letters), 0) FROM kbatchd.batches'
    ).fetchone()
    return int(row[0]) if row else 0


def read_outcome(connection: psycopg.Connection) -> Outcome:
    """Count in the table itself."""
    row = connection.execute(OUTCOME).fetchone()
    return Outcome(*row) if row else Outcome(0, 0, None, None, 0)


def read_summary(connection: psycopg.Connection) -> Summary:
    """Read how many batches it took, and how long."""
    row = connection.execute(SUMMARY).fetchone()
    return Summary(*row) if row else Summary(0, 0, 0, 0.0)
