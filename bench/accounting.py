"""The kernel's accounts of everybody's CPU time and memory: the workers, PostgreSQL and the broker.

A server that is not on this machine, or that we may not see, has none. Used by the rig, and by http.py.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

    import psycopg

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU seconds used so far; None where the server is not on this machine."""

    workers: float
    postgres: float | None
    broker: float | None


class Accounts:
    """Of one benchmark's servers."""

    def __init__(self, connection: psycopg.Connection, broker: psutil.Process | None) -> None:
        """Find PostgreSQL behind the connection, whose own session is not counted."""
        self._own_session = connection.info.backend_pid
        self._postmaster = _postmaster(self._own_session)
        self._broker = broker

    def cpu(self, workers: Iterable[int]) -> Cpu:
        """Return what all have used; the workers by their pids."""
        postgres = None
        if self._postmaster is not None:
            # What ended meanwhile is in its parent's account of its children: nothing is lost or counted twice.
            backends = sum(cpu_seconds(pid) for pid in children(self._postmaster) if pid != self._own_session)
            postgres = cpu_seconds(self._postmaster, waited_for=True) + backends
        return Cpu(sum(map(cpu_seconds, workers)), postgres, self.broker_cpu_seconds())

    def broker_cpu_seconds(self) -> float | None:
        """Return what the broker has used; None where it is not on this machine."""
        return None if self._broker is None else cpu_seconds(self._broker.pid)


def _postmaster(backend_pid: int) -> int | None:
    """Return the parent of our backend, if PostgreSQL runs on this machine."""
    try:
        backend = psutil.Process(backend_pid)
        parent = backend.parent()
    except psutil.NoSuchProcess:
        return None
    return parent.pid if parent is not None and "postgres" in backend.name() else None


def listener(address: str) -> psutil.Process | None:
    """Return the process of this machine that listens on a `host:port`, if we may see it."""
    port = int(address.partition(",")[0].rpartition(":")[2])
    with contextlib.suppress(psutil.AccessDenied):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return psutil.Process(connection.pid)
    return None


def children(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    return [child.pid for child in psutil.Process(pid).children()]


def cpu_seconds(pid: int, *, waited_for: bool = False) -> float:
    """Return user and system time of a process, all its threads; or also of the children that it has waited for.

    Fields 14 to 17 of proc(5)'s stat, after the name in brackets. 0 for a process that has ended meanwhile: its parent
    has the time by then.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11 : 15 if waited_for else 13])) / TICKS_PER_SECOND


def peak_rss_bytes(pid: int) -> int:
    """Return the most memory that a process has had at any time."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split(maxsplit=1)[0]) * 1024
