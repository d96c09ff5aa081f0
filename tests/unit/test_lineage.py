from __future__ import annotations

from kbatchd.lineage import KEPT_EPOCHS, Lineage
from kbatchd.model import Partition
from kbatchd.schema.arrived import Arrived, PartitionProgress
from kbatchd.sink.batch import RouteBatches
from kbatchd.sink.buffers import BufferPool
from tests.records import TOPIC, Sent, chunk

P0, P1 = Partition(TOPIC, 0), Partition(TOPIC, 1)
READ = Lineage(((0, 0), (2, 100), (5, 130)), 150)


def test_an_offset_was_read_under_the_last_epoch_that_began_before_it() -> None:
    assert [READ.at(offset) for offset in (0, 99, 100, 129, 130, 149)] == [0, 0, 2, 2, 5, 5]
    assert READ.at(150) is None, "it has not been read"
    assert Lineage(((2, 100),), 150).at(99) is None, "that was forgotten"
    assert READ.epoch == 5


def test_what_is_below_an_offset_stays() -> None:
    assert READ.below(130) == Lineage(((0, 0), (2, 100)), 130)
    assert READ.below(131) == Lineage(((0, 0), (2, 100), (5, 130)), 131)
    assert READ.below(1_000) == READ
    assert READ.below(0) == Lineage()
    assert Lineage(((2, 100),), 150).below(100) == Lineage()
    assert READ.unknown().below(140) == Lineage(READ.epochs, None)
    assert READ.unknown().epoch is None


def test_where_an_epoch_ends() -> None:
    assert [READ.end_of(epoch) for epoch in (0, 1, 2, 4, 5, 9)] == [100, 100, 130, 130, 150, 150]


def test_the_youngest_epochs_are_kept() -> None:
    many = Lineage().then([(epoch, 10 * epoch) for epoch in range(KEPT_EPOCHS + 5)], 1_000)
    assert len(many.epochs) == KEPT_EPOCHS
    assert many.epoch == KEPT_EPOCHS + 4


class Counted(Sent):
    """A record that counts who asks for its epoch."""

    asked = 0

    def leader_epoch(self) -> int | None:
        Counted.asked += 1
        return self.epoch


def records(kind: type[Sent], offsets: range, epoch: int | None, number: int = 0) -> list[Sent]:
    return [kind(offset, number=number, epoch=epoch) for offset in offsets]


def made() -> RouteBatches:
    batches = RouteBatches(BufferPool(2_048, 1_024), 1_000)
    batches.reached = {P0: 0, P1: 0}
    batches.lineages = {P0: Lineage(), P1: Lineage()}
    return batches


def test_a_batch_knows_the_epochs_of_its_records() -> None:
    batches = made()
    mixed = [*records(Sent, range(3), 0), *records(Sent, range(5), 7, number=1), *records(Sent, range(3, 6), 2)]
    batches.put(chunk(*mixed, rows=[b"x"] * len(mixed)), {P0: 1, P1: 1}, 0.0)
    assert batches.open is not None
    assert batches.open.lineages == {P0: Lineage(((0, 0), (2, 3)), 6), P1: Lineage(((7, 0),), 5)}
    assert batches.lineages == batches.open.lineages


def test_a_record_without_an_epoch_tells_nothing() -> None:
    batches = made()
    for epoch in (None, -1):
        batches.put(chunk(*records(Sent, range(3), epoch), rows=[b"x"] * 3), {P0: 1}, 0.0)
    assert batches.lineages[P0] == Lineage()


def test_one_record_a_chunk_is_asked_while_the_epoch_stays() -> None:
    batches = made()
    batches.put(chunk(*records(Counted, range(10), 4), rows=[b"x"] * 10), {P0: 1}, 0.0)
    Counted.asked = 0
    batches.put(chunk(*records(Counted, range(10, 400), 4), rows=[b""] * 390), {P0: 1}, 0.0)
    assert Counted.asked == 1
    assert batches.lineages[P0] == Lineage(((4, 0),), 400)


def test_reading_begins_behind_the_last_record_not_behind_markers() -> None:
    batches = made()
    batches.put(chunk(*records(Sent, range(3), 4), rows=[b"x"] * 3), {P0: 1}, 0.0)
    batches.put_ends({P0: 10}, {P0: 1}, 0.0)
    assert batches.reached[P0] == 10
    assert batches.begin(P0) == (3, 4)
    batches.forget_log(P0, committed=10)
    assert batches.begin(P0) == (10, None)


def test_an_epoch_begins_again_behind_what_was_passed_over() -> None:
    """Somebody has moved progress from 2 to 8: what lies between was not read, though its epoch is that of both."""
    batches = made()
    batches.reached[P0] = 8
    batches.lineages[P0] = Lineage(((3, 0),), 2).below(8).unknown()
    batches.put(chunk(*records(Sent, range(8, 10), 3)), {P0: 1}, 0.0)
    assert batches.lineages[P0] == Lineage(((3, 0), (3, 8)), 10)
    stand = PartitionProgress("id", 10, [first for _, first in batches.lineages[P0].epochs], [3, 3], 10)
    assert [stand.past(3, offset, offset) for offset in (5, 8)] == [Arrived.NOT_YET, Arrived.YES]
