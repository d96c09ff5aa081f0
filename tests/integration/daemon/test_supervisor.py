"""The supervisor over workers that do nothing: real processes, real signals, no server.

The supervisor runs in a process of its own (`PROGRAM`), whose workers write what happens to them into a file.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.fix_daemon import children, is_alive, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SOON_SECONDS = 30.0

#: argv: the events' file, workers, heartbeat_timeout_seconds, grace_seconds, then what the check and the workers do.
PROGRAM = """
import faulthandler, os, signal, sys, time
from pathlib import Path
from kbatchd import log
from kbatchd.daemon.plan import Group, Plan
from kbatchd.daemon.supervisor import Supervisor
from kbatchd.stats.slots import Field, Slots, State

events, count, heartbeat, grace, check, work = sys.argv[1:]
starts = {}

def tell(*words):
    with open(events, "a") as file:
        file.write(" ".join(map(str, (time.monotonic(), *words))) + "\\n")

def run_check():
    tell("check", 0, os.getpid())
    while check == "forever":
        time.sleep(0.05)
    if check == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return int(check)

def run_worker(index, slot):
    faulthandler.enable()
    stopping = []  # no lock that the handler could find taken
    if work == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: (tell("sigterm", index, os.getpid()), stopping.append(1)))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    earlier = Path(events).read_text().count(f" start {index} ")
    tell("start", index, os.getpid())
    slot[Field.CLAIMED] = 1
    if work == "crash" or (work == "crash_once" and not earlier):
        raise RuntimeError("as told")
    if work == "config":
        return 78
    if work == "silent" and index == 0 and not earlier:
        while True:
            time.sleep(1)
    while not stopping:
        time.sleep(0.02)
        slot.beat()
        if work != "ready_later" or Path(events + ".go").exists():
            slot[Field.STATE] = State.RUNNING
    tell("stop", index, os.getpid())
    return 1 if work == "fail_at_stop" else 0

log.setup("info", "supervisor")
workers = Group("worker", int(count), run_worker, float(grace))
plan = Plan((workers,), Slots({"worker": int(count)}), run_check, lambda: 0, float(heartbeat), 0.4)

class Reload:
    def read(self):
        return 78 if Path(events + ".bad").exists() else 0

    def plan(self):
        return plan

