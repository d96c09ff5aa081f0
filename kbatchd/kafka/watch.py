"""The topic watch: which topics are still the same, and which partitions they have by now.

The worker's poll loop calls it each turn, in its main thread. It asks the brokers every few seconds without waiting for
the answer, and compares: another id means that the topic was recreated, more partitions that some may be ours. It also
judges offsets that are not in the topic, from the topic's id and its watermarks.

A broker may lag behind the others, or answer wrongly, once. So what makes us skip records, or drop what was read, is
told by two answers in a row: another id, fewer partitions, a gap. An id that the topic had before is no answer.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.errors import KbatchError, ServerUnavailable, SourceError
from kbatchd.kafka import offsets, topics
from kbatchd.kafka.identity import TopicIds
from kbatchd.kafka.truncation import Logs
from kbatchd.model import Gap, GapKind, Partition

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kbatchd import config
    from kbatchd.kafka.offsets import Offset
    from kbatchd.model import Position

log = logging.getLogger(__name__)

#: How often the topics are described: a recreated or grown topic is noticed within this time, and a Kafka that hangs
#: within this and what the answer may take (outage.py): 10 s together.
INTERVAL_SECONDS = 5.0

#: How soon after a broker's connection was lost, when its answer may have changed.
SUSPICION_SECONDS = 1.0

#: How long each of a diagnosis's four questions may take: the poll loop waits for them, and must beat.
DIAGNOSIS_TIMEOUT_SECONDS = 2.0


class Diagnosis(NamedTuple):
    """What the brokers say of a partition that could not be read on, by the names of those who read it."""

    gaps: dict[str, Gap]
    #: All that was read is deleted: that the log is still the same cannot be asked.
    nothing_to_compare: bool = False


class TopicWatch:
    """The topics of the routes, as they were last seen."""

    def __init__(self, kafka: config.Kafka, names: Collection[str]) -> None:
        self._kafka = kafka
        self.admin = topics.make_admin(kafka)
        self.ids = TopicIds()
        self._names = names
        self._inquiry: topics.Inquiry | None = None
        self._ask_at = 0.0
        #: When the first of the questions was asked that have had no answer since; None: the last one had one.
        self.waits_since: float | None = None
        self._missing: set[str] = set()
        #: What one answer has told, and another one shall confirm.
        self._unconfirmed: dict[str, topics.TopicDescription | None] = {}
        #: Partitions that have no leader, and why topics are not described: each is told of once.
        self._leaderless: set[Partition] = set()
        self._silent: dict[str, str] = {}
        self.known: dict[str, topics.TopicDescription] = {}

    def suspect(self) -> None:
        """Ask soon: something happened after which a topic may be another."""
        self._ask_at = min(self._ask_at, time.monotonic() + SUSPICION_SECONDS)

    def look(self) -> bool:
        """Ask when it is time, take an answer that has come; return whether there was a usable one."""
        if self.ids.in_doubt:
            self.suspect()
        if self._inquiry is None:
            if time.monotonic() >= self._ask_at:
                self._ask_at = time.monotonic() + INTERVAL_SECONDS
                self._inquiry = topics.describe_async(self.admin, self._names)
                self.waits_since = self.waits_since or time.monotonic()
            return False
        if not self._inquiry.done():
            return False
        inquiry, self._inquiry = self._inquiry, None
        try:
            described = inquiry.answers()
        except KbatchError as error:
            described = topics.Described({}, dict.fromkeys(self._names, error))
        if not all(isinstance(error, ServerUnavailable) for error in described.silent.values()) or described.known:
            self.waits_since = None
        self._tell_silence(described.silent)
        for name, description in described.known.items():
            self._take(name, description)
        self._tell_leaderless()
        return bool(described.known) and not any(name not in self.known for name in self._unconfirmed)

    def diagnose(self, partition: Partition, positions: Mapping[str, Position]) -> Diagnosis:
        """Ask the brokers which routes' offsets cannot be read, and why. Raises KbatchError without an answer."""
        return diagnose(self._kafka, self.admin, partition, positions)

    def _take(self, name: str, description: topics.TopicDescription | None) -> None:
        """Take one answer; that a topic is another one, smaller or gone, only from the second one that says so."""
        if description is not None and self.ids.is_former(name, description.topic_id):
            what = (
                "a broker tells a former id of the topic: it lags behind the others; if it goes on for minutes, look "
                "whether that broker still hears from its controller"
            )
            log.warning(what, extra={"action": "former_topic_id", "topic": name, "topic_id": description.topic_id})
            return
        before = self.known.get(name)
        confirmed = name in self._unconfirmed and _who(self._unconfirmed.pop(name)) == _who(description)
        if not confirmed and not (before and description and _goes_on(before, description)):
            self._unconfirmed[name] = description
            if before and description and before.topic_id != description.topic_id:
                self.ids.doubt(name)
            # The first answers are asked for at once; a broker that lags behind is given the time to hear of it.
            self._ask_at = time.monotonic() + (SUSPICION_SECONDS if before else 0.0)
        elif description is not None:
            self.known[name] = description
            self.ids.settle(name, description.topic_id)
            self._missing.discard(name)
        elif name not in self._missing:
            self._missing.add(name)
            what = (
                "topic is gone; `kbatchd create-topic` creates it again, and `kbatchd progress accept` then lets its "
                "partitions go on; or take its routes out of the file"
            )
            log.error(what, extra={"action": "topic_gone", "topic": name})

    def _tell_silence(self, silent: Mapping[str, KbatchError]) -> None:
        """Tell why topics are not described. Absence is waited for, and librdkafka tells of it."""
        for name, error in silent.items():
            told = self._silent.get(name) == str(error)
            level = logging.DEBUG if told or isinstance(error, ServerUnavailable) else logging.WARNING
            log.log(level, "topics not described", extra={"action": "topic_watch", "topic": name, "error": str(error)})
        self._silent = {name: str(error) for name, error in silent.items()}
        if silent:
            self.suspect()

    def _tell_leaderless(self) -> None:
        """Tell of partitions that nobody can read at the moment, and of those that can be read again."""
        now = {Partition(name, number) for name, topic in self.known.items() for number in topic.leaderless}
        for partition in sorted(now - self._leaderless):
            what = "partition has no leader: its broker is away; it is read when that is back, the others go on"
            log.warning(what, extra={"action": "no_leader", "partition": str(partition)})
        for partition in sorted(self._leaderless - now):
            log.warning("partition has a leader again", extra={"action": "leader", "partition": str(partition)})
        self._leaderless = now
        if now:
            self.suspect()


