"""What a client of the gateway sends, what it is answered, and what is in Kafka and in the table then."""

from __future__ import annotations

import gzip
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
import zstandard

from tests.fix_daemon import wait_until
from tests.fix_http import Client, MakeGateway
from tests.fix_load import read_topic

if TYPE_CHECKING:
    from confluent_kafka import Message

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_kafka import MakeTopic

TABLE = """
CREATE TABLE public.orders (
    id bigint NOT NULL, customer text, amount numeric(10,2), at timestamptz, more jsonb, CHECK (amount >= 0)
)
"""

GOOD = b'{"id": 1, "customer": "Ada",  "amount": 12.50, "at": "2026-01-31T08:00:00Z", "more": {"a": [1, {"b": 2}]}}'


@dataclass(frozen=True, slots=True)
class Shop:
    """A route with a gateway before it."""

    client: Client
    topic: str
    dsn: str
    bootstrap_servers: str

    @property
    def path(self) -> str:
        return f"/v1/{self.topic}"

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement.encode()).fetchall()

    def records(self) -> list[Message]:
        return read_topic(self.bootstrap_servers, self.topic)

    def values(self) -> list[bytes]:
        return [record.value() or b"" for record in self.records()]


@pytest.fixture
def shop(kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_gateway: MakeGateway) -> Shop:
    """An order's way in."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.encode())
    topic = make_topic(1)
    route = {"topic": topic, "table": "public.orders", "key_field": "customer"}
    _, client = make_gateway(route, gateway={"max_body_bytes": 1_000_000})
    return Shop(client, topic, database, kafka.bootstrap_servers)


def test_it_listens_when_it_can_take_requests(database: str, make_topic: MakeTopic, make_gateway: MakeGateway) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.encode())
    topic = make_topic(1)
    daemon, client = make_gateway({"topic": topic, "table": "public.orders"})
    assert client.post(f"/v1/{topic}", GOOD).status == HTTPStatus.ACCEPTED, "the first request of all"
    # The first ones: a broker that is held up may be lost, and found again.
    connected = next(number for number, line in enumerate(daemon.lines()) if "action=kafka_up" in line)
    listening = next(number for number, line in enumerate(daemon.lines()) if "action=gateway_listening" in line)
    assert connected < listening


def test_one_record(shop: Shop) -> None:
    reply = shop.client.post(shop.path, b"  " + GOOD + b"\n")
    assert reply.status == HTTPStatus.ACCEPTED
    assert reply.json == {"topic": shop.topic, "partition": 0, "offset": 0}
    assert reply.headers["content-type"] == "application/json"
    [record] = shop.records()
    assert record.value() == GOOD, "the very bytes that were sent"
    assert record.key() == b"Ada"
    wait_until(lambda: shop.query("SELECT id, customer FROM public.orders") == [(1, "Ada")], 10, "the row")


@pytest.mark.parametrize("kind", ["application/json", "application/x-ndjson; charset=utf-8"])
def test_many_records(shop: Shop, kind: str) -> None:
    records = [b'{"id":%d,"more":{"deep":[{"x":1},{"y":"},{"}]}}' % number for number in range(1200)]
    body = b"[ " + b" , ".join(records) + b" ]" if kind == "application/json" else b"\r\n".join(records) + b"\n\n"
    packed = {"": body, "gzip": gzip.compress(body), "zstd": zstandard.compress(body)}
    for number, (encoding, sent) in enumerate(packed.items()):
        headers = {"content_encoding": encoding} if encoding else {}
        reply = shop.client.post(shop.path, sent, content_type=kind, **headers)
        assert reply.status == HTTPStatus.ACCEPTED
        first = number * 1200
        assert reply.json == {
            "count": 1200,
            "ranges": [{"topic": shop.topic, "partition": 0, "first_offset": first, "last_offset": first + 1199}],
        }
    assert shop.values() == records * 3


def test_an_empty_list_sends_nothing(shop: Shop) -> None:
    for body, kind in ((b"[]", "application/json"), (b"\n\n", "application/x-ndjson")):
        reply = shop.client.post(shop.path, body, content_type=kind)
        assert (reply.status, reply.json) == (202, {"count": 0, "ranges": []})


def test_what_does_not_fit_is_named_and_nothing_is_sent(shop: Shop) -> None:
    body = b'{"id":1}\n\n{"id":"x"}\n{"id":3,"amount":true}\nnonsense\n{"id":5,"at":"yesterday"}\n{"id":6}'
    reply = shop.client.post(shop.path, body, content_type="application/x-ndjson")
    assert reply.status == HTTPStatus.UNPROCESSABLE_ENTITY
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json["type"] == "/problems/refused"
    assert [(error["line"], error["column"], error["code"]) for error in reply.json["errors"]] == [
        (3, "id", "wrong_type"),
        (4, "amount", "wrong_type"),
        (5, None, "not_json"),
        (6, "at", "not_a_timestamp"),
    ]
    assert all(error["reason"] for error in reply.json["errors"])
    assert not shop.values()


def test_a_refusal_names_the_fields_and_all_that_is_wrong(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_gateway: MakeGateway
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "CREATE TABLE public.orders (id bigint NOT NULL, order_ int, city text NOT NULL, sku text, at timestamptz)"
        )
    topic = make_topic(1)
    columns = {"order_": "order", "city": "customer.city", "sku": "items[0].sku", "at": {"field": "ts", "unit": "ms"}}
    route = {"topic": topic, "table": "public.orders", "columns": columns, "unknown_fields": "reject"}
    _, client = make_gateway(
        {**route, "name": "plain", "key_field": "id"}, {**route, "name": "enveloped", "value_field": "payload"}
    )

    def errors(path: str, body: bytes) -> list[tuple[object, ...]]:
        reply = client.post(path, body)
        assert reply.status == HTTPStatus.UNPROCESSABLE_ENTITY
        return [tuple(error[name] for name in ("line", "field", "column", "code")) for error in reply.json["errors"]]

    assert errors("/v1/plain", b'{"id":1,"order":"x","customer":{"city":"Rome"}}') == [
        (1, "order", "order_", "wrong_type")
    ]
    body = (
        b'[{"id":1,"customer":{"city":"Rome"}},{"id":true,"order":1.5,"items":[{"sku":7}],"ts":"x","more":0,"and":1}]'
    )
    found = errors("/v1/plain", body)
    assert {line for line, *_ in found} == {2}
    assert {(field, column) for _, field, column, _ in found} == {
        ("id", "id"),
        ("order", "order_"),
        ("customer.city", "city"),
        ("items[0].sku", "sku"),
        ("ts", "at"),
        ("more", None),
        ("and", None),
    }
    found = errors("/v1/enveloped", b'{"payload":{"id":1,"order":"x","customer":{}}}')
    assert {(field, column) for _, field, column, _ in found} == {
        ("payload.order", "order_"),
        ("payload.customer.city", "city"),
    }
    # Wrong as a whole: one fault.
    assert errors("/v1/enveloped", b'{"payload":[]}') == [(1, None, None, "not_object")]
    # Of many records all are named; of the first hundred with all their faults.
    lines = errors("/v1/plain", b"[%b]" % b",".join([b'{"id":1,"order":"x"}'] * 150))
    assert len(lines) == 2 * 100 + 50
    assert not read_topic(kafka.bootstrap_servers, topic)


BAD_BODIES: list[tuple[bytes, dict[str, str], int, str]] = [
    (b'{"id":1', {}, 400, "malformed"),
    (b"[1,2", {}, 400, "malformed"),
    (b'[{"id":1},]', {}, 400, "malformed"),
    (b"", {}, 400, "malformed"),
    (b"3", {}, 400, "malformed"),
    (b"[3]", {}, 422, "refused"),
    (b"{}", {}, 422, "refused"),
    (b'{"id":1}', {"content_type": "application/x-www-form-urlencoded"}, 415, "content-type"),
    (b'{"id":1}', {"content_encoding": "br"}, 415, "content-encoding"),
    (b'{"id":1}', {"content_encoding": "gzip"}, 400, "malformed"),
    (gzip.compress(b" " * 1_000_001), {"content_encoding": "gzip"}, 413, "too-large"),
    (b" " * 1_000_001, {}, 413, "too-large"),
    (b'{"id":1,"customer":"%s"}' % (b"x" * 999_900), {"record_key": "k" * 200}, 413, "record-too-large"),
]


def test_bad_bodies(shop: Shop, subtests: pytest.Subtests) -> None:
    for number, (body, headers, status, kind) in enumerate(BAD_BODIES, 1):
        with subtests.test(body=body[:40], **headers):
            reply = shop.client.post(shop.path, body, **headers)
            assert (reply.status, reply.json["type"]) == (status, f"/problems/{kind}")
            assert reply.json["status"] == status
            assert shop.client.post(shop.path, b'{"id":7}').status == HTTPStatus.ACCEPTED, "the connection goes on"
            assert len(shop.values()) == number


def test_a_record_that_is_too_large_is_told_whose_limit_that_is(shop: Shop) -> None:
    body = b'{"id":1,"customer":"%s"}' % (b"x" * 999_900)
    reply = shop.client.post(shop.path, body, record_key="k")
    assert reply.json["detail"] == (
        f"a record of {len(body) + 1:,} bytes; kbatchd's own limit as a client of Kafka is 999,488: it is raised by "
        '"message.max.bytes" in [kafka.librdkafka], and the topic\'s max.message.bytes must allow it too; '
        "nothing was sent"
    )


def test_bad_requests(shop: Shop, subtests: pytest.Subtests) -> None:
    for method, path, status in [
        ("POST", "/v1/nowhere", 404),
        ("GET", "/", 404),
        ("GET", shop.path, 405),
        ("PUT", shop.path, 405),
        ("POST", f"{shop.path}?ack=x", 400),
    ]:
        with subtests.test(method=method, path=path):
            reply = shop.client.request(method, path, b"{}", content_type="application/json")
            assert reply.status == status
            assert reply.headers["content-type"] == "application/problem+json"
            assert ("allow" in reply.headers) == (status == HTTPStatus.METHOD_NOT_ALLOWED)


def test_key_and_headers_travel_with_the_record(shop: Shop) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    shop.client.post(shop.path, GOOD, record_key="k-1", idempotency_key='"8e03978e"', traceparent=trace)
    shop.client.post(shop.path, b'{"id":2,"customer":null}')
    first, second = shop.records()
    assert first.key() == b"k-1"
    assert first.headers() == [("idempotency-key", b'"8e03978e"'), ("traceparent", trace.encode())]
    assert (second.key(), second.headers()) == (None, None)


def test_ack_db_answers_when_the_row_is_there(shop: Shop) -> None:
    for number in range(20):
        reply = shop.client.post(f"{shop.path}?ack=db", b'{"id":%d}' % number)
        assert reply.status == HTTPStatus.OK
        assert shop.query(f"SELECT count(*) FROM public.orders WHERE id = {number}") == [(1,)]


def test_ack_db_tells_of_a_dead_letter(shop: Shop) -> None:
    # The door cannot know of a CHECK: PostgreSQL refuses the row.
    reply = shop.client.post(f"{shop.path}?ack=db", b'[{"id":1,"amount":1},{"id":2,"amount":-1}]')
    assert reply.status == HTTPStatus.UNPROCESSABLE_ENTITY
    [error] = reply.json["errors"]
    assert (error["partition"], error["offset"], error["code"]) == (0, 1, "23514")
    assert shop.query("SELECT id FROM public.orders") == [(1,)]


def test_a_retry_into_an_upsert_route_is_one_row(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_gateway: MakeGateway
) -> None:
    # The example of docs/gateway.md.
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.payments (request_id uuid PRIMARY KEY, amount numeric NOT NULL)")
    topic = make_topic(4)
    route = {"topic": topic, "table": "public.payments", "mode": "upsert", "key": ["request_id"], "insert_only": True}
    columns = {"request_id": {"source": "header:idempotency-key"}}
    _, client = make_gateway({**route, "columns": columns})
    shop = Shop(client, topic, database, kafka.bootstrap_servers)
    request = "5a1f0b52-3f5e-4d0e-9d0c-0b7b6d0e9a11"
    for _ in range(3):
        reply = client.post(f"{shop.path}?ack=db", b'{"amount":12.50}', idempotency_key=request, record_key=request)
        assert reply.status == HTTPStatus.OK
    assert len(shop.records()) == 3
    assert shop.query("SELECT request_id::text, amount::text FROM public.payments") == [(request, "12.50")]
    assert shop.query("SELECT count(*) FROM kbatchd.dead_letters") == [(0,)]


def test_a_wait_that_runs_out_is_202(database: str, make_topic: MakeTopic, make_gateway: MakeGateway) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.encode())
    topic = make_topic(1)
    _, client = make_gateway({"topic": topic, "table": "public.orders"}, batch={"linger_seconds": 20.0})
    reply = client.post(f"/v1/{topic}", GOOD, prefer="wait=1")
    assert (reply.status, reply.json["offset"]) == (202, 0)


def test_too_many_that_wait_for_the_table_are_429(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_gateway: MakeGateway
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.encode())
    topic = make_topic(1)
    route = {"topic": topic, "table": "public.orders"}
    _, client = make_gateway(route, gateway={"max_waiting_requests": 1})
    shop = Shop(client, topic, database, kafka.bootstrap_servers)
    with psycopg.connect(database) as blocker, Client(client.port) as other, ThreadPoolExecutor(1) as pool:
        blocker.execute("LOCK TABLE public.orders IN EXCLUSIVE MODE")  # who waits for the table goes on waiting
        waiting = pool.submit(other.post, f"{shop.path}?ack=db", GOOD)
        wait_until(shop.records, 10, "the record that is waited for")
        reply = client.post(f"{shop.path}?ack=db", GOOD)
        assert (reply.status, reply.json["type"], reply.headers["retry-after"]) == (
            429,
            "/problems/too-many-waiting",
            "1",
        )
        assert client.post(shop.path, GOOD).status == 202, "who does not wait is welcome"
        blocker.rollback()
        assert waiting.result().status == HTTPStatus.OK
    assert client.post(f"{shop.path}?ack=db", GOOD).status == HTTPStatus.OK
    assert len(shop.records()) == 3


def test_without_validation_only_json_counts(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_gateway: MakeGateway
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.encode())
    topic = make_topic(1)
    _, client = make_gateway({"topic": topic, "table": "public.orders"}, gateway={"validate": False})
    assert client.post(f"/v1/{topic}", b'{"id":"x"}').status == HTTPStatus.ACCEPTED
    assert client.post(f"/v1/{topic}", b'{"id":x}').status == HTTPStatus.BAD_REQUEST
    assert client.post(f"/v1/{topic}", b'{"a":1}\n[]', content_type="application/x-ndjson").status == 422
    assert [record.value() for record in read_topic(kafka.bootstrap_servers, topic)] == [b'{"id":"x"}']


def test_an_altered_table_is_noticed_at_the_door(shop: Shop) -> None:
    with psycopg.connect(shop.dsn, autocommit=True) as connection:
        connection.execute("ALTER TABLE public.orders ALTER customer SET NOT NULL")
    wait_until(lambda: shop.client.post(shop.path, b'{"id":1}').status == 422, 20, "the door to know the column")


def test_one_answer_at_a_time_of_pipelined_requests(shop: Shop) -> None:
    request = b"POST %b HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 8\r\n\r\n"
    with socket.create_connection(("127.0.0.1", shop.client.port), timeout=30) as connection:
        connection.sendall(b"".join(request % shop.path.encode() + b'{"id":%d}' % n for n in range(3)))
        got = b""
        while got.count(b"HTTP/1.1 202") < 3 or not got.endswith(b"}"):
            part = connection.recv(65_536)
            assert part, got
            got += part
    offsets = [json.loads(part[part.index(b"{") :])["offset"] for part in got.split(b"HTTP/1.1 202")[1:]]
    assert offsets == [0, 1, 2]
