"""What is forked: a process of one thread and without a socket, each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fix_daemon import Daemon, MakeDaemon, is_alive, wait_until
from tests.fix_load import Delivery


def test_the_supervisor_has_one_thread_and_no_socket_before_every_fork(
    delivery: Delivery, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(delivery.route).start()
    # The kernel closes our own files one after the other while it begins the program.
    wait_until(lambda: not sockets(daemon.pid), 5, "the program's begin", 0.0001)
    # From the first moment on: the start-up checks are forked as well.
    wait_until(lambda: is_clean(daemon) and daemon.logged("action=ready"), 30, "a daemon that is ready", 0.001)

    for _ in range(3):
        victim = daemon.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(
            lambda: is_clean(daemon) and len(daemon.workers()) == 2 and victim not in daemon.workers(),  # noqa: B023
            10,
            "a new worker",
            0.001,
        )
    # Workers have both, and the kernel gave them what the supervisor had at the fork: nothing else.
    wait_until(lambda: all(threads(pid) > 1 and sockets(pid) for pid in daemon.workers()), 10, "workers at work")
    assert is_clean(daemon)


def test_workers_die_with_their_supervisor(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    workers = daemon.workers()
    assert len(workers) == 2
    daemon.kill()
    killed = time.monotonic()
    wait_until(lambda: not any(map(is_alive, workers)), 5, "the workers' end")
    assert time.monotonic() - killed < 1.0, "the kernel does it: 0.02 s"


def test_with_standard_files_that_are_closed(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(delivery.route)
    command = f"exec {sys.executable} -m kbatchd --config {daemon.config} <&- >&- 2>&-"
    with subprocess.Popen(["/bin/sh", "-c", command]) as process:
        try:
            delivery.send(200)
            delivery.wait_drained()
        finally:
            process.terminate()
        assert process.wait(60) == 0
    delivery.assert_exactly_once()


def is_clean(daemon: Daemon) -> bool:
    assert threads(daemon.pid) == 1
    assert sockets(daemon.pid) == []
    return True


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def sockets(pid: int) -> list[str]:
    """Return the open files that are no files: sockets, and the event queues that go with them."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(descriptor.readlink())
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith(("socket:", "anon_inode:")):
            found.append(target)
    return found
