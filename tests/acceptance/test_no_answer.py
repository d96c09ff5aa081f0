"""What must be named, and what must be waited for, where a broker has said only a part, or nothing."""

from __future__ import annotations

import os
import signal
import uuid
from typing import TYPE_CHECKING

import pytest
from confluent_kafka.admin import AdminClient, NewTopic

from tests.acceptance.test_rules import delete_records, recreate
from tests.faults.kafka_wire import Api
from tests.fix_daemon import wait_until
from tests.fix_load import new_delivery

if TYPE_CHECKING:
    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.faults.brokers import Brokers
    from tests.fix_daemon import MakeDaemon
    from tests.fix_load import MakeDelivery

GAPS = "SELECT kind, first_offset, last_offset FROM kbatchd.gaps WHERE route = %s ORDER BY id"


@pytest.mark.parametrize("on_gap", ["halt", "record"])
def test_a_recreated_topic_whose_first_records_are_gone(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon, on_gap: str
) -> None:
    # Given: ten records read, then another topic with 400, of which retention has taken 300.
    delivery = make_delivery(1)
    daemon = make_daemon(delivery.route | {"on_gap": on_gap}).start()
    daemon.wait_ready()
    delivery.send(10)
    delivery.wait_drained()
    assert daemon.stop() == 0
    recreate(delivery)
    delivery.send(400, first=1_000)
    delete_records(delivery, {0: 300})

    # When: it goes on, by itself or by hand.
    if on_gap == "halt":
        accepted = daemon.command("progress", "accept", delivery.topic)
        assert accepted.returncode == 0, accepted.stderr
        assert "offsets 0 to 299 of the new one were deleted before they were read" in accepted.stdout
    daemon.start()
    delivery.wait_drained()

    # Then: what is left was read, and both ranges are named.
    assert delivery.rows() == 10 + 100
    assert delivery.query(GAPS, delivery.topic) == [("recreated", 10, 10), ("retention", 0, 300)]
    assert daemon.stop() == 0


@pytest.mark.parametrize("idle_ms", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_connections_that_never_last(make_delivery: MakeDelivery, make_daemon: MakeDaemon, idle_ms: int) -> None:
    """Many a question is lost: what cannot be asked is waited for, and nothing is skipped."""
    delivery = make_delivery(1)
    delivery.send(1_000)
    short = {"librdkafka.connections.max.idle.ms": idle_ms}
    daemon = make_daemon(delivery.route, kafka={"bootstrap_servers": delivery.bootstrap_servers, **short}).start()
    wait_until(lambda: daemon.has_ended() or delivery.progress() or daemon.logged("action=startup_wait"), 60, "a start")
    wait_until(lambda: daemon.has_ended() or delivery.progress().get(0) is not None or daemon.logged("start_unknown"),
               60, "where to begin, or that it is not known")  # fmt: skip
    assert delivery.progress().get(0) in {None, 0, *range(1, 1_001)}
    assert not delivery.query(GAPS, delivery.topic)
    if not daemon.has_ended():
        daemon.stop()
    else:
        assert daemon.wait() == 69

    # When the file is fixed, everything is a row.
    text = daemon.config.read_text()
    daemon.config.write_text(text.replace(f"idle.ms = {idle_ms}", "idle.ms = 0"))
    assert "idle.ms = 0" in daemon.config.read_text()
    daemon.start()
    delivery.wait_drained(60)
    delivery.assert_exactly_once()
    assert not delivery.query(GAPS, delivery.topic)
    assert daemon.stop() == 0


def test_a_topic_just_made_is_waited_for(kafka: Kafka | GivenKafka, database: str, make_daemon: MakeDaemon) -> None:
    """Made, checked and started at once, several times: its leaders come a moment later."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    for number in range(5):
        topic = f"t-{uuid.uuid4().hex[:12]}"
        delivery = new_delivery(kafka.bootstrap_servers, topic, 24, database, f"public.made_{number}")
        daemon = make_daemon(delivery.route | {"partitions": 24})
        try:
            if number % 2:
                admin.create_topics([NewTopic(topic, 24, 1)])[topic].result()
            else:
                created = daemon.command("create-topic")
                assert created.returncode == 0, created.stderr
                assert "not all its partitions" not in created.stderr
            checked = daemon.command("check")
            assert checked.returncode == 0, checked.stdout + checked.stderr
        finally:
            admin.delete_topics([topic], operation_timeout=10)[topic].result()


@pytest.mark.parametrize("start", ["earliest", pytest.param("latest", marks=pytest.mark.soak)])
def test_a_broker_that_answers_nothing_where_to_begin(
    broker: Brokers, database: str, make_daemon: MakeDaemon, start: str
) -> None:
    """Each question for offsets is lost: the daemon runs, says so, and begins as the file said then."""
    delivery = new_delivery(broker.direct, broker.make_topic(), 1, database)
    delivery.send(100)

    rule = broker.wire.swallow_requests(Api.LIST_OFFSETS, times=None)
    daemon = make_daemon(delivery.route | {"start": start}, kafka={"bootstrap_servers": broker.bootstrap_servers})
    daemon.start()
    daemon.wait_for_log("action=start_unknown", 60)
    daemon.wait_ready(60)
    assert delivery.progress() == {0: None}
    said = daemon.command("status")
    assert "not begun" in said.stdout or "unknown" in said.stdout, said.stdout
    rule.lift()
    delivery.send(50, first=1_000)
    delivery.wait_drained(60)
    assert delivery.rows() == (150 if start == "earliest" else 50)
    assert not delivery.query(GAPS, delivery.topic)
    assert daemon.stop() == 0


@pytest.mark.soak
def test_a_reload_with_a_new_route_whose_partition_is_silent(
    broker: Brokers, database: str, make_daemon: MakeDaemon
) -> None:
    old = new_delivery(broker.direct, broker.make_topic(), 1, database, "public.old")
    new = new_delivery(broker.direct, broker.make_topic(), 1, database, "public.new")
    old.send(100)
    new.send(100)

    kafka = {"bootstrap_servers": broker.bootstrap_servers}
    daemon = make_daemon(old.route, kafka=kafka).start()
    old.wait_drained()
    rule = broker.wire.swallow_requests(Api.LIST_OFFSETS, times=None)
    daemon.config.write_text(make_daemon(old.route, new.route, kafka=kafka).config.read_text())
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log("action=reloaded", 60)
    assert new.progress() == {0: None}
    old.send(100, first=100)
    wait_until(lambda: old.rows() == 200, 30, "the old route to go on")
    rule.lift()
    for delivery in (old, new):
        delivery.wait_drained(60)
        delivery.assert_exactly_once()
    assert daemon.stop() == 0
