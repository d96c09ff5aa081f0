"""How many requests the HTTP gateway takes, and how soon it answers: `python bench/http.py`.

One gateway process is measured at each number of connections, with one record a request and with a hundred; and
before it, in the same round, its floor: the same server answering 202 at once, with no check and no Kafka. The ratio is
to that one. All figures are medians over the rounds. The client is wrk where it is installed, else our own (load.py);
what serves is in serve.py. Uses the servers that KBATCHD_KAFKA and KBATCHD_DSN name, else starts its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

# From the directory above: this file must not hide Python's own http.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from bench.accounting import cpu_seconds
from bench.load import Load, ask, client, run_load, write_requests
from bench.rig import Rig, rig
from kbatchd.devstack.process import free_ports, is_listening, tail
from kbatchd.devstack.requests import generate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: As `kbatchd create-topic` makes it.
PARTITIONS = 4

BATCH_RECORDS = 100

#: Different requests in the client's memory; they come round.
REQUESTS = {"single": 2_000, "batch": 50}

START_SECONDS = 30.0

#: The gateway closes with what it has in flight; then its acknowledged records are all there are.
STOP_SECONDS = 15.0

#: Before anything is counted, of each kind: a broker just started compiles its own code, and takes the cores for it.
WARM_SECONDS = 5

#: Between two looks at a server that is starting.
LOOK_SECONDS = 0.05

WHATS = ("floor", "single", "batch")

#: Another floor, only when asked for: what people compare with.
STOCK = "uvicorn"

console = Console()


class Figures(NamedTuple):
    """One measurement."""

    requests_per_second: float
    records_per_second: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    cpu_us_per_request: float
    client_cpu_us_per_request: float
    broker_cpu_us_per_request: float | None


@dataclass(slots=True)
class Run:
    """One server at one number of connections, measured once a round."""

    what: str
    connections: int
    measured: list[Figures] = field(default_factory=list)
    #: To the floor of the same round; one record a request only.
    ratios: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, str | int | float | None]:
        """Return what --json writes of it."""
        columns = zip(Figures._fields, zip(*self.measured, strict=True), strict=True)
        return {
            "what": self.what,
            "connections": self.connections,
            **{name: None if None in values else median(values) for name, values in columns},
            "ratio": median(self.ratios) if self.ratios else None,
        }


@dataclass(slots=True)
class Served:
    """One server process, what is sent to it, and how many records it has taken."""

    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    taken: int = 0
    #: Records under way when a client went away: they may be in the topic.
    unknown: int = 0

    def measure(self, servers: Rig, requests: Path, records: int, connections: int, seconds: int) -> Figures:
        """Put it under load with that many records a request."""
        before, broker_before = cpu_seconds(self.process.pid), servers.accounts.broker_cpu_seconds()
        load = run_load(self.address, requests, connections, seconds)
        after, broker_after = cpu_seconds(self.process.pid), servers.accounts.broker_cpu_seconds()
        self.taken += load.answers * records
        self.unknown += load.unanswered * records
        broker = None if broker_before is None or broker_after is None else broker_after - broker_before
        return _figures(load, records, after - before, broker)


def _figures(load: Load, records: int, cpu: float, broker_cpu: float | None) -> Figures:
    microseconds = 1e6 / load.answers
    return Figures(
        load.requests_per_second,
        load.requests_per_second * records,
        load.p50_ms,
        load.p99_ms,
        load.p999_ms,
        cpu * microseconds,
        load.client_cpu_seconds * microseconds,
        None if broker_cpu is None else broker_cpu * microseconds,
    )


def main() -> None:
    """Measure, print a table, and write the figures where --json says."""
    options = _options()
    with rig() as servers:
        topic = servers.make_topic(PARTITIONS)
        requests = _write_requests(servers.directory, topic)
        with _serve("floor", servers, topic, requests["single"]) as floor:
            with _serve("gateway", servers, topic, requests["single"]) as gateway, ExitStack() as more:
                served = {"floor": floor, "single": gateway, "batch": gateway}
                if STOCK in options.what:
                    served[STOCK] = more.enter_context(_serve(STOCK, servers, topic, requests["single"]))
                runs = _measure(servers, served, requests, options)
            _verify(gateway, servers.count_records(topic, PARTITIONS))
    summaries = [run.summary() for run in runs]
    _print(summaries, options)
    if options.json is not None:
        options.json.write_text(json.dumps({"client": client(), "runs": summaries}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of everything (%(default)s)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64, 512], help="at once (%(default)s)")
    parser.add_argument("--what", nargs="+", choices=(*WHATS, STOCK), default=WHATS, help="to measure (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    if min(options.seconds, options.rounds, *options.connections) < 1:
        parser.error("--seconds, --rounds and --connections must be at least 1")
    return options


def _write_requests(directory: Path, topic: str) -> dict[str, Path]:
    """Write the requests of each kind; return the files by what they are for."""
    files = {what: directory / f"{what}.requests" for what in REQUESTS}
    target = f"/v1/{topic}"
    write_requests(files["single"], target, "application/json", generate(REQUESTS["single"]))
    values = generate(REQUESTS["batch"] * BATCH_RECORDS)
    batches = (b"[%b]" % b",".join(itertools.islice(values, BATCH_RECORDS)) for _ in range(REQUESTS["batch"]))
    write_requests(files["batch"], target, "application/json", batches)
    return {"floor": files["single"], STOCK: files["single"], **files}


@contextmanager
def _serve(what: str, servers: Rig, topic: str, requests: Path) -> Iterator[Served]:
    """Run a server for as long as the block lasts; it must answer, and end as it should."""
    [port] = free_ports(1)
    file, log = servers.directory / f"{what}.toml", servers.directory / f"{what}.log"
    file.write_text(
        f'state_directory = "{servers.directory}"\n'
        f'kafka.bootstrap_servers = "{servers.bootstrap_servers}"\n'
        f'gateway.listen = "127.0.0.1:{port}"\n'
        f'[[route]]\ntopic = "{topic}"\ntable = "requests"\n'
    )
    # By the environment: a DSN in the file may hold no password, the one we were given may.
    environment = {**os.environ, "DATABASE_URL": servers.dsn}
    command = [sys.executable, "-P", str(Path(__file__).with_name("serve.py")), what, str(file)]
    with log.open("wb") as output, subprocess.Popen(command, stderr=output, env=environment) as process:
        try:
            served = Served(process, ("127.0.0.1", port))
            _wait_until_ready(served, requests)
            yield served
        except BaseException:
            print(tail(log), file=sys.stderr)
            raise
        finally:
            process.send_signal(signal.SIGTERM)
            code = process.wait(STOP_SECONDS)
    if code != 0:
        raise RuntimeError(f"the {what} ended with {code}\n{tail(log)}")


def _wait_until_ready(served: Served, requests: Path) -> None:
    """Return once a request is answered with 202: Kafka is connected, the table is known."""
    deadline = time.monotonic() + START_SECONDS
    answer = b"nothing listens"
    while not answer.startswith(b"HTTP/1.1 202"):
        if served.process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{served.address} does not answer with 202: {answer!r}")
        time.sleep(LOOK_SECONDS)
        if is_listening(served.address[1]):
            answer = ask(served.address, requests)
    served.taken += 1


def _measure(
    servers: Rig, served: dict[str, Served], requests: dict[str, Path], options: argparse.Namespace
) -> list[Run]:
    runs = {(what, number): Run(what, number) for number in options.connections for what in options.what}

    def measure(run: Run, seconds: int) -> Figures:
        records = BATCH_RECORDS if run.what == "batch" else 1
        return served[run.what].measure(servers, requests[run.what], records, run.connections, seconds)

    for what in options.what:
        measure(runs[what, max(options.connections)], WARM_SECONDS)
    for number in range(1, options.rounds + 1):
        for run in runs.values():
            figures = measure(run, options.seconds)
            run.measured.append(figures)
            if run.what == "single" and "floor" in options.what:
                floor = runs["floor", run.connections].measured[-1]
                run.ratios.append(figures.requests_per_second / floor.requests_per_second)
            _print_run(number, run)
    return list(runs.values())


def _verify(gateway: Served, records: int) -> None:
    """Compare what was acknowledged with what is in the topic, now that the gateway has ended."""
    if not gateway.taken <= records <= gateway.taken + gateway.unknown:
        raise RuntimeError(
            f"{gateway.taken} records were acknowledged, up to {gateway.unknown} more were under way, "
            f"but {records} are in the topic"
        )
    console.print(f"{gateway.taken:,} records acknowledged, {records:,} in the topic", highlight=False)


def _print_run(number: int, run: Run) -> None:
    figures = run.measured[-1]
    ratio = f" ({run.ratios[-1]:.2f})" if run.ratios else ""
    console.print(
        f"round {number}: {run.what} connections={run.connections}: {figures.requests_per_second:,.0f} requests/s"
        f"{ratio}, p99 {figures.p99_ms:.1f} ms, {figures.cpu_us_per_request:.1f} us a request",
        highlight=False,
    )


def _print(summaries: Sequence[dict[str, str | int | float | None]], options: argparse.Namespace) -> None:
    table = Table(title=f"one gateway process, {client()}, medians of {options.rounds} rounds of {options.seconds} s")
    costs = ("gateway\nus/request", "client\nus/request", "broker\nus/request")
    for name in ("what", "connections", "requests/s", "records/s", "p50 ms", "p99 ms", "p99.9 ms", *costs, "ratio"):
        table.add_column(name, justify="left" if name == "what" else "right")
    formats = ("{}", "{}", "{:,.0f}", "{:,.0f}", *["{:.2f}"] * 3, *["{:.1f}"] * 3, "{:.2f}")
    for summary in summaries:
        shown = zip(formats, summary.values(), strict=True)
        table.add_row(*("-" if value is None else each.format(value) for each, value in shown))
    console.print(table)


if __name__ == "__main__":
    main()
