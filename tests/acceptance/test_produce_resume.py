"""`kbatchd produce` dies at any moment, and goes on; no record is in the topic twice, and none is left out.

pytest-randomly seeds `random` before each test and prints the seed; `--randomly-seed` gives the same kills again.
"""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka.admin import AdminClient

from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_produce import (
    BAD,
    COUNT,
    FROZEN_SECONDS,
    GOOD,
    SLOW,
    TABLE,
    MakeProducing,
    Producing,
    failed,
    failures,
    finish,
    written,
)

if TYPE_CHECKING:
    from pathlib import Path


RATE = "5000"


SOAK = [pytest.param(suffix, marks=pytest.mark.soak) for suffix in (".ndjson.gz", ".ndjson.zst", ".json")]


@pytest.mark.parametrize("suffix", [".ndjson", ".csv.gz", *SOAK])
def test_kills_at_random_moments(producing: Producing, suffix: str) -> None:
    file = producing.file(f"all{suffix}", written(suffix, range(COUNT), BAD))
    first = producing.start(file, "--rate", RATE)
    producing.wait_begun()
    first.kill()
    first.communicate()
    kills = 1
    while True:
        process = producing.start(file, "--resume", "--rate", RATE)
        try:
            # The random moment itself, no wait for anything; a slow machine needs longer to begin, and so gets it.
            outcome = finish(process, random.uniform(0.5, 1.7) * (1 + kills / 10))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1

    assert kills >= 2
    assert outcome.code in {0, 65}, outcome
    # A kill may come when all was sent, and only the telling of it was missing.
    assert outcome.out[0].startswith((f"{file}: goes on behind ", f"{file}: was sent to its end before "))
    assert producing.ids() == GOOD
    assert [entry["record"] for entry in failures(failed(file))] == [number + 1 for number in BAD]
    assert (
        f"{file}: was sent to its end before ({len(GOOD):,} records, up to line "
        in producing.sends(file, "--resume")[0]
    )
    assert len(producing.ids()) == len(GOOD)


def test_a_file_that_was_altered_is_refused(producing: Producing) -> None:
    file = producing.file("a.ndjson", written(".ndjson", range(COUNT)))
    interrupt(producing, file)
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"n7"', b'"n8"', 1))
    assert "a.ndjson: its beginning was altered since " in producing.refuses(file, "--resume")
    file.write_bytes(content[:100])
    assert "a.ndjson: its beginning was altered since " in producing.refuses(file, "--resume")
    file.write_bytes(content)
    producing.sends(file, "--resume")
    assert producing.ids() == list(range(COUNT))


def test_a_file_of_which_nothing_was_sent_may_be_corrected(producing: Producing) -> None:
    file = producing.file("a.ndjson", written(".ndjson", range(2), bad=range(2)))
    assert producing.run(file).code == 65
    file.write_bytes(written(".ndjson", range(3)))
    producing.sends(file, "--resume")
    assert producing.ids() == list(range(3))


def test_nothing_to_resume_from(producing: Producing) -> None:
    """A file that was never sent, and one whose bookmark Kafka has forgotten: neither is sent by --resume."""
    file = producing.file("a.ndjson", written(".ndjson", range(COUNT)))
    assert "there is nothing to go on with" in producing.refuses(file, "--resume")
    interrupt(producing, file)
    sent = producing.ids()
    forget_bookmark(producing, file)
    line = producing.refuses(file, "--resume")
    assert "offsets.retention.minutes" in line
    assert "--restart" in line
    assert producing.ids() == sent


def forget_bookmark(producing: Producing, file: Path) -> None:
    """Do what the brokers do after offsets.retention.minutes."""
    identity = hashlib.sha256(json.dumps(["kbatchd", "r", str(file)]).encode()).hexdigest()[:32]
    admin = AdminClient({"bootstrap.servers": producing.bootstrap_servers})
    [future] = admin.delete_consumer_groups([f"kbatchd-produce-{identity}"]).values()
    future.result()


def test_of_two_runs_on_one_file_the_second_goes_on(producing: Producing) -> None:
    file = producing.file("a.ndjson", written(".ndjson", range(COUNT)))
    first = producing.start(file, "--rate", SLOW)
    producing.wait_begun()
    second = finish(producing.start(file, "--resume"))
    fenced = finish(first)
    assert second.code == 0, second
    assert fenced.code == 78, fenced
    assert fenced.err == ["kbatchd: another run of `kbatchd produce` has taken this file over; this one has stopped"]
    assert producing.ids() == list(range(COUNT))


def test_a_second_run_by_mistake_does_not_disturb_the_first(producing: Producing) -> None:
    file = producing.file("a.ndjson", written(".ndjson", range(COUNT)))
    first = producing.start(file, "--rate", SLOW)
    producing.wait_begun()
    assert "a.ndjson: was begun and not sent to its end (" in producing.refuses(file)
    assert finish(first).code == 0
    assert producing.ids() == list(range(COUNT))


@pytest.mark.soak
def test_a_run_that_was_frozen_for_long_goes_on(producing: Producing) -> None:
    file = producing.file("a.ndjson", written(".ndjson", range(COUNT)))
    process = producing.start(file, "--rate", SLOW)
    producing.wait_begun()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(FROZEN_SECONDS)
    process.send_signal(signal.SIGCONT)
    outcome = finish(process)
    assert outcome.code == 0, outcome
    assert producing.ids() == list(range(COUNT))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(producing: Producing, how: signal.Signals) -> None:
    file = producing.file("a.ndjson", written(".ndjson", range(COUNT)))
    lines = interrupt(producing, file, how)
    acknowledged = len(producing.ids())
    assert lines[0] == f"{file}: {acknowledged:,} records acknowledged"
    assert lines[-1] == f"{file}: is not sent to its end; --resume goes on at line {acknowledged + 1:,}"
    assert (
        f"goes on behind {acknowledged:,} records, up to line {acknowledged:,}" in producing.sends(file, "--resume")[0]
    )
    assert producing.ids() == list(range(COUNT))


def test_from_file_to_table(make_producing: MakeProducing, make_daemon: MakeDaemon) -> None:
    producing = make_producing(TABLE)
    daemon = make_daemon({"topic": producing.topic, "table": "public.sent"}).start()
    daemon.wait_ready()
    file = producing.file("a.csv", written(".csv", range(COUNT), BAD))
    assert producing.run(file).code == 65
    with psycopg.connect(producing.dsn, autocommit=True) as connection:

        def rows() -> int:
            found = connection.execute("SELECT count(*) FROM public.sent").fetchone()
            assert found is not None
            return int(found[0])

        wait_until(lambda: rows() >= len(GOOD), 30, "the rows in the table")
        wrong = connection.execute(
            "SELECT count(*) FROM public.sent WHERE name <> 'n' || id OR data <> format('{\"a\": [%s]}', id)::jsonb"
        )
        assert wrong.fetchone() == (0,)
        ids = connection.execute("SELECT array_agg(id ORDER BY id) FROM public.sent").fetchone()
    assert ids == (GOOD,)


def interrupt(producing: Producing, file: Path, how: signal.Signals = signal.SIGINT) -> list[str]:
    """Stop a run when it has sent something; return what it said."""
    process = producing.start(file, "--rate", SLOW)
    producing.wait_begun()
    process.send_signal(how)
    outcome = finish(process)
    assert (outcome.code, outcome.err) == (130, [])
    return outcome.out
