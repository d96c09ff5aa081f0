"""What came after dead letters, read in Kafka: whether a later record has deleted the row that one of them would make.

A row that is not there was never there, or somebody has deleted it since; the table does not say. So the records behind
each letter are looked through once, up to progress, for those of its key that delete. It counts only where the letter's
own record is still in its place: then compaction and retention have taken nothing that came after it. The consumer is
told where to read, joins no group, and commits nothing. Called by the replay, in the command's main thread.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kbatchd.encode.decoded import DecodedRecord
from kbatchd.encode.mapping import Source, resolve_feeds, row_columns
from kbatchd.kafka.reader import TopicReader
from kbatchd.model import Partition, Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kbatchd import config
    from kbatchd.config import Route
    from kbatchd.encode.mapping import Deletes
    from kbatchd.letters.store import Letter
    from kbatchd.model import Record
    from kbatchd.postgres.table import Table

#: Without a record for so long, Kafka is taken for away, and what came later is not known.
QUIET_SECONDS = 10.0

_POLL_RECORDS = 5_000
_POLL_SECONDS = 0.2

#: Of these a record without a value has none.
_OF_VALUE = {Source.FIELD, Source.VALUE, Source.REST}


def is_delete(record: Record, value: bytes | None, deletes: Deletes) -> bool:
    """Tell whether a record deletes: it has no value, or the field that says so."""
    if value is None:
        return True
    decoded = DecodedRecord(value, record, 0)
    try:
        decoded.decode(suspect=False)
    except (ValueError, RecursionError):
        return False  # whatever it is, the encoder will say so
    return deletes.by(decoded)


def may_delete(route: Route, table: Table, deletes: Deletes | None) -> bool:
    """Tell whether any record of a route can delete: a tombstone only where it has the table's key."""
    if deletes is None or deletes.field:
        return deletes is not None
    feeds = resolve_feeds(row_columns(table, route), route)
    return all(
        feed.source not in _OF_VALUE or feed.literal is not None for feed in feeds if feed.column.name in deletes.key
    )


class Later:
    """What came after the letters of one topic."""

    def __init__(
        self,
        kafka: config.Kafka,
        topic: tuple[str, str],
        deletes: Deletes,
        wanted: Iterable[tuple[int, int, bytes | None]],
        ends: Mapping[int, int],
    ) -> None:
        """Look; `wanted` are the letters' partitions, offsets and keys, `ends` where progress stands.

        All of the topic's name and id: a former one's offsets are others' records now.
        """
        name, self._topic_id = topic
        self._deletes = deletes
        self._wanted: dict[tuple[int, int], bytes | None] = {(number, offset): key for number, offset, key in wanted}
        self._keys = {(number, key) for (number, _), key in self._wanted.items()}
        #: Letters whose record is in its place still; the last record that deletes, of each key; partitions read.
        self._there: set[tuple[int, int]] = set()
        self._deleted: dict[tuple[int, bytes | None], int] = {}
        self._read: set[int] = set()
        starts: dict[Partition, int] = {}
        for number, offset in self._wanted:
            if number in ends:
                partition = Partition(name, number)
                starts[partition] = min(offset, starts.get(partition, offset))
        if starts:
            self._look(kafka, starts, ends)

    def why_not(self, letter: Letter) -> Refusal | None:
        """Say why a letter must not make a row: its row was deleted, or nobody knows."""
        partition, offset = letter.partition, letter.offset
        is_there = partition in self._read and (partition, offset) in self._there
        if letter.topic_id != self._topic_id or not is_there:
            return _UNKNOWN
        deleted_at = self._deleted.get((partition, self._wanted[partition, offset]), -1)
        if deleted_at <= offset:
            return None
        what = f"the record at offset {deleted_at} has deleted the row of this key since; --overwrite brings it back"
        return Refusal("row_deleted", None, what)

    def _look(self, kafka: config.Kafka, starts: Mapping[Partition, int], ends: Mapping[int, int]) -> None:
        reader = TopicReader(kafka, "kbatchd replay", {partition.topic for partition in starts})
        waiting = {partition.number for partition in starts}
        try:
            reader.assign(starts)
            quiet_at = time.monotonic() + QUIET_SECONDS
            while waiting and time.monotonic() < quiet_at:
                polled = reader.poll(_POLL_RECORDS, _POLL_SECONDS)
                for record in (record for records in polled.records.values() for record in records):
                    quiet_at = time.monotonic() + QUIET_SECONDS
                    number, offset = record.partition() or 0, record.offset() or 0
                    self._note(record, number, offset)
                    if offset + 1 >= ends[number]:
                        waiting.discard(number)
                        self._read.add(number)
                for partition in polled.ends:
                    waiting.discard(partition.number)
                    self._read.add(partition.number)
                waiting -= {partition.number for partition in polled.out_of_range}
        finally:
            reader.close()

    def _note(self, record: Record, number: int, offset: int) -> None:
        key = record.key()
        if (number, offset) in self._wanted and self._wanted[number, offset] == key:
            self._there.add((number, offset))
        if (number, key) in self._keys and is_delete(record, record.value(), self._deletes):
            self._deleted[number, key] = offset


_UNKNOWN = Refusal(
    "row_deleted",
    None,
    "nobody knows whether a later record has deleted the row of this key: the letter's own record is not in Kafka any "
    "more, or Kafka does not answer; --overwrite writes the row",
)
