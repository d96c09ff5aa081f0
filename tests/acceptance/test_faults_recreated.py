"""The topic is another one, or its log is: what is there is read once, what was lost is named (faults/recreated.py)."""

from __future__ import annotations

import pytest

from tests.faults import recreated
from tests.faults.stage import Stage


def test_while_a_batch_is_open(stage: Stage) -> None:
    recreated.while_a_batch_is_open(stage)


@pytest.mark.parametrize("on_gap", ["record", "halt"])
def test_with_one_stale_answer(stage: Stage, on_gap: str) -> None:
    recreated.with_one_stale_answer(stage, on_gap)


def test_with_its_first_records_gone(stage: Stage) -> None:
    recreated.with_its_first_records_gone(stage)


@pytest.mark.parametrize(("new_records", "on_gap"), [(1_500, "record"), (300, "halt")])
def test_an_unclean_election(stage_of_two: Stage, new_records: int, on_gap: str) -> None:
    recreated.an_unclean_election(stage_of_two, new_records, on_gap)


@pytest.mark.parametrize("new_records", [300, 1_500])
def test_an_unclean_election_while_stopped(stage_of_two: Stage, new_records: int) -> None:
    recreated.an_unclean_election_while_stopped(stage_of_two, new_records)
