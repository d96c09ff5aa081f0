"""Processes die at any moment; the records do not notice.

pytest-randomly seeds `random` before each test and prints the seed; `--randomly-seed` gives the same kills again.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

from tests.fix_daemon import Daemon, MakeDaemon, is_alive, wait_until
from tests.fix_load import Delivery

WORKER_KILLS = 20
SUPERVISOR_KILLS = 5


def test_kills_at_random_moments_lose_and_double_nothing(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    kills = ["worker"] * WORKER_KILLS + ["supervisor"] * SUPERVISOR_KILLS
    random.shuffle(kills)
    # Small batches: a kill then meets a transaction more often than not. And 60 refused rows in a row: some batches
    # take several transactions.
    delivery.execute(f"ALTER TABLE {delivery.table} ADD CHECK (seq % 400 >= 60)")
    daemon = make_daemon(delivery.route, batch={"max_rows": 200, "linger_seconds": 0.1}).start()
    daemon.wait_ready()

    with delivery.load(per_second=4_000):
        for victim in kills:
            time.sleep(random.uniform(0.05, 1.0))  # the random moment itself, no wait for anything
            if victim == "worker":
                kill_worker(daemon)
            else:
                daemon.kill()
                daemon.start()
                daemon.wait_ready()
    delivery.wait_drained()

    delivery.assert_exactly_once()
    [(claims,)] = delivery.query("SELECT sum(epoch)::int FROM kbatchd.progress")
    assert isinstance(claims, int)
    # A worker that was killed again before it had claimed anything counts for nothing, and so it is on a slow machine.
    assert claims > delivery.partitions * (SUPERVISOR_KILLS + 1) + WORKER_KILLS / 4, "the kills met nobody at work"


def test_a_frozen_worker_is_replaced(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(delivery.route, workers={"heartbeat_timeout_seconds": 5.0}).start()
    daemon.wait_ready()
    with delivery.load(per_second=4_000):
        wait_until(lambda: delivery.rows() > 4_000, 15, "rows before the frost")
        frozen, other = daemon.workers()
        os.kill(frozen, signal.SIGSTOP)
        daemon.wait_for_log("action=worker_silent")
        wait_until(lambda: not is_alive(frozen) and len(daemon.workers()) == 2, 10, "a new worker")
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert is_alive(other)


def kill_worker(daemon: Daemon) -> None:
    wait_until(daemon.workers, 5, "a worker to kill")
    with suppress(ProcessLookupError):
        os.kill(random.choice(daemon.workers()), signal.SIGKILL)
