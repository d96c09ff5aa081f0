"""Paused routes: an operator's word, in kbatchd.pauses, that holds on every host and over every restart.

A paused route keeps its partitions, so that nobody takes them over, and reads and writes nothing. Each flusher looks
once a sweep; a gateway, the monitor and `kbatchd status` look too. Said by `kbatchd route`, in its main thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kbatchd.schema.progress import durable_transaction

if TYPE_CHECKING:
    from datetime import datetime

    import psycopg


class Pause(NamedTuple):
    """Who has paused a route, and since when it is."""

    by: str
    at: datetime

    def __str__(self) -> str:
        return f"paused since {self.at.isoformat(timespec='seconds')} by {self.by}"


def read_pauses(connection: psycopg.Connection, pipeline: str) -> dict[str, Pause]:
    """Read which routes of a pipeline are paused."""
    rows = connection.execute(
        "SELECT route, paused_by, paused_at FROM kbatchd.pauses WHERE pipeline OPERATOR(pg_catalog.=) %s", (pipeline,)
    )
    return {route: Pause(by, at) for route, by, at in rows}


def pause(connection: psycopg.Connection, pipeline: str, route: str, by: str) -> bool:
    """Pause a route; tell whether it was not paused already, in which case it stays as it was."""
    with durable_transaction(connection):
        return bool(
            connection.execute(
                """
                INSERT INTO kbatchd.pauses (pipeline, route, paused_by) VALUES (%s, %s, %s)
                ON CONFLICT (pipeline, route) DO NOTHING
                """,
                (pipeline, route, by),
            ).rowcount
        )


def resume(connection: psycopg.Connection, pipeline: str, route: str) -> Pause | None:
    """Let a route go on; return the pause that is over, None if there was none."""
    with durable_transaction(connection):
        row = connection.execute(
            """
            DELETE FROM kbatchd.pauses
            WHERE pipeline OPERATOR(pg_catalog.=) %s AND route OPERATOR(pg_catalog.=) %s
            RETURNING paused_by, paused_at
            """,
            (pipeline, route),
        ).fetchone()
    return None if row is None else Pause(*row)
