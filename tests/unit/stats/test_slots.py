"""The workers' numbers in shared memory: each worker its own slot, read by the supervisor."""

from __future__ import annotations

import os
import random
import time
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import pytest

from kbatchd.model import FlushReason
from kbatchd.stats.histograms import FRESHNESS_SECONDS
from kbatchd.stats.slots import Count, Field, RouteSlot, Slots, State

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def test_a_slot_begins_with_zeros() -> None:
    slots = Slots({"worker": 2})
    assert len(slots) == 2
    assert [slots[1][field] for field in Field] == [0] * len(Field)
    assert State(slots[0][Field.STATE]) is State.STARTING


def test_slots_do_not_overlap() -> None:
    slots = Slots({"worker": 3})
    for worker in range(3):
        for field in Field:
            slots[worker][field] = 100 * worker + field
    for worker in range(3):
        assert [slots[worker][field] for field in Field] == [100 * worker + field for field in Field]


def test_numbers_of_64_bits() -> None:
    slot = Slots({"worker": 1})[0]
    slot[Field.CLAIMED] = 2**63 - 2
    slot.add(Field.CLAIMED, 1)
    assert slot[Field.CLAIMED] == 2**63 - 1


def test_reset_keeps_the_count_of_starts() -> None:
    slot = Slots({"worker": 1})[0]
    for field in Field:
        slot[field] = 7
    slot.reset()
    kept = {Field.BEAT: slot[Field.BEAT], Field.STARTS: 7}
    assert {field: slot[field] for field in Field} == dict.fromkeys(Field, 0) | kept
    assert slot.silence_seconds() < 60


def test_reset_keeps_what_was_counted_and_owned() -> None:
    slot = Slots({"worker": 1}, ["r"])[0]
    numbers = slot.routes["r"]
    numbers.add_written(5, 2)
    numbers.show_partitions({3, 70}, {70}, on_hold=False)
    slot.reset()
    assert (slot.total(Count.RECORDS), numbers.owned, numbers.halted) == (7, {3, 70}, {70})


def test_silence_is_the_time_since_the_last_beat() -> None:
    slot = Slots({"worker": 1})[0]
    slot.beat()
    first = slot[Field.BEAT]
    slot[Field.BEAT] = first - 60_000_000_000
    assert 60 <= slot.silence_seconds() < 120
    slot.beat()
    assert slot[Field.BEAT] >= first


def test_a_child_writes_what_its_parent_reads() -> None:
    slots = Slots({"worker": 2})
    pid = os.fork()
    if not pid:
        slots[1][Field.CLAIMED] = 4_711
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert slots[1][Field.CLAIMED] == 4_711
    assert slots[0][Field.CLAIMED] == 0


class Stamped(NamedTuple):
    """A record, as far as its age goes."""

    at: int
    kind: int = 1

    def timestamp(self) -> tuple[int, int]:
        return self.kind, self.at


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> int:
    """A time that stands still, in milliseconds."""
    monkeypatch.setattr(time, "time_ns", lambda: 1_795_000_000_000_000_000)
    return 1_795_000_000_000


def counted(batches: Iterable[Sequence[Stamped]]) -> RouteSlot:
    numbers = Slots({"worker": 1}, ["r"])[0].routes["r"]
    for records in batches:
        numbers.add_batch(FlushReason.FULL, records, 0, 1.0, 0.01)  # type: ignore[arg-type]  # no more of them is asked
    return numbers


@pytest.mark.parametrize("count", [1, 2, 9, 31, 32, 33, 40, 100, 255, 257, 999, 1_000, 20_000])
def test_the_ages_of_a_sample_are_those_of_the_batch(count: int, now: int) -> None:
    """Every record is counted once, whatever is looked at, and the sample is no older than the batch."""
    ages = [6_000 - 6_000 * (number + 1) // count for number in range(count)]  # as they come: the oldest first
    *buckets, total = counted([[Stamped(now - age) for age in ages]]).histogram(FRESHNESS_SECONDS)
    assert sum(buckets) == count
    assert total / FRESHNESS_SECONDS.scale == pytest.approx(sum(ages) / 1_000, abs=count * 0.2)
    if count <= 32:
        wanted = [sum(age <= bound * 1_000 for age in ages) for bound in FRESHNESS_SECONDS.bounds]
        assert list(accumulate(buckets))[:-1] == wanted


def test_the_ages_of_many_batches_are_those_of_their_records(now: int) -> None:
    batches = [[random.choice((30, 700, 7_000)) for _ in range(random.randint(1, 200))] for _ in range(500)]
    numbers = counted([Stamped(now - age) for age in ages] for ages in batches)
    buckets = numbers.histogram(FRESHNESS_SECONDS)[:-1]
    total = sum(map(len, batches))
    assert sum(buckets) == total
    for age in (30, 700, 7_000):
        share = sum(ages.count(age) for ages in batches) / total
        near = [has for has, bound in zip(buckets, FRESHNESS_SECONDS.bounds, strict=False) if age <= bound * 1_000]
        assert sum(near[:2]) / total == pytest.approx(share, abs=0.05)


def test_records_without_a_time_or_of_the_future(now: int) -> None:
    *buckets, total = counted([[Stamped(0, kind=0)] * 5 + [Stamped(now + 60_000)] * 3]).histogram(FRESHNESS_SECONDS)
    assert (buckets[0], sum(buckets), total) == (3, 3, 0)
