"""What the oracle compares: a topic's records as they were read apart, and all that PostgreSQL has of a route."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections import Counter


class Fault(NamedTuple):
    """What is wrong, with how many records, and where or how it shows."""

    what: str
    records: int
    detail: str

    def __str__(self) -> str:
        return f"{self.records} {self.what}: {self.detail}" if self.records else f"{self.what}: {self.detail}"


class Kept(NamedTuple):
    """A record as it was read apart."""

    partition: int
    offset: int
    leader_epoch: int | None
    seq: int


class Edition(NamedTuple):
    """A topic at one moment."""

    topic_id: str
    #: The first offset of each partition that is still there, and the end, behind markers of transactions.
    begins: dict[int, int]
    stops: dict[int, int]
    records: list[Kept]

    def ends(self) -> dict[int, tuple[str, int]]:
        """Return what progress says, by partition, when all is in."""
        return {number: (self.topic_id, stop) for number, stop in self.stops.items()}


class Gap(NamedTuple):
    """A line of kbatchd.gaps: of a recreated topic with the former one's id, and empty."""

    topic_id: str | None
    kind: str
    partition: int
    first: int
    last: int

    def covers(self, topic_id: str, record: Kept) -> bool:
        """Tell whether it names this record of the topic that had this id."""
        is_of_log = (self.topic_id, self.partition) == (topic_id, record.partition)
        return is_of_log and self.first <= record.offset < self.last


class Row(NamedTuple):
    """A row of the table."""

    partition: int
    offset: int
    seq: int
    note: str


class Move(NamedTuple):
    """A line of the ledger: who moved a partition from where to where."""

    reason: str
    partition: int
    start: int
    stop: int


class Books(NamedTuple):
    """What PostgreSQL has of one route, in one snapshot."""

    rows: list[Row]
    #: By partition: of which topic, and how far.
    progress: dict[int, tuple[str, int]]
    #: How often a topic's id, a partition and an offset are a dead letter; lines of former versions have no id.
    dead: Counter[tuple[str | None, int, int]]
    gaps: list[Gap]
    ledger: list[Move]

    def began(self, partition: int) -> int:
        """Return where the ledger begins, or progress stands if it has no line."""
        starts = [move.start for move in self.ledger if move.partition == partition]
        return starts[0] if starts else self.progress.get(partition, ("", 0))[1]

    def letters(self, topic_id: str, record: Kept) -> int:
        """Return how many dead letters a record of this topic is."""
        at = (record.partition, record.offset)
        return self.dead[(topic_id, *at)] + self.dead[(None, *at)]