sys.exit(Supervisor(plan, Reload()).run())
"""


class Event(NamedTuple):
    """What a process of the program told."""

    at: float
    what: str
    worker: int
    pid: int


class Supervised:
    """The running program."""

    def __init__(self, process: subprocess.Popen[bytes], events: Path, log: Path) -> None:
        self.process = process
        self._events = events
        self._log = log

    def events(self, what: str) -> list[Event]:
        if not self._events.exists():
            return []
        lines = [line.split() for line in self._events.read_text().splitlines()]
        return [Event(float(at), name, int(index), int(pid)) for at, name, index, pid in lines if name == what]

    def wait_for(self, what: str, count: int, seconds: float = SOON_SECONDS) -> list[Event]:
        wait_until(lambda: len(self.events(what)) >= count, seconds, f"{count} times {what!r}\n{self.log()}")
        return self.events(what)

    def log(self) -> str:
        return self._log.read_text()

    def workers(self) -> list[int]:
        return [pid for pid in children(self.process.pid) if is_alive(pid)]

    def let_go(self) -> None:
        self._events.with_name(self._events.name + ".go").touch()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(SOON_SECONDS)


class Start:
    """Starts the program; see `PROGRAM` for what it can be told."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.started: list[Supervised] = []

    def __call__(
        self,
        work: str = "beat",
        *,
        count: int = 2,
        check: str = "0",
        heartbeat: float = 30.0,
        grace: float = 5.0,
        environment: dict[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> Supervised:
        name = f"run-{len(self.started)}"
        events, log = self._directory / f"{name}.events", self._directory / f"{name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, events, str(count), str(heartbeat), str(grace), check, work],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                preexec_fn=before,  # noqa: PLW1509 - no thread runs here
            )
        self.started.append(Supervised(process, events, log))
        return self.started[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    start = Start(tmp_path)
    yield start
    for supervised in start.started:
        workers = children(supervised.process.pid)
        supervised.process.kill()
        supervised.process.wait()
        wait_until(lambda pids=workers: not any(map(is_alive, pids)), SOON_SECONDS, "the workers' end")  # type: ignore[misc]


class TestCheck:
    def test_it_runs_once_before_the_workers_in_a_process_of_its_own(self, start: Start) -> None:
        supervised = start()
        supervised.wait_for("start", 2)
        (check,) = supervised.events("check")
        assert check.pid != supervised.process.pid
        assert not is_alive(check.pid)
        assert check.at < min(event.at for event in supervised.events("start"))

    @pytest.mark.parametrize(("check", "code"), [("78", 78), ("69", 69), ("1", 1), ("killed", 70)])
    def test_its_exit_code_is_the_daemons(self, start: Start, check: str, code: int) -> None:
        supervised = start(check=check)
        assert supervised.process.wait(SOON_SECONDS) == code
        assert supervised.events("start") == []

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    def test_a_stop_does_not_wait_for_it(self, start: Start, how: signal.Signals) -> None:
        supervised = start(check="forever")
        (check,) = supervised.wait_for("check", 1)
        assert supervised.stop(how) == 0
        assert not is_alive(check.pid)
        assert supervised.events("start") == []


class TestRestart:
    def test_a_killed_worker_is_replaced(self, start: Start) -> None:
        supervised = start()
        first = supervised.wait_for("start", 2)
        os.kill(first[0].pid, signal.SIGKILL)
        last = supervised.wait_for("start", 3)[-1]
        assert last.worker == first[0].worker
        assert last.pid not in {event.pid for event in first}
        assert is_alive(first[1].pid)
        assert "exit_code=-9" in supervised.log()

    def test_the_pauses_double_up_to_the_limit(self, start: Start) -> None:
        supervised = start("crash", count=1)
        starts = supervised.wait_for("start", 6)
        pauses = [after.at - before.at for before, after in pairwise(starts)]
        for pause, least in zip(pauses, [0.1, 0.2, 0.4, 0.4, 0.4], strict=False):
            assert pause >= least
        assert "as told" in supervised.log()

    def test_one_that_crashes_does_not_disturb_the_others(self, start: Start) -> None:
        supervised = start("crash_once", count=3)
        supervised.wait_for("start", 6)
        wait_until(lambda: len(supervised.workers()) == 3, SOON_SECONDS, "three workers")
        assert supervised.stop() == 0
        assert len(supervised.events("stop")) == 3

    def test_a_silent_worker_tells_where_it_hangs_and_is_replaced(self, start: Start) -> None:
        supervised = start("silent", heartbeat=3.0)
        starts = supervised.wait_for("start", 3)
        silent = next(event for event in starts if event.worker == 0)
        assert starts[-1].worker == 0
        assert not is_alive(silent.pid)
        (check,) = supervised.events("check")  # from before its first beat, which it may have told of late
        assert 3.0 <= starts[-1].at - check.at < 3 * SOON_SECONDS
        log = supervised.log()
        assert "worker is silent, and is replaced; look at this machine's memory and processors, or raise " in log
        assert "Fatal Python error: Aborted" in log
        assert "exit_code=-6" in log

    def test_no_core_is_written_of_a_worker(self, start: Start) -> None:
        """It would hold records, and the servers' passwords."""
        supervised = start(before=lambda: resource.setrlimit(resource.RLIMIT_CORE, (4_096, resource.RLIM_INFINITY)))
        for event in supervised.wait_for("start", 2):
            limits = Path(f"/proc/{event.pid}/limits").read_text()
            assert re.search(r"^Max core file size +1 ", limits, re.MULTILINE)

    def test_a_stopped_worker_is_killed(self, start: Start) -> None:
        """SIGABRT does not reach a process that SIGSTOP holds; SIGKILL does."""
        supervised = start(heartbeat=3.0)
        frozen = supervised.wait_for("start", 2)[0]
        os.kill(frozen.pid, signal.SIGSTOP)
        assert supervised.wait_for("start", 3)[-1].worker == frozen.worker
        assert "exit_code=-9" in supervised.log()

    def test_a_wrong_configuration_stops_the_daemon(self, start: Start) -> None:
        supervised = start("config")
        assert supervised.process.wait(SOON_SECONDS) == 78
        assert len(supervised.events("start")) <= 2

    def test_sigchld_that_was_ignored_by_who_started_us(self, start: Start) -> None:
        """An ignored SIGCHLD is inherited, and would hide how children end."""
        supervised = start("crash", count=1, before=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
        supervised.wait_for("start", 2)
        assert supervised.stop() == 0


class TestStop:
    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
    def test_every_worker_ends_by_itself(self, start: Start, how: signal.Signals) -> None:
        supervised = start(count=3)
        supervised.wait_for("start", 3)
        assert supervised.stop(how) == 0
        assert sorted(event.worker for event in supervised.events("sigterm")) == [0, 1, 2]
        assert sorted(event.worker for event in supervised.events("stop")) == [0, 1, 2]
        assert "worker killed" not in supervised.log()

    def test_nobody_is_started_any_more(self, start: Start) -> None:
        supervised = start("fail_at_stop")
        supervised.wait_for("start", 2)
        assert supervised.stop() == 0
        assert len(supervised.events("start")) == 2

    def test_who_does_not_end_within_the_grace_is_killed(self, start: Start) -> None:
        supervised = start("stubborn", count=1, grace=0.5)
        (worker,) = supervised.wait_for("start", 1)
        began = time.monotonic()
        assert supervised.stop() == 0
        assert 0.5 <= time.monotonic() - began < SOON_SECONDS
        assert not is_alive(worker.pid)
        assert "worker killed" in supervised.log()

    def test_workers_die_with_a_killed_supervisor(self, start: Start) -> None:
        supervised = start(count=3)
        pids = [event.pid for event in supervised.wait_for("start", 3)]
        supervised.process.kill()
        supervised.process.wait()
        wait_until(lambda: not any(map(is_alive, pids)), SOON_SECONDS, "the workers' end")
        assert supervised.events("stop") == []

    def test_the_check_dies_with_it_too(self, start: Start) -> None:
        supervised = start(check="forever")
        (check,) = supervised.wait_for("check", 1)
        supervised.process.kill()
        supervised.process.wait()
        wait_until(lambda: not is_alive(check.pid), SOON_SECONDS, "the check's end")


class TestSystemd:
    @pytest.fixture
    def systemd(self, tmp_path: Path) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(str(tmp_path / "notify"))
            receiver.settimeout(SOON_SECONDS)
            yield receiver

    def heard(self, systemd: socket.socket, until: str) -> list[str]:
        """Return the messages up to the first one with this word."""
        messages: list[str] = []
        while not messages or until not in messages[-1]:
            messages.append(systemd.recv(4096).decode())
        return messages

    def test_ready_when_every_worker_is(self, start: Start, systemd: socket.socket, tmp_path: Path) -> None:
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "600000"}
        supervised = start("ready_later", environment=environment)
        supervised.wait_for("start", 2)
        before = self.heard(systemd, "WATCHDOG=1") + self.heard(systemd, "WATCHDOG=1")
        assert not [message for message in before if "READY" in message]
        supervised.let_go()
        ready = self.heard(systemd, "READY=1")[-1]
        assert ready == "READY=1\nSTATUS=2 workers, 2 partitions claimed"
        supervised.process.send_signal(signal.SIGTERM)
        self.heard(systemd, "STOPPING=1")
        assert supervised.process.wait(SOON_SECONDS) == 0

    def test_a_reload_is_told_from_its_beginning_to_its_end(
        self, start: Start, systemd: socket.socket, tmp_path: Path
    ) -> None:
        supervised = start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify")})
        self.heard(systemd, "READY=1")
        first = supervised.wait_for("start", 2)
        before = time.monotonic_ns() // 1000
        supervised.process.send_signal(signal.SIGHUP)
        fields = dict(line.split("=") for line in self.heard(systemd, "RELOADING=1")[-1].splitlines())
        assert before <= int(fields["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
        assert "2 partitions claimed" in self.heard(systemd, "READY=1")[-1]
        assert not {event.pid for event in first} & set(supervised.workers())
        (tmp_path / "run-0.events.bad").touch()
        supervised.process.send_signal(signal.SIGHUP)
        self.heard(systemd, "RELOADING=1")
        self.heard(systemd, "READY=1")
        assert len(supervised.events("start")) == 4
        assert "reload refused" in supervised.log()