def diagnose(
    kafka: config.Kafka, admin: topics.Admin, partition: Partition, positions: Mapping[str, Position]
) -> Diagnosis:
    """Return which of these cannot be read, and why.

    Two questions, apart: of both answers with the same verdict the one that skips less. Raises KbatchError where there
    is none, or two that do not say the same.
    """
    first, nothing_to_compare = _look(kafka, admin, partition, positions)
    if not first:
        return Diagnosis({}, nothing_to_compare)
    second, _ = _look(kafka, admin, partition, positions)
    if {name: _verdict(gap) for name, gap in first.items()} != {name: _verdict(gap) for name, gap in second.items()}:
        message = f"two answers do not say the same of {partition}"
        raise ServerUnavailable(message)
    return Diagnosis({name: _lower(gap, second[name]) for name, gap in first.items()}, nothing_to_compare)


def _look(
    kafka: config.Kafka, admin: topics.Admin, partition: Partition, positions: Mapping[str, Position]
) -> Diagnosis:
    """Ask once: the poll loop waits."""
    inquiry = topics.describe_async(admin, [partition.topic], DIAGNOSIS_TIMEOUT_SECONDS)
    low, high = offsets.watermarks(admin, [partition], DIAGNOSIS_TIMEOUT_SECONDS).all()[partition]
    description = inquiry.result()[partition.topic]
    if description is None or partition.number >= description.partitions:
        message = f"{partition} does not exist"
        raise SourceError(message)
    gaps = {}
    for name, at in positions.items():
        parted = None
        if at.topic_id == description.topic_id and at.lineage.epoch is not None:
            parted = _part_at(kafka, partition, at, low, high)
        gap = judge(partition, at.next_offset, at.topic_id, description.topic_id, low, high, parted)
        if gap is not None:
            gaps[name] = gap
    return Diagnosis(gaps, any(at.lineage.end is not None and at.lineage.end <= low for at in positions.values()))


def _part_at(kafka: config.Kafka, partition: Partition, at: Position, low: Offset, high: Offset) -> int | None:
    with Logs(kafka, DIAGNOSIS_TIMEOUT_SECONDS) as logs:
        parted = logs.part_at(partition, at.lineage, low)
    if parted is None and high < (at.lineage.end or 0):
        message = f"the leader of {partition} has all that was read, but does not give it yet"
        raise ServerUnavailable(message)
    return parted


def _verdict(gap: Gap) -> tuple[GapKind, str | None]:
    return gap.kind, gap.next_topic_id


def _lower(one: Gap, other: Gap) -> Gap:
    """Of two gaps with the same verdict, return the one that skips less: a topic that was cut off has grown since."""
    return min(one, other, key=lambda gap: gap.resume_at)


def _who(description: topics.TopicDescription | None) -> tuple[str, int] | None:
    return (description.topic_id, description.partitions) if description else None


def _goes_on(before: topics.TopicDescription, now: topics.TopicDescription) -> bool:
    return now.topic_id == before.topic_id and now.partitions >= before.partitions


def judge(
    partition: Partition,
    next_offset: int,
    topic_id: str,
    current_id: str,
    low: int,
    high: int,
    parted: int | None = None,
) -> Gap | None:
    """Compare progress with a topic's id, then with its watermarks: those of another topic would say nothing.

    `parted` is where its log parts from the one that was read, if it does. What stands there now is to be read.
    """
    if topic_id != current_id:
        return Gap(partition, GapKind.RECREATED, next_offset, next_offset, low, topic_id, current_id)
    if next_offset < low:
        return Gap(partition, GapKind.RETENTION, next_offset, low, low, topic_id)
    if parted is not None:
        return Gap(partition, GapKind.TRUNCATION, parted, next_offset, parted, topic_id)
    if next_offset > high:
        return Gap(partition, GapKind.TRUNCATION, high, next_offset, high, topic_id)
    return None
