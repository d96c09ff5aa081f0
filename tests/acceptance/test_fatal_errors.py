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

CLUSTER_AUTHORIZATION_FAILED, FENCED_INSTANCE_ID, UNSUPPORTED_ASSIGNOR = 31, 82, 112

#: What a commit of offsets may be answered while a group changes.
OF_A_REBALANCE = [25, 27]

#: From this version on an answer's head ends with a byte for tags.
FLEXIBLE_FROM: dict[int | str, int] = {
    Api.INIT_PRODUCER_ID: 2, Api.HEARTBEAT: 4, Api.OFFSET_COMMIT: 8, Api.CONSUMER_GROUP_HEARTBEAT: 0,
}  # fmt: skip


def says(code: int) -> Act:
    """Give the answer this error code, which stands behind its head and the throttle time."""

    def act(frame: Frame, connection: Connection) -> None:
        at = 4 + 4 + 4 + (frame.version >= FLEXIBLE_FROM[frame.kind])
        data = frame.data[:at] + struct.pack(">h", code) + frame.data[at + 2 :]
        connection.send(Side.ANSWER, data)

    return act


def refuses_the_offset(code: int) -> Act:
    """Give the one partition of an answer to a commit this error code, which is its last but for bytes for tags."""

    def act(frame: Frame, connection: Connection) -> None:
        tags = 3 * (frame.version >= FLEXIBLE_FROM[frame.kind])
        end = len(frame.data) - tags
        connection.send(Side.ANSWER, frame.data[: end - 2] + struct.pack(">h", code) + frame.data[end:])

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


def test_a_member_of_the_newer_protocol_that_is_refused_is_replaced(
    broker: Brokers, database: str, make_daemon: MakeDaemon
) -> None:
    topic = broker.make_topic(1)
    delivery = new_delivery(broker.direct, topic, 1, database, "public.requests")
    refused = broker.wire.rule(answers(Api.CONSUMER_GROUP_HEARTBEAT), says(UNSUPPORTED_ASSIGNOR), 1)
    daemon = make_daemon(
        delivery.route,
        kafka={
            "bootstrap_servers": broker.bootstrap_servers,
            "assignment": "group",
            "group_protocol": "consumer",
            "group_id": topic,
        },
        workers={"count": 1},
    ).start()
    daemon.wait_for_log("another worker takes over", 30)
    assert refused.hits
    daemon.wait_for_log("action=worker_started", 10, count=2)
    assert not daemon.logged("Traceback")
    assert daemon.stop() == 0


def test_offsets_that_are_refused_in_a_rebalance_are_no_fault(
    broker: Brokers, database: str, make_daemon: MakeDaemon
) -> None:
    """They are for display alone: librdkafka joins again where it was forgotten, and nobody is told."""
    topic = broker.make_topic(1)
    delivery = new_delivery(broker.direct, topic, 1, database, "public.requests")
    kafka = {"bootstrap_servers": broker.bootstrap_servers, "assignment": "group", "group_id": topic}
    daemon = make_daemon(delivery.route, kafka=kafka, workers={"count": 1}).start()
    daemon.wait_ready()
    for turn, code in enumerate(OF_A_REBALANCE):
        broker.wire.clear()
        refused = broker.wire.rule(answers(Api.OFFSET_COMMIT), refuses_the_offset(code), None)
        delivery.send(50, first=50 * turn)
        wait_until(lambda refused=refused: refused.hits, 20, "a refused commit")  # type: ignore[misc]
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert len(daemon.logged("action=worker_started")) == 1
    assert not [line for line in daemon.lines() if " WARNING " in line or " ERROR " in line]
    assert daemon.stop() == 0
