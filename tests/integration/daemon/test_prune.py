"""Pruning, with real rows: what is too old goes, in small steps, and nothing else."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import psycopg
import pytest

from kbatchd.config import Config, Kafka, Postgres, Route
from kbatchd.daemon import prune
from kbatchd.postgres.connection import connect
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from tests.fix_daemon import MakeDaemon
    from tests.fix_load import Delivery

LEDGER = """
INSERT INTO kbatchd.batches (pipeline, route, worker, reason, rows, dead_letters, bytes, spans, fill_seconds,
    committed_at)
SELECT %s, 'r', 'w', 'full', 1, 0, 1, '{}', 0, now() - make_interval(days => %s) FROM generate_series(1, %s)
"""

LETTERS = """
INSERT INTO kbatchd.dead_letters (pipeline, route, topic, partition, "offset", code, message, refused_at)
SELECT %s, 'r', 't', 0, n, '22P02', 'm', now() - make_interval(days => %s) FROM generate_series(1, %s) AS n
"""


def config(database: str, *, ledger: int = 30, letters: int = 0) -> Config:
    return Config(
        kafka=Kafka(bootstrap_servers="localhost:1"),
        postgres=Postgres(dsn=database),
        route=(Route(topic="t", table="public.t"),),
        ledger_keep_days=ledger,
        dead_letters_keep_days=letters,
    )


def count(database: str, table: str) -> dict[str, int]:
    with psycopg.connect(database) as connection:
        return dict(connection.execute(f"SELECT pipeline, count(*) FROM kbatchd.{table} GROUP BY 1").fetchall())


def fill(database: str, statement: str, *rows: tuple[str, int, int]) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for row in rows:
            connection.execute(statement, row)


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune, "REST", 0.1)


def test_old_lines_of_the_ledger_go(database: str) -> None:
    fill(database, LEDGER, ("kbatchd", 31, 3_500), ("kbatchd", 29, 700), ("other", 365, 50))
    with connect(config(database).postgres, "test") as connection:
        assert prune.prune(connection, config(database)) == (3_500, 0)
    assert count(database, "batches") == {"kbatchd": 700, "other": 50}


def test_old_dead_letters_go_when_the_file_says_so(database: str) -> None:
    rows = (("other", 400, 1_500), ("kbatchd", 100, 2_500), ("other", 100, 10), ("kbatchd", 1, 3))
    fill(database, LETTERS, *rows)
    # One session: its lock is its own. Another's is given back a moment after its connection is closed here.
    with connect(config(database).postgres, "test") as connection:
        assert prune.prune(connection, config(database)) == (0, 0)
        assert prune.prune(connection, config(database, letters=90)) == (0, 2_500)
    assert count(database, "dead_letters") == {"other": 1_510, "kbatchd": 3}


def test_zero_days_are_for_ever(database: str) -> None:
    fill(database, LEDGER, ("kbatchd", 9_999, 10))
    with connect(config(database).postgres, "test") as connection:
        assert prune.prune(connection, config(database, ledger=0)) == (0, 0)


def test_one_at_a_time(database: str) -> None:
    """The second one finds the lock taken and leaves everything to the first."""
    fill(database, LEDGER, ("kbatchd", 31, 5_000))
    settings = config(database)
    with connect(settings.postgres, "first") as first, connect(settings.postgres, "second") as second:
        done: list[tuple[int, int]] = []
        pruning = threading.Thread(target=lambda: done.append(prune.prune(first, settings)))
        pruning.start()
        wait_until(lambda: count(database, "batches").get("kbatchd", 0) < 5_000, 10, "the first step")
        assert prune.prune(second, settings) == (0, 0)
        pruning.join()
        assert done == [(5_000, 0)]
        # The lock is the session's.
        fill(database, LEDGER, ("kbatchd", 31, 1))
        assert prune.prune(second, settings) == (0, 0)
        of_first = first.info.backend_pid
    with connect(settings.postgres, "third") as third:
        gone = "SELECT FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: third.execute(gone, [of_first]).fetchone() is None, 10, "the first session to be gone")
        assert prune.prune(third, settings) == (1, 0)


def test_the_daemon_prunes(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    fill(delivery.dsn, LEDGER, ("kbatchd", 31, 1_500))
    fill(delivery.dsn, LETTERS, ("kbatchd", 31, 1_500))
    daemon = make_daemon(delivery.route)
    daemon.config.write_text(f"dead_letters_keep_days = 7\n{daemon.config.read_text()}")
    daemon.start()
    daemon.wait_for_log("action=prune", 40)
    assert "ledger_lines=1500 dead_letters=1500" in daemon.logged("action=prune")[0]
    assert count(delivery.dsn, "dead_letters") == {}
    assert daemon.stop() == 0
