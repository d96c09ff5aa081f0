"""Rows: each process dies or freezes, at any moment and at the named points of a flush."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from tests.faults.play import POINTS
from tests.faults.row import Place, Row
from tests.fix_daemon import children, wait_until

if TYPE_CHECKING:
    from tests.faults.play import Play

#: How long somebody stays frozen who thaws again.
FROZEN_SECONDS = 1.5

#: Moments: at random, and each of the points, in turn.
MOMENTS = ("", *POINTS)


def kill_worker(play: Play) -> None:
    """Kill one, or the one whose flush is held."""
    wait_until(play.workers, 30, "a worker")
    with suppress(ProcessLookupError):
        os.kill(play.random.choice(play.workers()), signal.SIGKILL)
    play.over()


def freeze_worker(play: Play) -> None:
    """It is never thawed: its supervisor notices."""
    wait_until(play.workers, 30, "a worker")
    os.kill(play.random.choice(play.workers()), signal.SIGSTOP)
    play.over()


def kill_supervisor(play: Play) -> None:
    play.daemon.kill()
    play.over()
    play.daemon.start()


def freeze_supervisor(play: Play) -> None:
    os.kill(play.daemon.pid, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    os.kill(play.daemon.pid, signal.SIGCONT)


def kill_daemon(play: Play) -> None:
    """Kill the supervisor and each worker in the same moment."""
    for pid in (*children(play.daemon.pid), play.daemon.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    kill_supervisor(play)


def freeze_daemon(play: Play) -> None:
    with suppress(ProcessLookupError):
        play.daemon.send_to_all(signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    with suppress(ProcessLookupError):
        play.daemon.send_to_all(signal.SIGCONT)


def kill_backend(play: Play) -> None:
    """PostgreSQL ends all its sessions then, and recovers."""
    wait_until(play.backends, 30, "a session of a worker")
    with suppress(ProcessLookupError):
        os.kill(play.random.choice(play.backends()), signal.SIGKILL)


def freeze_backend(play: Play) -> None:
    wait_until(play.backends, 30, "a session of a worker")
    pid = play.random.choice(play.backends())
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(FROZEN_SECONDS)
        os.kill(pid, signal.SIGCONT)


def kill_postmaster(play: Play) -> None:
    """And all its backends; nobody hears what was on the way."""
    assert play.stage.postgres is not None
    play.stage.postgres.kill()
    play.stage.postgres_wire.cut()
    play.stage.start_postgres()


def freeze_postmaster(play: Play) -> None:
    assert play.stage.postgres is not None
    pid = play.stage.postgres.pid
    os.kill(pid, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    os.kill(pid, signal.SIGCONT)


def kill_broker(play: Play) -> None:
    play.stage.brokers.kill(1)
    play.stage.brokers.start(1)


def freeze_broker(play: Play) -> None:
    play.stage.brokers.send(1, signal.SIGSTOP)
    time.sleep(FROZEN_SECONDS)
    play.stage.brokers.send(1, signal.SIGCONT)


def in_turn(act: Callable[[Play], None]) -> Callable[[Play], None]:
    """Let it come at a random moment, and the next times at each of the points."""

    def act_at(play: Play) -> None:
        point = MOMENTS[play.times % len(MOMENTS)]
        if not point:
            time.sleep(play.random.uniform(0.0, 0.5))  # the random moment itself
        with play.at(point):
            act(play)

    return act_at


def _row(what: str, promise: str, act: Callable[[Play], None], rounds: int, place: Place, **more: object) -> Row:
    times = rounds * len(MOMENTS)
    return Row(f"{what}, at random and at {len(POINTS)} points of a flush", promise, in_turn(act), times, place, **more)  # type: ignore[arg-type]


_of_daemon = partial(_row, place=Place.DAEMON)
_of_postgres = partial(_row, place=Place.POSTGRES)
_of_kafka = partial(_row, place=Place.KAFKA)

#: A frozen worker is noticed by its silence.
SOON = {"workers": {"heartbeat_timeout_seconds": 2.0, "restart_backoff_max_seconds": 0.2}}

PROCESSES = (
    _of_daemon(
        "a worker is killed (SIGKILL)",
        "replaced at once; its partitions are read again from where the table is",
        kill_worker,
        8,
        tables={"workers": {"restart_backoff_max_seconds": 0.2}},
        short=len(MOMENTS),
    ),
    _of_daemon(
        "a worker is frozen (SIGSTOP)",
        "ended and replaced when it has been silent for `workers.heartbeat_timeout_seconds` (here 2)",
        freeze_worker,
        1,
        tables=SOON,
    ),
    _of_daemon(
        "the supervisor is killed, and started again",
        "its workers die with it; the new ones go on where the table is",
        kill_supervisor,
        1,
    ),
    _of_daemon("the supervisor is frozen for 1.5 s", "its workers go on", freeze_supervisor, 1),
    _of_daemon("the whole daemon is killed, and started again", "goes on where the table is", kill_daemon, 1),
    _of_daemon("the whole daemon is frozen for 1.5 s", "goes on", freeze_daemon, 1),
    _of_postgres(
        "a session's backend is killed",
        "PostgreSQL recovers; each worker connects, claims and reads again",
        kill_backend,
        2,
    ),
    _of_postgres("a session's backend is frozen for 1.5 s", "waits for it", freeze_backend, 1),
    _of_postgres("PostgreSQL is killed with all backends, and started again", "waits, and goes on", kill_postmaster, 1),
    _of_postgres("the postmaster is frozen for 1.5 s", "the sessions go on", freeze_postmaster, 1),
    _of_kafka("the broker is killed, and started again", "waits, and reads on", kill_broker, 1),
    _of_kafka("the broker is frozen for 1.5 s", "waits, and reads on", freeze_broker, 1),
)
