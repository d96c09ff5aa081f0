"""`make demo`: from nothing to the proof, as the first thing that anybody does."""

from __future__ import annotations

import os
import subprocess
import sys

RECORDS = 30_000


def test_the_demo_proves_itself_on_servers_of_its_own() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"KBATCHD_KAFKA", "KBATCHD_DSN"}}
    command = [sys.executable, "-m", "kbatchd", "demo", "--records", str(RECORDS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{RECORDS:,}" in done.stdout
