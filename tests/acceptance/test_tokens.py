"""Who may send: holders of a token, which is replaced while they send, and web pages of the origins that are listed."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.fix_daemon import wait_until
from tests.fix_http import Client, MakeGateway, Reply, free_port
from tests.fix_load import read_topic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_kafka import MakeTopic

OLD, NEW, LIMITED = "old-9f86d081884c7d65", "new-2c26b46b68ffc68f", "limited-fcde2b2edba5"
LISTED, UNLISTED = "https://app.example.com", "https://evil.example.com"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    write(path, f"{OLD}\n")
    return path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Put the file in its place whole, as an operator should."""
    new = path.with_name("tokens.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    new.chmod(mode)
    new.rename(path)


@pytest.fixture
def route(database: str, make_topic: MakeTopic) -> dict[str, object]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.orders (id bigint NOT NULL)")
    return {"topic": make_topic(1), "table": "public.orders", "name": "orders"}


def post(client: Client, token: str | None, path: str = "/v1/orders") -> Reply:
    return client.post(path, b'{"id":1}', **({} if token is None else {"authorization": f"Bearer {token}"}))


def test_token_is_needed_and_is_for_its_routes(
    path: Path, route: dict[str, object], make_gateway: MakeGateway, kafka: Kafka | GivenKafka
) -> None:
    write(path, f"{OLD}\n{LIMITED} refunds\n")
    _, client = make_gateway(route, gateway={"tokens_file": str(path)})
    assert post(client, OLD).status == HTTPStatus.ACCEPTED
    for token, status, kind in (
        (None, 401, "unauthorized"),
        ("unknown-0123456789", 401, "unauthorized"),
        (LIMITED, 403, "forbidden"),
    ):
        reply = post(client, token)
        assert (reply.status, reply.json["type"]) == (status, f"/problems/{kind}")
        assert (reply.headers.get("www-authenticate") == "Bearer") == (status == 401)
    assert client.request("GET", "/openapi.json").json["security"] == [{"bearer": []}]
    assert len(read_topic(kafka.bootstrap_servers, str(route["topic"]))) == 1


class Sender(threading.Thread):
    """Sends one record after the other, with the token of the moment, until told to stop."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.token = OLD
        self.sent = 0
        self.failed: list[int] = []
        self.stopping = threading.Event()
        self._port = port

    def run(self) -> None:
        with Client(self._port) as client:
            while not self.stopping.is_set():
                status = post(client, self.token).status
                if status == HTTPStatus.ACCEPTED:
                    self.sent += 1
                elif status != HTTPStatus.SERVICE_UNAVAILABLE:  # that is a broker that is held up, no fault of a token
                    self.failed.append(status)


@contextmanager
def sending(port: int, count: int) -> Iterator[list[Sender]]:
    senders = [Sender(port) for _ in range(count)]
    for sender in senders:
        sender.start()
    try:
        yield senders
    finally:
        for sender in senders:
            sender.stopping.set()
        for sender in senders:
            sender.join()


def reload(daemon: Daemon, action: str, count: int) -> None:
    """Tell the supervisor; it tells both gateways."""
    before = len(daemon.logged(f"action={action}"))
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log(f"action={action}", count=before + count)


def test_token_is_replaced_under_load_without_a_failed_request(
    path: Path, route: dict[str, object], make_gateway: MakeGateway
) -> None:
    daemon, client = make_gateway(route, gateway={"tokens_file": str(path), "workers": 2})
    assert len(daemon.gateways()) == 2

    with sending(client.port, count=8) as senders:

        def all_send_more() -> None:
            goals = [(sender, sender.sent + 20) for sender in senders]
            wait_until(lambda: all(sender.sent >= goal for sender, goal in goals), 30, "20 more requests of each")

        all_send_more()
        # When the new token is there as well
        write(path, f"{OLD}\n{NEW}\n")
        reload(daemon, "tokens_read", 2)
        # and then everybody uses it,
        for sender in senders:
            sender.token = NEW
        all_send_more()
        # the old one can go;
        write(path, f"{NEW}\n")
        reload(daemon, "tokens_read", 2)
        all_send_more()
        # and a mistake in the file is only logged.
        for text, mode in ((f"{OLD}\n", 0o644), ("short\n", 0o600), ("", 0o600)):
            write(path, text, mode)
            reload(daemon, "tokens_kept", 2)
        all_send_more()

    assert [sender.failed for sender in senders] == [[]] * 8
    # Sixteen connections: the kernel spreads them over both gateways.
    for _ in range(16):
        with Client(client.port) as fresh:
            assert (post(fresh, OLD).status, post(fresh, NEW).status) == (401, 202)
    assert daemon.stop() == 0


@pytest.mark.parametrize(("text", "mode", "fault"), [(f"{OLD}\n", 0o644, "mode 0644"), ("short\n", 0o600, "line 1")])
def test_wrong_file_ends_the_start(
    path: Path, route: dict[str, object], make_daemon: MakeDaemon, text: str, mode: int, fault: str
) -> None:
    write(path, text, mode)
    gateway = {"listen": f"127.0.0.1:{free_port()}", "tokens_file": str(path)}
    daemon = make_daemon(route, gateway=gateway).start()
    assert daemon.wait(60) == 78
    assert any("tokens_file" in line for line in daemon.logged(fault))
    assert not daemon.logged("short")


def preflight(client: Client, origin: str) -> Reply:
    return client.request(
        "OPTIONS",
        "/v1/orders",
        origin=origin,
        access_control_request_method="POST",
        access_control_request_headers="authorization,content-type",
    )


def allowed(reply: Reply) -> str | None:
    assert "access-control-allow-credentials" not in reply.headers, "tokens only, never cookies"
    return reply.headers.get("access-control-allow-origin")


def test_pages_of_listed_origins_may_send(path: Path, route: dict[str, object], make_gateway: MakeGateway) -> None:
    _, client = make_gateway(route, gateway={"tokens_file": str(path), "cors_origins": [LISTED]})
    asked = preflight(client, LISTED)  # without a token: a browser sends none
    assert (asked.status, allowed(asked), asked.body) == (204, LISTED, b"")
    assert asked.headers["access-control-allow-methods"] == "POST"
    names = asked.headers["access-control-allow-headers"].split(", ")
    assert {"authorization", "content-type", "content-encoding", "record-key", "idempotency-key", "prefer"} <= {*names}
    for token, status in (OLD, 202), (None, 401):
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        reply = client.post("/v1/orders", b'{"id":1}', origin=LISTED, **headers)
        assert (reply.status, allowed(reply), reply.headers["vary"]) == (status, LISTED, "origin")
    for origin in (UNLISTED, f"{LISTED}.evil.example", "http://app.example.com", "null", "*"):
        assert allowed(preflight(client, origin)) is None
        reply = client.post("/v1/orders", b'{"id":1}', origin=origin, authorization=f"Bearer {OLD}")
        assert (reply.status, allowed(reply), reply.headers["vary"]) == (403, None, "origin")


def test_any_origin_where_all_are_listed(route: dict[str, object], make_gateway: MakeGateway) -> None:
    _, client = make_gateway(route, gateway={"cors_origins": ["*"]})
    assert allowed(preflight(client, UNLISTED)) == "*"
    assert allowed(client.post("/v1/orders", b'{"id":1}', origin=UNLISTED)) == "*"


def test_no_origin_unless_listed(route: dict[str, object], make_gateway: MakeGateway) -> None:
    _, client = make_gateway(route)
    asked = preflight(client, LISTED)
    assert (asked.status, allowed(asked)) == (204, None)
    assert not {name for name in asked.headers if name.startswith("access-control-")}
    reply = client.post("/v1/orders", b'{"id":1}', origin=LISTED)
    assert (reply.status, allowed(reply)) == (403, None)
