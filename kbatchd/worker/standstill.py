"""The look at a consumer that fetches nothing any more, though its topic grows.

librdkafka repairs its connections, nearly always. Once, after an outage of all brokers, a consumer of version 2.16
waited for good for an answer that nobody owed it. It tells nobody, so the brokers are asked: a consumer that for long
knows less of a partition's end than they do, while nothing of it comes, does not fetch. The worker's poll loop calls
this each turn, in its main thread; it never waits for an answer.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.kafka.offsets import Offset, OffsetsInquiry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kbatchd.kafka.topics import Admin
    from kbatchd.model import Partition

#: How often the brokers are asked for the partitions' ends.
INTERVAL_SECONDS = 10.0

#: How long an answer may take: less than a pause.
TIMEOUT_SECONDS = 5.0

#: After how many such answers in a row a partition stands still: 30 s after the first. A healthy consumer hears of a
#: new end with its next fetch, within half a second; after an outage it is connected again within a second. Not a time:
#: a process that was stopped for a minute has missed nothing.
ANSWERS = 4


class Doubt(NamedTuple):
    """A partition seems to stand still: what the first of some answers in a row said of it, and how many there were."""

    reached: int
    end: int
    answers: int


class Standstill:
    """The partitions in doubt."""

    def __init__(self, admin: Admin) -> None:
        self._admin = admin
        self._inquiry: OffsetsInquiry | None = None
        self._ask_at = time.monotonic() + INTERVAL_SECONDS
        self._doubts: dict[Partition, Doubt] = {}

    def look(
        self, reached: Callable[[], Mapping[Partition, int]], known_end: Callable[[Partition], Offset | None]
    ) -> list[Partition]:
        """Ask when it is time, judge by an answer that has come; return the partitions that stand still.

        `reached` gives the offset that is wanted next of each partition that is being read; `known_end` the end that
        the consumer has last heard of in answer to a fetch; None if it never has.
        """
        if self._inquiry is None:
            if time.monotonic() >= self._ask_at:
                self._ask_at = time.monotonic() + INTERVAL_SECONDS
                self._inquiry = OffsetsInquiry(self._admin, reached(), "latest", TIMEOUT_SECONDS)
            return []
        if not self._inquiry.done():
            return []
        inquiry, self._inquiry = self._inquiry, None
        self._doubts = judge(self._doubts, inquiry.answers().known, reached(), known_end)
        return [partition for partition, doubt in self._doubts.items() if doubt.answers >= ANSWERS]


def judge(
    doubts: Mapping[Partition, Doubt],
    ends: Mapping[Partition, int],
    reached: Mapping[Partition, int],
    known_end: Callable[[Partition], Offset | None],
) -> dict[Partition, Doubt]:
    """Return what is in doubt after one more answer. Of a partition that it is silent about nothing is known."""
    after = {}
    for partition, offset in reached.items():
        end = ends.get(partition, offset)
        doubt = doubts.get(partition)
        if doubt is None or doubt.reached != offset:
            doubt = Doubt(offset, end, 0)
        # Not the end of now: a busy topic has always grown since the last fetch. Nor one that was cut off since.
        known = known_end(partition)
        if offset < end and (known is None or known < min(doubt.end, end)):
            after[partition] = doubt._replace(answers=doubt.answers + 1)
    return after
