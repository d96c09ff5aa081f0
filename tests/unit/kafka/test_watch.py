from __future__ import annotations

import pytest

from kbatchd.kafka.watch import judge
from kbatchd.model import Gap, GapKind, Partition

PARTITION = Partition("requests", 3)


@pytest.mark.parametrize("next_offset", [100, 150, 200])
def test_an_offset_within_the_topic_is_no_gap_its_end_included(next_offset: int) -> None:
    assert judge(PARTITION, next_offset, "id", "id", low=100, high=200) is None


def test_an_offset_below_the_start_was_overrun_by_retention() -> None:
    gap = judge(PARTITION, 40, "id", "id", low=100, high=200)
    assert gap == Gap(PARTITION, GapKind.RETENTION, first=40, last=100, resume_at=100, topic_id="id")
    assert "offsets 40 to 99 were deleted" in str(gap)


def test_an_offset_above_the_end_was_truncated() -> None:
    gap = judge(PARTITION, 250, "id", "id", low=100, high=200)
    assert gap == Gap(PARTITION, GapKind.TRUNCATION, first=200, last=250, resume_at=200, topic_id="id")
    assert "truncated at 200" in str(gap)


def test_what_parts_below_the_end_was_truncated_there() -> None:
    """Another log is longer by now: its end tells nothing."""
    gap = judge(PARTITION, 150, "id", "id", low=0, high=200, parted=120)
    assert gap == Gap(PARTITION, GapKind.TRUNCATION, first=120, last=150, resume_at=120, topic_id="id")


@pytest.mark.parametrize("next_offset", [40, 150, 250])
def test_the_topics_id_is_compared_first(next_offset: int) -> None:
    gap = judge(PARTITION, next_offset, "old", "new", low=100, high=200)
    assert gap == Gap(PARTITION, GapKind.RECREATED, next_offset, next_offset, 100, "old", "new")
