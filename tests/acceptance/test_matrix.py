"""Some rows of the fault matrix, a few times each; `make faults` has all of them."""

from __future__ import annotations

import pytest

from tests.faults.matrix import ROWS, perform
from tests.faults.row import Row
from tests.fix_faults import MakeStage


@pytest.mark.parametrize("row", [row for row in ROWS if row.short], ids=lambda row: row.fault)
def test_a_row_of_the_matrix(make_stage: MakeStage, row: Row) -> None:
    outcome = perform(row, make_stage(), row.short)
    assert outcome.faults == []
    assert (outcome.times, outcome.samples > 0, outcome.records > 0) == (row.short, True, True)
