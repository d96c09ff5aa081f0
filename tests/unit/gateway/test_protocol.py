"""Requests mean the same however they are cut into reads."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from kbatchd.config import Gateway
from kbatchd.gateway.guard import Guard
from kbatchd.gateway.protocol import Connection
from tests.http_requests import CASES, VALID
from tests.serving import Recorder, answers

if TYPE_CHECKING:
    from collections.abc import Iterable


class Wire(asyncio.Transport):
    """A transport that keeps what is written, so that a test says where a read ends."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False
        self.reading = asyncio.Event()
        self.reading.set()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name.endswith("name") else default

    def write(self, data: Any) -> None:
        assert not self.ended
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True

    def abort(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        self.reading.clear()

    def resume_reading(self) -> None:
        self.reading.set()


async def _converse(pieces: Iterable[bytes]) -> tuple[Wire, Recorder]:
    """Let a connection read these pieces, each as soon as it reads at all."""
    app, wire = Recorder(), Wire()
    guard = Guard(app, Gateway())
    connection = Connection(guard, asyncio.get_running_loop())
    connection.connection_made(wire)
    for piece in pieces:
        await asyncio.wait_for(wire.reading.wait(), timeout=60)
        connection.data_received(piece)
    while guard.tasks:
        await asyncio.wait(guard.tasks, timeout=60)
    return wire, app


def converse(*pieces: bytes) -> tuple[tuple[int, ...], list[bytes]]:
    """Return the statuses of the answers and the bodies the application got."""
    wire, app = asyncio.run(_converse(pieces))
    method = "HEAD" if b"".join(pieces).startswith(b"HEAD") else "POST"
    return tuple(answer.status for answer in answers(wire.written, [method])), [taken.body for taken in app.taken]


def test_a_request_means_the_same_one_byte_at_a_time() -> None:
    for name, request in CASES.items():
        statuses, bodies = converse(*(bytes([byte]) for byte in request.data))
        assert (name, statuses) == (name, request.statuses)
        assert len(bodies) == request.taken


@pytest.mark.parametrize("name", ["pipelined of all kinds", "trailers, then another", "upgrade of chunks, and others"])
def test_a_request_means_the_same_cut_anywhere(name: str) -> None:
    request = VALID[name]
    for place in range(1, len(request.data)):
        statuses, bodies = converse(request.data[:place], request.data[place:])
        assert (place, statuses) == (place, request.statuses)
        assert len(bodies) == request.taken
