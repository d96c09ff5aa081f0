"""Which log an acknowledged record is in: the id of its topic, and the leader epoch that it was written under.

An offset alone names no record: a topic that was recreated has it once more, and so has a log that was truncated. With
id and epoch it does, but an acknowledgement tells of neither. So the brokers are asked before a record is sent and
after its acknowledgement. An id never comes back, and a partition's epoch never goes down: what both answers have in
common was so in between. Where they differ it is not known, and nothing is said of the record.

Runs on a gateway's event loop. The question before is asked every few seconds, the one after for all at once that have
been acknowledged since the last.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbatchd.errors import KbatchError
from kbatchd.kafka import topics
from kbatchd.kafka.offsets import OffsetsInquiry
from kbatchd.model import Partition

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kbatchd.kafka.topics import Admin

log = logging.getLogger(__name__)

#: How often the brokers are asked though nobody waits. After an election so long nothing is known of who is under way.
IDLE_SECONDS = 2.0

#: The least time between two questions while somebody waits: as often as progress is looked at.
LOOK_SECONDS = 0.02

#: Between two questions when the brokers do not answer one.
RETRY_SECONDS = 0.25

#: How long an answer is waited for before the brokers are asked again.
ANSWER_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Look:
    """What the brokers have said of a topic."""

    topic_id: str
    #: The leader epochs, by partition, of those that were asked for; told before the id was.
    epochs: Mapping[int, int]
    #: The least that an epoch of this topic can be from now on; of a partition that is not in it: 0.
    floors: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Log:
    """Where a request's records are: a topic's id, and by partition the leader epoch they were written under."""

    topic_id: str
    epochs: Mapping[int, int]


class _Round:
    """A question to come, and its answer for all who wait for it."""

    def __init__(self) -> None:
        self.partitions: dict[str, set[int]] = {}
        self.looks: dict[str, Look | None] = {}
        self.ended = asyncio.Event()


class Logs:
    """Asks the brokers; see the module."""

    def __init__(self, admin: Admin, names: Iterable[str]) -> None:
        """Prepare, within the event loop."""
        self._admin = admin
        self._looks: dict[str, Look] = {}
        #: How many partitions each topic has, as far as is known.
        self._partitions = dict.fromkeys(sorted(names), 0)
        #: Every id that a topic has had: a broker that lags may tell a former one.
        self._ids: dict[str, set[str]] = {name: set() for name in self._partitions}
        self._next = _Round()
        self._wake = asyncio.Event()
        #: Set when each topic has been asked for, whatever came of it.
        self.looked = asyncio.Event()

    def look(self, topic: str) -> Look | None:
        """Return what is known of a topic; for who is about to send."""
        return self._looks.get(topic)

    async def acknowledged(self, before: Look | None, partitions: Iterable[Partition]) -> Log | None:
        """Say which log records are in that have just been acknowledged; None: that will not be known any more.

        `before` was known when they were sent. Waits for brokers that do not answer, as long as they do not.
        """
        if before is None:
            return None
        asked = set(partitions)
        [topic] = {partition.topic for partition in asked}
        numbers = {partition.number for partition in asked}
        after = await self._ask(topic, numbers)
        while after is None or (after.topic_id == before.topic_id and not numbers <= after.epochs.keys()):
            after = await self._ask(topic, numbers)
        epochs = {number: epoch for number, epoch in after.epochs.items() if number in numbers}
        same = after.topic_id == before.topic_id
        if not same or any(before.floors.get(number, 0) != epoch for number, epoch in epochs.items()):
            return None
        return Log(after.topic_id, epochs)

    async def watch(self) -> None:
        """Ask until cancelled."""
        await asyncio.gather(self._look_around(), self._answer())

    # --- within

    async def _look_around(self) -> None:
        """Keep up what is known of all topics before anything is sent."""
        while True:
            # Twice: what is asked under an id that is not known yet tells nothing but that.
            for _ in range(2):
                await asyncio.gather(*(self._look(topic, range(count)) for topic, count in self._partitions.items()))
            self.looked.set()
            self._admin.poll(0)  # hands librdkafka's log lines on
            await asyncio.sleep(IDLE_SECONDS)

    async def _answer(self) -> None:
        """Ask for those who wait, for all of them at once."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            this, self._next = self._next, _Round()
            asked = this.partitions.items()
            looks = await asyncio.gather(*(self._look(topic, numbers) for topic, numbers in asked))
            this.looks = dict(zip(this.partitions, looks, strict=True))
            this.ended.set()
            await asyncio.sleep(RETRY_SECONDS if None in looks else LOOK_SECONDS)

    async def _ask(self, topic: str, numbers: Iterable[int]) -> Look | None:
        """Return the answer to a question that has not been asked yet."""
        this = self._next
        this.partitions.setdefault(topic, set()).update(numbers)
        self._wake.set()
        await this.ended.wait()
        return this.looks[topic]

    async def _look(self, topic: str, numbers: Iterable[int]) -> Look | None:
        """Ask for the epochs, then for the id: if that is the one of before, the epochs were this topic's."""
        former = self._looks.get(topic)
        partitions = [Partition(topic, number) for number in numbers]
        question = OffsetsInquiry(self._admin, partitions, "latest", ANSWER_SECONDS)
        await question.ended()
        epochs = {partition.number: epoch for partition, epoch in question.epochs().items()}
        inquiry = topics.describe_async(self._admin, [topic], ANSWER_SECONDS)
        await inquiry.ended()
        try:
            description = inquiry.result()[topic]
        except KbatchError as error:
            log.debug("topic not described", extra={"action": "topic_not_described", "error": str(error)})
            return None
        if description is None:
            return None
        self._partitions[topic] = description.partitions
        return self._note(topic, description.topic_id, former, epochs)

    def _note(self, topic: str, topic_id: str, former: Look | None, epochs: dict[int, int]) -> Look | None:
        known = self._looks.get(topic)
        if known is None or known.topic_id != topic_id:
            if topic_id in self._ids[topic]:
                return None  # from a broker that lags
            self._ids[topic].add(topic_id)
            look = Look(topic_id, {}, {})
        elif former is None or former.topic_id != topic_id:
            return None  # what was asked first is not certain to be this topic's
        else:
            floors = {number: max(epoch, known.floors.get(number, 0)) for number, epoch in epochs.items()}
            look = Look(topic_id, epochs, {**known.floors, **floors})
        self._looks[topic] = look
        return look
