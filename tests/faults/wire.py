"""A TCP proxy that cuts a stream into the frames of its protocol and asks rules what becomes of each.

Two threads a connection, one a way. The test's thread adds and lifts rules, waits for frames by their kind, and takes
the whole wire down and up again: `block` lets nothing pass and accepts all the same, as a firewall that drops does.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol, Self

import pytest

from tests.faults.rules import PATIENCE_SECONDS, Act, Frame, Rule, Side, When, swallow

if TYPE_CHECKING:
    from types import TracebackType


class Speech(Protocol):
    """Takes the two ways of one connection apart; one object a connection, for what its frames have to do together."""

    def requests(self, connection: Connection) -> Iterator[Frame]:
        """Read what the client says, to the end."""

    def answers(self, connection: Connection) -> Iterator[Frame]:
        """Read what the server says, to the end."""


class Closed(Exception):
    """The connection has ended."""


class Connection:
    """One client, and the server behind it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.closed = threading.Event()
        #: The client's first frame, where its protocol has one that says who it is.
        self.opening = b""
        self._sockets = {Side.REQUEST: client, Side.ANSWER: server}
        self._sending = {Side.REQUEST: threading.Lock(), Side.ANSWER: threading.Lock()}

    def read(self, side: Side, size: int) -> bytes:
        """Read so many bytes of what comes this way."""
        data = bytearray()
        while len(data) < size:
            try:
                piece = self._sockets[side].recv(size - len(data))
            except OSError as error:
                raise Closed from error
            if not piece:
                raise Closed
            data += piece
        return bytes(data)

    def forward(self, frame: Frame) -> None:
        """Let it go its way."""
        self.send(frame.side, frame.data)

    def send(self, side: Side, data: bytes) -> None:
        """Send bytes the way of `side`: an answer goes to the client."""
        to = self._sockets[Side.ANSWER if side is Side.REQUEST else Side.REQUEST]
        with self._sending[side]:
            try:
                to.sendall(data)
            except OSError as error:
                raise Closed from error

    def close(self) -> None:
        """End both ends."""
        self.closed.set()
        for each in self._sockets.values():
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class Wire:
    """A listener on a port of 127.0.0.1 that is a server's, but for what the rules say."""

    def __init__(self, server_port: int, speech: Callable[[], Speech], port: int = 0) -> None:
        """Listen at once; the server need not be there yet."""
        self._server_port = server_port
        self._speech = speech
        self._rules: list[Rule] = []
        self._connections: set[Connection] = set()
        self._changed = threading.Condition()
        self._counts: Counter[tuple[Side, int | str]] = Counter()
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name=f"wire {self.port}", daemon=True).start()

    def add(self, rule: Rule) -> Rule:
        """Ask this rule from now on, before those that are there."""
        with self._changed:
            self._rules.insert(0, rule)
        return rule

    def rule(self, when: When, act: Act, times: int | None = None, skip: int = 0) -> Rule:
        """Add a rule."""
        return self.add(Rule(when, act, times, skip))

    def clear(self) -> None:
        """Lift all rules."""
        with self._changed:
            rules, self._rules = self._rules, []
        for rule in rules:
            rule.lift()

    @contextlib.contextmanager
    def blocked(self) -> Iterator[Rule]:
        """Let nothing pass, either way, while the block lasts; what came meanwhile is lost."""
        rule = self.rule(lambda _: True, swallow)
        yield rule
        rule.lift()
        self.cut()

    def lead_to(self, server_port: int) -> None:
        """Connect new clients with another server, as a failover's address does; end all connections."""
        self._server_port = server_port
        self.cut()

    def cut(self) -> None:
        """End all connections."""
        with self._changed:
            connections = list(self._connections)
        for connection in connections:
            connection.close()

    def seen(self, kind: int | str, side: Side = Side.REQUEST) -> int:
        """Return how many frames of a kind have come, those that a rule took included."""
        with self._changed:
            return self._counts[side, kind]

    def wait(self, kind: int | str, side: Side = Side.REQUEST, more: int = 1) -> None:
        """Return when so many more frames of a kind have come from now on; fail the test when they do not."""
        with self._changed:
            target = self._counts[side, kind] + more
            if not self._changed.wait_for(lambda: self._counts[side, kind] >= target, PATIENCE_SECONDS):
                pytest.fail(f"no {more} more frames {kind} ({side.value}) within {PATIENCE_SECONDS:.0f} s")

    def close(self) -> None:
        """Stop listening, and end all connections."""
        self.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        self._listener.close()
        self.cut()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._server_port), timeout=5.0)
        except OSError:
            client.close()  # nobody there: the client sees what it would see without us
            return
        for each in (client, server):
            each.settimeout(None)
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Connection(client, server)
        with self._changed:
            self._connections.add(connection)
        speech = self._speech()
        back = threading.Thread(target=self._relay, args=[connection, speech.answers(connection)], daemon=True)
        back.start()
        self._relay(connection, speech.requests(connection))
        back.join()
        with self._changed:
            self._connections.discard(connection)

    def _relay(self, connection: Connection, frames: Iterator[Frame]) -> None:
        with contextlib.suppress(Closed):
            for frame in frames:
                self._take(frame, connection)
        connection.close()

    def _take(self, frame: Frame, connection: Connection) -> None:
        with self._changed:
            self._counts[frame.side, frame.kind] += 1
            self._changed.notify_all()
            rules = list(self._rules)
        for rule in rules:
            if rule.takes(frame):
                rule.act(frame, connection)
                return
        connection.forward(frame)
