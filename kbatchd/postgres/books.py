"""The books of one transaction: how much PostgreSQL says it took of what was sent. They balance, or it is undone.

Each count is of a batch or of a COPY, never of a record. What a BEFORE trigger does not let in is no loss: it is
counted apart, where the table has such a trigger. Kept by sink/batch_copy.py and sink/upsert.py, looked through by
sink/insertion.py and sink/sink.py before each commit. No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbatchd.errors import Unbalanced

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from kbatchd.model import Partition, Record


@dataclass(slots=True)
class Books:
    """What has gone in."""

    #: Rows that were copied; behind a staging table also those that a later one of their key has replaced.
    rows: int = 0
    #: Of these, rows that a BEFORE trigger did not let in.
    skipped: int = 0
    #: Rows that a merge has inserted or updated.
    merged: int = 0

    def __add__(self, other: Books) -> Books:
        """Add what another COPY has brought."""
        return Books(self.rows + other.rows, self.skipped + other.skipped, self.merged + other.merged)


def agree(what: str, expected: int, found: int) -> None:
    """Raise Unbalanced when two counts of the same thing differ."""
    if expected != found:
        raise Unbalanced(f"{what}: expected {expected}, got {found}")


def agree_on_offsets(
    records: Sequence[Record],
    starts: Mapping[Partition, int],
    next_offsets: Mapping[Partition, int],
    ends: Mapping[Partition, int] | None,
) -> None:
    """Raise Unbalanced where progress would pass over a record that is not here, or stands behind one that is.

    `starts` is where progress stands, `ends` where the brokers have said that a partition ends for now: that may be far
    behind its last record, as offsets have holes. None: nobody knows of ends.
    """
    numbers = {p.number: p for p, offset in next_offsets.items() if ends is None or ends.get(p) != offset}
    for partition, offset in _firsts(records, numbers):
        if offset < starts[partition]:
            raise Unbalanced(f"{partition}: record {offset} was read, though progress stands at {starts[partition]}")
    reached = {partition: offset + 1 for partition, offset in _firsts(reversed(records), numbers)}
    for partition in numbers.values():
        last = max(reached.get(partition, starts[partition]), (ends or {}).get(partition, 0))
        if ends is not None or next_offsets[partition] < last:
            agree(f"{partition}: the offset behind the last record", last, next_offsets[partition])


def _firsts(records: Iterable[Record], numbers: Mapping[int, Partition]) -> Iterator[tuple[Partition, int]]:
    """Find the first record of each partition: few steps, as each poll brings a run of one partition."""
    wanted = set(numbers)
    for record in records if wanted else ():
        number = record.partition() or 0
        if number in wanted:
            yield numbers[number], record.offset() or 0
            wanted.discard(number)
            if not wanted:
                return
