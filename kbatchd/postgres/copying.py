"""A COPY, in one turn with PostgreSQL: what goes before it, the statement, the rows, the answer.

psycopg's own `copy` waits for the socket at each of its steps, and a statement that goes before it takes a turn of its
own. Around refused rows, where a batch becomes hundreds of COPYs, that is a third of the time (20,000 rows with 200
refused ones: 190 ms, here 128), and each wait gives the interpreter to the poll loop. And where memory is short, libpq
takes nothing of what it is given and says so by a 0: psycopg tries the same again without end. Here it is sent in
smaller pieces, each of which has room when the one before it has gone.

Called by sink/batch_copy.py and sink/sink.py, in the thread that owns the connection. The calls of libpq are those of
its manual: https://www.postgresql.org/docs/current/libpq-copy.html,
https://www.postgresql.org/docs/current/libpq-async.html
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

import psycopg
from psycopg.copy import LibpqWriter
from psycopg.errors import OutOfMemory, error_from_result
from psycopg.pq import ExecStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from psycopg.pq.abc import PGconn, PGresult

    Data = bytes | bytearray | memoryview

#: What libpq is given at once, as much as psycopg gives it.
PIECE_BYTES = 131_072

#: What libpq's buffer has room for from the beginning: it is made with 16 KiB.
SMALLEST_PIECE_BYTES = 8_192


def copy_in(
    connection: psycopg.Connection,
    statements: bytes,
    pieces: Iterable[Data],
    sent: Callable[[], None] = lambda: None,
) -> int:
    """Run statements of which the last is a COPY FROM STDIN, and give it all its rows; return how many it has counted.

    psycopg.Error if any is refused. It is for a connection within a transaction, which the error leaves as PostgreSQL
    does. `sent` is called while PostgreSQL works on the rows.
    """
    pgconn = connection.pgconn
    pgconn.send_query(statements)
    _send(pgconn)
    results = _receive(pgconn)
    if results and results[-1].status == ExecStatus.COPY_IN:
        try:
            for piece in pieces:
                put(pgconn, piece)
        except BaseException:
            _end(pgconn, b"not all rows could be sent")
            _receive(pgconn)
            raise
        _end(pgconn)
        sent()
        results = _receive(pgconn)
    for result in results:
        if result.status != ExecStatus.COMMAND_OK:
            raise error_from_result(result, connection.info.encoding)
    if not results:
        raise psycopg.OperationalError("PostgreSQL has not answered a COPY")
    return results[-1].command_tuples or 0


def put(pgconn: PGconn, data: Data) -> None:
    """Give libpq all of it, and wait until the most of it is sent; OutOfMemory where it does not take a small piece."""
    rest, size = memoryview(data), PIECE_BYTES
    while rest:
        piece = rest[:size]
        if not pgconn.put_copy_data(piece):
            _send(pgconn)
            if not pgconn.put_copy_data(piece):  # nothing else was in its buffer, and that could not grow
                if len(piece) <= SMALLEST_PIECE_BYTES:
                    raise OutOfMemory("libpq has no memory for the rows that are to be sent")
                size = max(len(piece) // 2, SMALLEST_PIECE_BYTES)
                continue
        rest = rest[len(piece) :]
        if len(piece) == PIECE_BYTES:
            _send(pgconn)


class Writer(LibpqWriter):
    """What psycopg's `copy` writes with, for rows that it makes itself."""

    _queued = 0

    def write(self, data: Data) -> None:
        """Give libpq all of it."""
        put(self._pgconn, data)
        self._queued += len(data)
        if self._queued >= PIECE_BYTES:
            _send(self._pgconn)
            self._queued = 0


def _end(pgconn: PGconn, error: bytes | None = None) -> None:
    """Say that this was all, or why it was not."""
    while not pgconn.put_copy_end(error):
        _send(pgconn)
    _send(pgconn)


def _send(pgconn: PGconn) -> None:
    """Send what is queued; and read meanwhile, or two that both wait until the other reads would wait for ever."""
    while pgconn.flush():
        if _wait(pgconn, select.POLLIN | select.POLLOUT) & select.POLLIN:
            pgconn.consume_input()


def _receive(pgconn: PGconn) -> list[PGresult]:
    """Wait until PostgreSQL has done all, or wants rows; libpq would wait with the interpreter's lock in its hand."""
    results: list[PGresult] = []
    while True:
        while pgconn.is_busy():
            _wait(pgconn, select.POLLIN)
            pgconn.consume_input()
        result = pgconn.get_result()
        if result is None:
            return results
        results.append(result)
        if result.status == ExecStatus.COPY_IN:
            return results


def _wait(pgconn: PGconn, events: int) -> int:
    poll = select.poll()
    poll.register(pgconn.socket, events)
    ((_, ready),) = poll.poll()
    return ready
