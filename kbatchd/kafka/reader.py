"""The reader: one Kafka consumer, and the only code that knows it.

The worker's poll loop owns it and calls everything here from its own thread, after the fork: librdkafka's clients do
not survive one. Where to read is never asked of Kafka: `assign` starts at the offset that progress names, given with
the assignment; the seek behind it, to the same offset, only brings the leader epoch. Offsets are committed to Kafka for
its tools to display, nothing else.
"""

from __future__ import annotations

import logging
import math
import re
import time
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from confluent_kafka import OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from kbatchd.errors import SourceError
from kbatchd.kafka import oauth
from kbatchd.kafka.errors import UNREADABLE
from kbatchd.kafka.offsets import Offset
from kbatchd.kafka.outage import Outage
from kbatchd.kafka.reader_settings import settings
from kbatchd.model import Partition, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from kbatchd import config

log = logging.getLogger(__name__)

#: What brokers say that are there, and do not have the topic (any more).
_UNKNOWN = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION})  # noqa: SLF001

#: What another member has done to this one for good.
_FATAL = frozenset({KafkaError._FATAL, KafkaError._FENCED, KafkaError.FENCED_INSTANCE_ID})  # noqa: SLF001


#: How librdkafka says that a log was truncated: in its text, and nowhere else. -1 where the leader's log has nothing of
#: the epoch, nor of one before.
_EPOCH_END = re.compile(r"broker end offset is (-?\d+) \(offset leader epoch (-?\d+)\)")

#: How often, and how long at most, the leaders are asked something only to wake the threads that fetch from them.
#: Twice: the first question may overtake what it is for.
WAKES, WAKE_SECONDS = 2, 0.05

#: How long a poll waits while a partition is about to begin; and for how long one may be that the group has just given
#: us: it is claimed first, and a poll that waits for records would hear of that a tenth of a second late.
_BEGIN_SECONDS = 0.005
_GIVEN_SECONDS = 1.0

#: What a seek says to a partition that has not begun to be read.
_NOT_BEGUN = frozenset({KafkaError._STATE, KafkaError._PREV_IN_PROGRESS})  # noqa: SLF001

_NO_EPOCHS: Mapping[Partition, int] = MappingProxyType({})


class EpochEnd(NamedTuple):
    """Where, in the leader's log, the latest epoch ends that is not after the one that was read."""

    #: None: it has no such epoch.
    offset: int | None
    epoch: int


@dataclass(slots=True)
class Polled:
    """What one poll brought: records by topic, ends of partitions, and partitions in trouble."""

    records: dict[str, Sequence[Record]] = field(default_factory=dict)
    ends: dict[Partition, int] = field(default_factory=dict)
    #: Their offset is not in the topic: `auto.offset.reset` says so once.
    out_of_range: list[Partition] = field(default_factory=list)
    #: The leader's log parts below their offset from the one that was read: it stands still as well.
    ended: dict[Partition, EpochEnd] = field(default_factory=dict)
    #: What cannot be read at their offset, in librdkafka's words: nothing behind it is here.
    unreadable: dict[Partition, str] = field(default_factory=dict)
    #: The broker does not know these topics (any more).
    unknown_topics: set[str] = field(default_factory=set)


class Rebalance(Protocol):
    """Who is told when the group gives or takes partitions."""

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        """Begin with these."""

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        """Finish with these: their next owner waits until this returns."""

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        """Drop these: they have another owner already."""


