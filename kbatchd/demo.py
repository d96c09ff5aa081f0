"""`kbatchd demo`: all of it on one machine, from an empty directory to a proof.

A real Kafka and a real PostgreSQL (kbatchd.devstack), the same commands an operator would run, the daemon as a process of
its own, generated requests, and at the end SQL that must find every record in the table exactly once. Runs in the main
thread of the command line's process; whatever ends it, Ctrl-C included, stops the daemon first and then the servers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kbatchd.devstack.kafka import GivenKafka, kafka_server
from kbatchd.devstack.postgres import GivenPostgres, postgres_server
from kbatchd.devstack.process import spawn, tail
from kbatchd.devstack.requests import generate, send
from kbatchd.errors import EX_OK, EX_SOFTWARE, ConfigError, KbatchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import Kafka
    from kbatchd.devstack.postgres import Postgres

#: The addresses in config/demo.toml, as they stand there.
ADDRESS_IN_FILE = '"localhost:9092"'
DSN_IN_FILE = '"postgresql://kbatchd@localhost/app"'
TOPIC_IN_FILE = 'topic = "requests"'
PARTITIONS = 4

#: Between two looks at the ledger: often enough for a bar, too seldom to cost anything.
LOOK_SECONDS = 0.2
#: Between two lines where there is no terminal.
LINE_SECONDS = 2.0
#: The daemon has come to a halt when it has written nothing for so long, whatever the machine.
STANDSTILL_SECONDS = 60.0
#: More than workers.grace_seconds, with the time to end.
STOP_SECONDS = 20.0


class DemoFailed(KbatchError):
    """A step of the demo did not do what it must."""


class Outcome(NamedTuple):
    """What the table holds and what progress says, when all is done."""

    rows: int
    distinct_ids: int
    first_id: int | None
    last_id: int | None
    next_offsets: int

    def proves(self, records: int) -> bool:
        """Tell whether every record became one row, and progress stands behind the last of them."""
        return self == Outcome(records, records, 0, records - 1, records)


class Daemon:
    """`kbatchd --config FILE` as a process of its own, its log in a file."""

    def __init__(self, config: Path) -> None:
        self.log = config.with_name("kbatchd.log")
        command = [sys.executable, "-m", "kbatchd", "--config", str(config)]
        self._process = spawn(command, log=self.log, death_signal=signal.SIGTERM)

    def check(self) -> None:
        """Raise DemoFailed when it has ended on its own."""
        if self._process.poll() is not None:
            raise DemoFailed(f"the daemon ended with status {self._process.returncode}.\n{tail(self.log)}")

    def stop(self) -> int:
        """Stop it as systemd would; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


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
            print(f"  {seconds:5.1f} s  {sent:,} records in Kafka, {rows:,} rows in the table", flush=True)


def run_demo(records: int = 300_000, keep: bool = False) -> int:
    """Run the demo; return 0 only if it has proven that each record became one row."""
    keep = keep or os.environ.get("KEEP", "0") not in {"", "0"}
    console = Console(highlight=False, soft_wrap=True)
    with _orderly_end() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kbatchd-demo-")))
        kafka, postgres = _start_servers(stack, console)
        config, topic = _write_config(directory, kafka, postgres)
        _prepare(console, config, postgres.dsn)
        console.print(f"Starting the daemon: kbatchd --config {config}")
        daemon = Daemon(config)
        stack.callback(daemon.stop)
        connection = stack.enter_context(psycopg.connect(postgres.dsn, autocommit=True))
        _send_and_wait(console, connection, daemon, kafka.bootstrap_servers, topic, records)
        outcome = _look(connection)
        _report(console, connection, outcome, records)
        if keep:
            _stay(console, config, postgres, kafka)
        console.print("Stopping the daemon and the servers")
        status = daemon.stop()
        if status != EX_OK:
            raise DemoFailed(f"the daemon ended with status {status} when asked to stop.\n{tail(daemon.log)}")
        if not keep:
            console.print("To look around while everything runs: KEEP=1 kbatchd demo")
    return EX_OK if outcome.proves(records) else EX_SOFTWARE


@contextmanager
def _orderly_end() -> Iterator[ExitStack]:
    """Give a stack whose end nothing interrupts; until then SIGTERM is as good as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            yield stack
            ending = stack.pop_all()
    finally:
        pass
    del before, ending


def _start_servers(stack: ExitStack, console: Console) -> tuple[Kafka | GivenKafka, Postgres | GivenPostgres]:
    """Start both servers, or take those that the environment names."""
    postgres = stack.enter_context(postgres_server())
    console.print(f"PostgreSQL  {postgres.dsn}")
    kafka = stack.enter_context(kafka_server(console.print))
    console.print(f"Kafka       {kafka.bootstrap_servers}")
    return kafka, postgres
