"""The supervisor: forks the workers and watches them, nothing else.

One thread, no Kafka client, no PostgreSQL connection, no event loop, so that every fork starts from a clean process. It
blocks its signals and takes them one by one with sigtimedwait(): there are no handlers, and nothing happens in between.
What a worker does is a function it is given. The command line calls `run`.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbatchd import systemd
from kbatchd.daemon.process import fork
from kbatchd.errors import EX_CONFIG, EX_OK, EX_SOFTWARE
from kbatchd.stats import Field, Slot, Slots, State

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.config import Workers

log = logging.getLogger(__name__)

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}

#: The longest pause between two looks at the workers.
TURN_SECONDS = 0.2

#: How long a worker that was aborted may take to write its traceback before it is killed.
ABORT_SECONDS = 2.0

#: When our own turns were this far apart we were stopped, and so perhaps were the workers: their silence begins anew.
PAUSED_SECONDS = 2.0

#: A worker that lived this long has not failed at the start: its next failure is a first one.
STABLE_SECONDS = 10.0

FIRST_BACKOFF_SECONDS = 0.1


@dataclass(slots=True)
class Child:
    """One worker's place: the process in it, if any, and its history."""

    index: int
    slot: Slot
    pid: int | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    aborted_at: float = 0.0


class Supervisor:
    """Keeps `workers.count` processes running `run_worker(index, slot)`, which returns an exit code.

    `check` runs once before them, in a process of its own, and must return 0.
    """

    def __init__(self, workers: Workers, check: Callable[[], int], run_worker: Callable[[int, Slot], int]) -> None:
        self._workers = workers
        self._check = check
        self._run_worker = run_worker
        self._slots = Slots(workers.count)
        self._children = [Child(index, self._slots[index]) for index in range(workers.count)]
        self._exit_code: int | None = None
        self._status = ""
        self._ready = False
        watchdog = systemd.watchdog_interval_seconds()
        self._watchdog_seconds = watchdog / 3 if watchdog else None
        self._watchdog_at = 0.0
        #: When the workers were last looked at; since when we ourselves go round without a break.
        self._looked_at = self._awake_since = time.monotonic()

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until a worker says that the configuration is wrong; return the exit code."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would hide how our children end
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        code = self._run_check()
        if code is not None:
            return code
        gc.freeze()  # the collector must not touch, and so copy, the pages that all workers share
        while self._exit_code is None:
            self._start_due()
            self._replace_silent()
            self._tell_systemd()
            self._wait_for_signal(TURN_SECONDS)
        return self._stop()

    def _run_check(self) -> int | None:
        """Run the start-up checks; None if all is well, else the exit code."""
        systemd.status("start-up checks: Kafka and PostgreSQL must answer")
        pid = fork(self._check)
        while True:
            self._tell_watchdog()
            got = _next_signal(TURN_SECONDS)
            if got in {signal.SIGTERM, signal.SIGINT}:  # first: it must not get lost when the checks end just now
                systemd.stopping("stopping")
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return EX_OK
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                return None if code == EX_OK else code if code > 0 else EX_SOFTWARE

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self._children:
            if child.pid is None and child.start_at <= now:
                self._start(child)

    def _start(self, child: Child) -> None:
        child.slot.reset()
        child.started_at = time.monotonic()
        child.aborted_at = 0.0
        try:
            child.pid = fork(lambda: self._run_worker(child.index, child.slot))
        except OSError as error:  # no memory or no process left, for now
            child.start_at = time.monotonic() + self._backoff_seconds(child)
            log.error("worker not started", extra={"action": "fork_failed", "worker": child.index, "error": str(error)})
            return
        log.info("worker started", extra={"action": "worker_started", "worker": child.index, "pid": child.pid})

    def _replace_silent(self) -> None:
        """Abort a worker whose poll loop has stopped beating, so that it says where; then kill it."""
        now = time.monotonic()
        if now - self._looked_at > PAUSED_SECONDS:
            self._awake_since = now
        self._looked_at = now
        for child in self._children:
            if child.pid is None:
                continue
            silence = min(child.slot.silence_seconds(), now - self._awake_since)
            if child.aborted_at and now - child.aborted_at > ABORT_SECONDS:
                os.kill(child.pid, signal.SIGKILL)
            elif not child.aborted_at and silence > self._workers.heartbeat_timeout_seconds:
                log.error(
                    "worker is silent", extra={"action": "worker_silent", "worker": child.index, "pid": child.pid}
                )
                os.kill(child.pid, signal.SIGABRT)
                child.aborted_at = now

    def _wait_for_signal(self, seconds: float) -> None:
        got = _next_signal(seconds)
        if got is None:
            return
        if got == signal.SIGCHLD:
            self._reap()
        else:
            log.info("stopping", extra={"action": "stopping", "signal": got.name})
            self._exit_code = EX_OK

    def _reap(self) -> None:
        """Take note of every worker that has ended, and when its place is to be filled again."""
        for child in self._children:
            if child.pid is None:
                continue
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            child.pid = None
            code = os.waitstatus_to_exitcode(status)
            if code == EX_CONFIG:
                self._exit_code = EX_CONFIG
            if self._exit_code is not None:
                continue
            child.slot.reset()
            pause = self._backoff_seconds(child)
            child.start_at = time.monotonic() + pause
            log.warning(
                "worker ended",
                extra={
                    "action": "worker_ended",
                    "worker": child.index,
                    "pid": pid,
                    "exit_code": code,
                    "restart_seconds": pause,
                },
            )

    def _backoff_seconds(self, child: Child) -> float:
        """Count a failure; return how long its place stays empty."""
        child.failures = 1 if time.monotonic() - child.started_at > STABLE_SECONDS else child.failures + 1
        pause = FIRST_BACKOFF_SECONDS * 2.0 ** min(child.failures - 1, 20)
        return min(self._workers.restart_backoff_max_seconds, pause)

    def _stop(self) -> int:
        """Stop all workers; return the exit code."""
        # 1. systemd shall know that the end is wanted.
        systemd.stopping("stopping")
        # 2. Every worker flushes what it has read.
        for child in self._children:
            if child.pid is not None:
                os.kill(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + self._workers.grace_seconds + 1.0
        while time.monotonic() < deadline and any(child.pid is not None for child in self._children):
            self._wait_for_children()
        # 3. Who does not come to an end is ended: what it had not flushed will be read again.
        for child in self._children:
            if child.pid is not None:
                log.error("worker killed", extra={"action": "worker_killed", "worker": child.index, "pid": child.pid})
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
        log.info("stopped", extra={"action": "stopped"})
        return self._exit_code or EX_OK

    def _wait_for_children(self) -> None:
        self._tell_watchdog()
        signal.sigtimedwait({signal.SIGCHLD}, TURN_SECONDS)
        self._reap()

    def _tell_systemd(self) -> None:
        """READY once every worker has claimed its partitions or stands by; after that only what changes."""
        self._tell_watchdog()
        states = [State(slot[Field.STATE]) for slot in (child.slot for child in self._children)]
        if not self._ready and State.STARTING in states:
            return
        status = self._describe(states)
        if status == self._status:
            return
        self._status = status
        if self._ready:
            systemd.status(status)
        else:
            self._ready = True
            log.info("ready", extra={"action": "ready", "status": status})
            systemd.ready(status)

    def _describe(self, states: list[State]) -> str:
        slots = [child.slot for child in self._children]
        standby = " (standby)" if State.STANDBY in states else ""
        claimed, halted = sum(slot[Field.CLAIMED] for slot in slots), sum(slot[Field.HALTED] for slot in slots)
        waiting = sum(1 for slot in slots if slot[Field.POSTGRES_WAIT_SINCE])
        trouble = f", {halted} halted" * bool(halted) + f", {waiting} workers wait for PostgreSQL" * bool(waiting)
        return f"{len(slots)} workers, {claimed} partitions claimed{standby}{trouble}"

    def _tell_watchdog(self) -> None:
        """Show that this loop goes round; it sees to it that the workers' loops do, whatever the servers do."""
        now = time.monotonic()
        if self._watchdog_seconds is not None and now >= self._watchdog_at:
            self._watchdog_at = now + self._watchdog_seconds
            systemd.watchdog()


def _next_signal(seconds: float) -> signal.Signals | None:
    """Wait for one of our signals, not longer than this.

    After SIGSTOP and SIGCONT longer than the wait, CPython's sigtimedwait returns a siginfo it has never filled in:
    what is not one of ours is no signal.
    """
    got = signal.sigtimedwait(_SIGNALS, seconds)
    return signal.Signals(got.si_signo) if got is not None and got.si_signo in _SIGNALS else None
