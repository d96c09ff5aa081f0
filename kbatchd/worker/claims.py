"""Claims: which partitions a worker waits for, holds the lock of, has claimed, or has halted, for one route.

The flusher has one for each lane, and calls it in its own thread, on its connection. A partition goes round: wanted or
revoked, it waits; `sweep` takes its advisory lock, claims it and grants it to the poll loop; whatever goes wrong after
that revokes its lane, and it waits again. A halted partition waits for an operator to move its epoch. What is wanted,
and neither granted nor halted, waits: so nothing that fails on the way leaves a partition without an owner.

That a topic was recreated is found in one place, the claim, which compares the id that the topic has with progress's.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.encode.rows import RowEncoder
from kbatchd.errors import Fenced
from kbatchd.model import Gap, Partition, Position
from kbatchd.postgres import catalogue
from kbatchd.schema import by_hand, claiming
from kbatchd.schema.halting import Halt
from kbatchd.schema.progress import Owner
from kbatchd.sink.targets import build_target
from kbatchd.stats.slots import Count
from kbatchd.worker.halts import Halts
from kbatchd.worker.starting import Starting

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from kbatchd.kafka.identity import TopicIds
    from kbatchd.kafka.topics import Admin
    from kbatchd.postgres.connection import Connection
    from kbatchd.schema.pausing import Pause
    from kbatchd.sink.batch_copy import Target
    from kbatchd.stats.slots import RouteSlot
    from kbatchd.worker.handover import Handover
    from kbatchd.worker.lane import Lane

log = logging.getLogger(__name__)

#: How often the locks of others' partitions are tried, and how long a fenced one is left alone.
SWEEP_SECONDS = 1.0


#: In a group, how long the session of a partition's former owner may ask nothing before it is ended: see `_end_silent`.
SILENT_SECONDS = 3.0

#: How soon the lock is tried again that it held.
ENDED_SECONDS = 0.1


class Counts(NamedTuple):
    """How many partitions are read, how many halted; whether others hold some, whether some are on hold."""

    granted: int
    halted: int
    standing_by: bool
    on_hold: bool


class Claims:
    """The partitions of one route in one worker; see the module."""

    def __init__(
        self,
        pipeline: str,
        worker: str,
        handover: Handover,
        lane: Lane,
        numbers: RouteSlot,
        admin: Admin,
        ids: TopicIds,
        *,
        in_group: bool = False,
    ) -> None:
        self._in_group = in_group
        self._pipeline = pipeline
        self._worker = worker
        self._handover = handover
        self._lane = lane
        self._numbers = numbers
        self._route = lane.route
        self._connection: Connection | None = None
        self._starting = Starting(admin, lane.route.topic)
        self._ids = ids
        #: Partitions that the poll loop wants, and when to try those that wait; those whose lock our session holds.
        self._wanted: dict[Partition, float] = {}
        self._locked: set[Partition] = set()
        #: The id of a recreated topic, when a first claim has met it: a second one shall confirm.
        self._met: str | None = None
        self._halts = Halts()
        self._made: tuple[Target, RowEncoder] | None = None
        #: Where each claimed partition stands; the sink moves it.
        self.positions: dict[Partition, Position] = {}
        #: When to sweep next; 0 for at once.
        self.sweep_at = 0.0

    def begin(self, connection: Connection) -> None:
        """Go on with a new session: it holds no locks yet."""
        self._connection = connection
        self._locked.clear()
        self.sweep_at = 0.0

    def lose(self) -> None:
        """Give everything up with the session: whether its last transaction committed only the next claim will tell."""
        self._connection = None
        self._locked.clear()
        self.revoke()

    @property
    def target(self) -> Target:
        """Where the lane's rows go; there is one since its first claim."""
        assert self._made is not None
        return self._made[0]

    @property
    def _waiting(self) -> dict[Partition, float]:
        """The partitions to claim, with the time to try."""
        return {p: at for p, at in self._wanted.items() if p not in self._lane.epochs and p not in self._halts.epochs}

    def want(self, partitions: Iterable[Partition]) -> None:
        """Queue partitions for a claim; other topics are for other routes."""
        self._wanted.update(dict.fromkeys((p for p in partitions if p.topic == self._route.topic), 0.0))
        self.sweep_at = 0.0

    def release(self, partitions: Iterable[Partition]) -> None:
        """Give partitions up for good; the lane's others go on, unless something of these is still in a batch.

        That is read again, by the next owner, and what was read with it by us.
        """
        ours = {partition for partition in partitions if partition.topic == self._route.topic}
        if ours and not self._handover.give_up(self._lane, ours):
            self.revoke()
        for partition in ours:
            self._wanted.pop(partition, None)
            self._halts.forget(partition)
            self.positions.pop(partition, None)

    def unlock(self, partitions: Iterable[Partition]) -> None:
        """Give advisory locks back, so that others may claim."""
        held = self._locked.intersection(partitions)
        self._locked -= held
        if held:
            claiming.unlock(*self._session(), [partition.number for partition in held])

    def sweep(self, pauses: Callable[[], Mapping[str, Pause]]) -> None:
        """Claim what waits and may be tried, and look whether an operator has moved or paused something."""
        self._notice_another_topic()
        self._heed(pauses().get(self._route.name))
        now = time.monotonic()
        due = [partition for partition, not_before in self._waiting.items() if not_before <= now]
        if due:
            self._claim(due)
        self._notice_moves()
        self._halts.mark(*self._session())

    def revoke(self, not_before: float = 0.0) -> None:
        """Empty the lane and queue its partitions for a new claim, but for those that are halted."""
        for partition in self._handover.revoke(self._lane):
            self._wanted[partition] = not_before
        self.sweep_at = min(self.sweep_at, not_before)

    def put_on_hold(self, not_before: float) -> None:
        """Leave the lane alone until then, with all its partitions."""
        self.revoke(not_before)
        self._wanted.update(dict.fromkeys(self._waiting, not_before))

    def be_fenced(self, fenced: Fenced) -> None:
        """Wait for the lock like anybody else before claiming again: two daemons must not fence each other in turn."""
        log.warning(str(fenced), extra={"action": "fenced", "route": self._route.name})
        self._numbers.add(Count.FENCES)
        partitions = set(fenced.partitions)
        self.revoke()
        not_before = time.monotonic() + SWEEP_SECONDS
        self._wanted.update(dict.fromkeys(partitions & self._wanted.keys(), not_before))
        self.unlock(partitions)  # last of all, as it may raise

    def halt(self, partitions: Collection[Partition], why: Halt) -> None:
        """Stop reading these until an operator moves their epoch; the others of the lane are claimed again."""
        self._halts.add({partition: self.positions[partition].epoch for partition in partitions}, why)
        self.revoke()

    def topic_id(self, partitions: Iterable[Partition]) -> str:
        """Return the id of the topic whose partitions were claimed."""
        return self.positions[next(iter(partitions))].topic_id

    def meet_another_topic(self) -> None:
        """Drop what was read of whichever topic; nothing is claimed before the watch has looked which it is."""
        self._ids.doubt(self._route.topic)
        self.revoke()

    def meet(self, gap: Gap, epoch: int) -> None:
        """Take the poll loop's report of a gap: it counts while the claim stands under which it was found."""
        if self._lane.epochs.get(gap.partition) != epoch:
            return
        position = self.positions[gap.partition]
        if position.topic_id != gap.topic_id:
            return
        if position.next_offset in {gap.first, gap.last}:
            self._record_or_halt(gap)
        else:
            self.revoke()  # something before the gap is not in yet: read again, and meet the gap again

    def counts(self) -> Counts:
        """Tell how many partitions are in which state."""
        return Counts(
            granted=len(self._lane.epochs),
            halted=len(self._halts.epochs),
            standing_by=any(at == 0.0 and p not in self._locked for p, at in self._waiting.items()),
            on_hold=any(at > 0.0 for at in self._waiting.values()),
        )

    def show(self) -> None:
        """Tell the monitor which partitions are ours: those whose lock we hold, and those that stand still."""
        halted = {partition.number for partition in self._halts.epochs}
        tripped = {partition.number for partition in self._halts.tripped}
        owned = {partition.number for partition in self._locked} | halted
        self._numbers.show_partitions(owned, halted, tripped, on_hold=any(at > 0.0 for at in self._waiting.values()))

    def _claim(self, partitions: list[Partition]) -> None:
        """Claim those whose advisory lock we get; the others belong to another daemon, which we stand by for."""
        topic_id = self._ids.settled(self._route.topic)
        if topic_id is None:
            return  # the watch is asking
        connection, owner = self._session()
        unlocked = [p.number for p in partitions if p not in self._locked]
        got = claiming.lock(connection, owner, unlocked) if unlocked else set()
        self._locked.update(Partition(self._route.topic, number) for number in got)
        ours = [p for p in partitions if p in self._locked]
        if self._in_group and len(ours) < len(partitions):
            self._end_silent([p.number for p in partitions if p not in self._locked])
        self._wanted.update(dict.fromkeys(partitions, 0.0))
        if not ours:
            return
        target, encoder = self._prepare()
        ours = self._begun(ours, topic_id)
        if not ours:
            return
        claimed, recreated = claiming.claim(connection, target.owner, {p.number: topic_id for p in ours})
        positions = {Partition(self._route.topic, number): position for number, position in claimed.items()}
        self.positions.update(positions)
        for gap in recreated:
            del positions[gap.partition]
        self._handover.grant(self._lane, positions, encoder)
        numbers = sorted(partition.number for partition in positions)
        log.info("claimed", extra={"action": "claim", "route": self._route.name, "partitions": numbers})
        if recreated and self._is_confirmed(topic_id, {gap.topic_id for gap in recreated}):
            for gap in recreated:
                self._record_or_halt(gap)

    def _end_silent(self, numbers: list[int]) -> None:
        """Take the locks from a daemon that is frozen, or gone with its host: the group has given us its partitions."""
        for pid in claiming.end_silent(*self._session(), numbers, SILENT_SECONDS):
            what = "the group gave us partitions whose former owner is silent; its session was ended"
            log.warning(what, extra={"action": "silent_owner", "route": self._route.name, "backend_pid": pid})
            self.sweep_at = time.monotonic() + ENDED_SECONDS

    def _is_confirmed(self, topic_id: str, before: set[str]) -> bool:
        """Tell whether a topic may be taken for recreated: this id is none that it had before.

        The watch has seen that it took the place of the one before; or else a second look tells it, a moment later: a
        broker that lags behind the others may have told a former one to a worker that has just begun.
        """
        topic = self._route.topic
        self._ids.remember(topic, claiming.former_ids(*self._session()))
        seen = self._met == topic_id or all(self._ids.is_former(topic, former) for former in before)
        confirmed = seen and not self._ids.is_former(topic, topic_id)
        self._met = topic_id
        if not confirmed:
            self._ids.doubt(self._route.topic)
        return confirmed

    def _begun(self, partitions: list[Partition], topic_id: str) -> list[Partition]:
        """Return those whose beginning is known; where it is not, their brokers are asked."""
        connection, owner = self._session()
        unbegun = claiming.unbegun(connection, owner, [partition.number for partition in partitions])
        if not unbegun:
            return partitions
        topic_ids = {partition.number: topic_id for partition in partitions}
        known = self._starting.look(unbegun, topic_ids)
        if known:
            claiming.begin(connection, owner, known, topic_ids)
        return [p for p in partitions if p.number not in unbegun or p.number in known]

    def _prepare(self) -> tuple[Target, RowEncoder]:
        """Read the table again, and build its encoder if it is another than before."""
        connection, _ = self._session()
        table = catalogue.read_table(connection, self._route.table)
        if self._made is not None:
            if self._made[0].table.fingerprint == table.fingerprint:
                return self._made
            log.warning("table was altered", extra={"action": "table_changed", "route": self._route.name})
            self.revoke()  # batches of the former encoder must not be taken for the new one's
        self._made = build_target(self._pipeline, self._route, self._worker, table)
        return self._made

    def _record_or_halt(self, gap: Gap) -> None:
        """Record the gap and go on behind it, or halt the partition, as the route says."""
        about = {"route": self._route.name, "gap": str(gap)}
        self._numbers.add_gap(gap.kind)
        if self._route.on_gap == "halt":
            log.error("halted; `kbatchd progress accept` lets it go on", extra={"action": "halt", **about})
            self.halt([gap.partition], Halt.GAP)
            return
        connection, owner = self._session()
        try:
            by_hand.accept(connection, owner, gap, self.positions[gap.partition].epoch)
        except Fenced as fenced:
            self.be_fenced(fenced)
            return
        log.error("gap recorded", extra={"action": "gap", **about})
        self.revoke()

    def _notice_another_topic(self) -> None:
        """Read nothing on of a topic that is another one now; the claim finds what that means."""
        topic_id = self._ids.settled(self._route.topic)
        if topic_id is not None and any(self.positions[p].topic_id != topic_id for p in self._lane.epochs):
            self.revoke()

    def _heed(self, pause: Pause | None) -> None:
        """Keep the partitions of a paused route, and read nothing of them; what no flush has taken is dropped."""
        if (pause is not None) != self._lane.paused:
            what = "route goes on" if pause is None else f"route is {pause}"
            log.info(what, extra={"action": "resume" if pause is None else "pause", "route": self._route.name})
            self._handover.pause(self._lane, paused=pause is not None)
            self.revoke()

    def _notice_moves(self) -> None:
        """Claim again what others have moved: a halted partition, or one without traffic, whose flush would notice."""
        epochs = {p.number: epoch for p, epoch in self._halts.epochs.items()}
        epochs |= {partition.number: epoch for partition, epoch in self._lane.epochs.items()}
        if not epochs:
            return
        moved = {Partition(self._route.topic, n) for n in claiming.moved_by_others(*self._session(), epochs)}
        for partition in moved & self._halts.epochs.keys():
            self._halts.forget(partition)
            self._wanted[partition] = 0.0
            self.sweep_at = 0.0
        granted = moved & self._lane.epochs.keys()
        if granted:
            self.be_fenced(Fenced(sorted(granted)))

    def _session(self) -> tuple[Connection, Owner]:
        assert self._connection is not None
        target = self._made[0].owner.target if self._made else self._route.table
        return self._connection, Owner(self._pipeline, self._route.name, self._route.topic, target, self._worker)
