"""docs/faults.md, made from what the matrix has measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.faults.play import Outcome

PAIRS = "two of these at the same time, by chance"
PAIRS_PROMISE = "as each alone"

#: How the oracle calls them.
LOST = ("lost", "gone, not written and not named")
TWICE = ("written twice", "row and dead letter, or dead letters twice")
LATE = ("out of order",)

HEAD = """\
# What was done to it

<!-- Made by `make faults` from what it has measured; do not edit. -->

Each row is a fault that came and went while records came without a pause: a real daemon between real brokers and a
real PostgreSQL, with proxies that read the protocols between them. The daemon logs in with the role of `sql/roles.sql`.
Each record carries its partition, its place in it and a text made of both. Afterwards the topic, read apart, is
compared with table, dead letters, gaps and ledger, record by record. And meanwhile a sampler looks at one snapshot of
PostgreSQL after the other: every record below `next_offset` is a row, a dead letter or in a gap, and none at or above
it is.

- *times*: how often the fault came. *records*: how many were sent. *snapshots*: how many the sampler took.
- *lost*, *twice*, *out of order*: records; any but 0, or a snapshot that is wrong, fails the row.
- *rows again after*: seconds from the end of the fault (of a kill: from the kill) until the last of all partitions had
  rows again, the median and the longest. Measured on two cores, which run the servers as well.
- The points of a flush, as seen on the wire: {points}.

`make faults` does all of it again, `make faults SEED=n` with the same random moments and pairs; it takes ten minutes or
so on a machine that does nothing else. The full disk needs root, the rolling upgrade the checkout's history in git.

| fault | what is promised | times | records | snapshots | lost | twice | out of order | rows again after |
|---|---|---|---|---|---|---|---|---|
"""

POINTS = "before COPY's first byte, within COPY, before COMMIT, after COMMIT and before its answer"


class Line(NamedTuple):
    """A row of the page."""

    fault: str
    promise: str
    outcome: Outcome


def page(faults: Sequence[str], lines: Sequence[Line], before: str) -> str:
    """Return the whole page: the rows of these faults as they were measured now, else as they are on `before`."""
    rows = rows_of(before) | {line.fault: _row(line) for line in lines}
    return HEAD.format(points=POINTS) + "".join(f"{rows[fault]}\n" for fault in faults if fault in rows)


def rows_of(page: str) -> dict[str, str]:
    """Return the rows of a page, by their faults."""
    rows = page.partition("|---|")[2].splitlines()[1:]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows if row.startswith("| ")}


def summary(outcome: Outcome) -> str:
    """Say in a line what was measured."""
    wrong = "; ".join(map(str, outcome.faults)) or "right"
    return (
        f"{outcome.times} times, {outcome.records} records, {outcome.samples} snapshots, {_seconds(outcome)}: {wrong}"
    )


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """Add several up."""
    first = outcomes[0]
    return first._replace(
        times=sum(each.times for each in outcomes),
        seconds=[seconds for each in outcomes for seconds in each.seconds],
        records=sum(each.records for each in outcomes),
        samples=sum(each.samples for each in outcomes),
        faults=[fault for each in outcomes for fault in each.faults],
    )


def _row(line: Line) -> str:
    outcome = line.outcome
    counts = [
        outcome.times,
        outcome.records,
        outcome.samples,
        *(outcome.count(*kinds) for kinds in (LOST, TWICE, LATE)),
    ]
    cells = [line.fault, line.promise, *(f"{count:,}" for count in counts), _seconds(outcome)]
    return f"| {' | '.join(cells)} |"


def _seconds(outcome: Outcome) -> str:
    if not outcome.seconds:
        return "-"
    longest = max(outcome.seconds)
    if len(outcome.seconds) == 1:
        return f"{longest:.1f} s"
    return f"{statistics.median(outcome.seconds):.1f}, at most {longest:.1f} s"
