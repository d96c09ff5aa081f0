"""`kbatchd demo`: all of it on one machine, from an empty directory to a proof.

A real Kafka and a real PostgreSQL (kbatchd.devstack), the same commands an operator would run, the daemon as a process
of its own, generated requests, a worker killed at its work, and at the end SQL that must find every record in the table
exactly once. Runs in the main thread of the command line's process; whatever ends it, Ctrl-C included, stops the daemon
first, then the servers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kbatchd.devstack.daemon import Daemon
from kbatchd.devstack.kafka import GivenKafka, kafka_server
from kbatchd.devstack.postgres import GivenPostgres, postgres_server
from kbatchd.devstack.process import free_ports, is_free, tail
from kbatchd.devstack.proof import Outcome, read_outcome, read_summary, rows_in_ledger
from kbatchd.devstack.requests import generate, send
from kbatchd.devstack.victim import Hunt, Killed
from kbatchd.errors import EX_OK, EX_SOFTWARE, ConfigError, KbatchError
from kbatchd.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import Kafka
    from kbatchd.devstack.postgres import Postgres

#: The addresses in devstack/demo.toml, as they stand there.
ADDRESS_IN_FILE = '"localhost:9092"'
DSN_IN_FILE = '"postgresql://kbatchd@localhost/app"'
TOPIC_IN_FILE = 'topic = "requests"'
PAGE_IN_FILE = '"127.0.0.1:9464"'
#: The status page's port, if nothing else listens there.
PAGE_PORT = 9464
PARTITIONS = 4

#: Between two looks at the ledger: often enough for a bar, too seldom to cost anything.
LOOK_SECONDS = 0.2
#: The same until a worker has been killed: a COPY takes some 50 ms, and it is to be met in the middle of one.
HUNT_SECONDS = 0.01
#: Between two lines where there is no terminal.
LINE_SECONDS = 2.0
#: The daemon has come to a halt when it has written nothing for so long, whatever the machine.
STANDSTILL_SECONDS = 60.0

#: The last lines; the first of them where nothing was kept up.
KEEP = (
    "  KEEP=1 make demo      the same, and all stays up: status page, psql, `kbatchd status` (or: kbatchd demo --keep)"
)
NEXT = """\
  README.md             your own table in five commands
  docs/guarantees.md    what exactly once means here, and its limits
  kbatchd --help        every command"""


class DemoFailed(KbatchError):
    """A step of the demo did not do what it must."""


class View:
    """How far it is: two bars on a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console, records: int) -> None:
        self._console = console
        self._records = records
        self._begin = time.monotonic()
        self._next_line = self._begin + LINE_SECONDS
        self.bars = Progress(
            TextColumn("{task.description:>18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:>9,.0f}/s"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._sent = self.bars.add_task("records in Kafka", total=records, rate=0.0)
        self._rows = self.bars.add_task("rows in the table", total=records, rate=0.0)

    def show(self, sent: int, rows: int) -> None:
        """Draw how many records were sent and how many rows are committed."""
        seconds = time.monotonic() - self._begin
        for task, number in ((self._sent, sent), (self._rows, rows)):
            if number > self.bars.tasks[task].completed:  # the rate stands still once all is there
                self.bars.update(task, completed=number, rate=number / seconds)
        if not self._console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line += LINE_SECONDS
            self.say(f"  {seconds:5.1f} s  {sent:,} records in Kafka, {rows:,} rows in the table")

    def say(self, line: str) -> None:
        """Print a line, above the bars."""
        self._console.print(line)


class Transfer:
    """The records' way into the table, as the ledger tells it; in its middle a worker is killed."""

    def __init__(self, view: View, connection: psycopg.Connection, daemon: Daemon, hunt: Hunt, records: int) -> None:
        self._view = view
        self._connection = connection
        self._daemon = daemon
        self._hunt = hunt
        self._records = records
        self._next_look = self._changed_at = time.monotonic()
        self._rows = 0

    def look(self, sent: int) -> None:
        """See how far it is, if it is time again."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + self._pause_seconds
        self._daemon.check()
        if self._rows != (rows := rows_in_ledger(self._connection)):
            self._rows, self._changed_at = rows, now
        if self._hunt.killed is None:
            self._kill(sent)
        self._view.show(sent, self._rows)

    def wait(self) -> None:
        """Return when all that was sent is committed, and the worker that was killed has been replaced."""
        self._changed_at = time.monotonic()
        while self._rows < self._records or (self._hunt.killed and not self._hunt.is_replaced()):
            if time.monotonic() > self._changed_at + STANDSTILL_SECONDS:
                what = f"nothing new for {STANDSTILL_SECONDS:.0f} s, {self._rows:,} rows so far"
                raise DemoFailed(f"{what}.\n{tail(self._daemon.log)}")
            time.sleep(self._pause_seconds)
            self.look(self._records)

    @property
    def _pause_seconds(self) -> float:
        return LOOK_SECONDS if self._hunt.killed else HUNT_SECONDS

    def _kill(self, sent: int) -> None:
        """In the middle third kill a worker at its COPY; any that has work, when this may be the last chance."""
        last = sent == self._records or self._rows * 3 >= self._records * 2
        if not last and self._rows * 3 < self._records:
            return
        if killed := self._hunt.strike(self._rows, any_work=last):
            doing = "its COPY" if killed.worker.copies else "its work"
            self._view.say(f"  [bold]kill -9 {killed.worker.pid}[/]: {killed.name}, in the middle of {doing}")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; return 0 only if it has proven that each record became one row."""
    records: int = arguments.records
    keep = arguments.keep or os.environ.get("KEEP", "0") not in {"", "0"}
    console = Console(highlight=False, soft_wrap=True)
    with _orderly_end() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kbatchd-demo-")))
        kafka, postgres = _start_servers(stack, console)
        page = _page_address(PAGE_PORT)
        config, topic = _write_config(directory, kafka, postgres, page)
        _prepare(console, config, postgres.dsn)
        console.print(f"Starting the daemon: kbatchd --config {config}")
        console.print(f"Status page http://{page}/")
        daemon = Daemon(config)
        stack.callback(daemon.stop)
        connection = stack.enter_context(psycopg.connect(postgres.dsn, autocommit=True))
        killed = _send_and_wait(console, connection, daemon, kafka.bootstrap_servers, topic, records)
        outcome = read_outcome(connection)
        _report(console, connection, outcome, records, killed)
        if keep:
            _stay(console, config, postgres, kafka, page)
        console.print("Stopping the daemon and the servers")
        status = daemon.stop()
        if status != EX_OK:
            raise DemoFailed(f"the daemon ended with status {status} when asked to stop.\n{tail(daemon.log)}")
        console.print("\nWhat to look at next:", *([] if keep else [KEEP]), NEXT, sep="\n")
    return EX_OK if outcome.proves(records) else EX_SOFTWARE


@contextmanager
def _orderly_end() -> Iterator[ExitStack]:
    """Give a stack whose end nothing interrupts; until then SIGTERM is as good as Ctrl-C."""
    before = [(each, signal.getsignal(each)) for each in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        try:
            yield stack
        finally:
            for each, _ in before:
                signal.signal(each, signal.SIG_IGN)
    for each, handler in before:
        signal.signal(each, handler)


def _start_servers(stack: ExitStack, console: Console) -> tuple[Kafka | GivenKafka, Postgres | GivenPostgres]:
    """Start both servers, or take those that the environment names."""
    postgres = stack.enter_context(postgres_server())
    console.print(f"PostgreSQL  {postgres.dsn}")
    kafka = stack.enter_context(kafka_server(console.print))
    console.print(f"Kafka       {kafka.bootstrap_servers}")
    return kafka, postgres


def _page_address(port: int) -> str:
    """Return where the status page can listen: on this port, or on another where it is taken."""
    return f"127.0.0.1:{port if is_free(port) else free_ports(1)[0]}"


def _write_config(
    directory: Path, kafka: Kafka | GivenKafka, postgres: Postgres | GivenPostgres, page: str
) -> tuple[Path, str]:
    """Write a copy of devstack/demo.toml with the servers' and the page's addresses; return it and the topic's name."""
    # Somebody else's Kafka may well have a topic of that name.
    topic = f"requests-{uuid.uuid4().hex[:8]}" if isinstance(kafka, GivenKafka) else "requests"
    text = shipped("devstack/demo.toml").read_text()
    for old, new in (
        (ADDRESS_IN_FILE, json.dumps(kafka.bootstrap_servers)),
        (DSN_IN_FILE, json.dumps(postgres.dsn)),
        (TOPIC_IN_FILE, f'topic = "{topic}"'),
        (PAGE_IN_FILE, json.dumps(page)),
    ):
        if text.count(old) != 1:
            raise DemoFailed(f"devstack/demo.toml must hold {old} once")
        text = text.replace(old, new)
    config = directory / "demo.toml"
    config.write_text(text)
    return config, topic


def _prepare(console: Console, config: Path, dsn: str) -> None:
    """Make the table, the schema kbatchd and the topic, with the commands that an operator has."""
    console.print("Making the table from sql/examples/requests.sql")
    with psycopg.connect(dsn) as connection:
        try:
            connection.execute(shipped("sql/examples/requests.sql").read_text().encode())
        except psycopg.errors.DuplicateTable as error:
            raise ConfigError("KBATCHD_DSN: the database has a table requests; give the demo an empty one") from error
    for command in ("migrate", "create-topic"):
        console.print(f"Running kbatchd {command} --config {config}")
        done = subprocess.run([sys.executable, "-m", "kbatchd", command, "--config", config], check=False)  # noqa: S603
        if done.returncode != EX_OK:
            raise DemoFailed(f"kbatchd {command} ended with status {done.returncode}")


def _send_and_wait(
    console: Console,
    connection: psycopg.Connection,
    daemon: Daemon,
    bootstrap_servers: str,
    topic: str,
    records: int,
) -> Killed | None:
    """Send the records while the daemon writes them; return when as many rows are committed, and who was killed."""
    console.print(f"Sending {records:,} requests to the topic {topic}")
    view = View(console, records)
    hunt = Hunt(connection, daemon.pid, topic, records / PARTITIONS)
    transfer = Transfer(view, connection, daemon, hunt, records)
    with view.bars:
        send(bootstrap_servers, topic, generate(records), PARTITIONS, transfer.look)
        transfer.wait()
    return hunt.killed


def _report(
    console: Console, connection: psycopg.Connection, outcome: Outcome, records: int, killed: Killed | None
) -> None:
    """Print what was found and how it went."""
    console.print()
    for what, found, expected in (
        ("rows in the table", outcome.rows, records),
        ("different ids", outcome.distinct_ids, records),
        ("first and last id", (outcome.first_id, outcome.last_id), (0, records - 1)),
        ("sum of next_offset", outcome.next_offsets, records),
    ):
        mark = "[green]ok[/]" if found == expected else f"[red]WRONG[/], must be {expected}"
        console.print(f"  {what:<20} {found!s:>14}  {mark}")
    if killed is not None:
        console.print(f"  {killed.name + ' killed':<20} {killed.worker.pid:>14}  replaced by {killed.successor}")
    batches, rows, median, seconds = read_summary(connection)
    console.print()
    console.print(
        f"  {rows:,} rows in {seconds:.1f} s ({rows / max(seconds, 0.001):,.0f} rows/s), {batches} batches, "
        f"the median one of {median:,} rows"
    )
    console.print()
    if not outcome.proves(records):
        console.print("[bold red]Not proven[/]: the table does not hold each record exactly once.")
        return
    event = f"{killed.name} killed with SIGKILL after {killed.rows:,} rows; replaced" if killed else "no worker killed"
    console.print(f"[bold green]Proven[/]: {event}; {outcome.rows:,} rows, each once.")


def _stay(
    console: Console, config: Path, postgres: Postgres | GivenPostgres, kafka: Kafka | GivenKafka, page: str
) -> None:
    """Leave everything up until Ctrl-C."""
    console.print(
        f"""
Everything is still running. To look around, from another terminal:
  {postgres.psql} {postgres.dsn}
      SELECT * FROM requests LIMIT 10;
      SELECT * FROM kbatchd.progress;
      SELECT * FROM kbatchd.batches ORDER BY id DESC LIMIT 10;
  {sys.executable} -P -m kbatchd status --config {config} --watch
  http://{page}/ is the status page
Kafka answers at {kafka.bootstrap_servers}; the daemon's log is {config.with_name("kbatchd.log")}
Ctrl-C stops it all."""  # noqa: S608 - for the eye
    )
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print()
