"""Claims: which partitions a worker waits for, holds the lock of, has claimed, or has halted.

The flusher asks for everything here, in its own thread and on its connection. A partition goes round one way: wanted or
revoked, it waits; `sweep` takes its advisory lock, claims it and grants it to the poll loop; whatever goes wrong after
that revokes its lane, and it waits again. A halted partition waits for an operator to move its epoch.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from kbatchd import catalogue, progress
from kbatchd.errors import Fenced
from kbatchd.model import Gap, GapKind, Partition
from kbatchd.progress import Owner, Position
from kbatchd.rows import RowEncoder, build_encoder
from kbatchd.sink import Target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kbatchd.handover import Handover, Lane
    from kbatchd.postgres import Connection

log = logging.getLogger(__name__)

#: How often the locks of others' partitions are tried, and how long a fenced one is left alone.
SWEEP_SECONDS = 1.0


class Claims:
    """The partitions of one worker; see the module."""

    def __init__(self, pipeline: str, worker: str, handover: Handover) -> None:
        self._pipeline = pipeline
        self._worker = worker
        self._handover = handover
        self._connection: Connection | None = None
        self._topic_ids: dict[Partition, str] = {}
        #: Partitions to claim, with the time to try; those whose lock our session holds.
        self._waiting: dict[Partition, float] = {}
        self._locked: set[Partition] = set()
        #: Partitions that stand still, with the epoch that an operator has to move.
        self._halted: dict[Partition, int] = {}
        self._targets: dict[str, tuple[Target, RowEncoder]] = {}
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
        for lane in self._handover.lanes.values():
            self.revoke(lane)

    def target(self, lane: Lane) -> Target:
        """Return where the lane's rows go; there is one since its first claim."""
        return self._targets[lane.route.topic][0]

    def want(self, topic_ids: Mapping[Partition, str]) -> None:
        """Queue partitions for a claim, with the id that their topic has."""
        self._topic_ids.update(topic_ids)
        self._waiting.update(dict.fromkeys(topic_ids, 0.0))
        self.sweep_at = 0.0

    def release(self, partitions: Iterable[Partition]) -> None:
        """Give partitions up for good; what their lanes held is read again, by us or by the next owner."""
        partitions = set(partitions)
        for topic in {partition.topic for partition in partitions}:
            self.revoke(self._handover.lanes[topic])
        for partition in partitions:
            self._waiting.pop(partition, None)
            self._halted.pop(partition, None)
            self.positions.pop(partition, None)
        for topic in {partition.topic for partition in partitions}:
            self._unlock(self._handover.lanes[topic], partitions)

    def sweep(self, lane: Lane) -> None:
        """Claim what waits in this lane and may be tried, and look whether an operator has moved something."""
        now = time.monotonic()
        due = [p for p, not_before in self._waiting.items() if p.topic == lane.route.topic and not_before <= now]
        if due:
            self._claim(lane, due)
        self._notice_moves(lane)

    def revoke(self, lane: Lane, not_before: float = 0.0) -> None:
        """Empty the lane and queue its partitions for a new claim, but for those that are halted."""
        for partition in self._handover.revoke(lane):
            if partition not in self._halted:
                self._waiting[partition] = not_before
        self.sweep_at = min(self.sweep_at, not_before)

    def put_aside(self, lane: Lane, not_before: float) -> None:
        """Leave the lane alone until then, with all its partitions."""
        self.revoke(lane, not_before)
        for partition in self._waiting:
            if partition.topic == lane.route.topic:
                self._waiting[partition] = not_before

    def be_fenced(self, lane: Lane, fenced: Fenced) -> None:
        """Wait for the lock like anybody else before claiming again: two daemons must not fence each other in turn."""
        log.warning(str(fenced), extra={"action": "fenced", "route": lane.route.name})
        partitions = set(fenced.partitions)
        self.revoke(lane)
        self._waiting.update(dict.fromkeys(partitions, time.monotonic() + SWEEP_SECONDS))
        self._unlock(lane, partitions)

    def halt(self, lane: Lane, partitions: Iterable[Partition]) -> None:
        """Stop reading these until an operator moves their epoch; the others of the lane are claimed anew."""
        self._halted.update({partition: self.positions[partition].epoch for partition in partitions})
        self.revoke(lane)

    def learn(self, gaps: Iterable[Gap]) -> None:
        """Remember the ids that the topics have now: whatever becomes of the gaps, the next claim compares them."""
        self._topic_ids.update({gap.partition: gap.topic_id for gap in gaps})

    def meet(self, gap: Gap) -> None:
        """Take the poll loop's report of a gap, unless it is out of date."""
        lane = self._handover.lanes[gap.partition.topic]
        position = self.positions.get(gap.partition)
        if position is None or gap.partition not in lane.epochs:
            return  # not ours at the moment: the next claim looks at the topic's id itself
        if gap.kind is GapKind.RECREATED:
            self._record_or_halt(lane, replace(gap, first=position.next_offset, last=position.next_offset))
        elif position.next_offset in {gap.first, gap.last}:
            self._record_or_halt(lane, gap)
        else:
            self.revoke(lane)  # something before the gap is not in yet: read again, and meet the gap again

    def counts(self) -> tuple[int, int, bool, bool]:
        """Return how many partitions are granted, how many halted, whether others hold some, whether some are aside."""
        granted = sum(len(lane.epochs) for lane in self._handover.lanes.values())
        standing_by = any(at == 0.0 and p not in self._locked for p, at in self._waiting.items())
        aside = any(at > 0.0 for at in self._waiting.values())
        return granted, len(self._halted), standing_by, aside

    def _claim(self, lane: Lane, partitions: list[Partition]) -> None:
        """Claim those whose advisory lock we get; the others belong to another daemon, which we stand by for."""
        connection, owner = self._session(lane)
        unlocked = [p.number for p in partitions if p not in self._locked]
        got = progress.lock(connection, owner, unlocked) if unlocked else set()
        self._locked.update(Partition(lane.route.topic, number) for number in got)
        ours = [p for p in partitions if p in self._locked]
        self._waiting.update(dict.fromkeys(partitions, 0.0))
        if not ours:
            return
        target, encoder = self._prepare(lane)
        claimed, anew = progress.claim(connection, target.owner, {p.number: self._topic_ids[p] for p in ours})
        positions = {Partition(lane.route.topic, number): position for number, position in claimed.items()}
        for partition in ours:
            del self._waiting[partition]
        self.positions.update(positions)
        for gap in anew:
            del positions[gap.partition]
        self._handover.grant(lane, positions, encoder)
        numbers = sorted(partition.number for partition in positions)
        log.info("claimed", extra={"action": "claim", "route": lane.route.name, "partitions": numbers})
        for gap in anew:
            self._record_or_halt(lane, gap)

    def _prepare(self, lane: Lane) -> tuple[Target, RowEncoder]:
        """Read the table anew, and build its encoder if it is another than before."""
        connection, _ = self._session(lane)
        table = catalogue.read_table(connection, lane.route.table)
        known = self._targets.get(lane.route.topic)
        if known is not None and known[0].table.fingerprint == table.fingerprint:
            return known
        if known is not None:
            log.warning("table was altered", extra={"action": "table_changed", "route": lane.route.name})
            self.revoke(lane)  # batches of the former encoder must not be taken for the new one's
        encoder = build_encoder(catalogue.row_columns(table, lane.route.omit))
        owner = Owner(self._pipeline, lane.route.name, lane.route.topic, table.quoted, self._worker)
        made = Target(owner, table, encoder.columns, lane.route.max_dead_letters), encoder
        self._targets[lane.route.topic] = made
        return made

    def _record_or_halt(self, lane: Lane, gap: Gap) -> None:
        """Record the gap and go on behind it, or halt the partition, as the route says."""
        about = {"route": lane.route.name, "gap": str(gap)}
        if lane.route.on_gap == "halt":
            log.error("halted; `kbatchd progress accept` lets it go on", extra={"action": "halt", **about})
            self.halt(lane, [gap.partition])
            return
        connection, owner = self._session(lane)
        try:
            progress.accept(connection, owner, gap, self.positions[gap.partition].epoch)
        except Fenced as fenced:
            self.be_fenced(lane, fenced)
            return
        log.error("gap recorded", extra={"action": "gap", **about})
        self.revoke(lane)
        self._waiting[gap.partition] = 0.0

    def _notice_moves(self, lane: Lane) -> None:
        """Claim anew what others have moved: a halted partition, or one without traffic, whose flush would notice."""
        epochs = {p.number: epoch for p, epoch in self._halted.items() if p.topic == lane.route.topic}
        epochs |= {partition.number: epoch for partition, epoch in lane.epochs.items()}
        if not epochs:
            return
        moved = {Partition(lane.route.topic, n) for n in progress.moved_by_others(*self._session(lane), epochs)}
        for partition in moved & self._halted.keys():
            del self._halted[partition]
            self._waiting[partition] = 0.0
            self.sweep_at = 0.0
        granted = moved & lane.epochs.keys()
        if granted:
            self.be_fenced(lane, Fenced(sorted(granted)))

    def _unlock(self, lane: Lane, partitions: set[Partition]) -> None:
        """Give advisory locks back; last of all, as it may raise."""
        held = {p for p in self._locked & partitions if p.topic == lane.route.topic}
        self._locked -= held
        if held:
            progress.unlock(*self._session(lane), [partition.number for partition in held])

    def _session(self, lane: Lane) -> tuple[Connection, Owner]:
        assert self._connection is not None
        known = self._targets.get(lane.route.topic)
        target = known[0].owner.target if known else lane.route.table
        return self._connection, Owner(self._pipeline, lane.route.name, lane.route.topic, target, self._worker)
