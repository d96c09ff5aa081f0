"""Kafka does not answer, answers late or wrongly: every record is a row all the same (tests/faults/unanswered.py)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults import unanswered
from tests.faults.kafka_wire import Api
from tests.faults.stage import Stage

L, M, F = Api.LIST_OFFSETS, Api.METADATA, Api.FETCH


@pytest.mark.parametrize(("kind", "way"), [(L, "swallowed"), (L, "unanswered"), (M, "cut"), (F, "late")])
def test_at_a_first_start(stage: Stage, kind: Api, way: str) -> None:
    unanswered.at_a_first_start(stage, kind, way)


def test_at_accept(stage: Stage) -> None:
    unanswered.at_accept(stage, L, "swallowed")


def test_one_stale_answer_at_accept(stage: Stage) -> None:
    unanswered.one_stale_answer_at_accept(stage)


def test_a_byte_altered_on_the_way(stage: Stage) -> None:
    unanswered.a_byte_altered_on_the_way(stage)


@pytest.mark.parametrize(
    "scenario", [unanswered.at_a_restart, unanswered.at_a_claim, unanswered.at_a_reload_with_a_new_route]
)
@pytest.mark.parametrize(("kind", "way"), [(M, "swallowed")])
def test_elsewhere(stage: Stage, scenario: Callable[[Stage, Api, str], None], kind: Api, way: str) -> None:
    scenario(stage, kind, way)
