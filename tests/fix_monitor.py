"""A daemon with a monitor, and a client of it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fix_daemon import Daemon, MakeDaemon, wait_until
from tests.fix_http import Client, start_listening, wait_listening

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from prometheus_client import Metric


class Monitor:
    """What a daemon's monitor says."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.client = Client(port, timeout_seconds=30.0)

    def status(self) -> Any:
        """The whole status."""
        return self.client.request("GET", "/status.json").json

    def metrics(self) -> dict[tuple[str, tuple[str, ...]], float]:
        """Each sample's value, by name and the values of its labels."""
        return {
            (sample.name, tuple(sample.labels.values())): sample.value
            for family in self.families()
            for sample in family.samples
        }

    def families(self) -> list[Metric]:
        reply = self.client.request("GET", "/metrics")
        assert reply.status == 200
        return list(text_string_to_metric_families(reply.body.decode()))

    def wait_for(self, sample: str, labels: tuple[str, ...], value: float, seconds: float = 20.0) -> None:
        """Wait until a metric has a value."""
        wait_until(lambda: self.metrics().get((sample, labels)) == value, seconds, f"{sample}{labels} = {value}", 0.2)

    def wait_ready(self, seconds: float = 20.0) -> None:
        """Wait until /health/ready says yes."""
        wait_until(lambda: self.answers("/health/ready"), seconds, "readiness", 0.1)

    def answers(self, path: str = "/health/live") -> bool:
        """Whether it says 200 on a new connection."""
        self.client.close()
        try:
            return self.client.request("GET", path).status == 200
        except OSError:
            return False


class MakeMonitored(Protocol):
    """Starts a daemon with a monitor."""

    def __call__(self, *routes: Mapping[str, object], **tables: Mapping[str, object]) -> tuple[Daemon, Monitor]:
        """Return the daemon, ready, and its monitor, which listens; `monitor` are more keys of [monitor]."""


@pytest.fixture
def make_monitored(make_daemon: MakeDaemon) -> Iterator[MakeMonitored]:
    """Make daemons with a monitor, on free ports."""
    with ExitStack() as clients:

        def make(*routes: Mapping[str, object], **tables: Mapping[str, object]) -> tuple[Daemon, Monitor]:
            daemon, port = start_listening(make_daemon, "monitor", routes, tables)
            wait_listening(port)
            made = Monitor(port)
            clients.callback(made.client.close)
            return daemon, made

        yield make
