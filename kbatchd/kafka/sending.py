"""What becomes of the records of one request: sent or not, acknowledged where, or why not.

Made by the producer (producer.py), which reports to it; read by a gateway, on its event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from confluent_kafka import KafkaError

from kbatchd.config import record_too_large
from kbatchd.errors import KbatchError
from kbatchd.kafka.reported_offsets import ReportedOffsets
from kbatchd.model import OffsetRange, Partition

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import Message


class NotSent(KbatchError):
    """None of a request's records was sent."""


class KafkaAway(NotSent):
    """Kafka cannot be reached, or does not answer."""


class QueueFull(NotSent):
    """More than `max_queued_records` or `max_queued_bytes` would wait for Kafka."""


class RecordTooLarge(NotSent):
    """A record is larger than we send (message.max.bytes)."""

    def __init__(self, index: int, size: int, limit: int) -> None:
        super().__init__(record_too_large(size, limit))
        self.index = index


class NotAcknowledged(KbatchError):
    """Kafka did not acknowledge all records of a request.

    `known` are those it did. `certain`: the others are not in the topic; else that is unknown.
    """

    def __init__(self, reason: str, known: list[OffsetRange], *, certain: bool) -> None:
        super().__init__(reason)
        self.known = known
        self.certain = certain


#: The brokers have refused the record itself: it is not in the topic.
_CERTAIN = {
    KafkaError.MSG_SIZE_TOO_LARGE,
    KafkaError.RECORD_LIST_TOO_LARGE,
    KafkaError.INVALID_RECORD,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.POLICY_VIOLATION,
    # There is no such topic (any more).
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,  # noqa: SLF001 - librdkafka's own codes have this name
    KafkaError._UNKNOWN_PARTITION,  # noqa: SLF001
}


class Sending:
    """The records of one request that are under way."""

    __slots__ = ("_done", "_reported", "acknowledged", "errors", "left", "on_done", "sent_at", "size_bytes", "topic")

    def __init__(
        self, topic: str, count: int, size_bytes: int, sent_at: float, on_done: Callable[[Sending], object],
        done: list[Sending], reported: ReportedOffsets,
    ) -> None:  # fmt: skip
        self.topic = topic
        #: Records without a report.
        self.left = count
        self.size_bytes = size_bytes
        self.sent_at = sent_at
        self.on_done = on_done
        #: Where it goes with its last report.
        self._done = done
        self._reported = reported
        #: Partition and offset of each record (None: nobody has said), and the reasons of the others, in the order of
        #: the reports.
        self.acknowledged: list[tuple[int, int | None]] = []
        self.errors: list[KafkaError] = []

    def report(self, error: KafkaError | None, message: Message) -> None:
        """Take one delivery report."""
        if error is None:
            offset = message.offset()
            if offset is None or self._reported:
                offset = self._reported.offset(message.topic(), message.partition(), offset)
            self.acknowledged.append((message.partition(), offset))  # type: ignore[arg-type]
        else:
            self.errors.append(error)
        self.left -= 1
        if not self.left:
            self._done.append(self)

    def give_up(self, count: int, error: KafkaError) -> None:
        """Take note of so many records that will have no report."""
        self.errors += [error] * count
        self.left -= count
        if not self.left:
            self._done.append(self)

    def ranges(self) -> list[OffsetRange]:
        """Return where the records are, of which Kafka has said so; NotAcknowledged when it does not have all."""
        ranges = _ranges(self.topic, self.acknowledged)
        if self.errors:
            certain = all(error.code() in _CERTAIN for error in self.errors)
            raise NotAcknowledged(self.errors[0].str(), ranges, certain=certain)
        return ranges


def _ranges(topic: str, acknowledged: list[tuple[int, int | None]]) -> list[OffsetRange]:
    """Put offsets that follow each other together."""
    known = [(number, offset) for number, offset in acknowledged if offset is not None]
    if len(known) == 1:
        [(number, offset)] = known
        return [OffsetRange(Partition(topic, number), offset, offset)]
    ranges: list[OffsetRange] = []
    last_number, last_offset, first = -1, -2, 0
    for number, offset in sorted(known):
        if number != last_number or offset != last_offset + 1:
            if last_number >= 0:
                ranges.append(OffsetRange(Partition(topic, last_number), first, last_offset))
            first = offset
        last_number, last_offset = number, offset
    if last_number >= 0:
        ranges.append(OffsetRange(Partition(topic, last_number), first, last_offset))
    return ranges
