"""The daemon, all of it, with the role that sql/roles.sql makes and no other right."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import Producer
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_http import Client, free_port, wait_listening
from tests.fix_postgres import roles_sql

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic

#: PostgreSQL itself refuses id 13: that takes savepoints, and another COPY.
TABLES = """
CREATE SCHEMA shop;
CREATE TABLE shop.requests (id bigint NOT NULL CHECK (id <> 13), path text NOT NULL);
CREATE TABLE shop.latest (id bigint PRIMARY KEY, path text NOT NULL);
CREATE TABLE shop.secret (id bigint);
"""

#: A line of the ledger older than ledger_keep_days.
OLD = """
INSERT INTO kbatchd.batches
    (pipeline, route, worker, reason, rows, dead_letters, bytes, spans, fill_seconds, committed_at)
VALUES ('kbatchd', 'old', 'w', 'full', 1, 0, 1, '{}', 0, now() - interval '31 days')
"""

RIGHTS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")


def tables_of_role(role: str, ports: Mapping[str, int], directory: Path) -> dict[str, Mapping[str, object]]:
    """Return the tables of a file for the role with this DSN; its password is in another file."""
    password = directory / "password"
    password.write_text("of-a-role\n")
    password.chmod(0o600)
    listening = {name: {"listen": f"127.0.0.1:{port}"} for name, port in ports.items()}
    return {"postgres": {"dsn": role, "password_file": str(password)}, **listening}


@pytest.fixture
def role(database: str) -> Iterator[str]:
    """Make the role, in a database that gives nothing to everybody; return its DSN."""
    name = f"r_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database, autocommit=True) as connection:
        public = "REVOKE ALL ON DATABASE {} FROM PUBLIC; REVOKE ALL ON SCHEMA public FROM PUBLIC"
        connection.execute(sql.SQL(public).format(sql.Identifier(connection.info.dbname)))
        connection.execute(TABLES)
        for _ in range(2):  # it may be run again
            connection.execute(roles_sql(name, "shop.requests", "shop.latest").encode())
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD 'of-a-role'").format(sql.Identifier(name)))
        yield make_conninfo(database, user=name, password=None)
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(name)))


def test_the_daemon_runs_with_just_that_role(
    kafka: Kafka | GivenKafka, database: str, role: str, make_topic: MakeTopic, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    topic = make_topic(2)
    with psycopg.connect(database) as connection:
        connection.execute(OLD)
    ports = {"gateway": free_port(), "monitor": free_port()}
    daemon = make_daemon(
        {"topic": topic, "table": "shop.requests", "name": "requests"},
        {"topic": topic, "table": "shop.latest", "name": "latest", "mode": "upsert", "key": ["id"]},
        **tables_of_role(role, ports, tmp_path),  # type: ignore[arg-type]
    ).start()
    daemon.wait_ready()
    with psycopg.connect(database, autocommit=True) as connection:
        wait_until(
            lambda: connection.execute("SELECT count(*) FROM kbatchd.batches WHERE route = 'old'").fetchone() == (0,),
            20.0,
            "the old line of the ledger pruned",
        )
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(20):
        producer.produce(topic, json.dumps({"id": number, "path": "/"}), partition=number % 2)
    producer.produce(topic, b'{"id": "none", "path": "/"}', partition=0)
    producer.produce(topic, b'{"id": 1, "path": "/again"}', partition=1)
    assert producer.flush(30) == 0

    with psycopg.connect(database, autocommit=True) as connection:

        def counts() -> tuple[object, ...] | None:
            return connection.execute(
                "SELECT (SELECT count(*) FROM shop.requests), (SELECT count(*) FROM shop.latest), "
                "(SELECT count(*) FROM kbatchd.dead_letters)"
            ).fetchone()

        # Of 22: one is no number, for both routes, and one PostgreSQL refuses, for one of them; two have the same key.
        wait_until(lambda: counts() == (20, 20, 3), 20.0, "all rows and dead letters")
    wait_listening(ports["gateway"])
    with Client(ports["gateway"]) as client:
        reply = client.post("/v1/requests?ack=db", b'{"id":99,"path":"/"}', content_type="application/json")
        assert reply.status == 200, reply.body
        assert (
            client.post("/v1/requests?ack=db", b'{"id":13,"path":"/"}', content_type="application/json").status == 422
        )
    with Client(ports["monitor"]) as client:
        wait_until(lambda: client.request("GET", "/health/ready").status == 200, 20.0, "readiness", 0.1)
    for command in (
        ("progress", "show"),
        ("dead-letters", "list"),
        ("dead-letters", "discard", "--yes", "--code", "23514"),
        ("route", "pause", "requests"),
        ("route", "resume", "requests"),
    ):
        done = daemon.command(*command)
        assert done.returncode == 0, done.stderr
    assert daemon.stop() == 0
    assert not daemon.logged("permission denied")


def test_the_role_has_no_other_right(database: str, role: str) -> None:
    with psycopg.connect(database) as connection:
        name = psycopg.conninfo.conninfo_to_dict(role)["user"]
        given = connection.execute(
            """
            SELECT format('%%s.%%s', n.nspname, c.relname), array_agg(right_ ORDER BY right_)
              FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace CROSS JOIN unnest(%s::text[]) AS right_
             WHERE c.relkind IN ('r', 'p') AND n.nspname IN ('kbatchd', 'shop', 'public')
               AND has_table_privilege(%s, c.oid, right_)
             GROUP BY 1
            """,
            (list(RIGHTS), name),
        )
        assert dict(given.fetchall()) == {
            "kbatchd.batches": ["DELETE", "INSERT", "SELECT"],
            "kbatchd.dead_letters": ["DELETE", "INSERT", "SELECT", "UPDATE"],
            "kbatchd.gaps": ["INSERT", "SELECT"],
            "kbatchd.migrations": ["SELECT"],
            "kbatchd.pauses": ["DELETE", "INSERT", "SELECT"],
            "kbatchd.progress": ["INSERT", "SELECT", "UPDATE"],
            "shop.latest": ["DELETE", "INSERT", "SELECT", "UPDATE"],
            "shop.requests": ["INSERT"],
        }
        row = connection.execute(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls, "
            "has_database_privilege(rolname, current_database(), 'CREATE') FROM pg_roles WHERE rolname = %s",
            (name,),
        ).fetchone()
        assert row == (False, False)
