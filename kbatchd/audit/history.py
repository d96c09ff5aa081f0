"""What the ledger tells of a route: line by line what each transaction has written, and how progress has moved.

Lines of one partition follow each other: each begins where the one before has ended, unless somebody has moved progress
by hand or a gap was recorded, which are lines as well. Read by the audit, in its own transaction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kbatchd.audit.ranges import Range, listed, meets
from kbatchd.model import FlushReason
from kbatchd.schema.ledger import READ_AGAIN

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import psycopg

    from kbatchd.schema.progress import Owner

#: The statement that has a line for each line and partition, in the order of commits.
_LINES = """
SELECT b.id, b.reason, b.rows, b.dead_letters, b.skipped, b.started_at, s.key::int,
       (s.value OPERATOR(pg_catalog.->>) 0)::bigint, (s.value OPERATOR(pg_catalog.->>) 1)::bigint
FROM kbatchd.batches AS b, pg_catalog.jsonb_each(b.spans OPERATOR(pg_catalog.->) %(topic)s) AS s(key, value)
WHERE b.pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND b.route OPERATOR(pg_catalog.=) %(route)s
  AND b.spans OPERATOR(pg_catalog.?) %(topic)s
  AND (%(since)s::pg_catalog.timestamptz IS NULL OR b.committed_at OPERATOR(pg_catalog.>=) %(since)s)
ORDER BY b.id
"""

_GAPS = """
SELECT partition, kind, first_offset, last_offset, recorded_at FROM kbatchd.gaps
WHERE pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND route OPERATOR(pg_catalog.=) %(route)s
  AND topic OPERATOR(pg_catalog.=) %(topic)s
ORDER BY id
"""

_FLUSHES = frozenset(map(str, FlushReason))


@dataclass(slots=True, eq=False)
class Line:
    """What one transaction has written, and what was found of it since."""

    id: int
    rows: int
    dead_letters: int
    skipped: int
    spans: dict[int, Range] = field(default_factory=dict)
    #: Records that Kafka has of it; none of a part that Kafka does not have any more.
    records: int = 0
    unread: bool = False
    #: Rows in the table, dead letters that are there, and those of them that were replayed.
    found: int = 0
    letters: int = 0
    replayed: int = 0
    #: Records that are neither.
    missing: int = 0
    #: Its offsets have been written again since, or another topic's or log's have them: its counts say nothing.
    stale: bool = False

    @property
    def explained(self) -> int:
        """Records that may be missing: a BEFORE trigger kept them out, or their dead letter was deleted."""
        return self.skipped + max(0, self.dead_letters - self.letters)


@dataclass(slots=True)
class History:
    """One partition's part of it."""

    #: What flushes have written, each with its line.
    spans: list[tuple[int, int, Line]] = field(default_factory=list)
    #: Passed over by hand, or lost: nobody has read them.
    passed: list[Range] = field(default_factory=list)
    #: Offsets that another topic of the name, or a log that was truncated, had before.
    former: list[Range] = field(default_factory=list)
    #: Read once more, since somebody has moved progress back.
    back: list[Range] = field(default_factory=list)
    #: Written once more by `kbatchd replay-range`.
    again: list[Range] = field(default_factory=list)
    #: Where its lines begin and end; None: there is none.
    first: int | None = None
    last: int | None = None
    #: Offsets that no line has, and such as two have.
    holes: list[Range] = field(default_factory=list)
    overlaps: list[Range] = field(default_factory=list)

    def flushed(self, number: int, line: Line, first: int, end: int) -> None:
        """Take what a flush has written of partition `number`."""
        if self.last is not None and first > self.last:
            self.holes.append((self.last, first))
        elif self.last is not None and first < self.last:
            self.overlaps.append((first, self.last))
        self.spans.append((first, end, line))
        line.spans[number] = (first, end)
        self._move(first, end)

    def moved(self, first: int | None, end: int) -> None:
        """Take a move that has read nothing: by hand, over a gap, or with a new name."""
        if first is not None and first < end:
            self.passed.append((first, end))
        elif first is not None and first > end and not meets(self.former, end, first):
            self.back.append((end, first))
        self._move(end if first is None else first, end)

    def begin_again(self, end: int) -> None:
        """Forget what came before: that was another topic."""
        for _, _, line in self.spans:
            line.stale = True
        self.spans, self.passed, self.back, self.again = [], [(0, end)] if end else [], [], []
        self.holes, self.overlaps = [], []
        self.first = self.last = end

    def _move(self, first: int, end: int) -> None:
        self.first = first if self.first is None else min(self.first, first)
        self.last = end

    def close(self, number: int, next_offset: int) -> list[Line]:
        """Compare the last line with progress; return a line for each hole: nobody has written anything of it."""
        if self.last is not None and next_offset > self.last:
            self.holes.append((self.last, next_offset))
        empty = [Line(0, 0, 0, 0, {number: hole}) for hole in self.holes]
        self.spans += [(*line.spans[number], line) for line in empty]
        self.spans.sort(key=lambda span: span[:2])
        for first, end, line in self.spans:
            line.stale = line.stale or meets(self.again, first, end) or meets(self.former, first, end)
        return empty

    def ahead(self, next_offset: int) -> str:
        """Say where the ledger is beyond progress, if it is."""
        if self.last is None or self.last <= next_offset:
            return ""
        span = listed([(next_offset, self.last)])
        return f"progress stands at {next_offset}, and the ledger says that {span} were written: they will come again"


def read(connection: psycopg.Connection, owner: Owner, since: datetime | None) -> tuple[dict[int, History], list[Line]]:
    """Read the ledger and the gaps of a route."""
    names = {"pipeline": owner.pipeline, "route": owner.route, "topic": owner.topic, "since": since}
    recreated, former = _gaps(connection, names)
    histories = {number: History(former=ranges) for number, ranges in former.items()}
    lines: dict[int, Line] = {}
    with connection.cursor(name="ledger") as cursor:
        for id_, reason, rows, dead, skipped, at, number, first, end in cursor.execute(_LINES, names):
            history = histories.setdefault(number, History())
            if reason in _FLUSHES:
                line = lines.setdefault(id_, Line(id_, rows, dead, skipped))
                history.flushed(number, line, first, end)
            elif reason == READ_AGAIN:
                history.again.append((first, end))
            elif (number, at) in recreated:
                history.begin_again(end)
            else:
                history.moved(first, end)
    return histories, list(lines.values())


def former_offsets(connection: psycopg.Connection, owner: Owner) -> dict[int, list[Range]]:
    """Return, by partition number, the offsets that a former topic of the name, or a truncated log, had as well."""
    names = {"pipeline": owner.pipeline, "route": owner.route, "topic": owner.topic}
    return _gaps(connection, names)[1]


def _gaps(
    connection: psycopg.Connection, names: Mapping[str, object]
) -> tuple[set[tuple[int, datetime]], dict[int, list[Range]]]:
    """Read where and when the topic was met as another one, and which offsets rows of former ones have.

    The line of the ledger has the same time: that of the transaction.
    """
    recreated: set[tuple[int, datetime]] = set()
    former: dict[int, list[Range]] = {}
    for number, kind, first, last, at in connection.execute(_GAPS, names):
        if kind == "recreated":
            recreated.add((number, at))
            former.setdefault(number, []).append((0, first))
        elif kind == "truncation":
            former.setdefault(number, []).append((first, last))
    return recreated, former
