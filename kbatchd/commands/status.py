"""`kbatchd status`: how the pipeline is doing, from PostgreSQL and Kafka.

So it works from any host, with the daemon up or not. Only a daemon knows what is halted or on hold, in its
memory: its monitor is asked, where it answers at the file's address. What it does not speak of is never called "ok".
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from typing import Any

import orjson

from kbatchd.commands import load_config, print_table
from kbatchd.commands.look import Look, document_of
from kbatchd.config import Config, host_and_port
from kbatchd.errors import EX_OK, KbatchError
from kbatchd.kafka import topics
from kbatchd.monitor.lag import Oldest, PartitionLag, PartitionState, survey
from kbatchd.monitor.standing import Word
from kbatchd.postgres.connection import Connection, Error, connect, explained
from kbatchd.printable import printable
from kbatchd.schema import overview, pausing
from kbatchd.schema.migrations import check_version

#: How long Kafka may take to answer: what PostgreSQL knows is shown without it.
KAFKA_SECONDS = 5.0

#: How long the first records that wait may be looked for, to know since when they do.
OLDEST_SECONDS = 3.0

#: How long the monitor may take, which is on this host or not there.
MONITOR_SECONDS = 1.0

#: With --exit-code, when something is not as it should be.
EX_NOT_FINE = 1

#: Between two looks of --watch.
WATCH_SECONDS = 2.0

#: The ledger's last minute tells the rate.
RATE_SECONDS = 60.0

_PARTITIONS = (
    "route", "partition", "owner", "host", "pid", "since",
    "next_offset", "end", "lag", "age of oldest", "moved", "state",
)  # fmt: skip
_HOSTS = ("host", "workers", "partitions", "since", "lag")
_ROUTES = ("route", "table", "rows/s", "lag", "age of oldest", "dead letters", "state")
_NUMBERS = frozenset(
    {
        "partition", "pid", "next_offset", "end", "lag", "age of oldest", "moved", "rows/s", "dead letters",
        "workers", "partitions",
    }
)  # fmt: skip
#: What is left out where the terminal is too narrow for all: the first first.
_SPARE_OF_ROUTES = ("table", "rows/s")
_SPARE_OF_PARTITIONS = ("since", "end", "moved", "pid", "next_offset", "host")


def run(arguments: argparse.Namespace) -> int:
    """Print how the pipeline is doing, once or until interrupted."""
    config = load_config(arguments)
    with contextlib.closing(Lookout(config)) as lookout:
        if not arguments.watch:
            document = document_of(config, lookout.look())
            _print(document, as_json=arguments.json)
            return EX_OK if document["fine"] or not arguments.exit_code else EX_NOT_FINE
        with contextlib.suppress(KeyboardInterrupt):
            _watch(config, lookout, as_json=arguments.json)
    return EX_OK


class Lookout:
    """Asks PostgreSQL and Kafka; keeps its connections from one look to the next."""

    def __init__(self, config: Config) -> None:
        """Connect to nothing yet."""
        self._config = config
        self._connection: Connection | None = None
        self._admin: topics.Admin | None = None
        self._oldest: Oldest | None = None

    def look(self) -> Look:
        """Ask both. Raises KbatchError without PostgreSQL, which has the truth; Kafka's part may be missing."""
        if self._connection is None or self._connection.broken:
            self._connection = connect(self._config.postgres, "kbatchd status")
        look = Look(time.time())
        with explained():
            check_version(self._connection)
            claimed = overview.read_claimed(self._connection, self._config.pipeline)
            for each in overview.read_bins(
                self._connection, self._config.pipeline, look.at - RATE_SECONDS, RATE_SECONDS
            ):
                look.rates[each.route] = look.rates.get(each.route, 0.0) + each.rows / RATE_SECONDS
            look.pauses = pausing.read_pauses(self._connection, self._config.pipeline)
            look.refused = overview.read_refusals(self._connection, self._config.pipeline)
            for cause in overview.read_causes(self._connection, self._config.pipeline):
                look.dead_letters[cause.route] = look.dead_letters.get(cause.route, 0) + cause.count
        look.lags = [PartitionLag(row, PartitionState.UNKNOWN, None, None) for row in claimed]
        try:
            self._ask_kafka(look, claimed)
        except KbatchError as error:
            look.trouble.append(f"the lag is not known: {error}")
        self._ask_monitor(look)
        return look

    def _ask_kafka(self, look: Look, claimed: Sequence[overview.Claimed]) -> None:
        if self._admin is None:
            self._admin = topics.make_admin(self._config.kafka)
        look.lags = survey(self._admin, claimed, KAFKA_SECONDS)
        if self._oldest is None and any(lag.records for lag in look.lags):
            names = {route.topic for route in self._config.route}
            self._oldest = Oldest(self._config.kafka, f"{self._config.pipeline}-status", names)
        times = self._oldest.times(look.lags, OLDEST_SECONDS) if self._oldest else {}
        look.waits = {
            (lag.progress.route, lag.progress.partition): lag.waits(times.get((lag.progress.route, lag.partition)))
            for lag in look.lags
        }

    def _ask_monitor(self, look: Look) -> None:
        """Ask the daemon on this host, if there is one, and it is this pipeline's."""
        if self._config.monitor is None:
            return
        connection = HTTPConnection(*host_and_port(self._config.monitor.listen), timeout=MONITOR_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError, HTTPException, ValueError):
            connection.request("GET", "/status.json")
            answer = connection.getresponse()
            said = orjson.loads(answer.read()) if answer.status == HTTPStatus.OK else {}
            if isinstance(said, dict) and said.get("pipeline") == self._config.pipeline:
                look.trouble += [f"the daemon on this host is not ready: {reason}" for reason in said["reasons"]]
                look.on_hold = {route["name"] for route in said["routes"] if route["aside"]}
                ours = [each for each in said["partitions"] if each["ours"]]
                look.owned = {(each["route"], each["partition"]) for each in ours}
                look.halted = {(each["route"], each["partition"]): halt for each in ours if (halt := each["halt"])}
                waiting = [each for each in ours if each["word"] == Word.WAITING]
                look.waiting = {(each["route"], each["partition"]) for each in waiting}

    def close(self) -> None:
        """Leave."""
        if self._connection is not None:
            self._connection.close()
        if self._oldest is not None:
            self._oldest.close()


