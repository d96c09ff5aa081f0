"""A record without Kafka: what the parts behind the source see of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kbatchd.model import Refusal
from kbatchd.sink.chunk import Chunk

TOPIC = "requests"

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Sent:
    """A Kafka message as model.Record wants it."""

    at: int
    body: bytes | None = b"{}"
    number: int = 0
    name: bytes | None = None
    sent_at_ms: int = 1_700_000_000_123
    attached: Headers | None = None
    subject: str = TOPIC
    epoch: int | None = None

    def topic(self) -> str:
        return self.subject

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return self.at

    def leader_epoch(self) -> int | None:
        return self.epoch

    def timestamp(self) -> tuple[int, int]:
        return 1, self.sent_at_ms

    def key(self) -> bytes | None:
        return self.name

    def value(self) -> bytes | None:
        return self.body

    def headers(self) -> Headers | None:
        return self.attached


REFUSAL = Refusal("wrong_type", "id", "expected an integer, got true")


def chunk(*records: Sent, rows: Sequence[bytes] | None = None, refused: Sequence[int] = ()) -> Chunk:
    """Make the chunk of some records: a row for each good one, its value unless given."""
    made = [record.body or b"" for index, record in enumerate(records) if index not in refused]
    return Chunk(
        records,
        made if rows is None else rows,
        [(index, REFUSAL) for index in refused],
        sum(len(record.body or b"") for record in records),
    )
