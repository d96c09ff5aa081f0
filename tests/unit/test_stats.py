"""The workers' numbers in shared memory: each worker its own slot, read by the supervisor."""

from __future__ import annotations

import os

from kbatchd.stats import Field, Slots, State


def test_a_slot_begins_with_zeros() -> None:
    slots = Slots(2)
    assert len(slots) == 2
    assert [slots[1][field] for field in Field] == [0] * len(Field)
    assert State(slots[0][Field.STATE]) is State.STARTING


def test_slots_do_not_overlap() -> None:
    slots = Slots(3)
    for worker in range(3):
        for field in Field:
            slots[worker][field] = 100 * worker + field
    for worker in range(3):
        assert [slots[worker][field] for field in Field] == [100 * worker + field for field in Field]


def test_numbers_of_64_bits() -> None:
    slot = Slots(1)[0]
    slot[Field.RECORDS] = 2**63 - 2
    slot.add(Field.RECORDS, 1)
    assert slot[Field.RECORDS] == 2**63 - 1


def test_reset_forgets_all_but_beats() -> None:
    slot = Slots(1)[0]
    for field in Field:
        slot[field] = 7
    slot.reset()
    assert [slot[field] for field in Field if field is not Field.BEAT] == [0] * (len(Field) - 1)
    assert slot.silence_seconds() < 5


def test_silence_is_the_time_since_the_last_beat() -> None:
    slot = Slots(1)[0]
    slot.beat()
    first = slot[Field.BEAT]
    slot[Field.BEAT] = first - 60_000_000_000
    assert 60 <= slot.silence_seconds() < 65
    slot.beat()
    assert slot[Field.BEAT] >= first


def test_a_child_writes_what_its_parent_reads() -> None:
    slots = Slots(2)
    pid = os.fork()
    if not pid:
        slots[1][Field.ROWS] = 4_711
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert slots[1][Field.ROWS] == 4_711
    assert slots[0][Field.ROWS] == 0
