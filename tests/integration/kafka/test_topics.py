"""The admin client on a real broker."""

from __future__ import annotations

import logging
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer

from kbatchd import config
from kbatchd.errors import ConfigError, ServerUnavailable, SourceError
from kbatchd.kafka import offsets, topics
from kbatchd.kafka.watch import TopicWatch
from kbatchd.model import Partition
from tests.fix_daemon import SLOWEST, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.faults.brokers import Brokers
    from tests.fix_kafka import MakeTopic

#: Nobody listens on port 1, and no name ends in .invalid.
NOBODY = "127.0.0.1:1"


@pytest.fixture
def admin(kafka: Kafka | GivenKafka) -> topics.Admin:
    return topics.make_admin(config.Kafka(bootstrap_servers=kafka.bootstrap_servers))


def _route(topic: str, **settings: Any) -> config.Route:
    return config.Route(topic=topic, table="public.t", **settings)


def test_create_topics_and_again(admin: topics.Admin) -> None:
    one, two = (f"t-{uuid.uuid4().hex[:12]}" for _ in range(2))
    routes = [_route(one), _route(two, partitions=2, replication_factor=1)]
    try:
        assert topics.create_topics(admin, routes) == [(one, True), (two, True)]
        assert topics.create_topics(admin, routes[1:]) == [(two, False)]
        described = topics.describe(admin, [one, two])
        assert [topic.partitions for topic in described.values() if topic] == [4, 2]
    finally:
        for future in admin.delete_topics([one, two]).values():
            future.result()


def test_topics_the_broker_refuses(admin: topics.Admin, topic_name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        topics.create_topics(
            admin,
            [_route(f"{topic_name}-1", replication_factor=99), _route(f"{topic_name}-2", replication_factor=98)],
        )
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        f"topic {topic_name}-1 cannot be created",
        f"topic {topic_name}-2 cannot be created",
    ]


def test_describe(admin: topics.Admin, make_topic: MakeTopic, topic_name: str) -> None:
    topic = make_topic(3)
    described = topics.describe(admin, [topic, topic_name])
    assert described[topic_name] is None
    found = described[topic]
    assert found is not None
    assert (found.topic, found.partitions) == (topic, 3)
    assert topics.describe(admin, [topic])[topic] == found
    assert topics.describe(admin, []) == {}


def test_topic_recreated_has_another_id(admin: topics.Admin, make_topic: MakeTopic) -> None:
    topic = make_topic(1)
    before = topics.describe(admin, [topic])[topic]
    admin.delete_topics([topic], operation_timeout=10)[topic].result()
    make_topic(1, topic)
    assert before is not None

    def has_another() -> bool:
        after = topics.describe(admin, [topic])[topic]
        return after is not None and after.topic_id != before.topic_id

    wait_until(has_another, 10, "another id")


