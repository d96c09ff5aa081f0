"""A record that comes alone does not wait for company longer than linger_seconds."""

from __future__ import annotations

import random
import time

import psycopg
import pytest

from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_load import Delivery

#: For the way through Kafka and for the flush; 0.1 s at most, also beside four processes that only burn CPU.
MARGIN_SECONDS = 0.5


@pytest.mark.parametrize(("linger_seconds", "records"), [(3.0, 2), (1.0, 4), (0.05, 20)])
def test_a_lone_record_is_visible_within_linger(
    delivery: Delivery, make_daemon: MakeDaemon, linger_seconds: float, records: int
) -> None:
    make_daemon(delivery.route, batch={"linger_seconds": linger_seconds}).start()
    load = delivery.load(0)
    # At rest: every partition has been read, so its first fetch is over.
    load.send(delivery.partitions)
    load.stop()
    delivery.wait_drained()
    latencies = []
    with psycopg.connect(delivery.dsn, autocommit=True) as connection:
        for seen in range(delivery.partitions, delivery.partitions + records):
            time.sleep(random.uniform(0, 0.2))  # at any phase of the daemon's own turns
            load.send(1)
            load.stop()  # waits for the acknowledgement
            acknowledged = time.monotonic()

            def is_visible(expected: int = seen + 1) -> bool:
                row = connection.execute(f"SELECT count(*) FROM {delivery.table}".encode()).fetchone()
                return row == (expected,)

            wait_until(is_visible, linger_seconds + 5, "the record in the table", every_seconds=0.005)
            latencies.append(time.monotonic() - acknowledged)
    assert max(latencies) < linger_seconds + MARGIN_SECONDS, latencies
