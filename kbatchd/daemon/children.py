"""The processes that the supervisor keeps running: started, watched (a silent one is killed), replaced, stopped.

A plan's processes are `present`; those of a former plan, until they have ended, `former`. At a reload they change over
group by group, one process at a time: a worker ends before the next one of its place begins, a gateway after. Called by
the supervisor's loop alone, which tells when a child has ended.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbatchd.daemon.process import fork, is_stopped
from kbatchd.errors import EX_CONFIG
from kbatchd.stats.slots import Field, Slot, State
from kbatchd.stats.suspicions import End

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from kbatchd.daemon.plan import Group, Plan

log = logging.getLogger(__name__)

#: How long a worker that was aborted may take to write its traceback before it is killed.
ABORT_SECONDS = 2.0

#: Beyond its grace period: what is left then was not going to end.
MARGIN_SECONDS = 1.0

#: When our turns were this far apart we were stopped, and perhaps so were the workers: their silence counts from now.
PAUSED_SECONDS = 2.0

#: A worker that lived this long has not failed at the start: its next failure is a first one.
STABLE_SECONDS = 10.0

FIRST_BACKOFF_SECONDS = 0.1


@dataclass(slots=True, eq=False)
class Child:
    """The place of one process: what runs in it, the process, if any, and its history."""

    group: Group
    index: int
    slot: Slot
    pid: int | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    failures: int = 0
    aborted_at: float = 0.0
    #: For how long it had been silent when it was aborted, though nobody had stopped it (SIGSTOP).
    silent_seconds: float | None = None
    #: It was asked to end, and is killed at this time.
    leaves_by: float | None = None

    @property
    def is_ready(self) -> bool:
        """Whether it does its work, or stands by."""
        return self.pid is not None and self.slot[Field.STATE] != State.STARTING

    def log(self, level: int, what: str, words: str = "", /, **more: object) -> None:
        """Log what happened to it."""
        kind = self.group.kind
        extra = {"action": f"{kind}_{what}", kind: self.index, "pid": self.pid, **more}
        log.log(level, "%s %s", kind, words or what, extra=extra)


class Children:
    """All processes, of the present plan and of former ones."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.present = _places(plan)
        self.former: list[Child] = []
        #: When the children were last looked at; since when we ourselves go round without a break.
        self._looked_at = self._awake_since = time.monotonic()

    def of(self, kind: str) -> list[Child]:
        """Return the present ones of a group."""
        return [child for child in self.present if child.group.kind == kind]

    @property
    def vital(self) -> list[Child]:
        """The present ones that the daemon cannot do without."""
        return [child for child in self.present if child.group.is_vital]

    def adopt(self, plan: Plan) -> None:
        """Change over to another plan, bit by bit; a group that is made from the same goes on as it is."""
        present = _places(plan)
        for kind in {child.group.kind for child in self.present}:
            former, wanted = self.of(kind), [child for child in present if child.group.kind == kind]
            settings = former[0].group.settings
            if wanted and settings is not None and settings == wanted[0].group.settings:
                at = present.index(wanted[0])
                present[at : at + len(wanted)] = former
            else:
                self.former += [child for child in former if child.pid is not None]
        self._plan, self.present = plan, present

    def turn(self, may_start: Callable[[Child], bool]) -> None:
        """Start who is due, replace who is silent or of a former plan."""
        now = time.monotonic()
        for child in self.present:
            if child.pid is None and child.start_at <= now and may_start(child) and not self._is_taken(child):
                self._start(child)
        for kind in dict.fromkeys(child.group.kind for child in self.former):
            self._change_over(kind)
        self._replace_silent()

    def _is_taken(self, child: Child) -> bool:
        """Whether a former process must end before this one begins."""
        return not child.group.new_first and any(
            former.group.kind == child.group.kind and former.index == child.index for former in self.former
        )

    def _change_over(self, kind: str) -> None:
        """Let the next former process of a kind end, when all that have come in its place are at work."""
        former = [child for child in self.former if child.group.kind == kind]
        new = [child for child in self.of(kind) if not self._is_taken(child)]
        if any(child.leaves_by is not None for child in former) or not all(child.is_ready for child in new):
            return
        _ask_to_end(former[0])

    def _start(self, child: Child) -> None:
        child.slot.reset()
        child.started_at = time.monotonic()
        child.aborted_at, child.silent_seconds = 0.0, None
        try:
            child.pid = fork(lambda: child.group.run(child.index, child.slot))
        except OSError as error:  # no memory or no process left, for now
            child.start_at = time.monotonic() + self._backoff_seconds(child)
            child.log(logging.ERROR, "not_started", "not started", error=str(error))
            return
        child.slot.add(Field.STARTS, 1)
        child.slot[Field.PID] = child.pid
        child.slot[Field.STARTED_AT] = time.monotonic_ns()
        child.log(logging.INFO, "started")

    def _replace_silent(self) -> None:
        """Abort a child whose loop has stopped beating, so that it says where; then kill it."""
        now = time.monotonic()
        if now - self._looked_at > PAUSED_SECONDS:
            self._awake_since = now
        self._looked_at = now
        for child in (*self.present, *self.former):
            if child.pid is None:
                continue
            silence = min(child.slot.silence_seconds(), now - self._awake_since)
            if child.leaves_by is not None:
                if now > child.leaves_by:
                    child.log(logging.WARNING, "killed")
                    os.kill(child.pid, signal.SIGKILL)
            elif child.aborted_at:
                if now - child.aborted_at > ABORT_SECONDS:
                    os.kill(child.pid, signal.SIGKILL)
            elif silence > self._plan.heartbeat_timeout_seconds:
                todo = "look at this machine's memory and processors, or raise workers.heartbeat_timeout_seconds"
                child.log(logging.ERROR, "silent", f"is silent, and is replaced; {todo}", seconds=round(silence, 1))
                child.silent_seconds = None if is_stopped(child.pid) else silence
                os.kill(child.pid, signal.SIGABRT)
                child.aborted_at = now

    def reap(self) -> int | None:
        """Take note of every child that has ended; return EX_CONFIG when one says that trying again does not help."""
        verdict = None
        for child in (*self.present, *self.former):
            code = _exit_code(child)
            if code is None:
                continue
            if child.leaves_by is None and code != EX_CONFIG:
                _examine(child, code)
            if child in self.former:
                child.log(logging.INFO, "replaced", exit_code=code)
                self.former.remove(child)
            elif code == EX_CONFIG and child.group.is_vital and not self.former:
                verdict = EX_CONFIG
            elif child.leaves_by is None:
                self._note_failure(child, code)
            child.pid = None
        return verdict

    def _note_failure(self, child: Child, code: int) -> None:
        pause = self._backoff_seconds(child)
        child.start_at = time.monotonic() + pause
        child.log(logging.WARNING, "ended", exit_code=code, restart_seconds=pause)
        child.slot.reset()

    def _backoff_seconds(self, child: Child) -> float:
        """Count a failure; return how long its place stays empty."""
        child.failures = 1 if time.monotonic() - child.started_at > STABLE_SECONDS else child.failures + 1
        pause = FIRST_BACKOFF_SECONDS * 2.0 ** min(child.failures - 1, 20)
        return min(self._plan.restart_backoff_max_seconds, pause)

    def pass_on(self, got: signal.Signals) -> None:
        """Send a signal on to those that take it."""
        for child in (*self.present, *self.former):
            if child.pid is not None and got in child.group.takes:
                os.kill(child.pid, got)

    def stop(self, wait: Callable[[], None]) -> None:
        """Stop group by group; a late child is killed: what a worker had not flushed will be read again.

        `wait` returns when a child may have ended, or after a while.
        """
        self.former = [child for child in self.former if child.pid is not None]
        kinds = dict.fromkeys([*(group.kind for group in self._plan.groups), *(c.group.kind for c in self.former)])
        for kind in kinds:
            leaving = [child for child in (*self.former, *self.of(kind)) if child.group.kind == kind and child.pid]
            for child in leaving:
                _ask_to_end(child)
            while any(child.pid for child in leaving):
                wait()
                self._reap_leaving(leaving)

    def _reap_leaving(self, leaving: Iterable[Child]) -> None:
        for child in leaving:
            if child.pid is None:
                continue
            if time.monotonic() > (child.leaves_by or 0.0):
                child.log(logging.WARNING, "killed")
                os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                child.pid = None
            elif _exit_code(child) is not None:
                child.pid = None


def _places(plan: Plan) -> list[Child]:
    """Make an empty place for each process of a plan."""
    places: list[Child] = []
    for group in plan.groups:
        for index in range(group.count):
            places.append(Child(group, index, plan.slots[len(places)]))
    return places


def _examine(child: Child, code: int) -> None:
    """Let its group draw its conclusions; none from one that stood still because somebody had stopped it."""
    if not child.aborted_at or child.silent_seconds is not None:
        child.group.on_end(child.slot, End(code, child.silent_seconds))


def _ask_to_end(child: Child) -> None:
    """Give it its grace period, if it has not begun already."""
    if child.pid is not None and child.leaves_by is None:
        os.kill(child.pid, signal.SIGTERM)
        child.leaves_by = time.monotonic() + child.group.grace_seconds + MARGIN_SECONDS


def _exit_code(child: Child) -> int | None:
    """Return how a process ended that has."""
    if child.pid is None:
        return None
    pid, status = os.waitpid(child.pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if pid else None
