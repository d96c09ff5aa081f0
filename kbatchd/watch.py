"""The topic watch: which topics are still the same, and which partitions they have by now.

The worker's poll loop calls it each turn, in its main thread. It asks the brokers every few seconds without waiting for
the answer, and compares: another id means that the topic was made anew, more partitions that some may be ours. It also
judges offsets that are not in the topic, from the topic's id and its watermarks.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from kbatchd import topics
from kbatchd.errors import KbatchError, ServerUnavailable
from kbatchd.model import Gap, GapKind, Partition

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from kbatchd import config

log = logging.getLogger(__name__)

#: How often the topics are described: a topic made anew or grown is noticed within this time, and a Kafka that hangs
#: within this and what the answer may take (outage.py): 10 s together.
INTERVAL_SECONDS = 5.0

#: How soon after a broker's connection was lost, when its answer may have changed.
SUSPICION_SECONDS = 1.0

#: How long each of a diagnosis's three questions may take: the poll loop waits for them, and must beat.
DIAGNOSIS_TIMEOUT_SECONDS = 2.0


class TopicWatch:
    """The topics of the routes, as they were last seen."""

    def __init__(self, kafka: config.Kafka, names: Collection[str]) -> None:
        self.admin = topics.make_admin(kafka)
        self._names = names
        self._inquiry: topics.Inquiry | None = None
        self._ask_at = 0.0
        #: When the first of the questions was asked that have had no answer since; None: the last one had one.
        self.waits_since: float | None = None
        self._missing: set[str] = set()
        self.known: dict[str, topics.TopicDescription] = {}

    def suspect(self) -> None:
        """Ask soon: something happened after which a topic may be another."""
        self._ask_at = min(self._ask_at, time.monotonic() + SUSPICION_SECONDS)

    def look(self) -> bool:
        """Ask when it is time, take an answer that has come; return whether there was a usable one."""
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
            answer = inquiry.result()
        except KbatchError as error:
            # Absence is waited for, and librdkafka tells of it; a refusal somebody has to mend.
            if isinstance(error, ServerUnavailable):
                log.debug("topics not described", extra={"action": "topic_watch", "error": str(error)})
            else:
                self.waits_since = None
                log.warning("topics not described", extra={"action": "topic_watch", "error": str(error)})
            self.suspect()
            return False
        self.waits_since = None
        self._take(answer)
        return True

    def diagnose(self, partition: Partition, next_offsets: Mapping[str, int], topic_id: str) -> dict[str, Gap]:
        """Ask the brokers which routes' offsets cannot be read, and why. Raises KbatchError without an answer."""
        description = topics.describe(self.admin, [partition.topic], DIAGNOSIS_TIMEOUT_SECONDS)[partition.topic]
        if description is None:
            message = f"topic {partition.topic} does not exist"
            raise KbatchError(message)
        low, high = topics.watermarks(self.admin, [partition], DIAGNOSIS_TIMEOUT_SECONDS)[partition]
        judged = {
            route: judge(partition, next_offset, topic_id, description.topic_id, low, high)
            for route, next_offset in next_offsets.items()
        }
        return {route: gap for route, gap in judged.items() if gap is not None}

    def _take(self, answer: dict[str, topics.TopicDescription | None]) -> None:
        for name, description in answer.items():
            if description is not None:
                self.known[name] = description
                self._missing.discard(name)
            elif name not in self._missing:
                self._missing.add(name)
                what = (
                    "topic is gone; `kbatchd create-topic` makes it anew, and `kbatchd progress accept` then lets its "
                    "partitions go on; or take its routes out of the file"
                )
                log.error(what, extra={"action": "topic_gone", "topic": name})


def judge(partition: Partition, next_offset: int, topic_id: str, current_id: str, low: int, high: int) -> Gap | None:
    """Compare progress with a topic's id, then with its watermarks: those of another topic would say nothing."""
    if topic_id != current_id:
        return Gap(partition, GapKind.RECREATED, next_offset, next_offset, low, current_id)
    if next_offset < low:
        return Gap(partition, GapKind.RETENTION, next_offset, low, low, current_id)
    if next_offset > high:
        return Gap(partition, GapKind.TRUNCATION, high, next_offset, high, current_id)
    return None
