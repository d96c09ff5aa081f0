"""The few values that every floor speaks of. No behaviour, no I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from kbatchd.lineage import Lineage


class Partition(NamedTuple):
    """One partition of one topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class OffsetRange(NamedTuple):
    """Offsets of one partition that follow each other, both ends included."""

    partition: Partition
    first: int
    last: int


class Record(Protocol):
    """A Kafka message, as the consumer gives it: all of it behind methods."""

    def topic(self) -> str | None:
        """Return the topic it came from."""

    def partition(self) -> int | None:
        """Return the partition's number."""

    def offset(self) -> int | None:
        """Return the offset in the partition."""

    def leader_epoch(self) -> int | None:
        """Return the leader epoch that it was written under, where it is known."""

    def timestamp(self) -> tuple[int, int]:
        """Return the timestamp's kind and its milliseconds since 1970."""

    def key(self) -> bytes | None:
        """Return the key, if it has one."""

    def value(self) -> bytes | None:
        """Return the value; None for a tombstone."""

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        """Return the headers in their order, names not being unique."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record cannot become a row: our code or PostgreSQL's SQLSTATE, in one line."""

    code: str
    column: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.column is None else f"{self.code}: {self.column}: {self.message}"


class CopyFormat(StrEnum):
    """How a route's rows are written for COPY."""

    BINARY = "binary"  # the bytes of PostgreSQL's binary format: the encoder alone decides what a value is
    TEXT = "text"  # a line of COPY's text format: PostgreSQL's own input functions read the values


#: The column that a row has last where rows may delete: true for a tombstone.
DELETED: Final = "kbatchd_deleted"


class Encoded(NamedTuple):
    """What an encoder says of the records it was given, beside the rows it has appended."""

    #: (index in the records, why), ascending.
    refused: list[tuple[int, Refusal]]
    #: For each row appended which of the encoder's layouts it has; None: all have layout 0.
    layouts: list[int] | None = None


class FlushReason(StrEnum):
    """Why a batch was closed."""

    FULL = "full"  # batch.max_rows
    BYTES = "bytes"  # batch.max_bytes
    LINGER = "linger"  # batch.linger_seconds since its first record
    BUFFERS = "buffers"  # another route needed the buffer
    STOP = "stop"  # the daemon stops
    REVOKE = "revoke"  # the partition goes to another member of the group

    __hash__ = str.__hash__  # an enumeration's own is Python code, and this is a key once a batch


class GapKind(StrEnum):
    """What happened to the offsets between our progress and the topic."""

    RETENTION = "retention"  # the topic starts above next_offset
    TRUNCATION = "truncation"  # the topic ends below next_offset
    RECREATED = "recreated"  # the topic has another id


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets [first, last) of a partition that are not there any more, and where reading can go on.

    They are offsets of the topic that had `topic_id`: the one that the partition was claimed under. For a recreated
    topic that is the former one. Nobody can know how many records went with it: `last` equals `first`, our own
    next_offset, and `next_topic_id` is the id that the topic has now.
    """

    partition: Partition
    kind: GapKind
    first: int
    last: int
    resume_at: int
    topic_id: str
    next_topic_id: str | None = None

    def lines(self) -> list[Gap]:
        """Return what is to be written down, each of one topic: of a recreated one also what is gone of the new."""
        if self.next_topic_id is not None and self.resume_at:
            of_the_new = Gap(self.partition, GapKind.RETENTION, 0, self.resume_at, self.resume_at, self.next_topic_id)
            return [self, of_the_new]
        return [self]

    def __str__(self) -> str:
        match self.kind:
            case GapKind.RETENTION:
                what = f"offsets {self.first} to {self.last - 1} were deleted before they were read"
            case GapKind.TRUNCATION:
                what = (
                    f"its log was truncated at {self.first} (a replica that lagged was elected?), and the table "
                    f"holds records up to {self.last - 1} that are not in the topic any more"
                )
            case GapKind.RECREATED:
                now = f"the topic was recreated (id {self.next_topic_id})"
                what = f"{now}; the table holds the former topic up to {self.first}"
                if self.resume_at:
                    what += f", and offsets 0 to {self.resume_at - 1} of the new one were deleted before they were read"
        return f"{self.partition}: {what}; reading can go on at {self.resume_at}"


class Position(NamedTuple):
    """A claimed partition: the epoch to write under, the offset to read on from, and of which topic and log that is."""

    epoch: int
    next_offset: int
    topic_id: str = ""
    lineage: Lineage = Lineage()
