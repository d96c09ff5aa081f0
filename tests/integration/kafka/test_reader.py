"""What the worker relies on when it assigns and assigns again: librdkafka's own promises, put to the test."""

from __future__ import annotations

import logging
import random
import time
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from kbatchd import config
from kbatchd.errors import SourceError
from kbatchd.kafka.reader import EpochEnd, TopicReader
from kbatchd.model import Partition, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic

RECORDS = 20_000
SOON_SECONDS = 60.0


@pytest.fixture
def reader(kafka: Kafka | GivenKafka) -> Iterator[TopicReader]:
    reader = TopicReader(config.Kafka(bootstrap_servers=kafka.bootstrap_servers, group_id="test"), "test")
    yield reader
    reader.close()


@pytest.fixture
def partitions(kafka: Kafka | GivenKafka, make_topic: MakeTopic) -> list[Partition]:
    """Three partitions of two topics, full of records."""
    two, one = make_topic(2), make_topic(1)
    full = [Partition(two, 0), Partition(two, 1), Partition(one, 0)]
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for n in range(RECORDS):
        for partition in full:
            producer.produce(partition.topic, b"x" * 50, partition=partition.number)
        if n % 1_000 == 0:
            producer.poll(0)
    assert producer.flush(30) == 0
    return full


def read(reader: TopicReader, expected: dict[Partition, int], until: Iterable[Partition] | None = None) -> None:
    """Read until each partition (of `until`) has given something; each must go on exactly where it is expected to."""
    waited_for = set(expected if until is None else until)
    deadline = time.monotonic() + SOON_SECONDS
    while waited_for:
        assert time.monotonic() < deadline, f"nothing came from {waited_for}"
        for topic, records in reader.poll(500, 0.1).records.items():
            for record in records:
                partition = Partition(record.topic() or "", record.partition() or 0)
                assert partition.topic == topic
                assert record.offset() == expected[partition]
                expected[partition] += 1
                waited_for.discard(partition)


