"""Why a partition stands still until somebody acts, in kbatchd.progress: a gap in its topic, or the breaker.

A gap is of the topic: `progress accept` goes on behind it. The breaker is of the records: too many were refused in a
row, nothing is missing, and `progress accept` only lets the route go on where it stood. A claimed partition is tried
again, so a claim takes either word away. Called by the flusher, and by `kbatchd progress accept`, in its main thread.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbatchd.postgres.connection import Connection
    from kbatchd.schema.progress import Owner


class Halt(StrEnum):
    """What halted it."""

    GAP = "gap"
    BREAKER = "breaker"


def mark(connection: Connection, owner: Owner, epochs: Mapping[int, int], why: Halt) -> None:
    """Write down that these partitions stand still, where they are still under the epochs given."""
    connection.execute(
        """
        UPDATE kbatchd.progress AS p SET halted = %(why)s
        FROM ROWS FROM (
            pg_catalog.unnest(%(partitions)s::pg_catalog.int4[]), pg_catalog.unnest(%(epochs)s::pg_catalog.int8[])
        ) AS n(partition, epoch)
        WHERE p.pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND p.route OPERATOR(pg_catalog.=) %(route)s
          AND p.topic OPERATOR(pg_catalog.=) %(topic)s AND p.partition OPERATOR(pg_catalog.=) n.partition
          AND p.epoch OPERATOR(pg_catalog.=) n.epoch
        """,
        {
            "why": why.value,
            "pipeline": owner.pipeline,
            "route": owner.route,
            "topic": owner.topic,
            "partitions": list(epochs),
            "epochs": list(epochs.values()),
        },
    )


def resume(connection: Connection, owner: Owner, partition: int) -> bool:
    """Let a partition that the breaker has halted go on where it stands; tell whether it had.

    Its epoch goes up, so that the worker that has halted it claims it again.
    """
    return bool(
        connection.execute(
            """
            UPDATE kbatchd.progress SET halted = NULL, epoch = epoch OPERATOR(pg_catalog.+) 1
            WHERE pipeline OPERATOR(pg_catalog.=) %s AND route OPERATOR(pg_catalog.=) %s
              AND topic OPERATOR(pg_catalog.=) %s AND partition OPERATOR(pg_catalog.=) %s
              AND halted OPERATOR(pg_catalog.=) 'breaker'
            """,
            (owner.pipeline, owner.route, owner.topic, partition),
        ).rowcount
    )
