"""Copies of a PostgreSQL server that runs: a backup to be restored, a standby to take over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from kbatchd.devstack.postgres import Postgres
from kbatchd.devstack.process import run
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from pathlib import Path


class Backup(Postgres):
    """A server on a copy of another one's data, as they were when it was started first."""

    options: tuple[str, ...] = ()

    def __init__(self, primary: str) -> None:
        super().__init__()
        self._primary = primary

    @property
    def port(self) -> int:
        """Where it listens."""
        return self._port

    def _make(self, data: Path) -> None:
        command = [self._program("pg_basebackup"), "--dbname", self._primary, "--pgdata", str(data)]
        command += ["--checkpoint", "fast", "--no-sync", *self.options]
        assert run(command, log=self.log, account=self._account), self.log.read_text()
        with (data / "postgresql.conf").open("a") as file:
            file.write(f"port = {self._port}\nunix_socket_directories = '{self.directory}'\n")

    def _make_database(self) -> None:
        """It has the primary's."""


class Standby(Backup):
    """A streaming standby of a server that runs."""

    options = ("--write-recovery-conf",)

    def cut_off(self) -> None:
        """Receive nothing more from the primary; what it has received stays."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET primary_conninfo = ''")
            connection.execute("SELECT pg_reload_conf()")
            wait_until(lambda: not _receivers(connection), 10, "the end of the replication")

    def promote(self) -> None:
        """Become the primary."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            assert connection.execute("SELECT pg_promote()").fetchone() == (True,)


def _receivers(connection: psycopg.Connection) -> list[tuple[object, ...]]:
    return connection.execute("SELECT pid FROM pg_stat_wal_receiver").fetchall()
