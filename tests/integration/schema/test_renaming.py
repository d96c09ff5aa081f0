"""`kbatchd progress rename`: what it takes over, what it refuses, and that it is not lost in a crash."""

from __future__ import annotations

import subprocess
import sys
import uuid
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from kbatchd.model import Gap, GapKind, Partition
from kbatchd.schema import by_hand, claiming, pausing
from kbatchd.schema.progress import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kbatchd.devstack.postgres import Postgres

#: The tables, as progress has them.
ONE, TWO = '"public"."one"', '"public"."two"'

TABLES = ("progress", "dead_letters", "gaps", "batches", "pauses")


class Shelf:
    """A file with the routes `one` and `two`, and what is kept under other names."""

    def __init__(self, directory: Path, dsn: str) -> None:
        self.file = directory / "kbatchd.toml"
        self.dsn = dsn
        self.connection = psycopg.connect(dsn, autocommit=True)
        for name in ("one", "two"):
            self.connection.execute(f"CREATE TABLE public.{name} (id bigint)".encode())
        self.write(dsn)

    def write(self, dsn: str) -> None:
        routes = "".join(
            f'[[route]]\nname = "{name}"\ntopic = "topic-{name}"\ntable = "public.{name}"\n' for name in ("one", "two")
        )
        self.file.write_text(
            f'pipeline = "new"\n[kafka]\nbootstrap_servers = "127.0.0.1:9"\n[postgres]\ndsn = "{dsn}"\n{routes}'
        )

    def keep(self, pipeline: str, route: str, topic: str, target: str) -> None:
        """Write two partitions of progress, and a dead letter, a gap and a line of the ledger."""
        owner = Owner(pipeline, route, topic, target, "test")
        claiming.register(self.connection, owner, "id", {0: 5, 1: 7})
        gap = Gap(Partition(topic, 0), GapKind.RETENTION, 5, 9, 9, "id")
        by_hand.accept(self.connection, owner, gap, 0)
        self.connection.execute(
            'INSERT INTO kbatchd.dead_letters (pipeline, route, topic, partition, "offset", code, message) '
            "VALUES (%s, %s, %s, 0, 3, 'c', 'm')",
            (pipeline, route, topic),
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "kbatchd", "progress", "rename", *arguments, "--config", str(self.file)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)

    def refused(self, *arguments: str) -> str:
        """Run a rename that must change nothing; return its one line."""
        before = self.names()
        done = self.run(*arguments)
        assert (done.returncode, done.stdout) == (78, ""), done.stderr
        assert self.names() == before
        (line,) = done.stderr.splitlines()
        return line

    def names(self) -> dict[str, list[tuple[object, ...]]]:
        """Return under which names how much is kept, by table."""
        return {
            table: self.connection.execute(
                f"SELECT pipeline, route, count(*) FROM kbatchd.{table} GROUP BY 1, 2 ORDER BY 1, 2".encode()
            ).fetchall()
            for table in TABLES
        }


@pytest.fixture
def shelf(tmp_path: Path, database: str) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path, database)
    yield shelf
    shelf.connection.close()


def test_a_pipeline_of_two_routes(shelf: Shelf) -> None:
    shelf.keep("old", "one", "topic-one", ONE)
    shelf.keep("old", "two", "topic-two", TWO)
    shelf.keep("old", "two", "topic-former", TWO)  # the route had another topic once
    shelf.keep("third", "one", "topic-one", ONE)  # no name of ours
    for pipeline, route in (("old", "one"), ("old", "two"), ("new", "two"), ("third", "one")):
        assert pausing.pause(shelf.connection, pipeline, route, "ops@host")
    epochs = shelf.connection.execute("SELECT topic, max(epoch) FROM kbatchd.progress GROUP BY 1")
    before: dict[str, int] = dict(epochs.fetchall())
    done = shelf.run("--from-pipeline", "old")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"old/{route} is new/{route} now: 2 partitions, 1 dead letters, 1 gaps, 1 lines of the ledger"
        for route in ("one", "two")
    ]
    assert shelf.names() == {
        "progress": [("new", "one", 2), ("new", "two", 2), ("old", "two", 2), ("third", "one", 2)],
        "dead_letters": [("new", "one", 1), ("new", "two", 1), ("old", "two", 1), ("third", "one", 1)],
        "gaps": [("new", "one", 1), ("new", "two", 1), ("old", "two", 1), ("third", "one", 1)],
        "batches": [("new", "one", 2), ("new", "two", 2), ("old", "two", 1), ("third", "one", 1)],
        "pauses": [("new", "one", 1), ("new", "two", 1), ("old", "two", 1), ("third", "one", 1)],
    }
    rows = shelf.connection.execute(
        "SELECT topic, partition, next_offset, epoch FROM kbatchd.progress WHERE pipeline = 'new' ORDER BY 1, 2"
    ).fetchall()
    assert rows == [
        (topic, partition, offset, before[topic] + 1 - partition)
        for topic in ("topic-one", "topic-two")
        for partition, offset in ((0, 9), (1, 7))
    ]


