"""A server is away: the gateway says so soon, takes what it can, and needs no restart."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

import psycopg
import pytest

from kbatchd.kafka.producer import STALL_SECONDS
from tests.fix_daemon import Daemon, MakeDaemon, wait_until
from tests.fix_http import Client, MakeGateway, free_port, wait_listening
from tests.fix_load import read_topic

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.devstack.kafka import Kafka
    from kbatchd.devstack.postgres import Postgres
    from tests.fix_kafka import MakeTopic

    MakeOwn = Callable[..., tuple[Daemon, Client, str]]

TABLE = "CREATE TABLE public.orders (id bigint NOT NULL)"


@pytest.fixture
def make_own(own_kafka: Kafka, own_make_topic: MakeTopic, database: str, make_gateway: MakeGateway) -> MakeOwn:
    """Make a gateway before a Kafka of its own, with these keys; return the daemon, a client and the topic too."""

    def make(**keys: object) -> tuple[Daemon, Client, str]:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute(TABLE)
        topic = own_make_topic(1)
        route = {"topic": topic, "table": "public.orders"}
        kafka = {"bootstrap_servers": own_kafka.bootstrap_servers}
        return *make_gateway(route, kafka=kafka, gateway=keys), topic

    return make


def test_kafka_gone_is_503_within_two_seconds(own_kafka: Kafka, make_own: MakeOwn) -> None:
    daemon, client, topic = make_own()
    gateways = daemon.gateways()
    assert client.post(f"/v1/{topic}", b'{"id":1}').status == 202
    own_kafka.kill()
    daemon.wait_for_log("action=kafka_down")  # what was sent before the gateway has seen it may end in 504
    seconds = []
    for number in range(5):
        began = time.monotonic()
        reply = client.post(f"/v1/{topic}", b'{"id":%d}' % (100 + number))
        assert (reply.status, reply.json["type"]) == (503, "/problems/kafka-away")
        assert reply.headers["retry-after"] == "1"
        seconds.append(time.monotonic() - began)
    assert max(seconds) < 2.0, seconds
    own_kafka.start()
    wait_until(lambda: client.post(f"/v1/{topic}", b'{"id":2}').status == 202, 15, "202 again")
    assert daemon.gateways() == gateways
    assert [record.value() for record in read_topic(own_kafka.bootstrap_servers, topic)] == [b'{"id":1}', b'{"id":2}']


def test_a_frozen_kafka_ends_in_504_and_503(own_kafka: Kafka, make_own: MakeOwn) -> None:
    daemon, client, topic = make_own(delivery_timeout_seconds=12.0)
    assert client.post(f"/v1/{topic}", b'{"id":1}').status == 202
    os.kill(own_kafka.pid, signal.SIGSTOP)
    try:
        statuses: list[int] = []
        with Client(client.port) as other:
            waiting = threading.Thread(target=lambda: statuses.append(other.post(f"/v1/{topic}", b'{"id":2}').status))
            waiting.start()
            time.sleep(STALL_SECONDS + 3.0)  # nothing happens in this time: that is what is noticed
            reply = client.post(f"/v1/{topic}", b'{"id":3}')
            waiting.join()
        assert (reply.status, reply.json["type"]) == (503, "/problems/kafka-away")
        assert statuses == [504], "it was sent, and nobody knows what became of it"
    finally:
        os.kill(own_kafka.pid, signal.SIGCONT)
    wait_until(lambda: client.post(f"/v1/{topic}", b'{"id":4}').status == 202, 30, "202 again")
    assert len(daemon.gateways()) == 1


def test_a_stop_while_kafka_is_frozen_says_that_the_outcome_is_not_known(own_kafka: Kafka, make_own: MakeOwn) -> None:
    daemon, client, topic = make_own(grace_seconds=3.0, delivery_timeout_seconds=100.0)
    assert client.post(f"/v1/{topic}", b'{"id":1}').status == 202
    [gateway] = daemon.gateways()
    os.kill(own_kafka.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(1) as pool, Client(client.port) as other:
            began = time.monotonic()
            waiting = pool.submit(other.post, f"/v1/{topic}", b'{"id":2}')
            time.sleep(STALL_SECONDS + 3.0)  # nothing happens in this time: that is what is noticed
            assert client.post(f"/v1/{topic}", b'{"id":3}').status == 503, "the other one is under way"
            os.kill(gateway, signal.SIGTERM)
            reply = waiting.result()
            assert (reply.status, reply.json["type"]) == (504, "/problems/stopped")
            assert time.monotonic() - began < 50  # not the delivery's time-out
    finally:
        os.kill(own_kafka.pid, signal.SIGCONT)
    daemon.wait_for_log("action=requests_given_up")


def test_a_full_queue_is_503_and_nothing_of_it_is_sent(own_kafka: Kafka, make_own: MakeOwn) -> None:
    _, client, topic = make_own(max_queued_records=1_000)
    wait_until(lambda: client.post(f"/v1/{topic}", b'{"id":1}').status == 202, 15, "202")
    before = len(read_topic(own_kafka.bootstrap_servers, topic))
    body = b"[%b]" % b",".join([b'{"id":2}'] * 600)
    os.kill(own_kafka.pid, signal.SIGSTOP)
    try:
        with Client(client.port) as other, ThreadPoolExecutor(2) as pool:
            sent = [pool.submit(each.post, f"/v1/{topic}", body) for each in (client, other)]
            [refused] = wait(sent, 60, FIRST_COMPLETED).done
            reply = refused.result()
            assert (reply.status, reply.json["type"]) == (503, "/problems/queue-full")
            assert reply.headers["retry-after"] == "1"
            os.kill(own_kafka.pid, signal.SIGCONT)
            assert sorted(each.result().status for each in sent) == [202, 503]
    finally:
        os.kill(own_kafka.pid, signal.SIGCONT)
    assert len(read_topic(own_kafka.bootstrap_servers, topic)) == before + 600


def test_it_starts_and_takes_requests_while_postgres_is_away(
    own_postgres: Postgres,
    own_database: str,
    make_topic: MakeTopic,
    make_gateway: MakeGateway,
) -> None:
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute(TABLE)
    topic = make_topic(1)
    daemon, client = make_gateway({"topic": topic, "table": "public.orders"}, postgres={"dsn": own_database})
    assert client.post(f"/v1/{topic}?ack=db", b'{"id":1}').status == 200
    own_postgres.stop("immediate")
    assert client.post(f"/v1/{topic}", b'{"id":2}').status == 202, "PostgreSQL is away, not Kafka"
    assert daemon.stop() == 0

    daemon.start()
    wait_listening(client.port)
    client.close()
    assert client.post(f"/v1/{topic}", b'{"id":3}').status == 202
    assert client.post(f"/v1/{topic}", b'{"id":"x"}').status == 422, "the columns are known"
    assert client.post(f"/v1/{topic}", b'{"id":4}', prefer="wait=1").status == 202
    own_postgres.start()
    assert client.post(f"/v1/{topic}?ack=db", b'{"id":5}').status == 200
    with psycopg.connect(own_database, autocommit=True) as connection:
        assert connection.execute("SELECT id FROM public.orders ORDER BY id").fetchall() == [
            (number,) for number in (1, 2, 3, 4, 5)
        ]


def test_a_standby_takes_requests_too(
    database: str,
    make_topic: MakeTopic,
    make_gateway: MakeGateway,
    make_daemon: MakeDaemon,
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE)
    route = {"topic": make_topic(1), "table": "public.orders"}
    make_gateway(route)
    port = free_port()
    standby = make_daemon(route, gateway={"listen": f"127.0.0.1:{port}"}).start()
    assert "standby" in standby.wait_ready()
    with Client(port) as client:
        assert client.post(f"/v1/{route['topic']}?ack=db", b'{"id":1}').status == 200


def test_two_pipelines_do_not_share_an_address(
    database: str, make_topic: MakeTopic, make_gateway: MakeGateway, make_daemon: MakeDaemon
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE)
    route = {"topic": make_topic(1), "table": "public.orders"}
    first, client = make_gateway(route)
    gateway = {"listen": f"127.0.0.1:{client.port}"}
    # A standby of the same pipeline shares it,
    standby = make_daemon(route, gateway=gateway).start()
    assert "standby" in standby.wait_ready()
    # another pipeline does not,
    other = make_daemon({**route, "read_again": [f"kbatchd/{route['topic']}"]}, gateway=gateway)
    other.config.write_text(f'pipeline = "other"\n{other.config.read_text()}')
    other.start().wait_for_log("the gateway of another pipeline listens there")
    # (looking does not wear the mark out)
    other.wait_for_log("the gateway of another pipeline listens there", count=2, seconds=30)
    # not before both are gone.
    assert (first.stop(), standby.stop()) == (0, 0)
    other.wait_for_log("action=gateway_listening")


def test_another_users_mark_stops_no_gateway(database: str, make_topic: MakeTopic, make_gateway: MakeGateway) -> None:
    """Any user may take a name that says that another pipeline's gateway listens."""
    if os.geteuid() != 0:
        pytest.skip("not run: only root can run a program as another user")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE)
    route = {"topic": make_topic(1), "table": "public.orders"}
    first, client = make_gateway(route)
    assert first.stop() == 0
    take = (
        "import socket, sys, time\n"
        "for kind, name in ((socket.SOCK_STREAM, 'stream'), (socket.SOCK_DGRAM, 'datagram')):\n"
        "    taken = socket.socket(socket.AF_UNIX, kind); taken.bind('\\0' + sys.argv[1] + name)\n"
        "    kind == socket.SOCK_STREAM and taken.listen(); globals()[name] = taken\n"
        "print('taken', flush=True); time.sleep(600)"
    )
    mark = f"kbatchd/127.0.0.1/{client.port}/0123456789abcdef/"
    with subprocess.Popen(
        ["/usr/bin/env", "python3", "-c", take, mark], stdout=subprocess.PIPE, user="nobody", cwd="/"
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == b"taken\n"
            first.start().wait_for_log("action=gateway_listening", count=1, seconds=20)
            assert client.post(f"/v1/{route['topic']}", b'{"id":1}').status == 202
        finally:
            other.kill()
