"""Two brokers without replicas, one of them away: its partitions wait and are named, all else goes on."""

from __future__ import annotations

import json
import signal
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from tests.fix_daemon import wait_until
from tests.fix_http import free_port
from tests.fix_load import Delivery, new_delivery, value
from tests.fix_monitor import Monitor

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.brokers import Brokers
    from tests.fix_daemon import Daemon, MakeDaemon

#: Partitions 0 and 2 are the first broker's, 1 is the second's, which goes away.
HOME = [[1], [2], [1]]


@pytest.fixture
def spread(two_brokers: Brokers, database: str, tmp_path: Path) -> Delivery:
    """A topic over both brokers, with 60 records, 20 a partition."""
    return make(two_brokers, database, f"spread-{tmp_path.name}")


def make(brokers: Brokers, database: str, topic: str, table: str = "public.numbered") -> Delivery:
    admin: AdminClient = brokers.admin()
    admin.create_topics([NewTopic(topic, len(HOME), replica_assignment=HOME)])[topic].result()
    brokers.wait_for_leader(topic, partitions=len(HOME))
    delivery = new_delivery(brokers.direct, topic, len(HOME), database, table)
    delivery.send(60)
    return delivery


def of_broker_1(delivery: Delivery) -> dict[int, int | None]:
    return {number: at for number, at in delivery.progress().items() if number != 1}


def test_a_restart_goes_on_without_them(spread: Delivery, two_brokers: Brokers, make_daemon: MakeDaemon) -> None:
    port = free_port()
    daemon = start(make_daemon, two_brokers, spread, port)
    spread.wait_drained()
    assert daemon.stop() == 0

    two_brokers.kill(2)
    daemon.start()
    daemon.wait_ready()
    send_to_broker_1(two_brokers, spread, 30)
    wait_until(lambda: of_broker_1(spread) == {0: 35, 2: 35}, 30, "the other partitions to go on")
    assert_named(daemon, spread, port, "no leader")
    assert spread.progress()[1] == 20

    two_brokers.start(2)
    spread.wait_drained()
    daemon.wait_for_log("action=leader", 30)
    spread.assert_exactly_once()
    assert not daemon.logged("action=halt")
    assert daemon.stop() == 0


@pytest.mark.parametrize("start_at", ["earliest", pytest.param("latest", marks=pytest.mark.soak)])
def test_a_first_start_begins_without_them(
    spread: Delivery, two_brokers: Brokers, make_daemon: MakeDaemon, start_at: str
) -> None:
    two_brokers.kill(2)
    port = free_port()
    daemon = start(make_daemon, two_brokers, spread, port, start=start_at)
    daemon.wait_ready(60)
    assert spread.progress()[1] is None
    send_to_broker_1(two_brokers, spread, 30)
    wait_until(lambda: of_broker_1(spread) == {0: 35, 2: 35}, 30, "the other partitions to begin")
    assert_named(daemon, spread, port, "no leader")
    daemon.wait_for_log(f"partition={spread.topic}[1]", 10)

    # A restart changes nothing of where it is to begin, nor does another `start` in the file.
    assert daemon.stop() == 0
    text = daemon.config.read_text()
    other = {"earliest": "latest", "latest": "earliest"}[start_at]
    daemon.config.write_text(text.replace(f'start = "{start_at}"', f'start = "{other}"'))
    daemon.start()
    daemon.wait_ready(60)
    assert spread.progress()[1] is None

    # When its broker is back, what was there before is read, or is not, as the route said; what comes now always is.
    two_brokers.start(2)
    two_brokers.wait_for_leader(spread.topic, partitions=3)
    spread.send(30, first=100)
    wait_until(lambda: spread.progress()[1] == 30, 30, "the partition to be read")
    [(rows,)] = spread.query("SELECT array_agg(seq ORDER BY id) FROM public.numbered WHERE partition = 1")
    new = list(range(100, 110))
    assert rows == ([*range(20), *new] if start_at == "earliest" else new)
    assert not daemon.logged("action=halt")
    assert daemon.stop() == 0


