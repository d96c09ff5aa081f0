"""Messages to systemd, received on a real socket."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from kbatchd import systemd

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def _no_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def receiver() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.settimeout(60)
        yield bound


@pytest.mark.parametrize("is_abstract", [False, True])
def test_messages_arrive(
    *, is_abstract: bool, receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"kbatchd-test-{os.getpid()}" if is_abstract else str(tmp_path / "notify")
    receiver.bind(f"\0{name}" if is_abstract else name)
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}" if is_abstract else name)

    systemd.ready("owns 4 partitions")
    systemd.status("two\nlines")
    systemd.watchdog()
    systemd.stopping("draining")

    assert [receiver.recv(4096).decode() for _ in range(4)] == [
        "READY=1\nSTATUS=owns 4 partitions",
        "STATUS=two lines",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=draining",
    ]


def test_nobody_reads(receiver: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.bind(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    for _ in range(10_000):  # more than its queue holds: a daemon that waited here would not hear a SIGTERM
        systemd.watchdog()


@pytest.mark.parametrize("address", ["", "relative", "/nobody/listens/here"])
def test_nobody_listens(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.ready("all is well")


def test_not_under_systemd() -> None:
    systemd.ready("all is well")
    assert systemd.watchdog_interval_seconds() is None
    assert not systemd.stderr_is_journal()


@pytest.mark.parametrize(
    ("microseconds", "pid", "seconds"),
    [
        ("30000000", None, 30.0),
        ("500000", "our own", 0.5),
        ("30000000", "1", None),
        ("0", None, None),
        ("soon", None, None),
    ],
)
def test_watchdog_interval(
    microseconds: str, pid: str | None, seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if pid == "our own":
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    elif pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert systemd.watchdog_interval_seconds() == seconds


def test_stderr_is_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "journal").open("w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        file = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{file.st_dev}:{file.st_ino}")
        assert systemd.stderr_is_journal()
        monkeypatch.setenv("JOURNAL_STREAM", f"{file.st_dev}:{file.st_ino + 1}")  # inherited, then redirected
        assert not systemd.stderr_is_journal()
