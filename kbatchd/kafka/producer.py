"""The producer: records into Kafka, each acknowledged by all in-sync replicas before anybody hears that it is there.

Made in a gateway process, after the fork, and used by its event loop alone: the loop itself collects librdkafka's
delivery reports, every few milliseconds while records are under way. A thread that waits for them would take the
interpreter from the loop for each handful. What is under way is counted, so that librdkafka's queue is never full in
the middle of a request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

import orjson
from confluent_kafka import KafkaError, KafkaException, Producer

from kbatchd.errors import ConfigError
from kbatchd.kafka.errors import cause_of
from kbatchd.kafka.reported_offsets import ReportedOffsets
from kbatchd.kafka.sending import KafkaAway, QueueFull, RecordTooLarge, Sending
from kbatchd.kafka.settings import NOT_TAKEN, Settings
from kbatchd.model import OffsetRange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from kbatchd import config

log = logging.getLogger(__name__)

Headers = list[tuple[str, str | bytes | None]]

#: What exactness needs; the file's [kafka.librdkafka] cannot change these.
_OURS: dict[str, str | int | float | bool] = {
    "enable.idempotence": True,  # with acks=all: a retry within librdkafka is no second record, and none overtakes
    # Else librdkafka's producers ask brokers to: a topic that was deleted would come back, with one partition.
    "allow.auto.create.topics": False,
    "acks": "all",
    "delivery.report.only.error": False,  # else no request hears that its records are there
    "statistics.interval.ms": 250,  # tells whether a broker is up; 40 us each time
}

#: What it would like; the file may say otherwise.
_DEFAULTS: dict[str, str | int | float | bool] = {
    "linger.ms": 2,
    "compression.type": "lz4",
    "partitioner": "murmur2_random",  # the same partition for a key as Java's clients choose
    "reconnect.backoff.max.ms": 500,
    "socket.keepalive.enable": True,
    "topic.metadata.refresh.interval.ms": 10_000,
    # A topic that the brokers do not know is given up after this, not after 30 s: a client waits for the answer.
    "topic.metadata.propagation.max.ms": 2_000,
    "log.connection.close": False,
}

#: How soon reports are collected while records are under way, and how often librdkafka is looked at otherwise.
_COLLECT_SECONDS, _IDLE_SECONDS = 0.001, 0.1

#: So many records of a request are handed to librdkafka before others have their turn: 1 ms.
RECORDS_PER_TURN = 1_000

#: A record that waits this long for its acknowledgement means that Kafka is in trouble: no more are taken.
STALL_SECONDS = 1.5

#: An event loop that looks again only after this long has been held up itself, and with it the reports.
LATE_SECONDS = 0.5

#: How long a request may wait for brokers to come back: idle connections are closed, and made again, within that.
BLINK_SECONDS = 1.0


def settings(gateway: config.Gateway, client_id: str) -> Settings:
    """Say what a gateway's producer is made with."""
    ours: dict[str, str | int | float | bool] = {
        **_OURS,
        "client.id": client_id,
        "delivery.timeout.ms": round(gateway.delivery_timeout_seconds * 1000),
        # Never full: we count ourselves.
        "queue.buffering.max.messages": 2 * gateway.max_queued_records,
        "queue.buffering.max.kbytes": min(2_097_151, 2 * gateway.max_queued_bytes // 1024 + 1024),
    }
    return Settings(ours, _DEFAULTS)


class GatewayProducer:
    """An idempotent producer for a gateway's event loop."""

    def __init__(self, kafka: config.Kafka, gateway: config.Gateway, client_id: str) -> None:
        """Connect in the background; call from within the event loop."""
        self._loop = asyncio.get_running_loop()
        self._max_records, self._max_bytes = gateway.max_queued_records, gateway.max_queued_bytes
        self.max_record_bytes = kafka.max_record_bytes
        callbacks: dict[str, Any] = {"error_cb": self._on_error, "stats_cb": self._on_statistics}
        try:
            self._producer = settings(gateway, client_id).connect(Producer, kafka, **callbacks)
        except NOT_TAKEN as error:
            raise ConfigError(f"kafka.librdkafka: {error}") from error
        #: Set when librdkafka can go on no more: the process must be replaced.
        self.fatal = asyncio.Event()
        #: Set while a broker can be reached.
        self.up = asyncio.Event()
        self._down_at_us = 0
        self._under_way: deque[Sending] = deque()
        self._done: list[Sending] = []
        self._reported = ReportedOffsets()
        self.queued_records = self.queued_bytes = 0
        self._timer = self._loop.call_later(_IDLE_SECONDS, self._collect)
        self._collects_soon = False
        #: When the loop looked last, and since when it has looked without being late.
        self._looked_at = self._punctual_since = time.monotonic()

    def begin(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes | None],
        headers: Headers | None,
        on_done: Callable[[Sending], object],
    ) -> None:
        """Send some records, RECORDS_PER_TURN at most; `on_done` is called when Kafka has told of them all.

        Raises NotSent before anything is sent.
        """
        self._look_for_brokers()
        if not self.up.is_set():
            raise KafkaAway("no broker can be reached")
        self._produce(values, keys, headers, self._admit(topic, values, keys, on_done))

    async def send(
        self, topic: str, values: Sequence[bytes], keys: Sequence[bytes | None], headers: Headers | None
    ) -> list[OffsetRange]:
        """Send any number of records; return where they are, once Kafka has acknowledged them all, as far as it tells.

        Raises NotSent before anything is sent, NotAcknowledged after. Brokers that are away have a moment to come back.
        """
        self._look_for_brokers()
        if not self.up.is_set():
            await self._wait_up()
        done = asyncio.Event()
        sending = self._admit(topic, values, keys, lambda _: done.set())
        for start in range(0, len(values), RECORDS_PER_TURN):
            if start:
                await asyncio.sleep(0)
            end = start + RECORDS_PER_TURN
            self._produce(values[start:end], keys[start:end], headers, sending)
        await done.wait()
        return sending.ranges()

    def _look_for_brokers(self) -> None:
        """Let librdkafka say whether it has lost its brokers since the last look."""
        if not self._collects_soon:
            self._poll()

    async def _wait_up(self) -> None:
        try:
            await asyncio.wait_for(self.up.wait(), BLINK_SECONDS)
        except TimeoutError as error:
            raise KafkaAway("no broker can be reached") from error

    def _admit(
        self,
        topic: str,
        values: Sequence[bytes],
        keys: Sequence[bytes | None],
        on_done: Callable[[Sending], object],
    ) -> Sending:
        """Count records in, if there is room for them."""
        sizes = [len(value) + len(key or b"") for value, key in zip(values, keys, strict=True)]
        if max(sizes) > self.max_record_bytes:
            index = next(index for index, size in enumerate(sizes) if size > self.max_record_bytes)
            raise RecordTooLarge(index, sizes[index], self.max_record_bytes)
        count, size_bytes = len(sizes), sum(sizes)
        now = self._look()
        if self._under_way and now - max(self._under_way[0].sent_at, self._punctual_since) > STALL_SECONDS:
            raise KafkaAway(f"Kafka has acknowledged nothing for {STALL_SECONDS} s")
        if self.queued_records + count > self._max_records or self.queued_bytes > self._max_bytes:
            raise QueueFull("too many records wait for Kafka")
        sending = Sending(topic, count, size_bytes, now, on_done, self._done, self._reported)
        self._under_way.append(sending)
        self.queued_records += count
        self.queued_bytes += size_bytes
        if not self._collects_soon:
            self._collects_soon = True
            self._timer.cancel()
            self._timer = self._loop.call_later(_COLLECT_SECONDS, self._collect)
        return sending

    def _produce(
        self, values: Sequence[bytes], keys: Sequence[bytes | None], headers: Headers | None, sending: Sending
    ) -> None:
        produce, topic, report = self._producer.produce, sending.topic, sending.report
        sent = 0
        try:
            if headers is None:
                for value, key in zip(values, keys, strict=True):
                    produce(topic, value, key, on_delivery=report)
                    sent += 1
            else:
                for value, key in zip(values, keys, strict=True):
                    produce(topic, value, key, on_delivery=report, headers=headers)
                    sent += 1
        except (BufferError, KafkaException) as error:
            # What librdkafka did not even take: it is broken for good, or our counts are wrong.
            reason = error.args[0] if isinstance(error, KafkaException) else KafkaError(KafkaError._QUEUE_FULL)  # noqa: SLF001
            sending.give_up(len(values) - sent, reason)

    def _look(self) -> float:
        """Take note of the time, and of a loop that is late: what came meanwhile it could not see."""
        now = time.monotonic()
        if now - self._looked_at > LATE_SECONDS:
            self._punctual_since = now
        self._looked_at = now
        return now

    def _collect(self) -> None:
        """Take the delivery reports that have come, and tell of the requests that are done."""
        self._look()
        self._poll()
        done = self._done.copy()
        self._done.clear()
        for sending in done:
            self.queued_records -= len(sending.acknowledged) + len(sending.errors)
            self.queued_bytes -= sending.size_bytes
            sending.on_done(sending)
        under_way = self._under_way
        while under_way and not under_way[0].left:
            under_way.popleft()
        self._collects_soon = bool(under_way)
        self._timer = self._loop.call_later(_COLLECT_SECONDS if under_way else _IDLE_SECONDS, self._collect)

    def _poll(self) -> None:
        """Let librdkafka tell what it has to tell: of a fatal error by an exception, and of what it ends by reports."""
        try:
            self._producer.poll(0)
        except (KafkaException, SystemError) as error:
            self._note_fatal(cause_of(error))

    def _note_fatal(self, error: KafkaError) -> None:
        if not self.fatal.is_set():
            log.error("the producer cannot go on", extra={"action": "producer_fatal", "error": error.str()})
            self.fatal.set()

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._note_fatal(error)
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._down_at_us = time.monotonic_ns() // 1000
            self._note_up(up=False)

    def _on_statistics(self, text: str) -> None:
        statistics = orjson.loads(text)
        # `ts` is the same clock: what was gathered before the last broker went says nothing.
        if statistics["ts"] > self._down_at_us:
            brokers = statistics["brokers"].values()
            if any(broker["state"] == "UP" for broker in brokers):
                self._note_up(up=True)

    def _note_up(self, *, up: bool) -> None:
        if up == self.up.is_set():
            return
        if up:
            self.up.set()
            log.info("connected to Kafka", extra={"action": "kafka_up"})
        else:
            self.up.clear()
            log.warning("Kafka cannot be reached", extra={"action": "kafka_down"})

    def close(self) -> None:
        """Look no more; what is not acknowledged by now is nobody's business any more."""
        self._timer.cancel()
