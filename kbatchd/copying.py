"""A COPY of few rows, in one turn with PostgreSQL: what goes before it, the statement, the rows, the answer.

psycopg's own `copy` is made for streams. It waits for the socket at each of its steps, and a statement that goes before
it takes a turn of its own. Around refused rows, where a batch becomes hundreds of COPYs, that is a third of the time
(20,000 rows with 200 refused ones: 190 ms, here 128), and each wait gives the interpreter to the poll loop.

Called by batch_copy.py, in the thread that owns the connection. The calls of libpq are those of its manual:
https://www.postgresql.org/docs/current/libpq-copy.html, https://www.postgresql.org/docs/current/libpq-async.html
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import psycopg
    from psycopg.pq.abc import PGconn, PGresult


def copy_in(
    connection: psycopg.Connection,
    statements: bytes,
    pieces: Iterable[bytes | memoryview],
    sent: Callable[[], None] = lambda: None,
) -> None:
    """Run statements of which the last is a COPY FROM STDIN, and give it all its rows; psycopg.Error if any is refused.

    It is for a connection within a transaction, which the error leaves as PostgreSQL does. `sent` is called while
    PostgreSQL works on the rows.
    """
    pgconn = connection.pgconn
    result = pgconn.exec_(statements)
    if result.status == ExecStatus.COPY_IN:
        for piece in pieces:
            pgconn.put_copy_data(piece)
        pgconn.put_copy_end()
        _send(pgconn)
        sent()
        result = _receive(pgconn)
    if result.status != ExecStatus.COMMAND_OK:
        raise error_from_result(result, connection.info.encoding)


def _send(pgconn: PGconn) -> None:
    """Send what is queued; and read meanwhile, or two that both wait until the other reads would wait for ever."""
    while pgconn.flush():
        if _wait(pgconn, select.POLLIN | select.POLLOUT) & select.POLLIN:
            pgconn.consume_input()


def _receive(pgconn: PGconn) -> PGresult:
    """Wait for the end of a statement. libpq would wait itself, but with the interpreter's lock in its hand."""
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            _wait(pgconn, select.POLLIN)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results[0]
        results.append(result)


def _wait(pgconn: PGconn, events: int) -> int:
    poll = select.poll()
    poll.register(pgconn.socket, events)
    ((_, ready),) = poll.poll()
    return ready
