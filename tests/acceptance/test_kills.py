"""Processes die at any moment; the records do not notice.

pytest-randomly seeds `random` before each test and prints the seed; `--randomly-seed` gives the same kills again.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from contextlib import suppress

from tests.fix_daemon import Daemon, MakeDaemon, is_alive, wait_until
from tests.fix_load import Delivery

#: How many are killed. Half of the workers while they write, half at any moment, so also while they start.
WORKERS_AT_WORK = 10
ANY_WORKERS = 10
SUPERVISORS = 5


def test_kills_at_random_moments_lose_and_double_nothing(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    kills = ["worker at work"] * WORKERS_AT_WORK + ["any worker"] * ANY_WORKERS + ["supervisor"] * SUPERVISORS
    random.shuffle(kills)
    # Small batches: a kill then meets a transaction more often than not. And 60 refused rows in a row: some batches
    # take several transactions.
    delivery.execute(f"ALTER TABLE {delivery.table} ADD CHECK (seq % 400 >= 60)")
    daemon = make_daemon(delivery.route, batch={"max_rows": 200, "linger_seconds": 0.1}).start()
    daemon.wait_ready()

    with delivery.load(per_second=4_000):
        for victim in kills:
            time.sleep(random.uniform(0.05, 1.0))  # the random moment itself, no wait for anything
            if victim == "supervisor":
                daemon.kill()
                daemon.start()
                daemon.wait_ready()
            else:
                kill_worker(daemon, at_work=victim == "worker at work")
    delivery.wait_drained()

    delivery.assert_exactly_once()
    [(claims,)] = delivery.query("SELECT sum(epoch)::int FROM kbatchd.progress")
    assert isinstance(claims, int)
    # All partitions by each daemon, and half of them by each successor of a worker that was at work.
    least = delivery.partitions * (SUPERVISORS + 1) + delivery.partitions // 2 * WORKERS_AT_WORK
    assert claims >= least, "the kills met nobody at work"


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


def kill_worker(daemon: Daemon, *, at_work: bool = False) -> None:
    """Kill one of the workers, or of those at work, as soon as there is one."""

    def victims() -> list[int]:
        return [pid for pid in daemon.workers() if not at_work or is_at_work(daemon, pid)]

    wait_until(victims, 10, "a worker to kill")
    with suppress(ProcessLookupError):
        os.kill(random.choice(victims()), signal.SIGKILL)


def is_at_work(daemon: Daemon, pid: int) -> bool:
    """Tell whether a worker has claimed its partitions, since the end of the one whose place it has taken."""
    lines = daemon.lines()
    index = next(found[1] for line in lines if (found := re.search(rf"_started worker=(\d+) pid={pid}\b", line)))
    events = [line for line in lines if f"worker {index}: claimed " in line or f"_ended worker={index} " in line]
    return bool(events) and "_ended" not in events[-1]
