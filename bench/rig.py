"""The rig: the servers, filled topics, the raw COPY limit, and one drain by the real daemon, with what it cost.

drain.py and poison.py build on it, and http.py in part. The daemon runs as a process of its own, as it does in
production; this process only fills topics, looks at the ledger and at the kernel's accounts (accounting.py).

What is counted:

- Rate: the records between the commit of the first batch and the commit of the last full one, by the ledger's
  `committed_at`. The first batch's own records are outside of the interval, and so is a batch that lingered at the end.
- CPU: from the claim of all partitions, when the workers have started but have read nothing, until the last record is
  in; divided by all records. Of the workers; of all PostgreSQL's processes but this one's session; of the broker.
- Memory: VmHWM of the largest worker, once all is in.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil
import psycopg
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec
from psycopg import sql
from psycopg.conninfo import make_conninfo

from bench.accounting import Accounts, children, listener, peak_rss_bytes
from kbatchd.config import RouteMapping
from kbatchd.devstack.kafka import Kafka, kafka_server
from kbatchd.devstack.postgres import postgres_server
from kbatchd.devstack.process import tail
from kbatchd.devstack.requests import send
from kbatchd.encode.mapping import row_columns
from kbatchd.encode.rows import RowEncoder, build_encoder
from kbatchd.postgres import catalogue
from kbatchd.schema import migrations
from kbatchd.sink.batch_copy import COPY_HEADER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from datetime import datetime

#: The daemon's own default: a raw transaction holds as many rows as a batch.
BATCH_ROWS = 20_000

#: Between two looks at the ledger: a look costs PostgreSQL 0.2 ms, in a session that is not counted.
LOOK_SECONDS = 0.02

#: A drain that takes longer is stuck.
DRAIN_SECONDS = 300.0

REQUESTS_SQL = Path(__file__).resolve().parent.parent / "sql/examples/requests.sql"


@dataclass(frozen=True, slots=True)
class Drained:
    """One drain: how fast, and what a record cost."""

    records_per_second: float
    worker_cpu_us: float
    postgres_cpu_us: float | None
    broker_cpu_us: float | None
    worker_rss_bytes: int


@dataclass(slots=True, kw_only=True)
class Series:
    """The drains of one run, a round each, and their ratios to the first run's."""

    drains: list[Drained] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


AnySeries = TypeVar("AnySeries", bound=Series)


def measure(runs: Sequence[AnySeries], rounds: int, drain: Callable[[AnySeries], Drained]) -> None:
    """Drain all runs in each round, every other round in reverse."""
    for number in range(1, rounds + 1):
        print(f"round {number}")
        for run in runs if number % 2 else runs[::-1]:
            run.drains.append(drain(run))
        for run in runs:
            run.ratios.append(run.drains[-1].records_per_second / runs[0].drains[-1].records_per_second)


