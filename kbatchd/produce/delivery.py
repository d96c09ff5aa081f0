"""What both producers share: the patience with Kafka, and what it has acknowledged.

Used by `kbatchd produce`, in its main thread.
"""

from __future__ import annotations

import time
from itertools import repeat
from typing import TYPE_CHECKING, Final, Protocol

from confluent_kafka import KafkaError, Producer

from kbatchd.errors import ConfigError, ServerUnavailable
from kbatchd.kafka.errors import LOGIN_ADVICE
from kbatchd.kafka.reported_offsets import ReportedOffsets
from kbatchd.kafka.settings import NOT_TAKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from confluent_kafka import Message

    from kbatchd import config
    from kbatchd.files.streams import Stop
    from kbatchd.kafka.settings import Settings
    from kbatchd.produce.bookmark import Bookmark

    Headers = list[tuple[str, str | bytes | None]]

#: How long one call to librdkafka may block: then we look whether to go on.
SLICE_SECONDS: Final = 0.5
#: How long Kafka may be silent before we say what we are waiting for.
_SAY_SECONDS: Final = 3.0
#: Between two attempts at anything.
_PAUSE_SECONDS: Final = 0.05
#: At an end, how long Kafka may take to finish what is under way.
LAST_SECONDS: Final = 3.0

#: What sending again does not fix.
REFUSED: Final = {
    KafkaError.MSG_SIZE_TOO_LARGE: "lower message.max.bytes in kafka.librdkafka to the topic's max.message.bytes",
    KafkaError.RECORD_LIST_TOO_LARGE: "lower message.max.bytes in kafka.librdkafka to the topic's segment.bytes",
    KafkaError.INVALID_RECORD: "the topic takes other records: compacted ones need a key",
    KafkaError.POLICY_VIOLATION: "ask who runs the brokers",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "grant WRITE on the topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "grant READ on groups kbatchd-produce-*",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "grant WRITE on such ids, kbatchd-produce-*",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "grant IDEMPOTENT_WRITE on the cluster",
    KafkaError.SASL_AUTHENTICATION_FAILED: LOGIN_ADVICE,
    KafkaError._AUTHENTICATION: LOGIN_ADVICE,  # noqa: SLF001
}


class Patience:
    """How long to wait for Kafka: from the moment it is missed."""

    def __init__(self, timeout_seconds: float, stop: Stop, say: Callable[[str], None]) -> None:
        self._timeout_seconds = timeout_seconds
        self._stop = stop
        self._say = say
        self._missed_at: float | None = None
        self._said = False
        #: What librdkafka has complained of.
        self.trouble = ""

    def content(self) -> None:
        """Note that Kafka has answered."""
        self._missed_at, self._said = None, False

    def wait(self, reason: str) -> None:
        """Return when to go on waiting; else raise ServerUnavailable."""
        now = time.monotonic()
        if self._missed_at is None:
            self._missed_at = now
        waited = now - self._missed_at
        time.sleep(_PAUSE_SECONDS)  # some errors come at once
        text = f"Kafka cannot be reached: {self.trouble or reason}"
        if waited > (LAST_SECONDS if self._stop.is_set() else self._timeout_seconds):
            raise ServerUnavailable(text)
        if waited > _SAY_SECONDS and not self._said:
            self._said = True
            self._say(f"{text}; waiting")

    def note(self, error: KafkaError) -> None:
        """Take librdkafka's error callback; `_ALL_BROKERS_DOWN` says less than what came before it."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self.trouble = error.str()


class Acknowledged:
    """Where the records are: for each partition the first and the last offset, and how many lie between."""

    def __init__(self) -> None:
        self.partitions: dict[int, tuple[int, int, int]] = {}
        self.count = 0

    def add(self, offsets: Sequence[tuple[int, int | None]]) -> None:
        """Count (partition, offset) pairs. Between them are others' records, and the markers of transactions.

        None: Kafka has the record, and has not said where.
        """
        by_partition: dict[int, list[int]] = {}
        for number, offset in offsets:
            if offset is not None:
                by_partition.setdefault(number, []).append(offset)
        for number, found in by_partition.items():
            first, last, count = self.partitions.get(number, (found[0], found[0], 0))
            self.partitions[number] = min(first, *found), max(last, *found), count + len(found)
        self.count += len(offsets)


class InputProducer(Protocol):
    """What sends the records of one input."""

    acknowledged: Acknowledged

    def add(self, values: Sequence[bytes], keys: Sequence[bytes | None]) -> None:
        """Send these."""

    def is_full(self) -> bool:
        """Tell whether it is time to commit."""

    def is_open(self) -> bool:
        """Tell whether something waits for a commit."""

    def commit(self, bookmark: Bookmark) -> None:
        """Return when Kafka has acknowledged all that was added; it stands before `bookmark` in the input."""

    def close(self) -> None:
        """Leave Kafka; what is not committed is not there."""


class Reports:
    """The delivery reports of one attempt to send a transaction."""

    def __init__(self) -> None:
        self.offsets: list[tuple[int, int | None]] = []
        self._reported = ReportedOffsets()
        self.error: KafkaError | None = None

    def take(self, error: KafkaError | None, message: Message) -> None:
        """Take one."""
        if error is None:
            offset = message.offset()
            if offset is None or self._reported:
                offset = self._reported.offset(message.topic(), message.partition(), offset)
            self.offsets.append((message.partition(), offset))  # type: ignore[arg-type]
        elif self.error is None or self.error.code() not in REFUSED:
            self.error = error


def make_producer(kafka: config.Kafka, settings: Settings, patience: Patience) -> Producer:
    """Make librdkafka's producer; ConfigError when it does not like the settings."""
    try:
        return settings.connect(Producer, kafka, error_cb=patience.note)
    except NOT_TAKEN as error:
        raise ConfigError(f"kafka.librdkafka: {error}") from error


def send_all(
    producer: Producer,
    topic: str,
    values: Sequence[bytes],
    keys: Sequence[bytes | None],
    reports: Reports,
    when_full: Callable[[], None],
    headers: Sequence[Headers] | None = None,
) -> None:
    """Hand records to librdkafka; `when_full` is called while its queue has no room, and raises to give up."""
    produce, report = producer.produce, reports.take
    for value, key, those in zip(values, keys, repeat([], len(values)) if headers is None else headers, strict=True):
        while True:
            try:
                produce(topic, value, key, on_delivery=report, headers=those)
                break
            except BufferError:
                when_full()


def refuse(*errors: KafkaError | None) -> None:
    """Raise ConfigError when one of these will come again, however often we try."""
    for error in errors:
        if error is not None and error.code() in REFUSED:
            raise ConfigError(f"Kafka refuses: {error.str()}{remedy(error)}")


def remedy(error: KafkaError) -> str:
    """Say what helps, as the end of a sentence."""
    advice = REFUSED.get(error.code())
    return f"; {advice}" if advice else ""
