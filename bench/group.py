"""How long partitions stand still when hosts of a group come and go: `python bench/group.py`.

Three daemons of two workers share twelve partitions, under a steady load. They join, leave in good order, are killed as
a whole, are frozen and thawed, and are restarted one after another; one is pinned by a reload, and put back into the
group. Every 20 ms it is looked how far each partition is in the table. What counts is the longest time between two
commits that moved it: of those partitions that changed their owner, and of those that did not. In the end topic and
table are compared: nothing lost, nothing twice, in order.

The daemons are on one machine, each with processes of its own, as they would be on three. A batch lingers for 0.2 s.
Uses the servers that KBATCHD_KAFKA and KBATCHD_DSN name, else starts its own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

# From the directory above: http.py in this one must not hide Python's own http.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psutil
import psycopg

from bench.rig import rig
from tests.fix_load import Delivery, new_delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PARTITIONS = 12
DAEMONS = 3
WORKERS = 2
LINGER_SECONDS = 0.2

#: Between two looks at progress.
LOOK_SECONDS = 0.02

#: A partition is at work that moved so lately; a stage is over when all have been for as long.
AT_WORK_SECONDS = 1.0
SETTLED_SECONDS = 4.0

#: A stage that takes longer is stuck: with the newer protocol a member is missed after 45 s at the soonest.
STAGE_SECONDS = 180.0

CALM_SECONDS = 15.0

#: How long a daemon stays frozen after the others have taken over.
FROZEN_SECONDS = 5.0

#: What the default protocol shall reach, by stage; frozen: after the session timeout of 6 s.
TARGETS = {"calm": 0.6, "join": 1.5, "leave": 1.5, "kill -9": 10.0, "frozen": 16.0, "rolling restart": 2.0}
STAYING_TARGET = 1.0


class Seen(NamedTuple):
    """A partition at one look."""

    next_offset: int
    pid: int | None


class Outcome(NamedTuple):
    """One stage: the longest idle of the partitions that moved to another owner, and of those that stayed."""

    stage: str
    moved: int
    moved_idle: float | None
    stayed_idle: float | None


class Lookout(threading.Thread):
    """Looks at progress all the time, and knows when each partition moved."""

    def __init__(self, dsn: str) -> None:
        super().__init__(name="lookout")
        self._stopped = threading.Event()
        self._connection = psycopg.connect(dsn, autocommit=True)
        self._lock = threading.Lock()
        self._seen: dict[int, Seen] = {}
        #: By partition: when it moved, and the owners it had, since the stage began.
        self._moves: dict[int, list[float]] = {}
        self._owners: dict[int, set[int | None]] = {}

    def run(self) -> None:
        """Look until `stop()`."""
        while not self._stopped.wait(LOOK_SECONDS):
            rows = self._connection.execute("SELECT partition, next_offset, pid FROM kbatchd.progress").fetchall()
            now = time.monotonic()
            with self._lock:
                for partition, next_offset, pid in rows:
                    before = self._seen.get(partition)
                    self._seen[partition] = Seen(next_offset, pid)
                    self._owners.setdefault(partition, set()).add(pid)
                    if before is None or before.next_offset != next_offset:
                        self._moves.setdefault(partition, []).append(now)
        self._connection.close()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()
        if self.is_alive():
            self.join()

    def begin(self) -> None:
        """Begin a stage: of what was before only the last move counts."""
        with self._lock:
            self._moves = {partition: moves[-1:] for partition, moves in self._moves.items()}
            self._owners = {partition: {seen.pid} for partition, seen in self._seen.items()}

    def idle(self) -> Iterator[tuple[int, float, bool]]:
        """Return each partition's longest idle since the stage began, and whether its owner is another one."""
        now = time.monotonic()
        with self._lock:
            for partition, moves in self._moves.items():
                longest = max(b - a for a, b in zip(moves, [*moves[1:], now], strict=True))
                yield partition, longest, len(self._owners[partition]) > 1

    def pids(self) -> dict[int, int | None]:
        """Return each partition's owner."""
        with self._lock:
            return {partition: seen.pid for partition, seen in self._seen.items()}

    def at_work(self) -> bool:
        """Tell whether all partitions have moved lately."""
        now = time.monotonic()
        with self._lock:
            moves = [moves[-1] for moves in self._moves.values()]
        return len(moves) == PARTITIONS and now - min(moves) < AT_WORK_SECONDS


