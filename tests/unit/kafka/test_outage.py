"""An outage of Kafka: when it is told, and how long it was."""

from __future__ import annotations

import logging
import time

import pytest

from kbatchd.kafka.outage import BLIP_SECONDS, LATE_SECONDS, SILENCE_SECONDS, Outage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The monotonic time, for a test to move."""
    now = [1_000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def turns(outage: Outage, clock: list[float], seconds: float, asked_at: float | None) -> None:
    """Go round for so long, as the poll loop does."""
    end = clock[0] + seconds
    while clock[0] < end:
        outage.look(asked_at)
        clock[0] += 0.1


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, float | None]]:
    return [(vars(record)["action"], vars(record).get("seconds")) for record in caplog.records]


def test_a_question_without_an_answer(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    outage, asked_at = Outage(), clock[0]
    turns(outage, clock, SILENCE_SECONDS, asked_at)
    assert told(caplog) == []
    turns(outage, clock, 71.0, asked_at)
    outage.end()
    turns(outage, clock, 60.0, None)
    outage.end()
    [(first, after), (last, length)] = told(caplog)
    assert (first, last) == ("kafka_silent", "kafka_back")
    assert after == pytest.approx(4.0, abs=0.2)
    assert length == pytest.approx(75.0, abs=0.3)


def test_an_error_that_stands(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    outage.look(None)
    outage.note("cut")
    outage.note("refused")
    turns(outage, clock, BLIP_SECONDS + 0.2, clock[0] + 1.0)
    outage.note("refused again")
    turns(outage, clock, 20.0 - BLIP_SECONDS, clock[0])
    outage.end()
    assert [what for what, _ in told(caplog)] == ["kafka_error", "kafka_error", "kafka_back"]
    assert [vars(record).get("error") for record in caplog.records] == ["refused", "refused again", None]
    assert vars(caplog.records[0])["repeated"] == 1
    assert told(caplog)[-1][1] == pytest.approx(20.2, abs=0.3)


def test_an_answer_soon_after_an_error(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """A connection that was idle is cut; or, after an outage, one that it has cut."""
    outage = Outage()
    for _ in range(5):
        outage.note("disconnected")
        turns(outage, clock, BLIP_SECONDS - 0.5, clock[0] + 1.0)
        outage.end()
    assert told(caplog) == []


def test_we_may_be_those_who_did_not_listen(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    outage, asked_at = Outage(), clock[0]
    outage.look(asked_at)
    clock[0] += LATE_SECONDS + 60.0  # SIGSTOP
    turns(outage, clock, SILENCE_SECONDS - 0.5, asked_at)
    outage.end()
    assert told(caplog) == []