class Rig:
    """The servers of one benchmark, with a database of its own."""

    def __init__(self, bootstrap_servers: str, broker: psutil.Process | None, dsn: str, directory: Path) -> None:
        self.bootstrap_servers = bootstrap_servers
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True)
        self._admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        self.accounts = Accounts(self.connection, broker)
        self.directory = directory
        #: What gives every measurement the same start.
        self.start_sql: Sequence[str] = ["TRUNCATE requests, kbatchd.dead_letters"]
        self._topics: list[str] = []
        migrations.migrate(self.connection)
        self.connection.execute(REQUESTS_SQL.read_bytes())

    def fill_topic(self, values: Iterable[bytes], partitions: int, on_sent: Callable[[int], None]) -> str:
        """Make a topic and send the values to its partitions in turn; return its name."""
        topic = self.make_topic(partitions)
        send(self.bootstrap_servers, topic, values, partitions, on_sent)
        return topic

    def make_topic(self, partitions: int) -> str:
        """Make an empty topic; return its name."""
        topic = f"bench-{uuid.uuid4().hex[:12]}"
        self._admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result()
        self._topics.append(topic)
        return topic

    def count_records(self, topic: str, partitions: int) -> int:
        """Add up the partitions' end offsets."""
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        ends = self._admin.list_offsets({TopicPartition(topic, number): latest for number in range(partitions)})
        return sum(each.result().offset for each in ends.values())

    def encoder(self) -> RowEncoder:
        """Make the encoder that the daemon will use."""
        return build_encoder(row_columns(catalogue.read_table(self.connection, "requests"), RouteMapping()))

    def copy_raw(self, blocks: Sequence[bytes], columns: Iterable[str]) -> float:
        """Copy encoded rows, a block a transaction, and nothing else; return rows/s between first and last commit."""
        self._clear()
        copy_sql = sql.SQL("COPY requests ({}) FROM STDIN (FORMAT BINARY)").format(
            sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        commits = []
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("SET synchronous_commit = off")
            for block in blocks:
                with connection.cursor().copy(copy_sql) as copy:
                    copy.write(block)
                commits.append(time.monotonic())
        return (len(blocks) - 1) * BATCH_ROWS / (commits[-1] - commits[0])

    def drain(
        self, topic: str, records: int, workers: int, *, dead_letters: int = 0, rows: int | None = None, route: str = ""
    ) -> Drained:
        """Run the daemon on a filled topic until all is in; check the counts.

        `rows` are in the table then, if they are not as many as records went in; `route` is more of the [[route]].
        """
        self._clear()
        pipeline = f"bench-{uuid.uuid4().hex[:12]}"  # a fresh one: it reads the topic from its beginning
        with self._daemon(pipeline, topic, workers, route) as daemon:
            self._wait(daemon, lambda: self._all_claimed(pipeline))
            pids = self._workers(daemon.pid)
            before = self.accounts.cpu(pids)
            self._wait(daemon, lambda: self.records_in(pipeline) >= records)
            after = self.accounts.cpu(pids)
            rss = max(map(peak_rss_bytes, pids))
        self._verify(records - dead_letters if rows is None else rows, dead_letters)
        return Drained(
            self._rate(pipeline),
            _microseconds(before.workers, after.workers, records) or 0.0,
            _microseconds(before.postgres, after.postgres, records),
            _microseconds(before.broker, after.broker, records),
            rss,
        )

    def close(self) -> None:
        """Delete the topics and leave."""
        for deleted in self._admin.delete_topics(self._topics).values() if self._topics else ():
            deleted.result()
        self.connection.close()

    def _clear(self) -> None:
        """Give every measurement the same start, and no checkpoint due."""
        for statement in self.start_sql:
            self.connection.execute(statement.encode())
        # What a former pipeline has read into the table is gone with it: to read it again is no renaming.
        self.connection.execute("DELETE FROM kbatchd.progress")
        with contextlib.suppress(psycopg.errors.InsufficientPrivilege):
            self.connection.execute("CHECKPOINT")

    @contextmanager
    def _daemon(self, pipeline: str, topic: str, workers: int, route: str) -> Iterator[subprocess.Popen[bytes]]:
        file = self.directory / "kbatchd.toml"
        file.write_text(
            f'pipeline = "{pipeline}"\n'
            f'kafka.bootstrap_servers = "{self.bootstrap_servers}"\n'
            f"workers.count = {workers}\n"
            f"batch.max_rows = {BATCH_ROWS}\n"
            f'[[route]]\ntopic = "{topic}"\ntable = "requests"\n{route}\n'
        )
        log = self.directory / "kbatchd.log"
        # By the environment: a DSN in the file may hold no password, the one we were given may.
        environment = {**os.environ, "DATABASE_URL": self.dsn}
        command = [sys.executable, "-m", "kbatchd", "--config", str(file)]
        with log.open("wb") as output, subprocess.Popen(command, stderr=output, env=environment) as daemon:
            try:
                yield daemon
            except BaseException:
                print(tail(log), file=sys.stderr)
                raise
            finally:
                daemon.send_signal(signal.SIGTERM)
                code = daemon.wait(20)
        if code != 0:
            raise RuntimeError(f"kbatchd ended with {code}\n{tail(log)}")

    def _workers(self, daemon: int) -> list[int]:
        """Return the workers' pids: a monitor is a child as well."""
        started = re.findall(r"action=worker_started .*pid=(\d+)", (self.directory / "kbatchd.log").read_text())
        return [pid for pid in children(daemon) if str(pid) in started]

    def _wait(self, daemon: subprocess.Popen[bytes], is_true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DRAIN_SECONDS
        while not is_true():
            if daemon.poll() is not None:
                raise RuntimeError(f"kbatchd ended with {daemon.returncode}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not done after {DRAIN_SECONDS:.0f} s")
            time.sleep(LOOK_SECONDS)

    def _all_claimed(self, pipeline: str) -> bool:
        return bool(self._value("SELECT bool_and(epoch > 0) FROM kbatchd.progress WHERE pipeline = %s", pipeline))

    def records_in(self, pipeline: str) -> int:
        """Return how many records a pipeline has written, by its ledger."""
        return int(
            self._value(
                "SELECT coalesce(sum(rows + dead_letters), 0) FROM kbatchd.batches WHERE pipeline = %s", pipeline
            )
        )

    def rate_between(self, begin: datetime, end: datetime) -> float:
        """Return the records a second of the full batches that lie within this time, by the ledger; 0: none."""
        row = self.connection.execute(
            """
            SELECT sum(records) / extract(epoch FROM max(committed_at) - min(before))
            FROM (SELECT rows + dead_letters AS records, committed_at, reason,
                         lag(committed_at) OVER (PARTITION BY pipeline ORDER BY committed_at) AS before
                  FROM kbatchd.batches) AS b
            WHERE reason = 'full' AND before >= %s AND committed_at <= %s
            """,
            (begin, end),
        ).fetchone()
        return float(row[0] or 0) if row else 0.0

    def _rate(self, pipeline: str) -> float:
        return float(
            self._value(
                """
                SELECT (sum(records) - min(records) FILTER (WHERE first))
                       / extract(epoch FROM max(committed_at) - min(committed_at))
                FROM (SELECT rows + dead_letters AS records, committed_at, reason,
                             row_number() OVER (ORDER BY committed_at) = 1 AS first
                      FROM kbatchd.batches WHERE pipeline = %s) AS b
                WHERE reason = 'full'
                """,
                pipeline,
            )
        )

    def _verify(self, rows: int, dead_letters: int) -> None:
        counts = self.connection.execute(
            """
            SELECT (SELECT count(*) FROM requests), (SELECT count(DISTINCT id) FROM requests),
                   (SELECT count(*) FROM kbatchd.dead_letters)
            """
        ).fetchone()
        if counts != (rows, rows, dead_letters):
            raise RuntimeError(f"rows, different rows, dead letters are {counts}, not {(rows, rows, dead_letters)}")

    def _value(self, query: str, pipeline: str) -> float:
        row = self.connection.execute(query.encode(), (pipeline,)).fetchone()
        return row[0] if row else 0


@contextmanager
def rig() -> Iterator[Rig]:
    """Give a rig on the servers that KBATCHD_KAFKA and KBATCHD_DSN name, else on servers of its own."""
    name = f"kbatchd_bench_{uuid.uuid4().hex[:12]}"
    with (
        tempfile.TemporaryDirectory(prefix="kbatchd-bench-") as directory,
        kafka_server(print) as kafka,
        postgres_server() as postgres,
        psycopg.connect(postgres.dsn, autocommit=True) as connection,
    ):
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            broker = psutil.Process(kafka.pid) if isinstance(kafka, Kafka) else listener(kafka.bootstrap_servers)
            made = Rig(kafka.bootstrap_servers, broker, make_conninfo(postgres.dsn, dbname=name), Path(directory))
            with contextlib.closing(made):
                yield made
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def encode_blocks(encoder: RowEncoder, values: Sequence[bytes]) -> list[bytes]:
    """Encode values as COPYs of a batch each; a last one that is not full is left out."""
    blocks = []
    for start in range(0, len(values) - BATCH_ROWS + 1, BATCH_ROWS):
        rows: list[bytes] = []
        refused = encoder.encode((), values[start : start + BATCH_ROWS], rows).refused
        if refused:
            raise RuntimeError(f"{len(refused)} records do not fit the table; the first: {refused[0]}")
        blocks.append(COPY_HEADER + b"".join(rows))
    return blocks


def _microseconds(before: float | None, after: float | None, records: int) -> float | None:
    return None if before is None or after is None else (after - before) * 1e6 / records
