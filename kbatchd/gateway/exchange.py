"""One request and its answer: between a connection, which reads and writes, and the application, which answers.

A request that has come whole is offered to the application within the turn of the event loop that has read it: a task
for it would cost as much as all that is done with a record. Only what the application cannot answer without waiting,
and a body that comes in pieces, gets one. Runs on a gateway's event loop.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from kbatchd.errors import KbatchError
from kbatchd.gateway.problems import Problem

if TYPE_CHECKING:
    from kbatchd.gateway.memory import Memory
    from kbatchd.gateway.problems import Answer

log = logging.getLogger(__name__)


class ClientGone(KbatchError):
    """The client has hung up before its request was whole."""


class Client(Protocol):
    """Who has sent the request, and gets the answer: a connection."""

    def answer(self, exchange: Exchange, answer: Answer) -> None:
        """Write the answer."""

    def write_continue(self) -> None:
        """Ask for the body."""

    def resume_reading(self) -> None:
        """Read on."""

    def release(self) -> None:
        """Count nothing of what has been read any more: it is not held."""


class Application(Protocol):
    """What answers; it calls `Exchange.answer` once for each request."""

    def answer_now(self, exchange: Exchange) -> bool:
        """Answer a request that is whole, without waiting or when a callback comes; False: let `answer` do it."""

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request, whatever has to be waited for."""


class Shared(Protocol):
    """What all requests of a process share: its guard, as one of them sees it."""

    app: Application
    memory: Memory
    tasks: set[asyncio.Task[None]]

    def count(self, what: str) -> bool:
        """Count what is worth a line in the log; tell whether it is the first of its kind."""


class Exchange:
    """One request and its answer, as the application sees them."""

    __slots__ = (
        "_ahead_bytes", "_connection", "_done", "_expects", "_gone", "_guard", "_parts", "_task", "_waiter", "begun",
        "fields", "keep_alive", "method", "path", "query", "whole",
    )  # fmt: skip

    def __init__(
        self,
        connection: Client,
        guard: Shared,
        method: str,
        path: str,
        query: bytes,
        fields: dict[bytes, bytes],
        *,
        keep_alive: bool,
        expects: bool,
    ) -> None:
        self._connection = connection
        self._guard = guard
        self.method = method
        self.path = path
        self.query = query
        #: The head's fields, their names in lower case.
        self.fields = fields
        #: The client may send another request behind it.
        self.keep_alive = keep_alive
        #: Its body has come to its end.
        self.whole = False
        #: The application has heard of it.
        self.begun = False
        self._task: asyncio.Task[None] | None = None
        self._expects = expects
        self._parts: list[bytes] = []
        self._ahead_bytes = 0
        self._gone = False
        self._done = False
        self._waiter: asyncio.Future[None] | None = None

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

    def begin(self) -> None:
        """Let the application answer."""
        self.begun = True
        try:
            if self.whole and self._guard.app.answer_now(self):
                return
        except Exception as error:  # noqa: BLE001  # whatever it is, the client gets an answer
            self.fail(error)
            return
        self._task = asyncio.get_running_loop().create_task(self._run())
        self._guard.tasks.add(self._task)

    def give_up(self) -> None:
        """Answer now, whatever is waited for: the grace period is over."""
        if self._task is not None:
            self._task.cancel()
        else:
            self._answer_stopped()

    def disconnect(self) -> None:
        """Take note that nobody waits for an answer."""
        self._gone = True
        if self._waiter is not None:
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def _run(self) -> None:
        """Let the application answer in a task; when it does not, say so."""
        try:
            await self._guard.app.answer(self)
        except ClientGone:
            pass
        except asyncio.CancelledError:
            self._answer_stopped()
        except Exception as error:  # noqa: BLE001
            self.fail(error)
        finally:
            self._guard.tasks.discard(self._task)
            self._task = None  # else it and its coroutine would hold each other

    def _answer_stopped(self) -> None:
        detail = "the gateway stops; whether the records are in Kafka is not known"
        self.answer(Problem(HTTPStatus.GATEWAY_TIMEOUT, "stopped", detail).answer())

    # --- the application's side

    def body(self) -> bytes:
        """Return the body of a request that is whole, all that has not been read."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    @property
    def memory(self) -> Memory:
        """What the process holds."""
        return self._guard.memory

    def forget_body(self) -> None:
        """Let go of a body that has been read, before the answer."""
        self._parts = []
        self._connection.release()

    async def read(self) -> bytes:
        """Return a piece of the body as soon as there is one, nothing at its end; ClientGone when it never comes."""
        while True:
            if self._gone:
                raise ClientGone
            if self._parts or self.whole:
                body = self.body()
                self._parts, self._ahead_bytes = [], 0
                return body
            if self._expects:
                self._expects = False
                self._connection.write_continue()
            self._connection.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def answer(self, answer: Answer) -> None:
        """Write the answer, unless there is one or nobody waits for it."""
        if not self._done and not self._gone:
            self._done = True
            self._connection.answer(self, answer)

    def fail(self, error: Exception) -> None:
        """Answer that it is the gateway's own fault."""
        if self._guard.count("internal_error"):
            log.error("request failed", exc_info=error, extra={"action": "request_failed"})
        detail = "an internal error of the gateway"
        self.answer(Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail).answer())
