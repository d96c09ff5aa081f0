"""What each worker tells of itself: one slot of numbers a worker, in anonymous shared memory.

The supervisor maps it before the first fork; a worker writes its own slot only, the supervisor reads all. A slot is a
row of 64-bit integers, written one at a time, so a reader never sees half a number and nobody needs a lock.
"""

from __future__ import annotations

import mmap
import time
from enum import IntEnum


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
    RECORDS = 3
    ROWS = 4
    DEAD_LETTERS = 5
    BATCHES = 6
    CLAIMED = 7
    HALTED = 8


class Slot:
    """One worker's numbers."""

    def __init__(self, numbers: memoryview) -> None:
        self._numbers = numbers

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

    def silence_seconds(self) -> float:
        """Return the time since the last beat."""
        return (time.monotonic_ns() - self[Field.BEAT]) / 1e9

    def reset(self) -> None:
        """Start anew, for a worker that is about to be forked."""
        for field in Field:
            self[field] = 0
        self.beat()


class Slots:
    """The shared memory of all workers. Made before the first fork."""

    def __init__(self, workers: int) -> None:
        size = len(Field)
        numbers = memoryview(mmap.mmap(-1, max(1, workers) * size * 8)).cast("q")
        self._slots = [Slot(numbers[index * size : (index + 1) * size]) for index in range(workers)]

    def __getitem__(self, worker: int) -> Slot:
        return self._slots[worker]

    def __len__(self) -> int:
        return len(self._slots)
