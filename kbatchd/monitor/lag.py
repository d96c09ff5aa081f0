"""Lag: how far each partition of a pipeline is behind its topic, from progress in PostgreSQL and the brokers' offsets.

Nothing that a worker says of itself is used, so the answer is the same from any host, with the daemon up or down. The
end of a partition is that of a reader of committed records (the last stable offset). What retention has deleted cannot
be read any more: it is no lag, it is lost. Called by the monitor's watcher thread and by `kbatchd status`.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.kafka import offsets, topics
from kbatchd.kafka.reader import TopicReader, partition_of
from kbatchd.kafka.watch import judge
from kbatchd.model import GapKind, Partition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kbatchd import config
    from kbatchd.schema.overview import Claimed

#: Partitions whose oldest waiting record is read in one look, and how long that may take. The others keep the time they
#: had, and have their turn in the next looks.
LOOKED_AT_PARTITIONS = 64
LOOK_SECONDS = 1.0

#: A look wants one record of each partition: no more than the broker's first batch is fetched.
_FETCH_LITTLE = {"fetch.message.max.bytes": 1_024, "queued.min.messages": 1, "fetch.wait.max.ms": 50}


#: Records that have been waiting for longer than this, beside some lingers, wait for somebody: a flush takes less.
STILL_SECONDS = 10.0
STILL_LINGERS = 3.0


class PartitionState(StrEnum):
    """What progress and topic have to say of each other."""

    OK = "ok"
    RETENTION = "retention"  # records were deleted before they were read
    TRUNCATION = "truncation"  # the topic ends below progress
    RECREATED = "recreated"  # the topic is another one by now
    MISSING = "missing"  # there is no such topic or partition
    NO_LEADER = "no leader"  # its broker is away: nobody can read it at the moment
    NOT_BEGUN = "not begun"  # its broker was away, and has not said yet where it begins
    UNKNOWN = "unknown"  # the brokers do not say


_STATES = {
    GapKind.RETENTION: PartitionState.RETENTION,
    GapKind.TRUNCATION: PartitionState.TRUNCATION,
    GapKind.RECREATED: PartitionState.RECREATED,
}


class PartitionLag(NamedTuple):
    """One partition of one route against its topic."""

    progress: Claimed
    state: PartitionState
    #: The topic's first offset and its end; None where the brokers do not say.
    start: int | None
    end: int | None

    @property
    def partition(self) -> Partition:
        """The partition."""
        return Partition(self.progress.topic, self.progress.partition)

    @property
    def reads_from(self) -> int:
        """The first offset that is there to be read: all of a topic that was recreated."""
        next_offset = 0 if self.state is PartitionState.RECREATED else self.progress.next_offset or 0
        return max(next_offset, self.start or 0)

    @property
    def records(self) -> int | None:
        """Offsets still to be read; None where beginning or end is not known."""
        return None if self.end is None or self.progress.next_offset is None else max(0, self.end - self.reads_from)

    def waits(self, oldest: float | None) -> float | None:
        """Return how long the oldest waiting record, of that time, has been waiting.

        0 where none is, None where it is not known.
        """
        if self.records is None or (self.records and oldest is None):
            return None
        return max(0.0, round(time.time() - oldest, 3)) if self.records and oldest else 0.0

    def stands_still(self, waits: float | None, linger_seconds: float) -> bool:
        """Tell whether an owner is there, records have been waiting for `waits`, and progress has not moved since.

        Where nobody knows for how long they have been waiting (their timestamps may be of the future, or missing), that
        progress has not moved is enough.
        """
        moved = time.time() - self.progress.updated_at.timestamp()
        longest = STILL_SECONDS + STILL_LINGERS * linger_seconds
        return self.progress.is_held and bool(self.records) and min(moved, waits or moved) > longest

    @property
    def lost(self) -> int:
        """Offsets that were deleted before they were read, and are not recorded as a gap yet."""
        if self.state is not PartitionState.RETENTION or self.start is None or self.progress.next_offset is None:
            return 0
        return self.start - self.progress.next_offset


def survey(admin: topics.Admin, rows: Sequence[Claimed], timeout_seconds: float) -> list[PartitionLag]:
    """Ask the brokers where the partitions begin and end. Raises ServerUnavailable or ConfigError if none answers.

    A partition that they are silent about leaves the others as they are. Progress was read before: a lag may count what
    came in the moment between, and never leaves out what was there.
    """
    described = topics.describe_async(admin, {row.topic for row in rows}, timeout_seconds).answers()
    if described.silent and not described.known:
        raise next(iter(described.silent.values()))
    asked = {
        Partition(row.topic, row.partition)
        for row in rows
        if (topic := described.known.get(row.topic)) and _is_led(topic, row.partition)
    }
    marks = offsets.watermarks(admin, sorted(asked), timeout_seconds).known
    return [_compare(row, described, marks) for row in rows]


def _is_led(topic: topics.TopicDescription, number: int) -> bool:
    return number < topic.partitions and number not in topic.leaderless


def _compare(
    row: Claimed, described: topics.Described, marks: Mapping[Partition, tuple[offsets.Offset, offsets.Offset]]
) -> PartitionLag:
    partition = Partition(row.topic, row.partition)
    if row.topic in described.silent:
        return PartitionLag(row, PartitionState.UNKNOWN, None, None)
    topic = described.known[row.topic]
    if topic is None or row.partition >= topic.partitions:
        return PartitionLag(row, PartitionState.MISSING, None, None)
    if row.partition in topic.leaderless:
        return PartitionLag(row, PartitionState.NO_LEADER, None, None)
    low, high = marks.get(partition, (None, None))
    if row.next_offset is None:
        return PartitionLag(row, PartitionState.NOT_BEGUN, low, high)
    if low is None or high is None:
        return PartitionLag(row, PartitionState.UNKNOWN, None, None)
    gap = judge(partition, row.next_offset, row.topic_id, topic.topic_id, low, high)
    return PartitionLag(row, _STATES[gap.kind] if gap else PartitionState.OK, low, high)


class Oldest:
    """Reads the first waiting record of partitions, for its time; a consumer that takes part in no group.

    Remembers what it has read: a partition that stands still is read once.
    """

    def __init__(self, kafka: config.Kafka, client_id: str, names: Iterable[str]) -> None:
        settings = kafka.model_copy(update={"librdkafka": {**kafka.librdkafka, **_FETCH_LITTLE}})
        self._reader = TopicReader(settings, client_id, sorted(names))
        #: By route and partition: the offset that was looked for, and the time of the record there, in seconds.
        self._known: dict[tuple[str, Partition], tuple[int, float]] = {}

    def times(self, lags: Sequence[PartitionLag], seconds: float = LOOK_SECONDS) -> dict[tuple[str, Partition], float]:
        """Look for so long; return since when records wait, by route and partition, of those that have some.

        Of a partition whose turn has not come the time may be that of a record that is in the table by now.
        """
        waiting = {(lag.progress.route, lag.partition): lag.reads_from for lag in lags if lag.records}
        self._known = {key: known for key, known in self._known.items() if key in waiting}
        due = [key for key, offset in waiting.items() if self._known.get(key, (-1,))[0] != offset]
        due.sort(key=lambda key: key in self._known)  # those never seen first
        deadline = time.monotonic() + seconds
        due = due[:LOOKED_AT_PARTITIONS]
        while due and time.monotonic() < deadline:
            # Of a partition that several routes wait at, one offset at a time.
            layer = {partition: (route, partition) for route, partition in reversed(due)}
            found = self._look({partition: waiting[key] for partition, key in layer.items()}, deadline)
            for partition, at in found.items():
                self._known[layer[partition]] = (waiting[layer[partition]], at)
            due = [key for key in due if key not in layer.values()]
        return {key: at for key, (_, at) in self._known.items()}

    def close(self) -> None:
        """Free the consumer."""
        self._reader.close()

    def _look(self, starts: Mapping[Partition, int], deadline: float) -> dict[Partition, float]:
        self._reader.assign(starts)
        found: dict[Partition, float] = {}
        missing = set(starts)
        while missing and time.monotonic() < deadline:
            polled = self._reader.poll(LOOKED_AT_PARTITIONS, 0.05)
            for record in (record for records in polled.records.values() for record in records):
                partition = partition_of(record)
                kind, at_ms = record.timestamp()
                if partition in missing and kind and at_ms >= 0:  # -1: it has none
                    found[partition] = at_ms / 1e3
                missing.discard(partition)
            missing -= polled.ends.keys() | set(polled.out_of_range)
        self._reader.unassign(starts)
        return found
