"""Partitions that end below their progress: they are looked into when that lasts, for it is so after an election too.

Reading begins behind the last record: that markers behind it are gone librdkafka does not tell. Called by the worker's
poll loop, in its main thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kbatchd.model import Partition

#: So long it may be: a new leader knows a moment later what the old one had promised.
SHORT_SECONDS = 5.0


class TooShort:
    """Those of one worker, and since when."""

    def __init__(self, is_beyond: Callable[[Partition, int], bool]) -> None:
        self._is_beyond = is_beyond
        self._since: dict[Partition, float] = {}

    def look(self, ends: Mapping[Partition, int]) -> set[Partition]:
        """Take note of where partitions have ended; return those that have been too short for a while."""
        now = time.monotonic()
        for partition, end in ends.items():
            if self._is_beyond(partition, end):
                self._since.setdefault(partition, now)
            else:
                self._since.pop(partition, None)
        due = {partition for partition, since in self._since.items() if now - since > SHORT_SECONDS}
        for partition in due:
            del self._since[partition]
        return due
