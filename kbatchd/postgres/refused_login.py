"""Why PostgreSQL refused a connection, by its SQLSTATE: the words are in the server's language.

psycopg has no fields of a connection that failed, only libpq's text. libpq puts the SQLSTATE in the place of the words
where it is told so before the handshake, which psycopg cannot do: so who was refused knocks once more, just to hear the
code. Called by connection.py, in the thread that wanted to connect.
https://www.postgresql.org/docs/current/libpq-control.html#LIBPQ-PQSETERRORVERBOSITY
"""

from __future__ import annotations

import ctypes
import re
import select
import time
from functools import cache
from pathlib import Path

from psycopg import Error, pq

_PQERRORS_SQLSTATE = 3

#: The form of a line with this verbosity, whatever the language of its severity: `... failed: FATAL:  3D000`.
_CODE = re.compile(r":\s+([0-9A-Z]{5})\s*$", re.MULTILINE)

_LIBPQ = re.compile(r"/\S*/libpq[^/\s]*\.so\S*")


def sqlstates(conninfo: str, timeout_seconds: float) -> set[str]:
    """Connect once more; return the SQLSTATEs that the servers give. None, if nobody says a word or all is well now."""
    try:
        pgconn = pq.PGconn.connect_start(conninfo.encode())
        try:
            _set_verbosity(pgconn)
            _finish(pgconn, time.monotonic() + timeout_seconds)
            return set() if pgconn.status == pq.ConnStatus.OK else set(_CODE.findall(pgconn.get_error_message()))
        finally:
            pgconn.finish()
    except (Error, OSError):
        return set()


def _set_verbosity(pgconn: pq.abc.PGconn) -> None:
    pointer = getattr(pgconn, "pgconn_ptr", None)  # documented, and missing in the class's types
    library = _libpq()
    if library is not None and pointer is not None:
        library.PQsetErrorVerbosity(ctypes.c_void_p(pointer), _PQERRORS_SQLSTATE)


@cache
def _libpq() -> ctypes.CDLL | None:
    """Return the very library that psycopg has loaded, be it of its wheel or of the system."""
    match = _LIBPQ.search(Path("/proc/self/maps").read_text())
    return None if match is None else ctypes.CDLL(match[0])


def _finish(pgconn: pq.abc.PGconn, deadline: float) -> None:
    while (wanted := pgconn.connect_poll()) in {pq.PollingStatus.READING, pq.PollingStatus.WRITING}:
        poll = select.poll()
        poll.register(pgconn.socket, select.POLLIN if wanted == pq.PollingStatus.READING else select.POLLOUT)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return
