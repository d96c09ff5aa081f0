"""A gateway's client for tests: plain requests over a real connection, and a free port to listen on."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import psycopg
import pytest

from kbatchd.devstack.process import free_ports
from tests.fix_daemon import Daemon, MakeDaemon, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from tests.fix_kafka import MakeTopic


def free_port() -> int:
    """Return a port that nobody listens on now, and that no client is given before somebody does."""
    return free_ports(1)[0]


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection to a gateway; it is made again when the server has closed it."""

    def __init__(self, port: int, timeout_seconds: float = 60.0) -> None:
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """Send a request; underscores in the headers' names are hyphens."""
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        self._connection.request(method, path, body, names)
        response = self._connection.getresponse()
        return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def post(self, path: str, body: bytes, **headers: str) -> Reply:
        """Post a body, JSON if nothing else is said."""
        return self.request("POST", path, body, **{"content_type": "application/json", **headers})

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def wait_listening(port: int, seconds: float = 30.0) -> None:
    """Return when somebody accepts connections on the port."""

    def accepts() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    wait_until(accepts, seconds, f"a listener on port {port}")


def start_listening(
    make_daemon: MakeDaemon,
    table: str,
    routes: Iterable[Mapping[str, object]],
    tables: Mapping[str, Mapping[str, object]],
) -> tuple[Daemon, int]:
    """Start a daemon with this table, [gateway] or [monitor], on a free port; return both, the daemon ready."""
    port = free_port()
    tables = {**tables, table: {"listen": f"127.0.0.1:{port}", **tables.get(table, {})}}
    daemon = make_daemon(*routes, config=None, **tables).start()  # type: ignore[arg-type]  # no "program" in it
    daemon.wait_ready()
    return daemon, port


class MakeGateway(Protocol):
    """Starts a daemon with a gateway."""

    def __call__(self, *routes: Mapping[str, object], **tables: Mapping[str, object]) -> tuple[Daemon, Client]:
        """Return the daemon, ready, and a client of its gateway; `gateway` are more keys of [gateway]."""


@pytest.fixture
def make_gateway(make_daemon: MakeDaemon) -> Iterator[MakeGateway]:
    """Make daemons with a gateway, on free ports."""
    with ExitStack() as clients:

        def make(*routes: Mapping[str, object], **tables: Mapping[str, object]) -> tuple[Daemon, Client]:
            daemon, port = start_listening(make_daemon, "gateway", routes, tables)
            return daemon, clients.enter_context(Client(port))

        yield make


@pytest.fixture
def orders_topic(database: str, make_topic: MakeTopic) -> str:
    """A topic for the table public.orders."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.orders (id bigint NOT NULL)")
    return make_topic(1)


@pytest.fixture
def orders(orders_topic: str, make_gateway: MakeGateway) -> Client:
    """A client of a gateway with the route `orders` and no other key."""
    _, client = make_gateway({"topic": orders_topic, "table": "public.orders", "name": "orders"})
    return client
