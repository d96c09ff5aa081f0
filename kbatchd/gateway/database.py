"""The gateway's one PostgreSQL connection, in a thread of its own: what the tables are, and how far they are filled.

The event loop never waits for PostgreSQL. It is told of the tables' columns (from the cache first, then as they are,
then whenever they change), and asks with `committed` whether records have come into the table: while somebody asks,
this thread looks at progress every few milliseconds, with one query for all who wait. Made after the fork, in a gateway
process; `on_tables` is called on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
import time
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING

from kbatchd.door import tables
from kbatchd.errors import KbatchError
from kbatchd.postgres.connection import connect, explained
from kbatchd.schema import arrived, pausing
from kbatchd.schema.arrived import CLOCK_SLACK_SECONDS, Arrived, Sought

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kbatchd.config import Config, Route
    from kbatchd.door.tables import Tables
    from kbatchd.gateway.logs import Log
    from kbatchd.model import OffsetRange
    from kbatchd.postgres.connection import Connection
    from kbatchd.schema.arrived import DeadLetter, Snapshot
    from kbatchd.schema.pausing import Pause

log = logging.getLogger(__name__)

#: How often progress is looked at while somebody waits: the query takes 0.2 ms, a flush lingers much longer.
LOOK_SECONDS = 0.02

#: How often it is looked while somebody waits which routes are paused.
PAUSES_SECONDS = 0.5

#: How often the tables are compared with what is known of them.
TABLES_SECONDS = 10.0

#: Between two attempts to connect, growing up to the second.
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS = 0.1, 2.0


class Outcome(Enum):
    """What became of records, as far as one waited."""

    COMMITTED = auto()  # rows, all of them, and durably so
    LOST = auto()  # some were deleted or truncated before they were read, or went with a topic that was recreated
    PENDING = auto()  # not all are in the table yet, or nobody can tell


@dataclass(slots=True, eq=False)
class _Waiter:
    """One request that waits."""

    route: Route
    ranges: Sequence[OffsetRange]
    future: asyncio.Future[Outcome | Pause | list[DeadLetter]]
    #: When the records were sent.
    since: float
    deadline: float
    #: Which log they are in; None: that is not known yet, or never.
    log: Log | None = None
    #: Whose progress was of that topic: if it is of another later, the records are gone.
    met: set[int] = field(default_factory=set)
    #: Where the WAL ended when progress was seen behind the records; it must be flushed up to there.
    seen_at: int | None = None


class Database(threading.Thread):
    """Reads the tables, and watches progress for those who wait."""

    def __init__(self, config: Config, name: str) -> None:
        super().__init__(name="database", daemon=True)
        self._config = config
        self._name = f"kbatchd {name}"
        self._loop = asyncio.get_running_loop()
        #: Told on the event loop of what is known of the tables.
        self.on_tables: Callable[[Tables], None] = lambda _: None
        #: Set when the tables have been read, or could not be.
        self.looked = asyncio.Event()
        self._wake = threading.Condition()
        self._stopping = False
        self._arrivals: list[_Waiter] = []
        self._waiters: list[_Waiter] = []
        self._tables: Tables = {}
        self._tables_at = 0.0
        self._pauses: dict[str, Pause] = {}
        self._pauses_at = 0.0
        self._away = False

    async def committed(
        self,
        route: Route,
        ranges: Sequence[OffsetRange],
        timeout_seconds: float,
        since: float,
        log: Awaitable[Log | None],
    ) -> Outcome | Pause | list[DeadLetter]:
        """Wait until all these records are in the table, and durably so; or return those that became dead letters.

        Nobody waits for a route that is paused.
        They were sent after `since`; `log` will say which log they are in. As long as that is not known they are not
        known to be in the table either.
        """
        future: asyncio.Future[Outcome | Pause | list[DeadLetter]] = self._loop.create_future()
        waiter = _Waiter(route, ranges, future, since, time.monotonic() + timeout_seconds)
        naming = asyncio.ensure_future(self._find_log(waiter, log))
        with self._wake:
            if self._stopping:
                naming.cancel()
                return Outcome.PENDING
            self._arrivals.append(waiter)
        try:
            # The thread itself may be busy with a server that does not answer.
            return await asyncio.wait_for(future, timeout_seconds)
        except TimeoutError:
            return Outcome.PENDING
        finally:
            naming.cancel()

    async def _find_log(self, waiter: _Waiter, log: Awaitable[Log | None]) -> None:
        """Let the thread know which log the records are in."""
        waiter.log = await log
        with self._wake:
            self._wake.notify()

    def give_up(self) -> None:
        """Tell all who wait that the rows are not there yet; from the event loop, at a stop."""
        with self._wake:
            waiters = [*self._arrivals, *self._waiters]
            self._arrivals.clear()
        for waiter in waiters:
            _settle(waiter, Outcome.PENDING)

    def stop(self) -> None:
        """End the thread, and wait for its end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self.is_alive():
            self.join()

    def run(self) -> None:
        """Hold a connection, make another when it breaks, until told to stop."""
        self._publish(dict(tables.read_cache(self._config)))
        retry_seconds = FIRST_RETRY_SECONDS
        while not self._stopping:
            try:
                with connect(self._config.postgres, self._name) as connection, explained():
                    self._note_away(None)
                    retry_seconds = FIRST_RETRY_SECONDS
                    self._serve(connection)
            except KbatchError as error:
                self._note_away(error)
                self._call(self.looked.set)
                self._pause(retry_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
                retry_seconds = min(MAX_RETRY_SECONDS, 2 * retry_seconds)

    def _serve(self, connection: Connection) -> None:
        """Do the work, on a new connection: perhaps to a server that has crashed and lost what was seen."""
        self._tables_at = self._pauses_at = 0.0
        for waiter in self._waiters:
            waiter.seen_at = None
        while not self._stopping:
            if time.monotonic() >= self._tables_at:
                self._look_at_tables(connection)
            self._take_arrivals()
            if self._waiters:
                self._look_at_progress(connection)
                self._look_at_pauses(connection)
            self._pause(LOOK_SECONDS if self._waiters else max(0.0, self._tables_at - time.monotonic()))

    def _pause(self, seconds: float) -> None:
        with self._wake:
            if not self._stopping and not self._arrivals:
                self._wake.wait(seconds)

    def _take_arrivals(self) -> None:
        with self._wake:
            self._waiters += self._arrivals
            self._arrivals.clear()
        now = time.monotonic()
        self._waiters = [waiter for waiter in self._waiters if waiter.deadline > now and not waiter.future.done()]

    def _look_at_tables(self, connection: Connection) -> None:
        self._tables_at = time.monotonic() + TABLES_SECONDS
        found = tables.read(connection, self._config.route)
        if {name: _shown(table) for name, table in found.items()} != {
            name: _shown(table) for name, table in self._tables.items()
        }:
            self._publish(found)
            tables.write_cache(self._config, found)
        self._call(self.looked.set)

    def _publish(self, found: Tables) -> None:
        self._tables = found
        self._call(self.on_tables, found)

    def _look_at_progress(self, connection: Connection) -> None:
        """Settle all whose records have arrived, and durably so."""
        pipeline = self._config.pipeline
        snapshot = arrived.snapshot(connection, pipeline)
        there = [waiter for waiter in self._waiters if waiter.log and self._has_arrived(waiter, waiter.log, snapshot)]
        sought = [
            Sought(
                index, waiter.route.name, waiter.route.topic, waiter.log.topic_id, at.number, first, last,
                waiter.since + snapshot.clock - CLOCK_SLACK_SECONDS,
            )
            for index, waiter in enumerate(there)
            for at, first, last in waiter.ranges
            if waiter.log
        ]  # fmt: skip
        if not sought:
            return
        lost = arrived.lost_among(connection, sought, pipeline)
        dead = arrived.dead_letters_among(connection, sought, pipeline)
        for index, waiter in enumerate(there):
            self._call(_settle, waiter, Outcome.LOST if index in lost else dead.get(index) or Outcome.COMMITTED)

    def _look_at_pauses(self, connection: Connection) -> None:
        """Settle those whose records are known not to be there yet, and whose route is paused."""
        if time.monotonic() >= self._pauses_at:
            self._pauses = pausing.read_pauses(connection, self._config.pipeline)
            self._pauses_at = time.monotonic() + PAUSES_SECONDS
        for waiter in self._waiters:
            if waiter.route.name in self._pauses and waiter.log and waiter.seen_at is None:
                self._call(_settle, waiter, self._pauses[waiter.route.name])

    def _has_arrived(self, waiter: _Waiter, log: Log, snapshot: Snapshot) -> bool:
        for (_, number), first, last in waiter.ranges:
            at = snapshot.partitions.get((waiter.route.name, waiter.route.topic, number))
            if at is None:
                return False
            if at.topic_id != log.topic_id:
                if number in waiter.met:
                    self._call(_settle, waiter, Outcome.LOST)
                return False
            waiter.met.add(number)
            past = at.past(log.epochs[number], first, last)
            if past is Arrived.NEVER:
                self._call(_settle, waiter, Outcome.LOST)
            if past is not Arrived.YES:
                waiter.seen_at = None  # a crash may have moved progress back
                return False
        if waiter.seen_at is None:
            waiter.seen_at = snapshot.wal_end
        return snapshot.wal_flushed >= waiter.seen_at

    def _note_away(self, error: Exception | None) -> None:
        """Tell once that PostgreSQL went away, and once that it is back."""
        if error is not None and not self._away and not self._stopping:
            log.warning("PostgreSQL is away", extra={"action": "postgres_away", "error": str(error)})
        elif error is None and self._away:
            log.warning("PostgreSQL is back", extra={"action": "postgres_back"})
        self._away = error is not None

    def _call(self, function: Callable[..., None], *arguments: object) -> None:
        """Call a function on the event loop; which may have ended before us."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function, *arguments)


def _settle(waiter: _Waiter, outcome: Outcome | Pause | list[DeadLetter]) -> None:
    if not waiter.future.done():  # it may have run out of time, or its client may have hung up
        waiter.future.set_result(outcome)


def _shown(table: tables.Columns | KbatchError) -> object:
    """Return what a difference shows in: an exception is equal to itself only."""
    return str(table) if isinstance(table, KbatchError) else table
