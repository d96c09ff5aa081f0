"""Whatever a database or a role has set for all sessions, the daemon and its commands do the same."""

from __future__ import annotations

import json

import psycopg
import pytest
from confluent_kafka import Producer
from psycopg import sql

from kbatchd.devstack.kafka import GivenKafka, Kafka
from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_kafka import MakeTopic

#: Each as an administrator might set it for people; see the PostgreSQL manual, "Client Connection Defaults".
SETTINGS = {
    "datestyle": "SQL, DMY",
    "timezone": "Asia/Kathmandu",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "xmloption": "document",
    "search_path": "nowhere",
    "idle_session_timeout": "100ms",
    "idle_in_transaction_session_timeout": "10ms",
    "statement_timeout": "20ms",
    "lock_timeout": "1ms",
    "default_transaction_isolation": "serializable",
    "synchronous_commit": "on",
}

#: Of each type that PostgreSQL writes or reads by a setting. The text format is chosen by the range.
TABLE = """
CREATE TABLE public.odd (
    id bigint PRIMARY KEY, at timestamptz, day date, lasts interval, raw bytea, factor float8, names text[],
    spans tsrange
)
"""

GOOD = {
    "id": 1,
    "at": "2026-02-01T03:04:05.678901+01:00",
    "day": "2026-02-01",
    "lasts": "-1 days +02:03:00",
    "raw": "AAH/",
    "factor": 0.1,
    "names": ["a", None, "NULL", "b\\c"],
    "spans": "[2026-02-01 00:00,2026-03-04 00:00)",
}

WANTED = (
    1,
    "2026-02-01T02:04:05.678901Z",
    "2026-02-01",
    "-1 days +02:03:00",
    b"\x00\x01\xff",
    0.1,
    ["a", None, "NULL", "b\\c"],
    '["2026-02-01 00:00:00","2026-03-04 00:00:00")',
)


@pytest.mark.parametrize(
    ("name", "mode"), [*((name, "append") for name in SETTINGS), ("array_nulls", "upsert"), ("datestyle", "upsert")]
)
def test_a_setting_of_the_database_changes_nothing(
    name: str, mode: str, database: str, kafka: Kafka | GivenKafka, make_topic: MakeTopic, make_daemon: MakeDaemon
) -> None:
    # Given: a database in which each session begins with that setting; and a session that knows better.
    topic = make_topic()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE)
        is_list = name in {"datestyle", "search_path"}
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET {} = {}").format(
                sql.Identifier(connection.info.dbname),
                sql.Identifier(name),
                sql.SQL(SETTINGS[name]) if is_list else sql.Literal(SETTINGS[name]),
            )
        )
        route: dict[str, object] = {"topic": topic, "table": "public.odd"}
        daemon = make_daemon({**route, "mode": mode, "key": ["id"]} if mode == "upsert" else route).start()
        daemon.wait_ready()

        # When: a good record comes, and one that PostgreSQL refuses.
        producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
        producer.produce(topic, json.dumps(GOOD))
        producer.produce(topic, json.dumps({**GOOD, "id": 2, "spans": "[2,1)"}))
        assert producer.flush(30) == 0

        # Then: the one is a row with the values it has anywhere, the other a dead letter.
        wait_until(
            lambda: connection.execute("SELECT FROM kbatchd.progress WHERE next_offset = 2").rowcount == 1,
            20,
            "both records to be taken",
        )
        row = connection.execute(
            'SELECT id, to_char(at, \'YYYY-MM-DD"T"HH24:MI:SS.US"Z"\'), day::text, lasts::text, raw, factor, names, '
            "spans::text FROM public.odd"
        ).fetchone()
        assert row == WANTED
        assert connection.execute("SELECT count(*) FROM kbatchd.dead_letters").fetchone() == (1,)

    # And: the commands say what they say anywhere.
    everything = (["status"], ["progress", "show"], ["check"], ["dead-letters", "list"])
    for command in everything if name in {"datestyle", "timezone"} else everything[:1]:
        done = daemon.command(*command)
        assert "Traceback" not in done.stderr, done.stderr
        assert topic in done.stdout + done.stderr, command
    assert daemon.stop() == 0
    assert not daemon.logged("action=flusher_died")
    assert not daemon.logged("action=postgres_lost")
