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

#: How often the same trouble is told.
SECONDS = 10.0

#: What else tells one trouble from another, beside its message.
_ABOUT = ("action", "route", "topic")


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
        """Tell whether to write it now; a field `repeated` counts those like it that were not written before it."""
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

    def take_repeats(self) -> list[logging.LogRecord]:
        """Return the last record of each trouble that was told long enough ago, and forget what is over.

        Their time is now, so that the log is in order; `seconds_ago` tells how old they are.
        """
        repeats = []
        with self._lock:
            for key, told in list(self._told.items()):
                if time.monotonic() - told.at < SECONDS:
                    continue
                if told.last is None:
                    del self._told[key]
                    continue
                repeats.append(_as_of_now(told.last, told.count))
                self._told[key] = _Told(time.monotonic())
        return repeats


def _as_of_now(record: logging.LogRecord, repeated: int) -> logging.LogRecord:
    """Return a copy, since another handler may have the record too."""
    late, now = copy(record), time.time()
    vars(late).update(created=now, repeated=repeated, seconds_ago=round(now - record.created, 1))
    return late
