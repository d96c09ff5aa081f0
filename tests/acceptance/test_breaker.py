"""The breaker: it halts a route whose records are all refused, says so everywhere, and lets it go on when told."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from confluent_kafka import Producer

from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_load import Delivery, MakeDelivery
    from tests.fix_monitor import MakeMonitored

LIMIT = 20


def send_garbage(delivery: Delivery, count: int) -> None:
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers})
    for _ in range(count):
        producer.produce(delivery.topic, b"no JSON", partition=0)
    assert producer.flush(30) == 0


def status(daemon: Daemon) -> Any:
    return json.loads(daemon.command("status", "--json").stdout)


def test_accept_lets_the_route_go_on_where_it_stands(
    make_monitored: MakeMonitored, make_daemon: MakeDaemon, make_delivery: MakeDelivery
) -> None:
    # Given: more garbage than the breaker takes, then a good record.
    delivery = make_delivery(1)
    send_garbage(delivery, 2 * LIMIT + 5)
    route = {**delivery.route, "max_dead_letters": LIMIT}
    name = str(delivery.route["name"])
    daemon, monitor = make_monitored(route, workers={"count": 1})
    elsewhere = make_daemon(route)

    def is_tripped(at: int) -> bool:
        halted = delivery.query("SELECT next_offset, halted FROM kbatchd.progress") == [(at, "breaker")]
        return halted and monitor.metrics()["kbatchd_partitions_tripped", (name,)] == 1

    # Then: it halts for good, and is told apart from a gap, in the log,
    wait_until(lambda: is_tripped(LIMIT), 20, "the breaker, told of")
    [line] = daemon.logged("action=breaker_open")
    assert f"kbatchd progress accept --config FILE {name}" in line
    assert "restart" not in line
    assert not daemon.logged("action=halt")
    # by the command, on any host,
    for asked in (daemon, elsewhere):
        shown = status(asked)
        assert (shown["routes"][0]["state"], shown["partitions"][0]["state"]) == ("halted: breaker",) * 2
        assert not shown["fine"]
        assert asked.command("status", "--exit-code").returncode == 1
    # on the page, in the metrics, and by the health checks.
    page = monitor.status()
    assert [page["routes"][0]["word"], page["partitions"][0]["word"]] == ["halted: breaker"] * 2
    assert monitor.metrics()["kbatchd_partitions_state", (name, "halted: breaker")] == 1
    assert monitor.metrics()["kbatchd_gaps_total", ("retention", name)] == 0
    warnings = monitor.client.request("GET", "/health/ready").json["warnings"]
    assert f"route {name}: halted: breaker: partitions 0" in warnings
    assert not any("halted partitions" in warning for warning in warnings)
    wait_until(
        lambda: f"route {name}: all of the last {LIMIT} records were refused" in monitor.status()["warnings"],
        10,
        "the warning that all are refused",
        0.2,
    )

    # When: somebody lets it go on. It goes on where it stood, counts from 0, and halts again.
    done = daemon.command("progress", "accept", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{delivery.topic}[0]: the breaker is closed; the route goes on at offset {LIMIT}"
    ]
    wait_until(lambda: is_tripped(2 * LIMIT), 20, "the breaker again")
    # Once more, and the rest goes through.
    assert daemon.command("progress", "accept", name).returncode == 0
    delivery.send(10)
    delivery.wait_drained()
    assert delivery.rows() == 10
    letters = 'SELECT array_agg("offset"::int ORDER BY "offset") FROM kbatchd.dead_letters'
    assert delivery.query(letters) == [(list(range(2 * LIMIT + 5)),)]
    assert delivery.query("SELECT halted FROM kbatchd.progress") == [(None,)]
    assert delivery.query("SELECT count(*) FROM kbatchd.gaps") == [(0,)]
    assert "there is nothing to accept" in daemon.command("progress", "accept", name).stdout
    wait_until(lambda: monitor.status()["routes"][0]["word"] == "ok", 10, "the route is well again", 0.2)
    wait_until(lambda: monitor.status()["warnings"] == [], 10, "no warning any more", 0.2)
    assert daemon.command("status", "--exit-code").returncode == 0
    assert daemon.stop() == 0


def test_it_is_accepted_while_nobody_runs(make_daemon: MakeDaemon, make_delivery: MakeDelivery) -> None:
    delivery = make_delivery(1)
    send_garbage(delivery, LIMIT + 5)
    daemon = make_daemon({**delivery.route, "max_dead_letters": LIMIT}, workers={"count": 1}).start()
    halted = "SELECT halted FROM kbatchd.progress"
    wait_until(lambda: delivery.query(halted) == [("breaker",)], 20, "the breaker, written down")
    assert daemon.stop() == 0
    assert status(daemon)["partitions"][0]["state"] == "halted: breaker"
    name = str(delivery.route["name"])
    assert "the breaker is closed" in daemon.command("progress", "accept", name).stdout
    assert delivery.query(halted) == [(None,)]
    daemon.start()
    delivery.wait_drained()
    assert daemon.stop() == 0
