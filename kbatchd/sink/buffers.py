"""The buffers that batches are filled in: one pool a worker, so that many routes do not multiply memory.

Called under the worker's own lock; pure.
"""

from __future__ import annotations

#: Batches a route may have at once: the one that fills and the one that is being copied.
BATCHES_PER_ROUTE = 2


class BufferPool:
    """The batch buffers of one worker: allocated once each, when first wanted, and lent to batches."""

    def __init__(self, total_bytes: int, buffer_bytes: int) -> None:
        self._free: list[bytearray] = []
        #: A bytearray is written when it is made: the eight of the default pool took 64 MB, and one route needs two.
        self._unmade = max(BATCHES_PER_ROUTE, total_bytes // buffer_bytes)
        self.buffer_bytes = buffer_bytes
        self._buffers = self._unmade
        #: A route asked for a buffer in vain: the flusher then flushes the oldest open batch early.
        self.starved = False

    @property
    def used_bytes(self) -> int:
        """The buffers that are lent, in bytes; those made for a single large record are not the pool's."""
        return (self._buffers - self._unmade - len(self._free)) * self.buffer_bytes

    @property
    def total_bytes(self) -> int:
        """All buffers there may be, in bytes."""
        return self._buffers * self.buffer_bytes

    @property
    def has_free(self) -> bool:
        """Whether there is a buffer to lend."""
        return bool(self._free) or self._unmade > 0

    def acquire(self) -> bytearray | None:
        """Lend a buffer, or return None and remember that one is wanted."""
        if self._free:
            return self._free.pop()
        if self._unmade:
            self._unmade -= 1
            return bytearray(self.buffer_bytes)
        self.starved = True
        return None

    def release(self, buffer: bytearray | None) -> None:
        """Take a buffer back; one made for a single large record is dropped."""
        if buffer is not None and len(buffer) == self.buffer_bytes:
            self._free.append(buffer)
            self.starved = False
