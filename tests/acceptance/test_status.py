"""`kbatchd status`: true with the daemon up, frozen or down, and without Kafka."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg
from confluent_kafka import Producer

from kbatchd.errors import EX_UNAVAILABLE
from tests.fix_daemon import wait_until
from tests.fix_load import value

if TYPE_CHECKING:
    from kbatchd.devstack.kafka import Kafka
    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_kafka import MakeTopic
    from tests.fix_load import Delivery, MakeDelivery
    from tests.fix_monitor import MakeMonitored


def status(daemon: Daemon) -> Any:
    done = daemon.command("status", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_status_is_true_with_the_daemon_up_and_down(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route)
    # Nobody has begun yet,
    assert status(daemon)["routes"][0]["state"] == "no progress yet"
    # somebody works,
    daemon.start().wait_ready()
    delivery.send(500)
    delivery.wait_drained()
    shown = status(daemon)
    assert (shown["routes"][0]["state"], shown["routes"][0]["lag"], shown["trouble"]) == ("no fault seen", 0, [])
    assert {each["partition"]: each["next_offset"] for each in shown["partitions"]} == delivery.progress()
    assert {each["owner"] for each in shown["partitions"]} == {"worker-0", "worker-1"}
    [host] = shown["hosts"]
    assert (host["host"], host["workers"], host["partitions"], host["lag"]) == (socket.gethostname(), 2, 4, 0)
    assert host["since"] == min(each["since"] for each in shown["partitions"])
    # has stopped,
    assert daemon.stop() == 0
    delivery.send(80, first=125)
    shown = status(daemon)
    assert (shown["routes"][0]["state"], shown["routes"][0]["lag"], shown["hosts"]) == ("stopped", 80, [])
    assert {each["partition"]: each["end"] for each in shown["partitions"]} == delivery.ends()
    assert 0 < shown["routes"][0]["lag_seconds"] < 60
    # and programs get it in lines that nothing cuts.
    lines = [line.split("\t") for line in daemon.command("status").stdout.splitlines()]
    assert [delivery.topic, "public.numbered", "8", "80"] == lines[2][:4]
    assert [line[2] for line in lines[-4:]] == ["nobody"] * 4


def test_status_without_kafka_and_without_postgres(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    delivery.send(100)
    delivery.wait_drained()
    nowhere = make_daemon(delivery.route, kafka={"bootstrap_servers": "127.0.0.1:9"})
    shown = status(nowhere)
    assert "Kafka cannot be reached" in shown["trouble"][0]
    assert shown["routes"][0]["lag"] is None
    assert {each["partition"]: each["next_offset"] for each in shown["partitions"]} == delivery.progress()
    done = make_daemon(delivery.route, postgres={"dsn": "postgresql://kbatchd@127.0.0.1:9/x"}).command("status")
    assert done.returncode == EX_UNAVAILABLE
    assert done.stderr.startswith("kbatchd: PostgreSQL cannot be reached")


def test_what_stands_still_is_not_ok(
    make_monitored: MakeMonitored, make_daemon: MakeDaemon, make_delivery: MakeDelivery
) -> None:
    on_hold, halted, fine = (make_delivery(1, f"public.{name}") for name in ("on_hold", "halted", "fine"))
    halted.execute("ALTER TABLE public.halted ADD CONSTRAINT never CHECK (seq < 0)")
    routes = on_hold.route, {**halted.route, "max_dead_letters": 20}, fine.route
    daemon, monitor = make_monitored(*routes, workers={"count": 1})

    def states(asked: Daemon) -> list[str]:
        return [route["state"] for route in status(asked)["routes"]]

    # The daemon at the file's address tells what it does,
    wait_until(lambda: states(daemon) == ["ok"] * 3, 10, "the monitor's first look")
    halted.send(21)
    wait_until(lambda: states(daemon) == ["ok", "halted: breaker", "ok"], 20, "the breaker")
    on_hold.execute("ALTER TABLE public.on_hold RENAME TO hidden")
    for delivery in (on_hold, fine):
        delivery.send(20)
    wait_until(lambda: states(daemon)[:2] == ["on hold", "halted: breaker"], 10, "the route without a table")
    # and from elsewhere it is seen that records wait, and progress does not move.
    elsewhere = make_daemon(*routes)
    seen = ["stands still", "halted: breaker", "no fault seen"]
    wait_until(lambda: states(elsewhere) == seen, 30, "what stands still")
    assert elsewhere.command("status", "--exit-code").returncode == 1
    assert states(daemon) == ["on hold", "halted: breaker", "ok"]
    # Its partitions have the same word, here and on the page.
    words = {str(on_hold.topic): "on hold", str(halted.topic): "halted: breaker", str(fine.topic): "ok"}
    assert {each["topic"]: each["state"] for each in status(daemon)["partitions"]} == words
    page = monitor.status()
    assert [each["word"] for each in page["routes"]] == ["on hold", "halted: breaker", "ok"]
    assert {each["topic"]: each["word"] for each in page["partitions"]} == words
    on_hold.execute("ALTER TABLE public.hidden RENAME TO on_hold")
    on_hold.wait_drained()
    wait_until(lambda: states(daemon) == ["ok", "halted: breaker", "ok"], 10, "the route that was fixed")


def test_words_while_kafka_is_away(
    own_kafka: Kafka, own_make_topic: MakeTopic, database: str, make_monitored: MakeMonitored
) -> None:
    """How a partition stands is not known then: neither here nor on the page is it "ok"."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.t (id bigint)")
    servers = {"bootstrap_servers": own_kafka.bootstrap_servers}
    daemon, monitor = make_monitored({"topic": own_make_topic(2), "table": "public.t"}, kafka=servers)
    daemon.wait_ready()

    def words() -> set[str]:
        page = monitor.status()
        state = "kbatchd_partitions_state"
        told = {labels[-1] for name, labels in monitor.metrics() if name == state}
        return {each["word"] for each in (*page["routes"], *page["partitions"])} | told

    wait_until(lambda: words() == {"ok"}, 20, "the monitor's first look")
    own_kafka.kill()
    wait_until(lambda: words() == {"unknown"}, 20, "what is not known")
    assert not monitor.answers("/health/ready")
    done = daemon.command("status", "--json", "--exit-code")
    shown = json.loads(done.stdout)
    assert {each["state"] for each in (*shown["routes"], *shown["partitions"])} == {"unknown"}
    assert done.returncode == 1


