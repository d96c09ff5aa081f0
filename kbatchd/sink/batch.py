"""Batches: rows on their way from the poll loop to the flusher, in preallocated buffers.

Two batches a route: one fills while the other is being copied. Buffers come from one pool a worker, so many routes do
not multiply memory. Everything here is pure: no thread, no lock, no clock, no I/O. The worker calls it under its own
lock, once a poll and never once a record; the flusher reads a closed batch outside the lock, when nobody else does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from kbatchd.lineage import Lineage
from kbatchd.model import FlushReason, Partition, Record, Refusal
from kbatchd.sink.buffers import BATCHES_PER_ROUTE, BufferPool
from kbatchd.sink.chunk import EMPTY, Chunk, behind

#: Different layouts of rows in one batch: each takes a COPY of its own.
LAYOUTS_PER_BATCH = 8


@dataclass(slots=True, eq=False)
class Batch:
    """Rows, dead letters and offsets that commit in one transaction.

    `next_offsets` is where each partition's progress will stand after it, `ends` which of these the brokers have named
    as a partition's end (None: nobody knows), `lineages` of which log its records are; `epochs` under which claim it
    was filled.
    Row k (from 0) takes `row_sizes[k]` bytes of `buffer`, which is full up to `size`; its layout is `layouts[k]`, or 0
    where there are none.
    """

    opened_at: float
    buffer: bytearray | None = None
    size: int = 0
    row_sizes: list[int] = field(default_factory=list)
    layouts: list[int] | None = None
    records: list[Record] = field(default_factory=list)
    refused: list[tuple[int, Refusal]] = field(default_factory=list)
    record_bytes: int = 0
    next_offsets: dict[Partition, int] = field(default_factory=dict)
    lineages: dict[Partition, Lineage] = field(default_factory=dict)
    ends: dict[Partition, int] | None = None
    epochs: dict[Partition, int] = field(default_factory=dict)
    reason: FlushReason | None = None
    closed_at: float = 0.0

    def append(self, chunk: Chunk) -> None:
        """Take the whole chunk; its rows must fit into the buffer."""
        base = len(self.records)
        if chunk.rows:
            assert self.buffer is not None
            joined = b"".join(chunk.rows)
            end = self.size + len(joined)
            self.buffer[self.size : end] = joined
            self.size = end
            if chunk.layouts is not None or self.layouts is not None:
                self._note_layouts(chunk)
            self.row_sizes += map(len, chunk.rows)
        self.refused += [(base + index, why) for index, why in chunk.refused]
        self.records += chunk.records
        self.record_bytes += chunk.record_bytes

    def _note_layouts(self, chunk: Chunk) -> None:
        if self.layouts is None:
            self.layouts = [0] * len(self.row_sizes)
        self.layouts += [0] * len(chunk.rows) if chunk.layouts is None else chunk.layouts

    def row_records(self) -> Sequence[int]:
        """Return the index in `records` of each row."""
        if not self.refused:
            return range(len(self.records))
        refused = {index for index, _ in self.refused}
        return [index for index in range(len(self.records)) if index not in refused]

    def row_starts(self) -> list[int]:
        """Return where each row starts in the buffer, and after them the end of the last."""
        return list(accumulate(self.row_sizes, initial=0))


class RouteBatches:
    """One route's batches: the open one, and the closed ones in the order they filled."""

    def __init__(self, pool: BufferPool, max_rows: int) -> None:
        self._pool = pool
        self._max_rows = max_rows
        self.open: Batch | None = None
        self.closed: list[Batch] = []
        #: It is in the table, but its room is not free yet.
        self._retired: Batch | None = None
        #: The offset after the last one seen in each partition, set by each claim.
        self.reached: dict[Partition, int] = {}
        #: Of which log they were read, likewise.
        self.lineages: dict[Partition, Lineage] = {}

    def put(self, chunk: Chunk, epochs: Mapping[Partition, int], now: float) -> Chunk | None:
        """Add the chunk's records, closing batches as they fill; return what found no room, or None."""
        while chunk.records:
            batch = self._open(now)
            if batch is None or not self._fit_out(batch, chunk):
                return chunk
            taken = self._room(batch, chunk)
            if not taken:
                self.close(FlushReason.BYTES, now)
                continue
            head, chunk = (chunk, EMPTY) if taken == len(chunk.records) else chunk.split(taken)
            batch.append(head)
            lasts = head.last_records()
            self._advance(batch, behind(lasts), epochs)
            self._note_log(batch, head, lasts)
            self._close_if_full(batch, now)
        return None

    def put_ends(self, offsets: Mapping[Partition, int], epochs: Mapping[Partition, int], now: float) -> bool:
        """Let the next flush move progress to these ends; without an open batch, one without rows will.

        Return False when there is no room for one.
        """
        ahead = {partition: offset for partition, offset in offsets.items() if offset > self.reached[partition]}
        if not ahead:
            return True
        batch = self._open(now)
        if batch is None:
            return False
        batch.ends = (batch.ends or {}) | ahead
        self._advance(batch, ahead, epochs)
        return True

    def begin(self, partition: Partition) -> tuple[int, int | None]:
        """Return where reading begins, and the leader epoch of the record before.

        That is behind the last record, also where a partition's end has been reached behind it: of the markers in
        between nobody tells the epoch.
        """
        lineage = self.lineages[partition]
        if lineage.epoch is not None and lineage.end is not None:
            self.reached[partition] = lineage.end
        return self.reached[partition], lineage.epoch

    def forget_log(self, partition: Partition, committed: int) -> None:
        """Let reading begin at what is reached, without an epoch."""
        self.lineages[partition] = self.lineages[partition].unknown()
        self.reached[partition] = max(self.reached[partition], committed)

    def has_room(self) -> bool:
        """Say whether a chunk would find room for some of its records."""
        batch = self.open
        if batch is None and self._is_full:
            return False
        return (batch is not None and batch.buffer is not None) or self._pool.has_free

    def close(self, reason: FlushReason, now: float) -> None:
        """Hand the open batch over to the flusher; one that has found no room for anything is forgotten."""
        batch, self.open = self.open, None
        if batch is None:
            return
        if not batch.epochs:
            self._free(batch)
            return
        batch.reason = reason
        batch.closed_at = now
        self.closed.append(batch)

    def done(self, batch: Batch) -> None:
        """Forget a batch that committed or was given up; its buffer is free again."""
        self.closed.remove(batch)
        self._free(batch)

    def retire(self, batch: Batch) -> None:
        """Forget a batch that committed, but keep its room until `free_retired`."""
        self.closed.remove(batch)
        self._retired = batch

    def free_retired(self) -> Batch | None:
        """Let the retired batch's room be used again; return it: its last owner drops 20,000 records."""
        batch, self._retired = self._retired, None
        if batch is not None:
            self._free(batch)
        return batch

    def hold(self, partitions: Collection[Partition]) -> bool:
        """Tell whether something of these partitions is on its way."""
        batches = self.closed if self.open is None else [*self.closed, self.open]
        return any(not batch.epochs.keys().isdisjoint(partitions) for batch in batches)

    def forget(self, partition: Partition) -> None:
        """Know nothing of a partition any more, of which nothing is on its way."""
        self.reached.pop(partition, None)
        self.lineages.pop(partition, None)

    def clear(self) -> None:
        """Throw everything away: it will be read again."""
        for batch in self.closed:
            self._pool.release(batch.buffer)
        if self.open is not None:
            self._pool.release(self.open.buffer)
        self.free_retired()
        self.open = None
        self.closed.clear()
        self.reached.clear()
        self.lineages.clear()

    @property
    def _is_full(self) -> bool:
        return len(self.closed) + (self._retired is not None) == BATCHES_PER_ROUTE

    def _free(self, batch: Batch) -> None:
        self._pool.release(batch.buffer)
        batch.buffer = None

    def _open(self, now: float) -> Batch | None:
        if self.open is None and not self._is_full:
            self.open = Batch(opened_at=now, ends={})
        return self.open

    def _fit_out(self, batch: Batch, chunk: Chunk) -> bool:
        """See that the batch has a buffer if the chunk needs one; a row larger than any gets one of its own."""
        if batch.buffer is None and chunk.rows:
            first = len(chunk.rows[0])
            if first > self._pool.buffer_bytes:
                batch.buffer = bytearray(first)
            else:
                batch.buffer = self._pool.acquire()
        return batch.buffer is not None or not chunk.rows

    def _room(self, batch: Batch, chunk: Chunk) -> int:
        """Return how many of the chunk's leading records the batch can take."""
        count = min(len(chunk.records), self._max_rows - len(batch.records))
        if not chunk.rows:
            return count
        assert batch.buffer is not None
        if chunk.layouts is not None:
            count = min(count, _records_before_row(chunk, _rows_of_layouts(batch, chunk.layouts)))
        free = len(batch.buffer) - batch.size
        if sum(map(len, chunk.rows)) <= free:
            return count
        ends = list(accumulate(map(len, chunk.rows)))
        return min(count, _records_before_row(chunk, bisect_right(ends, free)))

    def _advance(self, batch: Batch, offsets: Mapping[Partition, int], epochs: Mapping[Partition, int]) -> None:
        for partition, offset in offsets.items():
            batch.next_offsets[partition] = self.reached[partition] = max(offset, self.reached[partition])
            batch.epochs[partition] = epochs[partition]

    def _note_log(self, batch: Batch, chunk: Chunk, lasts: Mapping[Partition, Record]) -> None:
        """Note the leader epochs. They only go up: where the last record has that of before, no other is asked."""
        for partition, last in lasts.items():
            epoch, known = last.leader_epoch(), self.lineages.get(partition, Lineage())
            if epoch is None or epoch < 0:
                continue  # a broker that knows of none
            # Behind what was passed over an epoch begins a second time, also the same one: see schema/arrived.py.
            before = known.epoch
            firsts = [] if epoch == before else chunk.first_under(partition, before)
            batch.lineages[partition] = self.lineages[partition] = known.then(firsts, (last.offset() or 0) + 1)

    def _close_if_full(self, batch: Batch, now: float) -> None:
        if len(batch.records) >= self._max_rows:
            self.close(FlushReason.FULL, now)
        elif max(batch.size, batch.record_bytes) >= self._pool.buffer_bytes:
            self.close(FlushReason.BYTES, now)


def _rows_of_layouts(batch: Batch, layouts: Sequence[int]) -> int:
    """Return how many of these rows the batch can take before it had too many layouts."""
    known = set(batch.layouts or [0] * bool(batch.row_sizes))
    for row, layout in enumerate(layouts):
        known.add(layout)
        if len(known) > LAYOUTS_PER_BATCH:
            return row
    return len(layouts)


def _records_before_row(chunk: Chunk, row: int) -> int:
    """Return how many records stand before row `row` (from 0): as many rows, and the refused ones among them."""
    count = row
    for index, _ in chunk.refused:
        if index > count:
            break
        count += 1
    return count
