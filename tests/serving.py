"""The gateway's server without Kafka: real sockets, and an application that only notes what it was given."""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import uvloop

from kbatchd.config import Gateway
from kbatchd.gateway.exchange import ClientGone
from kbatchd.gateway.listener import BACKLOG
from kbatchd.gateway.server import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kbatchd.gateway.exchange import Exchange

#: No answer takes longer.
ANSWER_SECONDS = 20.0


class Taken(NamedTuple):
    """A whole request, as the application got it."""

    method: str
    path: str
    fields: dict[bytes, bytes]
    body: bytes


class Recorder:
    """An application: a POST is answered 202, all else 200; `/wait` only when `go` is set, `/early` before its body.

    What is whole at once is answered at once, but for `/wait` and `/fail-later`.
    """

    def __init__(self) -> None:
        self.taken: list[Taken] = []
        #: Requests whose client went away before they were whole.
        self.lost = 0
        self.go = asyncio.Event()
        self.waiting = 0

    def answer_now(self, exchange: Exchange) -> bool:
        if exchange.path in {"/wait", "/fail-later"}:
            return False
        self._answer(exchange, b"" if exchange.path == "/early" else exchange.body())
        return True

    async def answer(self, exchange: Exchange) -> None:
        body = b""
        try:
            while exchange.path != "/early" and (part := await exchange.read()):
                body += part
        except ClientGone:
            self.lost += 1
            raise
        if exchange.path == "/wait":
            self.waiting += 1
            await self.go.wait()
        self._answer(exchange, body)

    def _answer(self, exchange: Exchange, body: bytes) -> None:
        path = exchange.path
        self.taken.append(Taken(exchange.method, path, exchange.fields, body))
        if path.startswith("/fail"):
            raise RuntimeError("as asked")
        answer = b"" if path == "/none" else body or b"%b\n" % path.encode()
        if path == "/large":
            answer = bytes(50_000_000)
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(answer))]
        exchange.answer((202 if exchange.method == "POST" else 200, headers, answer))


class Serving:
    """A server in a thread of this process."""

    def __init__(self, gateway: Gateway) -> None:
        self.app = Recorder()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self.server = Server(gateway, self.app)
        self._loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self._run, name="serving")

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self.server.serve(self._listener))

    def call(self, function: Callable[[], object]) -> None:
        """Have something done on the server's event loop."""
        self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Stop as SIGTERM does."""
        with suppress(RuntimeError):  # it may have ended
            self.call(self.server.stop)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=ANSWER_SECONDS)


@contextmanager
def serving(**keys: object) -> Iterator[Serving]:
    """Serve with these keys of [gateway]."""
    server = Serving(Gateway.model_validate(keys))
    server.thread.start()
    try:
        yield server
    finally:
        with suppress(RuntimeError):  # a test may have stopped it
            server.call(server.app.go.set)
        server.stop()
        server.thread.join(ANSWER_SECONDS)
        assert not server.thread.is_alive()


class Answer(NamedTuple):
    """One answer."""

    status: int
    headers: dict[str, str]
    body: bytes


def answers(data: bytes, methods: Sequence[str] = ()) -> list[Answer]:
    """Take answers apart; `methods` are those of the requests, where one is HEAD. Fails on anything that is none."""
    found: list[Answer] = []
    while data:
        head, end, data = data.partition(b"\r\n\r\n")
        assert end, head
        line, *fields = head.decode().split("\r\n")
        version, status = line.split(" ")[:2]
        assert version == "HTTP/1.1", line
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        if status == "100":
            found.append(Answer(100, headers, b""))
            continue
        sized = len(found) >= len(methods) or methods[len(found)] != "HEAD"
        size = int(headers["content-length"]) if sized and status != "204" else 0
        assert len(data) >= size, (head, data)
        found.append(Answer(int(status), headers, data[:size]))
        data = data[size:]
    return found


def read_all(connection: socket.socket) -> bytes:
    """Read until the server ends."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def read_answers(connection: socket.socket, count: int, method: str = "POST") -> list[Answer]:
    """Read so many answers, and nothing behind them."""
    data = b""
    while True:
        try:
            found = answers(data, [method] * count)
        except AssertionError:
            found = []
        if len(found) >= count:
            return found
        part = connection.recv(1 << 16)
        assert part, data
        data += part