class TopicReader:
    """A consumer that reads where it is told to."""

    def __init__(self, kafka: config.Kafka, client_id: str, topics: Iterable[str] = ()) -> None:
        """Connect in the background; `topics` are those that may be assigned."""
        self.outage = Outage()
        #: Set when a broker connection failed: what we knew of the topics may be out of date.
        self.brokers_changed = False
        #: What no client recovers from; told by the next poll.
        self._fatal: KafkaError | None = None
        self.assigned: set[Partition] = set()
        #: Whether partitions were taken from us while a poll went on: what it brings may be of these.
        self._were_taken = False
        #: How often the brokers' threads are still to be woken: see `_wake`. Until when a poll hardly waits.
        self._wakes, self._hasty_until = 0, 0.0
        #: What was assigned, and has not begun: librdkafka stops a partition first, and waits for offsets under way to
        #: a coordinator that may be away. Where it is to begin, and the leader epoch there.
        self._beginning: dict[Partition, tuple[int, int]] = {}
        self._one_topic: str | None = None
        self._consumer = settings(kafka, client_id).connect(Consumer, kafka, error_cb=self._on_error)
        for topic in topics:
            # Asks nobody, but librdkafka now looks for the topic's leaders. Where it hears of a topic by `assign` only,
            # it does so at its next tick: the first records came after up to 1.0 s, and come after 0.03 s.
            self._consumer.get_watermark_offsets(TopicPartition(topic, 0), cached=True)

    def subscribe(self, topics: Sequence[str], rebalance: Rebalance) -> None:
        """Join the group; `rebalance` is told, from within `poll`, what to read. Nothing is read before `assign`."""

        def assigned(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            # First of all: where the callback has assigned nothing, the client assigns all of it, to be read from the
            # offsets that Kafka has, whether we have claimed it or not.
            consumer.incremental_assign([])
            self._wakes = WAKES
            self._hasty_until = time.monotonic() + _GIVEN_SECONDS * bool(partitions)
            rebalance.on_assigned(_partitions(partitions))

        def revoked(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            rebalance.on_revoked(_partitions(partitions))
            self.unassign(_partitions(partitions))
            consumer.incremental_unassign([])

        def lost(consumer: Consumer, partitions: list[TopicPartition]) -> None:
            rebalance.on_lost(_partitions(partitions))
            self.unassign(_partitions(partitions))
            consumer.incremental_unassign([])

        self._consumer.subscribe(list(topics), on_assign=assigned, on_revoke=revoked, on_lost=lost)

    def read(
        self,
        moved: Iterable[Partition],
        starts: Mapping[Partition, int],
        epochs: Mapping[Partition, int] = _NO_EPOCHS,
    ) -> None:
        """Of the partitions that moved read these on from these offsets, and no others; see `assign`."""
        self.unassign([partition for partition in moved if partition not in starts])
        if starts:
            self.assign(starts, epochs)

    def assign(self, offsets: Mapping[Partition, int], epochs: Mapping[Partition, int] = _NO_EPOCHS) -> None:
        """Read these partitions from these offsets on; those already assigned start again there.

        `epochs` are the leader epochs of the records before these offsets. With one, the leader is first asked whether
        its log is still the one that was read; nothing is read before the answer.
        """
        self.unassign(offsets)
        self._consumer.incremental_assign([TopicPartition(*partition, offset) for partition, offset in offsets.items()])
        self._set_assigned(self.assigned | set(offsets))
        self._beginning.update({p: (offsets[p], epoch) for p, epoch in epochs.items() if offsets[p] > 0})
        self._begin()

    def _begin(self) -> None:
        """Go to where reading begins, with the epoch, as soon as librdkafka lets us.

        At a seek it asks the leader, and at an assignment only by chance. What an earlier fetch brings it drops.
        """
        for partition, (offset, epoch) in list(self._beginning.items()):
            try:
                self._consumer.seek(TopicPartition(*partition, offset, leader_epoch=epoch))
            except KafkaException as error:
                if error.args[0].code() not in _NOT_BEGUN:
                    raise SourceError(f"{partition} cannot be read from {offset} on: {error}") from error
            else:
                del self._beginning[partition]

    def unassign(self, partitions: Iterable[Partition]) -> None:
        """Stop reading these; what librdkafka holds of them is dropped."""
        ours = self.assigned.intersection(partitions)
        self._were_taken, self._wakes = True, WAKES
        for partition in ours:
            self._beginning.pop(partition, None)
        if ours:
            gone = [TopicPartition(*partition) for partition in ours]
            self._consumer.incremental_unassign(gone)
            self._set_assigned(self.assigned - ours)

    def poll(self, max_records: int, timeout_seconds: float) -> Polled:
        """Take what there is, at most `max_records`; waits no longer than the timeout.

        Raises SourceError when this consumer will not go on: only another one helps, in another process.
        """
        polled = Polled()
        self._were_taken = False
        messages: Sequence[Message] = self._consumer.consume(max_records, min(timeout_seconds, self._longest()))
        if self._fatal is not None:
            raise SourceError(f"the consumer cannot go on: {self._fatal.str()}; another worker takes over")
        if self._beginning or self._were_taken:
            messages = list(filter(self._is_wanted, messages))
        if not messages:
            return polled
        if any(map(Message.error, messages)):
            messages = self._sort_out(messages, polled)
            if not messages:
                return polled
        if self._one_topic is not None:
            polled.records[self._one_topic] = cast("Sequence[Record]", messages)
            return polled
        by_topic: dict[str, list[Record]] = {}
        for message in cast("Sequence[Record]", messages):
            by_topic.setdefault(message.topic() or "", []).append(message)
        polled.records.update(by_topic)
        return polled

    def _longest(self) -> float:
        """Do what is due before a poll; return how long it may wait at most."""
        self._begin()
        if self._wakes:
            self._wake()
        is_hasty = self._beginning or time.monotonic() < self._hasty_until
        return _BEGIN_SECONDS if is_hasty else math.inf

    def _wake(self) -> None:
        """Ask the leaders of all that is assigned anything, so that they are fetched from at once.

        At each change of the group librdkafka pauses all partitions, and lets them go on, but nobody tells the threads
        that fetch: they slept on for up to a second, and so did those of partitions that have just been assigned.
        """
        self._wakes -= 1
        try:
            ends = [TopicPartition(*partition, OFFSET_END) for partition in self.assigned]
            self._consumer.offsets_for_times(ends, WAKE_SECONDS)
        except KafkaException:
            log.debug("no answer from all leaders", extra={"action": "wake"})

    def _is_wanted(self, message: Message) -> bool:
        """Tell whether it is no record, and no end, of a partition that is not ours or has not begun where it shall."""
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:  # noqa: SLF001
            return True
        partition = Partition(message.topic() or "", message.partition() or 0)
        return partition in self.assigned and partition not in self._beginning

    def known_end(self, partition: Partition) -> Offset | None:
        """Return the partition's end, as the last answer to a fetch gave it; None before the first."""
        watermarks = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
        return Offset(watermarks[1]) if watermarks is not None and watermarks[1] >= 0 else None

    def show_committed(self, offsets: Mapping[Partition, int]) -> None:
        """Commit offsets to Kafka, for its tools to see. Nobody reads them back, so nobody waits for the answer."""
        try:
            self._consumer.commit(
                offsets=[TopicPartition(*partition, offset) for partition, offset in offsets.items()],
                asynchronous=True,
            )
        except KafkaException as error:
            log.debug("offsets not shown in Kafka", extra={"action": "show_offsets", "error": str(error)})

    def close(self) -> None:
        """Leave the group and free everything."""
        self._consumer.close()

    def _sort_out(self, messages: Sequence[Message], polled: Polled) -> list[Message]:
        """Take the events out from among the records."""
        records = []
        for message in messages:
            error = message.error()
            # An error may be of no partition, or name no offset: None, and no sign of 0.
            topic, number, offset = message.topic(), message.partition(), message.offset()
            partition = Partition(topic or "", -1 if number is None else number)
            if error is None:
                if partition not in polled.unreadable:
                    records.append(message)
                continue
            self._note_fatal(error)
            match error.code():
                case KafkaError._PARTITION_EOF if partition in polled.unreadable:  # noqa: SLF001
                    pass
                case KafkaError._PARTITION_EOF if offset is not None:  # noqa: SLF001  (librdkafka's own codes)
                    polled.ends[partition] = offset
                case KafkaError._AUTO_OFFSET_RESET:  # noqa: SLF001
                    told = _EPOCH_END.search(error.str())
                    if told is None:
                        polled.out_of_range.append(partition)
                    else:
                        offset, epoch = map(int, told.groups())
                        polled.ended[partition] = EpochEnd(offset if offset >= 0 else None, epoch)
                case code if code in UNREADABLE:
                    polled.unreadable[partition] = error.str()
                case code if code in _UNKNOWN:
                    polled.unknown_topics.add(partition.topic)
                case _:
                    self._tell(error)
        return records

    def _tell(self, error: KafkaError) -> None:
        """Tell of what librdkafka goes on from by itself; 99 is UNKNOWN_TOPIC_ID: the topic may have been recreated."""
        if error.code() == KafkaError.INCONSISTENT_GROUP_PROTOCOL:
            what = "the group does not take us: a program is in it with another assignor; `kbatchd check` names it"
            log.error(what, extra={"action": "group_refused", "error": error.str()})
            return
        self.brokers_changed = True
        log.warning("consumer error", extra={"action": "consumer_error", "error": str(error)})

    def _set_assigned(self, assigned: set[Partition]) -> None:
        """Remember what is assigned; with one topic, poll need not ask each record for its topic (40 ns each)."""
        self.assigned = assigned
        topics = {partition.topic for partition in assigned}
        self._one_topic = topics.pop() if len(topics) == 1 else None

    def _note_fatal(self, error: KafkaError) -> bool:
        if _is_fatal(error):
            self._fatal = self._fatal or error
        return self._fatal is not None

    def _on_error(self, error: KafkaError) -> None:
        """Hear of trouble with brokers: librdkafka repairs it by itself, but for what is fatal."""
        self.brokers_changed = True
        if self._note_fatal(error):
            return
        # No outage: the topic watch tells what is gone, librdkafka that it gets no token.
        if error.code() in _UNKNOWN or oauth.is_missing(error):
            return
        self.outage.note(error.str(), says_less=error.code() == KafkaError._ALL_BROKERS_DOWN)  # noqa: SLF001


def _is_fatal(error: KafkaError) -> bool:
    """Tell whether the client is of no use any more; as a message's error only the code says so."""
    return error.fatal() or error.code() in _FATAL


def partition_of(record: Record) -> Partition:
    """Return where a record was read: a record that was read always knows."""
    topic, number = record.topic(), record.partition()
    assert topic is not None
    assert number is not None
    return Partition(topic, number)


def _partitions(partitions: Iterable[TopicPartition]) -> list[Partition]:
    return [Partition(partition.topic, partition.partition) for partition in partitions]
