"""The daemon as a container has it: process 1, a user without a name, a root that nobody writes to, no /dev/shm.

In namespaces of its own, as root makes them, with the machine's own files and network: there is no container engine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fix_daemon import children, wait_until
from tests.fix_http import Client, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fix_daemon import MakeDaemon
    from tests.fix_load import Delivery

pytestmark = pytest.mark.systemd

#: Of nobody in /etc/passwd.
USER = 123_456

#: What the manifests give: config/kubernetes/kbatchd.yaml.
GRACE_SECONDS = 30.0

#: In new namespaces: one root for all, to read; devices without shm; the state's directory, to write; then the daemon,
#: which may pass through /root, since that is where these tests' own Python may be.
BECOME_A_CONTAINER = r"""
set -eu
state=$1; shift
mount --make-rprivate /
mount -t proc proc /proc
mount --bind "$state" "$state"
mount -t tmpfs -o mode=755 tmpfs /mnt
for device in null zero full random urandom; do
    touch "/mnt/$device"
    mount --bind "/dev/$device" "/mnt/$device"
done
mount --move /mnt /dev
for place in $(cut -d' ' -f2 /proc/mounts | grep -v -e ^/proc -e ^/dev -e ^/sys | sort -u); do
    [ "$place" = "$state" ] || mount -o remount,bind,ro "$place" 2>/dev/null || true
done
mount -o remount,bind,ro /
exec env -i PATH="$PATH" STATE_DIRECTORY="$state" \
    setpriv --reuid=123456 --regid=123456 --clear-groups --no-new-privs \
    --inh-caps=-all,+dac_read_search --ambient-caps=-all,+dac_read_search "$@"
"""


class Container:
    """The daemon in one; `pid` is its supervisor as seen from here."""

    def __init__(self, config: Path, state: Path) -> None:
        state.mkdir()
        os.chown(state, USER, USER)
        self.log = config.with_name("container.log")
        inside = ["sh", "-c", BECOME_A_CONTAINER, "become-a-container", str(state)]
        daemon = [sys.executable, "-m", "kbatchd", "--config", str(config)]
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", *inside, *daemon],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.wait_for_log("action=ready")
        [self.pid] = children(self.process.pid)

    def wait_for_log(self, text: str) -> None:
        def seen() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return text in self.log.read_text()

        wait_until(seen, 30, text)

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def container(make_daemon: MakeDaemon, delivery: Delivery, tmp_path: Path) -> Iterator[Container]:
    listen = f"127.0.0.1:{free_port()}"
    config = make_daemon(delivery.route, monitor={"listen": listen}, batch={"linger_seconds": 1.0}).config
    text = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in text if not line.startswith("state_directory")))
    config.chmod(0o644)
    container = Container(config, tmp_path / "var")
    yield container
    container.process.kill()
    container.process.wait()


def test_it_works_and_stops_in_time(container: Container, delivery: Delivery, tmp_path: Path) -> None:
    status = Path(f"/proc/{container.pid}/status").read_text()
    assert f"Uid:\t{USER}\t{USER}" in status
    assert "NSpid:\t" in status
    assert status.partition("NSpid:\t")[2].splitlines()[0].split()[-1] == "1"
    for path in ("/etc/x", str(tmp_path / "x"), "/tmp/x"):
        assert "Read-only file system" in container.inside("touch", path).stderr
    assert "No such file" in container.inside("ls", "/dev/shm").stderr
    with delivery.load(per_second=8_000):
        wait_until(lambda: delivery.rows() > 10_000, 30, "rows before the stop")
        os.kill(container.pid, signal.SIGTERM)
        assert container.process.wait(GRACE_SECONDS) == 0
    [(flushed,)] = delivery.query("SELECT count(*) FROM kbatchd.batches WHERE reason = 'stop' AND rows > 0")
    assert flushed in {1, 2}


def test_process_1_reaps_whose_parent_has_ended(container: Container) -> None:
    ours = children(container.pid)
    container.inside("sh", "-c", "(sleep 600 >/dev/null 2>&1 &) ; (sleep 600 >/dev/null 2>&1 &)")
    wait_until(lambda: len(children(container.pid)) == len(ours) + 2, 10, "them to be inherited")
    strangers = set(children(container.pid)) - set(ours)
    for stranger in strangers:
        os.kill(stranger, signal.SIGKILL)
    wait_until(lambda: strangers.isdisjoint(children(container.pid)), 10, "the strangers to be reaped")
    os.kill(ours[0], signal.SIGKILL)
    wait_until(lambda: ours[0] not in children(container.pid), 10, "one of ours to be reaped")
    wait_until(lambda: len(children(container.pid)) == len(ours), 10, "another one in its place")


def test_it_lives_while_the_supervisor_does(container: Container) -> None:
    listen = container.log.with_name("daemon-0.toml").read_text().partition('listen = "')[2].partition('"')[0]
    with Client(int(listen.rpartition(":")[2])) as client:
        assert client.request("GET", "/health/live").status == 200
        os.kill(container.pid, signal.SIGSTOP)
        wait_until(lambda: client.request("GET", "/health/live").status == 503, 15, "the supervisor to be missed")
        assert b"the supervisor has been silent for " in client.request("GET", "/health/live").body
        os.kill(container.pid, signal.SIGCONT)
        wait_until(lambda: client.request("GET", "/health/live").status == 200, 10, "it to live again")
