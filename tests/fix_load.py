"""Numbered records on their way from a topic to a table, and the judge of how they arrived.

`Load` sends; `Delivery` knows the topic and the table and compares them, from the topic itself: nothing that the daemon
says of itself is believed. Of other tables `wait_all_taken` counts the rows.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

import orjson
import psycopg
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from tests.fix_daemon import wait_until
from tests.fix_kafka import wait_for_leaders

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from confluent_kafka import Message

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic

#: The identity column tells the order of insertion. Tables are named with their schema, since the servers' own user is
#: called kbatchd, and "$user" comes first in PostgreSQL's search path.
TABLE = "CREATE TABLE {} (id bigint GENERATED ALWAYS AS IDENTITY, partition int NOT NULL, seq bigint NOT NULL)"

#: How often `Load` sends a handful.
TICK_SECONDS = 0.01


def value(partition: int, seq: int) -> bytes:
    return b'{"partition":%d,"seq":%d}' % (partition, seq)


class Load(threading.Thread):
    """Sends numbered records to all partitions in turn, at a bounded rate, until the block ends or `stop()`.

    An idempotent producer that never gives up: what was acknowledged is in the topic once, in order.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        partitions: int,
        per_second: float,
        first: int = 0,
        **settings: str | int,
    ) -> None:
        """`settings` are the producer's, with underscores for dots."""
        super().__init__(name="load")
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._per_second = per_second
        self._stopped = threading.Event()
        self._failures: list[KafkaError] = []
        self.sent = dict.fromkeys(range(partitions), first)
        self.acknowledged = dict.fromkeys(range(partitions), 0)
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap_servers,
                "enable.idempotence": True,
                "delivery.timeout.ms": 300_000,
                "reconnect.backoff.max.ms": 500,
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,  # an outage's worth
                "log_level": 0,  # tests stop brokers
                **{name.replace("_", "."): setting for name, setting in settings.items()},
            }
        )

    def key(self, partition: int, seq: int) -> bytes | None:  # noqa: ARG002
        """Make a record's key."""
        return None

    def value(self, partition: int, seq: int) -> bytes:
        """Make a record's value."""
        return value(partition, seq)

    def run(self) -> None:
        started, sent = time.monotonic(), 0
        while not self._stopped.wait(TICK_SECONDS):
            due = int((time.monotonic() - started) * self._per_second)
            self.send(due - sent)
            sent = due

    def send(self, count: int) -> None:
        """Send so many records now."""
        for _ in range(count):
            partition = min(self.sent, key=lambda number: (self.sent[number], number))
            seq = self.sent[partition]
            self._producer.produce(
                self._topic,
                self.value(partition, seq),
                self.key(partition, seq),
                partition,
                on_delivery=self._note,
            )
            self.sent[partition] += 1
        self._producer.poll(0)

    def stop(self) -> None:
        """Send no more; return when all that was sent is acknowledged."""
        self._stopped.set()
        if self.is_alive():
            self.join()
        assert self._producer.flush(60) == 0, "the producer could not deliver"
        assert not self._failures, self._failures[0].str()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        else:
            self._stopped.set()
            self.join()
            self._producer.purge()

    def _note(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failures.append(error)
        else:
            self.acknowledged[message.partition() or 0] += 1


def watermarks(consumer: Consumer, partition: TopicPartition) -> tuple[int, int]:
    """Return a partition's start and end, with a leader: a broker that comes back may be without for a moment."""
    deadline = time.monotonic() + 30
    while True:
        try:
            start, end = consumer.get_watermark_offsets(partition, timeout=30)
            return int(start), int(end)
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            consumer.list_topics(partition.topic, timeout=30)  # asks for the leaders again


@dataclass(frozen=True, slots=True)
class Delivery:
    """A topic, the table its records go to, and the judgement."""

    bootstrap_servers: str
    topic: str
    partitions: int
    dsn: str
    table: str
    #: The route's, where it is not the topic.
    name: str = ""

    @property
    def route(self) -> dict[str, object]:
        """The least that the file must say."""
        return {"topic": self.topic, "table": self.table, "name": self.name or self.topic}

    def load(self, per_second: float) -> Load:
        return Load(self.bootstrap_servers, self.topic, self.partitions, per_second)

    def send(self, count: int, first: int = 0) -> None:
        """Send so many records, and wait until they are acknowledged."""
        load = Load(self.bootstrap_servers, self.topic, self.partitions, 0, first)
        load.send(count)
        load.stop()

    def query(self, statement: str, *arguments: object) -> list[tuple[object, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement.encode(), arguments or None).fetchall()

    def execute(self, statement: str) -> None:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute(statement.encode())

    def rows(self) -> int:
        [(count,)] = self.query(f"SELECT count(*) FROM {self.table}")
        assert isinstance(count, int)
        return count

    def progress(self) -> dict[int, int]:
        rows = self.query("SELECT partition, next_offset FROM kbatchd.progress WHERE route = %s", self.route["name"])
        return dict(rows)  # type: ignore[arg-type]

    def ends(self) -> dict[int, int]:
        """The offset after the last one of each partition, markers counted."""
        consumer = Consumer({"bootstrap.servers": self.bootstrap_servers, "group.id": "judge", "log_level": 0})
        try:
            numbers = consumer.list_topics(self.topic, timeout=30).topics[self.topic].partitions
            return {number: watermarks(consumer, TopicPartition(self.topic, number))[1] for number in numbers}
        finally:
            consumer.close()

    def grow(self, partitions: int) -> Delivery:
        """Give the topic more partitions."""
        admin = AdminClient({"bootstrap.servers": self.bootstrap_servers})
        admin.create_partitions([NewPartitions(self.topic, partitions)])[self.topic].result()
        wait_for_leaders(admin, self.topic, partitions)
        return replace(self, partitions=partitions)

    def wait_drained(self, seconds: float = 30.0) -> None:
        """Wait until progress stands at the topic's end: only a hint that there is something to judge."""
        ends = self.ends()
        wait_until(
            lambda: self.progress() == ends,
            seconds,
            f"progress of {self.route['name']} at its end, {ends}",
            every_seconds=0.1,
        )

    def read_topic(self) -> dict[int, list[tuple[int, int]]]:
        """Read the topic, without the daemon's help: (offset, seq) of each committed record, by partition."""
        numbers: dict[int, list[tuple[int, int]]] = {}
        for message in read_topic(self.bootstrap_servers, self.topic):
            numbers.setdefault(message.partition() or 0, []).append((message.offset() or 0, _seq(message)))
        return numbers

    def stored(self) -> dict[int, list[int]]:
        """The numbers in the table, by partition, in the order they were inserted."""
        rows = self.query(f"SELECT partition, array_agg(seq ORDER BY id) FROM {self.table} GROUP BY partition")
        return dict(rows)  # type: ignore[arg-type]

    def assert_exactly_once(self) -> None:
        """Compare topic with table and dead letters: nothing lost, nothing twice, in order within each partition."""
        statement = 'SELECT partition, "offset" FROM kbatchd.dead_letters WHERE route = %s'
        dead = Counter(self.query(statement, self.route["name"]))
        topic, stored = self.read_topic(), self.stored()
        assert topic, f"there is nothing in {self.topic}"
        faults = [f"dead letter twice: {record}" for record, count in dead.items() if count > 1]
        for partition in sorted(topic.keys() | stored.keys()):
            due = [seq for offset, seq in topic.get(partition, []) if (partition, offset) not in dead]
            got = stored.get(partition, [])
            lost, extra = Counter(due) - Counter(got), Counter(got) - Counter(due)
            if lost:
                faults.append(f"[{partition}] lost {lost.total()}: {_some(lost)}")
            if extra:
                faults.append(f"[{partition}] twice {extra.total()}: {_some(extra)}")
            if not lost and not extra and due != got:
                where = next(index for index, (a, b) in enumerate(zip(due, got, strict=True)) if a != b)
                faults.append(f"[{partition}] out of order at row {where}: {got[where]} instead of {due[where]}")
        if faults:
            raise NotExactlyOnce("; ".join(faults))


class NotExactlyOnce(AssertionError):
    """Records were lost, or written twice, or out of order."""


def wait_all_taken(connection: psycopg.Connection, tables: Iterable[str], count: int) -> None:
    """Wait until each of these tables has so many rows; the first dead letter ends the wait, and fails the test."""
    counts = " UNION ALL ".join(f"SELECT count(*) FROM {table}" for table in tables).encode()
    letters = 'SELECT route, code, "column", message, value FROM kbatchd.dead_letters LIMIT 5'

    def is_over() -> bool:
        dead = connection.execute(letters).fetchone() is not None
        return dead or all(rows == count for (rows,) in connection.execute(counts))

    wait_until(is_over, 30, f"{count} rows in each table")
    assert connection.execute(letters).fetchall() == []


def read_topic(bootstrap_servers: str, topic: str) -> list[Message]:
    """Read all committed records of a topic as it is now, partition by partition in order."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "judge",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "enable.auto.commit": False,
        }
    )
    try:
        open_partitions = set(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in open_partitions])
        messages: list[Message] = []
        deadline = time.monotonic() + 60
        while open_partitions:
            assert time.monotonic() < deadline, f"topic {topic} cannot be read to its end"
            for message in consumer.consume(10_000, 0.2):
                error = message.error()
                if error is None:
                    messages.append(message)
                else:
                    assert error.code() == KafkaError._PARTITION_EOF, error.str()
                    open_partitions.discard(message.partition() or 0)
        return messages
    finally:
        consumer.close()


class MakeDelivery(Protocol):
    """Makes a topic and a table for numbered records."""

    def __call__(self, partitions: int = 4, table: str = "public.numbered") -> Delivery: ...


@pytest.fixture
def make_delivery(kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic) -> MakeDelivery:
    """Make deliveries between the shared servers."""

    def make(partitions: int = 4, table: str = "public.numbered") -> Delivery:
        return new_delivery(kafka.bootstrap_servers, make_topic(partitions), partitions, database, table)

    return make


def new_delivery(
    bootstrap_servers: str, topic: str, partitions: int, dsn: str, table: str = "public.numbered"
) -> Delivery:
    """Make the table for a topic that is there."""
    delivery = Delivery(bootstrap_servers, topic, partitions, dsn, table)
    delivery.execute(TABLE.format(table))
    return delivery


@pytest.fixture
def delivery(make_delivery: MakeDelivery) -> Delivery:
    """A topic of four partitions and its table."""
    return make_delivery()


def _seq(message: Message) -> int:
    seq = orjson.loads(message.value() or b"")["seq"]
    assert isinstance(seq, int)
    return seq


def _some(numbers: Counter[int]) -> str:
    return ", ".join(map(str, sorted(numbers)[:5])) + ", ..." * (len(numbers) > 5)
