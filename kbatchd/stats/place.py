"""The place: which records a process is at, in shared memory, so that who finds it dead can tell which they were.

The worker's poll loop writes it, once a poll: the offsets of all that it is about to encode, or the one record, where
it takes them one by one (worker/one_by_one.py). The flusher has a place of its own, for the record whose dead letter it
makes. The supervisor reads it when the process has ended (suspicions.py). Cleared first, and told last: a process that
dies in between was at no record.
"""

from __future__ import annotations

from array import array
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple
from zlib import crc32

if TYPE_CHECKING:
    from collections.abc import Sequence


class At(IntEnum):
    """What a process is doing with the records of its place."""

    NOTHING = 0
    CHUNK = 1  # it encodes what a poll has brought
    RECORD = 2  # it encodes this one record
    LETTER = 3  # it makes the dead letter of this one record


class Span(NamedTuple):
    """Offsets of one partition, both ends included."""

    number: int
    #: Of the topic's id: a topic that was recreated has other records at the same offsets.
    identity: int
    first: int
    last: int


def identity_of(topic_id: str) -> int:
    """Return what tells the topic from another of its name, as a number."""
    return crc32(topic_id.encode())


#: Of as many partitions as there are records in a poll.
MAX_SPANS = 500
_HEAD_WORDS = 3
PLACE_WORDS = _HEAD_WORDS + MAX_SPANS * len(Span._fields)
PLACE_BYTES = PLACE_WORDS * 8


class Found(NamedTuple):
    """What a place says."""

    at: At
    #: The route's place in the file.
    rank: int
    spans: list[Span]


class Place:
    """One process's place; see the module."""

    def __init__(self, memory: memoryview) -> None:
        self._words = memory.cast("q")

    def enter(self, at: At, rank: int, spans: Sequence[Span] = ()) -> None:
        """Say where the process is from now on; without spans, that nobody has looked."""
        words = self._words
        words[0] = At.NOTHING
        words[1], words[2] = rank, min(len(spans), MAX_SPANS)
        if spans:
            flat = array("q", [word for span in spans[:MAX_SPANS] for word in span])
            words[_HEAD_WORDS : _HEAD_WORDS + len(flat)] = flat
        words[0] = at

    def leave(self) -> None:
        """Say that it is at no record."""
        self._words[0] = At.NOTHING

    def read(self) -> Found | None:
        """Return where the process is, if it is at records."""
        at, rank, count = self._words[:_HEAD_WORDS].tolist()
        if at == At.NOTHING:
            return None
        size = len(Span._fields)
        words = self._words[_HEAD_WORDS : _HEAD_WORDS + count * size].tolist()
        return Found(At(at), rank, [Span(*words[start : start + size]) for start in range(0, count * size, size)])
