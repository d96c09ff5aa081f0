"""A child process that dies with its parent.

Called by the supervisor for the start-up checks and for each worker. `fork` is plain os.fork(): what the parent has
loaded is shared, and nothing in it has made a thread or a socket yet.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
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


def _run_child(parent: int, run: Callable[[], int]) -> NoReturn:
    code = EX_SOFTWARE
    try:
        _die_with(parent)
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
