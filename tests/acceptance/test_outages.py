"""A server goes away under load and comes back: no worker ends, nothing is lost, nothing is twice."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.fix_daemon import Daemon, MakeDaemon, wait_until
from tests.fix_load import Delivery, MakeDelivery, new_delivery

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from kbatchd.devstack.postgres import Postgres
    from tests.fix_kafka import MakeTopic

OUTAGE_SECONDS = 20.0
RETURN_SECONDS = 10.0
MAX_RSS_BYTES = 200_000_000

#: A repeated trouble is told every 10 s, which the unit tests hold exactly. Here a line's stamp is from before it is
#: let through, and a thread may be held up between the two. What is told twice, or by two threads, comes much sooner.
FOLDED_SECONDS = 9.5

PARTITIONS = 4
#: Enough to fill all buffers and librdkafka's queues several times over during the outage.
PER_SECOND = 8_000

TERMINATE = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE application_name LIKE 'kbatchd worker%' AND datname = current_database()
"""


def test_postgres_stops_and_comes_back(
    kafka: Kafka | GivenKafka,
    own_postgres: Postgres,
    own_database: str,
    make_topic: MakeTopic,
    make_daemon: MakeDaemon,
) -> None:
    delivery = new_delivery(kafka.bootstrap_servers, make_topic(PARTITIONS), PARTITIONS, own_database)
    daemon = make_daemon(delivery.route, postgres={"dsn": own_database}).start()
    daemon.wait_ready()
    assert_outlives(delivery, daemon, lambda: own_postgres.stop("immediate"), own_postgres.start)


def test_kafka_stops_and_comes_back(
    own_kafka: Kafka, own_make_topic: MakeTopic, database: str, make_daemon: MakeDaemon
) -> None:
    delivery = new_delivery(own_kafka.bootstrap_servers, own_make_topic(PARTITIONS), PARTITIONS, database)
    daemon = make_daemon(delivery.route, kafka={"bootstrap_servers": own_kafka.bootstrap_servers}).start()
    daemon.wait_ready()
    assert_outlives(delivery, daemon, own_kafka.kill, own_kafka.start)


