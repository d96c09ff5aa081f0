"""What a broker sends and nobody can read: a checksum that is wrong, a compression that does not open.

A single answer may have been damaged on the way, so the partition is read again at once. What is damaged on the
broker's disk is so again; it is tried ever later then, and the log says what can be done. The worker's poll loop calls
this, in its main thread.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbatchd.model import Partition, Position

log = logging.getLogger(__name__)

#: The longest a partition stands still before it is tried again: an assignment throws away what was fetched of its
#: topic's other partitions.
PAUSE_SECONDS = 30.0


class Retry(NamedTuple):
    """Where a partition cannot be read on, and when it is tried again."""

    offset: int
    #: How often it was tried, and when to try again.
    tries: int
    until: float


class Unreadable:
    """The partitions that have something unreadable."""

    def __init__(self) -> None:
        self._retries: dict[Partition, Retry] = {}

    def is_due(self, partition: Partition) -> bool:
        """Tell whether the partition may be tried again, as any may that was never unreadable."""
        retry = self._retries.get(partition)
        return retry is None or retry.until <= time.monotonic()

    def note(self, partition: Partition, positions: Mapping[str, Position], error: str) -> None:
        """Take what the client said of a partition, which these routes have read up to there; tell of it."""
        offset = min((position.next_offset for position in positions.values()), default=-1)
        before = self._retries.get(partition)
        tries = before.tries + 1 if before is not None and before.offset == offset else 1
        pause_seconds = min(2.0 ** (tries - 1) - 1, PAUSE_SECONDS)
        self._retries[partition] = Retry(offset, tries, time.monotonic() + pause_seconds)
        if tries == 1:
            what = f"what came of {partition} at offset {offset} cannot be read; it is read again"
            log.warning(what, extra={"action": "unreadable", "error": error})
            return
        for route, position in positions.items():
            what = (
                f"{partition} stands still at offset {position.next_offset}: what the broker has there cannot be read; "
                "if another replica has it whole, let that one lead; to leave it out, move the partition behind it: "
                f"`kbatchd progress set {route} {partition.number} OFFSET`"
            )
            log.error(what, extra={"action": "unreadable", "route": route, "error": error})
