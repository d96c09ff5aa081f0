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
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kbatchd import catalogue, progress
from kbatchd.errors import BreakerOpen, ConfigError, Fenced, KbatchError, ServerUnavailable, TableChanged
from kbatchd.model import Gap, GapKind, Partition
from kbatchd.postgres import Connection, Error, Verdict, connect, verdict
from kbatchd.progress import Owner, Position
from kbatchd.rows import RowEncoder, build_encoder
from kbatchd.sink import Sink, Target
from kbatchd.stats import Field, Slot, State

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kbatchd.batch import Batch
    from kbatchd.config import Config
    from kbatchd.handover import Handover, Lane

log = logging.getLogger(__name__)

#: How often the locks of others' partitions are tried, and how long a fenced one is left alone.
SWEEP_SECONDS = 1.0

#: The longest pause between two tries at anything that failed.
MAX_BACKOFF_SECONDS = 5.0

#: How often a batch is tried again as it is; after that its lane gives it back, and reads it again.
RETRIES_WITH_BUFFERS = 3

#: The same trouble is told again after this time, not sooner.
REPEAT_SECONDS = 10.0


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

    def __init__(self, config: Config, worker: str, handover: Handover, slot: Slot) -> None:
        super().__init__(name="flusher")
        self._config = config
        self._worker = worker
        self._handover = handover
        self._slot = slot
        self._connection: Connection | None = None
        self._sink: Sink | None = None
        self._session: tuple[int, object] | None = None
        self._targets: dict[str, tuple[Target, RowEncoder]] = {}
        self._topic_ids: dict[Partition, str] = {}
        #: Partitions to claim, with the time to try; those whose lock we hold; where the claimed ones stand.
        self._waiting: dict[Partition, float] = {}
        self._locked: set[Partition] = set()
        self._positions: dict[Partition, Position] = {}
        #: Partitions that stand still until an operator moves their epoch.
        self._halted: dict[Partition, int] = {}
        self._backoff = Backoff()
        self._lane_backoffs: dict[str, Backoff] = {}
        self._sweep_at = 0.0
        self._told_at: dict[str, float] = {}
        self._asked = False
        #: Why the thread ended, if not because it was told to.
        self.failure: KbatchError | Exception | None = None

    def run(self) -> None:
        """Work until `handover.stop()`, or until something fails that trying again does not mend."""
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
            if time.monotonic() >= self._sweep_at:
                self._sweep()
            work = self._handover.next_batch(self._sweep_at)
            if work is not None:
                self._flush(*work)
        except (ServerUnavailable, ConnectionRefused) as error:
            self._tell("waiting for PostgreSQL", "postgres_wait", error)
            self._pause()
        except Error as error:
            self._lose_connection(error)
            self._pause()

    def _connect(self) -> None:
        if self._connection is not None:
            return
        try:
            connection = connect(self._config.postgres, f"kbatchd {self._worker}")
        except ConfigError as error:  # while running, a password may be mended under us: go on trying
            raise ConnectionRefused(str(error)) from error
        if self._session is not None:
            # Our former session may still hold locks, if only the network between us broke.
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s",
                self._session,
            )
        self._session = connection.execute(
            "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        ).fetchone()
        self._connection, self._sink = connection, Sink(connection)
        self._sweep_at = 0.0

    def _lose_connection(self, error: Error) -> None:
        """Give everything up: whether the last transaction committed only the next claim will tell."""
        self._tell("connection to PostgreSQL lost", "postgres_lost", error)
        if self._connection is not None:
            self._connection.close()
        self._connection = self._sink = None
        self._locked.clear()
        for lane in self._handover.lanes.values():
            self._revoke(lane)

    def _pause(self) -> None:
        """Wait a growing while before the next try, and show since when."""
        if not self._slot[Field.POSTGRES_WAIT_SINCE]:
            self._slot[Field.POSTGRES_WAIT_SINCE] = time.monotonic_ns()
        self._handover.wait_to_stop(self._backoff.next_seconds())

    def _connected(self) -> None:
        """Something worked: PostgreSQL is there."""
        if self._slot[Field.POSTGRES_WAIT_SINCE]:
            log.warning("PostgreSQL is back", extra={"action": "postgres_back"})
        self._slot[Field.POSTGRES_WAIT_SINCE] = 0
        self._backoff.reset()

    def _take_news(self) -> None:
        """Do what the poll loop asked for since the last turn."""
        wanted, released, gaps = self._handover.news()
        if released:  # before what is wanted: the group may give back what it has just taken
            self._release(released)
        if wanted is not None:
            self._asked = True
            self._topic_ids.update(wanted)
            self._waiting.update(dict.fromkeys(wanted, 0.0))
            self._sweep_at = 0.0
        for gap in gaps:
            self._topic_ids[gap.partition] = gap.topic_id
            lane = self._handover.lanes[gap.partition.topic]
            position = self._positions.get(gap.partition)
            if position is None or gap.partition not in lane.epochs:
                continue  # not ours at the moment: the next claim looks at the topic's id itself
            if gap.kind is GapKind.RECREATED:
                gap = replace(gap, first=position.next_offset, last=position.next_offset)  # noqa: PLW2901
            elif position.next_offset not in {gap.first, gap.last}:
                self._revoke(lane)  # something before the gap is not in yet: read again, and meet the gap again
                continue
            self._meet_gap(lane, gap)

    def _sweep(self) -> None:
        """Claim what waits and may be tried, and look whether somebody has set a halted partition going."""
        now = time.monotonic()
        self._sweep_at = now + SWEEP_SECONDS
        for topic, lane in self._handover.lanes.items():
            due = [p for p, not_before in self._waiting.items() if p.topic == topic and not_before <= now]
            try:
                if due:
                    self._claim(lane, due)
                self._wake_halted(lane)
            except (ConfigError, Error) as error:
                if isinstance(error, Error) and self._verdict(error) is Verdict.RECONNECT:
                    raise
                self._put_aside(lane, error)
        self._connected()
        self._show_state()

    def _claim(self, lane: Lane, partitions: list[Partition]) -> None:
        """Claim those whose advisory lock we get; the others belong to another daemon, which we stand by for."""
        connection, owner = self._session_of(lane)
        unlocked = [p.number for p in partitions if p not in self._locked]
        got = progress.lock(connection, owner, unlocked) if unlocked else set()
        self._locked.update(Partition(lane.route.topic, number) for number in got)
        ours = [p for p in partitions if p in self._locked]
        for partition in set(partitions) - set(ours):
            self._waiting[partition] = 0.0
        if not ours:
            return
        target, encoder = self._prepare(lane)
        claimed, anew = progress.claim(connection, target.owner, {p.number: self._topic_ids[p] for p in ours})
        positions = {Partition(lane.route.topic, number): position for number, position in claimed.items()}
        for partition in ours:
            del self._waiting[partition]
        self._positions.update(positions)
        for gap in anew:
            del positions[gap.partition]
        self._handover.grant(lane, positions, encoder)
        log.info(
            "claimed",
            extra={"action": "claim", "route": lane.route.name, "partitions": [p.number for p in sorted(positions)]},
        )
        for gap in anew:
            self._meet_gap(lane, gap)

    def _prepare(self, lane: Lane) -> tuple[Target, RowEncoder]:
        """Read the table anew, and build its encoder if it is another than before."""
        connection, _ = self._session_of(lane)
        table = catalogue.read_table(connection, lane.route.table)
        known = self._targets.get(lane.route.topic)
        if known is not None and known[0].table.fingerprint == table.fingerprint:
            return known
        if known is not None:  # batches of the former encoder must not be taken for the new one's
            self._revoke(lane)
            self._sweep_at = 0.0
        encoder = build_encoder(catalogue.row_columns(table, lane.route.omit))
        owner = Owner(self._config.pipeline, lane.route.name, lane.route.topic, table.quoted, self._worker)
        made = Target(owner, table, encoder.columns, lane.route.max_dead_letters), encoder
        self._targets[lane.route.topic] = made
        return made

    def _flush(self, lane: Lane, batch: Batch) -> None:
        """Write one batch, or decide what its failure means."""
        assert self._sink is not None
        target, _ = self._targets[lane.route.topic]
        epochs = {partition: self._positions[partition].epoch for partition in batch.epochs}
        assert epochs == batch.epochs, "a batch is flushed under the epoch it was filled under"
        before = dict(self._positions)
        try:
            outcome = self._sink.flush(batch, target, self._positions)
        except Fenced as fenced:
            self._be_fenced(lane, fenced)
        except TableChanged as changed:
            log.warning(str(changed), extra={"action": "table_changed"})
            self._revoke(lane)
            self._sweep_at = 0.0
        except BreakerOpen as breaker:
            log.error(str(breaker), extra={"action": "breaker_open"})
            self._halt(lane, list(lane.epochs))
        except Error as error:
            if self._verdict(error) is Verdict.RECONNECT:
                raise  # from here: a raise in _judge would make a cycle with its frame, which nobody collects
            self._judge(lane, error, partly_written=self._positions != before)
        else:
            self._committed(lane, batch, outcome.rows, outcome.dead_letters)

    def _committed(self, lane: Lane, batch: Batch, rows: int, dead_letters: int) -> None:
        self._handover.done(lane, batch)
        self._lane_backoffs.pop(lane.route.topic, None)
        self._connected()
        self._slot.add(Field.RECORDS, rows + dead_letters)
        self._slot.add(Field.ROWS, rows)
        self._slot.add(Field.DEAD_LETTERS, dead_letters)
        self._slot.add(Field.BATCHES, 1)
        log.debug(
            "flushed",
            extra={
                "action": "flush",
                "route": lane.route.name,
                "reason": str(batch.reason),
                "rows": rows,
                "dead_letters": dead_letters,
            },
        )

    def _judge(self, lane: Lane, error: Error, *, partly_written: bool) -> None:
        """Retry the same batch later, or put the route aside."""
        match self._verdict(error):
            case Verdict.RETRY:
                self._tell(f"flush of route {lane.route.name} will be tried again", "flush_retry", error)
                lane.not_before = time.monotonic() + self._lane_backoff(lane).next_seconds()
                # A poisoned batch takes several transactions: its first part must not go in twice. And a lane that
                # fails for long must not keep the buffers that the others need.
                if partly_written or self._lane_backoff(lane).failures >= RETRIES_WITH_BUFFERS:
                    self._revoke(lane, lane.not_before)
            case _:
                self._put_aside(lane, error)

    def _put_aside(self, lane: Lane, error: Exception) -> None:
        """Let this route alone wait, and the others of the worker go on."""
        seconds = self._lane_backoff(lane).next_seconds()
        self._tell(f"route {lane.route.name} is put aside", f"aside_{lane.route.name}", error, logging.ERROR)
        self._revoke(lane, not_before=time.monotonic() + seconds)
        for partition in self._waiting:
            if partition.topic == lane.route.topic:
                self._waiting[partition] = time.monotonic() + seconds

    def _be_fenced(self, lane: Lane, fenced: Fenced) -> None:
        """Wait for the lock like anybody else before claiming again: two daemons must not fence each other in turn."""
        connection, owner = self._session_of(lane)
        log.warning(str(fenced), extra={"action": "fenced", "route": lane.route.name})
        self._revoke(lane)
        lost = [p for p in fenced.partitions if p in self._locked]
        progress.unlock(connection, owner, [p.number for p in lost])
        self._locked.difference_update(lost)
        self._waiting.update(dict.fromkeys(fenced.partitions, time.monotonic() + SWEEP_SECONDS))
        self._sweep_at = 0.0

    def _meet_gap(self, lane: Lane, gap: Gap) -> None:
        """Record the gap and go on behind it, or halt the partition, as the route says."""
        connection, owner = self._session_of(lane)
        if lane.route.on_gap == "halt":
            log.error(
                "halted; `kbatchd progress accept` lets it go on",
                extra={"action": "halt", "route": lane.route.name, "gap": str(gap)},
            )
            self._halt(lane, [gap.partition])
            return
        try:
            progress.accept(connection, owner, gap, self._positions[gap.partition].epoch)
        except Fenced as fenced:
            self._be_fenced(lane, fenced)
            return
        log.error("gap recorded", extra={"action": "gap", "route": lane.route.name, "gap": str(gap)})
        self._revoke(lane)
        self._waiting[gap.partition] = 0.0
        self._sweep_at = 0.0

    def _halt(self, lane: Lane, partitions: Iterable[Partition]) -> None:
        self._halted.update({p: self._positions[p].epoch for p in partitions})
        self._revoke(lane)
        self._sweep_at = 0.0

    def _wake_halted(self, lane: Lane) -> None:
        """Claim a halted partition again once an operator has moved its epoch."""
        epochs = {p.number: epoch for p, epoch in self._halted.items() if p.topic == lane.route.topic}
        if epochs:
            connection, owner = self._session_of(lane)
            for number in progress.moved_by_others(connection, owner, epochs):
                partition = Partition(lane.route.topic, number)
                del self._halted[partition]
                self._waiting[partition] = 0.0
                self._sweep_at = 0.0

    def _release(self, partitions: list[Partition]) -> None:
        """Give partitions up for good; what their lanes held is read again, by us or by the next owner."""
        for topic in {partition.topic for partition in partitions}:
            self._revoke(self._handover.lanes[topic])
        for partition in partitions:
            self._waiting.pop(partition, None)
            self._halted.pop(partition, None)
            self._positions.pop(partition, None)
        locked = self._locked.intersection(partitions)
        self._locked -= locked
        for partition in locked:  # last, as it may raise
            connection, owner = self._session_of(self._handover.lanes[partition.topic])
            progress.unlock(connection, owner, [partition.number])
        self._sweep_at = 0.0

    def _revoke(self, lane: Lane, not_before: float = 0.0) -> None:
        """Empty the lane and queue its partitions for a new claim, but for those that are halted."""
        for partition in self._handover.revoke(lane):
            if partition not in self._halted:
                self._waiting[partition] = not_before

    def _show_state(self) -> None:
        if not self._asked:
            return
        standing_by = any(at == 0.0 and p not in self._locked for p, at in self._waiting.items())
        self._slot[Field.CLAIMED] = sum(len(lane.epochs) for lane in self._handover.lanes.values())
        self._slot[Field.HALTED] = len(self._halted)
        self._slot[Field.STATE] = State.STANDBY if standing_by else State.RUNNING

    def _session_of(self, lane: Lane) -> tuple[Connection, Owner]:
        assert self._connection is not None
        known = self._targets.get(lane.route.topic)
        target = known[0].owner.target if known else lane.route.table
        return self._connection, Owner(self._config.pipeline, lane.route.name, lane.route.topic, target, self._worker)

    def _verdict(self, error: Error) -> Verdict:
        return verdict(error, broken=self._connection is None or self._connection.broken)

    def _lane_backoff(self, lane: Lane) -> Backoff:
        return self._lane_backoffs.setdefault(lane.route.topic, Backoff())

    def _tell(self, what: str, action: str, error: Exception, level: int = logging.WARNING) -> None:
        """Log a trouble when it begins, and again every REPEAT_SECONDS while it lasts."""
        now = time.monotonic()
        if now - self._told_at.get(action, -REPEAT_SECONDS) >= REPEAT_SECONDS:
            self._told_at[action] = now
            log.log(level, what, extra={"action": action, "error": " ".join(str(error).split())})


class ConnectionRefused(KbatchError):
    """PostgreSQL has answered, and does not let us in: while running this is waited out like an absence."""
