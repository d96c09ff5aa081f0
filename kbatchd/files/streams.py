"""The bytes of an input as they come, unpacked: a file or standard input, plain, gzip or zstd.

A whole file never is in memory, whatever it unpacks to. What is packed shows itself by its first bytes, not by its
name; only a name that promises gzip or zstd is held to it.

Used by `kbatchd produce`, in its main thread.
"""

from __future__ import annotations

import os
import select
import stat
import zlib
from typing import TYPE_CHECKING, Final, Protocol

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

#: How much is read, and unpacked, at a time: some hundred records, a few milliseconds' work.
CHUNK_BYTES: Final = 131_072

#: zstd takes its input in pieces so small that none unpacks to more than 32 MiB: 4 bytes can become a block of 128 KiB.
_ZSTD_FEED_BYTES: Final = 1_024
#: The window a frame may ask for: what `zstd --long` uses.
_ZSTD_WINDOW_BYTES: Final = 1 << 27

_GZIP_MAGIC, _ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
#: Of frames without content, RFC 8878: 0x184D2A50 to 0x184D2A5F.
_ZSTD_SKIPPABLE: Final = b"\x2a\x4d\x18"
_ZSTD_SKIPPABLE_HEAD: Final = 8
#: gzip's format, in zlib's numbers.
_GZIP_WINDOW: Final = 31

#: How often a wait for standard input looks whether it shall go on.
_WAIT_SECONDS: Final = 0.2


class Stop(Protocol):
    """Tells whether somebody wants the end."""

    def is_set(self) -> bool:
        """Look."""


class Stopped(Exception):
    """The wait for more input was ended."""


class Input:
    """One input: its name in messages, its size, how much of it was read."""

    def __init__(self, path: Path | None, stop: Stop) -> None:
        """Open a file, or with None standard input; ConfigError when that fails."""
        self.name = "standard input" if path is None else str(path)
        self._suffix = "" if path is None else path.suffix.lower()
        self._stop = stop
        self.read_bytes = 0
        try:
            self._fd = 0 if path is None else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            status = os.fstat(self._fd)
        except OSError as error:
            raise ConfigError(f"{self.name}: cannot be read: {error.strerror}") from error
        if stat.S_ISDIR(status.st_mode):
            self.close()
            raise ConfigError(f"{self.name}: is a directory; name its files")
        #: Whether it can be read again: not so a pipe.
        self.is_file = path is not None and stat.S_ISREG(status.st_mode)
        #: None where nobody knows.
        self.size_bytes = status.st_size if self.is_file else None
        #: Who may read and write it: what is copied from it is for nobody else.
        self.mode = status.st_mode & 0o666
        self.group = status.st_gid

    def close(self) -> None:
        """Close it; standard input stays open."""
        if self._fd > 0:
            os.close(self._fd)
            self._fd = -1

    def rewind(self) -> None:
        """Begin again at the file's beginning."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.read_bytes = 0

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes, unpacked; ConfigError when they are not what they seem."""
        first = self._read()
        while 0 < len(first) < len(_ZSTD_MAGIC) and (more := self._read()):  # a pipe gives what it likes
            first += more
        if first.startswith(_GZIP_MAGIC):
            yield from self._unpacked(_gunzip(first, self._read), "gzip")
        elif first.startswith(_ZSTD_MAGIC) or _is_skippable(first):
            yield from self._unpacked(_unzstd(first, self._read), "zstd")
        elif self._suffix in {".gz", ".zst"} and first:
            raise ConfigError(f"{self.name}: is damaged: it does not begin as a {self._suffix} does")
        else:
            while first:
                yield first
                first = self._read()

    def _unpacked(self, chunks: Iterator[bytes], kind: str) -> Iterator[bytes]:
        try:
            yield from chunks
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self.name}: {kind} needs the package {error.name}: pip install 'kbatchd[gateway]'"
            ) from error
        except _Damaged as error:
            raise ConfigError(f"{self.name}: is damaged, not a whole {kind}: {error}") from error

    def _read(self) -> bytes:
        """Read what is there, at most a chunk; wait for it where it is no file."""
        while not self.is_file and not select.select([self._fd], [], [], _WAIT_SECONDS)[0]:
            if self._stop.is_set():
                raise Stopped
        try:
            chunk = os.read(self._fd, CHUNK_BYTES)
        except OSError as error:
            raise ConfigError(f"{self.name}: cannot be read: {error.strerror}") from error
        self.read_bytes += len(chunk)
        return chunk


class _Damaged(ValueError):
    """What is packed cannot be unpacked."""


def _gunzip(packed: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    while packed:  # a gzip file may have several members
        member = zlib.decompressobj(_GZIP_WINDOW)
        while not member.eof:
            try:
                part = member.decompress(packed, CHUNK_BYTES)
            except zlib.error as error:
                raise _Damaged(str(error)) from error
            yield part
            packed = member.unconsumed_tail
            # A full part may have more behind it, with all its input taken in.
            if not packed and not member.eof and len(part) < CHUNK_BYTES and not (packed := read()):
                raise _Damaged("it ends too soon")
        packed = (member.unused_data or read()).lstrip(b"\0")  # padding, as tapes have it


def _is_skippable(packed: bytes) -> bool:
    """Tell whether a frame without content begins here: pzstd and others put sizes and seek tables into such."""
    return len(packed) >= len(_ZSTD_MAGIC) and packed[0] & 0xF0 == 0x50 and packed[1:4] == _ZSTD_SKIPPABLE  # noqa: PLR2004


def _behind_skippable(packed: bytes, read: Callable[[], bytes]) -> bytes:
    """Go over a skippable frame: its magic number, its length in four bytes, and so many bytes."""
    while len(packed) < _ZSTD_SKIPPABLE_HEAD and (more := read()):
        packed += more
    left = _ZSTD_SKIPPABLE_HEAD + int.from_bytes(packed[4:_ZSTD_SKIPPABLE_HEAD], "little")
    while len(packed) < left:
        left -= len(packed)
        packed = read()
        if not packed:
            raise _Damaged("it ends too soon")
    return packed[left:] or read()


def _unzstd(packed: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    import zstandard  # noqa: PLC0415 - only with the extra

    unpack = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    while packed:
        while len(packed) < len(_ZSTD_MAGIC) and (more := read()):
            packed += more
        if _is_skippable(packed):
            packed = _behind_skippable(packed, read)
            continue
        frame = unpack.decompressobj()
        while not frame.eof:
            if not packed:
                raise _Damaged("it ends too soon")
            parts, size, at = [], 0, 0
            try:
                while at < len(packed) and size < CHUNK_BYTES and not frame.eof:
                    parts.append(frame.decompress(packed[at : at + _ZSTD_FEED_BYTES]))
                    size += len(parts[-1])
                    at += _ZSTD_FEED_BYTES
            except zstandard.ZstdError as error:
                raise _Damaged(str(error)) from error
            yield b"".join(parts)
            packed = (frame.unused_data if frame.eof else b"") + packed[at:] or read()
