"""One topic feeds two routes: each has its own table, progress and fate, and none waits for the other's fix."""

from __future__ import annotations

import random
import time
from dataclasses import replace

import psycopg
import pytest

from tests.acceptance.test_kills import kill_worker
from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_load import TABLE, Delivery, MakeDelivery

PER_SECOND = 4_000
KILLS = 5


@pytest.fixture
def pair(make_delivery: MakeDelivery) -> tuple[Delivery, Delivery]:
    """Two routes on one topic."""
    first = replace(make_delivery(2, "public.first"), name="first")
    second = replace(first, table="public.second", name="second")
    second.execute(TABLE.format(second.table))
    return first, second


def test_both_have_all_of_it_through_kills(pair: tuple[Delivery, Delivery], make_daemon: MakeDaemon) -> None:
    first, second = pair
    # Given: one route is ahead of the other, since it was alone at first.
    alone = make_daemon(first.route).start()
    first.send(3_000)
    first.wait_drained()
    assert alone.stop() == 0

    # When: both read, from the lowest on, and workers die.
    daemon = make_daemon(first.route, second.route, batch={"max_rows": 300, "linger_seconds": 0.1}).start()
    daemon.wait_ready()
    with replace(first).load(PER_SECOND) as load:
        load.sent = dict.fromkeys(load.sent, 1_500)
        for _ in range(KILLS):
            time.sleep(random.uniform(0.1, 0.8))  # the random moment itself, no wait for anything
            kill_worker(daemon)
    for delivery in pair:
        delivery.wait_drained()
        delivery.assert_exactly_once()


def test_a_halted_or_locked_or_lost_one_does_not_hold_the_other(
    pair: tuple[Delivery, Delivery], make_daemon: MakeDaemon
) -> None:
    halted, healthy = pair
    daemon = make_daemon(
        {**halted.route, "max_dead_letters": 20},
        healthy.route,
        workers={"count": 1},
        postgres={"lock_timeout_seconds": 1.0},
    ).start()
    daemon.wait_ready()
    with healthy.load(PER_SECOND) as load:
        # When: the table of one route is gone for a while, then locked; the other goes on.
        wait_until(lambda: halted.rows() > PER_SECOND // 4, 15, "rows in both")
        halted.execute("ALTER TABLE public.first RENAME TO hidden")
        daemon.wait_for_log("action=aside route=first", 15)
        assert_goes_on(healthy)
        halted.execute("ALTER TABLE public.hidden RENAME TO first")
        before = halted.rows()
        wait_until(lambda: halted.rows() > before, 15, "the route that was put on hold is back")
        with psycopg.connect(halted.dsn) as blocker:
            blocker.execute("LOCK TABLE public.first IN EXCLUSIVE MODE")
            daemon.wait_for_log("action=retry route=first", 15)
            assert_goes_on(healthy)

        # And: then it takes nothing any more, and halts; the other goes on.
        halted.execute("ALTER TABLE public.first ADD CONSTRAINT never CHECK (seq < 0) NOT VALID")
        daemon.wait_for_log("action=breaker_open", 20)
        assert_goes_on(healthy)
        load.stop()
    healthy.wait_drained()
    healthy.assert_exactly_once()

    # Then: fixed and started again, it goes on where it stood, and the other has nothing twice.
    assert daemon.stop() == 0
    halted.execute("ALTER TABLE public.first DROP CONSTRAINT never")
    daemon.start()
    halted.wait_drained()
    halted.assert_exactly_once()
    healthy.assert_exactly_once()


def test_an_altered_table_is_told_of_once(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    delivery = make_delivery(1)
    daemon = make_daemon(delivery.route, workers={"count": 1}).start()
    daemon.wait_ready()
    delivery.execute(f"ALTER TABLE {delivery.table} ADD COLUMN note text")
    delivery.send(20)
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert len(daemon.logged("action=table_changed")) == 1


def assert_goes_on(delivery: Delivery) -> None:
    before = delivery.rows()
    wait_until(lambda: delivery.rows() > before + PER_SECOND, 20, f"more rows in {delivery.table}")


def test_a_route_that_starves_while_another_holds_all_room(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon
) -> None:
    """Its batch is opened, finds no buffer, and lingers: there is nothing in it to be flushed."""
    holding, starving = make_delivery(1, "public.holding"), make_delivery(1, "public.starving")
    daemon = make_daemon(
        holding.route,
        starving.route,
        batch={"max_rows": 500, "max_bytes": 65_536, "linger_seconds": 0.05},
        workers={"count": 1, "buffer_bytes": 131_072},
        postgres={"dsn": holding.dsn, "lock_timeout_seconds": 0.2},
    ).start()
    daemon.wait_ready()
    with psycopg.connect(holding.dsn) as other:
        other.execute(f"LOCK TABLE {holding.table}".encode())
        holding.send(3_000)
        daemon.wait_for_log("action=retry")
        starving.send(3_000)
        starving.wait_drained()
    holding.wait_drained()
    for delivery in (holding, starving):
        delivery.assert_exactly_once()
    assert not daemon.logged("action=worker_ended")
