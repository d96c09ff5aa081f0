"""Brokers of one's own behind proxies that read Kafka's frames, and a PostgreSQL behind one that reads its messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.brokers import Brokers

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


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
