"""Batches and their buffers: nothing here waits, writes or asks for the time."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from kbatchd.model import FlushReason, Partition
from kbatchd.sink.batch import Batch, RouteBatches
from kbatchd.sink.buffers import BATCHES_PER_ROUTE, BufferPool
from kbatchd.sink.chunk import EMPTY, Chunk
from tests.records import REFUSAL, TOPIC, Sent, chunk

if TYPE_CHECKING:
    from collections.abc import Iterable

P0, P1 = Partition(TOPIC, 0), Partition(TOPIC, 1)
EPOCHS = {P0: 7, P1: 9}
BUFFER_BYTES = 100


def make(max_rows: int = 1_000, buffers: int = 4) -> RouteBatches:
    batches = RouteBatches(BufferPool(buffers * BUFFER_BYTES, BUFFER_BYTES), max_rows)
    batches.reached = {P0: 0, P1: 0}
    return batches


def sent(offsets: Iterable[int], size: int = 10, number: int = 0) -> list[Sent]:
    return [Sent(offset, (b"%d" % offset).ljust(size, b"."), number) for offset in offsets]


def rows(batch: Batch) -> list[bytes]:
    starts = batch.row_starts()
    return [bytes((batch.buffer or b"")[start:end]) for start, end in pairwise(starts)]


def all_of(batches: RouteBatches) -> list[Batch]:
    return [*batches.closed, *([batches.open] if batches.open else [])]


class TestChunk:
    def test_next_offsets_of_one_partition(self) -> None:
        assert chunk(*sent([3, 4, 9])).next_offsets() == {P0: 10}

    def test_next_offsets_of_several_partitions(self) -> None:
        mixed = [*sent([3, 4]), *sent([70], number=1), *sent([9]), *sent([75], number=1)]
        assert chunk(*mixed).next_offsets() == {P0: 10, P1: 76}

    def test_next_offsets_when_only_the_last_is_of_another_partition(self) -> None:
        assert chunk(*sent([3]), *sent([0], number=1)).next_offsets() == {P0: 4, P1: 1}

    def test_no_records_no_offsets(self) -> None:
        assert EMPTY.next_offsets() == {}

    @pytest.mark.parametrize("at", range(7))
    def test_split_loses_and_doubles_nothing(self, at: int) -> None:
        whole = chunk(*sent(range(6)), refused=(0, 3, 5))
        head, tail = whole.split(at)
        assert [*head.records, *tail.records] == list(whole.records)
        assert [*head.rows, *tail.rows] == list(whole.rows)
        assert [*head.refused, *((index + at, why) for index, why in tail.refused)] == list(whole.refused)
        assert head.record_bytes + tail.record_bytes == whole.record_bytes
        for part in (head, tail):
            assert len(part.rows) + len(part.refused) == len(part.records)

    @pytest.mark.parametrize("numbers", [{0}, {1}, {0, 1}, {7}], ids=str)
    @pytest.mark.parametrize("layouts", [None, [3, 4, 5]], ids=["one layout", "layouts"])
    def test_without_some_partitions(self, numbers: set[int], layouts: list[int] | None) -> None:
        records = [Sent(n, b"%d" % n, n % 2) for n in range(5)]
        whole = replace(chunk(*records, refused=[1, 4]), layouts=layouts)
        kept = [n for n, record in enumerate(records) if record.number not in numbers]
        rest = whole.without(numbers)
        assert [record.offset() for record in rest.records] == kept
        good = [n for n in kept if n not in {1, 4}]
        assert rest.rows == [b"%d" % n for n in good]
        assert [kept[at] for at, _ in rest.refused] == [n for n in kept if n in {1, 4}]
        assert rest.layouts == (None if layouts is None else [{0: 3, 2: 4, 3: 5}[n] for n in good])


class TestFilling:
    def test_what_was_put_is_in_the_buffer_in_order(self) -> None:
        batches = make()
        assert batches.put(chunk(*sent([0, 1])), EPOCHS, 1.0) is None
        assert batches.put(chunk(*sent([2, 5])), EPOCHS, 2.0) is None
        batch = batches.open
        assert batch is not None
        assert rows(batch) == [record.body for record in batch.records if isinstance(record, Sent)]
        assert (batch.next_offsets, batch.epochs, batch.opened_at) == ({P0: 6}, {P0: 7}, 1.0)

    def test_full_at_max_rows_exactly(self) -> None:
        batches = make(max_rows=3)
        batches.put(chunk(*sent([0, 1])), EPOCHS, 1.0)
        assert not batches.closed
        batches.put(chunk(*sent([2])), EPOCHS, 2.0)
        (batch,) = batches.closed
        assert batches.open is None
        assert (batch.reason, batch.closed_at, len(batch.records)) == (FlushReason.FULL, 2.0, 3)

    def test_a_chunk_over_several_batches(self) -> None:
        batches = make(max_rows=2)
        rest = batches.put(chunk(*sent(range(3))), EPOCHS, 1.0)
        assert rest is None
        assert [[record.offset() for record in batch.records] for batch in all_of(batches)] == [[0, 1], [2]]
        assert [batch.next_offsets for batch in all_of(batches)] == [{P0: 2}, {P0: 3}]

    def test_what_finds_no_room_comes_back(self) -> None:
        batches = make(max_rows=2)
        rest = batches.put(chunk(*sent(range(7))), EPOCHS, 1.0)
        assert rest is not None
        assert [record.offset() for record in rest.records] == [4, 5, 6]
        assert len(batches.closed) == BATCHES_PER_ROUTE
        assert batches.reached[P0] == 4

        batches.done(batches.closed[0])
        rest = batches.put(rest, EPOCHS, 2.0)
        assert rest is not None
        assert [record.offset() for record in rest.records] == [6]

    def test_full_at_max_bytes(self) -> None:
        batches = make()
        batches.put(chunk(*sent(range(9), size=11)), EPOCHS, 1.0)
        batches.put(chunk(*sent([9], size=11)), EPOCHS, 2.0)
        (batch,) = batches.closed
        assert (batch.reason, len(batch.records), batch.size) == (FlushReason.BYTES, 9, 99)
        assert batches.open is not None
        assert [record.offset() for record in batches.open.records] == [9]

    def test_a_row_that_fills_the_buffer_exactly(self) -> None:
        batches = make()
        batches.put(chunk(*sent([0], size=BUFFER_BYTES)), EPOCHS, 1.0)
        (batch,) = batches.closed
        assert (batch.reason, batch.size) == (FlushReason.BYTES, BUFFER_BYTES)

    def test_the_raw_records_count_as_well(self) -> None:
        """They are kept for dead letters: a table that takes little of each must not fill the memory."""
        batches = make()
        records = sent([0, 1], size=60)
        batches.put(chunk(*records, rows=[b"a", b"b"]), EPOCHS, 1.0)
        (batch,) = batches.closed
        assert (batch.reason, batch.size, batch.record_bytes) == (FlushReason.BYTES, 2, 120)

    def test_a_row_larger_than_a_buffer_goes_alone(self) -> None:
        batches = make()
        large = 3 * BUFFER_BYTES
        chunks = [*sent([0]), *sent([1], size=large), *sent([2])]
        rest = batches.put(chunk(*chunks), EPOCHS, 1.0)
        assert rest is not None
        assert [record.offset() for record in rest.records] == [2]
        first, second = all_of(batches)
        assert [len(batch.records) for batch in (first, second)] == [1, 1]
        assert [batch.reason for batch in (first, second)] == [FlushReason.BYTES] * 2
        assert second.size == large
        assert second.buffer is not None
        assert len(second.buffer) == large

    def test_its_buffer_is_not_taken_into_the_pool(self) -> None:
        batches = make(buffers=2)
        batches.put(chunk(*sent([0], size=3 * BUFFER_BYTES)), EPOCHS, 1.0)
        batches.done(batches.closed[0])
        for offset in (1, 2):
            batches.put(chunk(*sent([offset], size=BUFFER_BYTES)), EPOCHS, 1.0)
        assert [len(batch.buffer or b"") for batch in batches.closed] == [BUFFER_BYTES] * 2

    def test_a_large_row_behind_refused_records(self) -> None:
        batches = make()
        records = [*sent([0, 1]), *sent([2], size=3 * BUFFER_BYTES)]
        assert batches.put(chunk(*records, refused=(0, 1)), EPOCHS, 1.0) is None
        (batch,) = batches.closed
        assert (list(batch.row_records()), len(batch.records)) == ([2], 3)


class TestRefused:
    def test_a_batch_of_refused_records_takes_no_buffer(self) -> None:
        batches = make(buffers=2)
        batches.put(chunk(*sent([0, 1]), refused=(0, 1)), EPOCHS, 1.0)
        assert batches.open is not None
        assert batches.open.buffer is None
        assert batches.open.next_offsets == {P0: 2}
        assert list(batches.open.row_records()) == []

    def test_they_count_as_rows_of_a_full_batch(self) -> None:
        batches = make(max_rows=3)
        batches.put(chunk(*sent(range(3)), refused=(0, 2)), EPOCHS, 1.0)
        assert batches.closed[0].reason is FlushReason.FULL

    def test_indexes_are_the_batchs_own(self) -> None:
        batches = make(max_rows=4)
        batches.put(chunk(*sent([0, 1]), refused=(1,)), EPOCHS, 1.0)
        batches.put(chunk(*sent([2, 3, 4, 5]), refused=(0, 3)), EPOCHS, 1.0)
        first, second = all_of(batches)
        assert first.refused == [(1, REFUSAL), (2, REFUSAL)]
        assert list(first.row_records()) == [0, 3]
        assert rows(first) == [sent([0])[0].body, sent([3])[0].body]
        assert second.refused == [(1, REFUSAL)]
        assert list(second.row_records()) == [0]

    def test_split_by_bytes_between_refused_records(self) -> None:
        """Room for nine rows: the refused ones among and right behind them go with them."""
        batches = make()
        refused = (0, 4, 11, 12)
        batches.put(chunk(*sent(range(15), size=11), refused=refused), EPOCHS, 1.0)
        first, second = all_of(batches)
        assert [record.offset() for record in first.records] == list(range(13))
        assert [record.offset() for record in second.records] == [13, 14]
        assert [index for index, _ in first.refused] == list(refused)
        assert len(rows(first)) == 9


class TestEnds:
    def test_a_batch_without_rows_carries_them(self) -> None:
        batches = make()
        assert batches.put_ends({P0: 5}, EPOCHS, 1.0)
        assert batches.open is not None
        assert (batches.open.records, batches.open.next_offsets, batches.open.epochs) == ([], {P0: 5}, {P0: 7})

    def test_an_open_batch_takes_them(self) -> None:
        batches = make()
        batches.put(chunk(*sent([0])), EPOCHS, 1.0)
        assert batches.put_ends({P0: 5, P1: 3}, EPOCHS, 2.0)
        assert batches.open is not None
        assert batches.open.next_offsets == {P0: 5, P1: 3}

    def test_an_end_that_is_reached_opens_nothing(self) -> None:
        batches = make()
        batches.reached = {P0: 5}
        assert batches.put_ends({P0: 5}, EPOCHS, 1.0)
        assert batches.put_ends({P0: 4}, EPOCHS, 1.0)
        assert batches.open is None

    def test_no_room_for_an_end(self) -> None:
        """librdkafka tells of an end once: its reader must know to come again."""
        batches = make(max_rows=1)
        batches.put(chunk(*sent([0, 1])), EPOCHS, 1.0)
        assert not batches.put_ends({P0: 5}, EPOCHS, 2.0)
        batches.done(batches.closed[0])
        assert batches.put_ends({P0: 5}, EPOCHS, 3.0)


class TestPool:
    def test_it_has_two_buffers_at_least(self) -> None:
        pool = BufferPool(10, BUFFER_BYTES)
        assert [pool.acquire() is None for _ in range(3)] == [False, False, True]

    def test_starved_until_a_buffer_comes_back(self) -> None:
        pool = BufferPool(0, BUFFER_BYTES)
        first, _ = pool.acquire(), pool.acquire()
        assert not pool.starved
        assert pool.acquire() is None
        assert pool.starved
        pool.release(first)
        assert not pool.starved
        assert pool.acquire() is first

    def test_routes_share_it(self) -> None:
        pool = BufferPool(2 * BUFFER_BYTES, BUFFER_BYTES)
        routes = [RouteBatches(pool, 1_000) for _ in range(3)]
        for batches in routes:
            batches.reached = {P0: 0}
        rests = [batches.put(chunk(*sent([0])), EPOCHS, 1.0) for batches in routes]
        assert [rest is None for rest in rests] == [True, True, False]
        assert pool.starved

        routes[0].close(FlushReason.BUFFERS, 2.0)
        routes[0].done(routes[0].closed[0])
        assert rests[2] is not None
        assert routes[2].put(rests[2], EPOCHS, 3.0) is None

    def test_clear_gives_every_buffer_back(self) -> None:
        pool = BufferPool(2 * BUFFER_BYTES, BUFFER_BYTES)
        batches = RouteBatches(pool, 1)
        batches.reached = {P0: 0}
        batches.put(chunk(*sent([0, 1])), EPOCHS, 1.0)
        assert pool.acquire() is None
        batches.clear()
        assert all_of(batches) == []
        assert batches.reached == {}
        assert [pool.acquire() is None for _ in range(3)] == [False, False, True]

    def test_done_gives_the_buffer_back_once(self) -> None:
        pool = BufferPool(0, BUFFER_BYTES)
        batches = RouteBatches(pool, 1)
        batches.reached = {P0: 0}
        batches.put(chunk(*sent([0])), EPOCHS, 1.0)
        (batch,) = batches.closed
        batches.done(batch)
        assert batch.buffer is None
        assert [pool.acquire() is None for _ in range(3)] == [False, False, True]


def test_closing_nothing_hands_over_nothing() -> None:
    batches = make()
    batches.close(FlushReason.LINGER, 1.0)
    assert batches.closed == []


def test_closing_what_found_no_buffer_hands_over_nothing() -> None:
    pool = BufferPool(2 * BUFFER_BYTES, BUFFER_BYTES)
    lent = pool.acquire(), pool.acquire()
    batches = RouteBatches(pool, 1_000)
    batches.reached = {P0: 0}
    rest = batches.put(chunk(*sent([0])), EPOCHS, 1.0)
    assert rest is not None
    assert batches.open is not None
    batches.close(FlushReason.LINGER, 2.0)
    assert all_of(batches) == []
    pool.release(lent[0])
    assert batches.put(rest, EPOCHS, 3.0) is None


def test_an_empty_chunk_opens_no_batch() -> None:
    batches = make()
    assert batches.put(Chunk((), ()), EPOCHS, 1.0) is None
    assert batches.open is None


@pytest.mark.parametrize("max_rows", [1, 2, 7])
@pytest.mark.parametrize("size", [1, 9, 40, 100, 250])
def test_every_record_arrives_once_and_in_order(max_rows: int, size: int) -> None:
    batches = make(max_rows=max_rows)
    flushed: list[Batch] = []
    for first in range(0, 60, 20):
        rest: Chunk | None = chunk(*sent(range(first, first + 20), size=size), refused=(0, 7, 8, 19))
        while rest is not None:
            rest = batches.put(rest, EPOCHS, 1.0)
            batches.close(FlushReason.LINGER, 1.0)
            for batch in list(batches.closed):
                good = [batch.records[index].value() for index in batch.row_records()]
                assert rows(batch) == good
                flushed.append(batch)
                batches.done(batch)
    assert [record.offset() for batch in flushed for record in batch.records] == list(range(60))
    assert [batch.next_offsets[P0] for batch in flushed] == [(batch.records[-1].offset() or 0) + 1 for batch in flushed]


class TestLayouts:
    def rows(self, *layouts: int | None) -> Chunk:
        """A chunk of one row a layout; None is a refused record."""
        made = chunk(
            *[Sent(offset, b"x") for offset in range(len(layouts))],
            refused=[index for index, layout in enumerate(layouts) if layout is None],
        )
        made.layouts = [layout for layout in layouts if layout is not None]
        return made

    def test_none_until_there_is_one(self) -> None:
        batches = make()
        batches.put(chunk(*sent([0, 1])), EPOCHS, 0.0)
        assert batches.open is not None
        assert batches.open.layouts is None
        batches.put(self.rows(0, 2), EPOCHS, 0.0)
        batches.put(chunk(*sent([4])), EPOCHS, 0.0)
        assert batches.open.layouts == [0, 0, 0, 2, 0]

    def test_a_ninth_layout_begins_another_batch(self) -> None:
        batches = make()
        batches.put(self.rows(1, 2, None, 3, 4, 5, 6, 7, None, 0, 8, 1), EPOCHS, 0.0)
        [first] = batches.closed
        assert (first.layouts, len(first.records)) == ([1, 2, 3, 4, 5, 6, 7, 0], 10)
        assert batches.open is not None
        assert batches.open.layouts == [8, 1]
