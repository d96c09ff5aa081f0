"""The gateway's producer on its event loop, before a real Kafka."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from kbatchd import config
from kbatchd.model import OffsetRange, Partition
from kbatchd.producer import STALL_SECONDS, RecordProducer

if TYPE_CHECKING:
    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic


def test_a_loop_that_is_held_up_does_not_blame_kafka(kafka: Kafka | GivenKafka, make_topic: MakeTopic) -> None:
    """Its reports have waited for it; a request that comes first afterwards must not be refused for that."""
    topic = make_topic(1)

    async def send_before_and_after() -> list[OffsetRange]:
        settings = config.Kafka(bootstrap_servers=kafka.bootstrap_servers)
        producer = RecordProducer(settings, config.Gateway(), "test")
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