def test_a_topic_that_is_gone_is_told_of_once_with_what_to_do(
    kafka: Kafka | GivenKafka, topic_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    watch = TopicWatch(config.Kafka(bootstrap_servers=kafka.bootstrap_servers), [topic_name])
    deadline = time.monotonic() + 20
    for _ in range(2):
        watch.suspect()
        while not watch.look():
            assert time.monotonic() < deadline
            time.sleep(0.005)
    [record] = [record for record in caplog.records if vars(record).get("action") == "topic_gone"]
    assert record.getMessage() == (
        "topic is gone; `kbatchd create-topic` creates it again, and `kbatchd progress accept` then lets its "
        "partitions go on; or take its routes out of the file"
    )


def test_describe_async_does_not_wait(admin: topics.Admin, make_topic: MakeTopic) -> None:
    nobody = topics.make_admin(config.Kafka(bootstrap_servers=NOBODY))
    started_at = time.monotonic()
    assert not topics.describe_async(nobody, ["t"], 20.0).done()
    assert time.monotonic() - started_at < 10
    topic = make_topic(1)
    inquiry = topics.describe_async(admin, [topic])
    wait_until(inquiry.done, 10, "the answer")
    assert inquiry.result()[topic] is not None


def test_offsets(admin: topics.Admin, make_topic: MakeTopic, kafka: Kafka | GivenKafka) -> None:
    topic = make_topic(2)
    full, empty = Partition(topic, 0), Partition(topic, 1)
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(10):
        producer.produce(topic, b"x", partition=0, timestamp=int(at.timestamp()) * 1000 + number)
    producer.flush()
    both = [full, empty]

    def begins(at: datetime) -> dict[Partition, offsets.Offset]:
        return offsets.Beginnings(admin, both, at).wait().all()

    assert offsets.watermarks(admin, both).all() == {full: (0, 10), empty: (0, 0)}
    assert begins(at + timedelta(milliseconds=3)) == {full: 3, empty: 0}
    assert begins(at + timedelta(milliseconds=3, microseconds=1)) == {full: 4, empty: 0}
    assert begins(at + timedelta(days=1)) == {full: 10, empty: 0}
    assert begins(datetime(1950, 1, 1, tzinfo=UTC)) == {full: 0, empty: 0}
    assert offsets.Beginnings(admin, both, "earliest").wait().all() == {full: 0, empty: 0}
    assert offsets.Beginnings(admin, both, "latest").wait().all() == {full: 10, empty: 0}
    assert offsets.list_offsets(admin, [], "latest").all() == {}


def test_the_end_is_before_an_open_transaction(
    admin: topics.Admin, make_topic: MakeTopic, kafka: Kafka | GivenKafka
) -> None:
    topic = make_topic(1)
    partition = Partition(topic, 0)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": topic})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"x", partition=0)
    producer.flush()
    assert offsets.watermarks(admin, [partition]).known == {partition: (0, 0)}
    producer.commit_transaction(30)
    # The record and the marker. The coordinator has the marker written after its answer to the commit (KIP-98).
    wait_until(
        lambda: offsets.watermarks(admin, [partition]).known == {partition: (0, 2)}, 30, "the end of the transaction"
    )


def test_offsets_of_a_partition_that_does_not_exist(admin: topics.Admin, make_topic: MakeTopic) -> None:
    topic = make_topic(1)
    with pytest.raises(SourceError, match=rf"the offsets of {topic}\[1\] cannot be read"):
        offsets.list_offsets(admin, [Partition(topic, 1)], "latest").all()


def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    admin = topics.make_admin(config.Kafka(bootstrap_servers=NOBODY, librdkafka={"fetch.wait.max.ms": 5}))
    started_at = time.monotonic()
    with (
        caplog.at_level(logging.DEBUG, "kbatchd"),
        pytest.raises(ServerUnavailable, match=r"Kafka cannot be reached: .*refused"),
    ):
        topics.describe(admin, ["t"], timeout_seconds=3.0)
    assert time.monotonic() - started_at < 15
    with pytest.raises(ServerUnavailable):
        topics.create_topics(admin, [_route("t")], timeout_seconds=1.0)
    with pytest.raises(ServerUnavailable):
        offsets.watermarks(admin, [Partition("t", 0)], timeout_seconds=1.0).all()
    # 20 attempts a second, which the callers tell of; nothing of the consumer's property; no error.
    assert not [record for record in caplog.records if "FAIL" in record.getMessage()]
    assert not [record for record in caplog.records if "CONFWARN" in record.getMessage()]


def test_a_login_the_broker_refuses(kafka: Kafka | GivenKafka, tmp_path: Path) -> None:
    """It has no SASL; tests/acceptance/test_kafka_tls.py has a broker that does."""
    password = tmp_path / "password"
    password.write_text("p")
    password.chmod(0o600)
    admin = topics.make_admin(
        config.Kafka(
            bootstrap_servers=kafka.bootstrap_servers,
            sasl_mechanism="PLAIN",
            sasl_username="u",
            password_file=password,
            allow_insecure=True,
        )
    )
    with pytest.raises((ConfigError, ServerUnavailable)) as caught:
        topics.describe(admin, ["t"], timeout_seconds=3.0)
    assert "\n" not in str(caught.value)


def test_a_property_librdkafka_does_not_know() -> None:
    with pytest.raises(ConfigError, match=r'kafka.librdkafka: No such configuration property: "no.such"'):
        topics.make_admin(config.Kafka(bootstrap_servers=NOBODY, librdkafka={"no.such": 1}))


def test_a_broker_that_dies_takes_no_questions_with_it(two_brokers: Brokers) -> None:
    """Each client asks one broker, whichever it was told: with six clients hardly ever only the one that lives."""
    two_brokers.start()
    topic = two_brokers.make_topic()
    settings = config.Kafka(bootstrap_servers=two_brokers.bootstrap_servers)
    admins = [topics.make_admin(settings) for _ in range(6)]
    for each in admins:
        assert topics.describe(each, [topic])[topic]
    two_brokers.kill(2)
    asked = [topics.describe_async(each, [topic], 5 * SLOWEST) for each in admins]
    assert all(question.result()[topic] for question in asked)
