"""The schema `kbatchd`: numbered SQL files, applied once each, in order.

`kbatchd migrate` applies them with a role that may create a schema; the daemon only checks the version at its start,
in the preflight child, and never alters anything. Everything is one transaction under an advisory lock: two migrations
at the same time both succeed, and one that fails leaves nothing behind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from kbatchd.errors import ConfigError, ServerUnavailable
from kbatchd.shipped import shipped

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Any number will do, if nobody else in the database uses it: the bytes of "kbatchd".
_LOCK_KEY = int.from_bytes(b"kbatchd")

#: How long to wait for another migration, in spite of the session's much shorter lock_timeout.
_LOCK_TIMEOUT_MS = 60_000

_FILE_NAME = re.compile(r"(\d{4})_\w+\.sql")

#: Whatever others have created in the role's path: the statements of a migration mean PostgreSQL's own functions.
_OWN_PATH = "SET LOCAL search_path = pg_catalog"
_CREATE_SCHEMA = "CREATE SCHEMA kbatchd"
_CREATE_TABLE = """\
CREATE TABLE kbatchd.migrations (
    number      integer                PRIMARY KEY,
    name        pg_catalog.text        NOT NULL,
    applied_at  pg_catalog.timestamptz NOT NULL DEFAULT pg_catalog.now()
)"""
_RUN_MIGRATE = "run `kbatchd migrate --config FILE` first"


@dataclass(frozen=True, slots=True)
class _Migration:
    number: int
    name: str
    sql: str


def migrate(connection: psycopg.Connection) -> list[str]:
    """Bring the schema up to this program's version; return the names of what was applied.

    The connection must be idle: the migration is a transaction of its own.
    """
    try:
        with connection.transaction():
            connection.execute(_OWN_PATH)
            connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")
            connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", (_LOCK_KEY,))
            _create_missing(connection)
            waiting = _pending(connection)
            for migration in waiting:
                connection.execute(migration.sql.encode())
                connection.execute(
                    "INSERT INTO kbatchd.migrations (number, name) VALUES (%s, %s)", (migration.number, migration.name)
                )
    except psycopg.Error as error:
        raise _our_error(connection, error) from error
    return [migration.name for migration in waiting]


def pending(connection: psycopg.Connection) -> list[str]:
    """Return the names of the migrations that `migrate` would apply."""
    try:
        return [migration.name for migration in _pending(connection)]
    except psycopg.Error as error:
        raise _our_error(connection, error) from error


def check_version(connection: psycopg.Connection) -> None:
    """Raise ConfigError unless the schema is exactly the one this program was written for."""
    missing = pending(connection)
    if missing:
        raise ConfigError(f"the schema kbatchd lacks {', '.join(missing)}: {_RUN_MIGRATE}")


def script() -> str:
    """Return the SQL that `migrate` runs on a database without the schema, for a human to read or to run with psql."""
    path = f"-- Nothing that others have created in your path is to run here.\n{_OWN_PATH}"
    parts = ["BEGIN", path, _CREATE_SCHEMA, _CREATE_TABLE]
    for migration in _migrations():
        # The values are the names of shipped files.
        insert = f"INSERT INTO kbatchd.migrations (number, name) VALUES ({migration.number}, '{migration.name}')"  # noqa: S608
        parts += [migration.sql.strip().removesuffix(";"), insert]
    return "".join(f"{part};\n\n" for part in parts) + "COMMIT;\n"


def _migrations() -> list[_Migration]:
    found = []
    for path in sorted(shipped("sql").iterdir()):
        match = _FILE_NAME.fullmatch(path.name)
        if match:
            found.append(_Migration(int(match[1]), path.stem, path.read_text(encoding="utf-8")))
    return found


def _create_missing(connection: psycopg.Connection) -> None:
    # Not IF NOT EXISTS: that asks for the right to create a schema even where an administrator has made it for us.
    if not _exists(connection, "pg_catalog.to_regnamespace('kbatchd')"):
        connection.execute(_CREATE_SCHEMA)
    if not _exists(connection, "pg_catalog.to_regclass('kbatchd.migrations')"):
        connection.execute(_CREATE_TABLE)


def _exists(connection: psycopg.Connection, expression: str) -> bool:
    row = connection.execute(f"SELECT {expression} IS NOT NULL".encode()).fetchone()
    return bool(row and row[0])


def _pending(connection: psycopg.Connection) -> Sequence[_Migration]:
    known = _migrations()
    applied = set()
    if _exists(connection, "pg_catalog.to_regclass('kbatchd.migrations')"):
        applied = {number for (number,) in connection.execute("SELECT number FROM kbatchd.migrations")}
    newer = max(applied, default=0)
    if newer > known[-1].number:
        raise ConfigError(
            f"the schema kbatchd is at version {newer}, newer than this program's {known[-1].number}: "
            "run the program that made it, or a newer one"
        )
    return [migration for migration in known if migration.number not in applied]


def _our_error(connection: psycopg.Connection, error: psycopg.Error) -> ConfigError | ServerUnavailable:
    if connection.broken or isinstance(error, psycopg.errors.LockNotAvailable):
        return ServerUnavailable(f"the schema kbatchd could not be read or changed: {_first_line(error)}")
    role, database = connection.info.user, connection.info.dbname
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return ConfigError(
            f"the schema kbatchd: {_first_line(error)} in database {database}; `kbatchd migrate` needs CREATE on the "
            f"database, the daemon needs what sql/roles.sql gives, for role {role}"
        )
    return ConfigError(f"the schema kbatchd in database {database}: {_first_line(error)}")


def _first_line(error: psycopg.Error) -> str:
    return error.diag.message_primary or " ".join(str(error).split())
