"""HTTP/1.1 on one connection: strict about what comes in, bounded in time and size, one answer a request, in order.

llhttp (httptools) parses, in its strict mode; what it still lets pass and RFC 9112 does not (heads.py) is refused here,
before the application hears of it. Every refusal is a problem document with `connection: close`. Time stamps are kept
for the guard, which looks at all connections at once.

Made by server.py for each connection; runs on a gateway's event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import unquote

import httptools

from kbatchd.gateway import heads
from kbatchd.gateway.exchange import Exchange
from kbatchd.gateway.problems import Problem

if TYPE_CHECKING:
    from kbatchd.gateway.guard import Guard
    from kbatchd.gateway.problems import Answer

#: So much of a body waits for the application before the connection is read no further.
BODY_AHEAD_BYTES = 65_536

#: A chunk's size and line ends as a sensible client writes them; whatever else is between chunks counts as header.
CHUNK_FRAME_BYTES = 16

#: So many clients at a time, beyond `max_connections`, are told why they are refused; further ones are cut off.
TOLD_CONNECTIONS = 256

#: What a connection waits for: a request, the rest of its head, of its body, its answer, and the client to hang up.
_IDLE, _HEAD, _BODY, _ANSWER, _END = range(5)

_STATUS_LINES = {int(status): b"HTTP/1.1 %d %b\r\n" % (status, status.phrase.encode()) for status in HTTPStatus}


class Connection(asyncio.Protocol):
    """One client's connection: bytes into exchanges, and answers into bytes."""

    _transport: asyncio.Transport

    def __init__(self, guard: Guard, loop: asyncio.AbstractEventLoop) -> None:
        self._guard = guard
        self._loop = loop
        #: None when nothing that may come matters any more.
        self._parser: httptools.HttpRequestParser | None = None
        self._phase = _HEAD
        self._since = time.monotonic()
        self._stalled_since = 0.0
        self._read_paused = False
        self._half_closed = False
        #: What came since the last request was whole; what the last read brought.
        self._head_bytes = self._read_bytes = 0
        self._chunked = False
        self._frame_bytes = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        #: The last request's, found to be sound: the next one's are nearly always the same.
        self._host: bytes | None = None
        self._target = b""
        self._path, self._query = "", b""
        #: The request that is being answered, those that came meanwhile, and the one that came last.
        self._running: Exchange | None = None
        self._pipeline: deque[Exchange] = deque()
        self._newest: Exchange | None = None
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
            self._parser = httptools.HttpRequestParser(self)
        elif excess <= TOLD_CONNECTIONS:
            detail = "the gateway has all the connections that it may have"
            headers = {b"retry-after": b"1"}
            self._refuse(Problem(HTTPStatus.SERVICE_UNAVAILABLE, "too-many-connections", detail, None, headers))
        else:
            self._cut_off("cut_off")

    def data_received(self, data: bytes) -> None:
        """Parse; what was in it is told by the parser's calls, below."""
        if self._parser is None:
            return  # read only so that the client can finish, and then read our answer
        before = self._phase
        self._read_bytes = len(data)
        self._head_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._fault(error)
        else:
            if self._phase != before:
                self._since = time.monotonic()
            self._limit_sizes(len(data))
        self._begin()

    def _limit_sizes(self, size: int) -> None:
        limit = self._guard.max_header_bytes
        if self._phase <= _HEAD:
            if self._head_bytes > limit:
                self._refuse(heads.too_long(limit))
        elif self._chunked and self._phase == _BODY:
            # Chunk extensions and trailers are told nobody, so they are what is left of the bytes (RFC 9112 section
            # 7.1.1: limit them). What came in one read with the head is not counted.
            self._frame_bytes += size
            if self._frame_bytes > limit:
                self._refuse(heads.too_long(limit))

    def eof_received(self) -> bool:
        """Close, unless a whole request is being answered: a client may end its side before it has read."""
        self._half_closed = True
        return self._running is not None and self._running.whole

    def pause_writing(self) -> None:
        """Note that the client does not read: it gets no further answers for now."""
        self._stalled_since = time.monotonic()

    def resume_writing(self) -> None:
        """Go on where `pause_writing` has stopped us."""
        self._stalled_since = 0.0
        if self._running is None and self._phase != _END:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # why does not matter
        """Tell everybody."""
        self._guard.leave(self)
        self._phase, self._parser = _END, None
        for exchange in (self._running, self._newest):
            if exchange is not None:
                exchange.disconnect()
        self._pipeline.clear()
        self._running = self._newest = None

    # --- called by the parser

    def on_message_begin(self) -> None:
        """Begin a request; nothing may come behind one that is the last."""
        if self._newest is not None and not self._newest.keep_alive:
            raise EOFError
        self._phase = _HEAD
        self._url = b""
        self._headers = []
        self._chunked = False

    def on_url(self, url: bytes) -> None:
        """Take the target, or a part of it."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field; of a trailer too, which goes nowhere."""
        # RFC 9110 section 5.5: blanks around a value are not part of it; llhttp leaves those behind.
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """Check the head and start the exchange; what is wrong is raised through the parser."""
        headers, parser = self._headers, self._parser
        assert parser is not None
        fields = dict(headers)
        method = parser.get_method().decode()
        if b"upgrade" in fields and parser.should_upgrade() and method != "CONNECT":
            return  # `_feed` begins it again
        self._phase = _BODY
        self._headers = []
        limit = self._guard.max_header_bytes
        # What has been read is more than the head: the exact sum only where it might matter.
        if (self._head_bytes > limit or self._read_bytes > limit) and heads.size(self._url, headers) > limit:
            raise heads.too_long(limit)
        version = parser.get_http_version()
        if version != "1.1":
            heads.check_old(version, fields)
        if len(fields) != len(headers):
            heads.check_doubles(headers)
        host = fields.get(b"host")
        if host != self._host or host is None:
            heads.check_host(host, version)
            self._host = host
        if b"transfer-encoding" in fields:
            heads.check_coding(fields[b"transfer-encoding"])
            self._chunked = True
            self._frame_bytes = -self._read_bytes
        expects = b"expect" in fields and version == "1.1" and heads.check_expectation(fields[b"expect"])
        if self._url != self._target or method == "CONNECT":
            path, self._query = heads.split_target(self._url, method)
            self._path = unquote(path) if "%" in path else path
            self._target = self._url if path != "*" else b""  # that is for OPTIONS alone
        exchange = Exchange(
            self,
            self._guard,
            method,
            self._path,
            self._query,
            fields,
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            expects=expects,
        )
        self._newest = exchange
        if self._running is None and not self._pipeline:
            self._running = exchange
        else:
            self._pipeline.append(exchange)
            self.pause_reading()

    def on_chunk_header(self) -> None:
        """Allow a chunk its frame."""
        self._frame_bytes -= CHUNK_FRAME_BYTES

    def on_body(self, body: bytes) -> None:
        """Hand over a piece of the body."""
        self._frame_bytes -= len(body)
        assert self._newest is not None
        if self._newest.feed(body) > BODY_AHEAD_BYTES:
            self.pause_reading()

    def on_message_complete(self) -> None:
        """Hand over the end of the body."""
        if self._phase == _BODY:
            self._phase = _ANSWER
            self._head_bytes = 0
            assert self._newest is not None
            self._newest.end()

    # --- called by exchanges

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Write an exchange's answer, and go on with what comes next."""
        self._running = None
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

    # --- called by the guard and the server

    def check_time(self, now: float) -> None:
        """End what has waited too long."""
        guard, phase = self._guard, self._phase
        if self._stalled_since and now - self._stalled_since > guard.write_seconds:
            self._cut_off("unread_answer")
        elif self._read_paused or now - self._since <= guard.seconds[phase]:
            return
        elif phase == _IDLE or (self._newest is None and not self._head_bytes):
            self.hang_up()  # it has nothing to answer
        elif phase == _END:
            self._transport.abort()
        else:
            what = "headers" if phase == _HEAD else "body"
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
        self._parser = None
        self._phase = _END
        self._since = time.monotonic()
        self._transport.close()

    # --- within

    def _feed(self, data: bytes) -> None:
        while True:
            parser = self._parser
            assert parser is not None
            try:
                parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                # RFC 9110 section 7.8: an upgrade may be ignored, and then this is a request like any other. llhttp
                # would skip its body; so a new parser gets the head once more, without the field.
                head = [b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._url, parser.get_http_version().encode())]
                head += [b"%b: %b\r\n" % field for field in self._headers if field[0] != b"upgrade"]
                self._parser = httptools.HttpRequestParser(self)
                data = b"".join([*head, b"\r\n", data[upgrade.args[0] :]])
            else:
                return

    def _fault(self, error: httptools.HttpParserError) -> None:
        cause = error.__context__
        if isinstance(cause, Problem):
            self._refuse(cause)
        elif self._phase == _ANSWER and self._newest is not None and not self._newest.keep_alive:
            self._parser = None  # behind the last request; it will be answered, and this is nobody's
        else:
            self._refuse(heads.malformed(f"the request is not HTTP/1.1: {error}"))

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
            if self._phase == _ANSWER:
                self._phase = _IDLE
                self._since = time.monotonic()
            self.resume_reading()

    def _refuse(self, problem: Problem) -> None:
        """Refuse the request that is being read, and whatever comes behind it; those before it are answered first."""
        self._guard.count(problem.status.name.lower())
        self._parser = None
        newest = self._newest
        if newest is not None and not newest.whole:
            newest.disconnect()
            if newest is self._running:
                self._running = None
            else:
                self._pipeline.remove(newest)
        self._phase = _ANSWER
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
        self._parser = None
        self._phase = _END
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
        self._phase = _END
        self._transport.abort()
