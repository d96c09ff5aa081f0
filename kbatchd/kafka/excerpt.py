"""An excerpt of a topic: the newest records of its partitions, read for `kbatchd check` and `kbatchd infer`.

It leaves nothing in Kafka: the consumer is told where to read, joins no group, and commits nothing. Called by those
commands, in their main thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kbatchd.errors import ServerUnavailable
from kbatchd.kafka import offsets
from kbatchd.kafka.reader import TopicReader, partition_of
from kbatchd.model import Partition

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbatchd import config
    from kbatchd.kafka import topics
    from kbatchd.kafka.offsets import Answers, Offset
    from kbatchd.model import Record

#: Records are read in so many bytes at most, however many were asked for.
MAX_BYTES = 64_000_000

#: Without a record for so long, what has come is taken for all.
QUIET_SECONDS = 10.0

#: How long partitions that have no leader are asked for.
LEADER_SECONDS = 5.0

_POLL_RECORDS = 500
_POLL_SECONDS = 0.2


def read(kafka: config.Kafka, watermarks: Mapping[Partition, tuple[int, int]], count: int) -> list[Record]:
    """Return at most so many records below the ends given, shared out among the partitions, in their order."""
    starts = _starts(watermarks, count)
    waiting = {partition: watermarks[partition][1] for partition in starts}
    reader = TopicReader(kafka, "kbatchd excerpt", {partition.topic for partition in starts})
    try:
        records: list[tuple[Partition, Record]] = []
        size, quiet_at = 0, time.monotonic() + QUIET_SECONDS
        reader.assign(starts)
        while waiting and size < MAX_BYTES and time.monotonic() < quiet_at:
            polled = reader.poll(_POLL_RECORDS, _POLL_SECONDS)
            for record in (record for batch in polled.records.values() for record in batch):
                quiet_at = time.monotonic() + QUIET_SECONDS
                partition, offset = partition_of(record), record.offset() or 0
                if offset < watermarks[partition][1]:
                    records.append((partition, record))
                    size += len(record.value() or b"")
                if offset + 1 >= watermarks[partition][1]:
                    waiting.pop(partition, None)
            for partition in (*polled.ends, *polled.out_of_range):  # the offsets before an end may be no records
                waiting.pop(partition, None)
    finally:
        reader.close()
    if waiting and not records:
        raise ServerUnavailable(f"Kafka has sent no record of {next(iter(waiting))} within {QUIET_SECONDS:.0f} s")
    records.sort(key=lambda item: (item[0], item[1].offset() or 0))
    return [record for _, record in records]


def marks(
    admin: topics.Admin, topic: topics.TopicDescription, timeout_seconds: float
) -> Answers[tuple[Offset, Offset]]:
    """Ask for the first offset and the end of each partition; the leaders of a topic just made are waited for."""
    partitions = [Partition(topic.topic, number) for number in range(topic.partitions)]
    return offsets.patiently(
        lambda asked: offsets.watermarks(admin, asked, timeout_seconds), partitions, LEADER_SECONDS
    )


def _starts(watermarks: Mapping[Partition, tuple[int, int]], count: int) -> dict[Partition, int]:
    """Share out the count: what short partitions do not need goes to the longer ones."""
    starts: dict[Partition, int] = {}
    by_length = sorted(watermarks.items(), key=lambda item: item[1][1] - item[1][0])
    for index, (partition, (low, high)) in enumerate(by_length):
        share = min(high - low, -(-count // (len(by_length) - index)))
        if share > 0:
            starts[partition] = high - share
            count -= share
    return starts