def test_a_daemon_that_is_not_ready_is_not_fine(make_monitored: MakeMonitored, make_delivery: MakeDelivery) -> None:
    daemon, monitor = make_monitored(make_delivery(1).route, workers={"count": 1})
    wait_until(lambda: daemon.command("status", "--exit-code").returncode == 0, 20, "the first claim")
    [worker] = daemon.workers()
    os.kill(worker, signal.SIGSTOP)
    try:
        wait_until(lambda: not monitor.answers("/health/ready"), 10, "the monitor to see it")
        done = daemon.command("status", "--exit-code")
    finally:
        os.kill(worker, signal.SIGCONT)
    assert done.returncode == 1
    assert "! the daemon on this host is not ready: worker 0 has been silent for" in done.stdout


def test_status_does_not_claim_more_than_it_knows(
    make_monitored: MakeMonitored, make_daemon: MakeDaemon, make_delivery: MakeDelivery
) -> None:
    delivery = make_delivery(1, "public.halted")
    daemon, _ = make_monitored(delivery.route, workers={"count": 1})
    elsewhere = make_daemon(delivery.route)

    def states(asked: Daemon) -> list[str]:
        shown = status(asked)
        return [shown["routes"][0]["state"], shown["partitions"][0]["state"]]

    delivery.send(5)
    delivery.wait_drained()
    # Halted, as the topic ends below progress: both see it,
    delivery.execute("UPDATE kbatchd.progress SET next_offset = 10, records_end = 10, epoch = epoch + 1")
    wait_until(lambda: states(daemon) == ["halted: truncation"] * 2, 20, "the halted partition")
    assert states(elsewhere) == ["halted: truncation"] * 2
    # also when the topic has grown so far, and nothing waits.
    delivery.send(5)
    wait_until(lambda: states(daemon) == ["halted"] * 2, 10, "a topic that has grown")
    assert states(elsewhere) == ["halted"] * 2


