"""What the matrix sends: records that say where they belong, and notes of which offset each of them got."""

from __future__ import annotations

import random
import sys
import uuid
from typing import TYPE_CHECKING, Self

import orjson

from tests.faults.oracle import value
from tests.fix_daemon import wait_until
from tests.fix_load import Load

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

PER_SECOND = 800

#: Every so many records one is no row, but a dead letter.
UNSOUND = 97

#: A record's number says its partition, and its place within it.
STRIDE = 64

LARGE_BYTES = 10_000_000


class Traffic(Load):
    """Sends the oracle's records without a pause, and notes the offset of each that was acknowledged."""

    unsound = UNSOUND

    def __init__(
        self,
        bootstrap_servers: str,
        topic: str,
        partitions: int,
        per_second: float,
        first: int = 0,
        **settings: str | int,
    ) -> None:
        large = 2 * LARGE_BYTES
        super().__init__(bootstrap_servers, topic, partitions, per_second, first, message_max_bytes=large, **settings)
        self.offsets: dict[int, list[int]] = {}
        #: So many of the next records are of LARGE_BYTES.
        self.large = 0
        self._more = 0

    def send_more(self, count: int) -> None:
        """Let the thread send so many at once, beside what is due; return when it has."""
        self._more = count
        wait_until(lambda: not self._more, 30, f"{count} more records sent")

    def send(self, count: int) -> None:
        """Send what is due."""
        super().send(count + self._more)
        self._more = 0

    def value(self, partition: int, seq: int) -> bytes:
        """Make the value of a number that no other record has."""
        made = value(seq * STRIDE + partition, sound=seq % self.unsound != self.unsound - 1)
        if not self.large:
            return made
        self.large -= 1
        return orjson.dumps({**orjson.loads(made), "more": "x" * LARGE_BYTES})

    def grow(self, partitions: int) -> None:
        """Send to more partitions from now on."""

        def known() -> int:
            return len(self._producer.list_topics(self._topic).topics[self._topic].partitions)

        wait_until(lambda: known() == partitions, 20, "the news")
        most = max(self.sent.values())
        new = range(len(self.sent), partitions)
        self.acknowledged |= dict.fromkeys(new, 0)
        self.sent = {**self.sent, **dict.fromkeys(new, most)}

    def successor(self, first: int) -> Self:
        """Make one that goes on where this one has ended, in a topic of the same name."""
        return type(self)(self._bootstrap_servers, self._topic, len(self.sent), self._per_second, first)

    def _note(self, error: KafkaError | None, message: Message) -> None:
        super()._note(error, message)
        if error is None:
            self.offsets.setdefault(message.partition() or 0, []).append(message.offset() or 0)


class Sound(Traffic):
    """Sends none that becomes a dead letter: of those the leader's epoch is not known."""

    unsound = sys.maxsize


class Transactions(Traffic):
    """Sends in transactions, of which three in ten are aborted."""

    def __init__(self, bootstrap_servers: str, topic: str, partitions: int, per_second: float, first: int = 0) -> None:
        name = f"faults-{uuid.uuid4().hex[:8]}"
        super().__init__(
            bootstrap_servers, topic, partitions, per_second, first, transactional_id=name, delivery_timeout_ms=30_000
        )
        self._producer.init_transactions(30)

    def send(self, count: int) -> None:
        """Send so many in one transaction."""
        if not count:
            return
        self._producer.begin_transaction()
        before = {number: len(offsets) for number, offsets in self.offsets.items()}
        super().send(count)
        assert self._producer.flush(30) == 0
        if random.random() < 0.3:
            self._producer.abort_transaction(30)
            self.offsets = {number: offsets[: before.get(number, 0)] for number, offsets in self.offsets.items()}
        else:
            self._producer.commit_transaction(30)


class Keyed(Traffic):
    """Sends keys that come again, as a compacted topic wants them."""

    def key(self, partition: int, seq: int) -> bytes:  # noqa: ARG002
        """Make one of a few keys."""
        return b"%d" % (seq % 50)
