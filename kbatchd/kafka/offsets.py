"""Where partitions begin and end: numbers that a broker gave, and nothing else.

librdkafka hands out -1001 without an error where no broker answered, and has more such values below 0. An `Offset` is
made in one place, of an answer, and is 0 or more; a partition without one is silent, with the reason, and the caller
goes on with the others. Called by the start-up checks and the operator's commands, which wait, and by each worker's two
threads, which must not: they look at `done()` or `look()` each turn.

Where reading begins decides what is never read. So it takes two answers, to two questions, that say the same: both
that records are left out, or both that none are. The lower one counts.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, NewType, TypeVar

from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import OffsetSpec

from kbatchd.errors import ConfigError, KbatchError, ServerUnavailable
from kbatchd.kafka.topics import Question
from kbatchd.model import Partition

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Sequence
    from concurrent.futures import Future
    from typing import Any

    from kbatchd.kafka.topics import Admin

#: An offset of a partition, or its end: 0 or more, from a broker.
Offset = NewType("Offset", int)

#: Where to begin.
At = Literal["earliest", "latest"] | datetime

#: Answers come at once or not at all, and are asked for again.
REQUEST_TIMEOUT_SECONDS = 5.0

#: Before those that were silent are asked again.
PAUSE_SECONDS = 0.2

#: "Nothing so late", in answer to a question by time, and nowhere else.
_BEYOND = -1

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_T = TypeVar("_T")


class Answers(NamedTuple, Generic[_T]):
    """What the brokers say of partitions, and why they do not say it of others."""

    known: dict[Partition, _T]
    silent: dict[Partition, KbatchError]

    def all(self) -> dict[Partition, _T]:
        """Return what was asked for. Raises a silent partition's error, if there is one."""
        for error in self.silent.values():
            raise error
        return self.known


class OffsetsInquiry(Question[TopicPartition]):
    """The offsets of partitions, those of a reader of committed records: asked, without waiting."""

    def __init__(self, admin: Admin, partitions: Iterable[Partition], at: At, timeout_seconds: float) -> None:
        spec = _offset_spec(at)
        asked = {TopicPartition(partition.topic, partition.number): spec for partition in partitions}
        futures: dict[TopicPartition, Future[Any]] = {}
        if asked:  # librdkafka refuses an empty question
            futures = admin.list_offsets(
                asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=timeout_seconds
            )
        super().__init__(admin, futures)
        self._by_time = isinstance(at, datetime)
        #: Asked by time, and with nothing so late; filled by `answers`.
        self.beyond: set[Partition] = set()

    def answers(self) -> Answers[Offset]:
        """Wait for the answers. Raises ConfigError where the brokers do not let us in."""
        self.wait_for_all()
        answers: Answers[Offset] = Answers({}, {})
        for key, future in self.futures.items():
            partition = Partition(key.topic, key.partition)
            error = future.exception()
            if error is not None:
                answers.silent[partition] = self.meaning(f"the offsets of {partition} cannot be read", error)
                continue
            offset = future.result().offset
            if self._by_time and offset == _BEYOND:
                self.beyond.add(partition)
                continue
            try:
                answers.known[partition] = offset_of(partition, offset)
            except ServerUnavailable as silence:
                answers.silent[partition] = silence
        return answers

    def epochs(self) -> dict[Partition, int]:
        """Return the leader epochs that the partitions are in, when `done()`: of those whose leader tells one."""
        epochs = {
            Partition(key.topic, key.partition): future.result().leader_epoch
            for key, future in self.futures.items()
            if future.exception() is None
        }
        # None and -1 are no epochs: brokers older than 2.1, or none that answered.
        return {partition: epoch for partition, epoch in epochs.items() if epoch is not None and epoch >= 0}


