"""Every answer of `ack=db` beside the table: 200 is said of rows that are there, 422 of dead letters, and nothing else.

The scenarios and the oracle are in tests/faults.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import answered

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.stage import Stage


@pytest.mark.parametrize(
    "scenario",
    [
        answered.a_recreated_topic_that_halted,
        answered.a_recreated_topic_that_was_accepted,
        answered.before_the_first_progress,
    ],
)
def test_answers_are_true(stage: Stage, scenario: Callable[[Stage], None]) -> None:
    scenario(stage)
