"""What each process tells of itself: a slot of numbers each, in anonymous shared memory.

The supervisor maps it before the first fork; a worker writes its own slot only, the supervisor and the monitor read
all. A slot is a row of 64-bit integers, written one at a time, so a reader never sees half a number and nobody needs a
lock.

Counters are kept when a worker is replaced, what it is doing is not. The numbers of a route are counted once a batch,
never once a record; there is a fixed room for each route of the file and for each of its partitions, so nothing grows.
"""

from __future__ import annotations

import mmap
import time
from bisect import bisect_left
from enum import IntEnum, StrEnum
from itertools import accumulate
from typing import TYPE_CHECKING

from kbatchd.model import FlushReason, GapKind
from kbatchd.stats.histograms import FILL, FLUSH_SECONDS, FRESHNESS_SECONDS, Histogram
from kbatchd.stats.notes import NOTES_BYTES, Notes
from kbatchd.stats.place import PLACE_BYTES, Place

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from kbatchd.model import Record


class State(IntEnum):
    """What a worker is doing, as far as the supervisor needs to know."""

    STARTING = 0
    RUNNING = 1  # it has claimed every partition that is its own, halted ones included
    STANDBY = 2  # another daemon owns at least one of its partitions


class Field(IntEnum):
    """The numbers of a slot. Times are monotonic nanoseconds, which all processes of a machine share."""

    BEAT = 0
    STATE = 1
    POSTGRES_WAIT_SINCE = 2  # 0: not waiting
    CLAIMED = 3
    HALTED = 4
    BUFFER_BYTES = 5  # of the pool, and how much of it is lent to batches
    BUFFER_USED_BYTES = 6
    PID = 7  # 0: no process
    STARTED_AT = 8
    STARTS = 9  # kept


#: What stays when a process is replaced.
_KEPT = {Field.STARTS}

#: Partitions of a route that a worker can tell of, by number.
MAX_PARTITIONS = 4_096

#: Codes of dead letters that are counted by name, for each route and worker; the rest is `OTHER_CODE`.
MAX_CODES = 24
OTHER_CODE = "other"

#: A code's bytes; PostgreSQL's have 5, the encoder's own words fewer than this.
_CODE_BYTES = 16
_CODE_WORDS = _CODE_BYTES // 8

#: Of a batch's records so many are looked at for their age: all of a small batch, else every 64th, but at least 8 and
#: at most 32. They have left the processor's caches: each costs 0.3 to 0.7 us, and a batch of 100 rows 800 in all.
MAX_SAMPLED = 32
MIN_SAMPLED = 8
SAMPLED_STEP = 64


class Count(StrEnum):
    """What is counted for a route."""

    RECORDS = "records"
    ROWS = "rows"
    BYTES = "bytes"
    RETRIES = "retries"
    FENCES = "fences"


_COUNTS = {count: index for index, count in enumerate(Count)}
_BATCHES = {reason: len(_COUNTS) + index for index, reason in enumerate(FlushReason)}
_GAPS = {kind: len(_COUNTS) + len(_BATCHES) + index for index, kind in enumerate(GapKind)}
#: The partitions on hold, by route: 1 while it is.
_ON_HOLD = len(_COUNTS) + len(_BATCHES) + len(_GAPS)

_HISTOGRAMS = (FLUSH_SECONDS, FILL, FRESHNESS_SECONDS)
_HISTOGRAM_STARTS = dict(
    zip(_HISTOGRAMS, accumulate((histogram.size for histogram in _HISTOGRAMS), initial=_ON_HOLD + 1), strict=False)
)
# As numbers of their own: an enumeration's member or a histogram as a key costs more than the counting itself.
_RECORDS, _ROWS, _BYTES = (_COUNTS[count] for count in (Count.RECORDS, Count.ROWS, Count.BYTES))
_FLUSHES, _FILLS, _AGES = (_HISTOGRAM_STARTS[histogram] for histogram in _HISTOGRAMS)
_FLUSHES_SUM, _FILLS_SUM, _AGES_SUM = (
    _HISTOGRAM_STARTS[histogram] + len(histogram.bounds) + 1 for histogram in _HISTOGRAMS
)
_FLUSH_BOUNDS, _FILL_BOUNDS = FLUSH_SECONDS.bounds, FILL.bounds
_AGE_BOUNDS_MS = [bound * 1_000 for bound in FRESHNESS_SECONDS.bounds]
_CODES = _ON_HOLD + 1 + sum(histogram.size for histogram in _HISTOGRAMS)
_OTHER = _CODES + MAX_CODES * (_CODE_WORDS + 1)
_BITMAP_WORDS = MAX_PARTITIONS // 64
_OWNED = _OTHER + 1
_HALTED = _OWNED + _BITMAP_WORDS
_TRIPPED = _HALTED + _BITMAP_WORDS
_ROUTE_SIZE = _TRIPPED + _BITMAP_WORDS


