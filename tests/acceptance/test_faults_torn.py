"""PostgreSQL dies or the way to it breaks at any statement: the books balance (tests/faults/torn.py)."""

from __future__ import annotations

import random

import pytest

from tests.faults import torn
from tests.faults.stage import Stage

#: Of the statements of a flush, in the short form; pytest-randomly seeds and prints.
TRIED = 3


@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_the_server_dies_at_some_statements(stage: Stage, behind: bool) -> None:
    daemon, statements = torn.statements_of_a_flush(stage)
    for text in {*random.sample(statements, TRIED), "COMMIT"}:
        torn.the_server_dies_at(stage, daemon, text, behind=behind)


def test_the_session_breaks_at_each_statement(stage: Stage) -> None:
    daemon, statements = torn.statements_of_a_flush(stage)
    for text in statements:
        torn.the_session_breaks_at(stage, daemon, text, behind=random.random() < 0.5)


def test_the_first_progress_is_answered_and_the_server_dies(stage: Stage) -> None:
    torn.the_first_progress_is_answered_and_the_server_dies(stage)


@pytest.mark.parametrize("refused", [False, True], ids=["at once", "in windows"])
def test_a_row_vanishes_on_the_way(stage: Stage, refused: bool) -> None:
    torn.a_row_vanishes_on_the_way(stage, refused=refused)


def test_a_wrong_tag(stage: Stage) -> None:
    torn.a_wrong_tag(stage)


@pytest.mark.soak
@pytest.mark.parametrize("behind", [False, True], ids=["before", "behind"])
def test_the_server_dies_at_each_statement(stage: Stage, behind: bool) -> None:
    daemon, statements = torn.statements_of_a_flush(stage)
    for text in statements:
        torn.the_server_dies_at(stage, daemon, text, behind=behind)
