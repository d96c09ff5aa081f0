"""Brokers of one's own behind proxies that read Kafka's frames, and a PostgreSQL behind one that reads its messages."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.faults.brokers import Brokers
from tests.faults.postgres_wire import PostgresWire
from tests.faults.stage import HONEST, Stage
from tests.fix_postgres import database_on

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
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
    yield from as_new(broker_of_module)


@pytest.fixture(scope="module")
def two_brokers_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Brokers]:
    """The cluster behind `two_brokers`."""
    with Brokers(tmp_path_factory.mktemp("brokers"), 2) as brokers:
        yield brokers


@pytest.fixture
def two_brokers(two_brokers_of_module: Brokers) -> Iterator[Brokers]:
    """Two brokers and a controller apart, this module's own: a test may kill them, the next finds them running."""
    yield from as_new(two_brokers_of_module)


def as_new(brokers: Brokers) -> Iterator[Brokers]:
    """Give a cluster of which all brokers run, and take back what the test has told its proxies."""
    brokers.start()
    yield brokers
    for wire in brokers.wires:
        wire.clear()


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
def own_postgres_wire(own_postgres: Postgres) -> Iterator[PostgresWire]:
    """A proxy before a server that the test may stop and kill."""
    with postgres_wire_to(own_postgres.dsn) as wire:
        yield wire


class MakeStage(Protocol):
    """Makes stages, one after the other, on the same servers."""

    def __call__(self, *, of_two: bool = False, program: Sequence[str] = HONEST) -> Stage:
        """`of_two`: with two brokers; they start when they are first wanted."""


@pytest.fixture
def make_stage(
    own_postgres: Postgres, own_postgres_wire: PostgresWire, make_daemon: MakeDaemon, request: pytest.FixtureRequest
) -> Iterator[MakeStage]:
    """Make stages with brokers and a PostgreSQL of the test's own, each behind its proxy; each has its database."""
    with ExitStack() as opened:

        def make(*, of_two: bool = False, program: Sequence[str] = HONEST) -> Stage:
            brokers: Brokers = request.getfixturevalue("two_brokers" if of_two else "broker")
            dsn = opened.enter_context(database_on(own_postgres))
            stage = Stage(brokers, dsn, own_postgres_wire, make_daemon, own_postgres, program)
            opened.callback(stage.clear)
            return stage

        yield make


@pytest.fixture
def stage(make_stage: MakeStage) -> Stage:
    """One broker and one PostgreSQL of the test's own, each behind its proxy, and the honest daemon."""
    return make_stage()


@pytest.fixture
def stage_of_two(make_stage: MakeStage) -> Stage:
    """A stage whose topic has two replicas."""
    return make_stage(of_two=True)
