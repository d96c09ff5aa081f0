"""Stopped under load, a gateway answers what has reached it, and what it does not answer it has not produced."""

from __future__ import annotations

import select
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import psycopg
import pytest

from kbatchd.gateway.listener import HANDSHAKE_SECONDS
from tests.fix_daemon import wait_until
from tests.fix_load import TABLE, read_topic, value
from tests.serving import Serving, answers, read_all, read_answers, serving

if TYPE_CHECKING:
    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from kbatchd.gateway.protocol import Connection
    from tests.fix_http import MakeGateway
    from tests.fix_kafka import MakeTopic

CONNECTIONS = 64


def post(path: str, body: bytes, *, sent: int | None = None) -> bytes:
    """Make a request, or so many bytes of one's body."""
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body[:sent]


class Sender(threading.Thread):
    """Sends one record after the other on one connection, until it ends."""

    def __init__(self, port: int, number: int) -> None:
        super().__init__(name=f"sender {number}")
        self._number = number
        self._connection = socket.create_connection(("127.0.0.1", port), timeout=60)
        self.acknowledged: list[bytes] = []
        #: When the last request had been sent.
        self.sent_at = 0.0
        self.last_was_close = False

    def run(self) -> None:
        with self._connection as connection:
            while not self.last_was_close:
                record = value(self._number, len(self.acknowledged))
                with suppress(ConnectionError):
                    connection.sendall(post("/v1/r", record))
                self.sent_at = time.monotonic()
                try:
                    data = connection.recv(4_096)
                except ConnectionError:
                    data = b""
                if not data:
                    return
                [answer] = answers(data)
                assert answer.status == 202, answer
                self.acknowledged.append(record)
                self.last_was_close = answer.headers.get("connection") == "close"
            assert read_all(connection) == b""


def test_a_stop_under_load_loses_no_answer_and_produces_nothing_unanswered(
    kafka: Kafka | GivenKafka, database: str, make_topic: MakeTopic, make_gateway: MakeGateway
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.format("public.r").encode())
    topic = make_topic(partitions=2)
    route = {"name": "r", "topic": topic, "table": "public.r", "omit": ["id"]}
    daemon, client = make_gateway(route, gateway={"grace_seconds": 5.0, "hosts": ["a"]})
    warm_up = value(CONNECTIONS, 0)
    wait_until(lambda: client.post("/v1/r", warm_up).status == 202, 10, "the table is known")
    client.close()
    senders = [Sender(client.port, number) for number in range(CONNECTIONS)]
    for sender in senders:
        sender.start()
    wait_until(lambda: sum(len(sender.acknowledged) for sender in senders) > 3_000, 30, "load")

    stopped_at = time.monotonic()
    assert daemon.stop() == 0

    for sender in senders:
        sender.join(60)
        assert not sender.is_alive()
    produced = {record.value() for record in read_topic(kafka.bootstrap_servers, topic)}
    acknowledged = {record for sender in senders for record in sender.acknowledged}
    assert produced == acknowledged | {warm_up}
    # All go on as ever for so long: whatever was sent until then has an answer.
    closes_at = stopped_at + HANDSHAKE_SECONDS
    assert all(sender.last_was_close or sender.sent_at > closes_at for sender in senders)
    # Under load most connections have a request under way then, and its answer says that it is the last.
    assert sum(sender.last_was_close for sender in senders) > CONNECTIONS / 2


def stop(server: Serving) -> float:
    """Stop; return how long it took."""
    started = time.monotonic()
    server.stop()
    server.thread.join(20)
    assert not server.thread.is_alive()
    return time.monotonic() - started


def test_idle_connections_end_at_once_and_new_ones_are_refused() -> None:
    with serving(grace_seconds=10.0) as server:
        connections = [server.connect() for _ in range(10)]
        for connection in connections[1:]:  # one has never said a word
            connection.sendall(post("/", b"x"))
            read_answers(connection, 1)
        assert stop(server) < 8  # not the grace period
        for connection in connections:
            assert read_all(connection) == b""
            connection.close()
        with pytest.raises(ConnectionRefusedError):
            server.connect()


