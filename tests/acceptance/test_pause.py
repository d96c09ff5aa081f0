"""`kbatchd route pause`: the route stands still on every host, keeps its partitions, and goes on without loss."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

from tests.fix_daemon import wait_until
from tests.fix_http import Client, free_port, wait_listening
from tests.fix_load import TABLE

if TYPE_CHECKING:
    from tests.fix_daemon import Command, Daemon, MakeDaemon
    from tests.fix_load import Delivery, MakeDelivery
    from tests.fix_monitor import MakeMonitored, Monitor

PER_SECOND = 300
SOME = 100


def test_a_paused_route_stands_still_and_the_others_go_on(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon, make_monitored: MakeMonitored, command: Command
) -> None:
    # Given: two routes of one topic, records that keep coming, a daemon, and a standby as on another host.
    paused = replace(make_delivery(2, "public.paused"), name="paused")
    others = replace(paused, table="public.others", name="others")
    others.execute(TABLE.format(others.table))
    port = free_port()
    gateway = {"listen": f"127.0.0.1:{port}", "validate": False, "max_wait_seconds": 600}
    daemon, monitor = make_monitored(paused.route, others.route, gateway=gateway)
    standby = make_daemon(paused.route, others.route).start()
    standby.wait_ready()
    with paused.load(PER_SECOND):
        wait_until(lambda: min(paused.rows(), others.rows()) > SOME, 15, "rows of both")

        # When: somebody pauses one of them, twice.
        first, again = (command(daemon, "route", "pause", "paused") for _ in range(2))
        assert (first[0], again[0]) == (0, 0)
        assert first[1].startswith("route paused is paused since ")
        assert again[1].startswith("route paused was paused before: it is paused since ")

        # Then: no row comes in any more, and the other route goes on.
        for each in (daemon, standby):
            each.wait_for_log("action=pause", 2, count=2)
        rows, owners = paused.rows(), held(paused)
        before = others.rows()
        wait_until(lambda: others.rows() > before + SOME, 15, "rows of the other one")
        assert paused.rows() == rows
        assert held(paused) == owners
        assert len(owners) == 2

        # And: all that shows the routes says so, and calls it no fault.
        assert_said(command, daemon, standby, monitor)

        # And: nobody who asks for the table is left waiting.
        wait_listening(port)
        with Client(port, timeout_seconds=30) as client:
            reply = client.post("/v1/paused?ack=db", b'{"seq":0}')  # a dead letter, later
            assert reply.status == 202
            assert reply.json["pending"].startswith("the route is paused since")

        # And: neither does a worker that is new, nor a host that takes over, write for it.
        [worker, *_] = daemon.workers()
        os.kill(worker, signal.SIGKILL)
        daemon.wait_for_log("action=pause", 10, count=3)
        daemon.kill()
        wait_until(lambda: {pid for _, pid in held(paused)} <= set(standby.workers()), 20, "a takeover")
        before = others.rows()
        wait_until(lambda: others.rows() > before + SOME, 15, "rows of the other one")
        assert paused.rows() == rows

        # When: it is resumed.
        code, said = command(standby, "route", "resume", "paused")
        assert (code, said[:20]) == (0, "route paused goes on")
        assert command(standby, "route", "resume", "paused") == (0, "route paused is not paused\n")
        wait_until(lambda: paused.rows() > rows, 10, "rows again")
    for delivery in (paused, others):
        delivery.wait_drained()
        delivery.assert_exactly_once()


def assert_said(command: Command, daemon: Daemon, standby: Daemon, monitor: Monitor) -> None:
    """Compare what the commands say, the page and the metrics."""
    monitor.wait_for("kbatchd_partitions_state", ("paused", "paused"), 2)
    page = {route["name"]: route for route in monitor.status()["routes"]}
    assert (page["paused"]["word"], page["others"]["word"], page["others"]["paused"]) == ("paused", "ok", None)
    assert monitor.answers("/health/ready")
    shown = json.loads(command(standby, "status", "--json")[1])
    assert [route["state"] for route in shown["routes"]] == ["paused", "no fault seen"]
    assert {each["state"] for each in shown["partitions"] if each["route"] == "paused"} == {"paused"}
    assert shown["routes"][0]["paused"]["by"] == page["paused"]["paused"]["by"]
    code, said = command(daemon, "status", "--exit-code")
    assert (code, "\nroute paused is paused since " in said) == (0, True), said
    code, said = command(daemon, "check")
    assert (code, "it is paused since" in said) == (0, True), said


def held(delivery: Delivery) -> list[tuple[object, ...]]:
    """Return which process holds each partition of a route."""
    return delivery.query("SELECT partition, pid FROM kbatchd.progress WHERE route = %s ORDER BY 1", delivery.name)
