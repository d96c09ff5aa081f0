"""What systemd wants to hear, over its datagram socket: READY, STATUS, RELOADING, WATCHDOG, STOPPING.

The protocol of sd_notify(3) in plain sockets, so that libsystemd is no dependency. Called by the supervisor, the main
process, alone: the unit has NotifyAccess=main. Everything here does nothing when the process was not started by
systemd, and a message that cannot be sent never stops the daemon.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time


def notify(**fields: str | int) -> None:
    """Send fields as one message: `notify(READY=1, STATUS="2 workers")`."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    message = "\n".join(f"{name}={' '.join(str(value).splitlines())}" for name, value in fields.items())
    # A daemon that runs is worth more than a status line, also than the wait for who does not read it: systemd itself
    # notices a READY or WATCHDOG that is missing.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.sendto(message.encode(), address)


def ready(text: str) -> None:
    """Say that the start is over, and as what: owner of partitions, or standby."""
    notify(READY=1, STATUS=text)


def status(text: str) -> None:
    """Set the line that `systemctl status` shows."""
    notify(STATUS=text)


def reloading(text: str) -> None:
    """Say that the file is read again; `ready()` ends it. Units of Type=notify-reload compare the time."""
    notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000, STATUS=text)


def stopping(text: str) -> None:
    """Say that the daemon has begun to stop."""
    notify(STOPPING=1, STATUS=text)


def watchdog() -> None:
    """Say that the main process is well; see `watchdog_interval_seconds()`."""
    notify(WATCHDOG=1)


def watchdog_interval_seconds() -> float | None:
    """Return the unit's WatchdogSec, or None if nobody listens; call `watchdog()` at least twice as often."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    # Both variables are inherited: a child, or a program in between, must not take its parent's watchdog for its own.
    if not microseconds.isdecimal() or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(microseconds) / 1_000_000 or None


def stderr_is_journal() -> bool:
    """Tell whether standard error goes to the journal, which understands priorities, and stamps the time itself.

    $JOURNAL_STREAM alone does not say so: a redirected child inherits it. systemd.exec(5) asks for this comparison.
    """
    try:
        file = os.fstat(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # no standard error, or a closed one
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{file.st_dev}:{file.st_ino}"