class Beginnings:
    """Where partitions are to begin: asked until two answers in a row say the same of each, without waiting."""

    def __init__(
        self, admin: Admin, partitions: Iterable[Partition], at: At, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
    ) -> None:
        """Ask for the first offset, the end, or the first offset at or after a time: the end if there is none."""
        self._admin = admin
        self._steps = self._ask_twice(list(partitions), at, timeout_seconds)
        self._answers: Answers[Offset] | None = None

    def look(self) -> Answers[Offset] | None:
        """Return the answers if they are there. Raises ConfigError where the brokers do not let us in."""
        if self._answers is None:
            try:
                next(self._steps)
            except StopIteration as end:
                self._answers = end.value
        return self._answers

    def wait(self) -> Answers[Offset]:
        """Wait for the answers."""
        while (answers := self.look()) is None:
            self._admin.poll(0.05)
        return answers

    def _ask_twice(
        self, partitions: list[Partition], at: At, timeout_seconds: float
    ) -> Generator[None, None, Answers[Offset]]:
        first = yield from self._ask_once(partitions, at, timeout_seconds)
        second = yield from self._ask_once(first.known, at, timeout_seconds)
        answers: Answers[Offset] = Answers({}, {**first.silent, **second.silent})
        for partition, offset in second.known.items():
            if bool(offset) == bool(first.known[partition]):
                answers.known[partition] = min(offset, first.known[partition])
            else:
                answers.silent[partition] = ServerUnavailable(
                    f"two answers do not say the same of where {partition} begins: "
                    f"{first.known[partition]}, then {offset}"
                )
        return answers

    def _ask_once(
        self, partitions: Collection[Partition], at: At, timeout_seconds: float
    ) -> Generator[None, None, Answers[Offset]]:
        """Ask once. By time: for the ends before, or what comes in between would be left out."""
        ends: Answers[Offset] = Answers({}, {})
        if isinstance(at, datetime):
            ends = yield from self._ask_once(partitions, "latest", timeout_seconds)
            partitions = ends.known
        inquiry = OffsetsInquiry(self._admin, partitions, at, timeout_seconds)
        while not inquiry.done():
            self._admin.trouble.refuse()
            yield
        answers = inquiry.answers()
        known = {**answers.known, **{partition: ends.known[partition] for partition in inquiry.beyond}}
        return Answers(known, {**ends.silent, **answers.silent})


def offset_of(partition: Partition, number: int | None) -> Offset:
    """Take a number that librdkafka gives for an offset. Raises ServerUnavailable when it stands for no answer."""
    if number is None or number < 0:
        raise ServerUnavailable(f"no broker has said which offset it is of {partition} (the answer is {number})")
    return Offset(number)


def list_offsets(
    admin: Admin, partitions: Iterable[Partition], at: At, timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
) -> Answers[Offset]:
    """Ask once, and wait, for each partition's first offset or its end; see `Beginnings` for where to begin."""
    return OffsetsInquiry(admin, partitions, at, timeout_seconds).answers()


def watermarks(
    admin: Admin, partitions: Iterable[Partition], timeout_seconds: float = REQUEST_TIMEOUT_SECONDS
) -> Answers[tuple[Offset, Offset]]:
    """Ask at once for each partition's first offset and its end, and wait."""
    asked = list(partitions)
    questions = [OffsetsInquiry(admin, asked, at, timeout_seconds) for at in ("earliest", "latest")]
    low, high = (question.answers() for question in questions)
    marks: Answers[tuple[Offset, Offset]] = Answers({}, {**low.silent, **high.silent})
    for partition in low.known.keys() & high.known.keys():
        first, end = low.known[partition], high.known[partition]
        if first <= end:
            marks.known[partition] = first, end
        else:
            marks.silent[partition] = ServerUnavailable(f"{partition} begins at {first} and ends at {end}, they say")
    return marks


def patiently(
    ask: Callable[[Sequence[Partition]], Answers[_T]], partitions: Iterable[Partition], patience_seconds: float
) -> Answers[_T]:
    """Ask again for those partitions that are silent, for so long: a leader may be on its way."""
    deadline = time.monotonic() + patience_seconds
    answers = ask(list(partitions))
    while answers.silent and time.monotonic() < deadline:
        if any(isinstance(error, ConfigError) for error in answers.silent.values()):
            break
        time.sleep(PAUSE_SECONDS)
        again = ask(list(answers.silent))
        answers = Answers({**answers.known, **again.known}, again.silent)
    return answers


def _offset_spec(at: At) -> Any:  # noqa: ANN401 - untyped in the library
    if at == "earliest":
        return OffsetSpec.earliest()  # type: ignore[no-untyped-call]
    if at == "latest":
        return OffsetSpec.latest()  # type: ignore[no-untyped-call]
    # Rounded up, as records have whole milliseconds; not below 0, where Kafka's special values are.
    milliseconds = -((_EPOCH - at) // timedelta(milliseconds=1))
    return OffsetSpec.for_timestamp(max(milliseconds, 0))
