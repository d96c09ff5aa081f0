"""A disk that is full: the daemon waits, loses nothing, and goes on when there is room again.

A real one: PostgreSQL has the table in a tablespace on a small file system (tmpfs). Only root may mount that, so this
is no part of `make test`; where it cannot be mounted it fails, and says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fix_daemon import wait_until
from tests.fix_load import TABLE, Delivery
from tests.fix_postgres import small_disk_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from kbatchd.devstack.postgres import Postgres
    from tests.fix_daemon import MakeDaemon
    from tests.fix_kafka import MakeTopic

DISK_BYTES = 8 * 1_048_576
LEFT_BYTES = 262_144
RECORDS = 40_000


@pytest.fixture
def small_disk(own_postgres: Postgres) -> Iterator[Path]:
    """A file system of 8 MB that belongs to the server's user."""
    with small_disk_of(own_postgres, DISK_BYTES) as disk:
        yield disk


@pytest.mark.soak
def test_a_full_disk(
    kafka: Kafka | GivenKafka, make_daemon: MakeDaemon, make_topic: MakeTopic, small_disk: Path, own_database: str
) -> None:
    delivery = Delivery(kafka.bootstrap_servers, make_topic(2), 2, own_database, "public.numbered")
    delivery.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    delivery.execute(f"{TABLE.format(delivery.table)} TABLESPACE small")
    daemon = make_daemon(delivery.route, postgres={"dsn": own_database}).start()
    daemon.wait_ready()
    workers = daemon.workers()
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        file.truncate(DISK_BYTES - LEFT_BYTES)
        file.write(bytes(DISK_BYTES - LEFT_BYTES))
    delivery.send(RECORDS)
    daemon.wait_for_log("No space left on device", 30, count=2)
    assert daemon.logged("action=retry")
    stuck = delivery.rows()
    assert stuck < RECORDS
    # It goes on trying, and holds on to what it has.
    daemon.wait_for_log("action=retry", 30, count=4)
    assert daemon.workers() == workers
    assert not daemon.logged("ERROR")
    filler.unlink()
    wait_until(lambda: delivery.rows() == RECORDS, 60, "all rows, now that there is room")
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert daemon.workers() == workers
    assert daemon.stop() == 0
    delivery.execute("DROP TABLE public.numbered")
    delivery.execute("DROP TABLESPACE small")
