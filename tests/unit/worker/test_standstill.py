"""Which consumers stand still, by what the brokers and they themselves say of a partition's end."""

from __future__ import annotations

from kbatchd.kafka.offsets import Offset
from kbatchd.model import Partition
from kbatchd.worker.standstill import ANSWERS, Doubt, judge

PARTITION = Partition("orders", 0)


def after(*answers: tuple[int | None, int, int | None]) -> int:
    """Judge these in a row: the brokers' end (None: they are silent), the offset wanted next, the consumer's end."""
    doubts: dict[Partition, Doubt] = {}
    for end, reached, known in answers:
        ends = {} if end is None else {PARTITION: end}
        end_heard = None if known is None else Offset(known)
        doubts = judge(doubts, ends, {PARTITION: reached}, lambda _, heard=end_heard: heard)  # type: ignore[misc]
    return doubts[PARTITION].answers if doubts else 0


def test_one_that_does_not_hear_of_what_is_new() -> None:
    assert after(*[(10, 5, 5)] * ANSWERS) == ANSWERS


def test_one_that_has_never_fetched() -> None:
    assert after(*[(10, 0, None)] * ANSWERS) == ANSWERS


def test_one_that_has_read_all() -> None:
    assert after((10, 10, 10), (10, 10, 10)) == 0


def test_one_of_a_busy_topic() -> None:
    """There is always more than the last fetch told."""
    assert after((10, 5, 9), (20, 15, 19), (30, 25, 29)) <= 1


def test_one_that_reads_what_nobody_committed() -> None:
    """Nothing comes from a long range of aborted records, but each fetch tells of the end."""
    assert after((10, 5, 9), (20, 5, 19), (30, 5, 29)) <= 1


def test_one_whose_brokers_were_away_in_between() -> None:
    assert after((10, 5, 5), (10, 5, 5), (None, 5, 5), (10, 5, 5)) == 1


def test_one_whose_topic_was_cut_off() -> None:
    assert after((10, 5, 7), (7, 5, 7)) == 0
