"""A real systemd as a service manager of its own: process 1 of new namespaces, over a throw-away copy of this machine.

The root is an overlay of `/` whose upper layer is in memory, so nothing that systemd or pip writes there stays; the
network is the machine's, so that the tests' Kafka and PostgreSQL are where they are. systemd finds no units but the few
it is given: no boot, only a service manager, its journal, and kbatchd's units as they are shipped. Needs root and
systemd.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fix_daemon import SLOWEST, children, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKOUT = Path(__file__).parent.parent

#: What systemd needs of its own units; everything that would touch the machine itself stays out.
UNITS = ("basic", "emergency", "network", "network-online", "shutdown", "umount", "final", "slices")
JOURNAL = ("systemd-journald.service", "systemd-journald.socket", "systemd-journald-dev-log.socket")

NAMESPACES = ("unshare", "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--fork", "--kill-child")

#: Run in the new namespaces: build the root, become systemd.
BECOME_SYSTEMD = r"""
set -eu
root=$1
mount -t tmpfs tmpfs "$root"
mkdir "$root/upper" "$root/work" "$root/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$root/upper,workdir=$root/work" "$root/root"
root=$root/root
mkdir -p "$root/opt/python"
mount --bind "$2" "$root/opt/python"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys" -o ro
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$root/run" -o mode=755
mount -t tmpfs tmpfs "$root/tmp" -o mode=1777
mount -t tmpfs tmpfs "$root/dev" -o mode=755
mkdir "$root/dev/pts" "$root/dev/shm"
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
ln -s pts/ptmx "$root/dev/ptmx"
mkdir -p "$root/run/units"
cp -r "$3/." "$root/run/units"
cd "$root"
pivot_root . mnt
umount -l /mnt
# As systemd itself does outside of a container: a unit's credentials are mounted by a child, and must be seen here.
mount --make-rshared /
exec env -i container=kbatchd SYSTEMD_UNIT_PATH=/run/units PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    "$(command -v /lib/systemd/systemd || command -v /usr/lib/systemd/systemd)" --unit=basic.target --show-status=0
"""


class ServiceManager:
    """systemd as process 1 of a world of its own; `root` is that world's root as seen from here."""

    def __init__(self, directory: Path) -> None:
        units = directory / "units"
        units.mkdir()
        for name in UNITS:
            (units / f"{name}.target").write_text("[Unit]\nDefaultDependencies=no\n")
        (units / "sysinit.target").write_text(
            "[Unit]\nDefaultDependencies=no\nWants=systemd-journald.socket systemd-journald.service\n"
            "After=systemd-journald.socket\n"
        )
        (units / "multi-user.target").write_text("[Unit]\n")
        for name in JOURNAL:
            shutil.copy(Path("/lib/systemd/system") / name, units)
        mount = directory / "root"
        mount.mkdir()
        self._process = subprocess.Popen(
            [*NAMESPACES, "sh", "-c", BECOME_SYSTEMD, "become-systemd", str(mount), sys.base_prefix, str(units)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.pid = 0
        wait_until(self._is_up, 30.0, "systemd answers in its namespaces")
        self.root = Path(f"/proc/{self.pid}/root")

    def _is_up(self) -> bool:
        if self._process.poll() is not None:
            output = self._process.stdout.read() if self._process.stdout else ""
            pytest.fail(f"systemd cannot be run as a service manager here: {output}")
        found = children(self._process.pid)
        if not found or Path(f"/proc/{found[0]}/comm").read_text().strip() != "systemd":
            return False
        self.pid = found[0]
        state = self.run("systemctl", "is-system-running", check=False)
        return state.stdout.strip() in {"running", "degraded"}

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in there, as root."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-u", "-C", *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if check and done.returncode != 0:
            unit = command[-1] if command[0] == "systemctl" else ""
            journal = self.journal(unit) if unit.startswith("kbatchd") else ""
            pytest.fail(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}{journal}")
        return done

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file in there."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return what systemd says of a unit."""
        lines = self.run("systemctl", "show", unit, f"--property={','.join(properties)}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def journal(self, unit: str) -> str:
        """Return the journal of a unit, priorities and all, oldest first."""
        return self.run("journalctl", "--no-pager", "-u", unit, "-o", "short-monotonic", check=False).stdout

    def stop(self) -> None:
        """End process 1: the kernel ends all the others with it, and unmounts their world."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid or self._process.pid, signal.SIGKILL)
        self._process.wait(60)
        if self._process.stdout:
            self._process.stdout.close()


@pytest.fixture(scope="session")
def service_manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceManager]:
    """A systemd with kbatchd installed as the documentation says: a venv in /opt, the units, the user."""
    for program in ("unshare", "nsenter", "systemd-sysusers", "systemd-tmpfiles", "systemctl"):
        if shutil.which(program) is None:
            pytest.fail(f"{program} is not installed: apt-get install systemd util-linux")
    if os.getuid() != 0:
        pytest.fail("only root can start a systemd of its own: sudo make test-systemd")
    directory = tmp_path_factory.mktemp("systemd")
    manager = ServiceManager(directory)
    try:
        _install(manager, directory)
        yield manager
    finally:
        manager.stop()


def _install(manager: ServiceManager, directory: Path) -> None:
    """Follow docs/operations.md: the package, the command, the units, the user and the directories."""
    shutil.rmtree(CHECKOUT / "build", ignore_errors=True)  # what is left of another build would travel along
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(CHECKOUT)]
    subprocess.run(build, check=True, timeout=300)
    wheel = next(directory.glob("kbatchd-*.whl"))
    shutil.copy(wheel, manager.root / "opt")
    python = f"/opt/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    # A Python built for another directory, such as pyenv's, finds its library by the path it was built for.
    manager.write("/etc/ld.so.conf.d/00-python.conf", "/opt/python/lib\n")
    manager.run("ldconfig")
    manager.run(python, "-m", "venv", "/opt/kbatchd")
    manager.run("/opt/kbatchd/bin/pip", "install", "--quiet", f"/opt/{wheel.name}[gateway,monitor]")
    manager.run("ln", "-s", "/opt/kbatchd/bin/kbatchd", "/usr/local/bin/kbatchd")
    shipped = manager.root / "opt/kbatchd/share/kbatchd/systemd"
    for unit in ("kbatchd.service", "kbatchd@.service"):
        shutil.copy(shipped / unit, manager.root / "run/units")
    for kind in ("sysusers", "tmpfiles"):
        target = manager.root / f"usr/lib/{kind}.d"
        shutil.copy(shipped / f"kbatchd.{kind}.conf", target / "kbatchd.conf")
    manager.run("systemd-sysusers", "kbatchd.conf")
    manager.run("systemd-tmpfiles", "--create", "kbatchd.conf")
    manager.run("systemctl", "daemon-reload")


def wait_for_state(manager: ServiceManager, unit: str, state: str, seconds: float = 30.0) -> None:
    """Wait until a unit is in a state such as "active"; show its journal when it does not get there."""
    seconds *= SLOWEST
    deadline = time.monotonic() + seconds
    while (found := manager.show(unit, "ActiveState")["ActiveState"]) != state:
        if time.monotonic() > deadline:
            pytest.fail(f"{unit} is {found}, not {state}, after {seconds:.0f} s:\n{manager.journal(unit)}")
        time.sleep(0.05)
