"""How much a process holds of requests that are unfinished or not yet sent on, and of answers not yet read.

Each connection has limits of its own, but there are thousands. What comes in counts from the moment it is read until
its answer is written; beyond the bound a connection is told 503 (unavailable.py), and closed.

Counted on a gateway's event loop, and by the threads that unpack.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Self

from kbatchd.gateway import unavailable

if TYPE_CHECKING:
    from types import TracebackType

#: So much of a connection is never too much: small requests shall not be refused for others' large ones.
SMALL_BYTES = 4_096


class Memory:
    """Of one process."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self.held_bytes = 0

    def take(self, size: int) -> bool:
        """Count what is held from now on, and tell whether that is within the bound."""
        with self._lock:
            self.held_bytes += size
            return self.held_bytes <= self._limit_bytes

    def give(self, size: int) -> None:
        """Count what is not held any more."""
        with self._lock:
            self.held_bytes -= size


class Holding:
    """What one request takes beside what has been read of it; given back at the end of the block."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._held = 0

    def take(self, size: int) -> None:
        """Count it; raise the Problem that is the answer if that is too much."""
        self._held += size
        if not self._memory.take(size):
            raise unavailable.memory_full()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._memory.give(self._held)
