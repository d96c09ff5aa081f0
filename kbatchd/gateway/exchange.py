"""One request and its answer: between a connection, which reads and writes, and the application, which answers.

Runs on a gateway's event loop; a task for each request.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from kbatchd.gateway.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.gateway.guard import Guard

    Headers = Sequence[tuple[bytes, bytes]]
    Message = dict[str, Any]

log = logging.getLogger(__name__)


class Client(Protocol):
    """Who has sent the request, and gets the answer: a connection."""

    def answer(self, exchange: Exchange, status: int, headers: Headers, body: bytes) -> None:
        """Write the answer."""

    def write_continue(self) -> None:
        """Ask for the body."""

    def resume_reading(self) -> None:
        """Read on."""


class Exchange:
    """One request and its answer, as the application sees them."""

    __slots__ = (
        "_ahead_bytes", "_answer_headers", "_connection", "_done", "_expects", "_gone", "_parts", "_status",
        "_told_end", "_waiter", "keep_alive", "scope", "task", "whole",
    )  # fmt: skip

    def __init__(self, connection: Client, scope: dict[str, Any], *, keep_alive: bool, expects: bool) -> None:
        self._connection = connection
        self.scope = scope
        #: The client may send another request behind it.
        self.keep_alive = keep_alive
        #: Its body has come to its end.
        self.whole = False
        self.task: asyncio.Task[None] | None = None
        self._expects = expects
        self._parts: list[bytes] = []
        self._ahead_bytes = 0
        self._told_end = False
        self._gone = False
        self._done = False
        self._waiter: asyncio.Future[None] | None = None
        self._status = 0
        self._answer_headers: Headers = ()

    # --- called by the connection

    def feed(self, body: bytes) -> int:
        """Take a piece of the body; return how much the application has not taken yet."""
        self._parts.append(body)
        self._ahead_bytes += len(body)
        if self._waiter is not None:
            self._wake()
        return self._ahead_bytes

    def end(self) -> None:
        """Take note that the body is whole."""
        self.whole = True
        if self._waiter is not None:
            self._wake()

    def disconnect(self) -> None:
        """Take note that nobody waits for an answer."""
        self._gone = True
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # --- the application's side

    async def run(self, guard: Guard) -> None:
        """Let the application answer; when it does not, say so."""
        try:
            await guard.app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:  # the end of the grace period
            detail = "the gateway stops; whether the records are in Kafka is not known"
            self._fail(Problem(HTTPStatus.GATEWAY_TIMEOUT, "stopped", detail))
        except Exception:
            if guard.count("internal_error"):
                log.exception("request failed", extra={"action": "request_failed"})
        finally:
            if not self._done:
                self._fail(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "an error of the gateway's own"))
            guard.tasks.discard(self.task)
            self.task = None  # else it and its coroutine would hold each other

    def _fail(self, problem: Problem) -> None:
        if not self._done and not self._gone:
            self._done = True
            self._connection.answer(self, *problem.answer())

    async def receive(self) -> Message:
        """Return a piece of the body as soon as there is one, or that the client has gone."""
        while not self._gone and not self._done:
            parts = self._parts
            if parts or (self.whole and not self._told_end):
                self._told_end = self.whole
                self._parts, self._ahead_bytes = [], 0
                body = parts[0] if len(parts) == 1 else b"".join(parts)
                return {"type": "http.request", "body": body, "more_body": not self.whole}
            if self._expects:
                self._expects = False
                self._connection.write_continue()
            self._connection.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Take the answer: its head, then its body, which may come in pieces but is written as one."""
        if message["type"] == "http.response.start":
            self._status, self._answer_headers = message["status"], message["headers"]
            self._parts, self._told_end = [], True
            return
        if self._gone or self._done:
            return
        self._done = True
        self._connection.answer(self, self._status, self._answer_headers, message["body"])
