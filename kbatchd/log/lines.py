"""Logging: stdlib loggers, one line an event on standard error: `message key=value ...`, or a JSON object.

The message is a constant, so that it can be searched for; what varies goes into `extra`, with an `action` first:

    logger.warning("connection lost", extra={"action": "reconnect", "route": "requests", "error": str(error)})

    DEBUG     one line a batch; never one a record
    INFO      the daemon's life: started, claimed, stopped
    WARNING   something failed and was recovered from; nothing is lost
    ERROR     something is lost or stands still, or somebody is needed

The command line calls `setup()` first of all, and each child calls it again after the fork with its own role, then
`fold()`: what repeats is one line in ten seconds.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import Literal

from kbatchd.log.folding import Folding
from kbatchd.log.outlet import Outlet
from kbatchd.printable import printable
from kbatchd.systemd import stderr_is_journal

#: journald's priorities, sd-daemon(3).
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

#: What every record has; the rest came by `extra`. `message`, `asctime` and `taskName` are set late or since 3.12.
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(level: str, role: str, form: Literal["text", "json"] = "text") -> None:
    """Log to standard error from now on, in the name of `role` ("supervisor", "worker 0").

    `level` is for kbatchd itself; of the libraries only warnings are shown.
    """
    stderr = _handler()
    formatter = JsonFormatter if form == "json" else LineFormatter
    stderr.setFormatter(formatter(role, journal=stderr_is_journal()))
    root = logging.getLogger()
    for former in root.handlers:
        if isinstance(former, OutletHandler):
            former.close()
    root.handlers[:] = [stderr]
    root.setLevel(logging.WARNING)
    logging.getLogger("kbatchd").setLevel(level.upper())


def _handler() -> logging.Handler:
    try:
        descriptor = sys.stderr.fileno()
    except (AttributeError, OSError, ValueError):  # there is none, or it is no file
        return logging.StreamHandler(sys.stderr)
    return OutletHandler(Outlet(descriptor), sys.stderr.encoding)


class OutletHandler(logging.Handler):
    """Writes lines to standard error, and tells how many there was no room for, as soon as there is."""

    def __init__(self, outlet: Outlet, encoding: str) -> None:
        super().__init__()
        self._outlet = outlet
        self._encoding = encoding
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it."""
        try:
            if not (self.catch_up() and self._write(record)):
                self._dropped += 1
        except Exception:  # noqa: BLE001 - a record that cannot be formatted, as other handlers do
            self.handleError(record)

    def close(self) -> None:
        """Give back what was opened for it."""
        super().close()
        self._outlet.close()
        self._outlet.close = lambda: None

    def catch_up(self) -> bool:
        """Tell how many lines were dropped, if any; return whether there is room again."""
        if not self._dropped:
            return True
        message = "lines of the log were dropped: nobody has read standard error"
        about = {"action": "log_dropped", "count": self._dropped}
        record = logging.makeLogRecord({"name": __name__, "levelno": logging.WARNING, "levelname": "WARNING"})
        vars(record).update(msg=message, **about)
        if self._write(record):
            self._dropped = 0
        return not self._dropped

    def _write(self, record: logging.LogRecord) -> bool:
        return self._outlet.write(f"{self.format(record)}\n".encode(self._encoding, "backslashreplace"))


def fold() -> None:
    """Write warnings and errors that repeat only now and then, with their number; for children, after `setup`."""
    for handler in _handlers():
        handler.addFilter(Folding())


def tell_repeats() -> None:
    """Write what was folded and is not written yet, when it is time; for the main loop, about once a second."""
    for handler in _handlers():
        if isinstance(handler, OutletHandler):
            with handler.lock or nullcontext():
                handler.catch_up()
        for folding in handler.filters:
            if isinstance(folding, Folding):
                folding.tell_repeats(partial(_emit, handler))


def _emit(handler: logging.Handler, record: logging.LogRecord) -> None:
    with handler.lock or nullcontext():
        handler.emit(record)


def _handlers() -> list[logging.Handler]:
    return [*logging.getLogger().handlers, *logging.getLogger("kbatchd").handlers]


def complain(lines: Iterable[str]) -> None:
    """Write a command's faults to standard error, a line each: for people, so without time and keys.

    Where it cannot be written to (a full disk, a pipe that nobody reads any more), the exit code must say enough.
    """
    mark = f"<{_PRIORITIES[logging.ERROR]}>" if stderr_is_journal() else ""
    try:
        for line in lines:
            print(f"{mark}kbatchd: {printable(line)}", file=sys.stderr, flush=True)
    except OSError:
        # Else Python would try again at its end, and its own exit code would be what counts.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class LineFormatter(logging.Formatter):
    """Render a record, with its traceback, as exactly one line."""

    def __init__(self, role: str, *, journal: bool) -> None:
        """Write for the journal, which stamps the time itself, or for a terminal or file."""
        super().__init__()
        self._role = role
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Write what stands first (priority, or time and level), the role, the message and the fields."""
        first = _priority(record) if self._journal else f"{_time(record)} {record.levelname} "
        pairs = "".join(f" {name}={_value(value)}" for name, value in self._fields(record).items())
        return f"{first}{self._role}: {_one_line(record.getMessage())}{pairs}"

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        fields = {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return fields


class JsonFormatter(LineFormatter):
    """Render a record as one JSON object; in the journal, its priority before it, which journald takes off."""

    def format(self, record: logging.LogRecord) -> str:
        """Write time, level, role and message, then the fields, numbers and booleans as such."""
        line: dict[str, object] = {"time": _time(record), "level": record.levelname.lower(), "role": self._role}
        line |= {"message": record.getMessage(), **self._fields(record)}
        return (_priority(record) if self._journal else "") + json.dumps(line, default=str)


def _priority(record: logging.LogRecord) -> str:
    return f"<{_PRIORITIES.get(record.levelno, 6)}>"


def _time(record: logging.LogRecord) -> str:
    at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
    return f"{at.removesuffix('+00:00')}Z"


def _value(value: object) -> str:
    """Write a value so that a space, a quote or a newline in it cannot be taken for the end of it."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = str(value)
    if text and text.isprintable() and not any(mark in text for mark in ' "=\\'):
        return text
    # Escaped where a character might break the line (U+2028 too), readable where none can.
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _one_line(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)[1:-1]
