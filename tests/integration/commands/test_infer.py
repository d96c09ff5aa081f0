"""`kbatchd infer`: what it prints goes through psql and the daemon, and the table takes every record."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import tomli
from confluent_kafka import Producer

from kbatchd.paths import parse_path
from tests.fix_kafka import group_ids
from tests.fix_load import wait_all_taken
from tests.real_looking import NESTED, TOPICS, records

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_daemon import MakeDaemon
    from tests.fix_kafka import MakeTopic

RECORDS = 400


def infer(directory: Path, bootstrap_servers: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command, with a file that has nothing but the brokers."""
    file = directory / "kafka-alone.toml"
    file.write_text(f'[kafka]\nbootstrap_servers = "{bootstrap_servers}"\n')
    command = [sys.executable, "-m", "kbatchd", "infer", "--config", str(file), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)


def send(bootstrap_servers: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(30) == 0


def types(connection: psycopg.Connection, table: str) -> dict[str, str]:
    rows = connection.execute(
        """SELECT attname, format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' not null' ELSE '' END
           FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0""",
        (table,),
    )
    return dict(rows.fetchall())


def all_taken(
    names: Iterable[str],
    kafka: Kafka | GivenKafka,
    database: str,
    make_topic: MakeTopic,
    make_daemon: MakeDaemon,
    directory: Path,
) -> dict[str, dict[str, str]]:
    """Infer tables and routes for these topics, and let a daemon take all their records; return the tables' types."""
    routes, found = [], {}
    with psycopg.connect(database, autocommit=True) as connection:
        for name in names:
            topic, table = make_topic(2), f"public.{name}"
            send(kafka.bootstrap_servers, topic, list(records(name, RECORDS)))
            done = infer(directory, kafka.bootstrap_servers, topic, "--table", table)
            assert (done.returncode, done.stderr) == (0, "")
            connection.execute(done.stdout.encode())  # as psql would
            route = infer(directory, kafka.bootstrap_servers, topic, "--table", table, "--route").stdout
            in_comment = done.stdout.partition("-- The route for the file:\n--\n")[2]
            assert re.sub("(?m)^-- ?", "", in_comment) == route
            routes += tomli.loads(route)["route"]
            found[name] = types(connection, table)
        daemon = make_daemon(*routes).start()
        daemon.wait_ready()
        wait_all_taken(connection, [f"public.{name}" for name in names], RECORDS)
        for name, route in zip(names, routes, strict=True):
            rows = connection.execute(f"SELECT row_to_json(t) FROM public.{name} t".encode()).fetchall()
            compared = [column for column, kind in found[name].items() if kind.removesuffix(" not null") in UNCHANGED]
            assert sorted(comparable(row, dict.fromkeys(compared)) for (row,) in rows) == sorted(
                comparable(json.loads(record), {column: route.get("columns", {}).get(column) for column in compared})
                for record in records(name, RECORDS)
            )
    assert daemon.stop() == 0
    return found


#: Types whose values are in JSON as they were.
UNCHANGED = {"text", "bigint", "integer", "numeric", "double precision", "boolean", "json", "jsonb"}


def comparable(record: Any, fields: dict[str, str | None]) -> str:
    """Write what is at these fields, the columns' own by default, so that equal numbers look the same."""
    found = {}
    for column, field in fields.items():
        value = record
        for step in parse_path(field) if field is not None else (column,):
            value = None if value is None else value.get(step)
        found[column] = value
    return repr(_floats(found))


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return sorted((name, _floats(inner)) for name, inner in value.items())
    if isinstance(value, list):
        return [_floats(inner) for inner in value]
    return value + 0.0 if type(value) in {int, float} else value


def test_every_record_of_five_topics(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    found = all_taken(TOPICS, kafka, database, make_topic, make_daemon, tmp_path)
    assert found["webhooks"] == {
        "id": "text not null", "type": "text not null", "created": "timestamp with time zone not null",
        "livemode": "boolean not null", "api_version": "text not null",
        "pending_webhooks": "integer not null", "request": "jsonb",
        "data": "jsonb not null",
    }  # fmt: skip
    assert found["orders"] == {
        "order_id": "uuid not null", "order_": "bigint not null", "order_date": "date not null",
        "placed_at": "timestamp with time zone not null", "total": "numeric not null", "currency": "text not null",
        "customer_id": "bigint", "customer_address_city": "text", "customer_address_zip": "jsonb",
        "items": "jsonb not null", "a_quoted_name": "text not null", "coupon": "text",
    }  # fmt: skip
    assert found["metrics"] == {
        "ts": "timestamp with time zone not null", "name": "text not null", "value": "double precision not null",
        "total_bytes": "numeric not null", "labels_host": "text", "labels_le": "text", "up": "integer not null",
    }  # fmt: skip
    assert found["logs"] == {
        "timestamp": "timestamp with time zone not null", "level": "text not null", "message": "text not null",
        "pid": "bigint not null", "code": "jsonb", "stack": "jsonb", "ctid_": "text", "x" * 63: "integer",
    }  # fmt: skip
    assert found["clicks"] == {
        "event_id": "uuid not null", "session_id": "uuid not null", "user_id": "bigint",
        "at": "timestamp without time zone not null", "url": "text not null", "referrer": "jsonb",
        "viewport": "jsonb not null", "scroll": "numeric not null", "props": "jsonb not null",
    }  # fmt: skip


def test_every_record_of_five_nested_topics(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    found = all_taken(NESTED, kafka, database, make_topic, make_daemon, tmp_path)
    assert found["telemetry"] == {
        "device_id": "text not null", "ts": "timestamp with time zone not null",
        "boot_time": "timestamp with time zone", "uptime": "bigint not null", "fix_time": "bigint not null",
        "gps_lat": "double precision", "gps_lon": "numeric", "gps_alt": "numeric",
        "reading_temperature": "numeric", "reading_unit": "text", "reading_flags": "jsonb",
        "battery_level": "integer not null",
    }  # fmt: skip


def test_the_newest_of_all_partitions(kafka: Kafka | GivenKafka, make_topic: MakeTopic, tmp_path: Path) -> None:
    topic = make_topic(3)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for n in range(300):
        producer.produce(topic, b'{"old":1}' if n < 200 else b'{"n":%d}' % n, partition=0 if n < 290 else 1)
    assert producer.flush(30) == 0
    done = infer(tmp_path, kafka.bootstrap_servers, topic, "--records", "60")
    assert "from the 60 newest records" in done.stdout
    assert "n bigint NOT NULL" in done.stdout
    assert "old" not in done.stdout
    assert not [group for group in group_ids(kafka.bootstrap_servers) if "infer" in group]


@pytest.mark.parametrize(("values", "what"), [([], "is empty"), ([b"[1]", b"x"], "none of its 2 newest records")])
def test_no_table_can_be_made(
    kafka: Kafka | GivenKafka, make_topic: MakeTopic, tmp_path: Path, values: list[bytes], what: str
) -> None:
    topic = make_topic(1)
    send(kafka.bootstrap_servers, topic, values)
    done = infer(tmp_path, kafka.bootstrap_servers, topic)
    assert (done.returncode, done.stdout) == (78, "")
    assert what in done.stderr


@pytest.mark.parametrize("name", ["a.b.c", "a b", "", "public.", '"a', "t; DROP TABLE t"])
def test_no_name_of_a_table(kafka: Kafka | GivenKafka, topic_name: str, tmp_path: Path, name: str) -> None:
    done = infer(tmp_path, kafka.bootstrap_servers, topic_name, f"--table={name}")
    assert (done.returncode, done.stdout) == (78, "")
    assert "is not a table's name" in done.stderr


def test_no_such_topic(kafka: Kafka | GivenKafka, topic_name: str, tmp_path: Path) -> None:
    done = infer(tmp_path, kafka.bootstrap_servers, topic_name)
    assert done.returncode == 78
    assert "does not exist" in done.stderr


def test_what_is_printed_for_the_file_is_utf8_in_any_locale(
    tmp_path: Path, kafka: Kafka | GivenKafka, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = make_topic(1)
    send(kafka.bootstrap_servers, topic, ['{"größe":1,"€":2}'.encode()])
    monkeypatch.setenv("PYTHONIOENCODING", "latin-1")
    file = tmp_path / "kbatchd.toml"
    file.write_text(f'[kafka]\nbootstrap_servers = "{kafka.bootstrap_servers}"\n')
    for more in ([], ["--route"]):
        command = [sys.executable, "-m", "kbatchd", "infer", "--config", str(file), topic, *more]
        done = subprocess.run(command, capture_output=True, check=False, timeout=180)
        assert done.returncode == 0, done.stderr
        assert "€" in done.stdout.decode("utf-8")
