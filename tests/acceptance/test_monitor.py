"""The monitor: true figures, health with reasons, no secrets, and no harm to anybody."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import Producer

from kbatchd.monitor.app import BURST, KEEP_SECONDS, REQUESTS_PER_SECOND
from tests.acceptance.test_rules import delete_records
from tests.fix_daemon import children, is_alive, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_load import Delivery
    from tests.fix_monitor import MakeMonitored, Monitor


def monitor_of(daemon: Daemon) -> int:
    """The monitor's pid."""
    return next(
        int(line.partition(" pid=")[2].split()[0]) for line in reversed(daemon.logged("action=monitor_started"))
    )


def lag_of(monitor: Monitor, delivery: Delivery) -> dict[int, float]:
    return {
        int(labels[0]): value
        for (name, labels), value in monitor.metrics().items()
        if name == "kbatchd_lag_records" and labels[1] == delivery.route["name"]
    }


def waits_of(monitor: Monitor) -> list[float]:
    return [value for (name, _), value in monitor.metrics().items() if name == "kbatchd_lag_seconds"]


def true_lag(delivery: Delivery) -> dict[int, int]:
    """What a reader of committed records has left to read: counted from the topic itself, not from its offsets."""
    progress, topic = delivery.progress(), delivery.read_topic()
    return {number: sum(offset >= at for offset, _ in topic.get(number, [])) for number, at in progress.items()}


def test_figures_are_those_of_the_table_and_the_topic(delivery: Delivery, make_monitored: MakeMonitored) -> None:
    _, monitor = make_monitored(delivery.route)
    delivery.send(1_000)
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers})
    for _ in range(3):
        producer.produce(delivery.topic, b"no JSON", partition=0)
    assert producer.flush(30) == 0
    delivery.wait_drained()
    route = str(delivery.route["name"])
    monitor.wait_for("kbatchd_rows_total", (route,), delivery.rows())
    monitor.wait_for("kbatchd_dead_letters_total", ("not_json", route), 3)
    monitor.wait_ready()
    for partition, end in delivery.ends().items():
        monitor.wait_for("kbatchd_next_offset", (str(partition), route, delivery.topic), end)
    figures = monitor.metrics()
    assert set(lag_of(monitor, delivery).values()) == {0}
    assert figures["kbatchd_records_total", (route,)] == 1_003
    assert figures["kbatchd_freshness_seconds_count", (route,)] == 1_003
    assert 0 < figures["kbatchd_freshness_seconds_sum", (route,)] / 1_003 < 30
    batches = sum(value for (name, labels), value in figures.items() if name == "kbatchd_batches_total")
    [(ledger,)] = delivery.query("SELECT count(*) FROM kbatchd.batches WHERE rows + dead_letters > 0")
    assert figures["kbatchd_flush_seconds_count", (route,)] == ledger
    assert batches >= figures["kbatchd_flush_seconds_count", (route,)]


def test_lag_is_true_through_a_lock_a_worker_s_death_and_a_restart(
    delivery: Delivery, make_monitored: MakeMonitored, database: str
) -> None:
    daemon, monitor = make_monitored(delivery.route)
    delivery.send(200)
    delivery.wait_drained()
    with psycopg.connect(database) as connection:
        connection.execute("LOCK TABLE public.numbered IN ACCESS EXCLUSIVE MODE")
        sent_at = time.time()
        delivery.send(1_200, first=50)
        was_sent_at = time.time()
        truth = true_lag(delivery)
        assert sum(truth.values()) == 1_200
        wait_until(lambda: lag_of(monitor, delivery) == truth, 15, "the lag", 0.2)
        wait_until(lambda: min(waits_of(monitor), default=0) > 3, 15, "the age of what waits", 0.2)
        asked_at = time.time()
        waits = waits_of(monitor)
        assert len(waits) == 4
        oldest, youngest = time.time() - sent_at, asked_at - KEEP_SECONDS - was_sent_at
        assert all(youngest - 1 < wait < oldest + 1 for wait in waits), (youngest, waits, oldest)
        # A worker dies, and its partitions with their lag stay in sight: the supervisor is held up meanwhile.
        os.kill(daemon.pid, signal.SIGSTOP)
        victim = daemon.workers()[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not is_alive(victim), 5, "the worker's end")
        time.sleep(KEEP_SECONDS)  # what was told before is told no more
        assert lag_of(monitor, delivery) == truth
        os.kill(daemon.pid, signal.SIGCONT)
        daemon.wait_for_log("action=worker_ended")
        wait_until(lambda: lag_of(monitor, delivery) == truth, 15, "the lag again", 0.2)
        daemon.kill()
    daemon.start().wait_ready()
    monitor.wait_ready()
    delivery.wait_drained()
    wait_until(lambda: lag_of(monitor, delivery) == dict.fromkeys(range(4), 0), 15, "no lag", 0.2)
    delivery.assert_exactly_once()


