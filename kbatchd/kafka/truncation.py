"""Where the log of a partition parts from the one that was read: asked of the partition's leader.

After an unclean leader election, or when a leader has lost its disk, offsets that were read may be others' by now. A
leader tells where an epoch ends in its own log (OffsetForLeaderEpoch); librdkafka asks it when reading begins with an
epoch, and only then. So a reader of its own begins where the last record was read, and the answer is either a record,
the partition's end, or where the epoch ends. If the leader does not know the epoch, it tells of the one before, and is
asked again about that.

Called by the worker's poll loop when its consumer found something of the kind, and by `kbatchd progress accept` and
`check`; it waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from kbatchd.errors import ServerUnavailable
from kbatchd.kafka.reader import TopicReader

if TYPE_CHECKING:
    from types import TracebackType

    from kbatchd import config
    from kbatchd.kafka.reader import EpochEnd
    from kbatchd.lineage import Lineage
    from kbatchd.model import Partition

#: One record is enough of an answer.
_FETCH_LITTLE = {"fetch.message.max.bytes": 1_024, "queued.min.messages": 1, "fetch.wait.max.ms": 50}


class Logs:
    """A reader that asks; see the module."""

    def __init__(self, kafka: config.Kafka, timeout_seconds: float) -> None:
        """Connect in the background; each answer may take so long."""
        little = kafka.model_copy(update={"librdkafka": {**kafka.librdkafka, **_FETCH_LITTLE}})
        self._reader = TopicReader(little, "kbatchd truncation")
        self._timeout_seconds = timeout_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._reader.close()

    def part_at(self, partition: Partition, lineage: Lineage, low: int) -> int | None:
        """Return the offset from which on another log's records stand; None: what was read stands there still.

        `low` is where the partition begins: what was read below it is gone, and nobody can compare it.
        """
        parted = None
        while lineage.epoch is not None and lineage.end is not None and lineage.end > low:
            ended = self._ask(partition, lineage.end, lineage.epoch)
            if ended is None:
                break
            if ended.offset is None:  # all that it has is of later epochs
                return low
            ours = lineage.end_of(ended.epoch)
            parted = max(low, ended.offset if ours is None else min(ended.offset, ours))
            lineage = lineage.below(parted)
        return parted

    def _ask(self, partition: Partition, offset: int, epoch: int) -> EpochEnd | None:
        """Ask where the epoch ends, if that is below the offset. Raises ServerUnavailable without an answer."""
        deadline = time.monotonic() + self._timeout_seconds
        self._reader.unassign(self._reader.assigned - {partition})
        while time.monotonic() < deadline:
            self._reader.assign({partition: offset}, {partition: epoch})
            while time.monotonic() < deadline:
                polled = self._reader.poll(1, 0.05)
                if partition in polled.ended:
                    return polled.ended[partition]
                if polled.out_of_range:
                    break  # a fetch was faster than the question: asked again, it waits
                if polled.records or polled.ends or polled.unreadable:
                    return None
        raise ServerUnavailable(f"the leader of {partition} has not said where its epoch {epoch} ends")
