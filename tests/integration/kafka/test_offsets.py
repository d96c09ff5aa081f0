"""Offsets behind a proxy that swallows, cuts, delays and alters: a broker's number, or no answer, never another one."""

from __future__ import annotations

import struct
import time
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer, TopicPartition

from kbatchd import config
from kbatchd.errors import ServerUnavailable, SourceError
from kbatchd.kafka import offsets, topics, watch
from kbatchd.kafka.offsets import Beginnings, OffsetsInquiry, offset_of
from kbatchd.model import Gap, GapKind, Partition, Position
from tests.faults.kafka_wire import Api, Earlier, answers, requests
from tests.faults.rules import Rule, alter, cut, delay, swallow
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.brokers import Brokers


@pytest.fixture
def admin(broker: Brokers) -> topics.Admin:
    return topics.make_admin(config.Kafka(bootstrap_servers=broker.bootstrap_servers))


@pytest.fixture
def partition(broker: Brokers) -> Partition:
    """One with 1,000 records, of which the first 300 are deleted."""
    partition = Partition(broker.make_topic(), 0)
    write(broker, partition, 1_000)
    admin = broker.admin()
    admin.delete_records([TopicPartition(partition.topic, 0, 300)])[TopicPartition(partition.topic, 0)].result()
    return partition


def write(broker: Brokers, partition: Partition, count: int) -> None:
    producer = Producer({"bootstrap.servers": broker.direct})
    for number in range(count):
        producer.produce(partition.topic, b"%d" % number, partition=partition.number)
    assert producer.flush(30) == 0


def diagnosed(
    broker: Brokers, admin: topics.Admin, partition: Partition, progress: dict[str, tuple[int, str]]
) -> dict[str, Gap]:
    kafka = config.Kafka(bootstrap_servers=broker.bootstrap_servers)
    positions = {name: Position(1, next_offset, topic_id) for name, (next_offset, topic_id) in progress.items()}
    return watch.diagnose(kafka, admin, partition, positions).gaps


def saying(offset: int) -> Callable[[bytes], bytes]:
    """Have ListOffsets' answer say another offset: it stands behind a timestamp of -1."""

    def change(data: bytes) -> bytes:
        at = data.rindex(b"\xff" * 8) + 8
        return data[:at] + struct.pack(">q", offset) + data[at + 8 :]

    return change


@pytest.mark.parametrize("number", [-1, -2, -1000, -1001, -(2**63), None])
def test_what_is_below_0_is_no_offset(number: int | None) -> None:
    with pytest.raises(ServerUnavailable, match=rf"t\[7\].*{number}"):
        offset_of(Partition("t", 7), number)


def test_no_answer_is_none(broker: Brokers, admin: topics.Admin, partition: Partition) -> None:
    """Without an error librdkafka says -1001."""
    rule = broker.wire.swallow_requests(Api.LIST_OFFSETS)
    asked = OffsetsInquiry(admin, [partition], "earliest", 1.0).answers()
    assert rule.hits == 1
    assert not asked.known
    assert isinstance(asked.silent[partition], ServerUnavailable)
    assert str(partition) in str(asked.silent[partition])
    assert "-1001" in str(asked.silent[partition])


@pytest.mark.parametrize("at", ["earliest", "latest"])
@pytest.mark.parametrize("said", [-1, -2, -1000, -1001])
def test_a_broker_that_says_none(
    broker: Brokers, admin: topics.Admin, partition: Partition, at: offsets.At, said: int
) -> None:
    """-1 is an answer to a question by time, and to no other."""
    broker.wire.rule(answers(Api.LIST_OFFSETS), alter(saying(said)), times=1)
    asked = offsets.list_offsets(admin, [partition], at)
    assert not asked.known
    assert str(said) in str(asked.silent[partition])


