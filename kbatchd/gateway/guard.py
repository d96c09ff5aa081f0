"""What all connections of a gateway process share: the application, the limits, the counts, and the look at the clock.

Time limits cost a request no timer, only looks at the clock: one sweep over all connections compares time stamps.
Made by the server; runs on a gateway's event loop.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from email.utils import formatdate
from math import inf
from typing import TYPE_CHECKING, Protocol

from kbatchd.gateway.memory import Memory

if TYPE_CHECKING:
    from kbatchd.config import Gateway
    from kbatchd.gateway.exchange import Application

log = logging.getLogger(__name__)

#: The longest time between two sweeps; one over 10,000 connections takes 2 ms.
SWEEP_SECONDS = 0.25

#: What was refused is counted, and told in one line this often.
REPORT_SECONDS = 10.0

#: At a stop, requests that the kernel has already are still taken: so long for one to be read, and for its head.
STOP_IDLE_SECONDS = 0.1
STOP_HEAD_SECONDS = 1.0


class Guarded(Protocol):
    """A connection, as its guard sees it."""

    def check_time(self, now: float) -> None:
        """End what has waited too long."""

    def note_stop(self) -> None:
        """Measure the time that is left from now on."""

    def give_up(self) -> None:
        """Answer what is still being answered, as well as one can."""

    def hang_up(self) -> None:
        """Close, once what was written is sent."""


class Guard:
    """Of one process."""

    def __init__(self, app: Application, gateway: Gateway) -> None:
        self.app = app
        self.max_header_bytes = gateway.max_header_bytes
        self.max_connections = gateway.max_connections
        # Two of the largest bodies must find room: one is held twice for a moment.
        self.memory = Memory(max(gateway.max_held_bytes, 2 * gateway.max_body_bytes))
        self.connections: set[Guarded] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        #: Set when a stop has no connection left.
        self.empty = asyncio.Event()
        #: The header, renewed by each sweep.
        self.date = b""
        #: How long a connection may wait for each of its steps, and how long an answer for being read.
        self.seconds = (
            gateway.idle_timeout_seconds,
            gateway.header_timeout_seconds,
            gateway.body_timeout_seconds,
            inf,  # what the application waits for has limits of its own
            gateway.body_timeout_seconds,
        )
        self.write_seconds = gateway.body_timeout_seconds
        self._grace_seconds = gateway.grace_seconds
        self._refused: Counter[str] = Counter()
        self._report_at = 0.0

    async def watch(self) -> None:
        """Sweep until cancelled."""
        while True:
            self.sweep()
            await asyncio.sleep(min(SWEEP_SECONDS, min(self.seconds) / 4))

    def sweep(self) -> None:
        """Find the connections whose time is over."""
        self.date = b"date: %b\r\n" % formatdate(usegmt=True).encode()
        now = time.monotonic()
        for connection in list(self.connections):
            connection.check_time(now)
        if self._refused and now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            log.warning("requests refused", extra={"action": "requests_refused", **self._refused})
            self._refused.clear()

    def count(self, what: str) -> bool:
        """Count what is worth a line in the log, but not one each time; tell whether it is the first of its kind."""
        self._refused[what] += 1
        return self._refused[what] == 1

    def leave(self, connection: Guarded) -> None:
        """Forget a connection that has ended."""
        self.connections.discard(connection)
        if self.stopping and not self.connections:
            self.empty.set()

    def stop(self) -> None:
        """Let each connection end with the last answer that it waits for; what is not whole has little time left."""
        self.stopping = True
        idle, head, body, answer, end = self.seconds
        self.seconds = (
            min(idle, STOP_IDLE_SECONDS),
            min(head, STOP_HEAD_SECONDS, self._grace_seconds / 4),
            min(body, self._grace_seconds / 2),
            answer,
            min(end, STOP_HEAD_SECONDS, self._grace_seconds / 4),
        )
        for connection in self.connections:
            connection.note_stop()
        if not self.connections:
            self.empty.set()
