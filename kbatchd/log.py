"""Logging: stdlib loggers, one line an event on standard error, `message key=value ...`.

The message is a constant, so that it can be searched for; what varies goes into `extra`, with an `action` first:

    logger.warning("connection lost", extra={"action": "reconnect", "route": "requests", "error": str(error)})

    DEBUG     one line a batch; never one a record
    INFO      the daemon's life: started, claimed, stopped
    WARNING   something failed and was recovered from; nothing is lost
    ERROR     something is lost or stands still, or somebody is needed

The command line calls `setup()` first of all, and each worker calls it again after the fork with its own role.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from kbatchd.systemd import stderr_is_journal

#: journald's priorities, sd-daemon(3).
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}

#: What every record has; the rest came by `extra`. `message`, `asctime` and `taskName` are set late or since 3.12.
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def setup(level: str, role: str) -> None:
    """Log to standard error from now on, in the name of `role` ("supervisor", "worker 0").

    `level` is for kbatchd itself; of the libraries only warnings are shown.
    """
    stderr = logging.StreamHandler(sys.stderr)
    stderr.setFormatter(LineFormatter(role, journal=stderr_is_journal()))
    root = logging.getLogger()
    root.handlers[:] = [stderr]
    root.setLevel(logging.WARNING)
    logging.getLogger("kbatchd").setLevel(level.upper())


class LineFormatter(logging.Formatter):
    """Render a record, with its traceback, as exactly one line."""

    def __init__(self, role: str, *, journal: bool) -> None:
        """Write for the journal, which stamps the time itself, or for a terminal or file."""
        super().__init__()
        self._role = role
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Write what stands first (priority, or time and level), the role, the message and the fields."""
        if self._journal:
            first = f"<{_PRIORITIES.get(record.levelno, 6)}>"
        else:
            at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            first = f"{at.removesuffix('+00:00')}Z {record.levelname} "
        fields = {name: value for name, value in vars(record).items() if name not in _OWN_ATTRIBUTES}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        pairs = "".join(f" {name}={_value(value)}" for name, value in fields.items())
        return f"{first}{self._role}: {_one_line(record.getMessage())}{pairs}"


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
