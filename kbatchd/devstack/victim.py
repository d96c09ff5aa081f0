"""The worker that the demo kills with SIGKILL: found at its work, and looked for again until another has replaced it.

Which process it is, it has told itself, in progress, when it claimed its partitions. Called by `kbatchd demo` in its
main thread, on a connection of its own.
"""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.devstack.process import children

if TYPE_CHECKING:
    import psycopg

#: The workers with partitions of the topic, the one with the most before it first. One is behind until its partitions
#: have their share of the records.
WORKERS = """
    SELECT p.owner, p.pid,
           pg_catalog.bool_or(a.xact_start IS NOT NULL AND pg_catalog.starts_with(a.query, 'COPY')) AS copies,
           coalesce(pg_catalog.sum(p.next_offset), 0) OPERATOR(pg_catalog.<)
               (pg_catalog.count(*) OPERATOR(pg_catalog.*) %(each)s::numeric) AS is_behind
      FROM kbatchd.progress AS p
      JOIN pg_catalog.pg_stat_activity AS a ON a.pid OPERATOR(pg_catalog.=) p.backend_pid
     WHERE p.topic OPERATOR(pg_catalog.=) %(topic)s AND p.host OPERATOR(pg_catalog.=) %(host)s
     GROUP BY p.owner, p.pid
     ORDER BY pg_catalog.sum(p.next_offset)
"""
SUCCESSOR = """
    SELECT pg_catalog.min(pid) FROM kbatchd.progress
     WHERE topic OPERATOR(pg_catalog.=) %(topic)s AND owner OPERATOR(pg_catalog.=) %(owner)s
    HAVING pg_catalog.bool_and(pid OPERATOR(pg_catalog.<>) %(pid)s)
"""


class Worker(NamedTuple):
    """A worker of the daemon, as it stands in progress."""

    owner: str
    pid: int
    #: Whether a COPY of its own is under way, which has not been committed.
    copies: bool
    #: Whether its partitions have records that are not in the table.
    is_behind: bool


class Killed(NamedTuple):
    """Who was killed, and how many rows there were by then."""

    worker: Worker
    rows: int
    #: The process in its place, once it has claimed all of its partitions.
    successor: int | None = None

    @property
    def name(self) -> str:
        """The worker's name, for people."""
        return self.worker.owner.replace("-", " ")


class Hunt:
    """Waits for a worker of the daemon to be in the middle of its work, kills it once, and looks for its successor."""

    def __init__(self, connection: psycopg.Connection, daemon: int, topic: str, records_each: float) -> None:
        """Watch the workers of the process `daemon`; each partition of the topic gets so many records."""
        self._connection = connection
        self._daemon = daemon
        self._topic = topic
        self._records_each = records_each
        self.killed: Killed | None = None

    def strike(self, rows: int, *, any_work: bool) -> Killed | None:
        """Kill a worker whose COPY is under way, or with `any_work` one that has records to write, if there is one."""
        workers = self._workers()
        prey = [worker for worker in workers if worker.copies] or (workers if any_work else [])
        if prey:
            os.kill(prey[0].pid, signal.SIGKILL)
            self.killed = Killed(prey[0], rows)
        return self.killed

    def is_replaced(self) -> bool:
        """Tell whether another process has claimed all that the killed one had."""
        if self.killed is None:
            return False
        worker = self.killed.worker
        names = {"topic": self._topic, "owner": worker.owner, "pid": worker.pid}
        row = self._connection.execute(SUCCESSOR, names).fetchone()
        self.killed = self.killed._replace(successor=row[0] if row else None)
        return self.killed.successor in children(self._daemon)

    def _workers(self) -> list[Worker]:
        """Return the workers that have something to do, the one with the most first."""
        names = {"topic": self._topic, "each": self._records_each, "host": socket.gethostname()}
        workers = [Worker(*row) for row in self._connection.execute(WORKERS, names)]
        own = children(self._daemon)  # a pid that stands in a database may be anybody's
        return [worker for worker in workers if worker.is_behind and worker.pid in own]
