"""The daemon as a process of its own, as the demo runs it: it stops when the demo ends, however that ends.

Called by `kbatchd demo` in its main thread.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from kbatchd.devstack.process import spawn, tail
from kbatchd.errors import KbatchError

#: More than workers.grace_seconds, with the time to end.
STOP_SECONDS = 20.0


class DaemonEnded(KbatchError):
    """It ended, though nobody had asked it to."""


class Daemon:
    """`kbatchd --config FILE`, its log in a file beside the configuration."""

    def __init__(self, config: Path) -> None:
        self.log = config.with_name("kbatchd.log")
        command = [sys.executable, "-m", "kbatchd", "--config", str(config)]
        # Here, as the other commands: `python -m kbatchd` in a checkout finds the package in the working directory.
        self._process = spawn(command, log=self.log, death_signal=signal.SIGTERM, cwd=Path.cwd())
        self.pid = self._process.pid

    def check(self) -> None:
        """Raise DaemonEnded when it has ended on its own."""
        if self._process.poll() is not None:
            raise DaemonEnded(f"the daemon ended with status {self._process.returncode}.\n{tail(self.log)}")

    def stop(self) -> int:
        """Stop it as systemd would; return its exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
