"""What the poll loop and the flusher hand to each other, under one lock.

The poll loop gives chunks of rows and takes assignments; the flusher takes batches and gives room. The flusher alone
decides what is owned: it grants a partition after its claim and revokes it when the claim is lost. The poll loop sees
both at the start of its turn, in that order, so what it polls in between belongs to a generation that is over and is
dropped by `put`. The lock is held for list operations only, never during I/O.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kbatchd.batch import Batch, BufferPool, Chunk, RouteBatches
from kbatchd.model import FlushReason, Gap, Partition

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from kbatchd import config
    from kbatchd.progress import Position
    from kbatchd.rows import RowEncoder


@dataclass(slots=True)
class Lane:
    """One route in one worker: its batches, and what it owns.

    `generation` counts how often the lane was emptied: a chunk polled before that is refused.
    """

    route: config.Route
    batches: RouteBatches
    encoder: RowEncoder | None = None
    generation: int = 0
    #: Of the partitions granted to the poll loop: the epoch that their records are filled under.
    epochs: dict[Partition, int] = field(default_factory=dict)
    #: No flush before this time: the last one failed in a way that passes.
    not_before: float = 0.0


@dataclass(slots=True)
class Turn:
    """What has changed since the poll loop's last turn: revoke first, then grant. And what holds for this turn."""

    revoked: list[Partition] = field(default_factory=list)
    granted: dict[Partition, int] = field(default_factory=dict)
    #: The encoder of each topic that is read, with the generation that its chunks will belong to.
    encoders: dict[str, tuple[int, RowEncoder]] = field(default_factory=dict)


