"""One partition, record by record, and one transaction after another: what is missing, what is there twice. No I/O.

A window is a stretch of offsets with its records, rows and dead letters; of one that Kafka does not have any more only
rows and letters are counted, for the lines of the ledger. Used by verify.py.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from kbatchd.audit.ranges import Range, holds, listed, runs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kbatchd.audit.history import History, Line
    from kbatchd.model import Partition

#: So much is told of one kind and partition; the rest is counted.
TOLD = 5


class Verdict(StrEnum):
    """What is to be said of a partition, the worst that holds."""

    MISSING = "missing"  # a record is neither a row nor a dead letter
    DOUBLED = "doubled"  # one is there twice, or will come twice
    UNKNOWN = "unknown"  # there is nothing left to compare it with
    FINE = "fine"


@dataclass(slots=True)
class Report:
    """What was found of one partition."""

    route: str
    partition: Partition
    next_offset: int | None
    #: What Kafka has of it, and what of that was compared; None: nothing was.
    start: int | None = None
    end: int | None = None
    compared: Range | None = None
    #: Of what was compared: records, rows in the table (None: not looked at), dead letters.
    records: int = 0
    rows: int | None = None
    dead_letters: int = 0
    #: Offsets that were passed over by hand, or lost in Kafka.
    passed: list[Range] = field(default_factory=list)
    missing: list[Range] = field(default_factory=list)
    doubled: list[Range] = field(default_factory=list)
    #: In words: what is missing, what is there twice, and what cannot be told.
    lost: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Verdict:
        """The worst that holds."""
        if self.missing or self.lost:
            return Verdict.MISSING
        if self.doubled or self.twice:
            return Verdict.DOUBLED
        return Verdict.FINE if self.compared is not None else Verdict.UNKNOWN

    def lines(self) -> Iterator[str]:
        """Say all of it, for people."""
        if self.missing:
            yield f"neither a row nor a dead letter: {listed(self.missing)}"
        if self.doubled:
            yield f"there twice: {listed(self.doubled)}"
        for texts in (self.lost, self.twice, self.unknown):
            yield from texts[:TOLD]
            if len(texts) > TOLD:
                yield f"... and {len(texts) - TOLD} more like this"


@dataclass(slots=True)
class Stand:
    """PostgreSQL's part of a partition, before its rows."""

    report: Report
    partition: Partition
    topic_id: str
    next_offset: int
    #: Nothing below is compared: nobody knows whether it was read.
    begin: int
    history: History
    #: Offset and state of each dead letter, ascending.
    letters: list[tuple[int, str]]

    def place(self, low: int, high: int, *, is_part: bool) -> None:
        """Take what Kafka has: say what of it is to be compared, and what cannot be."""
        report = self.report
        report.start, report.end = low, high
        first = min(max(low, self.begin), self.next_offset)
        end = max(first, min(self.next_offset, high))
        report.compared = first, end
        if self.begin < first:
            report.unknown.append(f"Kafka has {listed([(self.begin, first)])} no more: only counts are compared")
        if low < self.begin and not is_part:
            report.unknown.append(f"nothing tells whether {listed([(low, self.begin)])} were to be read")
        if high < self.next_offset:
            report.unknown.append(f"the topic ends at {high}, below progress: its log was truncated")


class Rows:
    """The rows of a table, in the order of partitions and offsets: each is taken once."""

    def __init__(self, rows: Iterator[tuple[int, int, int]]) -> None:
        self._rows = rows
        self._next = next(rows, None)

    def below(self, number: int, end: float) -> Iterator[tuple[int, int]]:
        """Take the next rows of a partition, below an offset: offset and how many there are of it."""
        while self._next is not None and self._next[0] <= number:
            partition, offset, count = self._next
            if partition == number:
                if offset >= end:
                    return
                yield offset, count
            self._next = next(self._rows, None)


