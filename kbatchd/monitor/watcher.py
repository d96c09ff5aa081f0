"""The watcher: asks PostgreSQL and Kafka every other second, on connections of its own, and keeps the last answers.

A thread of the monitor. What it knows is one immutable `View`, which it replaces; the event loop reads it and never
waits. A server that does not answer leaves its part of the view as it was, with the time of the answer: old is shown as
old. PostgreSQL and Kafka are asked by this thread only, whatever clients ask of the monitor.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kbatchd.errors import KbatchError
from kbatchd.kafka import topics
from kbatchd.monitor.history import DAY_BIN_SECONDS, DAY_SECONDS, RECENT_SECONDS, SAMPLE_SECONDS, History
from kbatchd.monitor.lag import Oldest, PartitionLag, survey
from kbatchd.postgres.connection import Connection, Error, connect
from kbatchd.schema import overview, pausing
from kbatchd.stats.slots import Count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kbatchd.config import Config
    from kbatchd.model import Partition
    from kbatchd.schema.overview import Cause, Claimed, RecordedGap
    from kbatchd.schema.pausing import Pause
    from kbatchd.stats.slots import Slots

log = logging.getLogger(__name__)

#: How often dead letters and gaps are read, and the last bins of the ledger.
CAUSES_SECONDS = 5.0
LEDGER_SECONDS = 10.0

#: How long PostgreSQL and Kafka may take to answer; the first look at a day of the ledger takes longer.
STATEMENT_SECONDS = 5
DAY_STATEMENT_SECONDS = 60
KAFKA_SECONDS = 5.0

#: An answer older than this is shown as old, and a lag that comes of it is no metric any more.
STALE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Contact:
    """How it stands with a server: when it answered last (seconds since 1970), and what is wrong, if anything."""

    answered_at: float | None = None
    error: str | None = None

    @property
    def age_seconds(self) -> float | None:
        """How old the last answer is."""
        return None if self.answered_at is None else max(0.0, time.time() - self.answered_at)

    @property
    def is_up(self) -> bool:
        """Whether there is an answer, and a fresh one."""
        age = self.age_seconds
        return self.error is None and age is not None and age < STALE_SECONDS


@dataclass(frozen=True, slots=True)
class View:
    """The last answers."""

    postgres: Contact = field(default_factory=Contact)
    kafka: Contact = field(default_factory=Contact)
    claimed: Sequence[Claimed] = ()
    lags: Sequence[PartitionLag] = ()
    #: Since when records wait, by route and partition.
    oldest: Mapping[tuple[str, Partition], float] = field(default_factory=dict)
    causes: Sequence[Cause] = ()
    #: Routes whose every record is refused, and for how many records.
    refused: Mapping[str, int] = field(default_factory=dict)
    gaps: Sequence[RecordedGap] = ()
    #: By route, those that are paused.
    pauses: Mapping[str, Pause] = field(default_factory=dict)


class Watcher(threading.Thread):
    """The thread; see the module."""

    def __init__(self, config: Config, slots: Slots, history: History) -> None:
        """Prepare; no connection is made before `start`."""
        super().__init__(name="watcher", daemon=True)
        self.view = View()
        self._config = config
        self._slots = slots
        self._history = history
        self._stopped = threading.Event()
        self._connection: Connection | None = None
        self._admin: topics.Admin | None = None
        self._oldest: Oldest | None = None
        self._causes_at = self._ledger_at = 0.0

    def run(self) -> None:
        """Look until stopped."""
        while not self._stopped.is_set():
            began = time.monotonic()
            self._ask_postgres()
            self._ask_kafka()
            self._history.add(self._rows_now(), self._lag_now(), time.time())
            self._stopped.wait(max(0.1, SAMPLE_SECONDS - (time.monotonic() - began)))

    def stop(self) -> None:
        """End after the look that is under way."""
        self._stopped.set()

    def _ask_postgres(self) -> None:
        try:
            self._read()
        except (KbatchError, Error) as error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            self.view = replace(self.view, postgres=replace(self.view.postgres, error=_one_line(error)))

    def _read(self) -> None:
        if self._connection is None:
            self._connection = connect(self._config.postgres, "kbatchd monitor")
            self._connection.execute("SET default_transaction_read_only = on")
        connection, pipeline, now = self._connection, self._config.pipeline, time.monotonic()
        if now >= self._ledger_at:
            self._read_ledger(connection)
            self._ledger_at = now + LEDGER_SECONDS
        claimed = overview.read_claimed(connection, pipeline)
        pauses = pausing.read_pauses(connection, pipeline)
        self.view = replace(self.view, claimed=claimed, pauses=pauses, postgres=Contact(time.time()))
        if now >= self._causes_at:
            causes, refused = overview.read_causes(connection, pipeline), overview.read_refusals(connection, pipeline)
            gaps = overview.read_gaps(connection, pipeline)
            self.view = replace(self.view, causes=causes, refused=refused, gaps=gaps)
            self._causes_at = now + CAUSES_SECONDS

    def _read_ledger(self, connection: Connection) -> None:
        """Read a whole day once, then what has come since the last bin began."""
        pipeline, now, since = self._config.pipeline, time.time(), self._history.day_known_to
        connection.execute(f"SET statement_timeout = '{STATEMENT_SECONDS if since else DAY_STATEMENT_SECONDS}s'")
        bins = overview.read_bins(connection, pipeline, since or now - DAY_SECONDS, DAY_BIN_SECONDS)
        if not since:
            connection.execute(f"SET statement_timeout = '{STATEMENT_SECONDS}s'")
            self._history.begin(overview.read_bins(connection, pipeline, now - RECENT_SECONDS, SAMPLE_SECONDS))
        self._history.add_day(bins, now)

    def _ask_kafka(self) -> None:
        """Compare the last progress known with the topics as they are now."""
        if self.view.postgres.answered_at is None:
            return
        try:
            if self._admin is None:
                self._admin = topics.make_admin(self._config.kafka)
            lags = survey(self._admin, self.view.claimed, KAFKA_SECONDS)
            self.view = replace(self.view, lags=lags, kafka=Contact(time.time()))
            if self._oldest is None:
                name = f"{self._config.pipeline}-monitor"
                self._oldest = Oldest(self._config.kafka, name, {route.topic for route in self._config.route})
            self.view = replace(self.view, oldest=self._oldest.times(lags))
        except KbatchError as error:
            self.view = replace(self.view, kafka=replace(self.view.kafka, error=_one_line(error)))

    def _rows_now(self) -> dict[str, int]:
        """Add up the rows of each route over the workers."""
        workers = self._slots.of("worker")
        return {
            route.name: sum(slot.routes[route.name][Count.ROWS] for slot in workers) for route in self._config.route
        }

    def _lag_now(self) -> dict[str, int] | None:
        if not self.view.kafka.is_up:
            return None
        lags: dict[str, int] = {}
        for lag in self.view.lags:
            lags[lag.progress.route] = lags.get(lag.progress.route, 0) + (lag.records or 0)
        return lags


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
