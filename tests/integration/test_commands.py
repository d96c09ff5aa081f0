"""The operator's commands on real servers, each as a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from psycopg.conninfo import make_conninfo

from kbatchd import config
from kbatchd.kafka import topics
from kbatchd.schema import claiming
from kbatchd.schema.progress import Owner

if TYPE_CHECKING:
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic

NOBODY = "127.0.0.1:1"


@dataclass(frozen=True)
class Installation:
    """A file, its database and its topic."""

    file: Path
    dsn: str
    topic: str
    bootstrap_servers: str

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        command = [sys.executable, "-m", "kbatchd", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)

    def ok(self, *arguments: str) -> list[str]:
        """Run one command, which must succeed in silence; return the lines it printed."""
        done = self.run(*arguments, "--config", str(self.file))
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def fails(self, code: int, *arguments: str) -> str:
        """Run one command, which must fail with one line; return that."""
        done = self.run(*arguments, "--config", str(self.file))
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        (line,) = done.stderr.splitlines()
        return line

    def change(self, old: str, new: str) -> None:
        """Edit the file."""
        text = self.file.read_text(encoding="utf-8")
        assert old in text
        self.file.write_text(text.replace(old, new), encoding="utf-8")

    def register(self, topic_id: str | None = None, **offsets: int) -> None:
        """Write first progress, as the daemon does: `register(p0=5)`."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            claiming.register(
                connection,
                Owner("kbatchd", "r", self.topic, "public.requests", "test"),
                topic_id or self.topic_id(),
                {int(name[1:]): offset for name, offset in offsets.items()},
            )

    def topic_id(self) -> str:
        """Ask the broker."""
        admin = topics.make_admin(config.Kafka(bootstrap_servers=self.bootstrap_servers))
        found = topics.describe(admin, [self.topic])[self.topic]
        assert found is not None
        return found.topic_id

    def progress(self) -> list[dict[str, str]]:
        """Read `progress show` as a program would."""
        names, *lines = (line.split("\t") for line in self.ok("progress", "show"))
        return [dict(zip(names, line, strict=True)) for line in lines]

    def query(self, statement: str) -> list[tuple[object, ...]]:
        """Look into the database."""
        with psycopg.connect(self.dsn) as connection:
            return connection.execute(statement.encode()).fetchall()


@pytest.fixture
def installation(tmp_path: Path, kafka: Kafka | GivenKafka, database: str, topic_name: str) -> Installation:
    return _install(tmp_path, kafka.bootstrap_servers, database, topic_name)


def _install(directory: Path, bootstrap_servers: str, dsn: str, topic: str) -> Installation:
    file = directory / "kbatchd.toml"
    file.write_text(
        f"""\
startup_timeout_seconds = 5.0
[kafka]
bootstrap_servers = "{bootstrap_servers}"
[postgres]
dsn = "{dsn}"
[[route]]
name = "r"
topic = "{topic}"
table = "public.requests"
partitions = 2
[[route]]
name = "other"
topic = "{topic}-other"
table = "public.requests"
""",
        encoding="utf-8",
    )
    return Installation(file, dsn, topic, bootstrap_servers)


def _send(installation: Installation, count: int) -> None:
    producer = Producer({"bootstrap.servers": installation.bootstrap_servers})
    for _ in range(count):
        producer.produce(installation.topic, b"{}", partition=0)
    producer.flush()


@pytest.fixture
def admin(kafka: Kafka | GivenKafka) -> AdminClient:
    """Held by the test: the futures of a client that is collected never end."""
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})


def test_migrate(tmp_path: Path, kafka: Kafka | GivenKafka, empty_database: str, topic_name: str) -> None:
    installation = _install(tmp_path, kafka.bootstrap_servers, empty_database, topic_name)
    assert "lacks 0001_kbatchd" in installation.fails(78, "progress", "show")
    assert installation.ok("migrate")[0] == "applied 0001_kbatchd"
    assert installation.ok("migrate") == ["the schema kbatchd is up to date"]


def test_create_topic(installation: Installation, admin: AdminClient) -> None:
    topic, other = installation.topic, f"{installation.topic}-other"
    try:
        assert installation.ok("create-topic", "r") == [f"{topic}: created"]
        assert installation.ok("create-topic") == [f"{topic}: exists already", f"{other}: created"]
        made = admin.list_topics(timeout=30).topics
        assert [len(made[name].partitions) for name in (topic, other)] == [2, 4]
        assert "there is no route nobody; the file has r, other" in installation.fails(78, "create-topic", "nobody")
    finally:
        for future in admin.delete_topics([topic, other]).values():
            future.result()


def test_progress_of_nothing(installation: Installation) -> None:
    assert installation.progress() == []


