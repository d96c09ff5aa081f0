"""The supervisor: forks the workers, the gateways and the monitor and watches them, nothing else.

One thread, no Kafka client, no PostgreSQL connection, no event loop, so that every fork starts from a clean process. It
blocks its signals and takes them one by one with sigtimedwait(): there are no handlers, and nothing happens in between.
What a child does is a function it is given. The command line calls `run`.

SIGTERM and SIGINT stop it, SIGHUP reads the file again, SIGUSR1 writes what it knows into the log.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from typing import TYPE_CHECKING, Protocol

from kbatchd import systemd
from kbatchd.daemon.children import Child, Children
from kbatchd.daemon.process import Errand, ended_child
from kbatchd.errors import EX_CONFIG, EX_OK, EX_UNAVAILABLE
from kbatchd.stats.slots import Count, Field, State

if TYPE_CHECKING:
    from kbatchd.daemon.plan import Plan

log = logging.getLogger(__name__)

_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1}

#: The longest pause between two looks at the children.
TURN_SECONDS = 0.2


#: How often the old is pruned; the first time not in the midst of a start.
PRUNE_SECONDS, FIRST_PRUNE_SECONDS = 3_600.0, 10.0


class Reload(Protocol):
    """The file, read again: in a child, since that takes time, and may fail in any way."""

    def read(self) -> int:
        """Read and check it in a process of its own; EX_OK when it is good."""

    def plan(self) -> Plan:
        """Return the plan that the last good `read` has found, in the supervisor."""


class Supervisor:
    """Keeps the processes of a plan running, and changes over to the next one when the file is read again."""

    def __init__(self, plan: Plan, reload: Reload | None = None) -> None:
        """Prepare; without `reload` SIGHUP is only passed on."""
        self._plan = plan
        self._children = Children(plan)
        self._check = Errand(plan.check)
        self._check_at = 0.0
        self._check_failures = 0
        self._checked = False
        self._prune = Errand(plan.prune)
        self._prune_at = time.monotonic() + FIRST_PRUNE_SECONDS
        self._reload = reload
        self._rereading = Errand(reload.read) if reload else None
        self._reload_asked = self._reloading = False
        self._exit_code: int | None = None
        self._status = ""
        self._ready = False
        watchdog = systemd.watchdog_interval_seconds()
        self._watchdog_seconds = watchdog / 3 if watchdog else None
        self._watchdog_at = 0.0

    def run(self) -> int:
        """Run until SIGTERM or SIGINT, or until a child says that the configuration is wrong; return the exit code."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited as ignored, it would hide how our children end
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        gc.freeze()  # the collector must not touch, and so copy, the pages that all children share
        systemd.status("start-up checks: Kafka and PostgreSQL must answer")
        while self._exit_code is None:
            self._start_errands()
            self._children.turn(self._may_start)
            self._finish_reload()
            self._tell_systemd()
            self._wait_for_signal(TURN_SECONDS)
        return self._stop()

    def _may_start(self, child: Child) -> bool:
        return self._checked or child.group.at_once

    @property
    def _some_at_once(self) -> bool:
        return any(group.at_once and group.is_vital for group in self._plan.groups)

    def _start_errands(self) -> None:
        """Check, or read the file again, not both at a time: they would say the same things twice."""
        if self._rereading is not None and self._reload_asked and not self._rereading.is_running:
            self._reload_asked = False
            self._check.kill()
            self._begin(self._rereading)
        is_reread = self._rereading is not None and self._rereading.is_running
        if not (self._checked or is_reread or self._check.is_running) and self._check_at <= time.monotonic():
            self._begin(self._check)

        if self._ready and self._checked and not self._prune.is_running and self._prune_at <= time.monotonic():
            self._prune_at = time.monotonic() + PRUNE_SECONDS
            self._begin(self._prune)

    def _begin(self, errand: Errand) -> None:
        try:
            errand.start()
        except OSError as error:  # no memory or no process left, for now
            log.error("process not started", extra={"action": "fork_failed", "error": str(error)})
            self._check_at = time.monotonic() + self._plan.restart_backoff_max_seconds
            if errand is self._rereading:
                self._refuse_reload()

    def _end_check(self, code: int) -> None:
        """Take note of the end of the start-up checks: all is well, or this is the end, or they are run again."""
        if code == EX_OK:
            self._checked = True
        elif code == EX_UNAVAILABLE and self._some_at_once:
            self._check_failures += 1
            self._check_at = time.monotonic() + self._plan.restart_backoff_max_seconds
            log.warning(
                "start-up checks are run again", extra={"action": "check_again", "failures": self._check_failures}
            )
        else:
            self._exit_code = code

    def _ask_reload(self) -> None:
        """Read the file again, as soon as the last reading is over."""
        self._children.pass_on(signal.SIGHUP)
        if self._reload is None:
            return
        log.info("reloading", extra={"action": "reloading"})
        systemd.reloading("reading the file again")
        self._reload_asked = True

    def _end_rereading(self, code: int) -> None:
        if code != EX_OK or self._reload is None:
            self._refuse_reload()
            return
        self._plan = self._reload.plan()
        self._check.run, self._prune.run = self._plan.check, self._plan.prune
        self._checked = self._reloading = True  # reading the file again checks it as well
        self._children.adopt(self._plan)

    def _refuse_reload(self) -> None:
        log.error("reload refused, the former settings stay", extra={"action": "reload_refused"})
        self._check_at = 0.0
        self._end_reload()

    def _finish_reload(self) -> None:
        if self._reloading and not self._children.former and all(child.is_ready for child in self._children.vital):
            self._reloading = False
            log.info("reloaded", extra={"action": "reloaded"})
            self._end_reload()

    def _end_reload(self) -> None:
        """Tell systemd that it is over, unless the next one has been asked for, or the start is not over yet."""
        if self._ready and not self._reload_asked:
            self._status = self._describe()
            systemd.ready(self._status)

    def _wait_for_signal(self, seconds: float) -> None:
        got = _next_signal(seconds)
        if got is None:
            return
        if got == signal.SIGCHLD:
            self._reap()
        elif got == signal.SIGHUP:
            self._ask_reload()
        elif got == signal.SIGUSR1:
            self._dump()
        else:
            log.info("stopping", extra={"action": "stopping", "signal": got.name})
            self._exit_code = EX_OK

    def _reap(self) -> None:
        """Take note of everything that has ended."""
        self._prune.ended()  # however it went, the next time comes
        for errand, end in ((self._check, self._end_check), (self._rereading, self._end_rereading)):
            code = errand.ended() if errand else None
            if code is not None:
                end(code)
        if self._children.reap() is not None:
            self._exit_code = EX_CONFIG
        if os.getpid() == 1:
            self._reap_strangers()

    def _reap_strangers(self) -> None:
        """Reap whose parent has ended: as process 1, in a container, we inherit them. A command of a worker's, say."""
        ours = {child.pid for child in (*self._children.present, *self._children.former)}
        ours |= {errand.pid for errand in (self._check, self._rereading, self._prune) if errand is not None}
        while (ended := ended_child()) is not None and ended not in ours:
            os.waitpid(ended, 0)

    def _dump(self) -> None:
        """Write what is known of each child into the log; those that can add what they know themselves."""
        log.info("state", extra={"action": "state", "pid": os.getpid(), "status": self._describe()})
        now = time.monotonic()
        for child in (*self._children.present, *self._children.former):
            slot = child.slot
            about: dict[str, object] = {
                field.name.lower(): slot[field] for field in Field if field not in {Field.BEAT, Field.STATE}
            }
            about.update({str(count): slot.total(count) for count in Count})
            about["state"] = State(slot[Field.STATE]).name.lower() if child.pid else "not running"
            about["silence_seconds"] = round(slot.silence_seconds(), 3)
            if child.pid:
                about["runs_seconds"] = round(now - child.started_at)
            child.log(logging.INFO, "state", failures=child.failures, former=child in self._children.former, **about)
        self._children.pass_on(signal.SIGUSR1)

    def _stop(self) -> int:
        """Stop all children; return the exit code."""
        # 1. systemd shall know that the end is wanted.
        systemd.stopping("stopping")
        for errand in (self._check, self._rereading, self._prune):
            if errand is not None:
                errand.kill()
        # 2. The gateways answer what is in flight, some of it when the workers have flushed it.
        # 3. Every worker flushes what it has read.
        # 4. The monitor has told of it all.
        self._children.stop(self._wait_for_children)
        log.info("stopped", extra={"action": "stopped"})
        return self._exit_code or EX_OK

    def _wait_for_children(self) -> None:
        self._tell_watchdog()
        signal.sigtimedwait({signal.SIGCHLD}, TURN_SECONDS)

    def _tell_systemd(self) -> None:
        """READY once every worker has claimed its partitions or stands by; after that only what changes.

        With a server away, gateways that work without it are enough.
        """
        self._tell_watchdog()
        present = self._children.vital
        needed = present if self._checked else [c for c in present if c.group.at_once and self._check_failures]
        if not self._ready and not (needed and all(child.is_ready for child in needed)):
            return
        status = self._describe()
        if status == self._status:
            return
        self._status = status
        if self._ready:
            systemd.status(status)
        else:
            self._ready = True
            log.info("ready", extra={"action": "ready", "status": status})
            systemd.ready(status)

    def _describe(self) -> str:
        gateways = f", {len(self._children.of('gateway'))} gateways" * bool(self._children.of("gateway"))
        if not self._checked:
            return f"no workers yet: Kafka or PostgreSQL does not answer{gateways}"
        slots = [child.slot for child in self._children.of("worker")]
        standby = " (standby)" if State.STANDBY in [slot[Field.STATE] for slot in slots] else ""
        claimed, halted = sum(slot[Field.CLAIMED] for slot in slots), sum(slot[Field.HALTED] for slot in slots)
        waiting = sum(1 for slot in slots if slot[Field.POSTGRES_WAIT_SINCE])
        trouble = f", {halted} halted" * bool(halted) + f", {waiting} workers wait for PostgreSQL" * bool(waiting)
        return f"{len(slots)} workers, {claimed} partitions claimed{standby}{trouble}{gateways}"

    def _tell_watchdog(self) -> None:
        """Show that this loop goes round; it sees to it that the workers' loops do, whatever the servers do."""
        self._plan.slots.supervisor.beat()  # for the monitor's /health/live
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