def test_nothing_of_a_former_assignment_comes_after_the_next(reader: TopicReader, partitions: list[Partition]) -> None:
    """A record that was fetched before, and came later, would move progress over those that were given up."""
    for turn in range(40):
        offsets = {partition: random.randrange(RECORDS // 2) for partition in partitions}
        if turn % 2:
            reader.unassign(partitions)
        if turn % 4 == 3:
            assert not reader.poll(500, 0.01).records
        reader.assign(offsets)
        read(reader, offsets)


def test_a_topic_is_read_as_told_and_the_others_go_on(reader: TopicReader, partitions: list[Partition]) -> None:
    offsets = dict.fromkeys(partitions, 0)
    reader.assign(offsets)
    read(reader, offsets)
    topic = partitions[0].topic
    reader.read(partitions[:2], {partitions[1]: 7})
    offsets[partitions[1]] = 7
    del offsets[partitions[0]]
    read(reader, offsets, until=partitions[1:2])
    reader.read([partitions[1]], {})
    for _ in range(5):
        assert topic not in reader.poll(500, 0.05).records


def test_a_topic_that_is_deleted_is_no_outage(
    kafka: Kafka | GivenKafka, make_topic: MakeTopic, caplog: pytest.LogCaptureFixture
) -> None:
    # Given: a reader that believes soon that a topic is gone (in 30 s by default), and reads one.
    soon: dict[str, str | int | float | bool] = {
        "topic.metadata.propagation.max.ms": 500,
        "topic.metadata.refresh.interval.ms": 500,
    }
    topic = make_topic(1)
    reader = TopicReader(
        config.Kafka(bootstrap_servers=kafka.bootstrap_servers, group_id="test", librdkafka=soon), "test", [topic]
    )
    reader.assign({Partition(topic, 0): 0})
    deadline = time.monotonic() + SOON_SECONDS
    while not reader.poll(500, 0.1).ends:
        assert time.monotonic() < deadline

    # When: it hears that the topic is gone, and the brokers answer.
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.delete_topics([topic], operation_timeout=10)[topic].result()
    while not reader.brokers_changed:
        assert time.monotonic() < deadline
        reader.poll(500, 0.1)
    reader.outage.end()
    reader.close()

    # Then: Kafka was not away.
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_the_end_is_told_once_and_the_offset_that_is_not_there(
    reader: TopicReader, partitions: list[Partition]
) -> None:
    first, second, _ = partitions
    reader.assign({first: RECORDS, second: RECORDS + 1_000})
    ends: list[tuple[Partition, int]] = []
    out_of_range: list[Partition] = []
    deadline = time.monotonic() + SOON_SECONDS
    while not (ends and out_of_range):
        assert time.monotonic() < deadline
        polled = reader.poll(500, 0.1)
        assert not polled.records
        ends += polled.ends.items()
        out_of_range += polled.out_of_range
    assert ends == [(first, RECORDS)]
    assert out_of_range == [second]


def test_a_log_that_ends_before_what_was_read_is_told_with_where_it_ends(
    reader: TopicReader, partitions: list[Partition]
) -> None:
    """In the words of librdkafka's text, and nowhere else: a version that says it otherwise must not go unnoticed."""
    first, second, third = partitions
    for _ in range(10):  # librdkafka asks the leader at each assignment, not only at the first
        reader.assign(dict.fromkeys(partitions, RECORDS) | {second: RECORDS + 7}, dict.fromkeys((first, second), 0))
        ends: dict[Partition, int] = {}
        told: dict[Partition, EpochEnd] = {}
        deadline = time.monotonic() + SOON_SECONDS
        while not (ends.keys() == {first, third} and told):
            assert time.monotonic() < deadline
            polled = reader.poll(500, 0.1)
            ends |= polled.ends
            told |= polled.ended
            if polled.out_of_range:  # a fetch was faster than the question
                assert polled.out_of_range == [second]
                reader.assign({second: RECORDS + 7}, {second: 0})
        assert ends == {first: RECORDS, third: RECORDS}
        assert told == {second: EpochEnd(RECORDS, 0)}


@pytest.mark.parametrize("without", [False, True], ids=["", "without the empty assignment"])
def test_a_member_of_a_group_reads_nothing_that_it_was_not_told_to(
    kafka: Kafka | GivenKafka, partitions: list[Partition], monkeypatch: pytest.MonkeyPatch, without: bool
) -> None:
    """Where the callback assigns nothing, the client assigns it all, at the offsets that Kafka has."""

    class Forgetful(Consumer):
        def incremental_assign(self, partitions: list[TopicPartition]) -> None:
            if partitions:
                super().incremental_assign(partitions)

    if without:
        monkeypatch.setattr("kbatchd.kafka.reader.Consumer", Forgetful)
    topic = partitions[2].topic
    given = config.Kafka(bootstrap_servers=kafka.bootstrap_servers, group_id=f"told-{topic}")
    with closing(Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": given.group_id})) as display:
        display.commit(offsets=[TopicPartition(topic, 0, 5)], asynchronous=False)
    reader = TopicReader(given, "test", [topic])
    told = Told()
    deadline = time.monotonic() + SOON_SECONDS
    records: list[Record] = []
    try:
        reader.subscribe([topic], told)
        while not told.assigned or (without and not records):
            assert time.monotonic() < deadline
            records += reader.poll(500, 0.1).records.get(topic, [])
        if without:
            assert records[0].offset() == 5
        else:
            for _ in range(10):
                assert not reader.poll(500, 0.1).records
            reader.assign({partitions[2]: 7})
            read(reader, {partitions[2]: 7})
    finally:
        reader.close()


def test_a_consumer_that_cannot_go_on_says_so(kafka: Kafka | GivenKafka, partitions: list[Partition]) -> None:
    # As members with the same group.instance.id do to each other, which the file does not allow.
    topic = partitions[2].topic
    given = config.Kafka(bootstrap_servers=kafka.bootstrap_servers, group_id=f"fatal-{topic}")
    given = given.model_copy(update={"librdkafka": {"group.instance.id": "the same"}})
    readers = [TopicReader(given, f"test-{number}", [topic]) for number in range(2)]
    try:
        for reader in readers:
            reader.subscribe([topic], Nobody())
        with pytest.raises(SourceError, match=r"the consumer cannot go on: .*another worker takes over"):
            poll_in_turn(readers)
    finally:
        for reader in readers:
            reader.close()


def poll_in_turn(readers: Sequence[TopicReader]) -> None:
    deadline = time.monotonic() + SOON_SECONDS
    while time.monotonic() < deadline:
        for reader in readers:
            reader.poll(500, 0.1)


class Told:
    def __init__(self) -> None:
        self.assigned: list[Partition] = []

    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        self.assigned += partitions

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        pass

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        pass


class Nobody:
    def on_assigned(self, partitions: Sequence[Partition]) -> None:
        pass

    def on_revoked(self, partitions: Sequence[Partition]) -> None:
        pass

    def on_lost(self, partitions: Sequence[Partition]) -> None:
        pass
