"""A chunk: what one poll brought for one route, on its way from the encoder into a batch. Pure; made by the intake."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from kbatchd.model import Partition, Record, Refusal


@dataclass(slots=True)
class Chunk:
    """What one poll brought for one route: the records, the rows of the good ones, the refusals of the others.

    `refused` holds (index in records, why), ascending. `record_bytes` is the size of the raw values. `layouts` says
    which columns each row has; None: all rows have layout 0.
    """

    records: Sequence[Record]
    rows: Sequence[bytes]
    refused: Sequence[tuple[int, Refusal]] = ()
    record_bytes: int = 0
    layouts: Sequence[int] | None = None

    def split(self, at: int) -> tuple[Chunk, Chunk]:
        """Cut before record `at`; the raw bytes are shared out in proportion, which is near enough for a limit."""
        refused_before = [item for item in self.refused if item[0] < at]
        rows_before = at - len(refused_before)
        bytes_before = self.record_bytes * at // len(self.records)
        rest = [(index - at, why) for index, why in self.refused if index >= at]
        head = Chunk(self.records[:at], self.rows[:rows_before], refused_before, bytes_before)
        tail = Chunk(self.records[at:], self.rows[rows_before:], rest, self.record_bytes - bytes_before)
        if self.layouts is not None:
            head.layouts, tail.layouts = self.layouts[:rows_before], self.layouts[rows_before:]
        return head, tail

    def without(self, numbers: Collection[int]) -> Chunk:
        """Leave out the records of these partitions."""
        kept = [index for index, record in enumerate(self.records) if (record.partition() or 0) not in numbers]
        if len(kept) == len(self.records):
            return self
        whys = dict(self.refused)
        rows = {index: row for row, index in enumerate(i for i in range(len(self.records)) if i not in whys)}
        left = [rows[index] for index in kept if index in rows]
        return Chunk(
            [self.records[index] for index in kept],
            [self.rows[row] for row in left],
            [(at, whys[index]) for at, index in enumerate(kept) if index in whys],
            self.record_bytes * len(kept) // len(self.records),
            None if self.layouts is None else [self.layouts[row] for row in left],
        )

    def next_offsets(self) -> dict[Partition, int]:
        """For each partition among the records: the offset after its last one here."""
        return behind(self.last_records())

    def last_records(self) -> dict[Partition, Record]:
        """Return the last record here of each partition."""
        if not self.records:
            return {}
        last = self.records[-1]
        # Comprehensions: a methodcaller costs 93 ns a record, a method call here 20.
        topic, numbers = last.topic() or "", [record.partition() or 0 for record in self.records]
        if numbers.count(numbers[-1]) == len(numbers):  # one partition: 5 times cheaper than the dict below
            return {Partition(topic, numbers[-1]): last}
        return {Partition(topic, number): r for number, r in dict(zip(numbers, self.records, strict=True)).items()}

    def first_under(self, partition: Partition, after: int | None) -> list[tuple[int, int]]:
        """Return the leader epochs of a partition's records, and the first offset of each; without the one before."""
        firsts: list[tuple[int, int]] = []
        for record in self.records:
            epoch = record.leader_epoch()
            if record.partition() == partition.number and epoch is not None and epoch != after:
                firsts.append((epoch, record.offset() or 0))
                after = epoch
        return firsts


def behind(lasts: Mapping[Partition, Record]) -> dict[Partition, int]:
    """Return the offsets after these records."""
    return {partition: (last.offset() or 0) + 1 for partition, last in lasts.items()}


EMPTY = Chunk((), ())
