"""The gateway's producer on its event loop, before a real Kafka."""

from __future__ import annotations

import asyncio
import time
from threading import Event
from typing import TYPE_CHECKING

from kbatchd import config
from kbatchd.kafka.producer import STALL_SECONDS, GatewayProducer
from kbatchd.model import OffsetRange, Partition
from kbatchd.produce.bookmark import Bookmark
from kbatchd.produce.delivery import Patience
from kbatchd.produce.plain_producer import PlainProducer
from tests.faults.kafka_wire import Api, answers
from tests.faults.rules import alter

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.faults.brokers import Brokers
    from tests.fix_kafka import MakeTopic


def test_a_loop_that_is_held_up_does_not_blame_kafka(kafka: Kafka | GivenKafka, make_topic: MakeTopic) -> None:
    """Its reports have waited for it; a request that comes first afterwards must not be refused for that."""
    topic = make_topic(1)

    async def send_before_and_after() -> list[OffsetRange]:
        settings = config.Kafka(bootstrap_servers=kafka.bootstrap_servers)
        producer = GatewayProducer(settings, config.Gateway(), "test")
        await asyncio.wait_for(producer.up.wait(), 30)
        before = asyncio.create_task(producer.send(topic, [b"{}"], [None], None))
        await asyncio.sleep(0)  # its turn: the record is under way
        time.sleep(STALL_SECONDS + 0.2)  # noqa: ASYNC251  # what is to be tested: nobody else has a turn
        after = await producer.send(topic, [b"{}"], [None], None)
        producer.close()
        return [*await before, *after]

    assert asyncio.run(send_before_and_after()) == [
        OffsetRange(Partition(topic, 0), offset, offset) for offset in (0, 1)
    ]


def unplaced(topic: str) -> Callable[[bytes], bytes]:
    """Make a change of an answer: the records are in the topic, and the broker names no offset (-1)."""

    def change(answer: bytes) -> bytes:
        behind = answer.index(topic.encode()) + len(topic)
        [at] = [behind + skip for skip in (1, 4) if answer[behind + skip :][:6] == bytes(6)][:1]  # flexible or not
        return answer[: at + 6] + (-1).to_bytes(8, "big", signed=True) + answer[at + 14 :]

    return change


def test_what_no_broker_has_placed_is_nowhere(broker: Brokers) -> None:
    """Librdkafka counts on from what is no offset: -1, 0, 1 are not where the records are."""
    topic = broker.make_topic()
    first = OffsetRange(Partition(topic, 0), 0, 0)

    async def send() -> None:
        producer = GatewayProducer(config.Kafka(bootstrap_servers=broker.bootstrap_servers), config.Gateway(), "test")
        await asyncio.wait_for(producer.up.wait(), 30)
        assert await producer.send(topic, [b"{}"], [None], None) == [first]
        rule = broker.wire.rule(answers(Api.PRODUCE), alter(unplaced(topic)), 1)
        both = asyncio.gather(*(producer.send(topic, [b"{}"] * count, [None] * count, None) for count in (1, 3)))
        assert await asyncio.wait_for(both, 20) == [[], []], "they are one batch"
        rule.wait()
        assert await producer.send(topic, [b"{}"], [None], None) == [OffsetRange(Partition(topic, 0), 5, 5)]
        producer.close()

    asyncio.run(send())


def test_a_file_is_sent_though_no_broker_says_where_it_is(broker: Brokers) -> None:
    topic = broker.make_topic()
    producer = PlainProducer(
        config.Kafka(bootstrap_servers=broker.bootstrap_servers), topic, 30.0, Patience(30.0, Event(), print)
    )
    broker.wire.rule(answers(Api.PRODUCE), alter(unplaced(topic)), 1)
    producer.add([b"{}"] * 3, [None] * 3)
    producer.commit(Bookmark(6, 3, "", 3, 0, finished=True, run=""))
    assert (producer.acknowledged.count, producer.acknowledged.partitions) == (3, {})
    producer.close()
