"""Server programs as child processes: they die with us, and Ctrl-C in the terminal does not reach them.

kafka.py and postgres.py start their servers through this file, in the process and the thread that own the server
object. That thread must live as long as the server: Linux sends the death signal when the *thread* that forked ends.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from signal import Signals

StrPath = str | Path

#: Between two looks at a server that is starting; each look is one connection.
POLL_SECONDS = 0.05
#: Below the range Linux takes clients' ports from (32768 up): while a server is down, a client that keeps trying to
#: reach it must not be given the server's own port, which then could not be bound again.
PORTS = range(20_000, 32_000)
#: Each process goes through them from a place of its own (the system's randomness: tests seed Python's). So a port
#: whose server is down is not given away again, and two processes that start servers at the same moment do not meet.
_PLACES = itertools.count(random.SystemRandom().randrange(len(PORTS)))
#: Enough of a log for its last error and what led to it.
TAIL_BYTES = 3000


class Account(NamedTuple):
    """The user a server runs as."""

    uid: int
    gid: int


def myself() -> Account:
    """Return the user this process runs as."""
    return Account(os.getuid(), os.getgid())


def spawn(
    command: Sequence[StrPath],
    *,
    log: Path,
    death_signal: Signals,
    account: Account | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, its output appended to `log`, in the log's directory or `cwd`."""
    account = account or myself()
    launch = Path(__file__).with_name("launch.py")
    numbers = (death_signal.value, os.getpid(), account.uid, account.gid)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", launch, *map(str, numbers), *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd or log.parent,
            start_new_session=True,
        )


def run(command: Sequence[StrPath], *, log: Path, account: Account | None = None) -> bool:
    """Run a program to its end, as `spawn` does; tell whether it succeeded."""
    with spawn(command, log=log, death_signal=SIGKILL, account=account) as process:
        try:
            return process.wait() == 0
        except BaseException:
            process.kill()
            raise


def wait_until_ready(
    name: str, process: subprocess.Popen[bytes], is_ready: Callable[[], bool], *, log: Path, timeout_seconds: float
) -> None:
    """Return when `is_ready()` says so; raise ServerUnavailable, with the end of the log, when it never will."""
    deadline = time.monotonic() + timeout_seconds
    while not is_ready():
        if process.poll() is not None:
            raise ServerUnavailable(f"{name} ended with status {process.returncode} while starting.\n{tail(log)}")
        if time.monotonic() > deadline:
            raise ServerUnavailable(f"{name} was not ready within {timeout_seconds:.0f} s.\n{tail(log)}")
        time.sleep(POLL_SECONDS)


def end(process: subprocess.Popen[bytes], signal: Signals, *, timeout_seconds: float) -> None:
    """Signal a process and wait for its end; kill it when it takes longer than allowed."""
    if process.poll() is None:
        process.send_signal(signal)
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def children(parent: int) -> list[int]:
    """Return the processes whose parent is `parent`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the name, which is in brackets and may hold anything: the state, then the parent.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(stat.parent.name))
    return found


def is_listening(port: int) -> bool:
    """Tell whether something accepts connections on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
        return True
    return False


def is_free(port: int) -> bool:
    """Tell whether a server could listen on a port of 127.0.0.1."""
    with contextlib.suppress(OSError), socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what a former server's connections left is no bar
        probe.bind(("127.0.0.1", port))
        return True
    return False


def free_ports(count: int) -> list[int]:
    """Find ports of 127.0.0.1 that nothing listens on, all different."""
    ports: list[int] = []
    while len(ports) < count:
        port = PORTS[next(_PLACES) % len(PORTS)]
        if is_free(port):
            ports.append(port)
    return ports


def tail(log: Path) -> str:
    """Return the end of a server's log, under a line that names the file."""
    try:
        text = log.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
    except OSError as error:
        return f"Its log cannot be read: {error}"
    return f"The end of its log {log}:\n{text}" if text else f"Its log {log} is empty."