class Handover:
    """The lanes of a worker, and the news between its two threads."""

    def __init__(self, routes: Iterable[config.Route], batch: config.Batch, buffer_bytes: int) -> None:
        self.changed = threading.Condition()
        self._linger_seconds = batch.linger_seconds
        self._pool = BufferPool(buffer_bytes, batch.max_bytes)
        self.lanes = {route.topic: Lane(route, RouteBatches(self._pool, batch.max_rows)) for route in routes}
        self._turn = Turn()
        self._wanted: dict[Partition, str] | None = None
        self._released: list[Partition] = []
        self._gaps: list[Gap] = []
        self._committed: dict[Partition, int] = {}
        self._stopping = False

    # The poll loop's side.

    def turn(self) -> Turn:
        """Take what the flusher has granted and revoked."""
        with self.changed:
            turn, self._turn = self._turn, Turn()
            turn.encoders = {
                topic: (lane.generation, lane.encoder) for topic, lane in self.lanes.items() if lane.encoder is not None
            }
            return turn

    def put(self, topic: str, generation: int, chunk: Chunk) -> Chunk | None:
        """Add a chunk to its lane; return what found no room. A chunk of a former generation is dropped."""
        lane = self.lanes[topic]
        with self.changed:
            if lane.generation != generation:
                return None
            had_closed = bool(lane.batches.closed)
            was_empty = lane.batches.open is None
            rest = lane.batches.put(chunk, lane.epochs, time.monotonic())
            if was_empty or self._pool.starved or (lane.batches.closed and not had_closed):
                self.changed.notify_all()
            return rest

    def put_ends(self, topic: str, generation: int, offsets: Mapping[Partition, int]) -> bool:
        """Tell that partitions end here for now: progress may move over markers that are no records.

        Return False when there is no room for it. Ends of a former generation are dropped: the records before them may
        have been dropped as well.
        """
        lane = self.lanes[topic]
        with self.changed:
            if lane.generation != generation:
                return True
            was_empty = lane.batches.open is None
            taken = lane.batches.put_ends(offsets, lane.epochs, time.monotonic())
            if was_empty:
                self.changed.notify_all()
            return taken

    def want(self, topic_ids: Mapping[Partition, str]) -> None:
        """Ask for partitions, with the id that their topic has now."""
        with self.changed:
            self._wanted = (self._wanted or {}) | dict(topic_ids)
            self.changed.notify_all()

    def release(self, partitions: Iterable[Partition]) -> None:
        """Give partitions up: what was not flushed is dropped, and others may claim them."""
        with self.changed:
            for partition in partitions:
                (self._wanted or {}).pop(partition, None)
                self._released.append(partition)
            self.changed.notify_all()

    def report(self, gap: Gap) -> None:
        """Tell of a gap; the flusher halts the partition, or records the gap and claims anew."""
        with self.changed:
            self._gaps.append(gap)
            self.changed.notify_all()

    def wait_for_room(self, seconds: float) -> None:
        """Wait until the flusher has freed something, or not that long."""
        with self.changed:
            self.changed.wait(seconds)

    def close_all(self, reason: FlushReason, topics: Collection[str] | None = None) -> None:
        """Close the open batches, so that the flusher takes them now."""
        with self.changed:
            now = time.monotonic()
            for topic in self.lanes if topics is None else topics:
                self.lanes[topic].batches.close(reason, now)
            self.changed.notify_all()

    def is_drained(self, topics: Collection[str] | None = None) -> bool:
        """Say whether nothing is left to flush."""
        with self.changed:
            lanes = [self.lanes[topic] for topic in (self.lanes if topics is None else topics)]
            return not any(lane.batches.open or lane.batches.closed for lane in lanes)

    def committed(self) -> dict[Partition, int]:
        """Take the offsets committed since the last call, for Kafka's own display."""
        with self.changed:
            committed, self._committed = self._committed, {}
            return committed

    def stop(self) -> None:
        """Let the flusher's next wait end in None."""
        with self.changed:
            self._stopping = True
            self.changed.notify_all()

    # The flusher's side.

    @property
    def stopping(self) -> bool:
        """Whether the flusher is to end."""
        return self._stopping

    def news(self) -> tuple[dict[Partition, str] | None, list[Partition], list[Gap]]:
        """Take the partitions wanted (None: the poll loop has not asked), those released, and the gaps found."""
        with self.changed:
            news = self._wanted, self._released, self._gaps
            self._wanted, self._released, self._gaps = None, [], []
            return news

    def wait_to_stop(self, seconds: float) -> None:
        """Wait this long, or until the flusher is to end."""
        with self.changed:
            self.changed.wait_for(lambda: self._stopping, seconds)

    def grant(self, lane: Lane, positions: Mapping[Partition, Position], encoder: RowEncoder) -> None:
        """Let the poll loop read these partitions from where progress stands."""
        with self.changed:
            lane.encoder = encoder
            for partition, position in positions.items():
                lane.epochs[partition] = position.epoch
                lane.batches.reached[partition] = position.next_offset
                self._turn.granted[partition] = position.next_offset
            self.changed.notify_all()

    def revoke(self, lane: Lane) -> list[Partition]:
        """Take a lane back, with all it holds; return its partitions. What it held will be read again."""
        with self.changed:
            partitions = list(lane.epochs)
            lane.batches.clear()
            lane.epochs = {}
            lane.generation += 1
            for partition in partitions:
                self._turn.granted.pop(partition, None)
            self._turn.revoked += partitions
            self.changed.notify_all()
            return partitions

    def done(self, lane: Lane, batch: Batch) -> None:
        """Free a batch that is in the table."""
        with self.changed:
            if batch in lane.batches.closed:
                lane.batches.done(batch)
            self._committed.update(batch.next_offsets)
            lane.not_before = 0.0
            self.changed.notify_all()

    def next_batch(self, until: float) -> tuple[Lane, Batch] | None:
        """Wait for a batch to flush, oldest first; None at `until`, at news, or to stop."""
        with self.changed:
            while not (self._stopping or self._wanted is not None or self._released or self._gaps):
                now = time.monotonic()
                self._close_due(now)
                ready = [lane for lane in self.lanes.values() if lane.batches.closed and lane.not_before <= now]
                if ready:
                    lane = min(ready, key=lambda lane: lane.batches.closed[0].closed_at)
                    return lane, lane.batches.closed[0]
                if now >= until:
                    return None
                self.changed.wait(self._wake_at(until) - now)
            return None

    def _close_due(self, now: float) -> None:
        """Close what has lingered long enough; and the oldest, if some lane found no buffer left."""
        opened = sorted(
            (lane for lane in self.lanes.values() if lane.batches.open is not None),
            key=lambda lane: lane.batches.open.opened_at if lane.batches.open else 0.0,
        )
        for lane in opened:
            if lane.batches.open and lane.batches.open.opened_at + self._linger_seconds <= now:
                lane.batches.close(FlushReason.LINGER, now)
        if self._pool.starved and not any(lane.batches.closed for lane in self.lanes.values()):
            for lane in opened:
                if lane.batches.open and lane.batches.open.buffer is not None:
                    lane.batches.close(FlushReason.BUFFERS, now)
                    break

    def _wake_at(self, until: float) -> float:
        times = [until]
        for lane in self.lanes.values():
            if lane.batches.open is not None:
                times.append(lane.batches.open.opened_at + self._linger_seconds)
            if lane.batches.closed:
                times.append(lane.not_before)
        return min(times)
