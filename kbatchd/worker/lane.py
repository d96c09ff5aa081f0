"""A lane: one route in one worker, with its batches and its partitions; and what the poll loop is told of all lanes.

Values of the handover, which alone changes them, under its lock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.model import Partition
from kbatchd.sink.batch import RouteBatches

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from kbatchd import config
    from kbatchd.encode.rows import RowEncoder
    from kbatchd.lineage import Lineage
    from kbatchd.model import Position


@dataclass(slots=True)
class Lane:
    """One route in one worker: its batches, and what it owns.

    `generation` counts how often reading began again for the lane: a chunk polled before that is refused.
    """

    route: config.Route
    batches: RouteBatches
    encoder: RowEncoder | None = None
    generation: int = 0
    #: Of the partitions granted to the poll loop: the epoch that their records are filled under.
    epochs: dict[Partition, int] = field(default_factory=dict)
    #: Of the same partitions: where they stood when they were claimed, and of which topic.
    claimed: dict[Partition, Position] = field(default_factory=dict)
    #: Of the same partitions: how far they are in the table.
    committed: dict[Partition, int] = field(default_factory=dict)
    #: No flush before this time: the last one failed in a way that passes.
    not_before: float = 0.0
    #: It found no room for long: its topic is read for the other lanes alone, until it has room again.
    parked: bool = False
    #: An operator has paused the route: what is granted to it is not read.
    paused: bool = False

    @property
    def is_read(self) -> bool:
        """Whether anything is read for it."""
        return bool(self.epochs) and not self.parked and not self.paused

    def grant(self, positions: Mapping[Partition, Position]) -> None:
        """Take these partitions in, from where progress stands."""
        for partition, position in positions.items():
            self.epochs[partition] = position.epoch
            self.claimed[partition] = position
            self.committed[partition] = self.batches.reached[partition] = position.next_offset
            self.batches.lineages[partition] = position.lineage

    def give_up(self, partitions: Collection[Partition]) -> set[Partition]:
        """Take these out, of which no batch holds anything; return those that were in."""
        ours = self.epochs.keys() & set(partitions)
        for partition in ours:
            del self.epochs[partition], self.claimed[partition], self.committed[partition]
            self.batches.forget(partition)
        return ours

    def revoke(self) -> list[Partition]:
        """Take everything out, and drop what the batches hold; return the partitions."""
        partitions = list(self.epochs)
        self.batches.clear()
        self.epochs, self.claimed, self.committed = {}, {}, {}
        self.generation += 1
        self.parked = False
        return partitions


class Reading(NamedTuple):
    """What of a topic is read otherwise from now on. Its other partitions go on as they are."""

    #: Where to begin in each partition that moved: the lowest offset that one of the lanes wants.
    starts: dict[Partition, int]
    #: By route and partition number: what lies below this offset is not for that route.
    floors: dict[str, dict[int, int]]
    #: The leader epoch of the record before each start, where it is known.
    epochs: dict[Partition, int]
    #: By route and partition number, where there is a floor: of which log the records below it were read.
    lineages: dict[str, dict[int, Lineage]]
    #: Those that are read again, or not any more.
    moved: frozenset[Partition]


class Turn(NamedTuple):
    """What holds for one turn of the poll loop."""

    #: The encoder of each route that is read, with the generation that its chunks will belong to.
    encoders: Mapping[str, tuple[int, RowEncoder]]
    #: The topics of which partitions have moved since the last turn.
    readings: Mapping[str, Reading]


#: A floor above all offsets: the partition is none of the lane's.
NOT_OURS = 2**63


def readings_of(lanes: Iterable[Lane], moved: Collection[Partition]) -> dict[str, Reading]:
    """Return how to read those partitions from now on that moved, by topic."""
    lanes, topics = list(lanes), {partition.topic for partition in moved}
    return {
        topic: _reading_of(
            [lane for lane in lanes if lane.route.topic == topic and lane.is_read],
            frozenset(partition for partition in moved if partition.topic == topic),
        )
        for topic in topics
    }


def _reading_of(lanes: Collection[Lane], moved: frozenset[Partition]) -> Reading:
    """Return how to read those that moved of a topic that is read for these lanes."""
    starts: dict[Partition, int] = {}
    epochs: dict[Partition, int] = {}
    for lane in lanes:
        for partition in moved & lane.epochs.keys():
            reached, epoch = lane.batches.begin(partition)
            if reached < starts.get(partition, NOT_OURS):
                starts[partition] = reached
                epochs.pop(partition, None)
            if epoch is not None and reached == starts[partition]:
                # Of two that differ one is of another log than this one, and that is the lower one.
                epochs[partition] = min(epoch, epochs.get(partition, epoch))
    read = {partition for lane in lanes for partition in lane.epochs}
    floors = {lane.route.name: {p.number: NOT_OURS for p in read - lane.epochs.keys()} for lane in lanes}
    lineages: dict[str, dict[int, Lineage]] = {}
    for lane in lanes:
        behind = {p for p in moved & lane.epochs.keys() if lane.batches.reached[p] > starts[p]}
        floors[lane.route.name] |= {p.number: lane.batches.reached[p] for p in behind}
        if behind:
            lineages[lane.route.name] = {p.number: lane.batches.lineages[p] for p in behind}
    return Reading(starts, floors, epochs, lineages, moved)


def describe_lane(lane: Lane, now: float) -> dict[str, object]:
    """Say for the log what the lane is at."""
    filling, batches = lane.batches.open, lane.batches
    return {
        "route": lane.route.name,
        "next_offsets": {partition.number: batches.reached.get(partition) for partition in sorted(lane.epochs)},
        "epochs": {partition.number: epoch for partition, epoch in sorted(lane.epochs.items())},
        "filling_rows": len(filling.row_sizes) if filling else 0,
        "filling_seconds": round(now - filling.opened_at, 3) if filling else 0,
        "waiting_batches": len(batches.closed),
        "tried_again_in_seconds": round(max(0.0, lane.not_before - now), 3),
    }
