"""Where log lines go: standard error, which may be a pipe or a socket that nobody reads any more.

A process that logs there would stand still for good: a worker, and the supervisor, which then hears no SIGTERM. So
nothing here waits for a reader longer than WAIT_SECONDS, once for each time that it falls behind: what does not fit is
dropped, and counted by the caller. Used by the log's handler, in whatever thread logs, under the handler's lock.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

#: How long a reader that has kept up so far may take to make room: a pipe holds 64 kB, a burst may be more.
WAIT_SECONDS = 0.05


class Outlet:
    """A file descriptor that is written to without waiting, as far as it lets us."""

    def __init__(self, descriptor: int) -> None:
        """Prepare; what the descriptor's other owners see of it stays as it is, where that can be."""
        self._descriptor, self._send, self.close = _open(descriptor)
        #: The last part of a line of which the first was taken.
        self._rest = b""
        #: There was no room the last time, nor within WAIT_SECONDS.
        self._stalled = False

    def write(self, line: bytes) -> bool:
        """Write a line; False where there was no room, and nothing of it was written."""
        if self._rest:
            self._rest = self._rest[self._put(self._rest) :]
            if self._rest:
                return False
        taken = self._put(line)
        self._rest = line[taken:] if taken else b""
        return taken > 0

    def _put(self, data: bytes) -> int:
        """Write as much as there is room for; return how much that was."""
        taken = self._try(data)
        if taken < len(data) and not self._stalled:
            poll = select.poll()
            poll.register(self._descriptor, select.POLLOUT)
            poll.poll(WAIT_SECONDS * 1_000)
            taken += self._try(data[taken:])
        self._stalled = taken < len(data)
        return taken

    def _try(self, data: bytes) -> int:
        try:
            return self._send(data)
        except OSError:  # no room; or a full disk, or a reader that is gone: dropped as well
            return 0


def _open(descriptor: int) -> tuple[int, Callable[[bytes], int], Callable[[], None]]:
    """Return what to wait for, how to write to it without waiting, and how to give it back."""
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISSOCK(kind):  # the journal
        end = socket.socket(fileno=os.dup(descriptor))
        return end.fileno(), lambda data: end.send(data, socket.MSG_DONTWAIT), end.close
    if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
        # Opened again, it is ours alone: O_NONBLOCK on the one we were given would be for the shell, too, that gave it.
        try:
            opened = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # made by another user, as containers' are; or nobody reads it
            if stat.S_ISFIFO(kind):
                os.set_blocking(descriptor, False)
        else:
            return opened, lambda data: os.write(opened, data), lambda: os.close(opened)
    return descriptor, lambda data: os.write(descriptor, data), lambda: None
