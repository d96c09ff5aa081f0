"""Two daemons on the same file, and one that sleeps while its claims are taken."""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Self

import psycopg

from tests.fix_daemon import Daemon, MakeDaemon, wait_until
from tests.fix_load import Delivery

if TYPE_CHECKING:
    from collections.abc import Sequence

TAKEOVER_SECONDS = 10.0


def test_a_second_daemon_stands_by_and_takes_over(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    first = make_daemon(delivery.route).start()
    assert "standby" not in first.wait_ready()
    second = make_daemon(config=first.config).start()
    with delivery.load(per_second=2_000):
        assert "standby" in second.wait_ready()
        wait_until(lambda: delivery.rows() > 2_000, 10, "rows of the first daemon")
        assert not second.logged("action=claim")

        killed_at = time.monotonic()
        first.kill()
        before = delivery.rows()
        second.wait_for_log("action=claim", TAKEOVER_SECONDS)
        wait_until(lambda: delivery.rows() > before, TAKEOVER_SECONDS, "rows of the second daemon")
        assert time.monotonic() - killed_at < TAKEOVER_SECONDS
    delivery.wait_drained()

    delivery.assert_exactly_once()
    assert second.stop() == 0


def test_a_frozen_daemon_whose_claims_are_taken_writes_nothing(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    # A long linger: both workers are frozen with a batch that is partly filled.
    daemon = make_daemon(delivery.route, batch={"linger_seconds": 1.0}).start()
    daemon.wait_ready()
    with delivery.load(per_second=1_000):
        wait_until(lambda: delivery.rows() > 2_000, 15, "rows before the frost")
        keys = advisory_locks(delivery)
        assert len(keys) == delivery.partitions

        # Given: frozen as a whole, claimed by others, who have queued for its locks as well.
        freeze_between_flushes(daemon, delivery)
        delivery.execute("UPDATE kbatchd.progress SET epoch = epoch + 1, backend_pid = NULL")
        with Locks(delivery.dsn, keys) as locks:
            rows, progress = delivery.rows(), delivery.progress()

            # When: it wakes up, and flushes what it had.
            daemon.send_to_all(signal.SIGCONT)
            daemon.wait_for_log("action=fenced", 15, count=2)
            locks.wait()

            # Then: nothing of it is in, and it stands by until the locks are free.
            daemon.wait_for_log("another session has claimed", count=2)
            assert delivery.rows() == rows
            assert delivery.progress() == progress
    delivery.wait_drained()
    delivery.assert_exactly_once()


def freeze_between_flushes(daemon: Daemon, delivery: Delivery) -> None:
    """Freeze it; in the midst of a transaction it would hold its progress locked, and nobody else could claim."""
    working = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'kbatchd worker%' AND state <> 'idle'"

    def is_frozen() -> bool:
        daemon.send_to_all(signal.SIGSTOP)
        daemon.wait_stopped()
        if delivery.query(f"{working} AND datname = current_database()") == [(0,)]:
            return True
        daemon.send_to_all(signal.SIGCONT)
        return False

    wait_until(is_frozen, 10, "a moment between two flushes", every_seconds=0.1)


def advisory_locks(delivery: Delivery) -> list[tuple[object, ...]]:
    """Return the keys of the locks that the workers hold: PostgreSQL shows a 64-bit key as two halves."""
    return delivery.query(
        """
        SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks JOIN pg_stat_activity USING (pid)
        WHERE locktype = 'advisory' AND objsubid = 1 AND application_name LIKE 'kbatchd worker%%' AND granted
          AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        """
    )


class Locks:
    """A session for each lock, queued for it: a daemon that gives it up does not get it back."""

    def __init__(self, dsn: str, keys: Sequence[tuple[object, ...]]) -> None:
        self._sessions = [psycopg.connect(dsn, autocommit=True) for _ in keys]
        self._threads = [
            threading.Thread(target=session.execute, args=("SELECT pg_advisory_lock(%s)", key))
            for session, key in zip(self._sessions, keys, strict=True)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def wait(self) -> None:
        """Wait until all locks are ours."""
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a lock was not given up"

    def __exit__(self, *_: object) -> None:
        for session in self._sessions:
            session.cancel_safe()
            session.close()
        for thread in self._threads:
            thread.join(60)