@pytest.mark.soak
def test_a_topic_whose_every_partition_is_away_holds_up_no_other(
    spread: Delivery, two_brokers: Brokers, make_daemon: MakeDaemon, database: str
) -> None:
    topic = two_brokers.make_topic(1, replicas=[2])
    away = new_delivery(two_brokers.direct, topic, 1, database, "public.away")
    away.send(10)
    two_brokers.kill(2)
    daemon = make_daemon(spread.route, away.route, kafka={"bootstrap_servers": two_brokers.bootstrap_servers}).start()
    daemon.wait_ready(90)
    wait_until(lambda: of_broker_1(spread) == {0: 20, 2: 20}, 30, "the other topic")
    assert away.progress() == {0: None}
    two_brokers.start(2)
    for delivery in (spread, away):
        delivery.wait_drained()
        delivery.assert_exactly_once()


def test_a_broker_that_hangs_at_a_first_start(spread: Delivery, two_brokers: Brokers, make_daemon: MakeDaemon) -> None:
    two_brokers.send(2, signal.SIGSTOP)
    try:
        daemon = make_daemon(spread.route, kafka={"bootstrap_servers": two_brokers.bootstrap_servers}).start()
        wait_until(lambda: of_broker_1(spread) == {0: 20, 2: 20}, 60, "the other partitions to begin")
    finally:
        two_brokers.send(2, signal.SIGCONT)
    two_brokers.wait_for_leader(spread.topic, partitions=len(HOME))
    spread.wait_drained()
    spread.assert_exactly_once()
    assert daemon.stop() == 0


def start(make_daemon: MakeDaemon, brokers: Brokers, delivery: Delivery, port: int, **route: object) -> Daemon:
    return make_daemon(
        delivery.route | route,
        kafka={"bootstrap_servers": brokers.bootstrap_servers},
        monitor={"listen": f"127.0.0.1:{port}"},
    ).start()


def send_to_broker_1(brokers: Brokers, delivery: Delivery, count: int) -> None:
    """Send to the partitions that are there."""
    producer = Producer({"bootstrap.servers": brokers.direct, "log_level": 0})
    for seq in range(count // 2):
        for partition in (0, 2):
            producer.produce(delivery.topic, value(partition, 1_000 + seq), partition=partition)
    assert producer.flush(30) == 0


def assert_named(daemon: Daemon, delivery: Delivery, port: int, word: str) -> None:
    """The log, the monitor and `status` name the one partition, and know the lag of the others."""
    daemon.wait_for_log("action=no_leader", 30)
    assert f"partition={delivery.topic}[1]" in daemon.logged("action=no_leader")[0]

    monitor = Monitor(port)
    with closing(monitor.client):

        def states() -> dict[int, tuple[str, bool]]:
            partitions = monitor.status()["partitions"]
            return {each["partition"]: (each["state"], each["lag"] is not None) for each in partitions}

        wait_until(
            lambda: states() == {0: ("ok", True), 1: (word, False), 2: ("ok", True)}, 20, "the monitor to name it"
        )
        ready = monitor.client.request("GET", "/health/ready")
        assert ready.status == 200
        assert any(f"{delivery.topic}[1]: {word}" in warning for warning in ready.json["warnings"]), ready.json
        lags = [labels for name, labels in monitor.metrics() if name == "kbatchd_lag_records"]
        assert len(lags) == 2, lags
    assert not any("truncat" in line for line in daemon.lines())

    shown = daemon.command("status", "--json")
    assert shown.returncode == 0, shown.stderr
    said = {each["partition"]: each for each in json.loads(shown.stdout)["partitions"]}
    assert said[1]["state"] == word
    assert [said[0]["lag"], said[1]["lag"], said[2]["lag"]] == [0, None, 0]
