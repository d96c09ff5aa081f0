"""HTTP/1.1 on one connection: one answer a request, in order, and bounded in time.

What comes in is reader.py's. Every refusal is a problem document with `connection: close`, behind the answers to the
requests before it. Time stamps are kept for the guard, which looks at all connections at once.

Made by server.py for each connection; runs on a gateway's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING

from kbatchd.gateway import unavailable
from kbatchd.gateway.memory import SMALL_BYTES
from kbatchd.gateway.problems import Problem
from kbatchd.gateway.reader import ANSWER, END, HEAD, IDLE, Reader

if TYPE_CHECKING:
    from kbatchd.gateway.exchange import Exchange
    from kbatchd.gateway.guard import Guard
    from kbatchd.gateway.problems import Answer

#: So many clients at a time, beyond `max_connections`, are told why they are refused; further ones are cut off.
TOLD_CONNECTIONS = 256

_STATUS_LINES = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class Connection(asyncio.Protocol):
    """One client's connection: its exchanges in order, and answers into bytes."""

    _transport: asyncio.Transport

    def __init__(self, guard: Guard, loop: asyncio.AbstractEventLoop) -> None:
        self._guard = guard
        self._loop = loop
        self._reader = Reader(self, guard)
        self._since = time.monotonic()
        self._stalled_since = 0.0
        self._read_paused = False
        self._half_closed = False
        #: What has been read and is not answered, and what is written and not read.
        self._held = self._unread = 0
        #: The request that is being answered, and those that came meanwhile.
        self._running: Exchange | None = None
        self._pipeline: deque[Exchange] = deque()
        #: What is said when all requests before it are answered.
        self._last_words: Problem | None = None

    # --- called by the transport

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to read, or refuse to."""
        self._transport = transport
        guard = self._guard
        guard.connections.add(self)
        excess = len(guard.connections) - guard.max_connections
        if excess <= 0:
            return
        if excess <= TOLD_CONNECTIONS:
            self._refuse(unavailable.too_many_connections())
        else:
            self._cut_off("cut_off")

    def data_received(self, data: bytes) -> None:
        """Read the requests in it."""
        reader = self._reader
        before = reader.phase
        problem = reader.feed(data)
        if problem is not None:
            self._refuse(problem)
        elif not self._hold(len(data)):
            self._refuse(unavailable.memory_full())
            self._release(max(0, self._held - len(data)))  # that is dropped; a request before it may still be answered
        elif reader.phase != before:
            self._since = time.monotonic()
        self._begin()

    def eof_received(self) -> bool:
        """Close, unless a whole request is being answered: a client may end its side before it has read."""
        self._half_closed = True
        return self._running is not None and self._running.whole

    def pause_writing(self) -> None:
        """Note that the client does not read: it gets no further answers for now."""
        self._stalled_since = time.monotonic()
        self._unread = self._transport.get_write_buffer_size()
        if not self._guard.memory.take(self._unread):
            self._cut_off("unread_answer")

    def resume_writing(self) -> None:
        """Go on where `pause_writing` has stopped us."""
        self._stalled_since = 0.0
        self._forget_unread()
        if self._running is None and self._reader.phase != END:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # why does not matter
        """Tell everybody."""
        self._guard.leave(self)
        self._release()
        self._forget_unread()
        for exchange in (self._running, self._reader.newest):
            if exchange is not None:
                exchange.disconnect()
        self._reader.close()
        self._pipeline.clear()
        self._running = None

    # --- called by the reader

    def take(self, exchange: Exchange) -> None:
        """Answer it next, or after those that came before; then nothing more is read until their turn."""
        if self._running is None and not self._pipeline:
            self._running = exchange
        else:
            self._pipeline.append(exchange)
            self.pause_reading()

    # --- called by exchanges

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Write an exchange's answer, and go on with what comes next."""
        self._running = None
        self.release()
        ends = (self._guard.stopping or self._half_closed) and not self._pipeline and self._last_words is None
        # An answer before the body is whole: RFC 9112 section 9.6, read the rest, or close.
        close = ends or not exchange.keep_alive or not exchange.whole
        self._write(answer, close=close, with_body=exchange.method != "HEAD")
        if not close:
            self._next()
        elif exchange.keep_alive:
            self._end()
        else:  # as the client wished: it sends nothing more
            self.hang_up()

    def write_continue(self) -> None:
        """Ask for the body."""
        self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def pause_reading(self) -> None:
        """Read no more until `resume_reading`; the time that passes is ours, not the client's."""
        if not self._read_paused:
            self._read_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._read_paused:
            self._read_paused = False
            self._since = time.monotonic()
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def release(self) -> None:
        """Count nothing any more of what has been read, unless more requests are in it."""
        if not self._pipeline:
            self._release(self._reader.head_bytes)

    # --- called by the guard and the server

    def check_time(self, now: float) -> None:
        """End what has waited too long."""
        guard, reader, phase = self._guard, self._reader, self._reader.phase
        if self._stalled_since and now - self._stalled_since > guard.write_seconds:
            self._cut_off("unread_answer")
        elif self._read_paused or now - self._since <= guard.seconds[phase]:
            return
        elif phase == IDLE or (reader.newest is None and not reader.head_bytes):
            self.hang_up()  # it has nothing to answer
        elif phase == END:
            self._transport.abort()
        else:
            what = "headers" if phase == HEAD else "body"
            self._refuse(Problem(HTTPStatus.REQUEST_TIMEOUT, "timeout", f"the request's {what} took too long"))

    def note_stop(self) -> None:
        """Measure the time that `Guard.stop` has left from now on."""
        self._since = time.monotonic()

    def give_up(self) -> None:
        """Answer what is still being answered, as well as one can; the grace period is over."""
        self._pipeline.clear()
        if self._running is not None:
            self._running.give_up()

    def hang_up(self) -> None:
        """Close, once what was written is sent."""
        self._reader.end(END)
        self._since = time.monotonic()
        self._transport.close()

    # --- within

    def _begin(self) -> None:
        """Let the application know of the request that is to be answered."""
        if self._running is not None and not self._running.begun:
            self._running.begin()

    def _next(self) -> None:
        """Answer the next request, or wait for one."""
        if self._stalled_since:
            return
        if self._pipeline:
            self._running = self._pipeline.popleft()
            self._loop.call_soon(self._begin)  # not here: many that are answered at once would be as many calls deep
        elif self._last_words is not None:
            self._say(self._last_words)
        else:
            if self._reader.phase == ANSWER:
                self._reader.phase = IDLE
                self._since = time.monotonic()
            self.resume_reading()

    def _hold(self, size: int) -> bool:
        """Count what has been read; tell whether there is room for it. What is whole, or small, always has room."""
        reader = self._reader
        if reader.ended:
            return True  # nobody keeps it
        self._held += size
        return self._guard.memory.take(size) or reader.phase == ANSWER or self._held <= SMALL_BYTES

    def _release(self, kept: int = 0) -> None:
        self._guard.memory.give(self._held - kept)
        self._held = kept

    def _forget_unread(self) -> None:
        self._guard.memory.give(self._unread)
        self._unread = 0

    def _refuse(self, problem: Problem) -> None:
        """Refuse the request that is being read, and whatever comes behind it; those before it are answered first."""
        self._guard.count(problem.status.name.lower())
        self._reader.end(ANSWER)
        newest = self._reader.newest
        if newest is not None and not newest.whole:
            newest.disconnect()
            if newest is self._running:
                self._running = None
            else:
                self._pipeline.remove(newest)
        if self._running is None and not self._pipeline:
            self._say(problem)
        else:
            self._last_words = problem

    def _say(self, problem: Problem) -> None:
        self._write(problem.answer(), close=True)
        self._end()

    def _write(self, answer: Answer, *, close: bool, with_body: bool = True) -> None:
        status, headers, body = answer
        parts = [_STATUS_LINES[status], self._guard.date]
        for name, value in headers:
            parts += (name, b": ", value, b"\r\n")
        parts.append(b"connection: close\r\n\r\n" if close else b"\r\n")
        if with_body:
            parts.append(body)
        self._transport.write(b"".join(parts))

    def _end(self) -> None:
        """End our side, and read on until the client ends its own.

        To close at once would reset the connection when the client is still sending, and it might lose our answer.
        """
        self._reader.end(END)
        self._release()
        self._since = time.monotonic()
        if self._transport.is_closing():
            return
        if self._half_closed:
            self._transport.close()
            return
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self.resume_reading()

    def _cut_off(self, why: str) -> None:
        self._guard.count(why)
        self._reader.end(END)
        self._transport.abort()