WAYS: dict[str, Callable[[Api], Rule]] = {
    "swallowed": lambda kind: Rule(requests(kind), swallow, times=1),
    "unanswered": lambda kind: Rule(answers(kind), swallow, times=1),
    "late": lambda kind: Rule(answers(kind), delay(1.5), times=2),
    "cut": lambda kind: Rule(requests(kind), cut, times=1),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("skip", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize(("at", "right"), [("earliest", 300), ("latest", 1_000)])
def test_where_to_begin_is_right_or_not_known(
    broker: Brokers, admin: topics.Admin, partition: Partition, way: str, skip: int, at: offsets.At, right: int
) -> None:
    rule = WAYS[way](Api.LIST_OFFSETS)
    rule.skip = skip
    broker.wire.add(rule)
    asked = Beginnings(admin, [partition], at, 1.0).wait()
    assert rule.hits
    assert asked.known.get(partition, right) == right
    assert asked.known.keys() | asked.silent.keys() == {partition}
    again = offsets.patiently(lambda asked: Beginnings(admin, asked, at).wait(), [partition], 10.0)
    assert again.all() == {partition: right}


@pytest.mark.parametrize("skip", [0, 1], ids=["first", "second"])
@pytest.mark.parametrize("said", [0, 900])
def test_of_two_answers_one_is_wrong(
    broker: Brokers, admin: topics.Admin, partition: Partition, said: int, skip: int
) -> None:
    """Nothing is left out that one of them says is there; and two that contradict each other are none."""
    broker.wire.rule(answers(Api.LIST_OFFSETS), alter(saying(said)), times=1, skip=skip)
    asked = Beginnings(admin, [partition], "earliest").wait()
    if said:
        assert asked.all() == {partition: 300}
    else:
        assert not asked.known
        assert "two answers do not say the same" in str(asked.silent[partition])


def test_connections_that_never_last(broker: Brokers, partition: Partition) -> None:
    """Many a request is lost: what is known is right all the same."""
    for _ in range(5):
        kafka = config.Kafka(bootstrap_servers=broker.bootstrap_servers, librdkafka={"connections.max.idle.ms": 1})
        asked = Beginnings(topics.make_admin(kafka), [partition], "earliest", 1.0).wait()
        assert asked.known.get(partition, 300) == 300


def test_one_that_is_silent_does_not_blank_the_others(admin: topics.Admin, partition: Partition) -> None:
    missing = Partition(partition.topic, 7)
    asked = offsets.watermarks(admin, [partition, missing])
    assert asked.known == {partition: (300, 1_000)}
    assert asked.silent.keys() == {missing}


class TestDiagnosis:
    """Why an offset cannot be read."""

    def topic_id(self, admin: topics.Admin, partition: Partition) -> str:
        description = topics.describe(admin, [partition.topic])[partition.topic]
        assert description is not None
        return description.topic_id

    @pytest.mark.parametrize("way", ["swallowed", "unanswered", "cut"])
    @pytest.mark.parametrize("kind", [Api.LIST_OFFSETS, Api.METADATA])
    @pytest.mark.parametrize("next_offset", [500, 1_000])
    def test_what_is_not_answered_is_no_gap(
        self, broker: Brokers, admin: topics.Admin, partition: Partition, kind: Api, way: str, next_offset: int
    ) -> None:
        progress = {"r": (next_offset, self.topic_id(admin, partition))}
        rule = broker.wire.add(WAYS[way](kind))
        found = []

        def answered() -> bool:
            try:
                found.append(diagnosed(broker, admin, partition, progress))
            except (ServerUnavailable, SourceError):
                return False
            return True

        wait_until(answered, 20, "an answer")
        assert rule.hits
        assert found == [{}]

    @pytest.mark.parametrize("said", [0, 400, 900])
    def test_a_wrong_answer_is_no_gap(
        self, broker: Brokers, admin: topics.Admin, partition: Partition, said: int
    ) -> None:
        progress = {"r": (500, self.topic_id(admin, partition))}
        broker.wire.rule(answers(Api.LIST_OFFSETS), alter(saying(said)), times=1)
        try:
            assert diagnosed(broker, admin, partition, progress) == {}
        except ServerUnavailable:
            assert diagnosed(broker, admin, partition, progress) == {}

    def test_a_true_gap_is_told_with_the_answer_that_skips_less(
        self, broker: Brokers, admin: topics.Admin, partition: Partition
    ) -> None:
        progress = {"r": (100, self.topic_id(admin, partition))}
        [gap] = diagnosed(broker, admin, partition, progress).values()
        assert (gap.kind, gap.first, gap.last, gap.resume_at) == (GapKind.RETENTION, 100, 300, 300)
        # Of the four answers to the two questions the one that says the first offset is altered, once.
        broker.wire.rule(lambda f: answers(Api.LIST_OFFSETS)(f) and _says(f.data, 300), alter(saying(900)), times=1)
        [gap] = diagnosed(broker, admin, partition, progress).values()
        assert (gap.first, gap.last, gap.resume_at) == (100, 300, 300)

    def test_one_stale_answer_is_no_truncation(self, broker: Brokers, admin: topics.Admin) -> None:
        partition = Partition(broker.make_topic(), 0)
        write(broker, partition, 200)
        earlier = Earlier(broker.wire, Api.LIST_OFFSETS)
        offsets.watermarks(admin, [partition]).all()
        write(broker, partition, 300)
        progress = {"r": (500, self.topic_id(admin, partition))}
        rule = earlier.again(times=2)  # the first of the two questions: for the first offset and for the end
        with pytest.raises(ServerUnavailable, match="two answers do not say the same"):
            diagnosed(broker, admin, partition, progress)
        assert rule.hits == 2
        assert diagnosed(broker, admin, partition, progress) == {}


class TestTopicWatch:
    """Which topics are still the same."""

    def look(self, watching: watch.TopicWatch) -> None:
        deadline = time.monotonic() + 30
        watching.suspect()
        while not watching.look():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def test_one_stale_answer_makes_no_topic_another(self, broker: Brokers, caplog: pytest.LogCaptureFixture) -> None:
        topic = broker.make_topic()
        kafka = config.Kafka(bootstrap_servers=broker.bootstrap_servers)
        former = watch.TopicWatch(kafka, [topic])
        earlier = Earlier(broker.wire, Api.METADATA)
        self.look(former)
        admin = broker.admin()
        admin.delete_topics([topic], operation_timeout=10)[topic].result()
        broker.make_topic(3, topic)
        now = watch.TopicWatch(kafka, [topic])
        self.look(now)
        known = now.known[topic]
        assert known.partitions == 3
        assert known.topic_id != former.known[topic].topic_id

        rule = earlier.again(times=1)
        self.look(now)
        rule.wait()
        self.look(now)
        assert now.known[topic] == known
        assert not caplog.records

    def test_a_topic_that_another_one_took_the_place_of(self, broker: Brokers) -> None:
        topic = broker.make_topic(3)
        watching = watch.TopicWatch(config.Kafka(bootstrap_servers=broker.bootstrap_servers), [topic])
        self.look(watching)
        before = watching.known[topic]
        admin = broker.admin()  # it must live as long as its future
        admin.delete_topics([topic], operation_timeout=10)[topic].result()
        broker.make_topic(1, topic)
        deadline = time.monotonic() + 30
        while watching.known[topic] == before:
            assert time.monotonic() < deadline
            self.look(watching)
        assert watching.known[topic].partitions == 1


def _says(data: bytes, offset: int) -> bool:
    return data[data.rindex(b"\xff" * 8) + 8 :].startswith(struct.pack(">q", offset))