def test_a_route_that_is_newer_than_the_name_of_its_pipeline(shelf: Shelf) -> None:
    shelf.keep("old", "two", "topic-two", TWO)
    done = shelf.run("--from-pipeline", "old")
    assert done.returncode == 0, done.stderr
    assert shelf.names()["progress"] == [("new", "two", 2)]
    assert "there is no progress of topic topic-one under old/one" in shelf.refused("one", "--from-pipeline", "old")
    assert "there is no progress" in shelf.refused("--from-pipeline", "nobody").splitlines()[0]


def test_all_or_nothing(shelf: Shelf) -> None:
    shelf.keep("old", "one", "topic-one", ONE)
    shelf.keep("old", "two", "topic-two", "public.another")
    line = shelf.refused("--from-pipeline", "old")
    assert f"the progress of old/two was made for table public.another, not {TWO}" in line
    shelf.connection.execute("UPDATE kbatchd.progress SET target = %s WHERE route = 'two'", (TWO,))
    shelf.keep("new", "two", "topic-two", TWO)
    assert "route two: has progress of topic topic-two already" in shelf.refused("--from-pipeline", "old")


@pytest.mark.parametrize("partition", [0, 1, -1])
@pytest.mark.parametrize("name", ["old/former", "new/one"])
def test_who_is_being_read_is_not_renamed(shelf: Shelf, name: str, partition: int) -> None:
    shelf.keep("old", "former", "topic-one", ONE)
    pipeline, _, route = name.partition("/")
    with psycopg.connect(shelf.dsn, autocommit=True) as daemon:
        held = claiming.lock(daemon, Owner(pipeline, route, "topic-one", "", ""), [partition])
        assert held == {partition}
        line = shelf.refused("one", "--from-pipeline", "old", "--from-route", "former")
        assert f"a daemon reads under {name}" in line
        assert "stop it first" in line
    assert shelf.run("one", "--from-pipeline", "old", "--from-route", "former").returncode == 0


def test_what_the_command_line_must_say(shelf: Shelf) -> None:
    for arguments in (
        (),
        ("one",),
        ("--from-pipeline", "new"),
        ("--from-route", "former"),
        ("one", "two", "--from-route", "x"),
    ):
        done = shelf.run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
    assert "there is no route three" in shelf.refused("three", "--from-route", "former")


def test_rights_that_are_missing(shelf: Shelf) -> None:
    """The daemon's own role has no UPDATE on gaps and ledger: the operator is told what to grant."""
    shelf.keep("old", "one", "topic-one", ONE)
    role = f"r_{uuid.uuid4().hex[:12]}"
    execute = shelf.connection.execute
    execute(sql.SQL("CREATE ROLE {0} LOGIN; GRANT USAGE ON SCHEMA kbatchd, public TO {0}").format(sql.Identifier(role)))
    try:
        for grant in (
            "SELECT ON kbatchd.migrations",
            "INSERT ON public.one",
            "SELECT, INSERT, UPDATE ON kbatchd.progress",
        ):
            execute(sql.SQL(f"GRANT {grant} TO {{}}").format(sql.Identifier(role)))
        shelf.write(make_conninfo(shelf.dsn, user=role))
        done = shelf.run("one", "--from-pipeline", "old")
        assert done.returncode == 78
        assert f"no right to UPDATE on kbatchd.gaps; GRANT UPDATE ON kbatchd.gaps TO {role}" in done.stderr
    finally:
        execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))


def test_a_rename_is_not_lost_in_a_crash(tmp_path: Path, own_postgres: Postgres, own_database: str) -> None:
    """`postgres.synchronous_commit` is "off" by default; a rename that vanished would be the old name's progress."""
    shelf = Shelf(tmp_path, own_database)
    shelf.keep("old", "one", "topic-one", ONE)
    # So that nothing else writes the log to the disk within the test.
    for setting in ("wal_writer_delay = '10s'", "wal_writer_flush_after = '1GB'"):
        shelf.connection.execute(f"ALTER SYSTEM SET {setting}".encode())
    shelf.connection.execute("SELECT pg_reload_conf()")
    shelf.connection.execute("CHECKPOINT")
    assert shelf.run("one", "--from-pipeline", "old").returncode == 0
    shelf.connection.close()
    own_postgres.kill()
    own_postgres.start()
    with psycopg.connect(own_database) as connection:
        assert connection.execute("SELECT DISTINCT pipeline FROM kbatchd.progress").fetchall() == [("new",)]
