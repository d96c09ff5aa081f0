"""The daemon as a real process: its file, its log, its workers, and the ways to hurt it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from kbatchd import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

    from kbatchd.devstack.kafka import GivenKafka, Kafka

DAEMONS = pytest.StashKey["list[Daemon]"]()

#: Of the log of each daemon of a test that failed.
SHOWN_LINES = 60

#: The start-up checks and the first claims together, on a machine that does much else.
READY_SECONDS = 30.0


#: What takes a second here may take three on a busy machine. How long something may take by promise, a test asserts.
SLOWEST = 3.0


def wait_until(condition: Callable[[], object], seconds: float, what: str, every_seconds: float = 0.02) -> None:
    """Return when the condition holds; fail the test, saying what was waited for, when it does not in time."""
    seconds *= SLOWEST
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(every_seconds)


def children(pid: int) -> list[int]:
    """Return the child processes of a process without threads, oldest first."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def is_alive(pid: int) -> bool:
    """Tell whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def is_stopped(pid: int) -> bool:
    """Tell whether a process stands still, as after SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Daemon:
    """`python -m kbatchd --config FILE`, or another program in its place, started as often as a test likes."""

    def __init__(self, config: Path, name: str, program: Sequence[str]) -> None:
        self.config = config
        self.log = config.with_name(f"{name}.log")
        self.log.touch()  # a test may end before it starts anything
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._read_from = 0

    @property
    def pid(self) -> int:
        assert self._process is not None, "the daemon was not started"
        return self._process.pid

    def start(self) -> Daemon:
        """Start the supervisor; the log is read from here on."""
        self._read_from = self.log.stat().st_size
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, *self._program, "--config", self.config],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self

    def wait_ready(self, seconds: float = READY_SECONDS) -> str:
        """Wait for the line that goes with systemd's READY=1; return its status."""
        self.wait_for_log("action=ready", seconds)
        line = next(line for line in self.lines() if "action=ready" in line)
        return line.partition("status=")[2]

    def lines(self) -> list[str]:
        """Return what was logged since the last start."""
        return self.log.read_bytes()[self._read_from :].decode().splitlines()

    def logged(self, text: str) -> list[str]:
        """Return the lines since the last start that have this text in them."""
        return [line for line in self.lines() if text in line]

    def wait_for_log(self, text: str, seconds: float = 10.0, count: int = 1) -> None:
        """Wait until so many lines have this text in them; fail at once when the daemon ends before."""

        def seen() -> bool:
            ended = self.has_ended()
            if len(self.logged(text)) >= count:
                return True
            if ended:
                pytest.fail(f"the daemon ended without {text!r} in its log")
            return False

        wait_until(seen, seconds, f"{text!r} in the log, {count} times")

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def workers(self) -> list[int]:
        """Return the pids of the workers that run."""
        return self._started("worker")

    def gateways(self) -> list[int]:
        """Return the pids of the gateways that run."""
        return self._started("gateway")

    def monitors(self) -> list[int]:
        """Return the pids of the monitors that run."""
        return self._started("monitor")

    def wait_stopped(self) -> None:
        """Wait until SIGSTOP has reached the supervisor and each worker."""
        wait_until(lambda: all(map(is_stopped, (self.pid, *self.workers()))), 5, "all to stand still")

    def numbered_workers(self) -> list[tuple[int, int]]:
        """Return the workers that run: their number and pid."""
        found = [re.search(r" worker=(\d+) pid=(\d+)", line) for line in self.logged("action=worker_started")]
        return [(int(each[1]), int(each[2])) for each in found if each and is_alive(int(each[2]))]

    def _started(self, kind: str) -> list[int]:
        started = [int(line.partition(" pid=")[2].split()[0]) for line in self.logged(f"action={kind}_started")]
        return [pid for pid in started if is_alive(pid)]

    def kill(self) -> None:
        """End the supervisor as a crash would; its workers die with it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def send_to_all(self, how: signal.Signals) -> None:
        """Send a signal to the supervisor, then to each worker: SIGSTOP and SIGCONT, for the daemon as a whole."""
        workers = self.workers()
        for pid in (self.pid, *workers):
            os.kill(pid, how)

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 15.0) -> int:
        """Stop in good order; return the exit code."""
        assert self._process is not None
        self._process.send_signal(how)
        return self.wait(seconds)

    def wait(self, seconds: float = 15.0) -> int:
        """Wait for the end; return the exit code."""
        assert self._process is not None
        return self._process.wait(seconds * SLOWEST)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one of kbatchd's own commands with the same file, as an operator would."""
        return subprocess.run(
            [sys.executable, "-m", "kbatchd", *arguments[:2], "--config", self.config, *arguments[2:]],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def clean_up(self) -> None:
        """End everything that is left of the daemon, frozen or not."""
        if self._process is None or self._process.poll() is not None:
            return
        workers = children(self.pid)
        self._process.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


class Command(Protocol):
    """Runs one of kbatchd's own commands in this process: a process of its own takes a second to begin."""

    def __call__(self, daemon: Daemon, *arguments: str) -> tuple[int, str]:
        """Return the exit code, and what was said on both outputs; the daemon's file is named behind the arguments."""


@pytest.fixture
def command(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    """Run commands in this process."""

    def run(daemon: Daemon, *arguments: str) -> tuple[int, str]:
        capfdbinary.readouterr()
        code = cli.main([*arguments, "--config", str(daemon.config)])
        said = capfdbinary.readouterr()
        return code, (said.out + said.err).decode()

    return run


class MakeDaemon(Protocol):
    """Writes a file and returns its daemon, not started yet."""

    def __call__(
        self,
        *routes: Mapping[str, object],
        config: Path | None = None,
        program: Sequence[str] = ("-m", "kbatchd"),
        **tables: Mapping[str, object],
    ) -> Daemon:
        """Each route is a [[route]], each keyword a table of the file; `config` is a file that is there already."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the daemons' logs with a test that failed."""
    report = yield
    for daemon in item.stash.get(DAEMONS, []) if report.failed else ():
        report.sections.append((daemon.log.name, "\n".join(daemon.lines()[-SHOWN_LINES:])))
    return report


@pytest.fixture
def make_daemon(
    kafka: Kafka | GivenKafka, database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[MakeDaemon]:
    """Make daemons between the shared servers, unless `kafka=` and `postgres=` say otherwise; all end with the test."""
    daemons = request.node.stash[DAEMONS] = list[Daemon]()
    with daemons_in(tmp_path, kafka.bootstrap_servers, database, daemons) as make:
        yield make


@contextlib.contextmanager
def daemons_in(directory: Path, bootstrap_servers: str, dsn: str, daemons: list[Daemon]) -> Iterator[MakeDaemon]:
    """Make daemons with their files in this directory, and note each; all end with the block."""

    def make(
        *routes: Mapping[str, object],
        config: Path | None = None,
        program: Sequence[str] = ("-m", "kbatchd"),
        **tables: Mapping[str, object],
    ) -> Daemon:
        name = f"daemon-{len(daemons)}"
        if config is None:
            config = directory / f"{name}.toml"
            text = _file(routes, _tables(bootstrap_servers, dsn, tables))
            config.write_text(f"state_directory = {json.dumps(str(directory / 'state'))}\n{text}")
        daemon = Daemon(config, name, program)
        daemons.append(daemon)
        return daemon

    try:
        yield make
    finally:
        for daemon in daemons:
            daemon.clean_up()


def _tables(bootstrap_servers: str, dsn: str, given: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, Any]]:
    """Fill up what a test did not say: two workers that restart soon, small batches, short waits."""
    tables: dict[str, dict[str, Any]] = {
        "kafka": {"bootstrap_servers": bootstrap_servers},
        "postgres": {"dsn": dsn},
        "workers": {"count": 2, "buffer_bytes": 8_388_608, "restart_backoff_max_seconds": 0.5},
        "batch": {"max_rows": 2_000, "max_bytes": 1_048_576, "linger_seconds": 0.2},
    }
    for name, table in given.items():
        tables[name] = {**tables.get(name, {}), **table}
    return tables


def _file(routes: Sequence[Mapping[str, object]], tables: Mapping[str, Mapping[str, object]]) -> str:
    parts = [_table(f"[{name}]", table) for name, table in tables.items()]
    parts += [_table("[[route]]", route) for route in routes]
    return "\n".join(parts)


def _table(head: str, table: Mapping[str, object]) -> str:
    return "\n".join([head, *(f"{key} = {toml(value)}" for key, value in table.items()), ""])


def toml(value: object) -> str:
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key} = {toml(inner)}' for key, inner in value.items())}}}"
    return json.dumps(value)  # JSON's strings, numbers, lists and booleans are TOML's as well