def test_what_stands_still_is_seen_whatever_its_timestamps(
    make_daemon: MakeDaemon, make_delivery: MakeDelivery
) -> None:
    """Six partitions whose flush waits for a lock: of records of the future nobody can tell how long they wait."""
    delivery = make_delivery(6)
    daemon = make_daemon(delivery.route, postgres={"lock_timeout_seconds": 60}).start()
    daemon.wait_ready()
    delivery.send(6)
    delivery.wait_drained()
    assert daemon.command("status", "--exit-code").returncode == 0
    with psycopg.connect(delivery.dsn) as blocker:
        blocker.execute(f"LOCK TABLE {delivery.table}".encode())
        producer = Producer({"bootstrap.servers": delivery.bootstrap_servers})
        for partition in range(6):
            later = int((time.time() + 3600) * 1000)
            producer.produce(delivery.topic, value(partition, 7), partition=partition, timestamp=later)
        assert producer.flush(30) == 0

        def states() -> list[str]:
            return [each["state"] for each in status(daemon)["partitions"]]

        wait_until(lambda: states() == ["stands still"] * 6, 20, "all of them stand still")
        for _ in range(3):
            assert states() == ["stands still"] * 6
        done = daemon.command("status", "--exit-code")
        assert done.returncode == 1
        assert done.stdout.count("stands still") == 7
    delivery.wait_drained()
    assert daemon.command("status", "--exit-code").returncode == 0


def test_who_owns_a_partition_and_where(make_daemon: MakeDaemon, make_delivery: MakeDelivery) -> None:
    delivery = make_delivery(2)
    daemon, standby = (make_daemon(delivery.route) for _ in range(2))

    def owners() -> list[tuple[Any, ...]]:
        partitions = status(daemon)["partitions"]
        assert all(time.time() - 60 < each["since"] <= time.time() + 1 for each in partitions)
        return [(each["owner"], each["host"], each["pid"]) for each in partitions]

    daemon.start().wait_ready()
    host = socket.gethostname()
    assert owners() == [(f"worker-{number}", host, pid) for number, pid in enumerate(daemon.workers())]
    assert delivery.query("SELECT owner, host, pid FROM kbatchd.progress ORDER BY partition") == owners()
    # After a takeover it is another process.
    standby.start()
    standby.wait_for_log("action=ready", 30)
    daemon.kill()
    wait_until(lambda: [pid for *_, pid in owners()] == standby.workers(), 20, "the standby's claims")
    # Of a stopped pipeline nobody owns anything.
    assert standby.stop() == 0
    shown = status(daemon)
    assert {each["state"] for each in shown["partitions"]} == {"no owner"}
    assert shown["routes"][0]["state"] == "stopped"
    assert daemon.command("status", "--exit-code").returncode == 1


def test_watch_refreshes_in_place(make_daemon: MakeDaemon, delivery: Delivery) -> None:
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    leader, terminal = pty.openpty()
    command = [sys.executable, "-m", "kbatchd", "status", "--config", str(daemon.config), "--watch"]
    with subprocess.Popen(command, stdout=terminal, env={**os.environ, "COLUMNS": "160", "TERM": "xterm"}) as process:
        os.close(terminal)
        shown = bytearray()

        def shows(pattern: bytes) -> bool:
            shown.extend(os.read(leader, 65_536))
            return re.search(pattern, shown.rpartition(b"\x1b[H\x1b[2J")[2]) is not None

        wait_until(lambda: shows(rb"public.numbered +\d+ +0 "), 20, "the first look")
        delivery.send(120)
        wait_until(lambda: shows(rb"public.numbered +2 +0 "), 20, "the rate after 120 rows in a minute")
        process.send_signal(signal.SIGINT)
        # Read on until nobody has the terminal any more (EIO): a full terminal would hold the end back.
        timer = threading.Timer(60, process.kill)
        timer.start()
        with contextlib.suppress(OSError):
            while data := os.read(leader, 65_536):
                shown.extend(data)
        assert process.wait(60) == 0
        timer.cancel()
        assert shown.endswith(b"\x1b[?1049l"), "the first screen again"
    os.close(leader)
