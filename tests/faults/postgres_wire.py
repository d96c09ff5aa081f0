"""PostgreSQL's messages: a type of one byte and a length; and of which SQL each of the client's is.

The client's kinds are `Q` (a simple statement), `P`, `B`, `E` (parse, bind, execute) and so on, the server's `C`
(CommandComplete), `Z` (ReadyForQuery), `E` (ErrorResponse): the letters of the protocol. Many may come in one packet.
https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from tests.faults.rules import Act, Frame, Rule, Side, When, cut, cut_behind, holding
from tests.faults.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.wire import Connection

#: What libpq sends first where a server might speak TLS or GSSAPI; the answer is one byte, and no message.
_TLS_REQUEST, _GSSAPI_REQUEST = 80_877_103, 80_877_104

#: The kind of the first message, which has no letter.
STARTUP = "startup"


def statement(pattern: str, *kinds: str) -> When:
    """Choose what makes the server run SQL with this in it: a simple statement, or the execution of a prepared one."""
    found = re.compile(pattern.encode(), re.IGNORECASE)
    return lambda f: f.side is Side.REQUEST and f.kind in (kinds or "QE") and found.search(f.about) is not None


def answer(kind: str, pattern: str = "") -> When:
    """Choose the server's messages of a kind, with this in them: `C` with `COPY`, `Z`, `E`."""
    found = re.compile(pattern.encode(), re.IGNORECASE)
    return lambda f: f.side is Side.ANSWER and f.kind == kind and found.search(f.data) is not None


def of_batch(when: When) -> When:
    """Choose what `when` does, but only in a transaction that has copied rows, or begun to: in a flush."""
    return lambda frame: frame.in_batch and when(frame)


def message(kind: str) -> When:
    """Choose the client's messages of a kind: `d` a piece of a COPY, `c` its end."""
    return lambda f: f.side is Side.REQUEST and f.kind == kind


def following(first: When, then: When) -> When:
    """Choose what `then` does, but only when `first` has come before."""
    come: list[Frame] = []

    def when(frame: Frame) -> bool:
        if first(frame):
            come.append(frame)
            return False
        return bool(come) and then(frame)

    return when


def error_response(sqlstate: str, text: str) -> bytes:
    """Make an ErrorResponse."""
    fields = {"S": "ERROR", "V": "ERROR", "C": sqlstate, "M": text}
    body = b"".join(name.encode() + value.encode() + b"\0" for name, value in fields.items()) + b"\0"
    return b"E" + struct.pack(">i", 4 + len(body)) + body


def command_complete(tag: str) -> bytes:
    """Make a CommandComplete: `COPY 5`."""
    body = tag.encode() + b"\0"
    return b"C" + struct.pack(">i", 4 + len(body)) + body


def instead(data: bytes) -> Act:
    """Let the client have this in the place of an answer."""

    def act(frame: Frame, connection: Connection) -> None:
        connection.send(frame.side, data)

    return act


class PostgresSpeech:
    """One session: the SQL of its prepared statements and its portals."""

    def __init__(self) -> None:
        self._statements: dict[bytes, bytes] = {}
        self._portals: dict[bytes, bytes] = {}
        self._in_batch = False

    def requests(self, connection: Connection) -> Iterator[Frame]:
        """Read the client's messages; their `about` is the SQL."""
        while True:
            head = connection.read(Side.REQUEST, 8)
            length, code = struct.unpack(">ii", head)
            if code not in {_TLS_REQUEST, _GSSAPI_REQUEST}:
                break
            connection.send(Side.ANSWER, b"N")  # in the clear, as the server of the tests would say
        connection.opening = head + connection.read(Side.REQUEST, length - 8)
        yield Frame(Side.REQUEST, STARTUP, connection.opening)
        while True:
            kind, data = _read(connection, Side.REQUEST)
            sql = self._sql(kind, data[5:])
            if kind == "Q":
                self._in_batch = b"COPY " in sql or (self._in_batch and not sql.startswith(b"BEGIN"))
            yield Frame(Side.REQUEST, kind, data, sql, in_batch=self._in_batch)

    def answers(self, connection: Connection) -> Iterator[Frame]:
        """Read the server's messages."""
        while True:
            kind, data = _read(connection, Side.ANSWER)
            yield Frame(Side.ANSWER, kind, data)

    def _sql(self, kind: str, body: bytes) -> bytes:
        if kind == "Q":
            return body[:-1]
        if kind == "P":
            name, sql = body.split(b"\0")[:2]
            self._statements[name] = sql
            return sql
        if kind == "B":
            portal, name = body.split(b"\0")[:2]
            self._portals[portal] = self._statements.get(name, b"")
            return self._portals[portal]
        return self._portals.get(body.split(b"\0")[0], b"") if kind == "E" else b""


class PostgresWire(Wire):
    """A proxy before a PostgreSQL server."""

    def __init__(self, server_port: int, port: int = 0) -> None:
        super().__init__(server_port, PostgresSpeech, port)

    def cut_before(self, pattern: str, times: int | None = 1, skip: int = 0) -> Rule:
        """End the session before the server gets this SQL."""
        return self.rule(statement(pattern), cut, times, skip)

    def cut_after(self, pattern: str, times: int | None = 1, skip: int = 0) -> Rule:
        """End the session when the server has this SQL: nobody hears what became of it."""
        return self.rule(statement(pattern), cut_behind, times, skip)

    def hold_before(self, when: When) -> Rule:
        """Keep such a message from the server until the rule is lifted."""
        return self.add(holding(when))

    def hold_behind(self, when: When) -> Rule:
        """Let such a message pass, and keep what the server answers until the rule is lifted."""
        held = holding(lambda frame: frame.side is Side.ANSWER, times=None)

        def act(frame: Frame, connection: Connection) -> None:
            self.add(held)
            connection.forward(frame)

        self.rule(when, act, times=1)
        return held


def _read(connection: Connection, side: Side) -> tuple[str, bytes]:
    head = connection.read(side, 5)
    kind, length = struct.unpack(">ci", head)
    return kind.decode(), head + connection.read(side, length - 4)
