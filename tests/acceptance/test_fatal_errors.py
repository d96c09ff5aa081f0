"""What librdkafka calls fatal: the client that met it is of no use any more, and its process ends, or is replaced.

The broker's answers are altered on their way: it says that this producer, or this member, has no business here.
"""

from __future__ import annotations

import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import psycopg

from tests.faults.kafka_wire import Api, answers
from tests.faults.rules import Frame, Side
from tests.fix_daemon import wait_until
from tests.fix_http import Client, free_port, wait_listening
from tests.fix_load import new_delivery

if TYPE_CHECKING:
    from tests.faults.brokers import Brokers
    from tests.faults.rules import Act
    from tests.faults.wire import Connection
    from tests.fix_daemon import MakeDaemon
    from tests.fix_produce import MakeProducing

CLUSTER_AUTHORIZATION_FAILED, FENCED_INSTANCE_ID = 31, 82

#: From this version on an answer's head ends with a byte for tags.
FLEXIBLE_FROM: dict[int | str, int] = {Api.INIT_PRODUCER_ID: 2, Api.HEARTBEAT: 4}


def says(code: int) -> Act:
    """Give the answer this error code, which stands behind its head and the throttle time."""

    def act(frame: Frame, connection: Connection) -> None:
        at = 4 + 4 + 4 + (frame.version >= FLEXIBLE_FROM[frame.kind])
        data = frame.data[:at] + struct.pack(">h", code) + frame.data[at + 2 :]
        connection.send(Side.ANSWER, data)

    return act


def test_a_producer_of_standard_input_says_so_and_ends(broker: Brokers, make_producing: MakeProducing) -> None:
    producing = make_producing(bootstrap_servers=broker.bootstrap_servers, topic=broker.make_topic(4))
    refused = broker.wire.rule(answers(Api.INIT_PRODUCER_ID), says(CLUSTER_AUTHORIZATION_FAILED), None)
    outcome = producing.run("-", given=b'{"id":1,"name":"a"}\n')
    assert refused.hits
    assert outcome.code in {69, 78}, outcome
    assert not [line for line in outcome.err if "Traceback" in line]
    assert "Kafka refuses" in outcome.err[-1]


def test_a_gateway_is_replaced(broker: Brokers, database: str, make_daemon: MakeDaemon) -> None:
    topic, port = broker.make_topic(1), free_port()
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.orders (id bigint NOT NULL, name text)")
    refused = broker.wire.rule(answers(Api.INIT_PRODUCER_ID), says(CLUSTER_AUTHORIZATION_FAILED), 1)
    daemon = make_daemon(
        {"topic": topic, "table": "public.orders", "name": "r"},
        kafka={"bootstrap_servers": broker.bootstrap_servers},
        gateway={"listen": f"127.0.0.1:{port}"},
    ).start()
    wait_until(lambda: refused.hits, 30, "a producer's first question")
    daemon.wait_for_log("action=producer_fatal", 20)
    wait_listening(port)

    def is_taken() -> bool:
        with suppress(OSError), Client(port) as client:  # the former one may be on its way out, and nobody there
            return client.post("/v1/r", b'{"id":1,"name":"a"}').status == 202
        return False

    wait_until(is_taken, 30, "a gateway that sends")
    assert not daemon.logged("Traceback")
    assert daemon.stop() == 0


def test_a_member_that_is_fenced_is_replaced(broker: Brokers, database: str, make_daemon: MakeDaemon) -> None:
    topic = broker.make_topic(2)
    delivery = new_delivery(broker.direct, topic, 2, database, "public.requests")
    daemon = make_daemon(
        delivery.route,
        kafka={
            "bootstrap_servers": broker.bootstrap_servers,
            "assignment": "group",
            "librdkafka.heartbeat.interval.ms": 300,
        },
        workers={"count": 1},
    ).start()
    delivery.send(100)
    delivery.wait_drained(60)
    [former] = daemon.workers()
    broker.wire.rule(answers(Api.HEARTBEAT), says(FENCED_INSTANCE_ID), 1)
    wait_until(lambda: daemon.workers() not in ([former], []), 30, "another worker")
    delivery.send(100, first=100)
    delivery.wait_drained(60)
    assert daemon.logged("another worker takes over")
    assert not daemon.logged("Traceback")
    assert daemon.stop() == 0
