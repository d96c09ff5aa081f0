"""Whatever others have created in the path of the daemon's role: neither the daemon nor its commands run any of it."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import Producer
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from kbatchd.schema.migrations import migrate
from tests.acceptance.test_roles import OLD, tables_of_role
from tests.fix_daemon import Daemon, MakeDaemon, wait_until
from tests.fix_http import Client, free_port, wait_listening
from tests.fix_postgres import roles_sql

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic

#: A schema with a name like each of PostgreSQL's own: functions, aggregates and operators of the same signatures, types
#: and relations. It is first in the path: whatever of ours is not qualified finds these. `trigger_in` refuses any call.
PLANT = """
CREATE SCHEMA planted;
GRANT USAGE ON SCHEMA planted TO PUBLIC;
SET search_path = pg_catalog;
DO $$
DECLARE each record;
BEGIN
    FOR each IN
        SELECT p.proname, coalesce(string_agg(
                CASE WHEN place = p.pronargs AND p.provariadic <> 0 THEN 'VARIADIC ' ELSE '' END
                || format_type(type, NULL), ', ' ORDER BY place), '') AS arguments
          FROM pg_proc p LEFT JOIN LATERAL unnest(p.proargtypes::oid[]) WITH ORDINALITY AS a(type, place) ON true
         WHERE p.pronamespace = 'pg_catalog'::regnamespace
         GROUP BY p.oid, p.proname
        HAVING NOT coalesce(bool_or(a.type::regtype IN ('internal', 'cstring')), false)
    LOOP
        EXECUTE format('CREATE FUNCTION planted.%I(%s) RETURNS bool LANGUAGE internal AS ''trigger_in''',
                       each.proname, each.arguments);
    END LOOP;
    FOR each IN
        SELECT oid, oprname, format_type(nullif(oprleft, 0), NULL) AS l, format_type(oprright, NULL) AS r
          FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace
    LOOP
        EXECUTE format('CREATE FUNCTION planted.operator_%s(%s) RETURNS bool LANGUAGE internal AS ''trigger_in''',
                       each.oid, concat_ws(', ', each.l, each.r));
        EXECUTE format('CREATE OPERATOR planted.%s (FUNCTION = planted.operator_%s%s, RIGHTARG = %s)',
                       each.oprname, each.oid, ', LEFTARG = ' || each.l, each.r);
    END LOOP;
    FOR each IN
        SELECT typname, format_type(oid, NULL) AS base FROM pg_type
         WHERE typnamespace = 'pg_catalog'::regnamespace AND typtype IN ('b', 'r', 'm') AND typcategory <> 'A'
    LOOP
        EXECUTE format('CREATE DOMAIN planted.%I AS %s CHECK (false)', each.typname, each.base);
    END LOOP;
    FOR each IN
        SELECT relname FROM pg_class
         WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')
           AND relname NOT IN (SELECT typname FROM pg_type WHERE typnamespace = 'planted'::regnamespace)
    LOOP
        EXECUTE format('CREATE TABLE planted.%I ()', each.relname);
    END LOOP;
END $$;
RESET search_path;
"""

#: As anybody may write to PUBLIC's schema before PostgreSQL 15: a better match than PostgreSQL's own, without any path.
BETTER = """
CREATE FUNCTION public.concat_ws(text, smallint, oid, integer, boolean, "char", "char", name) RETURNS text
    LANGUAGE internal AS 'trigger_in';
CREATE FUNCTION public.at_least(oid, integer) RETURNS bool LANGUAGE internal AS 'trigger_in';
CREATE OPERATOR public.>= (FUNCTION = public.at_least, LEFTARG = oid, RIGHTARG = integer);
"""

#: PostgreSQL itself refuses id 13. The trigger notes the path that it sees.
TABLES = """
CREATE SCHEMA shop;
CREATE TYPE shop.colour AS ENUM ('red', 'blue');
CREATE TABLE shop.requests (id bigint NOT NULL CHECK (id <> 13), name text NOT NULL, path text);
CREATE TABLE shop.latest (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE shop.colours (id bigint, colour shop.colour, name text NOT NULL, PRIMARY KEY (id, colour));
CREATE TABLE shop.first (id bigint PRIMARY KEY, name text NOT NULL);
CREATE FUNCTION shop.note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    NEW.path := pg_catalog.current_setting('search_path');
    RETURN NEW;
END $$;
CREATE TRIGGER note BEFORE INSERT ON shop.requests FOR EACH ROW EXECUTE FUNCTION shop.note();
"""

PATH = "planted, pg_catalog, public"


@pytest.fixture
def role(database: str) -> Iterator[str]:
    """Make the daemon's role, with sql/roles.sql under such a path; return its DSN."""
    name = f"r_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLES)
        connection.execute(PLANT)
        connection.execute(BETTER)
        connection.execute(f"SET search_path = {PATH}")
        for table in ("shop.latest", "shop.colours", "shop.first"):
            connection.execute(roles_sql(name, "shop.requests", table).encode())
        connection.execute("RESET search_path")
        user, dbname = sql.Identifier(name), sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("ALTER ROLE {} PASSWORD 'of-a-role'").format(user))
        connection.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(user))
        path = sql.SQL("ALTER ROLE {} IN DATABASE {} SET search_path = {}")
        connection.execute(path.format(user, dbname, sql.SQL(PATH)))
        yield make_conninfo(database, user=name, password=None)
        connection.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(user))


