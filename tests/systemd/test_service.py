"""The daemon as a service of a real systemd, hardened as it is shipped, beside the tests' Kafka and PostgreSQL."""

from __future__ import annotations

import http.client
import json
import signal
import time
import uuid
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from kbatchd.devstack.process import free_ports
from tests.fix_daemon import wait_until
from tests.fix_systemd import ServiceManager, wait_for_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import GivenKafka, Kafka

pytestmark = pytest.mark.systemd

UNIT = "kbatchd.service"
TABLE = "CREATE TABLE public.systemd (id bigint NOT NULL, path text NOT NULL)"


class Service:
    """A unit of kbatchd with a file, a topic and a table of its own."""

    def __init__(self, manager: ServiceManager, unit: str, bootstrap_servers: str, dsn: str) -> None:
        self.manager = manager
        self.unit = unit
        self.dsn = dsn
        self.topic = f"systemd-{uuid.uuid4().hex[:8]}"
        self.port, self.monitor_port = free_ports(2)
        name = unit.removesuffix(".service").rpartition("@")[2]
        self.path = f"/etc/kbatchd/{name}.toml"
        self._bootstrap_servers = bootstrap_servers
        self.write()
        manager.run("/usr/local/bin/kbatchd", "create-topic", "--config", self.path)

    def write(self, *, linger_seconds: object = 0.2, workers: int = 2) -> None:
        """Write the file; what is not said stays as it was."""
        text = f"""
            [kafka]
            bootstrap_servers = {json.dumps(self._bootstrap_servers)}
            [postgres]
            dsn = {json.dumps(self.dsn)}
            [workers]
            count = {workers}
            buffer_bytes = 8_388_608
            [batch]
            linger_seconds = {linger_seconds}
            max_bytes = 1_048_576
            [gateway]
            listen = "127.0.0.1:{self.port}"
            [monitor]
            listen = "127.0.0.1:{self.monitor_port}"
            [[route]]
            topic = {json.dumps(self.topic)}
            table = "public.systemd"
        """
        self.manager.write(self.path, text)
        self.manager.run("systemd-tmpfiles", "--create", "kbatchd.conf")  # the mode and the owner, as at a boot

    def post(self, record: dict[str, object], headers: dict[str, str] | None = None) -> int:
        """Send a record through the gateway, and wait until it is in the table; return the status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            content = {"content-type": "application/json"}
            connection.request("POST", f"/v1/{self.topic}?ack=db", json.dumps(record), content | (headers or {}))
            return connection.getresponse().status
        finally:
            connection.close()

    def readiness(self) -> Any:
        """Ask the monitor; nothing as long as it does not listen."""
        connection = http.client.HTTPConnection("127.0.0.1", self.monitor_port, timeout=30)
        try:
            connection.request("GET", "/health/ready")
            return json.loads(connection.getresponse().read())
        except ConnectionError:
            return {"ready": False}
        finally:
            connection.close()

    def ids(self) -> list[int]:
        with psycopg.connect(self.dsn) as connection:
            return [row[0] for row in connection.execute("SELECT id FROM public.systemd ORDER BY id")]

    def systemctl(self, verb: str, *, check: bool = True) -> str:
        return self.manager.run("systemctl", verb, self.unit, check=check).stderr

    def start(self) -> None:
        self.systemctl("start")  # returns with the daemon's READY=1

    def main_pid(self) -> int:
        return int(self.manager.show(self.unit, "MainPID")["MainPID"])

    def journal(self) -> str:
        return self.manager.journal(self.unit)


@pytest.fixture
def service(service_manager: ServiceManager, kafka: Kafka | GivenKafka, database: str) -> Iterator[Service]:
    with psycopg.connect(database) as connection:
        connection.execute(TABLE)
    service = Service(service_manager, UNIT, kafka.bootstrap_servers, database)
    yield service
    _leave(service)


def _leave(service: Service) -> None:
    service.systemctl("stop", check=False)
    service.manager.run("systemctl", "reset-failed", service.unit, check=False)
    for path in ("etc/credstore", f"run/units/{service.unit}.d"):
        directory = service.manager.root / path
        for file in directory.glob("*") if directory.exists() else ():
            file.unlink()
    service.manager.run("systemctl", "daemon-reload")


def test_start_write_and_stop(service: Service) -> None:
    service.start()
    state = service.manager.show(UNIT, "ActiveState", "SubState", "StatusText", "User")
    assert (state["ActiveState"], state["SubState"], state["User"]) == ("active", "running", "kbatchd")
    assert "2 workers" in state["StatusText"]
    assert service.post({"id": 1, "path": "/"}) == 200
    assert service.ids() == [1]
    deadline = time.monotonic() + 120.0
    while not (answer := service.readiness())["ready"]:
        assert time.monotonic() < deadline, f"{answer}\n{service.journal()}"
        time.sleep(0.1)
    service.systemctl("stop")
    ended = service.manager.show(UNIT, "Result", "ExecMainStatus", "ActiveState")
    assert ended == {"Result": "success", "ExecMainStatus": "0", "ActiveState": "inactive"}
    journal = service.journal()
    assert "action=stopped" in journal
    assert "Permission denied" not in journal
    assert "Operation not permitted" not in journal


def test_it_sees_nothing_but_what_it_needs(service: Service) -> None:
    service.start()
    status = (service.manager.root / f"proc/{service.main_pid()}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapBnd"], 16) == int(fields["CapEff"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert "0" not in fields["Uid"].split()


def test_reload_with_faults_changes_nothing(service: Service) -> None:
    service.start()
    before = service.main_pid()
    service.write(linger_seconds='"soon"')
    service.systemctl("reload")
    wait_until(lambda: "batch.linger_seconds" in service.journal(), 10.0, "the fault in the journal")
    wait_for_state(service.manager, UNIT, "active")
    assert service.main_pid() == before
    assert service.post({"id": 1, "path": "/"}) == 200


def test_reload_keeps_the_daemon(service: Service) -> None:
    service.start()
    before = service.main_pid()
    assert service.post({"id": 1, "path": "/"}) == 200
    service.write(linger_seconds=0.1)
    service.systemctl("reload")
    wait_until(lambda: "action=reloaded" in service.journal(), 30.0, "the workers replaced")
    wait_for_state(service.manager, UNIT, "active")
    assert service.post({"id": 2, "path": "/"}) == 200
    assert service.main_pid() == before
    assert service.ids() == [1, 2]


def test_killed_it_is_started_again(service: Service) -> None:
    service.manager.write(f"/run/units/{UNIT}.d/soon.conf", "[Service]\nRestartSec=100ms\n")
    service.manager.run("systemctl", "daemon-reload")
    service.start()
    assert service.post({"id": 1, "path": "/"}) == 200
    before = service.main_pid()
    service.manager.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", UNIT)
    wait_until(lambda: service.main_pid() not in (0, before), 30.0, "another main process")
    wait_for_state(service.manager, UNIT, "active")
    assert service.post({"id": 2, "path": "/"}) == 200
    assert service.ids() == [1, 2]


def test_frozen_it_is_killed_by_the_watchdog(service: Service) -> None:
    service.manager.write(f"/run/units/{UNIT}.d/soon.conf", "[Service]\nWatchdogSec=6s\nRestartSec=100ms\n")
    service.manager.run("systemctl", "daemon-reload")
    service.start()
    before = service.main_pid()
    service.manager.run("systemctl", "kill", f"--signal={signal.SIGSTOP.name}", "--kill-whom=main", UNIT)
    wait_until(lambda: service.main_pid() not in (0, before), 60.0, "another main process")
    wait_for_state(service.manager, UNIT, "active")
    assert "Watchdog timeout" in service.journal()


def test_a_file_with_faults_is_not_tried_again(service: Service) -> None:
    service.write(workers=0)
    service.systemctl("start", check=False)
    wait_for_state(service.manager, UNIT, "failed")
    assert service.manager.show(UNIT, "ExecMainStatus", "NRestarts") == {"ExecMainStatus": "78", "NRestarts": "0"}
    assert "workers.count" in service.journal()


def test_secrets_come_from_the_credential_store(service: Service) -> None:
    service.manager.write("/etc/credstore/kbatchd.gateway_tokens", "a-token-for-the-service-test\n", 0o600)
    service.start()
    assert service.post({"id": 1, "path": "/"}) == 401
    assert service.post({"id": 1, "path": "/"}, {"authorization": "Bearer a-token-for-the-service-test"}) == 200
    assert "a-token-for-the-service-test" not in service.journal()


def test_an_instance_of_the_template(
    service: Service, service_manager: ServiceManager, kafka: Kafka | GivenKafka, database: str
) -> None:
    service.start()
    other = Service(service_manager, "kbatchd@orders.service", kafka.bootstrap_servers, database)
    try:
        other.start()
        assert other.post({"id": 7, "path": "/"}) == 200
        assert (service_manager.root / "var/lib/kbatchd/orders").is_dir()
        other.systemctl("stop")
        assert service.post({"id": 8, "path": "/"}) == 200
    finally:
        _leave(other)
