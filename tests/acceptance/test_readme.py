"""The README's five commands, word for word: from an empty directory to a table that is being filled.

Only the installation, which `.ci/run` tries, is left out, and the addresses are those of the tests' own servers.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from kbatchd.devstack.kafka import GivenKafka, Kafka

README = Path(__file__).parents[2] / "README.md"


def blocks(language: str) -> list[str]:
    """Return the blocks of code of the part about one's own table."""
    [part] = re.findall(r"^## Your own table(.*?)^## ", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return re.findall(rf"^```{language}\n(.*?)^```", part, re.MULTILINE | re.DOTALL)


def test_five_commands_fill_a_table(kafka: Kafka | GivenKafka, database: str, topic_name: str, tmp_path: Path) -> None:
    commands = blocks("sh")[0]
    for old, new in (
        ('"localhost:9092"', f'"{kafka.bootstrap_servers}"'),
        ('"postgresql://kbatchd@localhost/app"', f'"{database}"'),
        ('topic = "requests"', f'topic = "{topic_name}"\nname = "requests"'),
    ):
        assert commands.count(old) == 1, old
        commands = commands.replace(old, new)
    install, *steps, run = re.split(r"^# \d\. .*\n", commands, flags=re.MULTILINE)[1:]
    assert "pip install ." in install
    assert len(steps) == 3
    environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}

    def shell(command: str) -> None:
        done = subprocess.run(
            ["bash", "-euc", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, command + done.stdout + done.stderr

    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(blocks("sql")[0].encode())
        for step in steps:
            shell(step)
        daemon = subprocess.Popen(["bash", "-euc", f"exec {run.strip()}"], cwd=tmp_path, env=environment)
        try:
            shell(blocks("sh")[1])
            wait_until(
                lambda: connection.execute("SELECT count(*) FROM public.requests").fetchone() == (1_001,),
                30.0,
                "1,001 rows in the table",
            )
        finally:
            daemon.send_signal(signal.SIGINT)  # Ctrl-C
            assert daemon.wait(60) == 0
