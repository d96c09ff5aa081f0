"""The failed file: what was not sent, record by record, with the line and the reason, as NDJSON.

One object a record: file, line, record (its number in the file), code, column, reason, and value, the record as it
stands in the file (null where it is larger than is sent). Written before the transaction that goes past these
records is committed, and after a crash cut back to where the file is taken up again: so each stands there once. A file
that is there already is never overwritten, unless everything is sent again.

Used by `kbatchd produce`, in its main thread.
"""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kbatchd.model import Refusal

SUFFIX: Final = ".failed"


class Failure(NamedTuple):
    """One record that is not sent."""

    line: int
    record: int
    refusal: Refusal
    value: bytes | None


class FailedFile:
    """Where the failed records of a run go; it is made when the first one fails."""

    def __init__(self, path: Path, *, append: bool, replace: bool = False) -> None:
        """Refuse a file that holds something, unless it is to be appended to, or replaced."""
        self.path = path
        self._fd: int | None = None
        self._mode = 0
        self._append = append
        try:
            if replace:
                path.unlink(missing_ok=True)
            elif not append and path.exists():
                raise ConfigError(f"{path}: is there already; move it away, or name another file with --failed")
        except OSError as error:
            raise self._unusable(error) from error

    def cut_back(self, name: str, records: int) -> None:
        """Drop what a crash has left of one input: failures behind its first `records`, and half a line."""
        try:
            with self.path.open("rb") as file:
                if all(_stays(line, name, records) for line in file):
                    return
                file.seek(0)
                self._rewrite(line for line in file if _stays(line, name, records))
        except FileNotFoundError:
            return
        except (orjson.JSONDecodeError, LookupError, TypeError) as error:
            raise ConfigError(f"{self.path}: is not a file of failed records; nothing was changed in it") from error
        except OSError as error:
            raise self._unusable(error) from error

    def write(self, name: str, failures: Iterable[Failure], mode: int, group: int | None = None) -> None:
        """Add failures; when this returns, they are on the disk. `mode` is the input's: nobody else may read them.

        So `group` is, of which the mode speaks; None: nobody but us has the input.
        """
        text = b"".join(_line(name, failure) for failure in failures)
        try:
            if self._fd is None:
                how = os.O_APPEND if self._append else os.O_EXCL
                self._fd = self._open(how, mode, group)
            else:
                mode = _of_group(self._fd, mode, group)
                if self._mode & ~mode:  # of several inputs the strictest counts
                    self._restrict(self._fd, mode)
            while text:
                text = text[os.write(self._fd, text) :]
            os.fsync(self._fd)
        except OSError as error:
            raise self._unusable(error) from error

    def _open(self, how: int, mode: int, group: int | None) -> int:
        is_new = not self.path.exists()
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | how, 0o600)
        if is_new and group is not None:
            with suppress(PermissionError):  # we are none of it
                os.fchown(fd, -1, group)
        mode = _of_group(fd, mode, group)
        if is_new:
            os.fchmod(fd, mode)  # whatever the umask says: those who may read the input may read what failed of it
            self._mode = mode
        else:
            self._mode = stat.S_IMODE(os.fstat(fd).st_mode)
            self._restrict(fd, mode)
        return fd

    def _restrict(self, fd: int, mode: int) -> None:
        self._mode &= mode
        os.fchmod(fd, self._mode)

    def close(self) -> None:
        """Close it, if it was opened."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _rewrite(self, lines: Iterable[bytes]) -> None:
        """Replace the file as a whole: a crash in between leaves the old one."""
        mode = self.path.stat().st_mode
        fd, draft = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.writelines(lines)
            file.flush()
            os.fsync(fd)
        Path(draft).replace(self.path)

    def _unusable(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self.path}: cannot be written: {error.strerror}; name another file with --failed")


def _of_group(fd: int, mode: int, group: int | None) -> int:
    """Return what a file may have of the input's mode: its group, if it is another, no more than everybody."""
    if group == os.fstat(fd).st_gid:
        return mode
    return mode & ~stat.S_IRWXG | (mode & stat.S_IRWXO) << 3


def _line(name: str, failure: Failure) -> bytes:
    return orjson.dumps(
        {
            "file": name,
            "line": failure.line,
            "record": failure.record,
            "code": failure.refusal.code,
            "column": failure.refusal.column,
            "reason": failure.refusal.message,
            "value": None if failure.value is None else failure.value.decode(errors="backslashreplace"),
        },
        option=orjson.OPT_APPEND_NEWLINE,
    )


def _stays(line: bytes, name: str, records: int) -> bool:
    if not line.endswith(b"\n"):
        return False
    entry = orjson.loads(line)
    return bool(entry["file"] != name or entry["record"] <= records)
