"""How fast records are sent, where somebody has asked for a rate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import threading

#: Records that are checked and sent at a time; fewer where a rate is to be kept.
PIECE_RECORDS: Final = 2_000
#: With a rate, a piece holds what is due in this time.
_RATE_SECONDS: Final = 0.2


class Pace:
    """Keeps a rate, in records a second."""

    def __init__(self, rate: float | None, stop: threading.Event) -> None:
        self._rate = rate
        self._stop = stop
        self._due_at = time.monotonic()
        #: How many records a piece may hold.
        self.piece_records = PIECE_RECORDS
        if rate is not None:
            self.piece_records = max(1, min(PIECE_RECORDS, int(rate * _RATE_SECONDS)))

    def delay_seconds(self) -> float:
        """Return how long the next records must wait."""
        return 0.0 if self._rate is None else self._due_at - time.monotonic()

    def wait(self) -> None:
        """Wait so long, or until somebody wants the end."""
        delay = self.delay_seconds()
        if delay > 0:
            self._stop.wait(delay)

    def count(self, records: int) -> None:
        """Note that so many records are on their way. What is late stays late: no burst makes up for it."""
        if self._rate is not None:
            self._due_at = max(self._due_at, time.monotonic() - _RATE_SECONDS) + records / self._rate