class Comparison:
    """One partition's windows, in their order."""

    def __init__(self, stand: Stand, rows: Rows | None) -> None:
        self._stand = stand
        self._history = stand.history
        self._report = stand.report
        self._rows = rows
        self.reached = stand.begin
        self._span = self._letter = 0
        #: Records that are neither row nor letter, with the line that should have written them.
        self._missing: list[tuple[int, Line | None]] = []
        self._doubled: list[int] = []
        if rows is not None:
            stand.report.rows = 0

    def pass_over(self, end: int) -> None:
        """Count rows and letters where Kafka has nothing to compare them with."""
        self._window(None, end)

    def take(self, records: Sequence[int], end: int) -> None:
        """Compare the records up to `end`."""
        self._window(records, end)

    def end(self) -> None:
        """Look behind progress, and sum up."""
        stand, report, former = self._stand, self._report, self._history.former
        number = stand.partition.number
        if self._rows is not None:
            beyond = [offset for offset, _ in self._rows.below(number, float("inf")) if not holds(former, offset)]
            if beyond:
                report.twice.append(f"rows from progress on, which will come again: {listed(runs(beyond))}")
        if ahead := self._history.ahead(stand.next_offset):
            report.twice.append(ahead)
        for overlap in self._history.overlaps:
            report.twice.append(f"two lines of the ledger have {listed([overlap])}")
        if self._rows is None:
            self._say_what_no_line_has()
        if self._rows is None and self._history.back:
            report.unknown.append(f"somebody has moved progress back: {listed(self._history.back)} were read again")
        if former:
            report.unknown.append(f"a former topic or log had {listed(former)} too: their rows cannot be told apart")
        report.passed = self._history.passed
        report.doubled = runs(self._doubled)
        # What a line knows of as kept out, or as a letter that is gone by now, is not missing.
        kept = [offset for offset, line in self._missing if line and line.missing <= line.explained]
        report.missing = runs({offset for offset, _ in self._missing} - set(kept))
        if kept:
            report.unknown.append(
                f"{len(kept)} records have neither row nor dead letter, and the ledger knows of so many that a trigger "
                "kept out, or whose letter was deleted"
            )

    def _say_what_no_line_has(self) -> None:
        """Say from where on there is a ledger: nothing else tells of a table that is not looked at."""
        first = self._stand.next_offset if self._history.first is None else self._history.first
        if self._stand.begin < first:
            self._report.unknown.append(f"the ledger has no lines of {listed([(self._stand.begin, first)])} any more")
            if not self._history.spans:
                self._report.compared = None

    def _window(self, records: Sequence[int] | None, end: int) -> None:
        first, self.reached = self.reached, max(self.reached, end)
        if first >= end:
            return
        rows = list(self._rows.below(self._stand.partition.number, end)) if self._rows is not None else []
        letters = self._letters_below(end)
        lines = self._count(records, rows, letters, first, end)
        if records is None:
            return
        report, former = self._report, self._history.former
        report.records += len(records)
        report.dead_letters += len({offset for offset, _ in letters})
        lying = [offset for offset, state in letters if state != "replayed"]
        twice = {offset for offset, before in zip(lying[1:], lying, strict=False) if offset == before}
        if self._rows is not None:
            assert report.rows is not None
            report.rows += sum(count for _, count in rows)
            twice.update(offset for offset, count in rows if count > 1)
            twice.update({offset for offset, _ in rows} & set(lying))
            self._miss(set(records) - {offset for offset, _ in rows} - set(lying), lines)
        self._doubled += [offset for offset in sorted(twice) if not holds(former, offset)]

    def _letters_below(self, end: int) -> list[tuple[int, str]]:
        letters, begin = self._stand.letters, self._letter
        self._letter = bisect_left(letters, (end, ""))
        return letters[begin : self._letter]

    def _count(
        self,
        records: Sequence[int] | None,
        rows: Sequence[tuple[int, int]],
        letters: Sequence[tuple[int, str]],
        first: int,
        end: int,
    ) -> list[tuple[int, int, Line]]:
        """Add what the window has to the lines that have written it; return these."""
        spans, found = self._history.spans, []
        while self._span < len(spans) and spans[self._span][1] <= first:
            self._span += 1
        for at in range(self._span, bisect_left(spans, end, key=lambda span: span[0])):
            low, high, line = max(spans[at][0], first), min(spans[at][1], end), spans[at][2]
            if low >= high:
                continue
            found.append(spans[at])
            if records is None:
                line.unread = True
            else:
                line.records += bisect_left(records, high) - bisect_left(records, low)
            line.found += sum(count for _, count in rows[bisect_left(rows, (low, 0)) : bisect_left(rows, (high, 0))])
            own = letters[bisect_left(letters, (low, "")) : bisect_left(letters, (high, ""))]
            line.letters += len(own)
            line.replayed += sum(state == "replayed" for _, state in own)
        return found

    def _miss(self, records: set[int], lines: Sequence[tuple[int, int, Line]]) -> None:
        history = self._history
        for offset in sorted(records):
            if holds(history.passed, offset) or holds(history.former, offset):
                continue
            at = bisect_right(lines, offset, key=lambda span: span[0]) - 1
            line = lines[at][2] if at >= 0 and offset < lines[at][1] else None
            if line is not None:
                line.missing += 1
            self._missing.append((offset, line))


def judge_lines(reports: Mapping[int, Report], lines: Sequence[Line], *, compacts: bool, has_rows: bool) -> None:
    """Compare each transaction's own counts with what was found of its records; see Line."""
    for line in lines:
        if line.stale or not line.spans.keys() <= reports.keys():
            continue
        where = "; ".join(f"[{number}] {listed([span])}" for number, span in sorted(line.spans.items()))
        written, due = line.rows + line.dead_letters + line.skipped, line.rows + line.replayed
        lost = twice = ""
        if not line.unread and not (has_rows and line.id == 0):
            counts = f"line {line.id} of the ledger has {written} records of {where}, and Kafka has {line.records}"
            if line.id == 0:
                counts = f"no line of the ledger has {where}, and Kafka has {line.records} records there"
            lost = counts if line.records > written else ""
            twice = counts if line.records < written and not compacts else ""
        elif has_rows and line.unread and line.id and not line.missing:
            counts = f"line {line.id} of the ledger has {due} rows of {where}, and the table has {line.found}"
            lost, twice = (counts if line.found < due else ""), (counts if line.found > due else "")
        elif line.unread and line.id == 0:
            for number in line.spans:
                reports[number].unknown.append(
                    f"no line of the ledger has {where}, and Kafka does not have it any more"
                )
        for number in line.spans:
            reports[number].lost += [lost] if lost else []
            reports[number].twice += [twice] if twice else []
