"""Folding: a warning or an error that repeats is one line in ten seconds, with the number of those left out.

A filter of the log's handler in each child process. The process calls `tell_repeats` about once a second, from its main
loop, so that the last count comes out also when the trouble is over.
"""

from __future__ import annotations

import logging
import threading
import time
from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: How often the same trouble is told.
SECONDS = 10.0

#: What good news ends, by its action: what was held back of that is not told after it.
_ENDS = {
    "kafka_back": {"kafka_error", "kafka_silent", "consumer_error", "diagnose"},
    "kafka_up": {"kafka_down"},
    "postgres_back": {"postgres_wait", "postgres_lost", "postgres_away"},
}

#: What else tells one trouble from another, beside its message.
_ABOUT = ("action", "route", "topic")
_ACTION = 2  # of a trouble's key: behind the logger's name and the message


@dataclass(slots=True)
class _Told:
    """A trouble: when it was told last, and what has come since."""

    at: float
    count: int = 0
    last: logging.LogRecord | None = None


class Folding(logging.Filter):
    """Lets the first of equal records through, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[object, ...], _Told] = {}
        #: Several threads log, and one asks for what is left; both may find at once that ten seconds are over.
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether to write it now; a field `repeated` counts those like it that were not written before it.

        Good news is always written, with the count of what it ends.
        """
        ends = _ENDS.get(getattr(record, "action", ""))
        if ends is not None:
            self._end(record, ends)
            return True
        if record.levelno < logging.WARNING:
            return True
        key = (record.name, record.getMessage(), *(getattr(record, name, None) for name in _ABOUT))
        with self._lock:
            told = self._told.get(key)
            if told is not None and time.monotonic() - told.at < SECONDS:
                told.count += 1
                told.last = record
                return False
            if told is not None and told.count:
                record.repeated = told.count
            self._told[key] = _Told(time.monotonic())
            return True

    def _end(self, record: logging.LogRecord, ends: set[str]) -> None:
        """Forget the troubles that are over."""
        with self._lock:
            over = [key for key in self._told if key[_ACTION] in ends]
            held_back = sum(self._told.pop(key).count for key in over)
        if held_back:
            record.repeated = held_back

    def tell_repeats(self, write: Callable[[logging.LogRecord], object]) -> None:
        """Write the last record of each trouble that was told long enough ago, and forget what is over.

        Their time is now, so that the log is in order; `seconds_ago` tells how old they are. All of it under the lock:
        another thread's good news, which ends such a trouble, waits, and stands behind it.
        """
        with self._lock:
            for key, told in list(self._told.items()):
                if time.monotonic() - told.at < SECONDS:
                    continue
                if told.last is None:
                    del self._told[key]
                    continue
                write(_as_of_now(told.last, told.count))
                self._told[key] = _Told(time.monotonic())


def _as_of_now(record: logging.LogRecord, repeated: int) -> logging.LogRecord:
    """Return a copy, since another handler may have the record too."""
    late, now = copy(record), time.time()
    vars(late).update(created=now, repeated=repeated, seconds_ago=round(now - record.created, 1))
    return late