def _watch(config: Config, lookout: Lookout, *, as_json: bool) -> None:
    """Look again and again; in place at a terminal. A server that is away is waited for."""
    in_place = sys.stdout.isatty() and not as_json
    with _other_screen() if in_place else contextlib.nullcontext():
        while True:
            try:
                look = lookout.look()
            except (KbatchError, Error) as error:
                look = Look(time.time(), trouble=[" ".join(str(error).split())])
            if in_place:
                print("\x1b[H\x1b[2J", end="")
            _print(document_of(config, look), as_json=as_json)
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)


@contextlib.contextmanager
def _other_screen() -> Iterator[None]:
    """Use the terminal's other screen, without its cursor, and give the first one back at the end."""
    print("\x1b[?1049h\x1b[?25l", end="")
    try:
        yield
    finally:
        print("\x1b[?25h\x1b[?1049l", end="", flush=True)


def _print(document: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print(orjson.dumps(document).decode())
        return
    at = document["at"]
    print(f"pipeline {document['pipeline']}, {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}")
    for text in (*document["trouble"], *document["warnings"]):
        print(f"! {printable(text)}")
    for route in document["routes"]:
        if pause := route["paused"]:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(pause["since"]))
            print(printable(f"route {route['route']} is paused since {since} by {pause['by']}"))
    print_table(_ROUTES, [_route_line(route) for route in document["routes"]], _NUMBERS, _SPARE_OF_ROUTES)
    print()
    print_table(_HOSTS, [_host_line(host, at) for host in document["hosts"]], _NUMBERS)
    print()
    lines = [_partition_line(each, at) for each in document["partitions"]]
    print_table(_PARTITIONS, lines, _NUMBERS, _SPARE_OF_PARTITIONS)


def _route_line(route: dict[str, Any]) -> list[str]:
    return [
        route["route"],
        route["table"],
        f"{route['rows_per_second']:.0f}",
        _known(route["lag"]),
        _age(route["lag_seconds"]),
        str(route["dead_letters"]),
        route["state"],
    ]


def _host_line(host: dict[str, Any], now: float) -> list[str]:
    since = _age(max(0.0, now - host["since"])) if host["since"] else "-"
    return [host["host"] or "-", str(host["workers"]), str(host["partitions"]), since, _known(host["lag"])]


def _partition_line(each: dict[str, Any], now: float) -> list[str]:
    return [
        each["route"],
        str(each["partition"]),
        each["owner"] or "-" if each["held"] else "nobody",
        each["host"] or "-" if each["held"] else "-",
        _known(each["pid"]) if each["held"] else "-",
        _age(max(0.0, now - each["since"])) if each["held"] and each["since"] else "-",
        _known(each["next_offset"]),
        _known(each["end"]),
        _known(each["lag"]),
        _age(each["lag_seconds"]),
        _age(max(0.0, now - each["updated_at"])),
        each["state"],
    ]


def _known(value: int | None) -> str:
    return "-" if value is None else str(value)


def _age(seconds: float | None) -> str:
    """Write a time for people: two units at most would be too many."""
    if seconds is None:
        return "-"
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
