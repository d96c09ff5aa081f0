"""Kafka's frames: a length of 4 bytes; a request's kind, version and correlation id, which its answer repeats.

The proxy reads no further, so it is right for every version of every kind. That suffices, since the broker itself
names the proxy's address in its metadata: see brokers.py.
"""

from __future__ import annotations

import struct
import threading
from enum import IntEnum
from typing import TYPE_CHECKING

from tests.faults.rules import Act, Frame, Rule, Side, When, swallow
from tests.faults.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.wire import Connection


class Api(IntEnum):
    """The kinds of requests that matter here, by Kafka's numbers."""

    PRODUCE = 0
    FETCH = 1
    LIST_OFFSETS = 2
    METADATA = 3
    OFFSET_COMMIT = 8
    OFFSET_FETCH = 9
    FIND_COORDINATOR = 10
    JOIN_GROUP = 11
    HEARTBEAT = 12
    SYNC_GROUP = 14
    API_VERSIONS = 18
    INIT_PRODUCER_ID = 22
    OFFSET_FOR_LEADER_EPOCH = 23
    DESCRIBE_CONFIGS = 32
    CONSUMER_GROUP_HEARTBEAT = 68
    DESCRIBE_TOPIC_PARTITIONS = 75


def requests(*kinds: Api) -> When:
    """Choose the requests of these kinds; all where none is named."""
    return lambda frame: frame.side is Side.REQUEST and (not kinds or frame.kind in kinds)


def answers(*kinds: Api) -> When:
    """Choose the answers to requests of these kinds; all where none is named."""
    return lambda frame: frame.side is Side.ANSWER and (not kinds or frame.kind in kinds)


class KafkaSpeech:
    """One connection: which kind each answer is for, by its correlation id."""

    def __init__(self) -> None:
        self._asked: dict[int, Frame] = {}

    def requests(self, connection: Connection) -> Iterator[Frame]:
        """Read requests; their `about` is all behind the correlation id: client id and question."""
        while True:
            data = _read(connection, Side.REQUEST)
            kind, version, correlation = struct.unpack_from(">hhi", data, 4)
            frame = Frame(Side.REQUEST, kind, data, data[12:], version, correlation)
            self._asked[correlation] = frame
            yield frame

    def answers(self, connection: Connection) -> Iterator[Frame]:
        """Read answers; their `about` is the question's."""
        while True:
            data = _read(connection, Side.ANSWER)
            (correlation,) = struct.unpack_from(">i", data, 4)
            asked = self._asked.pop(correlation)
            yield Frame(Side.ANSWER, asked.kind, data, asked.about, asked.version, correlation)


class KafkaWire(Wire):
    """A proxy before one broker."""

    def __init__(self, server_port: int, port: int = 0) -> None:
        super().__init__(server_port, KafkaSpeech, port)

    def swallow_requests(self, *kinds: Api, times: int | None = 1, skip: int = 0) -> Rule:
        """Let requests vanish: the client waits until its own timeout."""
        return self.rule(requests(*kinds), swallow, times, skip)

    def swallow_answers(self, *kinds: Api, times: int | None = 1, skip: int = 0) -> Rule:
        """Let answers vanish: what was asked is done, and nobody knows."""
        return self.rule(answers(*kinds), swallow, times, skip)


class Earlier:
    """Answers as they once were: recorded now, given again later, as a broker gives them whose news are old."""

    def __init__(self, wire: Wire, *kinds: Api) -> None:
        """Record from now on; of equal questions the last answer."""
        self._known: dict[tuple[int | str, int, bytes], bytes] = {}
        self._lock = threading.Lock()
        self._rule = wire.rule(answers(*kinds), self._record)
        self._wire = wire
        self._kinds = kinds

    def _record(self, frame: Frame, connection: Connection) -> None:
        with self._lock:
            self._known[frame.kind, frame.version, frame.about] = frame.data[8:]
        connection.forward(frame)

    def again(self, times: int | None = 1) -> Rule:
        """End the recording; give equal questions, so many, the answer that was recorded. Others pass."""
        self._rule.lift()
        return self._wire.rule(lambda f: answers(*self._kinds)(f) and self._key(f) in self._known, self._act(), times)

    def _act(self) -> Act:
        def act(frame: Frame, connection: Connection) -> None:
            data = struct.pack(">i", frame.correlation) + self._known[self._key(frame)]
            connection.send(Side.ANSWER, struct.pack(">i", len(data)) + data)

        return act

    @staticmethod
    def _key(frame: Frame) -> tuple[int | str, int, bytes]:
        return frame.kind, frame.version, frame.about


def _read(connection: Connection, side: Side) -> bytes:
    head = connection.read(side, 4)
    return head + connection.read(side, int.from_bytes(head, "big"))