def role_of(dsn: str) -> sql.Identifier:
    return sql.Identifier(str(conninfo_to_dict(dsn)["user"]))


def ok(daemon: Daemon, *arguments: str) -> str:
    done = daemon.command(*arguments)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    assert "of type trigger" not in done.stdout + done.stderr, (arguments, done.stdout, done.stderr)
    return done.stdout


def test_what_others_have_planted_does_not_run(  # noqa: PLR0915 - one life of a pipeline
    kafka: Kafka | GivenKafka, database: str, role: str, make_topic: MakeTopic, make_daemon: MakeDaemon, tmp_path: Path
) -> None:
    topic = make_topic(2)
    with psycopg.connect(database) as connection:
        connection.execute(OLD)
    ports = {"gateway": free_port(), "monitor": free_port()}
    deletes = {"field": "op", "equals": "d"}

    def routes(append: str) -> list[dict[str, object]]:
        upsert = {"topic": topic, "mode": "upsert", "unknown_fields": "ignore"}
        return [
            {"topic": topic, "table": "shop.requests", "name": append, "unknown_fields": "ignore"},
            {**upsert, "table": "shop.latest", "name": "latest", "key": ["id"], "delete_when": deletes},
            {**upsert, "table": "shop.colours", "name": "colours", "key": ["id", "colour"], "delete_when": deletes},
            {**upsert, "table": "shop.first", "name": "first", "key": ["id"], "insert_only": True},
        ]

    def make(append: str) -> Daemon:
        return make_daemon(*routes(append), **tables_of_role(role, ports, tmp_path))  # type: ignore[arg-type]

    daemon = make("requests")
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers})

    def send(number: object, **values: object) -> None:
        record = {"id": number, "colour": "red", "name": "n", **values}
        producer.produce(topic, json.dumps(record), key=str(number), partition=sum(str(number).encode()) % 2)

    for number in (*range(20), "none", 1, 2):
        send(number)
    send(3, op="d")
    assert producer.flush(30) == 0
    ok(daemon, "check")
    daemon.start().wait_ready()
    with psycopg.connect(database, autocommit=True) as connection:

        def counted(statement: str, wanted: object) -> None:
            query = f"SELECT {statement}".encode()
            wait_until(lambda: connection.execute(query).fetchone() == (wanted,), 30.0, f"{statement}: {wanted}")

        counted("count(*) FROM kbatchd.batches WHERE route = 'old'", 0)
        counted("count(*) FROM shop.requests", 22)
        counted("count(DISTINCT path) FROM shop.requests WHERE path = 'planted, pg_catalog, public'", 1)
        counted("count(*) FROM shop.latest", 19)
        counted("count(*) FROM shop.colours", 19)
        counted("count(*) FROM shop.first", 20)
        counted("count(*) FROM kbatchd.dead_letters", 5)
        # Some hundred at once: the plans of a merge.
        for number in range(100, 600):
            send(number)
        assert producer.flush(30) == 0
        counted("count(*) FROM shop.latest", 519)
        wait_listening(ports["gateway"])
        with Client(ports["gateway"]) as client:
            for number, status in ((99, 200), (13, 422)):
                body = json.dumps({"id": number, "name": "n"}).encode()
                reply = client.post("/v1/requests?ack=db", body, content_type="application/json")
                assert reply.status == status, reply.body
        with Client(ports["monitor"]) as client:
            wait_until(lambda: client.request("GET", "/health/ready").status == 200, 20.0, "readiness", 0.1)
            assert client.request("GET", "/metrics").status == 200
        ok(daemon, "status")
        ok(daemon, "progress", "show")
        ok(daemon, "progress", "set", "first", "0", "0")
        ok(daemon, "dead-letters", "list")
        ok(daemon, "dead-letters", "show")
        connection.execute("ALTER TABLE shop.requests DROP CONSTRAINT requests_id_check")
        ok(daemon, "dead-letters", "replay", "--code", "23514")
        counted("count(*) FROM kbatchd.dead_letters WHERE state = 'replayed'", 2)
        daemon.command("dead-letters", "replay", "--route", "latest")  # it stays
        ok(daemon, "dead-letters", "discard", "--yes", "--route", "latest")
        assert daemon.stop() == 0
        renamed = make("api")
        more = sql.SQL("GRANT UPDATE ON kbatchd.gaps, kbatchd.batches, kbatchd.pauses TO {}")
        connection.execute(more.format(role_of(role)))
        ok(renamed, "progress", "rename", "api", "--from-route", "requests")
        connection.execute("UPDATE kbatchd.progress SET halted = 'breaker' WHERE route = 'api'")
        ok(renamed, "progress", "accept", "api")
        renamed.start().wait_ready()
        send(1000)
        assert producer.flush(30) == 0
        counted("count(*) FROM shop.requests WHERE id = 1000", 1)
        assert renamed.stop() == 0
    for each in (daemon, renamed):
        for word in ("of type trigger", "permission denied", "value for domain"):
            assert not each.logged(word)


def test_what_others_have_planted_does_not_run_in_a_migration(empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute(PLANT)
        connection.execute(BETTER)
        connection.execute(f"SET search_path = {PATH}")
        assert migrate(connection)[0] == "0001_kbatchd"
        assert migrate(connection) == []
        assert connection.execute("SHOW search_path").fetchone() == (PATH,)
