"""What the monitor costs the workers: `python bench/monitor.py`.

A topic is drained again and again, each time with something else beside it: no monitor, one that is scraped, one that
is killed twice a second, one that is stopped (SIGSTOP), one that 500 connections ask for /metrics without a pause. The
rounds are interleaved, and each rate is compared with that of the scraped monitor in its own round; then the medians.
The clients of the flood run at the lowest priority: they are no part of the daemon, but they are on its cores.

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
from contextlib import contextmanager, suppress
from itertools import count, pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import TYPE_CHECKING

# From the directory above: http.py in this one must not hide Python's own http.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.rig import Rig, rig
from kbatchd import config, log
from kbatchd.devstack.requests import generate
from kbatchd.flusher import Flusher
from kbatchd.preflight import run_preflight
from kbatchd.stats import Slots
from kbatchd.worker import run_worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODES = ("none", "scraped", "killed", "stopped", "flooded")
CONNECTIONS = 500
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=600_000, help="records in the topic (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of all modes (%(default)s)")
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
    rates: dict[str, list[float]] = {mode: [] for mode in options.modes}
    with rig() as servers:
        topic = servers.fill_topic(generate(options.records), options.workers, lambda _: None)
        servers.drain(topic, options.records, options.workers)  # not counted: the broker compiles its own code
        for number in range(options.rounds):
            # Each round begins with another, so that none always has the same neighbour.
            turn = number % len(options.modes)
            for mode in [*options.modes[turn:], *options.modes[:turn]]:
                rates[mode].append(_drain(servers, topic, options, mode))
                print(f"round {number + 1}: {mode}: {rates[mode][-1]:,.0f} rows/s", flush=True)
    base = rates.get("scraped") or next(iter(rates.values()))
    print("mode, rows/s, ratio to scraped in its round (median, lowest to highest)")
    for mode, found in rates.items():
        ratios = [rate / other for rate, other in zip(found, base, strict=True)]
        print(f"{mode:8} {median(found):>9,.0f} {median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})")


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
    # Turns 0, 2, 4 ... of the list count: the first end is that of a turn without. A tenth at each end of the ratios
    # is left out: turns that others on the machine have disturbed.
    added = sorted(turns[n] / (turns[n - 1] + turns[n + 1]) * 2 - 1 for n in range(2, len(turns) - 1, 2))
    added = added[len(added) // 10 : -(len(added) // 10)]
    error = stdev(added) / len(added) ** 0.5
    print(f"by {len(added)} turns: {100 * mean(added):.2f} % +- {100 * error:.2f}")
    return code


def _run(file: Path) -> int:
    settings = config.load(file)
    log.setup("warning", "worker")
    run_preflight(settings)
    return run_worker(settings, 0, Slots({"worker": 1}, [route.name for route in settings.route])[0])


def _drain(servers: Rig, topic: str, options: argparse.Namespace, mode: str) -> float:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    table = "" if mode == "none" else f'[monitor]\nlisten = "127.0.0.1:{port}"'
    log = servers.directory / "kbatchd.log"
    with _beside(mode, port, log):
        return servers.drain(topic, options.records, options.workers, route=table).records_per_second


@contextmanager
def _beside(mode: str, port: int, log: Path) -> Iterator[None]:
    """Do to the monitor what the mode says, from its start to the end of the drain."""
    log.unlink(missing_ok=True)
    done = threading.Event()
    todo = {"scraped": _scrape, "killed": _kill, "stopped": _stop}.get(mode)
    thread = threading.Thread(target=todo, args=(port, log, done)) if todo else None
    pid = os.fork() if mode == "flooded" else 0
    if mode == "flooded" and not pid:
        os.nice(19)
        _flood(port)
    if thread is not None:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        if thread is not None:
            thread.join()


def _scrape(port: int, _: Path, done: threading.Event) -> None:
    while not done.wait(1.0):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(REQUEST.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            while connection.recv(65_536):
                pass


def _pids(log: Path) -> list[int]:
    with suppress(FileNotFoundError):
        return [int(pid) for pid in re.findall(r"action=monitor_started monitor=0 pid=(\d+)", log.read_text())]
    return []


def _kill(_: int, log: Path, done: threading.Event) -> None:
    while not done.wait(0.5):
        for pid in _pids(log)[-1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _stop(_: int, log: Path, done: threading.Event) -> None:
    while not done.wait(0.2):
        for pid in _pids(log)[-1:]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)


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
