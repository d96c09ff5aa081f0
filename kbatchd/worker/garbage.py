"""Python's garbage collector, which is off in the poll loop, and runs once a minute.

It triples the cost of decoding, and finds nothing in this loop: its objects have no cycles, those of errors may. Called
by the worker's poll loop, in its main thread.
"""

from __future__ import annotations

import gc
import time

#: How often it runs; that takes some milliseconds.
COLLECT_SECONDS = 60.0


class Garbage:
    """What errors may have left in cycles. Turns the collector off when it is made."""

    def __init__(self) -> None:
        gc.collect()
        gc.freeze()
        gc.disable()
        self._collect_at = time.monotonic() + COLLECT_SECONDS

    def collect_if_due(self) -> None:
        """Collect when the time has come."""
        if time.monotonic() >= self._collect_at:
            self._collect_at = time.monotonic() + COLLECT_SECONDS
            gc.collect()
