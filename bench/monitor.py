"""What the monitor costs the workers: `python bench/monitor.py`.

A topic is drained once for each thing that is done to the monitor: killed twice a second, stopped (SIGSTOP), asked for
/metrics by 500 connections without a pause; and once with nothing done, which shows what the machine does by itself. It
is done by turns, half a second with and half a second without, within the same drain, and the rate of each turn is
compared with those of its two neighbours: drains differ by a fifth for no reason, neighbours do not. Rates are those of
the ledger's batches that lie within a turn. The clients of the flood run at the lowest priority: they are no part of
the daemon, but they are on its cores.

With --profile: what the statistics cost. One worker drains the topic with a clock around all that counts (the thread's
own CPU time, which a profiler would swell), and that is compared with the CPU time of the whole process. Then again,
where batches are many: it counts for some batches and does not for as many, by turns, and the CPU time of each turn is
compared with that of its two neighbours. That shows also what counting costs those around it, such as the processor's
caches; and the clock costs nothing.
"""

from __future__ import annotations

import argparse
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from itertools import count, pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import TYPE_CHECKING

# From the directory above: http.py in this one must not hide Python's own http.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import psycopg

from bench.rig import Rig, rig
from kbatchd import config, log
from kbatchd.check.preflight import run_preflight
from kbatchd.devstack.process import free_ports
from kbatchd.devstack.requests import generate
from kbatchd.stats.slots import Slots
from kbatchd.worker.flusher import Flusher
from kbatchd.worker.worker import run_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

MODES = ("nothing", "killed", "stopped", "flooded")
TURN_SECONDS = 0.5
CONNECTIONS = 500
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=4_000_000, help="records in the topic (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="drains in each mode (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (%(default)s)")
    parser.add_argument("--profile", action="store_true", help="measure the statistics instead")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES, help="what to do to the monitor")
    options = parser.parse_args()
    if options.worker:
        sys.exit(_run_by_turns(options.worker) if options.turns else _run_profiled(options.worker))
    if options.profile:
        with rig() as servers:
            _profile(servers, servers.fill_topic(generate(options.records), 1, lambda _: None), options.records)
        return
    with rig() as servers:
        topic = servers.fill_topic(generate(options.records), options.workers, lambda _: None)
        servers.drain(topic, options.records, options.workers)  # not counted: the broker compiles its own code
        changes: dict[str, list[float]] = {mode: [] for mode in options.modes}
        for number in range(1, options.rounds + 1):
            for mode in options.modes if number % 2 else options.modes[::-1]:
                found = _drain(servers, topic, options, mode)
                changes[mode] += found
                print(f"round {number}: {mode}: {_summary(found)}", flush=True)
    print("what the workers' rate changes by while this is done to the monitor")
    for mode, found in changes.items():
        print(f"{mode:8} {_summary(found)}")


def _profile(servers: Rig, topic: str, records: int) -> None:
    for max_rows, *more in ((20_000,), (1_000,), (100,), (1_000, "--turns"), (100, "--turns")):
        file, pipeline = servers.directory / "profile.toml", f"profile-{max_rows}{''.join(more)}"
        file.write_text(
            f'pipeline = "{pipeline}"\n'
            f'kafka.bootstrap_servers = "{servers.bootstrap_servers}"\n'
            f"workers.count = 1\n"
            f"batch.max_rows = {max_rows}\n"
            f'[[route]]\ntopic = "{topic}"\ntable = "requests"\n'
        )
        print(f"batches of {max_rows:,} rows: ", end="", flush=True)
        command = [sys.executable, __file__, "--worker", str(file), *more]
        with subprocess.Popen(command, env={**os.environ, "DATABASE_URL": servers.dsn}) as worker:
            while servers.records_in(pipeline) < records:
                time.sleep(0.1)
            worker.terminate()


#: All that a worker does for its statistics: counting a batch (`_count` last), and showing its state once a second.
COUNTING = ("_count", "_count_batch", "_show_state")


def _run_profiled(file: Path) -> int:
    """Run a worker in this process; print what counting cost."""
    spent: dict[str, list[float]] = {name: [] for name in COUNTING}
    for name in COUNTING:
        setattr(Flusher, name, _timed(getattr(Flusher, name), spent[name]))
    began = time.process_time()
    code = _run(file)
    total, counting = time.process_time() - began, sum(map(sum, spent.values()))
    batches = len(spent["_count_batch"])
    print(
        f"{batches:,} batches, {counting * 1e6 / batches:.0f} us each: {100 * counting / total:.2f} % of {total:.1f} s"
    )
    return code


def _timed(act: Callable[..., None], spent: list[float]) -> Callable[..., None]:
    def timed(*arguments: object) -> None:
        began = time.thread_time()
        act(*arguments)
        spent.append(time.thread_time() - began)

    return timed


#: Rows of a turn: long enough for a clock of the process, short enough for some hundred turns.
TURN_ROWS = 5_000


