"""Migrations on a real database."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import psycopg
import pytest

from kbatchd.errors import ConfigError, ServerUnavailable
from kbatchd.schema import migrations

if TYPE_CHECKING:
    from collections.abc import Iterator

SHAPE = """
SELECT c.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid
WHERE c.relnamespace = 'kbatchd'::regnamespace AND a.attnum > 0 ORDER BY 1, a.attnum
"""

MIGRATE_PROGRAM = """
import sys, psycopg
from kbatchd.schema.migrations import migrate
with psycopg.connect(sys.argv[1], autocommit=True) as connection:
    connection.execute("SET lock_timeout = '1ms'")
    print("ready", flush=True)
    sys.stdin.readline()
    print(len(migrate(connection)))
"""


@pytest.fixture
def connection(empty_database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(empty_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def role(connection: psycopg.Connection) -> Iterator[str]:
    """An ordinary role, which this connection can become."""
    name = f"{connection.info.dbname}_role"
    connection.execute(f"CREATE ROLE {name}".encode())
    yield name
    connection.execute("RESET ROLE")
    connection.execute(f"DROP OWNED BY {name}".encode())
    connection.execute(f"DROP ROLE {name}".encode())


def test_migrate_and_again(connection: psycopg.Connection) -> None:
    waiting = migrations.pending(connection)
    assert waiting[0] == "0001_kbatchd"

    assert migrations.migrate(connection) == waiting
    assert migrations.pending(connection) == []
    assert migrations.migrate(connection) == []
    migrations.check_version(connection)

    stored = connection.execute("SELECT name FROM kbatchd.migrations ORDER BY number").fetchall()
    assert stored == [(name,) for name in waiting]


def test_missing_schema(connection: psycopg.Connection) -> None:
    with pytest.raises(ConfigError, match=r"lacks 0001_kbatchd.*: run `kbatchd migrate --config FILE` first"):
        migrations.check_version(connection)
    assert connection.execute("SELECT to_regnamespace('kbatchd')").fetchone() == (None,)


def test_newer_schema(connection: psycopg.Connection) -> None:
    migrations.migrate(connection)
    connection.execute("INSERT INTO kbatchd.migrations (number, name) VALUES (9000, '9000_future')")
    for act in (migrations.check_version, migrations.migrate, migrations.pending):
        with pytest.raises(ConfigError, match="version 9000, newer than this program's"):
            act(connection)


def test_older_schema(connection: psycopg.Connection) -> None:
    migrations.migrate(connection)
    connection.execute("DELETE FROM kbatchd.migrations")
    with pytest.raises(ConfigError, match="lacks 0001_kbatchd"):
        migrations.check_version(connection)


def test_failure_leaves_nothing_behind(connection: psycopg.Connection) -> None:
    connection.execute("CREATE SCHEMA kbatchd")
    connection.execute("CREATE TABLE kbatchd.gaps (mine int)")
    with pytest.raises(ConfigError, match='relation "gaps" already exists'):
        migrations.migrate(connection)
    tables = connection.execute("SELECT relname FROM pg_class WHERE relnamespace = 'kbatchd'::regnamespace").fetchall()
    assert tables == [("gaps",)]


def test_two_at_the_same_time(empty_database: str) -> None:
    command = [sys.executable, "-c", MIGRATE_PROGRAM, empty_database]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as two,
        psycopg.connect(empty_database) as gate,
    ):
        # Both stand at the lock before either may pass it.
        gate.execute("SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(b"kbatchd"),))
        for process in (one, two):
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.stdin.write("\n")
            process.stdin.flush()
        with psycopg.connect(empty_database, autocommit=True) as watcher:
            _wait_until_two_are_waiting(watcher)
        gate.rollback()
        outcomes = sorted(int(process.communicate(timeout=120)[0]) for process in (one, two))
    assert [one.returncode, two.returncode] == [0, 0]
    assert outcomes[0] == 0
    assert outcomes[1] >= 1


def _wait_until_two_are_waiting(watcher: psycopg.Connection) -> None:
    watcher.execute("SET statement_timeout = '30s'")
    watcher.execute(
        """
        DO $$ BEGIN
            WHILE (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) < 2 LOOP
                PERFORM pg_sleep(0.01);
            END LOOP;
        END $$
        """
    )


def test_script_makes_the_same_schema(connection: psycopg.Connection, database: str) -> None:
    connection.execute(migrations.script().encode())
    migrations.check_version(connection)
    with psycopg.connect(database) as migrated:
        assert connection.execute(SHAPE).fetchall() == migrated.execute(SHAPE).fetchall()


def test_without_the_right_to_create_a_schema(connection: psycopg.Connection, role: str) -> None:
    connection.execute(f"SET ROLE {role}".encode())
    with pytest.raises(ConfigError, match=r"permission denied for database .* `kbatchd migrate` needs CREATE on the"):
        migrations.migrate(connection)


def test_schema_made_by_an_administrator(connection: psycopg.Connection, role: str) -> None:
    connection.execute(f"CREATE SCHEMA kbatchd AUTHORIZATION {role}".encode())
    connection.execute(f"SET ROLE {role}".encode())
    assert migrations.migrate(connection)
    migrations.check_version(connection)


def test_without_rights_on_the_schema(connection: psycopg.Connection, role: str) -> None:
    migrations.migrate(connection)
    connection.execute(f"SET ROLE {role}".encode())
    with pytest.raises(ConfigError, match=r"permission denied .* the daemon needs what sql/roles.sql gives"):
        migrations.check_version(connection)


def test_lost_connection(connection: psycopg.Connection, empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (connection.info.backend_pid,))
    with pytest.raises(ServerUnavailable, match="the schema kbatchd could not be read"):
        migrations.check_version(connection)
