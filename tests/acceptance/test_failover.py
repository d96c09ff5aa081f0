"""PostgreSQL fails over at 3 a.m.: the primary is gone with its last commits, the standby becomes the primary.

A real primary and a real streaming standby. The standby lacks what was committed last, so progress goes back (rule 3);
with the rows it goes, and both are read again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.acceptance.test_outages import RETURN_SECONDS, assert_first_commit_within
from tests.faults.copies import Standby
from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_load import new_delivery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from kbatchd.devstack.postgres import Postgres
    from tests.fix_kafka import MakeTopic

PARTITIONS = 4
PER_SECOND = 8_000


@pytest.fixture
def standby(own_database: str) -> Iterator[Standby]:
    """A standby of the server that has this database."""
    with Standby(own_database) as server:
        yield server


def test_a_failover_that_loses_the_last_commits(
    kafka: Kafka | GivenKafka,
    own_postgres: Postgres,
    own_database: str,
    standby: Standby,
    make_topic: MakeTopic,
    make_daemon: MakeDaemon,
) -> None:
    # Given: a daemon that knows both servers.
    before = new_delivery(kafka.bootstrap_servers, make_topic(PARTITIONS), PARTITIONS, own_database)
    after = replace(before, dsn=make_conninfo(standby.dsn, dbname=conninfo_to_dict(own_database)["dbname"]))
    wait_until(lambda: after.query("SELECT to_regclass(%s)::text", before.table) != [(None,)], 10, "the table there")
    both = [conninfo_to_dict(delivery.dsn) for delivery in (after, before)]  # the standby first: it must be passed over
    hosts = ",".join(f"{server['host']}:{server['port']}" for server in both)
    daemon = make_daemon(
        before.route,
        postgres={"dsn": f"postgresql://{both[0]['user']}@{hosts}/{both[0]['dbname']}"},
        batch={"linger_seconds": 0.1},
    ).start()
    daemon.wait_ready()
    workers = daemon.workers()

    # When: the standby falls behind, the primary dies, and the standby takes over.
    with before.load(PER_SECOND):
        wait_until(lambda: before.rows() > PER_SECOND, 15, "rows before the failover")
        wait_until(lambda: after.rows() > 0, 10, "rows on the standby")
        standby.cut_off()
        kept = after.progress()
        wait_until(
            lambda: (
                before.progress().keys() == kept.keys()
                and all(offset > kept[number] for number, offset in before.progress().items())
            ),
            10,
            "commits that the standby does not have",
        )
        own_postgres.kill()
        daemon.wait_for_log("action=postgres_wait")
        standby.promote()
        [(promoted_at,)] = after.query("SELECT extract(epoch FROM clock_timestamp())::float8")
        assert isinstance(promoted_at, float)
        assert_first_commit_within(after, RETURN_SECONDS, promoted_at)
    after.wait_drained()

    # Then: the table on the new primary is the topic; nobody had to restart anything.
    after.assert_exactly_once()
    assert daemon.workers() == workers
    assert daemon.stop() == 0
