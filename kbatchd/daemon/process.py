"""A child process that dies with its parent, and one that runs an errand.

Called by the supervisor for each child. `fork` is plain os.fork(): what the parent has
loaded is shared, and nothing in it has made a thread or a socket yet.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from kbatchd.errors import EX_SOFTWARE

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_libc = ctypes.CDLL(None, use_errno=True)


def fork(run: Callable[[], int]) -> int:
    """Start a child that runs `run` and exits with its result; return its pid.

    The parent's blocked signals stay blocked in the child until `run` has set its own handlers.
    """
    parent = os.getpid()
    pid = os.fork()
    if not pid:
        _run_child(parent, run)
    return pid


def is_stopped(pid: int) -> bool:
    """Tell whether a process stands still because somebody has stopped it, with SIGSTOP or a debugger."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in {b"T", b"t"}
    except OSError:
        return False


def ended_child() -> int | None:
    """Return a child that has ended and is not reaped yet, if there is one."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    return found.si_pid if found is not None else None


class Errand:
    """A short-lived child that does one thing and says by its exit code how it went; at most one at a time."""

    def __init__(self, run: Callable[[], int]) -> None:
        """Prepare; `start` runs it, as often as wanted."""
        self.run = run
        self.pid: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has been started and its end has not been seen."""
        return self.pid is not None

    def start(self) -> None:
        """Begin; OSError when there is no memory or no process left."""
        assert self.pid is None
        self.pid = fork(self.run)

    def ended(self) -> int | None:
        """Return its exit code, once, when it has ended; EX_SOFTWARE when a signal ended it."""
        if self.pid is None:
            return None
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return None
        self.pid = None
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else EX_SOFTWARE

    def kill(self) -> None:
        """End it now, if it runs; its outcome does not matter any more."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None


def _run_child(parent: int, run: Callable[[], int]) -> NoReturn:
    code = EX_SOFTWARE
    try:
        _die_with(parent)
        _leave_no_core()
        code = run()
    except Exception:
        log.exception("process died", extra={"action": "process_died"})
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:  # whatever happens, a child never returns into its parent's code
            os._exit(code)


def _die_with(parent: int) -> None:
    """Be killed when the parent ends; it may have ended before we said so."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(EX_SOFTWARE)


def _leave_no_core() -> None:
    """Let no core be written of a child that is aborted or crashes: it would hold records, and the servers' passwords.

    One byte is too little for a file, and the only limit that keeps the kernel from feeding a program, too, such as
    systemd-coredump: there it does not enforce others, 0 included (core(5), and do_coredump in fs/coredump.c).
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    if hard != 0:
        resource.setrlimit(resource.RLIMIT_CORE, (1, hard))
