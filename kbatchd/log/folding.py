"""Folding: a warning or an error that repeats is one line in ten seconds, with the number of those left out.

A filter of the log's handler in each child process. The process calls `tell_repeats` about once a second, from its main
loop, so that the last count comes out also when the trouble is over. What is told late is still true: nothing of a
trouble comes after the news of its end, and no such news after the trouble has begun again.
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

#: The troubles that good news ends, by its action. A server that comes and goes repeats both.
_ENDS = {
    "kafka_back": {"kafka_error", "kafka_silent", "consumer_error", "diagnose"},
    "kafka_up": {"kafka_down"},
    "kafka_token_back": {"kafka_token"},
    "postgres_back": {"postgres_wait", "postgres_lost", "postgres_away"},
}
#: What is no longer true when one of these is: it is not told after it.
_OVERTAKES = _ENDS | {trouble: {news} for news, troubles in _ENDS.items() for trouble in troubles}

#: What else tells one trouble from another, beside its message.
_ABOUT = ("action", "route", "topic")
_ACTION = 2  # of a trouble's key: behind the logger's name and the message


@dataclass(slots=True)
class _Told:
    """A trouble, or the news of its end: when it was told last, and what has come since."""

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
        """Tell whether to write it now; a field `repeated` counts the lines that were left out before it.

        Those are the ones like it, and those that it overtakes.
        """
        overtakes = _OVERTAKES.get(getattr(record, "action", ""), set())
        if record.levelno < logging.WARNING and not overtakes:
            return True
        key = (record.name, record.getMessage(), *(getattr(record, name, None) for name in _ABOUT))
        with self._lock:
            left_out = self._overtake(overtakes)
            told = self._told.get(key)
            if told is not None and time.monotonic() - told.at < SECONDS:
                told.count += left_out + 1
                told.last = record
                return False
            if told is not None:
                left_out += told.count
            if left_out:
                record.repeated = left_out
            self._told[key] = _Told(time.monotonic())
            return True

    def _overtake(self, actions: set[str]) -> int:
        """Drop what was held back of these, which still are told once in ten seconds only; return how many lines."""
        left_out = 0
        for key, told in self._told.items():
            if key[_ACTION] in actions:
                left_out += told.count
                told.count, told.last = 0, None
        return left_out

    def tell_repeats(self, write: Callable[[logging.LogRecord], object]) -> None:
        """Write the last record of what was told long enough ago, and forget what did not come again.

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
