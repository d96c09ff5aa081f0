"""What the poll loop and the flusher hand to each other, under one lock.

The poll loop gives chunks of rows and takes assignments; the flusher takes batches and gives room. There is a lane for
each route; a topic that feeds several is read once for all of them, from the lowest offset that one of them wants. The
flusher alone decides what is owned: it grants a partition to a lane after its claim and revokes it when the claim is
lost. The poll loop sees both at the start of its turn, so what it polls in between belongs to a generation that is over
and is dropped by `put`. The lock is held for list operations only, never during I/O.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kbatchd.model import FlushReason, Gap, Partition
from kbatchd.sink.batch import Batch, RouteBatches
from kbatchd.sink.buffers import BufferPool
from kbatchd.sink.chunk import Chunk
from kbatchd.worker.lane import Lane, Turn, describe_lane, readings_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from kbatchd import config
    from kbatchd.encode.rows import RowEncoder
    from kbatchd.model import Position


class Handover:
    """The lanes of a worker, by the names of their routes, and the news between its two threads."""

    def __init__(self, routes: Iterable[config.Route], batch: config.Batch, buffer_bytes: int) -> None:
        self.changed = threading.Condition()
        self._linger_seconds = batch.linger_seconds
        self._pool = BufferPool(buffer_bytes, batch.max_bytes)
        self.lanes = {route.name: Lane(route, RouteBatches(self._pool, batch.max_rows)) for route in routes}
        #: Partitions that have come to a lane, or left one, since the poll loop's last turn; the others are read on.
        self._moved: set[Partition] = set()
        self._encoders: dict[str, tuple[int, RowEncoder]] = {}
        self._wanted: set[Partition] | None = None
        self._released: list[Partition] = []
        self._releasing = False
        self._gaps: list[tuple[Lane, Gap, int]] = []
        self._committed: dict[Partition, int] = {}
        self._stopping = False

    def lanes_of(self, topic: str) -> list[Lane]:
        """Return the lanes that a topic feeds."""
        return [lane for lane in self.lanes.values() if lane.route.topic == topic]

    # The poll loop's side.

    def turn(self) -> Turn:
        """Take what the flusher has granted and revoked."""
        with self.changed:
            for lane in self.lanes.values():
                if lane.parked and lane.batches.has_room():
                    lane.parked = False
                    self._moved.update(lane.epochs)
            if not self._moved:
                return Turn(self._encoders, {})
            readings = readings_of(self.lanes.values(), self._moved)
            self._moved.clear()
            self._encoders = {
                name: (lane.generation, lane.encoder)
                for name, lane in self.lanes.items()
                if lane.encoder is not None and lane.is_read
            }
            return Turn(self._encoders, readings)

    def put(self, route: str, generation: int, chunk: Chunk) -> Chunk | None:
        """Add a chunk to its lane; return what found no room. A chunk of a former generation is dropped."""
        lane = self.lanes[route]
        with self.changed:
            if lane.generation != generation:
                return None
            had_closed = bool(lane.batches.closed)
            was_empty = lane.batches.open is None
            rest = lane.batches.put(chunk, lane.epochs, time.monotonic())
            if was_empty or self._pool.starved or (lane.batches.closed and not had_closed):
                self.changed.notify_all()
            return rest

    def put_ends(self, route: str, generation: int, offsets: Mapping[Partition, int]) -> bool:
        """Tell that partitions end here for now: progress may move over markers that are no records.

        Return False when there is no room for it. Ends of a former generation are dropped: the records before them may
        have been dropped as well.
        """
        lane = self.lanes[route]
        with self.changed:
            if lane.generation != generation:
                return True
            was_empty = lane.batches.open is None
            ours = {partition: offset for partition, offset in offsets.items() if partition in lane.epochs}
            for partition, offset in ours.items():
                if lane.batches.reached[partition] < offset <= lane.committed[partition]:
                    lane.batches.reached[partition] = offset  # markers only, as before: see `RouteBatches.begin`
            taken = lane.batches.put_ends(ours, lane.epochs, time.monotonic())
            if was_empty:
                self.changed.notify_all()
            return taken

    def park(self, route: str) -> None:
        """Read on without this lane until it has room; what it was to be given next is read again then."""
        lane = self.lanes[route]
        with self.changed:
            lane.parked = True
            lane.generation += 1
            self._moved.update(lane.epochs)

    def read_again(self, partition: Partition) -> None:
        """Read the partition again from where its lanes stand, with the next turn."""
        with self.changed:
            self._moved.add(partition)

    def positions(self, partition: Partition) -> dict[str, Position]:
        """Return under which claim each route reads a partition, and which offset it wants next; of those that do."""
        with self.changed:
            lanes = [lane for lane in self.lanes_of(partition.topic) if partition in lane.epochs and not lane.paused]
            return {
                lane.route.name: lane.claimed[partition]._replace(
                    next_offset=max(lane.batches.reached[partition], lane.committed[partition]),
                    lineage=lane.batches.lineages[partition],
                )
                for lane in lanes
            }

    def is_beyond(self, partition: Partition, end: int) -> bool:
        """Tell whether progress has passed this end of the partition: what lay in between is not there any more."""
        with self.changed:
            lanes = [lane for lane in self.lanes_of(partition.topic) if partition in lane.epochs]
            return any(lane.committed[partition] > end for lane in lanes)

    def forget_log(self, partition: Partition) -> None:
        """Begin the partition's reading again, without the log that it was read from: there is nothing to compare."""
        with self.changed:
            for lane in self.lanes_of(partition.topic):
                if partition in lane.epochs:
                    lane.batches.forget_log(partition, lane.committed[partition])
            self._moved.add(partition)

    def furthest(self) -> dict[Partition, int]:
        """Return the partitions that are read, with the offset that is wanted next: of several lanes the furthest."""
        offsets: dict[Partition, int] = {}
        with self.changed:
            for lane in self.lanes.values():
                if lane.is_read:
                    for partition in lane.epochs:
                        offsets[partition] = max(lane.batches.reached[partition], offsets.get(partition, 0))
        return offsets

    def want(self, partitions: Iterable[Partition]) -> None:
        """Ask for partitions."""
        with self.changed:
            self._wanted = (self._wanted or set()) | set(partitions)
            self.changed.notify_all()

    def release(self, partitions: Iterable[Partition]) -> None:
        """Give partitions up, of which nothing more is put: what was not flushed is dropped; see `wait_released`."""
        with self.changed:
            for partition in partitions:
                (self._wanted or set()).discard(partition)
                self._committed.pop(partition, None)
                self._released.append(partition)
            self._releasing = bool(self._released)
            self.changed.notify_all()

    def wait_released(self, seconds: float) -> bool:
        """Wait until the flusher has given up what was released, or not that long; tell whether it has."""
        with self.changed:
            return self.changed.wait_for(lambda: not self._releasing, seconds)

    def report(self, route: str, gap: Gap, epoch: int) -> None:
        """Tell of a gap, found under this claim; the flusher halts the route's partition, or records it and goes on."""
        with self.changed:
            self._gaps.append((self.lanes[route], gap, epoch))
            self.changed.notify_all()

    def wait_for_room(self, seconds: float) -> None:
        """Wait until the flusher has freed something, or not that long."""
        with self.changed:
            self.changed.wait(seconds)

    def close_all(self, reason: FlushReason, topics: Collection[str] | None = None) -> None:
        """Close the open batches of these topics, or of all, so that the flusher takes them now."""
        with self.changed:
            now = time.monotonic()
            for lane in self._lanes_of_all(topics):
                lane.batches.close(reason, now)
            self.changed.notify_all()

    def is_drained(self, topics: Collection[str] | None = None) -> bool:
        """Say whether nothing of these topics, or of all, is left to flush."""
        with self.changed:
            return not any(lane.batches.open or lane.batches.closed for lane in self._lanes_of_all(topics))

    def _lanes_of_all(self, topics: Collection[str] | None) -> list[Lane]:
        return [lane for lane in self.lanes.values() if topics is None or lane.route.topic in topics]

    def committed(self) -> dict[Partition, int]:
        """Take the offsets committed since the last call, for Kafka's own display: of several routes the lowest."""
        with self.changed:
            committed, self._committed = self._committed, {}
            # A group that has forgotten us would answer the others with the end of our next membership.
            owned = {partition for lane in self.lanes.values() for partition in lane.epochs}
            return {partition: offset for partition, offset in committed.items() if partition in owned}

    def describe(self) -> list[dict[str, object]]:
        """Say where each lane stands, for the log."""
        with self.changed:
            now = time.monotonic()
            return [describe_lane(lane, now) for lane in self.lanes.values()]

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

    def news(self) -> tuple[set[Partition] | None, list[Partition], list[tuple[Lane, Gap, int]]]:
        """Take the partitions wanted (None: the poll loop has not asked), those released, and the gaps found."""
        with self.changed:
            news = self._wanted, self._released, self._gaps
            self._wanted, self._released, self._gaps = None, [], []
            return news

    def note_released(self) -> None:
        """Tell the poll loop that others may have what it released, unless there is more of it."""
        with self.changed:
            self._releasing = bool(self._released)
            self.changed.notify_all()

    def buffer_bytes(self) -> tuple[int, int]:
        """Return how much of the buffers is in use, and how much there is."""
        with self.changed:
            return self._pool.used_bytes, self._pool.total_bytes

    def wait_to_stop(self, seconds: float) -> None:
        """Wait this long, or until the flusher is to end."""
        with self.changed:
            self.changed.wait_for(lambda: self._stopping, seconds)

    def grant(self, lane: Lane, positions: Mapping[Partition, Position], encoder: RowEncoder) -> None:
        """Let the poll loop read these partitions from where progress stands."""
        with self.changed:
            lane.encoder = encoder
            lane.grant(positions)
            self._moved.update(positions)
            self.changed.notify_all()

    def pause(self, lane: Lane, *, paused: bool) -> None:
        """Let what is granted to a lane not be read from its next revocation on; or be read again."""
        with self.changed:
            lane.paused = paused

    def give_up(self, lane: Lane, partitions: Collection[Partition]) -> bool:
        """Take these back, and leave the lane's others alone; False: its batches hold something of these."""
        with self.changed:
            if lane.batches.hold(partitions):
                return False
            self._moved.update(lane.give_up(partitions))
            self.changed.notify_all()
            return True

    def revoke(self, lane: Lane) -> list[Partition]:
        """Take a lane back, with all it holds; return its partitions. What it held will be read again."""
        with self.changed:
            partitions = lane.revoke()
            self._moved.update(partitions)
            self.changed.notify_all()
            return partitions

    def done(self, lane: Lane, batch: Batch) -> None:
        """Free a batch that is in the table; behind it, where another one waits, see `free_retired`."""
        with self.changed:
            if batch in lane.batches.closed:
                if len(lane.batches.closed) > 1:
                    lane.batches.retire(batch)
                else:
                    lane.batches.done(batch)
                lane.committed.update(batch.next_offsets)
                lanes = self.lanes_of(lane.route.topic)
                for partition in batch.next_offsets:
                    self._committed[partition] = min(
                        other.committed[partition] for other in lanes if partition in other.committed
                    )
            lane.not_before = 0.0
            self.changed.notify_all()

    def free_retired(self) -> None:
        """Give the poll loop the room of batches that are in the table, now that the next one is with PostgreSQL.

        Sooner, the poll loop's first turns took processor and interpreter from the flusher: the next COPY began 6 ms
        later, after 3 more for the records that were dropped; of 45 ms a batch, and PostgreSQL idle for as long.
        """
        with self.changed:
            retired = [batch for lane in self.lanes.values() if (batch := lane.batches.free_retired()) is not None]
            if retired:
                self.changed.notify_all()
        retired.clear()  # outside of the lock

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
