"""One partition compared, without servers: what a window, a line of the ledger and a former topic say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from kbatchd.audit.comparison import Comparison, Report, Rows, Stand, Verdict, judge_lines
from kbatchd.audit.history import History, Line
from kbatchd.audit.ranges import listed, runs
from kbatchd.model import Partition

P0 = Partition("t", 0)


def audit(
    told: tuple[History, list[Line]],
    records: Sequence[int],
    rows: Iterable[int] | None,
    letters: Sequence[tuple[int, str]] = (),
    *,
    low: int = 0,
    next_offset: int = 10,
    compacts: bool = False,
    window: int = 3,
) -> Report:
    """Compare a partition whose end is at progress, a few records at a time."""
    history, lines = told
    report = Report("r", P0, next_offset)
    stand = Stand(report, P0, "id", next_offset, 0, history, list(letters))
    lines = [*lines, *history.close(0, next_offset)]
    stand.place(low, next_offset, is_part=False)
    counted = sorted((0, offset, list(rows).count(offset)) for offset in set(rows)) if rows is not None else []
    comparison = Comparison(stand, None if rows is None else Rows(iter(counted)))
    comparison.pass_over(low)
    there = [offset for offset in records if offset >= low]
    for at in range(0, len(there), window):
        some = there[at : at + window]
        comparison.take(some, some[-1] + 1)
    comparison.take([], next_offset)
    comparison.end()
    judge_lines({0: report}, lines, compacts=compacts, has_rows=rows is not None)
    return report


def written(*counts: tuple[int, int, int, int, int]) -> tuple[History, list[Line]]:
    """Make the history of lines: first, end, rows, dead letters, skipped."""
    history, lines = History(), []
    for number, (first, end, rows, dead, skipped) in enumerate(counts, 1):
        lines.append(Line(number, rows, dead, skipped))
        history.flushed(0, lines[-1], first, end)
    return history, lines


@pytest.mark.parametrize("window", [1, 3, 100])
def test_records_rows_and_holes(window: int) -> None:
    # Offsets 4 and 9 are markers.
    records = [0, 1, 2, 3, 5, 6, 7, 8]
    report = audit(
        written((0, 5, 4, 0, 0), (5, 10, 3, 1, 0)), records, {0, 1, 2, 3, 5, 6, 8}, [(7, "open")], window=window
    )
    assert (report.verdict, report.records, report.rows, report.dead_letters) == (Verdict.FINE, 8, 7, 1)
    assert list(report.lines()) == []


@pytest.mark.parametrize(
    ("rows", "letters", "missing", "doubled"),
    [
        ([0, 1, 2, 3], [], [(4, 6)], []),
        ([0, 1, 2, 3, 4, 5, 5], [], [], [(5, 6)]),
        ([0, 1, 2, 3, 4, 5], [(3, "open")], [], [(3, 4)]),
        ([0, 1, 2, 3, 4, 5], [(3, "replayed")], [], []),
        ([0, 1, 2, 4, 5], [(3, "replayed")], [(3, 4)], []),
        ([0, 1, 2, 4, 5], [(3, "discarded"), (3, "open")], [], [(3, 4)]),
    ],
)
def test_each_record_is_one_row_or_a_letter(
    rows: list[int], letters: list[tuple[int, str]], missing: list[tuple[int, int]], doubled: list[tuple[int, int]]
) -> None:
    lines = written((0, 6, 6 - len({offset for offset, _ in letters}), len(letters), 0))
    report = audit(lines, range(6), rows, letters, next_offset=6)
    assert (report.missing, report.doubled) == (missing, doubled)


def test_what_a_trigger_kept_out_or_whose_letter_was_deleted_is_not_missing() -> None:
    lines = written((0, 5, 3, 1, 1), (5, 10, 5, 0, 0))
    report = audit(lines, range(10), {0, 1, 2, *range(5, 10)})
    assert (report.verdict, report.missing) == (Verdict.FINE, [])
    assert "the ledger knows of so many" in report.unknown[0]
    # One more than that is.
    report = audit(written((0, 5, 3, 1, 1), (5, 10, 5, 0, 0)), range(10), {0, 1, *range(5, 10)})
    assert (report.verdict, report.missing) == (Verdict.MISSING, [(2, 5)])


def test_counts_without_columns() -> None:
    assert audit(written((0, 10, 9, 1, 0)), range(10), None).verdict is Verdict.FINE
    assert audit(written((0, 10, 8, 1, 0)), range(10), None).verdict is Verdict.MISSING
    assert audit(written((0, 10, 9, 2, 0)), range(10), None).verdict is Verdict.DOUBLED
    # Compaction takes records that were written; it brings none.
    assert audit(written((0, 10, 9, 2, 0)), range(10), None, compacts=True).verdict is Verdict.FINE
    assert audit(written((0, 10, 8, 1, 0)), range(10), None, compacts=True).verdict is Verdict.MISSING


def test_what_kafka_has_no_more_is_counted_by_the_ledger() -> None:
    counts = (0, 4, 4, 0, 0), (4, 10, 6, 0, 0)
    assert audit(written(*counts), range(10), range(10), low=4).verdict is Verdict.FINE
    report = audit(written(*counts), range(10), [0, 1, 3, *range(4, 10)], low=4)
    assert (report.verdict, report.missing, len(report.lost)) == (Verdict.MISSING, [], 1)
    # Of a line that Kafka has in part, what is missing there is named once.
    report = audit(written(*counts), range(10), [0, 1, 2, 3, 4, 5, 6, 7, 9], low=6)
    assert (report.missing, report.lost) == ([(8, 9)], [])


def test_the_lines_follow_each_other() -> None:
    history, lines = written((0, 3, 3, 0, 0), (5, 10, 5, 0, 0))
    report = audit((history, lines), range(10), None)
    assert report.lost == ["no line of the ledger has [0] 3 to 4, and Kafka has 2 records there"]
    history, lines = written((0, 6, 6, 0, 0), (5, 10, 5, 0, 0))
    assert audit((history, lines), range(10), None).twice == ["two lines of the ledger have 5"]
    # Behind markers there may be a hole, and in the table all may be there in spite of one.
    history, lines = written((0, 3, 3, 0, 0), (5, 10, 5, 0, 0))
    assert audit((history, lines), [0, 1, 2, 5, 6, 7, 8, 9], None).verdict is Verdict.FINE
    history, lines = written((0, 3, 3, 0, 0), (5, 10, 5, 0, 0))
    assert audit((history, lines), range(10), range(10)).verdict is Verdict.FINE


def test_what_the_ledger_has_no_line_of_any_more() -> None:
    report = audit(written((4, 10, 6, 0, 0)), range(10), None)
    assert (report.verdict, report.unknown) == (Verdict.FINE, ["the ledger has no lines of 0 to 3 any more"])
    report = audit(written(), range(10), None)
    assert (report.verdict, report.unknown) == (Verdict.UNKNOWN, ["the ledger has no lines of 0 to 9 any more"])
    # Where the rows are looked at they tell.
    assert audit(written(), range(10), range(10)).unknown == []
    assert audit(written(), range(10), range(9)).missing == [(9, 10)]


def test_moves_by_hand_and_gaps_are_told_apart() -> None:
    history, lines = History(), [Line(1, 3, 0, 0), Line(2, 4, 0, 0)]
    history.flushed(0, lines[0], 0, 3)
    history.moved(3, 6)  # over a gap
    history.flushed(0, lines[1], 6, 10)
    report = audit((history, lines), range(10), {0, 1, 2, *range(6, 10)})
    assert (report.verdict, report.passed) == (Verdict.FINE, [(3, 6)])


def test_a_former_topic_had_the_offsets_too() -> None:
    history, lines = History(former=[(0, 5)]), [Line(1, 9, 0, 0), Line(2, 10, 0, 0)]
    history.flushed(0, lines[0], 0, 5)
    history.begin_again(0)
    history.flushed(0, lines[1], 0, 10)
    # Rows of both, and one that is missing where no former one had it.
    report = audit((history, lines), range(10), [*range(5), *range(5), *range(5, 9)])
    assert (report.missing, report.doubled) == ([(9, 10)], [])
    assert "cannot be told apart" in report.unknown[0]


def test_progress_behind_the_ledger_and_rows_behind_progress() -> None:
    report = audit(written((0, 10, 10, 0, 0)), range(6), [*range(6), 8], next_offset=6)
    assert report.verdict is Verdict.DOUBLED
    assert any("8" in text for text in report.twice)
    assert any("6 to 9 were written: they will come again" in text for text in report.twice)


def test_ranges() -> None:
    assert runs([5, 1, 2, 7, 6]) == [(1, 3), (5, 8)]
    assert listed([(1, 3), (5, 6)]) == "1 to 2, 5"
    assert listed([(n, n + 1) for n in range(0, 20, 2)]).endswith("8 and 5 more")
