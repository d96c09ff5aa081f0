"""People move, lose and rename progress: nothing comes twice or is left out in silence (tests/faults/moved.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import moved
from tests.faults.stage import Stage


def test_one_partition_missing(stage: Stage) -> None:
    moved.one_partition_missing(stage)


@pytest.mark.parametrize("what", ["pipeline", "route"])
def test_renamed(stage: Stage, what: str) -> None:
    moved.renamed(stage, what)


def test_set_while_a_flush_is_under_way(stage: Stage) -> None:
    moved.set_while_a_flush_is_under_way(stage)


def test_a_file_sent_again(stage: Stage, tmp_path: Path) -> None:
    moved.a_file_sent_again(stage, tmp_path)


def test_row_security_switched_on(stage: Stage) -> None:
    moved.row_security_switched_on(stage)
