"""`kbatchd produce` and brokers that restart, freeze or stay away; and what it makes others wait for."""

from __future__ import annotations

import os
import signal
import subprocess
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from tests.fix_produce import (
    BAD,
    COUNT,
    FROZEN_SECONDS,
    GOOD,
    SLOW,
    MakeProducing,
    Producing,
    failed,
    failures,
    finish,
    written,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kbatchd.devstack.kafka import Kafka
    from tests.fix_kafka import MakeTopic


@pytest.fixture
def own_producing(make_producing: MakeProducing, own_kafka: Kafka, own_make_topic: MakeTopic) -> Producing:
    """The same as `producing`, on a Kafka of its own."""
    return make_producing(bootstrap_servers=own_kafka.bootstrap_servers, topic=own_make_topic(4))


def begin(producing: Producing) -> tuple[Path, subprocess.Popen[str]]:
    """Start a run that lasts for seconds; return its file, and the run when its first records are sent."""
    file = producing.file("a.ndjson", written(".ndjson", range(COUNT), BAD))
    process = producing.start(file, "--rate", SLOW)
    producing.wait_begun()
    return file, process


def assert_all_sent(producing: Producing, file: Path) -> None:
    """See that the sound records are there once, and the others in the file of those that failed."""
    assert producing.ids() == GOOD
    assert [entry["record"] for entry in failures(failed(file))] == [number + 1 for number in BAD]


@pytest.mark.parametrize("how", [pytest.param("stop", marks=pytest.mark.soak), "kill"])
def test_a_broker_that_restarts_under_way(own_producing: Producing, own_kafka: Kafka, how: str) -> None:
    file, process = begin(own_producing)
    getattr(own_kafka, how)()
    own_kafka.start()
    outcome = finish(process)
    assert outcome.code == 65, outcome
    assert_all_sent(own_producing, file)


@pytest.mark.soak
def test_a_broker_that_is_frozen_for_long(own_producing: Producing, own_kafka: Kafka) -> None:
    """Whatever was asked of it then has no answer, and another producer has to find out what became of it."""
    file, process = begin(own_producing)
    os.kill(own_kafka.pid, signal.SIGSTOP)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(FROZEN_SECONDS)
    finally:
        os.kill(own_kafka.pid, signal.SIGCONT)
    outcome = finish(process)
    assert outcome.code == 65, outcome
    assert_all_sent(own_producing, file)


def test_a_broker_that_stays_away(own_producing: Producing, own_kafka: Kafka) -> None:
    own_producing.startup_timeout_seconds = 10.0
    file, process = begin(own_producing)
    own_kafka.kill()
    outcome = finish(process)
    assert outcome.code == 69, outcome
    assert outcome.err[-1].startswith("kbatchd: Kafka cannot be reached: ")
    assert outcome.out[-1].startswith(f"{file}: is not sent to its end; --resume goes on at line ")
    own_kafka.start()
    own_producing.startup_timeout_seconds = 60.0
    assert own_producing.run(file, "--resume").code == 65
    assert_all_sent(own_producing, file)


@pytest.mark.parametrize(("count", "rate"), [(10 * COUNT, ()), (COUNT, ("--rate", SLOW))])
def test_a_transaction_is_short(producing: Producing, count: int, rate: tuple[str, ...]) -> None:
    """An open one holds back all later records of its partitions. Between two ends of them lies one offset."""
    producing.sends(producing.file("a.ndjson", written(".ndjson", range(count))), *rate)
    transactions: list[list[float]] = []
    last = -2
    for message in producing.messages():
        if message.partition() == 0:
            if message.offset() != last + 1:
                transactions.append([])
            transactions[-1].append(message.timestamp()[1] / 1e3)
            last = message.offset() or 0
    assert len(transactions) >= 3
    # From its first record to its last; a busy machine may hold one of them up.
    spans = [times[-1] - times[0] for times in transactions]
    assert sum(span >= 0.5 for span in spans) <= len(spans) // 10, spans
    # From one begin to the next: the transaction, its end, and the pause after it. Not all: the broker's part takes as
    # long as it takes.
    assert min(later[0] - earlier[0] for earlier, later in pairwise(transactions)) < 0.5
