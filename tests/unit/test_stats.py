"""The workers' numbers in shared memory: each worker its own slot, read by the supervisor."""

from __future__ import annotations

import os

from kbatchd.stats import Field, Slots, State


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
    assert slot.silence_seconds() < 5


def test_silence_is_the_time_since_the_last_beat() -> None:
    slot = Slots({"worker": 1})[0]
    slot.beat()
    first = slot[Field.BEAT]
    slot[Field.BEAT] = first - 60_000_000_000
    assert 60 <= slot.silence_seconds() < 65
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
