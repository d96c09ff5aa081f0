"""What nobody foresaw: an exception that one record raised is that record's dead letter, with the code `internal`.

What works on a single record calls this from its `except Exception`: the row encoder in a poll loop, the sink
in its flusher's thread, the door in a gateway or a command. MemoryError is never a record's, and what is no Exception
passes too. It is a fault of kbatchd, so the log tells of it as an error: at most once a minute, with a count.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from traceback import walk_tb
from typing import Final

from kbatchd.model import Refusal

log = logging.getLogger(__name__)

#: The code of such a dead letter.
INTERNAL: Final = "internal"

#: How often the log tells of it.
TOLD_SECONDS: Final = 60.0

#: How much of an exception's own words is kept: they may quote the record.
_SHOWN_CHARACTERS: Final = 200

_PACKAGE: Final = str(Path(__file__).parent.parent)


class _Telling:
    """How many there were since the log told of them; several threads may find one at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._at: float | None = None
        self._count = 0

    def due(self) -> int:
        """Count one; return how many to tell of now, or 0."""
        with self._lock:
            self._count += 1
            now = time.monotonic()
            if self._at is not None and now - self._at < TOLD_SECONDS:
                return 0
            count, self._at, self._count = self._count, now, 0
            return count


_telling = _Telling()


def internal_refusal(error: Exception) -> Refusal:
    """Return the refusal of the record that has raised this, and tell of it."""
    tell(error)
    return Refusal(INTERNAL, None, describe(error))


def tell(error: Exception) -> None:
    """Log it, unless the log told of such a fault less than a minute ago."""
    count = _telling.due()
    if count:
        about = {"action": "internal", "count": count, "error": describe(error)}
        log.error("a fault of kbatchd: please report it", extra=about, exc_info=error)


def describe(error: Exception) -> str:
    """Name an exception and the place that raised it, in one line."""
    frames = [(frame.f_code, line) for frame, line in walk_tb(error.__traceback__)]
    ours = [each for each in frames if each[0].co_filename.startswith(_PACKAGE)] or frames
    place = ""
    if ours:
        code, line = ours[-1]
        place = f" at {Path(code.co_filename).name}:{line} in {code.co_name}"
    words = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
    return f"{type(error).__name__}{place}{words and f': {words}'}"
