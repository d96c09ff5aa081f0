"""Whose web pages may send: the gateway's own and those that are listed, but none under a foreign name.

What a real browser does of itself is in tests/browser/test_foreign_page.py.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from kbatchd.gateway.origins import Origins
from tests.fix_load import read_topic
from tests.serving import read_answers

if TYPE_CHECKING:
    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_http import Client, MakeGateway
    from tests.fix_load import Delivery
    from tests.fix_monitor import MakeMonitored

LISTED = "https://app.example.com"
RECORD = b'{"id":1}'


def own(client: Client) -> str:
    return f"http://127.0.0.1:{client.port}"


#: Where a page's request comes from, and whether it is taken. OWN is the gateway's own origin.
SENDERS: list[tuple[dict[str, str], bool]] = [
    ({}, True),  # no browser
    ({"origin": "OWN"}, True),
    ({"origin": "OWN", "sec_fetch_site": "same-origin"}, True),
    ({"sec_fetch_site": "none"}, True),
    (
        {"origin": "https://proxy.example", "sec_fetch_site": "same-origin"},
        True,
    ),  # behind a proxy of that name
    ({"origin": "https://evil.example"}, False),
    ({"origin": "null"}, False),  # a file, a frame in a sandbox
    ({"origin": ""}, False),
    ({"origin": "http://127.0.0.1:1"}, False),  # another port
    ({"origin": "OWN0"}, False),
    ({"origin": "ftp://127.0.0.1"}, False),
    ({"origin": "http://localhost"}, False),
    ({"sec_fetch_site": "cross-site"}, False),
    ({"sec_fetch_site": "same-site"}, False),  # another port of this host
    ({"sec_fetch_site": "whatever"}, False),
    ({"origin": "OWN", "sec_fetch_site": "cross-site"}, False),
    ({"origin": "https://evil.example", "sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}, False),
    ({"origin": LISTED}, False),  # nothing is listed here
]


def test_only_our_own_pages_may_send(
    orders: Client, orders_topic: str, kafka: Kafka | GivenKafka, subtests: pytest.Subtests
) -> None:
    taken = 0
    for given, allowed in SENDERS:
        headers = {name: value.replace("OWN", own(orders)) for name, value in given.items()}
        with subtests.test(**headers):
            for kind in ("application/json", "text/plain"):
                reply = orders.post("/v1/orders", RECORD, content_type=kind, **headers)
                expected = (415 if kind == "text/plain" else 202) if allowed else 403
                assert reply.status == expected
            reply = orders.request("POST", "/v1/orders", RECORD, **headers)  # without a type, as sendBeacon does
            assert reply.status == (202 if allowed else 403)
            assert allowed or reply.json["type"] == "/problems/foreign-origin"
            for method, path in (("PUT", "/v1/orders"), ("DELETE", "/v1/orders"), ("POST", "/docs"), ("POST", "/none")):
                reply = orders.request(method, path, b"", **headers)
                assert (reply.status == 403) is not allowed
            for path in ("/docs", "/openapi.json"):
                assert orders.request("GET", path, None, **headers).status == 200, "another site may link to a page"
            asked = orders.request("OPTIONS", "/v1/orders", None, access_control_request_method="POST", **headers)
            assert not {name for name in asked.headers if name.startswith("access-control-")}
            taken += 2 * allowed
    assert len(read_topic(kafka.bootstrap_servers, orders_topic)) == taken


def test_listed_pages_may_send(orders_topic: str, make_gateway: MakeGateway) -> None:
    _, client = make_gateway(
        {"topic": orders_topic, "table": "public.orders", "name": "orders"}, gateway={"cors_origins": [LISTED]}
    )
    for origin, status in ((LISTED, 202), (f"{LISTED}.evil.example", 403), ("http://app.example.com", 403)):
        reply = client.post("/v1/orders", RECORD, origin=origin, sec_fetch_site="cross-site")
        assert reply.status == status
        assert reply.headers.get("access-control-allow-origin") == (origin if status == 202 else None)


def test_each_of_pipelined_requests_is_looked_at(orders: Client, orders_topic: str, kafka: Kafka | GivenKafka) -> None:
    def request(*headers: str) -> bytes:
        fields = "".join(f"{header}\r\n" for header in headers)
        return f"POST /v1/orders HTTP/1.1\r\n{fields}Content-Length: 8\r\n\r\n".encode() + RECORD

    sent = [
        request("Host: localhost"),
        request("Host: localhost", "Origin: https://evil.example"),
        request("Host: evil.example"),
        request("Host: localhost", f"Origin: http://localhost:{orders.port}"),
        request(f"Host: localhost:{orders.port}", f"Origin: http://localhost:{orders.port}"),
        request("Host: localhost", "Origin: http://localhost", "Origin: https://evil.example"),
    ]
    with socket.create_connection(("127.0.0.1", orders.port), timeout=20) as connection:
        connection.sendall(b"".join(sent))
        found = [answer.status for answer in read_answers(connection, len(sent))]
    assert found == [202, 403, 403, 403, 202, 400]
    assert len(read_topic(kafka.bootstrap_servers, orders_topic)) == 2


def test_a_foreign_name_is_refused_on_loopback(orders: Client, orders_topic: str, kafka: Kafka | GivenKafka) -> None:
    """A page whose name has been resolved to this host passes for the gateway's own, but for that name."""
    evil = f"attacker.example:{orders.port}"
    for method, path in (("POST", "/v1/orders"), ("GET", "/docs"), ("GET", "/openapi.json"), ("OPTIONS", "/v1/orders")):
        for origin in ({}, {"origin": f"http://{evil}"}):
            reply = orders.request(method, path, RECORD if method == "POST" else None, host=evil, **origin)
            assert (reply.status, reply.json["type"]) == (403, "/problems/foreign-host")
    for host in ("localhost", "LOCALHOST:8080", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8080", ""):
        assert orders.post("/v1/orders", RECORD, host=host).status == 202
    for host in ("127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[::2]", "0.0.0.0"):
        assert orders.post("/v1/orders", RECORD, host=host).status == 403
    assert len(read_topic(kafka.bootstrap_servers, orders_topic)) == 7


def test_names_of_a_proxy_are_listed(orders_topic: str, make_gateway: MakeGateway) -> None:
    _, client = make_gateway(
        {"topic": orders_topic, "table": "public.orders", "name": "orders"}, gateway={"hosts": ["Api.example.com"]}
    )
    for host, status in (
        ("api.example.com", 202),
        ("api.example.com:443", 202),
        ("localhost", 202),
        ("b.example", 403),
    ):
        assert client.post("/v1/orders", RECORD, host=host).status == status
    reply = client.post("/v1/orders", RECORD, host="api.example.com", origin="https://api.example.com")
    assert reply.status == 202, "the proxy's page is ours"


def test_what_listens_beyond_this_host_has_any_name() -> None:
    origins = Origins("0.0.0.0")
    assert origins.names_us({b"host": b"api.example.com"})
    assert not Origins("0.0.0.0", hosts=["a.example"]).names_us({b"host": b"b.example"})
    # With TLS a page that came without it is no page of ours.
    own = {b"host": b"a.example", b"origin": b"http://a.example"}
    assert origins.may_send(own)
    assert not Origins("0.0.0.0", tls=True).may_send(own)


def test_the_monitors_figures_are_not_for_foreign_pages(delivery: Delivery, make_monitored: MakeMonitored) -> None:
    _, monitor = make_monitored(delivery.route)
    ask = monitor.client.request
    foreign = {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"}
    for path in ("/metrics", "/status.json", "/history.json", "/day.json", "/health/ready", "/health/live"):
        assert ask("GET", path, None, **foreign).status == 403
        assert ask("GET", path, origin="https://evil.example").status == 403
        assert ask("GET", path, sec_fetch_site="cross-site", sec_fetch_mode="navigate").status != 403, "a link"
        assert ask("GET", path, sec_fetch_site="same-origin", sec_fetch_mode="cors").status != 403, "the page itself"
        assert ask("GET", path, host="attacker.example").status == 403
    assert ask("GET", "/", None, **foreign).status == 200