class RouteSlot:
    """One route's numbers in one worker. The flusher writes them, in its own thread."""

    def __init__(self, numbers: memoryview) -> None:
        self._numbers = numbers
        self._bytes = numbers.cast("B")
        self._shown: tuple[frozenset[int], ...] | None = None

    def __getitem__(self, count: Count) -> int:
        return int(self._numbers[_COUNTS[count]])

    def add(self, count: Count, value: int = 1) -> None:
        """Count up."""
        self._numbers[_COUNTS[count]] += value

    def add_written(self, rows: int, dead_letters: int) -> None:
        """Count what is in the table, and what was refused."""
        self._numbers[_RECORDS] += rows + dead_letters
        self._numbers[_ROWS] += rows

    def add_gap(self, kind: GapKind) -> None:
        """Count a gap, halted at or recorded."""
        self._numbers[_GAPS[kind]] += 1

    def add_batch(
        self, reason: FlushReason | None, records: Sequence[Record], record_bytes: int, fill: float, seconds: float
    ) -> None:
        """Count a batch that is in the table: why it was closed, how full it was, how long its flush took.

        And how old its records are by now, from their own timestamps: of many a sample, each for its share.
        """
        numbers = self._numbers
        if reason is not None:
            numbers[_BATCHES[reason]] += 1
        if not records:
            return  # it has moved progress over markers
        numbers[_BYTES] += record_bytes
        numbers[_FLUSHES + bisect_left(_FLUSH_BOUNDS, seconds)] += 1
        numbers[_FLUSHES_SUM] += round(seconds * FLUSH_SECONDS.scale)
        numbers[_FILLS + bisect_left(_FILL_BOUNDS, fill)] += 1
        numbers[_FILLS_SUM] += round(fill * FILL.scale)
        self._add_ages(records)

    def _add_ages(self, records: Sequence[Record]) -> None:
        """Count how old the records are by now; each that is looked at stands for its step."""
        count = len(records)
        step = 1 if count <= MAX_SAMPLED else max(count // MAX_SAMPLED, min(SAMPLED_STEP, count // MIN_SAMPLED))
        # From the middle of a step: from its beginning the sample would be older than the batch.
        sampled = records[step // 2 :: step]
        share = count - step * (len(sampled) - 1)
        numbers, now_ms, total_ms = self._numbers, time.time_ns() // 1_000_000, 0
        for record in sampled:
            kind, at_ms = record.timestamp()
            if kind:
                age_ms = now_ms - at_ms if now_ms > at_ms else 0
                numbers[_AGES + bisect_left(_AGE_BOUNDS_MS, age_ms)] += share
                total_ms += age_ms * share
            share = step
        numbers[_AGES_SUM] += total_ms * (FRESHNESS_SECONDS.scale // 1_000)

    def add_dead_letters(self, codes: Mapping[str, int]) -> None:
        """Count dead letters by their codes."""
        for code, count in codes.items():
            self._numbers[self._code_at(code)] += count

    def show_partitions(
        self, owned: Collection[int], halted: Collection[int], tripped: Collection[int] = (), *, on_hold: bool
    ) -> None:
        """Tell which partitions are this worker's, which halted, which by the breaker; if the route is on hold."""
        shown = frozenset(owned), frozenset(halted), frozenset(tripped)
        self._numbers[_ON_HOLD] = on_hold
        if shown == self._shown:
            return
        self._shown = shown
        for start, numbers in zip((_OWNED, _HALTED, _TRIPPED), shown, strict=True):
            bits = bytearray(MAX_PARTITIONS // 8)
            for number in numbers:
                if number < MAX_PARTITIONS:
                    bits[number // 8] |= 1 << number % 8
            self._bytes[start * 8 : (start + _BITMAP_WORDS) * 8] = bits

    # The readers' side.

    @property
    def on_hold(self) -> bool:
        """Whether the worker has put the route on hold."""
        return bool(self._numbers[_ON_HOLD])

    @property
    def owned(self) -> set[int]:
        """The partitions that are this worker's."""
        return self._bits(_OWNED)

    @property
    def halted(self) -> set[int]:
        """Those of them that stand still."""
        return self._bits(_HALTED)

    @property
    def tripped(self) -> set[int]:
        """Those that the breaker has halted."""
        return self._bits(_TRIPPED)

    @property
    def batches(self) -> dict[FlushReason, int]:
        """Batches by flush reason."""
        return {reason: int(self._numbers[at]) for reason, at in _BATCHES.items()}

    @property
    def gaps(self) -> dict[GapKind, int]:
        """Gaps by kind."""
        return {kind: int(self._numbers[at]) for kind, at in _GAPS.items()}

    @property
    def dead_letters(self) -> dict[str, int]:
        """Dead letters by code."""
        counts = {code: int(self._numbers[at + _CODE_WORDS]) for code, at in self._codes()}
        other = int(self._numbers[_OTHER])
        return {**counts, OTHER_CODE: other + counts.get(OTHER_CODE, 0)} if other else counts

    def histogram(self, histogram: Histogram) -> list[int]:
        """Return the buckets' counts, and behind them the sum; see Histogram."""
        start = _HISTOGRAM_STARTS[histogram]
        return self._numbers[start : start + histogram.size].tolist()

    def _codes(self) -> Iterator[tuple[str, int]]:
        for index in range(MAX_CODES):
            at = _CODES + index * (_CODE_WORDS + 1)
            name = bytes(self._bytes[at * 8 : at * 8 + _CODE_BYTES]).rstrip(b"\0")
            if not name:
                return
            yield name.decode("ascii", "replace"), at

    def _code_at(self, code: str) -> int:
        name = code.encode("ascii", "replace")[:_CODE_BYTES]
        taken = 0
        for known, at in self._codes():
            if known.encode() == name:
                return at + _CODE_WORDS
            taken += 1
        if taken == MAX_CODES or not name:
            return _OTHER
        at = _CODES + taken * (_CODE_WORDS + 1)
        self._bytes[at * 8 : at * 8 + _CODE_BYTES] = name.ljust(_CODE_BYTES, b"\0")
        return at + _CODE_WORDS

    def _bits(self, start: int) -> set[int]:
        words = int.from_bytes(self._bytes[start * 8 : (start + _BITMAP_WORDS) * 8], "little")
        return {number for number in range(words.bit_length()) if words >> number & 1}


class Slot:
    """One process's numbers, those of its routes, its place, and its last warnings and errors."""

    def __init__(self, memory: memoryview, routes: Sequence[str]) -> None:
        notes_at = _slot_bytes(routes) - NOTES_BYTES
        place_at, letters_at = notes_at - 2 * PLACE_BYTES, notes_at - PLACE_BYTES
        numbers = memory[:place_at].cast("q")
        self._numbers = numbers
        self.place = Place(memory[place_at:letters_at])
        #: The flusher's own place.
        self.letters = Place(memory[letters_at:notes_at])
        self.notes = Notes(memory[notes_at:])
        self.routes = {
            name: RouteSlot(numbers[len(Field) + rank * _ROUTE_SIZE : len(Field) + (rank + 1) * _ROUTE_SIZE])
            for rank, name in enumerate(routes)
        }

    def __getitem__(self, field: Field) -> int:
        return int(self._numbers[field])

    def __setitem__(self, field: Field, value: int) -> None:
        self._numbers[field] = value

    def add(self, field: Field, value: int) -> None:
        """Count up; only the worker itself does."""
        self._numbers[field] += value

    def beat(self) -> None:
        """Say: the poll loop has come round once more."""
        self._numbers[Field.BEAT] = time.monotonic_ns()

    def total(self, count: Count) -> int:
        """Add up a count over the routes."""
        return sum(route[count] for route in self.routes.values())

    def silence_seconds(self) -> float:
        """Return the time since the last beat."""
        return (time.monotonic_ns() - self[Field.BEAT]) / 1e9

    def reset(self) -> None:
        """Start afresh, for a process that is about to be forked; what it has counted is kept, and what it owned."""
        for field in Field:
            if field not in _KEPT:
                self[field] = 0
        self.place.leave()
        self.letters.leave()
        self.beat()


class Slots:
    """The shared memory of all processes. Made before the first fork."""

    def __init__(self, counts: Mapping[str, int], routes: Sequence[str] = ()) -> None:
        """Make a slot for each process, so many of each kind, kind by kind; all have room for these routes."""
        total, size = sum(counts.values()), _slot_bytes(routes)
        memory = memoryview(mmap.mmap(-1, (total + 1) * size))
        slots = [Slot(memory[index * size : (index + 1) * size], routes) for index in range(total + 1)]
        #: The supervisor's own.
        self.supervisor = slots.pop()
        self._slots = slots
        self._shape = (dict(counts), list(routes))
        ends = list(accumulate(counts.values(), initial=0))
        self._kinds = {kind: slots[start:end] for kind, start, end in zip(counts, ends, ends[1:], strict=False)}

    def fits(self, other: Slots) -> bool:
        """Say whether the other has the same places for the same routes."""
        return self._shape == other._shape

    def of(self, kind: str) -> Sequence[Slot]:
        """Return the slots of one kind of processes."""
        return self._kinds.get(kind, ())

    def __getitem__(self, process: int) -> Slot:
        return self._slots[process]

    def __len__(self) -> int:
        return len(self._slots)


def _slot_bytes(routes: Sequence[str]) -> int:
    return (len(Field) + len(routes) * _ROUTE_SIZE) * 8 + 2 * PLACE_BYTES + NOTES_BYTES
