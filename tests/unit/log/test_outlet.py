"""Log lines go to standard error, and nobody waits for who reads it: real pipes and sockets."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sys
import time
from typing import TYPE_CHECKING

import pytest

from kbatchd import log
from kbatchd.log.outlet import WAIT_SECONDS, Outlet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LINE = b"x" * 99 + b"\n"


@pytest.fixture(params=["pipe", "socket", "pipe that cannot be opened again"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """Two descriptors: one to read from, one to write to."""
    if request.param == "socket":
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        reader, writer = one.detach(), other.detach()
    else:
        reader, writer = os.pipe()
    if "cannot" in request.param:  # as one that another user has made
        opened = os.open
        refused = PermissionError(13, "Permission denied")

        def refuse(path: str, flags: int, *more: int) -> int:
            if path.startswith("/proc/self/fd/"):
                raise refused
            return opened(path, flags, *more)

        monkeypatch.setattr(os, "open", refuse)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def test_what_does_not_fit_is_dropped_and_nobody_waits(ends: tuple[int, int]) -> None:
    reader, writer = ends
    outlet = Outlet(writer)
    began, written, refused = time.monotonic(), 0, 0
    while refused < 1_000:
        if outlet.write(LINE):
            written += 1
        else:
            refused += 1
    assert time.monotonic() - began < 5, "once for all of them, not for each"
    assert os.read(reader, 10_000_000) == LINE * written
    assert outlet.write(LINE)
    assert os.read(reader, 1_000) == LINE
    outlet.close()


def test_a_line_is_whole_however_long_it_is(ends: tuple[int, int]) -> None:
    reader, writer = ends
    outlet = Outlet(writer)
    long = b"y" * 299_999 + b"\n"
    lines = [LINE, long, LINE, long]
    got, accepted = b"", b""
    while len(accepted) < 3_000_000:
        for line in lines:
            if outlet.write(line):
                accepted += line
        got += os.read(reader, 70_000)
    os.set_blocking(reader, False)
    for _ in range(2 * len(lines)):
        outlet.write(b"")
        try:
            got += os.read(reader, 10_000_000)
        except BlockingIOError:
            continue
    outlet.close()
    assert got == accepted


def test_a_reader_that_is_a_little_behind_is_waited_for() -> None:
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:  # it reads a page a millisecond: a burst is more than the pipe holds
        os.close(writer)
        while os.read(reader, 4_096):
            time.sleep(0.001)
        os._exit(0)
    os.close(reader)
    outlet = Outlet(writer)
    refused = sum(not outlet.write(LINE) for _ in range(10_000))
    os.close(writer)
    os.closerange(outlet._descriptor, outlet._descriptor + 1)
    os.waitpid(pid, 0)
    assert refused == 0
    assert WAIT_SECONDS < 1


def test_the_shells_own_descriptor_stays_as_it_is() -> None:
    reader, writer = os.pipe()
    outlet = Outlet(writer)
    outlet.write(LINE)
    outlet.close()
    assert os.get_blocking(writer)
    os.close(reader)
    os.close(writer)


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as file:
        outlet = Outlet(file.fileno())
        assert all(outlet.write(LINE) for _ in range(10_000))
    assert (tmp_path / "log").read_bytes() == LINE * 10_000


def test_the_number_of_dropped_lines_is_told_when_there_is_room_again(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4_096)
    with os.fdopen(writer, "w") as stderr, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stderr)
        log.setup("info", "worker 0")
        logger = logging.getLogger("kbatchd.test")
        for number in range(1_000):
            logger.info("line", extra={"action": "test", "number": number})
        kept = os.read(reader, 10_000).decode().splitlines()
        log.tell_repeats()
        logger.info("line", extra={"action": "test", "number": 1_000})
        told, last = os.read(reader, 10_000).decode().splitlines()
        assert told.endswith(
            " WARNING worker 0: lines of the log were dropped: nobody has read standard error "
            f"action=log_dropped count={1_000 - len(kept)}"
        )
        assert last.endswith("number=1000")
    log.setup("info", "worker 0")  # gives the former pipe back
    os.close(reader)
