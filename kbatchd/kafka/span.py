"""A span of offsets of one partition, read from its beginning to its end: for who compares, or writes it again.

The consumer is told where to read, joins no group and commits nothing. Called by the operator's commands, in their main
thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kbatchd.errors import ServerUnavailable, SourceError
from kbatchd.kafka.reader import TopicReader

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd import config
    from kbatchd.model import Partition, Record

#: Without an answer for so long, Kafka is taken for away.
QUIET_SECONDS = 30.0

#: A poll waits for all of these, or for so long: of a partition's last ones, and of its end.
_POLL_RECORDS = 5_000
_POLL_SECONDS = 0.05

#: How long a broker waits for more before it says that a partition ends.
_FETCH_SOON = {"fetch.wait.max.ms": 50}


class SpanReader:
    """A consumer that reads spans of one topic, one after another."""

    def __init__(self, kafka: config.Kafka, name: str, topic: str) -> None:
        """Connect in the background; the group is the command's own, and nobody joins it."""
        changed = {"group_id": f"{kafka.group_id}-{name}", "librdkafka": {**kafka.librdkafka, **_FETCH_SOON}}
        self._reader = TopicReader(kafka.model_copy(update=changed), name, [topic])

    def read(self, partition: Partition, first: int, end: int) -> Iterator[list[Record]]:
        """Yield the committed records from `first` on and below `end`, in their order, some at a time.

        Raises SourceError where Kafka does not have all of it, ServerUnavailable where it is silent.
        """
        if first >= end:
            return
        self._reader.read({*self._reader.assigned, partition}, {partition: first})
        reached, quiet_at = first, time.monotonic() + QUIET_SECONDS
        while reached < end:
            polled = self._reader.poll(_POLL_RECORDS, _POLL_SECONDS)
            if partition in polled.out_of_range or polled.unknown_topics:
                raise SourceError(f"{partition}: offset {reached} is not in the topic any more")
            if partition in polled.unreadable:
                raise SourceError(f"{partition}: offset {reached} cannot be read: {polled.unreadable[partition]}")
            batches = polled.records.values()
            records = [record for batch in batches for record in batch if record.partition() == partition.number]
            if records:
                reached = (records[-1].offset() or 0) + 1
                if within := [record for record in records if (record.offset() or 0) < end]:
                    yield within
            reached = max(reached, polled.ends.get(partition, 0))
            if records or partition in polled.ends:
                quiet_at = time.monotonic() + QUIET_SECONDS
            elif time.monotonic() > quiet_at:
                raise ServerUnavailable(f"Kafka has sent nothing of {partition} within {QUIET_SECONDS:.0f} s")
        self._reader.unassign([partition])

    def close(self) -> None:
        """Free the consumer."""
        self._reader.close()