def test_progress_show_and_set(installation: Installation, make_topic: MakeTopic) -> None:
    make_topic(2, installation.topic)
    _send(installation, 7)
    installation.register(p0=5, p1=0)
    before = installation.progress()
    assert [
        (row["route"], row["topic"], row["partition"], row["next_offset"], row["end"], row["lag"]) for row in before
    ] == [
        ("r", installation.topic, "0", "5", "7", "2"),
        ("r", installation.topic, "1", "0", "0", "0"),
    ]
    assert {row["target"] for row in before} == {"public.requests"}

    assert installation.ok("progress", "set", "r", "0", "3") == [f"{installation.topic}[0]: next_offset was 5, is 3"]

    after = installation.progress()
    assert [(row["next_offset"], row["lag"]) for row in after] == [("3", "4"), ("0", "0")]
    assert [int(row["epoch"]) for row in after] == [int(before[0]["epoch"]) + 1, int(before[1]["epoch"])]
    ledger = installation.query("SELECT route, reason, rows, spans FROM kbatchd.batches")
    assert ledger == [("r", "set", 0, {installation.topic: {"0": [5, 3]}})]


def test_progress_set_of_what_is_not_there(installation: Installation) -> None:
    assert "there is no progress of" in installation.fails(78, "progress", "set", "r", "0", "3")
    assert "there is no route nobody" in installation.fails(78, "progress", "set", "nobody", "0", "3")
    assert installation.query("SELECT FROM kbatchd.batches") == []


def test_progress_show_without_kafka(installation: Installation, make_topic: MakeTopic) -> None:
    make_topic(1, installation.topic)
    installation.register(p0=5)
    installation.change(installation.bootstrap_servers, NOBODY)
    done = installation.run("progress", "show", "--config", str(installation.file))
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("kbatchd: the lag is not known: Kafka cannot be reached: ")
    _, row = (line.split("\t") for line in done.stdout.splitlines())
    assert row[3:6] == ["5", "-", "-"]


def test_progress_show_of_a_topic_recreated(installation: Installation, make_topic: MakeTopic) -> None:
    make_topic(1, installation.topic)
    installation.register("another-id", p0=5, p1=5)
    assert [(row["end"], row["lag"]) for row in installation.progress()] == [("-", "-"), ("-", "-")]


def test_accept_a_gap(installation: Installation, make_topic: MakeTopic, admin: AdminClient) -> None:
    topic = make_topic(2, installation.topic)
    _send(installation, 9)
    installation.register(p0=2, p1=0)
    assert installation.ok("progress", "accept", "r") == [
        f"{topic}[0]: there is nothing to accept",
        f"{topic}[1]: there is nothing to accept",
    ]
    admin.delete_records([TopicPartition(topic, 0, 6)])[TopicPartition(topic, 0)].result()

    assert installation.ok("progress", "accept", "r", "1") == [f"{topic}[1]: there is nothing to accept"]
    (line,) = installation.ok("progress", "accept", "r", "0")
    assert line.startswith(f"accepted {topic}[0]: offsets 2 to 5 ")

    assert installation.progress()[0]["next_offset"] == "6"
    gaps = installation.query("SELECT route, partition, kind, first_offset, last_offset FROM kbatchd.gaps")
    assert gaps == [("r", 0, "retention", 2, 6)]
    assert "there is no progress of 7" in installation.fails(78, "progress", "accept", "r", "0", "7")


def test_accept_a_topic_recreated(installation: Installation, make_topic: MakeTopic) -> None:
    topic = make_topic(1, installation.topic)
    installation.register("another-id", p0=100)
    (line,) = installation.ok("progress", "accept", "r")
    assert line.startswith(f"accepted {topic}[0]: the topic was recreated")
    (row,) = installation.progress()
    assert (row["next_offset"], row["lag"]) == ("0", "0")
    assert installation.ok("progress", "accept", "r") == [f"{topic}[0]: there is nothing to accept"]


def test_accept_leaves_what_the_route_has_read_of_another_topic(
    installation: Installation, make_topic: MakeTopic
) -> None:
    topic = make_topic(1, installation.topic)
    installation.register("another-id", p0=100)
    installation.query(
        "INSERT INTO kbatchd.progress (pipeline, route, topic, partition, topic_id, target, next_offset) "
        "SELECT pipeline, route, 'before', 7, topic_id, target, 3 FROM kbatchd.progress RETURNING 1"
    )
    (line,) = installation.ok("progress", "accept", "r")
    assert line.startswith(f"accepted {topic}[0]: the topic was recreated")


def test_accept_without_a_topic(installation: Installation) -> None:
    assert f"topic {installation.topic} does not exist" in installation.fails(78, "progress", "accept", "r")


def test_postgres_is_not_there(installation: Installation) -> None:
    installation.change(installation.dsn, make_conninfo(installation.dsn, host="127.0.0.1", port=1))
    for arguments in (("migrate",), ("progress", "show"), ("progress", "set", "r", "0", "1")):
        assert "PostgreSQL cannot be reached" in installation.fails(69, *arguments)


def test_no_such_database(installation: Installation) -> None:
    installation.change(installation.dsn, make_conninfo(installation.dsn, dbname="no_such_database"))
    assert 'database "no_such_database" does not exist' in installation.fails(78, "migrate")


def test_kafka_is_not_there(installation: Installation) -> None:
    installation.change(installation.bootstrap_servers, NOBODY)
    started_at = time.monotonic()
    assert "Kafka cannot be reached" in installation.fails(69, "create-topic")
    assert time.monotonic() - started_at < 5 + 9  # the process's own start, too; the command's own limit is 15