def test_sessions_broken_at_random_moments(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(delivery.route, batch={"max_rows": 200, "linger_seconds": 0.05}).start()
    daemon.wait_ready()
    workers = daemon.workers()
    moments = broken = 0
    deadline = time.monotonic() + 120
    with delivery.load(PER_SECOND):
        # On a slow machine many moments find a session that is not back yet.
        while moments < 20 or broken <= len(workers) * 10:
            assert time.monotonic() < deadline, f"{broken} sessions broken at {moments} moments"
            time.sleep(random.uniform(0.05, 0.6))
            broken += len(delivery.query(TERMINATE))
            moments += 1
    delivery.wait_drained()

    assert daemon.workers() == workers
    assert_folded(daemon)
    delivery.assert_exactly_once()


def test_a_stop_while_postgres_is_gone(
    kafka: Kafka | GivenKafka,
    own_postgres: Postgres,
    own_database: str,
    make_topic: MakeTopic,
    make_daemon: MakeDaemon,
) -> None:
    delivery = new_delivery(kafka.bootstrap_servers, make_topic(PARTITIONS), PARTITIONS, own_database)
    daemon = make_daemon(delivery.route, postgres={"dsn": own_database}, workers={"grace_seconds": 2.0}).start()
    daemon.wait_ready()
    with delivery.load(PER_SECOND):
        wait_until(lambda: delivery.rows() > PER_SECOND, 15, "rows before the outage")
        own_postgres.stop("immediate")
        daemon.wait_for_log("action=postgres_wait", count=2)
        assert daemon.stop(seconds=4) == 0
        own_postgres.start()
    daemon.start()
    daemon.wait_ready()
    delivery.wait_drained()
    delivery.assert_exactly_once()


def test_a_table_locked_for_long_while_the_topic_grows(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    # Given: nothing can be written, so the poll loop runs out of room and parks the lane, during the first flush.
    delivery = make_delivery(2)
    daemon = make_daemon(delivery.route, postgres={"lock_timeout_seconds": 6.0}, workers={"count": 1}).start()
    daemon.wait_ready()
    with psycopg.connect(delivery.dsn) as blocker, delivery.load(PER_SECOND):
        wait_until(lambda: delivery.rows() > PER_SECOND, 15, "rows before the lock")
        blocker.execute(f"LOCK TABLE {delivery.table} IN EXCLUSIVE MODE".encode())

        # When: meanwhile the topic grows, the new partitions are claimed, and have records at once.
        grown = delivery.grow(4)
        grown.send(8_000, first=1_000_000)
        daemon.wait_for_log("2, 3]", 30)
        daemon.wait_for_log("will be tried again", 20, count=2)  # the second is told 10 s after the first
        # And: the session breaks as well.
        delivery.query(TERMINATE)
    grown.wait_drained()
    grown.assert_exactly_once()


def test_a_consumer_that_fetches_nothing_any_more(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    # Given: once they have read to the end, the brokers keep the consumer waiting for 100 MB or five minutes.
    never = {"fetch.min.bytes": 100_000_000, "fetch.wait.max.ms": 290_000, "socket.timeout.ms": 300_000}
    delivery = make_delivery(2)
    kafka = {"bootstrap_servers": delivery.bootstrap_servers, "librdkafka": never}
    daemon = make_daemon(delivery.route, kafka=kafka, workers={"count": 1}).start()
    daemon.wait_ready()
    [worker] = daemon.workers()

    # When: there is more to read.
    delivery.send(1_000)

    # Then: the worker sees that it stands still, and another takes its place.
    daemon.wait_for_log("the consumer stands still, though there is more in", 60)
    daemon.wait_ready()
    assert daemon.workers() != [worker]

    # And: what it had not read is read once, when nothing is in the way any more.
    daemon.config.write_text(daemon.config.read_text().replace("100000000", "1"))
    os.kill(daemon.pid, signal.SIGHUP)
    delivery.wait_drained()
    delivery.assert_exactly_once()


def assert_small(workers: list[int]) -> None:
    """See that no worker has ever been larger than it may be: the kernel remembers."""
    for pid in workers:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert int(status["VmHWM"].removesuffix("kB")) * 1024 < MAX_RSS_BYTES


def assert_outlives(delivery: Delivery, daemon: Daemon, stop: Callable[[], None], start: Callable[[], None]) -> None:
    """Stop a server under load and start it again: the same workers go on soon, small, and lose and double nothing."""
    workers = daemon.workers()
    with delivery.load(PER_SECOND):
        wait_until(lambda: delivery.rows() > PER_SECOND, 15, "rows before the outage")
        stop()
        time.sleep(OUTAGE_SECONDS)
        start()
        delivery.ends()  # it is back when somebody else is served
        assert_first_commit_within(delivery, RETURN_SECONDS, time.time())
    delivery.wait_drained()

    assert daemon.workers() == workers
    assert_small(workers)
    assert_folded(daemon)
    delivery.assert_exactly_once()
    assert daemon.stop() == 0


def assert_folded(daemon: Daemon) -> None:
    """See that a trouble which repeats is one line in ten seconds, by message and route, whatever the cause in it."""
    daemon.wait_for_log(" repeated=", FOLDED_SECONDS)  # it has repeated
    told: dict[tuple[str, ...], list[datetime]] = {}
    for line in daemon.lines():
        stamp, level, what = line.split(" ", 2)
        if level in {"WARNING", "ERROR"} and what.startswith("worker "):
            worker_and_message = what.partition(" action=")[0]
            route = re.findall(r" route=(\S+)", what)
            told.setdefault((worker_and_message, *route), []).append(datetime.fromisoformat(stamp))
    for trouble, times in told.items():
        pauses = [(later - earlier).total_seconds() for earlier, later in pairwise(times)]
        assert all(pause > FOLDED_SECONDS for pause in pauses), f"{trouble}: {pauses}"


def assert_first_commit_within(delivery: Delivery, seconds: float, returned_at: float) -> None:
    """Judge by the ledger's own clock, which is this machine's: how soon this test looks does not count."""
    statement = """
        SELECT extract(epoch FROM min(committed_at))::float8 FROM kbatchd.batches
        WHERE rows > 0 AND committed_at > to_timestamp(%s)
    """
    wait_until(
        lambda: delivery.query(statement, returned_at) != [(None,)],
        seconds,
        "a first commit after the server's return",
        every_seconds=0.1,
    )
    [(committed_at,)] = delivery.query(statement, returned_at)
    assert isinstance(committed_at, float)
    assert committed_at - returned_at < seconds
