"""A stage: a topic behind a proxy, a table behind a proxy, the daemon between them, and the oracle beside.

A scenario does something to it, waits until everything has settled, and asks the oracle. `program` is the daemon, or
the daemon with a planted defect: the scenario is the same.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import NewTopic

from kbatchd.errors import ServerUnavailable
from tests.faults.oracle import COLUMNS, TABLE, Oracle, value
from tests.fix_daemon import wait_until
from tests.fix_kafka import wait_for_leaders
from tests.fix_postgres import ROLES

if TYPE_CHECKING:
    from pathlib import Path

    from kbatchd.devstack.postgres import Postgres
    from tests.faults.brokers import Brokers
    from tests.faults.kafka_wire import KafkaWire
    from tests.faults.postgres_wire import PostgresWire
    from tests.fix_daemon import Daemon, MakeDaemon

#: Requests that nobody answers time out first; then everything is asked again, and read.
SETTLED_SECONDS = 45.0

#: How long nothing may happen before it is taken for settled: some lingers, and the flusher's own second.
QUIET_SECONDS = 1.5

HONEST = ("-m", "kbatchd")


@dataclass
class Stage:
    """See the module."""

    brokers: Brokers
    dsn: str
    postgres_wire: PostgresWire
    make_daemon: MakeDaemon
    #: The server itself, where it is the test's own.
    postgres: Postgres | None = None
    program: Sequence[str] = HONEST
    #: What makes the daemon's role, where a play wants one.
    roles: Path = ROLES
    oracles: list[Oracle] = field(default_factory=list)
    daemons: list[Daemon] = field(default_factory=list)
    _seqs: Iterator[int] = field(default_factory=count)

    @property
    def wire(self) -> KafkaWire:
        """The proxy of the first broker."""
        return self.brokers.wire

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run SQL past the proxy; return the rows, if there are some."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def oracle(self, topic: str | None = None, table: str | None = None, **options: object) -> Oracle:
        """Make a topic, unless one is given, and a table; return their oracle."""
        name = topic or self.brokers.make_topic(**options)  # type: ignore[arg-type]
        table = table or f"public.kept_{len(self.oracles)}"
        self.execute(TABLE.format(table))
        self.oracles.append(Oracle(self.brokers.direct, name, self.dsn, table))
        return self.oracles[-1]

    def daemon(self, *routes: Mapping[str, object], **tables: Mapping[str, object]) -> Daemon:
        """Write a file and return its daemon: one worker, all through the proxies; without routes, the oracles'."""
        given = {name: dict(table) for name, table in tables.items()}
        given["kafka"] = {"bootstrap_servers": self.brokers.bootstrap_servers, **given.get("kafka", {})}
        given["postgres"] = {"dsn": self.through, **given.get("postgres", {})}
        given["workers"] = {"count": 1, **given.get("workers", {})}
        every = routes or tuple(map(route, self.oracles))
        return self._kept(self.make_daemon(*every, program=self.program, config=None, **given))

    def another(self, daemon: Daemon) -> Daemon:
        """Return another daemon with the same file."""
        return self._kept(self.make_daemon(config=daemon.config, program=self.program))

    def _kept(self, daemon: Daemon) -> Daemon:
        self.daemons.append(daemon)
        return daemon

    def clear(self) -> None:
        """End the daemons and the rules: what is here stays as it is, for another stage on the same servers."""
        for daemon in self.daemons:
            daemon.clean_up()
        for wire in (*self.brokers.wires, self.postgres_wire):
            wire.clear()

    @property
    def through(self) -> str:
        """The DSN through the proxy."""
        return psycopg.conninfo.make_conninfo(self.dsn, host="127.0.0.1", port=self.postgres_wire.port)

    def command(self, daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command with the daemon's file, and with its defect."""
        return subprocess.run(
            [sys.executable, *self.program, *arguments, "--config", daemon.config],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    def send(self, oracle: Oracle, records: int, partition: int = 0, *, sound: bool = True) -> list[int]:
        """Send so many records past the proxy; return their numbers when all are acknowledged."""
        seqs = self.take_numbers(records)
        self.send_values(oracle.topic, [value(seq, sound=sound) for seq in seqs], partition)
        return seqs

    def send_values(self, topic: str, values: Sequence[bytes], partition: int = 0) -> None:
        """Send these, and wait until they are acknowledged."""
        # Idempotent: after an election it sends again what it had no answer for, and that would be in the topic twice.
        producer = Producer({"bootstrap.servers": self.brokers.direct, "log_level": 0, "enable.idempotence": True})
        failures: list[KafkaError] = []

        def note(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failures.append(error)

        for each in values:
            producer.produce(topic, each, partition=partition, on_delivery=note)
        assert producer.flush(60) == 0, "the producer could not deliver"
        assert not failures, failures[0].str()

    def take_numbers(self, records: int) -> list[int]:
        """Return numbers for records that somebody else sends."""
        return [next(self._seqs) for _ in range(records)]

    def recreate(self, oracle: Oracle, partitions: int = 1) -> None:
        """Delete the topic and make it again. The oracle must have read it: `remember`."""
        admin = self.brokers.admin()
        admin.delete_topics([oracle.topic], operation_timeout=10)[oracle.topic].result()

        def made() -> bool:
            try:
                admin.create_topics([NewTopic(oracle.topic, partitions, 1)])[oracle.topic].result()
            except Exception as error:
                if "already exists" in str(error) or "marked for deletion" in str(error):
                    return False
                raise
            return True

        wait_until(made, 20, f"{oracle.topic} again")
        wait_for_leaders(admin, oracle.topic, partitions)

    def delete_records(self, oracle: Oracle, offset: int, partition: int = 0) -> None:
        """Let the partition begin there, as retention does, when the oracle has read it."""
        oracle.remember()
        admin = self.brokers.admin()
        at = TopicPartition(oracle.topic, partition, offset)
        admin.delete_records([at])[TopicPartition(oracle.topic, partition)].result()

    def settle(self, daemon: Daemon, *oracles: Oracle, known_halts: int = 0, seconds: float = SETTLED_SECONDS) -> None:
        """Wait until each topic has been read to its end, or the daemon said why not, or has ended; and stays there.

        `known_halts`: how many lines of the log say that something halted, and are dealt with.
        """
        every = oracles or tuple(self.oracles)
        ends = [oracle.edition().ends() for oracle in every]
        since, before = time.monotonic(), None

        def settled() -> bool:
            nonlocal since, before
            state = [oracle.progress() for oracle in every]
            is_over = state == ends or has_said(daemon, known_halts)
            if state != before or not is_over:
                since, before = time.monotonic(), state
            return time.monotonic() - since > QUIET_SECONDS

        wait_until(settled, seconds, f"progress at {ends}, or a reason", every_seconds=0.1)

    def restart_postgres(self) -> None:
        """Let PostgreSQL crash, nobody hear what was on the way, and start it again; rules end."""
        assert self.postgres is not None
        self.postgres.kill()
        self.postgres_wire.cut()
        self.postgres_wire.clear()
        self.start_postgres()

    def start_postgres(self) -> None:
        """Start it on the data that it has."""
        wait_until(self._postgres_starts, 20, "PostgreSQL again")

    def _postgres_starts(self) -> bool:
        """Start PostgreSQL; not before the last backend of the killed one has noticed, and given its memory up."""
        assert self.postgres is not None
        try:
            self.postgres.start()
        except ServerUnavailable as error:
            if "pre-existing shared memory" not in str(error):
                raise
            return False
        return True

    def check(self) -> None:
        """Let every oracle judge."""
        for oracle in self.oracles:
            oracle.check()


def has_said(daemon: Daemon, known_halts: int = 0) -> bool:
    """Tell whether the daemon has ended, has halted one more partition, or has put a route on hold."""
    return daemon.has_ended() or len(daemon.logged("action=halt")) > known_halts or bool(daemon.logged("action=aside"))


def route(oracle: Oracle, **keys: object) -> dict[str, object]:
    """Return what the file says of an oracle's topic and table."""
    name = {"name": oracle.route} if oracle.route else {}
    return {"topic": oracle.topic, "table": oracle.table, "columns": COLUMNS, **name, **keys}


def fail_unless(condition: object, what: str) -> None:
    """Fail the test: not the daemon is to blame, the scenario did not come about."""
    if not condition:
        pytest.fail(what)
