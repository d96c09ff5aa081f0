"""A real PostgreSQL for all tests, a migrated database for each, and a server of one's own for tests that stop it."""

from __future__ import annotations

import subprocess
import tempfile
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from kbatchd.devstack.postgres import GivenPostgres, Postgres, postgres_server
from kbatchd.errors import ServerUnavailable
from kbatchd.schema.migrations import migrate
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES = Path(__file__).parents[1] / "sql/roles.sql"


def roles_sql(role: str, append: str, upsert: str = "", *, path: Path = ROLES) -> str:
    """Fill in the lines marked "yours", as a user would: the role's name, and a table of each kind."""
    text = path.read_text()
    for old, new in (
        ("'kbatchd';  ", f"'{role}';  "),
        ("ARRAY['public.requests']", f"ARRAY['{append}']"),
        ("ARRAY[]::text[]", f"ARRAY['{upsert}']" if upsert else "ARRAY[]::text[]"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres | GivenPostgres]:
    """The server all tests share: nobody stops it."""
    try:
        with postgres_server() as server:
            if isinstance(server, Postgres):
                # It is never to survive a crash of this machine, and each database that is dropped waits for the disk.
                with psycopg.connect(server.dsn, autocommit=True) as connection:
                    connection.execute("ALTER SYSTEM SET fsync = off")
                    connection.execute("SELECT pg_reload_conf()")
            yield server
    except ServerUnavailable as error:
        pytest.exit(f"no test can run without PostgreSQL: {error}", returncode=1)


@pytest.fixture(scope="session")
def database_template(postgres: Postgres | GivenPostgres) -> Iterator[str]:
    """The name of a migrated database that all others are copied from: nobody connects to it."""
    with _new_database(postgres.dsn) as dsn:
        with psycopg.connect(dsn) as connection:
            migrate(connection)
            name = connection.info.dbname
        yield name


@pytest.fixture
def database(postgres: Postgres | GivenPostgres, database_template: str) -> Iterator[str]:
    """The DSN of a migrated database for this test alone."""
    with _new_database(postgres.dsn, database_template) as dsn:
        yield dsn


@pytest.fixture
def empty_database(postgres: Postgres | GivenPostgres) -> Iterator[str]:
    """The DSN of a database for this test alone, without the schema kbatchd."""
    with _new_database(postgres.dsn) as dsn:
        yield dsn


@pytest.fixture(scope="module")
def own_postgres_of_module() -> Iterator[Postgres]:
    """The server behind `own_postgres`."""
    with Postgres() as server:
        yield server


@pytest.fixture
def own_postgres(own_postgres_of_module: Postgres) -> Postgres:
    """A server that only this module's tests use: they may stop and kill it. It runs at the beginning of each."""
    own_postgres_of_module.start()
    return own_postgres_of_module


@pytest.fixture
def own_database(own_postgres: Postgres) -> Iterator[str]:
    """The DSN of a migrated database on the server of one's own."""
    with database_on(own_postgres) as dsn:
        yield dsn


@contextmanager
def more_locales(*names: str) -> Iterator[None]:
    """Let servers that start within the block know these locales too."""
    with tempfile.TemporaryDirectory(prefix="kbatchd-locales-") as name, pytest.MonkeyPatch.context() as patch:
        directory = Path(name)
        directory.chmod(0o755)  # the server has a user of its own
        for locale in names:
            # It warns, with exit status 1, of what glibc's own definition lacks.
            command = ["localedef", "-i", locale, "-f", "UTF-8", str(directory / f"{locale}.UTF-8")]
            subprocess.run(command, check=False, capture_output=True)
        patch.setenv("LOCPATH", name)
        yield


@contextmanager
def database_on(server: Postgres) -> Iterator[str]:
    """Make a migrated database on a server that may be stopped and killed meanwhile."""
    with _new_database(server.dsn) as dsn:
        with psycopg.connect(dsn) as connection:
            migrate(connection)
        yield dsn
        server.start()


@contextmanager
def small_disk_of(server: Postgres, size_bytes: int) -> Iterator[Path]:
    """Mount a file system of this size that belongs to the server's user. The server is stopped at the end."""
    disk = server.directory / f"small-{uuid.uuid4().hex[:8]}"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(disk)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"this needs root and the right to mount: {done.stderr.strip()}")
    try:
        server.give(disk)
        disk.chmod(0o700)
        yield disk
    finally:
        server.stop("immediate")
        subprocess.run(["umount", disk], check=True)


@contextmanager
def _new_database(dsn: str, template: str = "template1") -> Iterator[str]:
    name = f"t_{uuid.uuid4().hex[:12]}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template))
    drop = sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name))
    wait_until(lambda: _execute(dsn, create), 20, f"{name} made from {template}")
    yield make_conninfo(dsn, dbname=name)
    wait_until(lambda: _execute(dsn, drop), 20, f"the end of {name}")


def _execute(dsn: str, statement: sql.Composed) -> bool:
    """Tell whether it could be done: PostgreSQL waits five seconds for a database's sessions to end, no longer."""
    with psycopg.connect(dsn, autocommit=True) as connection, suppress(psycopg.errors.ObjectInUse):
        connection.execute(statement)
        return True
    return False