def _run_by_turns(file: Path) -> int:
    """Run a worker in this process that counts and does not count by turns; print what counting added."""
    batches_a_turn = TURN_ROWS // config.load(file).batch.max_rows
    ends: list[float] = []
    batches = count()

    def by_turns(act: Callable[..., None], *, is_last: bool) -> Callable[..., None]:
        def acting(*arguments: object) -> None:
            if len(ends) % 2:
                act(*arguments)
            if is_last and not next(batches) % batches_a_turn:
                ends.append(time.process_time())

        return acting

    for name in COUNTING[:2]:
        setattr(Flusher, name, by_turns(getattr(Flusher, name), is_last=name == "_count"))
    code = _run(file)
    turns = [later - earlier for earlier, later in pairwise(ends)]
    # Turns 0, 2, 4 ... of the list count: the first end is that of a turn without.
    print(_summary(_changes(turns)))
    return code


def _changes(turns: Sequence[float]) -> list[float]:
    """Compare turns 2, 4, 6 ... with the two next to each."""
    return [turns[n] / (turns[n - 1] + turns[n + 1]) * 2 - 1 for n in range(2, len(turns) - 1, 2)]


def _summary(changes: Sequence[float]) -> str:
    """Return the median and the mean, without a tenth at each end: turns that others on the machine have disturbed."""
    tenth = len(changes) // 10
    kept = sorted(changes)[tenth : len(changes) - tenth]
    error = stdev(kept) / len(kept) ** 0.5
    return f"median {median(changes):+.1%}, mean {mean(kept):+.1%} +- {error:.1%}, by {len(changes)} turns"


def _run(file: Path) -> int:
    settings = config.load(file)
    log.setup("warning", "worker")
    run_preflight(settings)
    return run_worker(settings, 0, Slots({"worker": 1}, [route.name for route in settings.route])[0])


def _drain(servers: Rig, topic: str, options: argparse.Namespace, mode: str) -> list[float]:
    """Drain the topic; return how much the rate of each disturbed turn differs from that of its neighbours."""
    [port] = free_ports(1)
    log = servers.directory / "kbatchd.log"
    log.unlink(missing_ok=True)
    ends: list[datetime] = []
    done = threading.Event()
    disturbance = {"nothing": _Nothing, "killed": _Killed, "stopped": _Stopped, "flooded": _Flooded}[mode](port, log)
    thread = threading.Thread(target=_by_turns, args=(disturbance, servers.dsn, ends, done))
    thread.start()
    try:
        servers.drain(topic, options.records, options.workers, route=f'[monitor]\nlisten = "127.0.0.1:{port}"')
    finally:
        done.set()
        thread.join()
    return _changes([rate for rate in map(servers.rate_between, ends, ends[1:]) if rate])


def _by_turns(disturbance: _Nothing, dsn: str, ends: list[datetime], done: threading.Event) -> None:
    """Begin and end the disturbance, a turn each, until all is done; note the ends by PostgreSQL's clock."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not done.wait(0.1) and not disturbance.pids():
            pass
        while not done.wait(TURN_SECONDS):
            (now,) = connection.execute("SELECT clock_timestamp()").fetchone() or ()
            ends.append(now)
            disturbance.begin() if len(ends) % 2 else disturbance.end()
    disturbance.close()


class _Nothing:
    """What is done to the monitor."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self._log = log

    def pids(self) -> list[int]:
        """Return the pids of the monitors so far."""
        with suppress(FileNotFoundError):
            return [int(pid) for pid in re.findall(r"action=monitor_started .*pid=(\d+)", self._log.read_text())]
        return []

    def begin(self) -> None:
        """Disturb it from now on."""

    def end(self) -> None:
        """Leave it alone."""

    def close(self) -> None:
        """Leave nothing behind."""


class _Stopped(_Nothing):
    def begin(self) -> None:
        self.signal(signal.SIGSTOP)

    def end(self) -> None:
        self.signal(signal.SIGCONT)

    def close(self) -> None:
        self.end()

    def signal(self, number: int) -> None:
        for pid in self.pids()[-1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class _Killed(_Stopped):
    def __init__(self, port: int, log: Path) -> None:
        super().__init__(port, log)
        self._again = threading.Timer(0, lambda: None)

    def begin(self) -> None:
        self.signal(signal.SIGKILL)
        self._again = threading.Timer(TURN_SECONDS / 2, self.signal, [signal.SIGKILL])
        self._again.start()

    def end(self) -> None:
        self._again.cancel()


class _Flooded(_Nothing):
    def __init__(self, port: int, log: Path) -> None:
        super().__init__(port, log)
        self._pid = os.fork()
        if not self._pid:
            os.nice(19)
            _flood(port)
        self.end()

    def begin(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def end(self) -> None:
        os.kill(self._pid, signal.SIGSTOP)

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _flood(port: int) -> None:
    """Keep so many connections that each ask again as soon as they are answered; never returns."""
    watched = selectors.DefaultSelector()
    count = 0
    while True:
        while count < CONNECTIONS:
            connection = socket.socket()
            try:
                connection.connect(("127.0.0.1", port))
                connection.sendall(REQUEST)
            except OSError:
                connection.close()
                time.sleep(0.01)
                break
            watched.register(connection, selectors.EVENT_READ)
            count += 1
        for key, _ in watched.select(0.1):
            connection = key.fileobj  # type: ignore[assignment]
            try:
                if not connection.recv(1_048_576):
                    raise ConnectionResetError
                connection.sendall(REQUEST)
            except OSError:
                watched.unregister(connection)
                connection.close()
                count -= 1


if __name__ == "__main__":
    main()
