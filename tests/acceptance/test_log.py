"""The daemon's log: nobody may hold it up, and what it tells of servers that were away is true."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from datetime import datetime
from typing import TYPE_CHECKING

from tests.fix_daemon import wait_until
from tests.fix_load import Delivery, new_delivery

if TYPE_CHECKING:
    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from kbatchd.devstack.postgres import Postgres
    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_kafka import MakeTopic

#: As long as kbatchd may take to notice that Kafka does not answer.
NOTICED_SECONDS = 10.0
HANG_SECONDS = 25.0
#: Longer than a repeated line is held back.
QUIET_SECONDS = 11.0


def test_a_pipe_that_nobody_reads_holds_nothing_up(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    # Given: a log that says much, into a pipe that is full.
    config = make_daemon(delivery.route, log={"level": "debug"}, batch={"max_rows": 50, "linger_seconds": 0.05}).config
    reader, writer = os.pipe()
    fill(writer)
    command = [sys.executable, "-m", "kbatchd", "--config", str(config)]
    with (
        os.fdopen(reader, "rb") as lines,
        subprocess.Popen(command, stdout=writer, stderr=writer, start_new_session=True) as daemon,
    ):
        try:
            # When: it works.
            with delivery.load(per_second=2_000):
                wait_until(lambda: delivery.rows() > 4_000, 30, "rows without a reader of the log")
            delivery.wait_drained()
            delivery.assert_exactly_once()

            # Then: the number of lines that it dropped is told as soon as somebody reads,
            assert any(b"action=log_dropped count=" in line for line in lines)

            # ... and when nobody does again, it stops all the same.
            fill(writer)
            daemon.terminate()
            assert daemon.wait(15) == 0
        finally:
            daemon.kill()
            os.close(writer)


def fill(writer: int) -> None:
    """Write into a pipe what it holds."""
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 1_024)
    os.set_blocking(writer, True)


def test_a_kafka_that_hangs_is_told_soon_and_with_its_true_length(
    own_kafka: Kafka, own_make_topic: MakeTopic, database: str, make_daemon: MakeDaemon
) -> None:
    delivery = new_delivery(own_kafka.bootstrap_servers, own_make_topic(2), 2, database)
    daemon = make_daemon(delivery.route, kafka={"bootstrap_servers": own_kafka.bootstrap_servers}).start()
    daemon.wait_ready()
    delivery.send(100)
    wait_until(lambda: delivery.rows() == 100, 15, "rows before the hang")

    hung_at = time.time()
    os.kill(own_kafka.pid, signal.SIGSTOP)
    daemon.wait_for_log("action=kafka_silent", NOTICED_SECONDS, count=2)
    time.sleep(max(0.0, HANG_SECONDS - (time.time() - hung_at)))
    os.kill(own_kafka.pid, signal.SIGCONT)
    hung_seconds = time.time() - hung_at
    daemon.wait_for_log("action=kafka_back", 20, count=2)

    told = [at(line) - hung_at for line in daemon.logged("action=kafka_silent")]
    assert max(told) < NOTICED_SECONDS
    lengths = [float(re.findall(r" seconds=([0-9.]+)", line)[0]) for line in daemon.logged("action=kafka_back")]
    assert all(hung_seconds - NOTICED_SECONDS / 2 - 1 < seconds < hung_seconds + 15 for seconds in lengths)
    assert_nothing_stale(daemon, "action=kafka_back", "kafka_silent", "kafka_error", "librdkafka")
    delivery.send(100, first=100)
    delivery.wait_drained()
    delivery.assert_exactly_once()


def test_nothing_of_an_outage_of_postgres_is_told_after_its_end(
    kafka: Kafka | GivenKafka,
    own_postgres: Postgres,
    own_database: str,
    make_topic: MakeTopic,
    make_daemon: MakeDaemon,
) -> None:
    delivery = new_delivery(kafka.bootstrap_servers, make_topic(2), 2, own_database)
    daemon = make_daemon(delivery.route, postgres={"dsn": own_database}).start()
    daemon.wait_ready()
    own_postgres.stop("immediate")
    # So many tries that the last of them is held back.
    daemon.wait_for_log("action=postgres_wait", 30, count=4)
    time.sleep(5)
    own_postgres.start()
    daemon.wait_for_log("action=postgres_back", 20, count=2)
    assert_nothing_stale(daemon, "action=postgres_back", "postgres_wait", "postgres_lost")


def assert_nothing_stale(daemon: Daemon, good_news: str, *troubles: str) -> None:
    """See that a worker tells of none of these after its good news, also not later."""
    time.sleep(QUIET_SECONDS)
    for worker in ("worker 0:", "worker 1:"):
        lines = daemon.logged(worker)
        [last] = [index for index, line in enumerate(lines) if good_news in line][-1:]
        stale = [line for line in lines[last + 1 :] if any(f"action={trouble}" in line for trouble in troubles)]
        assert not stale


def at(line: str) -> float:
    return datetime.fromisoformat(line.partition(" ")[0]).timestamp()
