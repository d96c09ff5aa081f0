"""The servers of the demo and the tests can be stopped, killed and started again, and keep what they were given."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson
import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from psycopg.types.json import Jsonb

from kbatchd.devstack.requests import NotDelivered, generate, send
from kbatchd.errors import ServerUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from kbatchd.devstack.postgres import Postgres
    from tests.fix_kafka import MakeTopic

READ_SECONDS = 60.0

#: A process that starts the server named in its argument, prints its pid and directory, and waits to be killed.
OWNER = """
import sys, tempfile, pathlib
from kbatchd.devstack.kafka import Kafka
from kbatchd.devstack.postgres import Postgres
server = Postgres() if sys.argv[1] == "postgres" else Kafka(pathlib.Path(sys.argv[2]))
server.start()
print(server.pid, server.directory, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_kafka_keeps_its_records_and_its_port(own_kafka: Kafka, own_make_topic: MakeTopic, end: str) -> None:
    topic = own_make_topic(partitions=2)
    sent = list(generate(1000))
    send(own_kafka.bootstrap_servers, topic, sent, 2)
    address, pid = own_kafka.bootstrap_servers, own_kafka.pid

    {"stop": own_kafka.stop, "kill": own_kafka.kill}[end]()

    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(ServerUnavailable, match="not running"):
        _ = own_kafka.pid
    own_kafka.start()
    assert own_kafka.bootstrap_servers == address
    assert own_kafka.pid != pid
    assert sorted(_read(address, topic, 2)) == sorted(sent)


@pytest.mark.parametrize("end", ["fast", "immediate", "kill"])
def test_postgres_keeps_its_rows_and_its_port(
    own_postgres: Postgres, own_database: str, end: Literal["fast", "immediate", "kill"]
) -> None:
    with psycopg.connect(own_database) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    pid = own_postgres.pid

    with psycopg.connect(own_database):  # an open session must not hold it up
        if end == "kill":
            own_postgres.kill()
        else:
            own_postgres.stop(end)

    assert not Path(f"/proc/{pid}").exists()
    own_postgres.start()
    with psycopg.connect(own_database) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchall() == [(42,)]


def test_postgres_is_as_durable_as_it_comes(own_database: str) -> None:
    with psycopg.connect(own_database) as connection:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert connection.execute("SELECT current_setting(%s)", (name,)).fetchone() == ("on",)


@pytest.mark.parametrize("name", ["kafka", "postgres"])
def test_servers_die_with_their_owner(name: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, name, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        number, directory = owner.stdout.readline().decode().split()
        pid = int(number)
        # In a session of its own: Ctrl-C in the terminal does not reach it.
        assert os.getsid(pid) == pid
        owner.send_signal(signal.SIGKILL)
    _wait(lambda: not _runs(pid))
    shutil.rmtree(directory)


def test_requests_are_those_of_their_seed_and_fit_their_table(database: str) -> None:
    assert list(generate(100, first_id=7, seed=1)) == list(generate(100, first_id=7, seed=1))
    assert list(generate(100, first_id=7, seed=1)) != list(generate(100, first_id=7, seed=2))
    values = list(generate(2000, first_id=500))
    assert 250 <= sum(map(len, values)) / len(values) <= 290
    statement = (Path(__file__).parents[3] / "sql/examples/requests.sql").read_text()
    with psycopg.connect(database) as connection:
        connection.execute(statement.encode())
        connection.execute(
            "INSERT INTO requests SELECT * FROM jsonb_populate_recordset(NULL::requests, %s)",
            (Jsonb([orjson.loads(value) for value in values]),),
        )
        counted = connection.execute(
            "SELECT count(*), count(DISTINCT request_id), min(id), max(id) FROM requests"
        ).fetchone()
    assert counted == (2000, 2000, 500, 2499)


def test_send_takes_partitions_in_turn_and_counts(kafka: Kafka | GivenKafka, make_topic: MakeTopic) -> None:
    topic = make_topic(partitions=3)
    values = [b"%d" % number for number in range(10)]
    heard: list[int] = []

    assert send(kafka.bootstrap_servers, topic, values, 3, heard.append) == 10

    assert heard[-1] == 10
    assert _read(kafka.bootstrap_servers, topic, 3, only=1) == [b"1", b"4", b"7"]


def test_send_says_what_was_not_delivered(kafka: Kafka | GivenKafka, make_topic: MakeTopic) -> None:
    topic = make_topic(partitions=1)
    with pytest.raises(NotDelivered, match="partition"):
        send(kafka.bootstrap_servers, topic, [b"a", b"b"], 2)


def _read(bootstrap_servers: str, topic: str, partitions: int, only: int | None = None) -> list[bytes]:
    """Read a topic, or one partition of it, from its start to its end as it is now."""
    numbers = range(partitions) if only is None else [only]
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "unused", "enable.auto.commit": False})
    try:
        expected = sum(
            consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)[1] for number in numbers
        )
        consumer.assign([TopicPartition(topic, number, 0) for number in numbers])
        values: list[bytes] = []
        deadline = time.monotonic() + READ_SECONDS
        while len(values) < expected and time.monotonic() < deadline:
            values += [message.value() or b"" for message in consumer.consume(1000, timeout=0.2)]
        return values
    finally:
        consumer.close()


def _runs(pid: int) -> bool:
    """Tell whether a process is there and is not just waiting to be reaped by init."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait(condition: Callable[[], bool], timeout_seconds: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
