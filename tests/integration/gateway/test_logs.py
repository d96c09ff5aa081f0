"""Which log a record is in, asked of a real Kafka: known where it cannot have changed, and not known otherwise."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import uvloop
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient

from kbatchd import config
from kbatchd.gateway.logs import Logs
from kbatchd.kafka.producer import GatewayProducer
from kbatchd.kafka.topics import make_admin
from kbatchd.model import Partition
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from kbatchd.gateway.logs import Log, Look
    from tests.fix_kafka import MakeTopic


def run(test: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test)


@asynccontextmanager
async def asking(kafka: Kafka | GivenKafka, *topics: str) -> AsyncIterator[tuple[Logs, GatewayProducer]]:
    """Ask of these topics, and produce into them."""
    settings = config.Kafka(bootstrap_servers=kafka.bootstrap_servers)
    logs = Logs(make_admin(settings), topics)
    watching = asyncio.create_task(logs.watch())
    producer = GatewayProducer(settings, config.Gateway(), "test")
    await asyncio.wait_for(logs.looked.wait(), 30)
    await asyncio.wait_for(producer.up.wait(), 30)
    try:
        yield logs, producer
    finally:
        producer.close()
        watching.cancel()


async def send(logs: Logs, producer: GatewayProducer, topic: str) -> tuple[int, int, Log | None]:
    """Send a record; return its partition and offset, and which log it is in."""
    before = logs.look(topic)
    [(partition, offset, _)] = await producer.send(topic, [b"{}"], [None], None)
    return partition.number, offset, await asyncio.wait_for(logs.acknowledged(before, [partition]), 30)


def epochs_read(kafka: Kafka | GivenKafka, topic: str, places: Sequence[tuple[int, int]]) -> list[int | None]:
    """Return the leader epochs that a consumer finds at these offsets."""
    found = []
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test"})
    for number, offset in places:
        consumer.assign([TopicPartition(topic, number, offset)])
        message = consumer.poll(30)
        assert message is not None
        assert not message.error()
        found.append(message.leader_epoch())
    consumer.close()
    return found


def recreate(kafka: Kafka | GivenKafka, make_topic: MakeTopic, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.delete_topics([topic], operation_timeout=10)[topic].result()
    make_topic(2, topic)


async def wait_for_look(logs: Logs, topic: str, other_than: Look | None) -> None:
    """Wait until more is known of the topic."""

    def known() -> bool:
        look = logs.look(topic)
        return look is not other_than and look is not None and bool(look.floors)

    await asyncio.to_thread(wait_until, known, 30, "another look")


def test_epoch_is_the_one_that_a_consumer_reads(own_kafka: Kafka, own_make_topic: MakeTopic) -> None:
    topic = own_make_topic(2)

    async def test() -> None:
        async with asking(own_kafka, topic) as (logs, producer):
            sent = [await send(logs, producer, topic) for _ in range(4)]
            before = logs.look(topic)
            assert before is not None
            # An election: of a record that is sent before anybody knows of it, nothing will be known.
            own_kafka.kill()
            own_kafka.start()
            await asyncio.wait_for(producer.up.wait(), 30)
            sent.append(await send(logs, producer, topic))
            await wait_for_look(logs, topic, logs.look(topic))
            sent += [await send(logs, producer, topic) for _ in range(4)]
        known = [(number, offset, log.epochs[number]) for number, offset, log in sent if log is not None]
        assert len(known) >= 8
        read = epochs_read(own_kafka, topic, [(number, offset) for number, offset, _ in known])
        assert read == [epoch for *_, epoch in known]
        assert len(set(read)) == 2

    run(test())


def test_a_topic_recreated_meanwhile_is_not_taken_for_the_former(
    kafka: Kafka | GivenKafka, make_topic: MakeTopic
) -> None:
    topic = make_topic(2)

    async def test() -> None:
        async with asking(kafka, topic) as (logs, producer):
            before = logs.look(topic)
            assert before is not None
            *_, log = await send(logs, producer, topic)
            assert log is not None
            await asyncio.to_thread(recreate, kafka, make_topic, topic)
            assert await logs.acknowledged(before, [Partition(topic, 0)]) is None
            while (look := logs.look(topic)) is None or look.topic_id == before.topic_id:
                await wait_for_look(logs, topic, look)
            *_, recreated = await send(logs, producer, topic)
            assert recreated is not None
            assert recreated.topic_id == look.topic_id != before.topic_id

    run(test())


def test_without_an_answer_nothing_is_known(own_kafka: Kafka, own_make_topic: MakeTopic) -> None:
    topic = own_make_topic(2)

    async def test() -> None:
        async with asking(own_kafka, topic) as (logs, producer):
            before = logs.look(topic)
            await producer.send(topic, [b"{}"], [None], None)
            own_kafka.kill()
            asked = asyncio.create_task(logs.acknowledged(before, [Partition(topic, 0)]))
            done, _ = await asyncio.wait([asked], timeout=5)
            assert not done
            asked.cancel()
            own_kafka.start()
            assert await logs.acknowledged(None, [Partition(topic, 0)]) is None, "nothing was known before"

    run(test())
