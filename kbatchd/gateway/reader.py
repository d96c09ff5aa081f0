"""Requests out of what a client sends: each becomes an exchange when its head is whole, and then gets its body.

llhttp (httptools) parses, in its strict mode; what it still lets pass and RFC 9112 does not (heads.py) is refused here,
before the application hears of it. So is what is too long: a head, or what stands between chunks.

Made by a connection (protocol.py), each for itself; runs on a gateway's event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote

import httptools

from kbatchd.gateway import heads
from kbatchd.gateway.exchange import Client, Exchange
from kbatchd.gateway.problems import Problem

if TYPE_CHECKING:
    from kbatchd.gateway.guard import Guard

#: So much of a body waits for the application before the connection is read no further.
BODY_AHEAD_BYTES = 65_536

#: A chunk's size and line ends as a sensible client writes them; whatever else is between chunks counts as header.
CHUNK_FRAME_BYTES = 16

#: What is waited for: a request, the rest of its head, of its body, its answer, and the client to hang up.
IDLE, HEAD, BODY, ANSWER, END = range(5)


class Taker(Client, Protocol):
    """Who has made the reader, and takes the exchanges: a connection."""

    def take(self, exchange: Exchange) -> None:
        """Take an exchange whose head is whole."""

    def pause_reading(self) -> None:
        """Read no more until somebody asks for it."""


class Reader:
    """Reads one client's requests."""

    def __init__(self, taker: Taker, guard: Guard) -> None:
        self._taker = taker
        self._guard = guard
        #: None when nothing that may come matters any more.
        self._parser: httptools.HttpRequestParser | None = httptools.HttpRequestParser(self)
        self.phase = HEAD
        #: The request that came last.
        self.newest: Exchange | None = None
        #: What came since the last request was whole; what the last read brought.
        self.head_bytes = self._read_bytes = 0
        self._chunked = False
        self._frame_bytes = 0
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        #: The last request's, found to be sound: the next one's are nearly always the same.
        self._host: bytes | None = None
        self._target = b""
        self._path, self._query = "", b""

    # --- called by the connection

    def feed(self, data: bytes) -> Problem | None:
        """Parse; return the answer to what is no request, if it comes to that: nothing behind it is one either."""
        if self._parser is None:
            return None  # read only so that the client can finish, and then read our answer
        self._read_bytes = size = len(data)
        self.head_bytes += size
        while True:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._without_upgrade() + data[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                return self._fault(error)
            else:
                break
        limit = self._guard.max_header_bytes
        if self.phase <= HEAD:
            if self.head_bytes > limit:
                return heads.too_long(limit)
        elif self._chunked and self.phase == BODY:
            # Chunk extensions and trailers are told nobody, so they are what is left of the bytes (RFC 9112 section
            # 7.1.1: limit them). What came in one read with the head is not counted.
            self._frame_bytes += size
            if self._frame_bytes > limit:
                return heads.too_long(limit)
        return None

    @property
    def ended(self) -> bool:
        """Whether nothing that may come matters any more."""
        return self._parser is None

    def end(self, phase: int) -> None:
        """Read no further request; what is waited for is this."""
        self._parser = None
        self.phase = phase

    def close(self) -> None:
        """Forget the connection and what it has sent: else they would hold each other until the collector comes."""
        self.end(END)
        self.newest = None
        del self._taker

    # --- called by the parser

    def on_message_begin(self) -> None:
        """Begin a request; nothing may come behind one that is the last."""
        if self.newest is not None and not self.newest.keep_alive:
            raise EOFError
        self.phase = HEAD
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
            return  # `feed` begins it again
        self.phase = BODY
        self._headers = []
        limit = self._guard.max_header_bytes
        # What has been read is more than the head: the exact sum only where it might matter.
        if (self.head_bytes > limit or self._read_bytes > limit) and heads.size(self._url, headers) > limit:
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
            self._taker,
            self._guard,
            method,
            self._path,
            self._query,
            fields,
            keep_alive=version == "1.1" and parser.should_keep_alive(),
            expects=expects,
        )
        self.newest = exchange
        self._taker.take(exchange)

    def on_chunk_header(self) -> None:
        """Allow a chunk its frame."""
        self._frame_bytes -= CHUNK_FRAME_BYTES

    def on_body(self, body: bytes) -> None:
        """Hand over a piece of the body."""
        self._frame_bytes -= len(body)
        assert self.newest is not None
        if self.newest.feed(body) > BODY_AHEAD_BYTES:
            self._taker.pause_reading()

    def on_message_complete(self) -> None:
        """Hand over the end of the body."""
        if self.phase == BODY:
            self.phase = ANSWER
            self.head_bytes = 0
            assert self.newest is not None
            self.newest.end()

    # --- within

    def _without_upgrade(self) -> bytes:
        """Return the head as it came, without the field, and begin it again.

        RFC 9110 section 7.8: an upgrade may be ignored, and then this is a request like any other. llhttp would skip
        its body; so a new parser gets the head once more.
        """
        parser = self._parser
        assert parser is not None
        head = [b"%b %b HTTP/%b\r\n" % (parser.get_method(), self._url, parser.get_http_version().encode())]
        head += [b"%b: %b\r\n" % field for field in self._headers if field[0] != b"upgrade"]
        self._parser = httptools.HttpRequestParser(self)
        return b"".join([*head, b"\r\n"])

    def _fault(self, error: httptools.HttpParserError) -> Problem | None:
        cause = error.__context__
        if isinstance(cause, Problem):
            return cause.with_traceback(None)  # whose frames would hold it: a cycle, for the collector to find
        if self.phase == ANSWER and self.newest is not None and not self.newest.keep_alive:
            self._parser = None  # behind the last request; it will be answered, and this is nobody's
            return None
        return heads.malformed(f"the request is not HTTP/1.1: {error}")
