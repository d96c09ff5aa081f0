"""The last warnings and errors of each process, in shared memory, for those who look at the daemon and not at its log.

A ring of a few lines a process, written by its own log handler and read by the monitor; it outlives the process, so it
tells why a worker died. A reader that meets a half-written line leaves it out.
"""

from __future__ import annotations

import logging
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Lines of each process, and what a line takes: version (odd while it is written), time, level, length, text.
NOTES = 8
_NOTE_BYTES = 512
_HEAD = struct.Struct("=QQII")
NOTES_BYTES = NOTES * _NOTE_BYTES


class Note(NamedTuple):
    """A line of the log."""

    at: float
    level: str
    role: str
    text: str


class Notes:
    """One process's ring."""

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory.cast("B")

    def write(self, level: int, role: str, text: str) -> None:
        """Put a line where the oldest is."""
        versions = [_HEAD.unpack_from(self._memory, index * _NOTE_BYTES)[0] for index in range(NOTES)]
        index, version = versions.index(min(versions)), max(versions) // 2 * 2
        line = f"{role}\n{text}".encode()[: _NOTE_BYTES - _HEAD.size]
        start = index * _NOTE_BYTES
        _HEAD.pack_into(self._memory, start, version + 1, time.time_ns(), level, len(line))
        self._memory[start + _HEAD.size : start + _HEAD.size + len(line)] = line
        _HEAD.pack_into(self._memory, start, version + 2, time.time_ns(), level, len(line))

    def read(self) -> list[Note]:
        """Return the lines, oldest first."""
        return sorted(self._whole())

    def _whole(self) -> Iterator[Note]:
        for start in range(0, NOTES_BYTES, _NOTE_BYTES):
            copy = bytes(self._memory[start : start + _NOTE_BYTES])
            version, at_ns, level, length = _HEAD.unpack_from(copy)
            if version and version % 2 == 0 and version == _HEAD.unpack_from(self._memory, start)[0]:
                role, _, text = copy[_HEAD.size : _HEAD.size + length].decode(errors="replace").partition("\n")
                yield Note(at_ns / 1e9, logging.getLevelName(level).lower(), role, text)


class NotesHandler(logging.Handler):
    """Keeps warnings and errors of kbatchd's own."""

    def __init__(self, notes: Notes, role: str) -> None:
        super().__init__(logging.WARNING)
        self._notes = notes
        self._role = role

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message and what is known of it."""
        extra = {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES}
        extra.pop("action", None)
        about = ", ".join(f"{name} {value}" for name, value in extra.items())
        failure = f": {record.exc_info[1]!r}" if record.exc_info and record.exc_info[1] else ""
        text = " ".join(f"{record.getMessage()}{failure}{': ' * bool(about)}{about}".split())
        self._notes.write(record.levelno, self._role, text)


_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def keep(notes: Notes, role: str) -> None:
    """Keep this process's warnings from now on there, and no longer where its parent's go."""
    logger = logging.getLogger("kbatchd")
    logger.handlers[:] = [handler for handler in logger.handlers if not isinstance(handler, NotesHandler)]
    logger.addHandler(NotesHandler(notes, role))
