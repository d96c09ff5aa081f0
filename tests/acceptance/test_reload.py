"""SIGHUP under load: the file is read again, every worker is replaced, and nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.fix_daemon import children, is_alive, wait_until
from tests.fix_http import Client, free_port, wait_listening
from tests.fix_monitor import Monitor

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_http import MakeGateway
    from tests.fix_load import Delivery, MakeDelivery
    from tests.fix_monitor import MakeMonitored

PER_SECOND = 1_000

#: Workers are replaced one by one, each drained first; the file is checked as at a start.
RELOAD_SECONDS = 40.0


def change(file: Path, *changes: tuple[str, str]) -> None:
    """Replace text in the file, each once."""
    text = file.read_text()
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file.write_text(text)


def reload(daemon: Daemon, outcome: str = "action=reloaded") -> None:
    """Send SIGHUP, and wait until it is over."""
    before = len(daemon.logged(outcome))
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log(outcome, RELOAD_SECONDS, before + 1)


def route(delivery: Delivery) -> str:
    return "\n".join(["[[route]]", *(f"{key} = {json.dumps(value)}" for key, value in delivery.route.items()), ""])


def test_workers_and_batches_change_under_load(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    with delivery.load(PER_SECOND):
        first = daemon.workers()
        for was, count, rows in ((2, 3, 500), (3, 1, 50), (1, 2, 3_000)):
            change(daemon.config, (f"count = {was}\n", f"count = {count}\n"))
            text = re.sub(r"max_rows = \d+", f"max_rows = {rows}", daemon.config.read_text())
            daemon.config.write_text(text)
            reload(daemon)
            assert len(daemon.workers()) == count
            assert not set(first) & set(daemon.workers())
        assert "'workers.count', 'batch.max_rows'" in daemon.logged("action=settings_read")[-1]
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert not daemon.logged("ERROR")
    assert daemon.stop() == 0


def test_routes_come_and_go_under_load(make_daemon: MakeDaemon, make_delivery: MakeDelivery) -> None:
    kept, going, coming = (make_delivery(table=f"public.{name}") for name in ("kept", "going", "coming"))
    daemon = make_daemon(kept.route, going.route).start()
    daemon.wait_ready()
    with kept.load(PER_SECOND), going.load(PER_SECOND), coming.load(PER_SECOND):
        wait_until(lambda: going.rows() > 0, 10, "rows in the route that goes")
        change(daemon.config, (route(going), route(coming)))
        reload(daemon)
        wait_until(lambda: coming.rows() > 0, 10, "rows in the route that has come")
        gone_at = going.progress()
        change(daemon.config, (route(kept), route(going) + route(kept)))
        reload(daemon)
        wait_until(lambda: sum(going.progress().values()) > sum(gone_at.values()), 10, "more of the one that came back")
    for delivery in (kept, going, coming):
        delivery.wait_drained()
        delivery.assert_exactly_once()
    assert daemon.stop() == 0


def test_a_faulty_file_changes_nothing(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    workers = daemon.workers()
    sound = daemon.config.read_text()
    with delivery.load(PER_SECOND):
        daemon.config.write_text(sound.replace("count = 2", "count = 0").replace("max_rows = 2000", 'max_rows = "x"'))
        reload(daemon, "action=reload_refused")
        faults = daemon.logged("action=check_failed")
        assert any("workers.count: is 0; allowed" in fault for fault in faults)
        assert any("batch.max_rows: is a string; allowed" in fault for fault in faults)
        # What only the servers know is checked as well, and what a reload cannot change is said.
        daemon.config.write_text(sound.replace(delivery.table, "public.nowhere"))
        reload(daemon, "action=reload_refused")
        assert any("public.nowhere" in fault for fault in daemon.logged("action=check_failed"))
        daemon.config.write_text(f'pipeline = "another"\n{sound}')
        reload(daemon, "action=reload_refused")
        assert any("cannot be changed by a reload" in fault for fault in daemon.logged("action=check_failed"))
        assert daemon.workers() == workers
        daemon.config.write_text(sound)
        reload(daemon)
        assert not set(workers) & set(daemon.workers())
    delivery.wait_drained()
    delivery.assert_exactly_once()


def test_reloads_in_a_row_and_a_stop_in_the_middle(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route, workers={"count": 4}).start()
    daemon.wait_ready()
    with delivery.load(PER_SECOND):
        for _ in range(5):
            os.kill(daemon.pid, signal.SIGHUP)
            daemon.wait_for_log("action=reloading", count=1)
        daemon.wait_for_log("action=worker_replaced", RELOAD_SECONDS)
        os.kill(daemon.pid, signal.SIGHUP)
        daemon.wait_for_log("action=worker_replaced", RELOAD_SECONDS, count=2)
        everybody = children(daemon.pid)
        assert daemon.stop(seconds=30) == 0
        assert not any(map(is_alive, everybody))
        daemon.start().wait_ready()
    delivery.wait_drained()
    delivery.assert_exactly_once()


def test_killed_workers_do_not_stop_a_reload(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route, workers={"count": 3}).start()
    daemon.wait_ready()
    with delivery.load(PER_SECOND):
        former = daemon.workers()
        os.kill(daemon.pid, signal.SIGHUP)
        os.kill(former[1], signal.SIGKILL)
        daemon.wait_for_log("action=worker_replaced", RELOAD_SECONDS)
        with suppress(ProcessLookupError):  # it may have been replaced already
            os.kill(former[2], signal.SIGKILL)
        daemon.wait_for_log("action=reloaded", RELOAD_SECONDS)
        wait_until(lambda: len(daemon.workers()) == 3, 10, "three workers")
        assert not set(former) & set(daemon.workers())
    delivery.wait_drained()
    delivery.assert_exactly_once()


def test_a_group_under_load(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    kafka = {"assignment": "group", "librdkafka.session.timeout.ms": 6_000}
    daemon = make_daemon(delivery.route, kafka=kafka).start()
    daemon.wait_ready()
    with delivery.load(PER_SECOND):
        wait_until(lambda: delivery.rows() > PER_SECOND, 30, "rows before the reload")
        change(daemon.config, ("count = 2\n", "count = 3\n"))
        reload(daemon)
    delivery.wait_drained(60)
    delivery.assert_exactly_once()
    assert daemon.stop() == 0


def test_the_monitor_moves_and_sees_the_new_settings(make_monitored: MakeMonitored, delivery: Delivery) -> None:
    daemon, monitor = make_monitored(delivery.route)
    monitor.wait_ready()
    port = free_port()
    change(daemon.config, (f":{monitor.port}", f":{port}"), ("count = 2\n", "count = 3\n"))
    reload(daemon)
    moved = Monitor(port)
    wait_until(moved.answers, 20, "the monitor at its new address")
    wait_until(lambda: not monitor.answers(), 10, "silence at the former one")
    moved.wait_ready()
    assert sum(each["kind"] == "worker" for each in moved.status()["processes"]) == 3
    # Nothing of it has changed: the same process goes on, and sees the workers that are new.
    reload(daemon)
    assert len(daemon.logged("action=monitor_started")) == 2
    moved.wait_ready()
    moved.client.close()


def test_a_monitor_comes_and_goes(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    sound = daemon.config.read_text()
    monitor = Monitor(free_port())
    with delivery.load(PER_SECOND):
        for _ in range(2):  # what has gone once comes again
            daemon.config.write_text(f'{sound}\n[monitor]\nlisten = "127.0.0.1:{monitor.port}"\n')
            reload(daemon)
            wait_until(lambda: monitor.answers("/"), 10, "the page")
            monitor.wait_ready()
            assert len(daemon.monitors()) == 1
            assert_rows_arrive(delivery)

            daemon.config.write_text(sound)
            reload(daemon)
            wait_until(lambda: not daemon.monitors(), 10, "the end of the monitor's process")
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", monitor.port))
            assert len(daemon.workers()) == 2
            assert_rows_arrive(delivery)
    monitor.client.close()
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert not daemon.logged("ERROR")
    assert daemon.stop() == 0


def assert_rows_arrive(delivery: Delivery) -> None:
    """See that more comes than was under way."""
    wanted = delivery.rows() + 2 * PER_SECOND
    wait_until(lambda: delivery.rows() > wanted, 10, "more rows")


class TestGateway:
    @pytest.fixture
    def serving(self, make_gateway: MakeGateway, delivery: Delivery) -> tuple[Daemon, Delivery]:
        daemon, client = make_gateway(delivery.route)
        client.close()
        return daemon, delivery

    def test_it_stays_when_nothing_of_it_has_changed(self, serving: tuple[Daemon, Delivery]) -> None:
        daemon, _ = serving
        gateways = daemon.gateways()
        change(daemon.config, ("linger_seconds = 0.2", "linger_seconds = 0.3"))
        reload(daemon)
        assert daemon.gateways() == gateways

    def test_it_answers_while_it_is_replaced(self, serving: tuple[Daemon, Delivery]) -> None:
        """Each connection is a new one, as from many clients; all requests are answered, and all records arrive."""
        daemon, delivery = serving
        [line] = [line for line in daemon.config.read_text().splitlines() if line.startswith("listen")]
        port = int(line.rpartition(":")[2].strip('"'))
        answered: list[int] = []
        numbers = count()
        over = threading.Event()

        def send() -> None:
            while not over.is_set():
                answered.append(_post(port, delivery.topic, next(numbers)))

        clients = [threading.Thread(target=send) for _ in range(8)]
        for client in clients:
            client.start()
        gateways = daemon.gateways()
        change(daemon.config, ("[gateway]", "[gateway]\nmax_connections = 9_000"))
        reload(daemon)
        over.set()
        for client in clients:
            client.join()
        assert set(answered) == {202}
        assert len(answered) == next(numbers), "a connection was reset"
        assert len(daemon.gateways()) == 1
        assert daemon.gateways() != gateways
        wait_until(lambda: delivery.rows() == len(answered), 20, "all that was sent, in the table")

    def test_it_comes_and_goes(self, make_daemon: MakeDaemon, delivery: Delivery) -> None:
        daemon = make_daemon(delivery.route).start()
        daemon.wait_ready()
        port = free_port()
        sound = daemon.config.read_text()
        daemon.config.write_text(f'{sound}\n[gateway]\nlisten = "127.0.0.1:{port}"\n')
        reload(daemon)
        wait_listening(port)
        assert _post(port, delivery.topic, 0) == 202
        daemon.config.write_text(sound)
        reload(daemon)
        assert daemon.gateways() == []
        wait_until(lambda: delivery.rows() == 1, 10, "the record in the table")


def _post(port: int, topic: str, seq: int) -> int:
    with Client(port) as client:
        return client.post(f"/v1/{topic}", b'{"partition":0,"seq":%d}' % seq).status


def test_sigusr1_writes_the_state_into_the_log(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    delivery.send(100)
    delivery.wait_drained()

    def states() -> list[str]:
        told, lanes = (len(daemon.logged(f"action={what}")) for what in ("worker_state", "lane_state"))
        os.kill(daemon.pid, signal.SIGUSR1)
        daemon.wait_for_log("action=worker_state", count=told + 2)
        daemon.wait_for_log("action=lane_state", count=lanes + 2)
        return daemon.logged("action=worker_state")[-2:]

    def rows() -> int:
        return sum(int(line.partition(" rows=")[2].split()[0]) for line in states())

    wait_until(lambda: rows() == 100, 10, "the count of what is in the table")  # it is counted after the commit
    assert all(" state=running " in line for line in states())
    lanes = daemon.logged("action=lane_state")[-2:]
    assert all(f"route={delivery.topic} " in line for line in lanes)
    reached = {
        int(number): int(offset)
        for line in lanes
        for number, offset in re.findall(r"(\d+): (\d+)", line.partition(" next_offsets=")[2].partition("}")[0])
    }
    assert reached == delivery.progress()
    assert daemon.workers()
    assert not daemon.logged("WARNING")
