"""The flusher: the timer thread of a worker. It alone owns the PostgreSQL connection.

It claims partitions for the poll loop, copies each batch when it is full or has lingered, and is the one place that
decides what a failure means. A lost connection, a flush of unknown outcome and a lost claim all go one way: revoke the
lane, claim, read again from where progress stands. The poll loop starts it after the fork, as a thread of the worker.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING

from kbatchd.errors import (
    BreakerOpen,
    ConfigError,
    Fenced,
    KbatchError,
    ServerUnavailable,
    SinkError,
    TableChanged,
    TopicRecreated,
)
from kbatchd.kafka.identity import Identity
from kbatchd.postgres.connection import Connection, Error, Verdict, connect, verdict
from kbatchd.schema import pausing
from kbatchd.schema.halting import Halt
from kbatchd.sink.sink import Sink
from kbatchd.stats.place import At, Span, identity_of
from kbatchd.stats.slots import Count, Field, Slot, State
from kbatchd.worker.claims import SWEEP_SECONDS, Claims

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.config import Config
    from kbatchd.kafka.identity import TopicIds
    from kbatchd.kafka.topics import Admin
    from kbatchd.model import Record
    from kbatchd.sink.batch import Batch
    from kbatchd.sink.insertion import Outcome
    from kbatchd.worker.handover import Handover
    from kbatchd.worker.lane import Lane

log = logging.getLogger(__name__)

#: The longest pause between two tries at anything that failed.
MAX_BACKOFF_SECONDS = 5.0

#: How often a batch is tried again as it is; after that its lane gives it back, and reads it again.
RETRIES_WITH_BUFFERS = 3


@dataclass(slots=True)
class Backoff:
    """Pauses that double up to MAX_BACKOFF_SECONDS, jittered so that many workers do not come back as one."""

    failures: int = 0

    def next_seconds(self) -> float:
        """Count a failure; return how long to wait."""
        self.failures += 1
        longest = min(MAX_BACKOFF_SECONDS, 0.1 * 2.0 ** min(self.failures, 10))
        return random.uniform(0.5, 1.0) * longest  # noqa: S311 (no secret)

    def reset(self) -> None:
        """Forget the failures: it worked."""
        self.failures = 0


class Flusher(threading.Thread):
    """The thread; see the module."""

    def __init__(
        self, config: Config, worker: str, handover: Handover, slot: Slot, admin: Admin, ids: TopicIds
    ) -> None:
        super().__init__(name="flusher")
        self._admin = admin
        self._ids = ids
        self._pipeline = config.pipeline
        self._postgres = config.postgres
        self._worker = worker
        self._handover = handover
        self._slot = slot
        self._max_rows = config.batch.max_rows
        in_group = config.kafka.assignment == "group"
        self._claims = {
            name: Claims(config.pipeline, worker, handover, lane, slot.routes[name], admin, ids, in_group=in_group)
            for name, lane in handover.lanes.items()
        }
        self._connection: Connection | None = None
        self._sink: Sink | None = None
        #: Our session's pid and start: on a new connection the former session is ended first.
        self._session: tuple[int, object] | None = None
        self._backoff = Backoff()
        self._lane_backoffs = {name: Backoff() for name in handover.lanes}
        self._asked = False
        #: Why the thread ended, if not because it was told to.
        self.failure: Exception | None = None

    def run(self) -> None:
        """Work until `handover.stop()`, or until something fails that trying again does not fix."""
        try:
            while not self._handover.stopping:
                self._turn()
        except Exception as error:
            self.failure = error
            if not isinstance(error, KbatchError):
                log.exception("flusher died", extra={"action": "flusher_died"})
        finally:
            if self._connection is not None:
                self._connection.close()

    def _turn(self) -> None:
        """Connect if need be, take the news, sweep when it is time, and flush one batch."""
        try:
            self._connect()
            self._take_news()
            if time.monotonic() >= self._sweep_at():
                self._sweep()
            work = self._handover.next_batch(self._sweep_at())
            if work is not None:
                self._flush(*work)
        except ServerUnavailable as error:
            self._tell("waiting for PostgreSQL", "postgres_wait", error)
            self._pause()
        except Error as error:
            self._lose_connection(error)
            self._pause()

    def _sweep_at(self) -> float:
        return min(claims.sweep_at for claims in self._claims.values())

    def _connect(self) -> None:
        if self._connection is not None:
            return
        try:
            connection = connect(self._postgres, f"kbatchd {self._worker}")
        except ConfigError as error:  # while running, a password may be changed under us: go on trying
            raise ServerUnavailable(str(error)) from error
        self._connection, self._sink = connection, Sink(connection, self._handover.free_retired, self._at_letter)
        if self._session is not None:
            # Our former session may still hold locks, if only the network between us broke.
            connection.execute(
                """
                SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity
                WHERE pid OPERATOR(pg_catalog.=) %s AND backend_start OPERATOR(pg_catalog.=) %s
                """,
                self._session,
            )
        self._session = connection.execute(
            """
            SELECT pid, backend_start FROM pg_catalog.pg_stat_activity
            WHERE pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
            """
        ).fetchone()
        for claims in self._claims.values():
            claims.begin(connection)

    def _at_letter(self, route: str, record: Record | None) -> None:
        """Say which record's dead letter is being made: should that kill us, the supervisor knows."""
        place = self._slot.letters
        if record is None:
            place.leave()
            return
        number, offset = record.partition() or 0, record.offset() or 0
        span = Span(number, identity_of(self._ids.last(record.topic() or "")), offset, offset)
        place.enter(At.LETTER, list(self._claims).index(route), [span])

    def _lose_connection(self, error: Error) -> None:
        self._tell("connection to PostgreSQL lost", "postgres_lost", error)
        if self._connection is not None:
            self._connection.close()
        self._connection = self._sink = None
        for claims in self._claims.values():
            claims.lose()

    def _pause(self) -> None:
        """Wait a growing while before the next try, and show since when."""
        if not self._slot[Field.POSTGRES_WAIT_SINCE]:
            self._slot[Field.POSTGRES_WAIT_SINCE] = time.monotonic_ns()
        self._show_buffers()
        self._handover.wait_to_stop(self._backoff.next_seconds())

    def _connected(self) -> None:
        """Something worked: PostgreSQL is there."""
        since = self._slot[Field.POSTGRES_WAIT_SINCE]
        if since:
            seconds = round((time.monotonic_ns() - since) / 1e9, 1)
            log.warning("PostgreSQL is back", extra={"action": "postgres_back", "seconds": seconds})
        self._slot[Field.POSTGRES_WAIT_SINCE] = 0

    def _take_news(self) -> None:
        """Do what the poll loop asked for since the last turn."""
        wanted, released, gaps = self._handover.news()
        for claims in self._claims.values():  # before what is wanted: the group may give back what it has just taken
            claims.release(released)
        try:
            for claims in self._claims.values():
                claims.unlock(released)
        finally:  # giving locks back may fail, and news is told once
            self._handover.note_released()
            if wanted is not None:
                self._asked = True
                for claims in self._claims.values():
                    claims.want(wanted)
        for lane, gap, epoch in gaps:
            self._attempt(lane, partial(self._claims[lane.route.name].meet, gap, epoch))

    def _sweep(self) -> None:
        """Let every lane claim what it may; a lane that cannot is put on hold."""
        now = time.monotonic()
        assert self._connection is not None
        # One question for all lanes, though the first lane asks it: where it has no answer, each is put on hold.
        pauses = cache(partial(pausing.read_pauses, self._connection, self._pipeline))
        for name, claims in self._claims.items():
            claims.sweep_at = now + SWEEP_SECONDS
            self._attempt(self._handover.lanes[name], partial(claims.sweep, pauses))
        self._connected()
        self._show_state()

    def _attempt(self, lane: Lane, act: Callable[[], None]) -> None:
        """Do something for one lane; put it on hold when its table, rights or progress are not as they must be."""
        try:
            act()
        except ConfigError as error:
            self._put_on_hold(lane, error)
        except Error as error:
            if self._verdict(error) is Verdict.RECONNECT:
                raise
            self._put_on_hold(lane, error)

    def _flush(self, lane: Lane, batch: Batch) -> None:
        """Write one batch, or decide what its failure means."""
        assert self._sink is not None
        claims = self._claims[lane.route.name]
        positions = claims.positions
        epochs = {partition: positions[partition].epoch for partition in batch.epochs}
        assert epochs == batch.epochs, "a batch is flushed under the epoch it was filled under"
        before = dict(positions)
        began = time.monotonic()
        identity = Identity(self._admin, self._ids, lane.route.topic, claims.topic_id(batch.epochs))
        try:
            self._sink.flush(batch, claims.target, positions, identity.confirm)
        except Fenced as fenced:
            claims.be_fenced(fenced)
        except TopicRecreated as recreated:
            log.warning(str(recreated), extra={"action": "topic_made_anew", "route": lane.route.name})
            claims.meet_another_topic()
        except TableChanged:
            claims.revoke()  # the next claim reads the table again, and tells of it
        except BreakerOpen as breaker:
            log.error(str(breaker), extra={"action": "breaker_open"})
            self._sink.close_breaker(lane.route.name)
            claims.halt(list(lane.epochs), Halt.BREAKER)
        except SinkError as error:  # nothing of it is in, and no record is to blame
            self._put_on_hold(lane, error)
        except Error as error:
            if self._verdict(error) is Verdict.RECONNECT:
                raise  # from here: raised again in _judge it would make a cycle with that frame, which nobody collects
            self._judge(lane, error, partly_written=positions != before)
        else:
            self._count_batch(lane, batch, time.monotonic() - began)
            self._handover.done(lane, batch)
            self._lane_backoffs[lane.route.name].reset()
            self._backoff.reset()  # not by a mere connection: flushes that break it one after another must come slower
            self._connected()
        finally:
            self._count(lane, batch, self._sink.outcome)

    def _count(self, lane: Lane, batch: Batch, outcome: Outcome) -> None:
        """Count what is in the table, also when the flush has failed after a part of it."""
        numbers = self._slot.routes[lane.route.name]
        numbers.add_written(outcome.rows, outcome.dead_letters)
        if outcome.codes:
            numbers.add_dead_letters(outcome.codes)
        if outcome.reason is not None:
            self._tell("route has dead letters", "dead_letters", outcome.reason, route=lane.route.name)
        if log.isEnabledFor(logging.DEBUG) and (outcome.rows or outcome.dead_letters):
            about = {"route": lane.route.name, "reason": str(batch.reason)}
            counts = {"rows": outcome.rows, "dead_letters": outcome.dead_letters}
            log.debug("flushed", extra={"action": "flush", **about, **counts})

    def _count_batch(self, lane: Lane, batch: Batch, seconds: float) -> None:
        numbers = self._slot.routes[lane.route.name]
        fill = len(batch.records) / self._max_rows
        numbers.add_batch(batch.reason, batch.records, batch.record_bytes, fill, seconds)

    def _judge(self, lane: Lane, error: Error, *, partly_written: bool) -> None:
        """Retry the same batch later, or put the route on hold."""
        if self._verdict(error) is not Verdict.RETRY:
            self._put_on_hold(lane, error)
            return
        self._tell("flush will be tried again", "retry", error, route=lane.route.name)
        self._slot.routes[lane.route.name].add(Count.RETRIES)
        backoff = self._lane_backoffs[lane.route.name]
        lane.not_before = time.monotonic() + backoff.next_seconds()
        # A poisoned batch takes several transactions: its first part must not go in twice. And a lane that fails for
        # long must not keep the buffers that the others need.
        if partly_written or backoff.failures >= RETRIES_WITH_BUFFERS:
            self._claims[lane.route.name].revoke(lane.not_before)

    def _put_on_hold(self, lane: Lane, error: Exception) -> None:
        """Let this route alone wait, and the others of the worker go on."""
        seconds = self._lane_backoffs[lane.route.name].next_seconds()
        self._tell("route is on hold", "aside", error, logging.ERROR, route=lane.route.name)
        self._claims[lane.route.name].put_on_hold(time.monotonic() + seconds)

    def _show_buffers(self) -> None:
        self._slot[Field.BUFFER_USED_BYTES], self._slot[Field.BUFFER_BYTES] = self._handover.buffer_bytes()

    def _show_state(self) -> None:
        counts = [claims.counts() for claims in self._claims.values()]
        for claims in self._claims.values():
            claims.show()
        self._show_buffers()
        self._slot[Field.CLAIMED] = sum(count.granted for count in counts)
        self._slot[Field.HALTED] = sum(count.halted for count in counts)
        standing_by = any(count.standing_by for count in counts)
        if self._asked and not (any(count.on_hold for count in counts) and self._slot[Field.STATE] == State.STARTING):
            self._slot[Field.STATE] = State.STANDBY if standing_by else State.RUNNING

    def _verdict(self, error: Error) -> Verdict:
        return verdict(error, broken=self._connection is None or self._connection.broken)

    def _tell(self, what: str, action: str, error: object, level: int = logging.WARNING, **about: str) -> None:
        log.log(level, what, extra={"action": action, **about, "error": " ".join(str(error).split())})