def test_connections_that_wait_to_be_accepted_are_accepted() -> None:
    """The kernel has told these clients that they are connected; the event loop learns of the stop first."""
    with serving(grace_seconds=10.0) as server:
        held_up, go_on = threading.Event(), threading.Event()

        def stop_late() -> None:
            held_up.set()
            go_on.wait(20)
            server.server.stop()

        server.call(stop_late)
        assert held_up.wait(20)
        connections = [server.connect() for _ in range(50)]
        for connection in connections:
            connection.sendall(post("/", b"x"))
        go_on.set()
        for connection in connections:
            assert [answer.status for answer in answers(read_all(connection))] == [202]
            connection.close()


def test_new_connections_under_load_are_answered_or_refused() -> None:
    with serving(grace_seconds=10.0) as server:
        outcomes: list[str | int] = []

        def connect_on_and_on() -> None:
            while True:
                try:
                    connection = server.connect()
                except ConnectionRefusedError:
                    return
                with connection:
                    try:
                        connection.sendall(post("/", b"x"))
                        outcomes.append(read_answers(connection, 1)[0].status)
                    except ConnectionError as error:
                        outcomes.append(repr(error))

        with ThreadPoolExecutor(16) as pool:
            clients = [pool.submit(connect_on_and_on) for _ in range(16)]
            wait_until(lambda: len(outcomes) > 500, 20, "load")
            server.stop()
        assert [client.result() for client in clients] == [None] * 16
        assert set(outcomes) == {202}


def test_requests_under_way_are_answered_and_told_that_it_is_the_end() -> None:
    with serving(grace_seconds=10.0) as server, server.connect() as single, server.connect() as pipelined:
        single.sendall(post("/wait", b"1"))
        pipelined.sendall(post("/wait", b"2") + post("/", b"3") + post("/", b"4"))
        wait_until(lambda: server.app.waiting == 2, 5, "both under way")
        server.stop()
        assert not select.select([single, pipelined], [], [], 0.5)[0]
        server.call(server.app.go.set)
        for connection, bodies in ((single, [b"1"]), (pipelined, [b"2", b"3", b"4"])):
            got = answers(read_all(connection))
            assert [answer.body for answer in got] == bodies
            assert ["connection" in answer.headers for answer in got] == [False] * (len(bodies) - 1) + [True]
        server.thread.join(30)
        assert not server.thread.is_alive()


def test_a_body_that_is_still_arriving_is_taken() -> None:
    with serving(grace_seconds=10.0) as server, server.connect() as connection:
        connection.sendall(post("/", b"body", sent=1))
        wait_until(lambda: server.server.guard.tasks, 5, "the request")
        server.stop()
        time.sleep(0.5)
        connection.sendall(b"ody")
        [answer] = answers(read_all(connection))
        assert (answer.status, answer.body, answer.headers["connection"]) == (202, b"body", "close")


@pytest.mark.parametrize("data", [b"POST / HTT", post("/", b"body", sent=2)])
def test_a_request_that_does_not_come_to_its_end_holds_nobody_up(data: bytes) -> None:
    with serving(grace_seconds=8.0) as server, server.connect() as connection:
        connection.sendall(data)
        guard = server.server.guard
        wait_until(
            lambda: any(cast("Connection", each)._reader.head_bytes for each in guard.connections), 5, "its begin"
        )
        assert stop(server) < 8
        assert [answer.status for answer in answers(read_all(connection))] == [408]
        assert not server.app.taken


def test_what_is_not_answered_in_time_is_504() -> None:
    with serving(grace_seconds=0.5) as server, server.connect() as connection:
        connection.sendall(post("/wait", b"1"))
        wait_until(lambda: server.app.waiting, 5, "the request")
        server.stop()
        [answer] = answers(read_all(connection))
        assert (answer.status, answer.headers["connection"]) == (504, "close")
        server.thread.join(10)
        assert not server.thread.is_alive()


def test_pipelined_requests_behind_one_that_is_not_answered_in_time_are_not_begun() -> None:
    with serving(grace_seconds=0.5) as server, server.connect() as connection:
        connection.sendall(post("/wait", b"1") + post("/", b"2"))
        wait_until(lambda: server.app.waiting, 5, "the request")
        server.stop()
        assert [answer.status for answer in answers(read_all(connection))] == [504]
        server.thread.join(10)
        assert not server.app.taken
