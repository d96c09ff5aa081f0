"""Canaries: secrets that are easy to find, and a look into everything the daemon shows while much goes wrong."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.fix_daemon import wait_until
from tests.fix_http import Client, free_port

if TYPE_CHECKING:
    from tests.fix_daemon import Daemon, MakeDaemon
    from tests.fix_load import Delivery

CANARIES = {name: f"canary-{name}-5ba1c0ffee" for name in ("postgres", "kafka", "token", "url")}


def plant(directory: Path, name: str) -> str:
    path = directory / name
    path.write_text(f"{CANARIES[name]}\n")
    path.chmod(0o600)
    return str(path)


@pytest.fixture
def daemon(make_daemon: MakeDaemon, delivery: Delivery, tmp_path: Path) -> Daemon:
    """Every secret that the file can name, in use; and a DATABASE_URL that is not."""
    return make_daemon(
        delivery.route,
        postgres={"password_command": ["cat", plant(tmp_path, "postgres")]},
        # To a broker without SASL it is of no use: but it is what the clients are made with.
        kafka={"password_file": plant(tmp_path, "kafka"), "librdkafka.debug": "security,conf"},
        gateway={"listen": f"127.0.0.1:{free_port()}", "tokens_file": plant(tmp_path, "token")},
        monitor={"listen": f"127.0.0.1:{free_port()}"},
        log={"level": "debug"},
    )


def test_no_secret_is_seen(daemon: Daemon, delivery: Delivery, tmp_path: Path) -> None:
    daemon.start().wait_ready()
    gateway, monitor = (port_of(daemon, table) for table in ("[gateway]", "[monitor]"))
    shown = {}
    for process in (psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)):
        with suppress(psutil.NoSuchProcess):  # a password's command ends at any moment
            shown[f"cmdline of {process.pid}"] = " ".join(process.cmdline())
            shown[f"environ of {process.pid}"] = str(process.environ())
    assert {f"environ of {pid}" for pid in (daemon.pid, *daemon.workers(), *daemon.gateways())} <= shown.keys()
    with Client(gateway) as client:
        token = {"authorization": f"Bearer {CANARIES['token']}"}
        assert client.post(f"/v1/{delivery.topic}", b'{"partition":0,"seq":0}', **token).status == 202
        wrong = {"authorization": f"Bearer {CANARIES['token']}x"}
        shown["401"] = str(client.post(f"/v1/{delivery.topic}", b"{}", **wrong))
        shown["400"] = str(client.post(f"/v1/{delivery.topic}", b"{", **token))
        for path in ("/docs", "/openapi.json", "/no/such"):
            shown[path] = str(client.request("GET", path))
    wait_until(lambda: delivery.rows() == 1, 10, "the row")
    much_goes_wrong(daemon, delivery, tmp_path)
    with Client(monitor) as client:
        for path in ("/metrics", "/status.json", "/health/live", "/health/ready", "/", "/no/such"):
            shown[f"monitor {path}"] = str(client.request("GET", path))
    assert daemon.stop(seconds=30) == 0
    shown["log"] = daemon.log.read_text()
    for file in (tmp_path / "state").rglob("*"):
        shown[str(file)] = file.read_text() if file.is_file() else ""
    done = daemon.command("check-config")
    shown["check-config"] = done.stdout + done.stderr
    assert "Traceback" in shown["log"] or "most recent call first" in shown["log"]
    assert [(where, name) for where, text in shown.items() for name, it in CANARIES.items() if it in text] == []


def port_of(daemon: Daemon, table: str) -> int:
    listen = daemon.config.read_text().partition(table)[2].partition("listen = ")[2].partition("\n")[0]
    return int(listen.strip('"').rpartition(":")[2])


def much_goes_wrong(daemon: Daemon, delivery: Delivery, tmp_path: Path) -> None:
    """Lost sessions, a worker that is aborted with a dump of its stack, faulty reloads, the state on demand."""
    with psycopg.connect(delivery.dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )
    delivery.send(100, first=1)
    daemon.wait_for_log("action=postgres_back", 20)
    os.kill(daemon.workers()[0], signal.SIGABRT)
    daemon.wait_for_log("action=worker_ended", 20)
    sound = daemon.config.read_text()
    (tmp_path / "token").chmod(0o644)
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log("action=reload_refused", 20)
    (tmp_path / "token").chmod(0o600)
    # Two secrets where they do not belong.
    host = make_conninfo(delivery.dsn, password=CANARIES["postgres"])
    password = f'librdkafka."sasl.password" = "{CANARIES["kafka"]}"\n'
    daemon.config.write_text(
        sound.replace(delivery.dsn, host).replace("librdkafka.debug = ", f"{password}librdkafka.debug = ")
    )
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log("action=reload_refused", 20, count=2)
    daemon.config.write_text(sound)
    os.kill(daemon.pid, signal.SIGUSR1)
    daemon.wait_for_log("action=lane_state", 20)
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log("action=reloaded", 40)


def test_the_url_of_the_environment_is_in_no_log(
    make_daemon: MakeDaemon, delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DATABASE_URL is the weaker way: it is in /proc/PID/environ, but nowhere else."""
    monkeypatch.setenv("DATABASE_URL", make_conninfo(delivery.dsn, password=CANARIES["url"]))
    daemon = make_daemon(delivery.route, log={"level": "debug"})
    text = daemon.config.read_text()
    daemon.config.write_text("\n".join(line for line in text.splitlines() if not line.startswith("dsn = ")))
    daemon.start().wait_ready()
    os.kill(daemon.pid, signal.SIGHUP)
    daemon.wait_for_log("action=reloaded", 40)
    assert daemon.stop() == 0
    assert CANARIES["url"] not in daemon.log.read_text()
