"""Brokers of one's own behind proxies that read Kafka's frames, and a PostgreSQL behind one that reads its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.faults.brokers import Brokers
from tests.faults.postgres_wire import PostgresWire
from tests.faults.stage import Stage

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from kbatchd.devstack.postgres import Postgres
    from tests.fix_daemon import MakeDaemon


def postgres_wire_to(dsn: str) -> PostgresWire:
    """Open a proxy before the server of a DSN."""
    return PostgresWire(int(str(conninfo_to_dict(dsn)["port"])))


def through(wire: PostgresWire, dsn: str) -> str:
    """Return the DSN that leads through the proxy."""
    return make_conninfo(dsn, host="127.0.0.1", port=wire.port)


@pytest.fixture(scope="module")
def broker_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """The cluster behind `broker`."""
    with Brokers(tmp_path_factory.mktemp("broker")) as brokers:
        yield brokers


@pytest.fixture
def broker(broker_of_module: Brokers) -> Iterator[Brokers]:
    """One broker behind a proxy, this module's own: `broker.wire` takes rules, which end with the test."""
    broker_of_module.start()
    yield broker_of_module
    for wire in broker_of_module.wires:
        wire.clear()


@pytest.fixture
def two_brokers(tmp_path: Path) -> Iterator[Brokers]:
    """Two brokers and a controller apart."""
    with Brokers(tmp_path / "brokers", 2) as brokers:
        yield brokers


@pytest.fixture
def three_brokers(tmp_path: Path) -> Iterator[Brokers]:
    """Three brokers and a controller apart."""
    with Brokers(tmp_path / "brokers", 3) as brokers:
        yield brokers


@pytest.fixture
def postgres_wire(database: str) -> Iterator[PostgresWire]:
    """A proxy before the shared PostgreSQL, for this test's database: `through(wire, database)` leads there."""
    with postgres_wire_to(database) as wire:
        yield wire


@pytest.fixture
def own_postgres_wire(own_database: str) -> Iterator[PostgresWire]:
    """A proxy before a server that the test may stop and kill."""
    with postgres_wire_to(own_database) as wire:
        yield wire


@pytest.fixture
def stage(
    broker: Brokers,
    own_postgres: Postgres,
    own_database: str,
    own_postgres_wire: PostgresWire,
    make_daemon: MakeDaemon,
) -> Stage:
    """One broker and one PostgreSQL of the test's own, each behind its proxy, and the honest daemon."""
    return Stage(broker, own_database, own_postgres_wire, make_daemon, own_postgres)


@pytest.fixture
def stage_of_two(
    two_brokers: Brokers,
    own_postgres: Postgres,
    own_database: str,
    own_postgres_wire: PostgresWire,
    make_daemon: MakeDaemon,
) -> Stage:
    """A stage whose topic has two replicas."""
    return Stage(two_brokers, own_database, own_postgres_wire, make_daemon, own_postgres)
