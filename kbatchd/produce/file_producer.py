"""Sends a file's records in transactions, each with the file's bookmark: how much of it is in the topic, and a hash.

The bookmark is the metadata of a consumer group's offset, and that group has no consumers. So the records and the
bookmark are there together or not at all, whatever dies and whenever. A transaction that fails is aborted and sent
again from memory; where nobody knows its outcome, the bookmark that Kafka has tells it. An open transaction holds back
what others have written after it, so none is open for longer than it must.

Used by `kbatchd produce`, in its main thread.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from kbatchd.errors import ConfigError
from kbatchd.kafka import produce_settings
from kbatchd.kafka.errors import cause_of
from kbatchd.kafka.settings import NOT_TAKEN
from kbatchd.produce.bookmark import Bookmark
from kbatchd.produce.delivery import (
    LAST_SECONDS,
    SLICE_SECONDS,
    Acknowledged,
    Reports,
    make_producer,
    refuse,
    remedy,
    send_all,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kbatchd import config
    from kbatchd.produce.delivery import Patience

#: When a transaction is closed. What remains of its 0.5 s is for the brokers to acknowledge what was sent.
_OPEN_SECONDS: Final = 0.3
_GOAL_SECONDS: Final = 0.5
#: How many bytes a transaction takes: adapted to how fast they are acknowledged, between these.
_LEAST_BYTES, _FIRST_BYTES, _MOST_BYTES = 16_384, 1_048_576, 16_777_216

#: How long send_offsets_to_transaction may take. It ignores its timeout, and may never return once the group's broker
#: has restarted (librdkafka issues 5456 and 5511).
_HANG_SECONDS: Final = 3.0

#: How long the functions that end a transaction may be called again and again for one answer. Once the broker has
#: restarted, that too may never come to this producer, but comes to the next one.
_STUCK_SECONDS: Final = 8.0

_FENCED: Final = {
    KafkaError._FENCED,  # noqa: SLF001 - librdkafka's own codes have this name
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
}


class TakenOver(ConfigError):
    """Another run has begun to send the same file."""

    def __init__(self) -> None:
        super().__init__("another run of `kbatchd produce` has taken this file over; this one has stopped")


class _Hangs(Exception):
    """A call to librdkafka does not return, or has no answer."""


class FileProducer:
    """Sends one file, and remembers in Kafka how far."""

    def __init__(self, kafka: config.Kafka, topic: str, identity: str, patience: Patience) -> None:
        """Connect to nothing yet. `identity` is the file's: of two runs with the same one, the later one goes on."""
        self._kafka = kafka
        self._topic = topic
        self._identity = identity
        self._patience = patience
        self._producer: Producer | None = None
        #: Whether it replaces another one of ours, and has not committed anything yet.
        self._replaces = False
        self.acknowledged = Acknowledged()
        #: What Kafka has.
        self._bookmark: Bookmark | None = None
        self._limit_bytes = _FIRST_BYTES
        self._batches: list[tuple[Sequence[bytes], Sequence[bytes | None]]] = []
        self._bytes = 0
        #: Of the attempt that is under way.
        self._sent_batches = 0
        self._reports = Reports()
        self._opened_at: float | None = None
        self._failure: KafkaError | None = None

    def peek(self) -> Bookmark | None:
        """Look how far the file is sent, without disturbing another run."""
        return self._stored(stable=False)

    def claim(self) -> Bookmark | None:
        """Finish what a former run has left, and shut out one that still lives; return how far the file is sent.

        Until `commit` there is nothing that tells the other one, should it come back, whose the file is.
        """
        self._connect()
        self._bookmark = self._stored(stable=True)
        return self._bookmark

    def add(self, values: Sequence[bytes], keys: Sequence[bytes | None]) -> None:
        """Send records, in a transaction that is opened if none is; a failure is dealt with at the commit."""
        self._batches.append((values, keys))
        self._bytes += sum(map(len, values))
        if self._failure is None:
            try:
                self._send()
            except (KafkaException, SystemError) as error:
                self._failure = cause_of(error)

    def is_full(self) -> bool:
        """Tell whether the transaction is large or old enough."""
        return self._bytes >= self._limit_bytes or (
            self._opened_at is not None and time.monotonic() - self._opened_at >= _OPEN_SECONDS
        )

    def is_open(self) -> bool:
        """Tell whether a transaction holds back others."""
        return bool(self._batches)

    def commit(self, bookmark: Bookmark) -> None:
        """Commit what was added and the bookmark behind it.

        Outcomes: it is done; or, nothing of it being in the topic, TakenOver by another run, ConfigError where sending
        again does not help; or ServerUnavailable, and then only the next claim knows.
        """
        while True:
            try:
                self._finish(bookmark)
                break
            except (KafkaException, SystemError) as error:
                if self._was_committed(cause_of(error), bookmark):
                    break
            except _Hangs:
                self._patience.wait("it does not answer")
                if self._reconnect(None, bookmark):
                    break
        self._replaces = False
        self._adapt()
        self._patience.content()
        self.acknowledged.add(self._reports.offsets)
        self._bookmark = bookmark
        self._batches, self._bytes = [], 0
        self._forget_attempt()

    def close(self) -> None:
        """Abort what is open: the broker would do so too, but later."""
        producer, self._producer = self._producer, None
        if producer is not None and self._opened_at is not None:
            try:
                producer.abort_transaction(LAST_SECONDS)
            except (KafkaException, SystemError):  # then the broker does it
                producer.purge()

    def _finish(self, bookmark: Bookmark) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise KafkaException(failure)
        producer, group = self._connected()
        self._send()
        # Not flush(): it would go on with the reports when librdkafka's fatal error has raised an exception.
        while len(producer):
            if not producer.poll(SLICE_SECONDS):
                self._patience.wait("it does not acknowledge the records")
        if self._reports.error is not None:
            raise KafkaException(self._reports.error)
        where = TopicPartition(self._topic, 0, bookmark.records, metadata=bookmark.metadata())
        self._call_bounded(lambda: producer.send_offsets_to_transaction([where], group, SLICE_SECONDS))
        self._call(lambda: producer.commit_transaction(SLICE_SECONDS))

    def _send(self) -> None:
        """Open a transaction if there is none, and send what is not sent yet."""
        producer, _ = self._connected()
        if self._opened_at is None:
            producer.begin_transaction()
            self._opened_at = time.monotonic()
        for values, keys in self._batches[self._sent_batches :]:
            send_all(producer, self._topic, values, keys, self._reports, self._make_room)
            self._sent_batches += 1
            producer.poll(0)

    def _make_room(self) -> None:
        self._patience.wait("it does not acknowledge the records")
        self._connected()[0].poll(SLICE_SECONDS)

    def _was_committed(self, error: KafkaError, bookmark: Bookmark) -> bool:
        """Undo a transaction that failed; tell whether it was committed all the same."""
        self._patience.wait(error.str())
        reported = self._reports.error
        producer, _ = self._connected()
        if not error.fatal() and self._opened_at is not None:
            try:
                self._call(lambda: producer.abort_transaction(SLICE_SECONDS))
            except (KafkaException, SystemError) as second:
                error = cause_of(second)
            except _Hangs:
                pass
            else:
                self._forget_attempt()
                refuse(error, reported)
                return False
        refuse(error, reported)
        return self._reconnect(error, bookmark)

    def _reconnect(self, error: KafkaError | None, bookmark: Bookmark) -> bool:
        """Go on with another producer after one that cannot; tell whether the last transaction was committed.

        The broker shuts a producer out in three cases: it has timed its transaction out; another run has come; or,
        where we have reconnected before, a request of ours that a broker which hung has taken up at last.
        """
        opened_at, self._opened_at = self._opened_at, None
        young = opened_at is None or time.monotonic() - opened_at < 0.8 * produce_settings.TRANSACTION_TIMEOUT_SECONDS
        self._refuse_other(self._stored(stable=False), bookmark)
        if error is not None and error.code() in _FENCED and young and not self._replaces:
            raise TakenOver
        self._connect()
        self._replaces = True
        stored = self._stored(stable=True)
        self._refuse_other(stored, bookmark)
        if stored == bookmark:
            return True
        self._forget_attempt()
        return False

    def _refuse_other(self, stored: Bookmark | None, bookmark: Bookmark) -> None:
        if stored not in (self._bookmark, bookmark):
            raise TakenOver

    def _forget_attempt(self) -> None:
        self._sent_batches = 0
        self._reports = Reports()
        self._opened_at = None
        self._failure = None

    def _adapt(self) -> None:
        """Let transactions be as large as they may, for the time they shall take."""
        if self._opened_at is None or not self._bytes:
            return
        seconds = time.monotonic() - self._opened_at
        if seconds > _GOAL_SECONDS:
            self._limit_bytes = max(_LEAST_BYTES, int(self._bytes * _OPEN_SECONDS / seconds))
        elif self._bytes >= self._limit_bytes:
            self._limit_bytes = min(_MOST_BYTES, 2 * self._limit_bytes)

    def _connected(self) -> tuple[Producer, object]:
        assert self._producer is not None, "claim() comes first"
        return self._producer, self._group

    def _connect(self) -> None:
        producer = make_producer(self._kafka, produce_settings.transactions(self._identity), self._patience)
        try:
            # As long as it takes: were another producer made, this one's request might still come, and fence that.
            self._call(lambda: producer.init_transactions(SLICE_SECONDS), math.inf)
        except KafkaException as error:
            raise ConfigError(f"Kafka refuses: {error.args[0].str()}{remedy(error.args[0])}") from error
        self._producer = producer
        with closing(self._consumer(stable=True)) as consumer:
            self._group = consumer.consumer_group_metadata()

    def _stored(self, *, stable: bool) -> Bookmark | None:
        with closing(self._consumer(stable=stable)) as consumer:
            while True:
                try:
                    [found] = consumer.committed([TopicPartition(self._topic, 0)], SLICE_SECONDS)
                except KafkaException as error:
                    refuse(error.args[0], None)
                    self._patience.wait(error.args[0].str())
                    continue
                if found.error is None:
                    return Bookmark.parse(found.metadata or "") if found.offset >= 0 else None
                refuse(found.error, None)
                self._patience.wait(found.error.str())

    def _consumer(self, *, stable: bool) -> Consumer:
        """Make a client for the group's offsets. `stable`: wait for the outcome of a transaction that is under way."""
        try:
            settings = produce_settings.bookmarks(self._identity, stable=stable)
            return settings.connect(Consumer, self._kafka, error_cb=self._patience.note)
        except NOT_TAKEN as error:
            raise ConfigError(f"kafka.librdkafka: {error}") from error

    def _call_bounded(self, function: Callable[[], object]) -> None:
        """Call a function that may never return, in a thread that can be left behind; raises _Hangs."""
        errors: list[Exception] = []

        def call() -> None:
            try:
                self._call(function)
            except Exception as error:  # noqa: BLE001 - raised again below
                errors.append(error)

        thread = threading.Thread(target=call, name="offsets", daemon=True)
        thread.start()
        thread.join(_HANG_SECONDS)
        if thread.is_alive():
            raise _Hangs
        if errors:
            raise errors[0]

    def _call(self, function: Callable[[], object], seconds: float = _STUCK_SECONDS) -> None:
        """Call one of the transactional functions until it has an answer: called again, it goes on waiting."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                function()
            except KafkaException as error:
                kafka_error: KafkaError = error.args[0]
                if kafka_error.fatal() or kafka_error.txn_requires_abort() or not kafka_error.retriable():
                    raise
                self._patience.wait(kafka_error.str())
            else:
                return
        raise _Hangs
