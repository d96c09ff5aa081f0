"""The ledger, `kbatchd.batches`: a line for each transaction that moves progress, written within it.

Called by what moves it: a flusher, the replay of dead letters, an operator's command; on their connections.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import orjson

from kbatchd.model import Partition
from kbatchd.postgres.books import agree
from kbatchd.schema.progress import Owner

if TYPE_CHECKING:
    from collections.abc import Mapping

    import psycopg


#: The reason of a line that has moved nothing: of a range that was read again by hand.
READ_AGAIN = "replay"


class Flushed(NamedTuple):
    """What a transaction has written, for the ledger."""

    rows: int = 0
    dead_letters: int = 0
    #: Rows that a BEFORE trigger did not let in.
    skipped: int = 0
    size_bytes: int = 0
    #: From the batch's first record until it was closed.
    fill_seconds: float = 0.0


NOTHING = Flushed()


def write_ledger(
    connection: psycopg.Connection,
    owner: Owner,
    reason: str,
    spans: Mapping[Partition, tuple[int, int]],
    flushed: Flushed = NOTHING,
) -> None:
    """Add the line of this transaction to kbatchd.batches."""
    written = connection.execute(
        """
        INSERT INTO kbatchd.batches
            (pipeline, route, worker, reason, rows, dead_letters, skipped, bytes, spans, fill_seconds)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s::pg_catalog.jsonb, %s)
        """,
        (
            owner.pipeline,
            owner.route,
            owner.worker,
            reason,
            flushed.rows,
            flushed.dead_letters,
            flushed.skipped,
            flushed.size_bytes,
            orjson.dumps({owner.topic: {str(partition.number): span for partition, span in spans.items()}}).decode(),
            flushed.fill_seconds,
        ),
    ).rowcount
    agree("lines of the ledger", 1, written)
