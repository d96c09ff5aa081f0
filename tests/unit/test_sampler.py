"""The matrix's sampler is judged: of a snapshot that is wrong it says so, of one that is right nothing."""

from __future__ import annotations

import pytest

from tests.faults.oracle import Oracle
from tests.faults.sampler import Moment, Sampler

#: Offset 3 is a marker.
SENT = {0: [0, 1, 2, 4, 5]}

RIGHT = Moment(partition=0, next_offset=5, rows=3, offsets=3, last=4, altered=0, dead=[1], gone=[])


@pytest.mark.parametrize(
    ("moment", "fault"),
    [
        (RIGHT, ""),
        (RIGHT._replace(next_offset=3, rows=2, offsets=2, last=2), ""),
        (RIGHT._replace(next_offset=4, rows=2, offsets=2, last=2), ""),
        (RIGHT._replace(rows=1, offsets=1, gone=[(1, 4)], dead=[]), "2 records, and 1 rows"),
        (RIGHT._replace(rows=2, offsets=2, gone=[(1, 4)], dead=[]), ""),
        (RIGHT._replace(rows=0, offsets=0, last=-1, next_offset=0, dead=[]), ""),
        (RIGHT._replace(rows=2, offsets=2), "4 records, and 3 rows and dead letters"),
        (RIGHT._replace(dead=[]), "4 records, and 3 rows and dead letters"),
        (RIGHT._replace(rows=4, offsets=4), "5 rows and dead letters of 4 records"),
        (RIGHT._replace(rows=4), "4 rows with 3 offsets"),
        (RIGHT._replace(last=5), "a row or a dead letter at 5"),
        (RIGHT._replace(dead=[5]), "a row or a dead letter at 5"),
        (RIGHT._replace(altered=1), "1 altered rows"),
    ],
)
def test_what_it_says_of_a_snapshot(moment: Moment, fault: str) -> None:
    sampler = Sampler(Oracle("", "topic", ""), "", 64)
    sampler._seen.append(moment)
    said = "; ".join(map(str, sampler.judge(SENT)))
    assert fault in said
    assert bool(said) == bool(fault), said
    assert sampler.judge(SENT) == []