def test_lag_counts_no_open_transaction_and_nothing_that_retention_took(
    delivery: Delivery, make_monitored: MakeMonitored
) -> None:
    daemon, monitor = make_monitored({**delivery.route, "on_gap": "halt"})
    delivery.send(40)
    delivery.wait_drained()
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers, "transactional.id": delivery.topic})
    producer.init_transactions()
    producer.begin_transaction()
    for seq in range(5):
        producer.produce(delivery.topic, b'{"partition":0,"seq":%d}' % (10 + seq), partition=0)
    assert producer.flush(30) == 0
    looked_at = monitor.status()["at"]
    wait_until(lambda: monitor.status()["at"] > looked_at + 3, 10, "another look", 0.3)
    assert lag_of(monitor, delivery) == dict.fromkeys(range(4), 0), "what is not committed cannot be read"
    producer.commit_transaction()
    delivery.wait_drained()
    # The daemon stands still while a part of the topic is deleted: what is gone is no lag, what is left is.
    daemon.send_to_all(signal.SIGSTOP)
    delivery.send(400, first=20)
    delete_records(delivery, {1: 60})
    daemon.send_to_all(signal.SIGCONT)
    route = str(delivery.route["name"])
    monitor.wait_for("kbatchd_partitions_halted", (route,), 1)
    truth = {0: 0, 1: delivery.ends()[1] - 60, 2: 0, 3: 0}
    wait_until(lambda: lag_of(monitor, delivery) == truth, 20, "the lag of what is left", 0.3)
    assert monitor.metrics()["kbatchd_gaps_total", ("retention", route)] == 1
    ready = monitor.client.request("GET", "/health/ready").json
    assert f"route {route}: halted partitions: 1" in ready["warnings"]
    [partition] = [each for each in monitor.status()["partitions"] if each["partition"] == 1]
    assert (partition["state"], partition["halted"], partition["lost"]) == ("retention", True, 50)


@pytest.mark.soak
def test_lag_of_two_daemons_is_told_once(delivery: Delivery, make_monitored: MakeMonitored) -> None:
    group = {"assignment": "group", "group_id": delivery.topic}
    _, monitor = make_monitored(delivery.route, kafka=group)
    assert sorted(lag_of_when_asked(monitor, delivery, 4)) == [0, 1, 2, 3]
    second, other = make_monitored(delivery.route, kafka=group)
    with delivery.load(200):
        wait_until(
            lambda: (
                sorted([*lag_of(monitor, delivery), *lag_of(other, delivery)]) == [0, 1, 2, 3]
                and lag_of(other, delivery)
            ),
            40,
            "each partition at one of two",
            0.3,
        )
        assert second.stop() == 0
        wait_until(lambda: sorted(lag_of(monitor, delivery)) == [0, 1, 2, 3], 30, "all at the first again", 0.3)
    delivery.wait_drained()
    delivery.assert_exactly_once()


def lag_of_when_asked(monitor: Monitor, delivery: Delivery, partitions: int) -> dict[int, float]:
    wait_until(lambda: len(lag_of(monitor, delivery)) == partitions, 20, "the lag of all partitions", 0.2)
    return lag_of(monitor, delivery)


def test_health_gives_reasons(delivery: Delivery, make_monitored: MakeMonitored) -> None:
    daemon, monitor = make_monitored(delivery.route)
    monitor.wait_ready()
    assert monitor.client.request("GET", "/health/live").json == {"live": True}
    victim = daemon.workers()[0]
    os.kill(victim, signal.SIGSTOP)

    def reasons() -> list[str]:
        reply = monitor.client.request("GET", "/health/ready")
        return list(reply.json["reasons"]) if reply.status == 503 else []

    wait_until(lambda: [" has been silent for " in reason for reason in reasons()] == [True], 15, "not ready", 0.2)
    assert monitor.client.request("GET", "/health/live").status == 200
    os.kill(victim, signal.SIGCONT)
    monitor.wait_ready()


def test_monitor_that_dies_is_replaced_and_disturbs_nobody(delivery: Delivery, make_monitored: MakeMonitored) -> None:
    daemon, monitor = make_monitored(delivery.route, workers={"heartbeat_timeout_seconds": 6.0})
    workers = daemon.workers()
    victim = monitor_of(daemon)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: monitor_of(daemon) != victim, 10, "a new monitor")
    delivery.send(100)
    delivery.wait_drained()
    monitor.wait_ready()
    # One that hangs is replaced as well.
    victim = monitor_of(daemon)
    os.kill(victim, signal.SIGSTOP)
    delivery.send(100, first=25)
    delivery.wait_drained()
    wait_until(lambda: not is_alive(victim), 15, "the end of the one that hangs")
    monitor.wait_ready()
    # What the workers have counted is still there.
    monitor.wait_for("kbatchd_rows_total", (str(delivery.route["name"]),), 200)
    assert [pid for pid in daemon.workers() if pid in workers] == workers
    assert daemon.stop() == 0
    assert not is_alive(monitor_of(daemon))


