"""The proxy before a broker does what its rules say: a client sees nothing, late, an end, or old news."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tests.faults.brokers import Brokers
from tests.faults.kafka_wire import Api, Earlier, answers, requests
from tests.faults.rules import Side, cut, delay, holding


def admin_of(brokers: Brokers) -> AdminClient:
    return AdminClient({"bootstrap.servers": brokers.bootstrap_servers, "log_level": 0})


def write(brokers: Brokers, topic: str, count: int) -> None:
    producer = Producer({"bootstrap.servers": brokers.direct})
    for number in range(count):
        producer.produce(topic, str(number).encode(), partition=0)
    assert producer.flush(30) == 0


def end_of(admin: AdminClient, topic: str, timeout: float = 10.0) -> int:
    at = TopicPartition(topic, 0)
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    return int(admin.list_offsets({at: latest}, request_timeout=timeout)[at].result().offset)


def test_what_no_rule_is_for_passes(broker: Brokers) -> None:
    topic = broker.make_topic()
    write(broker, topic, 10)
    assert end_of(admin_of(broker), topic) == 10
    assert broker.wire.seen(Api.LIST_OFFSETS) >= 1
    assert broker.wire.seen(Api.LIST_OFFSETS, Side.ANSWER) >= 1


@pytest.mark.parametrize("side", ["requests", "answers"])
def test_what_is_swallowed_is_never_answered(broker: Brokers, side: str) -> None:
    topic = broker.make_topic()
    write(broker, topic, 10)
    admin = admin_of(broker)
    swallow = broker.wire.swallow_requests if side == "requests" else broker.wire.swallow_answers
    rule = swallow(Api.LIST_OFFSETS)
    # librdkafka gives an offset that no broker gave, and no error: the trap this is all about.
    assert end_of(admin, topic, timeout=1.0) == -1001
    assert rule.hits == 1
    assert end_of(admin, topic) == 10


def test_what_is_held_comes_when_it_is_let_go(broker: Brokers) -> None:
    topic = broker.make_topic()
    write(broker, topic, 10)
    admin = admin_of(broker)
    rule = broker.wire.add(holding(answers(Api.LIST_OFFSETS)))
    with ThreadPoolExecutor() as pool:
        end = pool.submit(end_of, admin, topic)
        rule.wait()
        write(broker, topic, 1)
        assert not end.done()
        rule.lift()
        assert end.result() == 10  # of before, though there are 11 by now


def test_what_is_delayed_comes_late(broker: Brokers) -> None:
    topic = broker.make_topic()
    admin = admin_of(broker)
    assert end_of(admin, topic) == 0
    broker.wire.rule(requests(Api.LIST_OFFSETS), delay(0.7), times=1)
    began = time.monotonic()
    assert end_of(admin, topic) == 0
    assert time.monotonic() - began >= 0.7


def test_a_connection_that_is_cut_is_made_again(broker: Brokers) -> None:
    topic = broker.make_topic()
    write(broker, topic, 10)
    rule = broker.wire.rule(requests(Api.FETCH), cut, times=2)
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "g", "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    got = 0
    while got < 10:
        message = consumer.poll(30)
        assert message is not None
        got += message.error() is None
    consumer.close()
    assert rule.hits == 2


def test_old_news_are_given_again(broker: Brokers) -> None:
    topic = broker.make_topic()
    write(broker, topic, 10)
    admin = admin_of(broker)
    earlier = Earlier(broker.wire, Api.LIST_OFFSETS)
    assert end_of(admin, topic) == 10
    write(broker, topic, 5)
    rule = earlier.again(times=1)
    assert end_of(admin, topic) == 10
    assert rule.hits == 1
    assert end_of(admin, topic) == 15


def test_nothing_passes_a_wire_that_is_blocked(broker: Brokers) -> None:
    topic = broker.make_topic()
    admin = admin_of(broker)
    with broker.wire.blocked() as rule:
        with pytest.raises(KafkaException):
            admin.list_topics(topic, timeout=1.0)
        rule.wait()
    assert topic in admin.list_topics(topic, timeout=10.0).topics


def test_brokers_elect_who_is_there_and_forget_what_only_the_dead_one_had(two_brokers: Brokers) -> None:
    topic = two_brokers.make_topic(replicas=(1, 2), unclean_leader_election_enable=True)
    two_brokers.wait_for_leader(topic, 1)
    write(two_brokers, topic, 5)
    two_brokers.kill(2)
    write(two_brokers, topic, 3)
    assert end_of(two_brokers.admin(), topic) == 8
    two_brokers.kill(1)
    two_brokers.start(2)
    two_brokers.elect(topic)
    two_brokers.wait_for_leader(topic, 2)
    assert end_of(two_brokers.admin(), topic) == 5
