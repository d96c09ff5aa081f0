"""What is not HTTP/1.1 gets 4xx and the end of its connection, and produces nothing; what is gets its answer."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

import orjson
import psycopg
import pytest

from tests.fix_daemon import wait_until
from tests.fix_load import TABLE, read_topic
from tests.http_requests import CASES, INCOMPLETE, INVALID, RECORD
from tests.serving import Answer, Serving, answers, read_all, read_answers, serving

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_http import MakeGateway
    from tests.fix_kafka import MakeTopic


@pytest.fixture(scope="module")
def shared() -> Iterator[Serving]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared: Serving) -> Serving:
    shared.app.taken.clear()
    shared.app.lost = 0
    return shared


def talk(port: int, data: bytes) -> bytes:
    """Send, end, and read all that comes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        return read_all(connection)


def methods(data: bytes) -> list[str]:
    return ["HEAD" if data.startswith(b"HEAD") else "POST"]


def assert_refused(answer: Answer) -> None:
    assert answer.headers["connection"] == "close"
    assert answer.headers["content-type"] == "application/problem+json"
    problem = orjson.loads(answer.body)
    assert problem["status"] == answer.status
    assert problem["type"].startswith("/problems/")
    assert problem["detail"]


@pytest.mark.parametrize("name", CASES)
def test_a_request_gets_its_answer(server: Serving, name: str) -> None:
    request = CASES[name]
    with server.connect() as connection:
        connection.sendall(request.data)
        if name in INVALID:
            got = answers(read_all(connection))  # the server ends, though the client has not
            assert_refused(got[-1])
        else:
            got = read_answers(connection, len(request.statuses), methods(request.data)[0])
    assert tuple(answer.status for answer in got) == request.statuses
    assert len(server.app.taken) == request.taken
    assert all(taken.body in {b"", b"{}", RECORD} for taken in server.app.taken)


@pytest.mark.parametrize("name", INCOMPLETE)
def test_an_incomplete_request_is_none(server: Serving, name: str) -> None:
    assert talk(server.port, INCOMPLETE[name]) == b""
    assert not server.app.taken


def test_the_real_gateway_produces_what_it_has_answered_and_nothing_else(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_gateway: MakeGateway
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.format("public.r"))
    topic = make_topic()
    route = {"name": "r", "topic": topic, "table": "public.r", "omit": ["id"]}
    daemon, client = make_gateway(route, gateway={"hosts": ["a", "a.example"]})
    wait_until(lambda: client.post("/v1/r", RECORD).status == 202, 10, "the table is known")
    before = len(read_topic(kafka.bootstrap_servers, topic))

    faults = {}
    expected = 0
    began = time.monotonic()
    for name, request in CASES.items():
        got = answers(talk(client.port, request.data), methods(request.data))
        statuses = tuple(answer.status for answer in got)
        if statuses != request.statuses:
            faults[name] = statuses
        expected += request.statuses.count(202)
    for name, data in INCOMPLETE.items():
        if answered := answers(talk(client.port, data)):
            faults[name] = tuple(answer.status for answer in answered)

    assert not faults
    records = read_topic(kafka.bootstrap_servers, topic)
    assert len(records) - before == expected
    assert {record.value() for record in records} == {RECORD}
    # Two hundred bad requests are one line; another each time that ten seconds have passed.
    daemon.wait_for_log("requests refused")
    assert len(daemon.logged("requests refused")) <= 2 + (time.monotonic() - began) / 10