def test_without_the_table_there_is_no_monitor(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    wait_until(lambda: len(children(daemon.pid)) == 2, 10, "the workers alone")  # pruning, too, is a child for a moment
    assert not daemon.logged("monitor")


def test_port_that_is_taken_stops_nobody(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        daemon = make_daemon(delivery.route, monitor={"listen": listen}).start()
        daemon.wait_ready()
        daemon.wait_for_log("action=monitor_ended", count=2)
        assert f"monitor.listen: {listen}: Address already in use" in daemon.logged("action=monitor_failed")[0]
        delivery.send(100)
        delivery.wait_drained()


@pytest.mark.soak
def test_five_hundred_connections(delivery: Delivery, make_monitored: MakeMonitored) -> None:
    _, monitor = make_monitored(delivery.route)
    monitor.client.close()
    with ExitStack() as connections:
        for _ in range(500):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", monitor.port), timeout=10))
            connection.sendall(b"GET /metrics HTTP/1.1\r\n")  # and never the rest
        delivery.send(200)
        delivery.wait_drained()
        # They are sent away in time, and it answers again while they are still there.
        wait_until(monitor.answers, 15, "an answer in spite of them", 0.3)
    assert monitor.status()["processes"][-1]["restarts"] == 0


def test_a_flood_waits_for_its_turns(delivery: Delivery, make_monitored: MakeMonitored) -> None:
    _, monitor = make_monitored(delivery.route)
    request = b"GET /history.json?since=9e9 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack:
        address = "127.0.0.1", monitor.port
        connections = [stack.enter_context(socket.create_connection(address, timeout=30)) for _ in range(250)]
        began = time.monotonic()
        for connection in connections:
            connection.sendall(request)
        assert monitor.client.request("GET", "/health/live").status == 200
        assert not select.select(connections[-1:], [], [], 0)[0], "a probe is answered before those who wait"
        assert all(connection.recv(65_536).startswith(b"HTTP/1.1 200") for connection in connections)
        assert time.monotonic() - began > (250 - BURST) / REQUESTS_PER_SECOND - 0.1


def test_answers_are_for_this_host_and_only_to_get(delivery: Delivery, make_monitored: MakeMonitored) -> None:
    _, monitor = make_monitored(delivery.route)
    ask = monitor.client.request
    assert ask("GET", "/metrics", host="attacker.example").status == 403
    for host in ("localhost", "127.0.0.1:9464", "[::1]:9464", "[::1]"):
        assert ask("GET", "/metrics", host=host).status == 200
    assert ask("POST", "/metrics", b"").status == 405
    assert ask("GET", "/nothing").status == 404
    head = ask("HEAD", "/status.json")
    assert (head.status, head.body, head.headers["cache-control"]) == (200, b"", "no-store")
    page = ask("GET", "/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert b"https://" not in page.body
    assert ask("GET", "/metrics", accept="application/openmetrics-text").body.endswith(b"# EOF\n")


def test_whatever_clients_accept_there_are_two_forms_of_metrics(
    delivery: Delivery, make_monitored: MakeMonitored
) -> None:
    """Each form is a page that is kept, and what a client says of versions and escaping is without end."""
    _, monitor = make_monitored(delivery.route)
    accepted = [
        *(f"application/openmetrics-text;version=1.{number}.0" for number in range(20)),
        *(f"text/plain;version=1.{number}.0;escaping=underscores" for number in range(20)),
        *(f"application/openmetrics-text;version={version}" for version in ("x", "", "0.0.1", "9" * 5_000)),
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
        "application/openmetrics-text", "application/openmetrics-textual", "text/html", "", "*/*", ",;,;q=",
    ]  # fmt: skip
    forms: dict[str, set[bool]] = {}
    for accept in accepted:
        reply = monitor.client.request("GET", "/metrics", accept=accept)
        assert reply.status == 200
        forms.setdefault(reply.headers["content-type"], set()).add(reply.body.endswith(b"# EOF\n"))
    assert len(forms) == 2
    assert all(forms[kind] == {kind.startswith("application/openmetrics-text")} for kind in forms)


def test_neither_secrets_nor_records_that_are_not_to_be_shown(
    delivery: Delivery, make_monitored: MakeMonitored, tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("canary-password-4711")
    password.chmod(stat.S_IRUSR)
    postgres = {"password_file": str(password)}
    _, monitor = make_monitored(delivery.route, postgres=postgres, monitor={"show_records": False})
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers})
    producer.produce(delivery.topic, b"canary-record-1147", key=b"canary-key", partition=0)
    assert producer.flush(30) == 0
    delivery.wait_drained()
    wait_until(lambda: monitor.status()["dead_letters"], 20, "the dead letter", 0.3)
    pages = ("/", "/metrics", "/status.json", "/health/ready", "/history.json", "/day.json")
    bodies = b"".join(monitor.client.request("GET", page).body for page in pages)
    assert b"canary-password-4711" not in bodies
    assert b"canary-record-1147" not in bodies
    assert b"canary-key" not in bodies