class Daemon:
    """One daemon, with all its processes."""

    def __init__(self, file: Path, log: Path) -> None:
        self._file = file
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it."""
        with self._log.open("ab") as output:
            command = [sys.executable, "-m", "kbatchd", "--config", str(self._file)]
            self._process = subprocess.Popen(command, stderr=output, start_new_session=True)

    def processes(self) -> list[psutil.Process]:
        """Return the supervisor and its children."""
        assert self._process is not None
        supervisor = psutil.Process(self._process.pid)
        return [supervisor, *supervisor.children()]

    def send(self, how: signal.Signals) -> None:
        """Send a signal to all its processes."""
        for process in self.processes():
            os.kill(process.pid, how)

    def reload(self) -> None:
        """Let it read its file again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """Let it leave in good order."""
        assert self._process is not None
        self._process.terminate()
        if self._process.wait(30) != 0:
            raise RuntimeError(f"kbatchd ended with {self._process.returncode}; see {self._log}")

    def kill(self) -> None:
        """End all its processes at once, as if the host were gone."""
        assert self._process is not None
        self.send(signal.SIGKILL)
        self._process.wait()

    def runs(self) -> bool:
        """Tell whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def clean_up(self) -> None:
        """End whatever is left of it, frozen or not."""
        if self.runs():
            self.send(signal.SIGCONT)
            self.kill()


class Trial:
    """The daemons, and what happens to them."""

    def __init__(self, delivery: Delivery, directory: Path, stack: ExitStack, options: argparse.Namespace) -> None:
        self._file = file = directory / "kbatchd.toml"
        more = f'librdkafka."heartbeat.interval.ms" = {options.heartbeat_ms}\n' if options.heartbeat_ms else ""
        file.write_text(
            f'pipeline = "group"\n[kafka]\nbootstrap_servers = "{delivery.bootstrap_servers}"\nassignment = "group"\n'
            f'group_protocol = "{options.protocol}"\ngroup_id = "{delivery.topic}"\n{more}'
            f"[postgres]\ndsn = {json.dumps(delivery.dsn)}\n"
            f"[workers]\ncount = {WORKERS}\n[batch]\nlinger_seconds = {LINGER_SECONDS}\n"
            f'[[route]]\ntopic = "{delivery.topic}"\ntable = "{delivery.table}"\n'
        )
        self._daemons = [Daemon(file, directory / f"daemon-{number}.log") for number in range(DAEMONS)]
        for daemon in self._daemons:
            stack.callback(daemon.clean_up)
        self._lookout = Lookout(delivery.dsn)
        stack.callback(self._lookout.stop)
        self.outcomes: list[Outcome] = []

    def run(self) -> None:
        """Do it all."""
        first, second, third = self._daemons
        first.start()
        self._lookout.start()
        self._wait(self._lookout.at_work, "the first daemon")
        self._stage("", second.start, self._shared)
        self._stage("calm", lambda: time.sleep(CALM_SECONDS), lambda: True)
        self._stage("join", third.start, self._shared)
        self._stage("leave", third.stop, self._shared)
        self._stage("join", third.start, self._shared)
        self._stage("kill -9", second.kill, self._shared)
        self._stage("join", second.start, self._shared)
        self._stage("frozen", lambda: third.send(signal.SIGSTOP), lambda: self._owned_by([first, second]))
        time.sleep(FROZEN_SECONDS)
        self._stage("thawed", lambda: third.send(signal.SIGCONT), self._shared)
        self._stage("rolling restart", self._roll, self._shared)
        self._stage("", second.stop, self._shared)
        self._stage("", third.stop, self._shared)
        self._stage("to pinned", lambda: self._assign(first, "pinned"), self._shared)
        self._stage("back to a group", lambda: self._assign(first, "group"), self._shared)

    def stop(self) -> None:
        """Stop them all."""
        for daemon in filter(Daemon.runs, self._daemons):
            daemon.stop()

    def _assign(self, daemon: Daemon, assignment: str) -> None:
        """Change the file, and let the daemon read it again; return when all partitions have other workers."""
        before = set(self._lookout.pids().values())
        self._file.write_text(re.sub(r'assignment = "\w+"', f'assignment = "{assignment}"', self._file.read_text()))
        daemon.reload()
        self._wait(lambda: before.isdisjoint(self._lookout.pids().values()), "other workers")

    def _roll(self) -> None:
        """Restart one after another, the next when the one before is at work: as an operator would."""
        for daemon in self._daemons:
            daemon.stop()
            daemon.start()
            self._wait(lambda daemon=daemon: self._has_some(daemon), "a daemon that came back")  # type: ignore[misc]

    def _stage(self, name: str, act: Callable[[], None], is_over: Callable[[], bool]) -> None:
        """Do something, wait until it is over and all partitions are at work again, and note how long they stood."""
        self._lookout.begin()
        act()
        self._wait(is_over, name)
        settled = time.monotonic()
        while time.monotonic() - settled < SETTLED_SECONDS:
            time.sleep(LOOK_SECONDS)
            if not self._lookout.at_work():
                settled = time.monotonic()
        moved = [idle for _, idle, has_moved in self._lookout.idle() if has_moved]
        stayed = [idle for _, idle, has_moved in self._lookout.idle() if not has_moved]
        outcome = Outcome(name, len(moved), max(moved, default=None), max(stayed, default=None))
        if name:
            self.outcomes.append(outcome)
            print(f"{name}: {len(moved)} moved, {_seconds(outcome.moved_idle)}; others {_seconds(outcome.stayed_idle)}")

    def _shared(self) -> bool:
        """Tell whether each worker that runs has as many partitions as the others, and nobody else has any."""
        daemons = [daemon for daemon in self._daemons if daemon.runs()]
        owners = Counter(self._lookout.pids().values())
        fair = len(owners) == WORKERS * len(daemons) and len(set(owners.values())) == 1
        return fair and self._owned_by(daemons)

    def _owned_by(self, daemons: list[Daemon]) -> bool:
        return self._lookout.at_work() and set(self._lookout.pids().values()) <= self._workers(daemons)

    def _has_some(self, daemon: Daemon) -> bool:
        return self._lookout.at_work() and not self._workers([daemon]).isdisjoint(self._lookout.pids().values())

    def _workers(self, daemons: list[Daemon]) -> set[int]:
        """Return the workers of daemons; and their supervisors' other children, which own nothing."""
        return {process.pid for daemon in daemons for process in daemon.processes()[1:]}

    def _wait(self, is_true: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + STAGE_SECONDS
        while not is_true():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not after {STAGE_SECONDS:.0f} s: {what}; owners {self._lookout.pids()}")
            time.sleep(LOOK_SECONDS)


def main() -> None:
    """Measure, compare, and print a table."""
    options = _options()
    with rig() as servers, ExitStack() as stack:
        delivery = new_delivery(servers.bootstrap_servers, servers.make_topic(PARTITIONS), PARTITIONS, servers.dsn)
        trial = Trial(delivery, servers.directory, stack, options)
        try:
            with delivery.load(options.per_second):
                trial.run()
        except BaseException:
            for log in sorted(servers.directory.glob("daemon-*.log")):
                print(f"--- {log.name}\n{log.read_text()[-6_000:]}", file=sys.stderr)
            raise
        delivery.wait_drained()
        trial.stop()
        delivery.assert_exactly_once()
        rows = delivery.rows()
    _print(trial.outcomes, rows, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-second", type=int, default=3_000, help="records a second, together (%(default)s)")
    parser.add_argument("--protocol", choices=["classic", "consumer"], default="classic", help="default: %(default)s")
    parser.add_argument("--heartbeat-ms", type=int, help='"heartbeat.interval.ms" in the file; with "classic" only')
    return parser.parse_args()


def _print(outcomes: list[Outcome], rows: int, options: argparse.Namespace) -> None:
    shape = f"{PARTITIONS} partitions, {DAEMONS} daemons of {WORKERS} workers"
    print(f"\n{options.protocol}, {shape}, {options.per_second:,} records/s")
    print("longest time between two commits of a partition, in seconds\n")
    print(f"{'':<18}{'moved':>7}{'idle':>8}{'target':>8}{'others':>8}{'target':>8}")
    for stage, moved, moved_idle, stayed_idle in outcomes:
        target = TARGETS.get(stage) if options.protocol == "classic" else None
        idle = moved_idle if moved else None
        shown = [_seconds(idle), _seconds(target), _seconds(stayed_idle), _seconds(STAYING_TARGET)]
        if stage == "calm":
            shown = ["-", "-", _seconds(stayed_idle), _seconds(target)]
        print(f"{stage:<18}{moved:>7}" + "".join(f"{text:>8}" for text in shown))
    print(f"\n{rows:,} records: none lost, none twice, in order in each partition")


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    main()
