"""What `ack=db` says is what the table says, whatever becomes of the topic (tests/faults/answered.py)."""

from __future__ import annotations

from tests.faults import answered
from tests.faults.stage import Stage


def test_a_recreated_topic_that_halted(stage: Stage) -> None:
    answered.a_recreated_topic_that_halted(stage)


def test_a_recreated_topic_that_was_accepted(stage: Stage) -> None:
    answered.a_recreated_topic_that_was_accepted(stage)


def test_before_the_first_progress(stage: Stage) -> None:
    answered.before_the_first_progress(stage)
