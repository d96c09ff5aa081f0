"""The intake: the poll loop's side of a lane, from the records of a poll to the batch they go into.

It leaves out what its route has already (a topic that feeds several routes is read from the lowest of them), encodes
the rest, and keeps what found no room, with the ends of partitions behind it. The worker's poll loop calls everything
here, in its main thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kbatchd.model import Partition
from kbatchd.sink.chunk import Chunk
from kbatchd.worker.handover import Handover
from kbatchd.worker.lane import NOT_OURS, Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.encode.rows import RowEncoder
    from kbatchd.lineage import Lineage
    from kbatchd.model import Record
    from kbatchd.worker.one_by_one import Encoding


class Intake:
    """What one route takes of its topic; see the module."""

    def __init__(self, handover: Handover, route: str, encoding: Encoding) -> None:
        self.route = route
        self._handover = handover
        self._encoding = encoding
        #: By partition number: what lies below this offset is not for this route.
        self._floors: dict[int, int] = {}
        #: Of which log what lies below them was read, and the partitions whose log is another one now.
        self._topic = handover.lanes[route].route.topic
        self._lineages: dict[int, Lineage] = {}
        self.parted: set[Partition] = set()
        #: What found no room: the chunk, its generation, since when.
        self._waiting: tuple[int, Chunk, float] | None = None
        #: Ends of partitions that progress could not be moved to yet; librdkafka tells of each only once.
        self._ends: dict[Partition, int] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether something is left that found no room: no more must be polled."""
        return self._waiting is not None

    @property
    def waits_seconds(self) -> float:
        """How long it has been waiting."""
        return 0.0 if self._waiting is None else time.monotonic() - self._waiting[2]

    def begin(self, reading: Reading) -> None:
        """Forget what waits of partitions that moved: they are read again, or no more.

        What lies below the reading's floors is not for this route; its lineages tell of which log this route has it.
        """
        for partition in reading.moved:
            self._floors.pop(partition.number, None)
            self._lineages.pop(partition.number, None)
            self._ends.pop(partition, None)
        self._floors.update(reading.floors.get(self.route, {}))
        self._lineages.update(reading.lineages.get(self.route, {}))
        self.parted -= reading.moved
        if self._waiting is not None:
            generation, chunk, since = self._waiting
            rest = chunk.without({partition.number for partition in reading.moved})
            self._waiting = (generation, rest, since) if rest.records else None

    def take(self, records: Sequence[Record], generation: int, encoder: RowEncoder) -> None:
        """Turn records into rows and put them into the lane's batch.

        `generation` is the one this turn began with: what was revoked while we polled is dropped by `put`.
        """
        assert self._waiting is None, "records that came later must not overtake those that wait"
        if self._floors:
            records = self._above_floors(records)
            if not records:
                return
        values = [record.value() for record in records]
        rows: list[bytes] = []
        encoded = self._encoding.encode(encoder, records, values, rows)
        record_bytes = sum(map(len, filter(None, values)))
        remains = self._encoding.remains(records)
        self._put(generation, Chunk(remains, rows, encoded.refused, record_bytes, encoded.layouts))
        self._encoding.see_off(records)

    def retry(self) -> None:
        """Try again what found no room."""
        if self._waiting is not None:
            generation, chunk, _ = self._waiting
            self._put(generation, chunk)

    def note_end(self, partition: Partition, offset: int) -> None:
        """Remember that the partition ends here for now, if it is this route's."""
        if self._floors.get(partition.number) != NOT_OURS:
            self._ends[partition] = offset

    def put_ends(self, generation: int) -> None:
        """Let progress reach the ends that were noted; not past records that are still waiting for room."""
        if self._ends and self._waiting is None and self._handover.put_ends(self.route, generation, self._ends):
            self._ends.clear()

    def _put(self, generation: int, chunk: Chunk) -> None:
        rest = self._handover.put(self.route, generation, chunk)
        since = time.monotonic() if self._waiting is None else self._waiting[2]
        self._waiting = None if rest is None else (generation, rest, since)

    def _above_floors(self, records: Sequence[Record]) -> list[Record]:
        """Leave out what this route has already, or what is none of its partitions; the others come in order."""
        floors = self._floors
        self._compare([record for record in records if (record.offset() or 0) < floors.get(record.partition() or 0, 0)])
        ours = [record for record in records if (record.offset() or 0) >= floors.get(record.partition() or 0, 0)]
        for number in {record.partition() or 0 for record in ours}:
            floors.pop(number, None)
        if self.parted:
            ours = [record for record in ours if Partition(self._topic, record.partition() or 0) not in self.parted]
        return ours

    def _compare(self, below: list[Record]) -> None:
        """Find out whether what this route has is still what stands there: another epoch is another log.

        The last records below the floors tell; librdkafka has asked only about where the lowest route begins.
        """
        for number, record in {record.partition() or 0: record for record in below}.items():
            lineage = self._lineages.get(number)
            before = lineage.at(record.offset() or 0) if lineage else None
            if before is not None and record.leader_epoch() not in {None, before}:
                self.parted.add(Partition(self._topic, number))
