"""The sink: one batch, its dead letters, its progress and its ledger line in one PostgreSQL transaction.

The flusher calls it, in its own thread, on the connection that only the flusher uses. How the rows get in, around
those that PostgreSQL refuses, is insertion.py's; the books are kept here. Whatever is raised here, the transaction at
hand has left no trace.
"""

from __future__ import annotations

from base64 import b64encode
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import orjson
import psycopg

from kbatchd.encode.headers import read_headers
from kbatchd.encode.internal import describe, tell
from kbatchd.postgres.books import agree, agree_on_offsets
from kbatchd.postgres.copying import Writer
from kbatchd.schema import ledger, progress
from kbatchd.sink.chunk import Chunk
from kbatchd.sink.insertion import Insertion, Memory, Outcome
from kbatchd.sink.upsert import Staging

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kbatchd.model import Partition, Position, Record, Refusal
    from kbatchd.schema.progress import Owner
    from kbatchd.sink.batch import Batch
    from kbatchd.sink.batch_copy import Target

_T = TypeVar("_T")

_DEAD_LETTERS = """
    COPY kbatchd.dead_letters
        (pipeline, route, topic, topic_id, partition, "offset", "timestamp", timestamp_ms, key, value, headers, code,
         "column", message)
    FROM STDIN"""

#: What PostgreSQL says of bytes or columns that are for the table as it was, of a MERGE when it has a rule now, and of
#: rows when it has row-level security or no unique index now.
_OF_ANOTHER_TABLE = {"08P01", "22P03", "22P04", "42703", "42804", "42P10", "42501", "0A000"}


class Sink:
    """Writes batches on one connection.

    `on_sent` is called when a batch's rows are with PostgreSQL and its answer is yet to come; at the latest when the
    flush is over.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        on_sent: Callable[[], None],
        at_letter: Callable[[str, Record | None], None] = lambda _route, _record: None,
    ) -> None:
        """`at_letter` is told of each record whose dead letter is about to be made, and of None when it is made."""
        self._connection = connection
        self._on_sent = on_sent
        self._at_letter = at_letter
        self._staging = Staging(connection)
        #: What each route's next batch is to know of its last one.
        self._memories: dict[str, Memory] = {}
        #: What the last flush has written, also when it failed after a part.
        self.outcome = Outcome()

    def flush(
        self,
        batch: Batch,
        target: Target,
        positions: dict[Partition, Position],
        confirm: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Write the batch and move `positions`, which tells where each claimed partition stands.

        `confirm` is called before each commit; what it raises undoes the transaction.

        Outcomes:
        - returns: rows and dead letters are in, progress has moved;
        - psycopg.Error: `postgres.verdict` tells whether to try again, or that the outcome is unknown;
        - Fenced: another session owns a partition. TableChanged: the rows were made for other columns;
        - Unbalanced: something was lost on the way. NotTheRecords: no record is to blame, and the route must wait;
        - BreakerOpen: what came before the breaker is in; the route must halt.

        A poisoned batch takes several transactions. When one fails, those before it stay, and `positions` knows.
        """
        memory = self._memories.setdefault(target.owner.route, Memory())
        flush = _Flush(self._connection, batch, target, memory, positions, self._on_sent, confirm)
        flush.at_letter = self._at_letter
        try:
            if target.merge is not None:
                self._staging.prepare(target.merge)
            flush.run()
        except psycopg.Error as error:
            if not self._connection.broken and error.sqlstate in _OF_ANOTHER_TABLE:
                flush.check_columns()
            raise
        finally:
            self._on_sent()
            memory.gap = flush.gap if flush.gap < len(batch.row_sizes) else 0
            self.outcome = flush.outcome
        return flush.outcome

    def close_breaker(self, route: str) -> None:
        """Count dead letters in a row from 0 again: the route has halted for those that were counted."""
        self._memories.pop(route, None)


class _Flush(Insertion):
    """A batch as the daemon writes it: with its dead letters, its progress and its ledger line."""

    def __init__(
        self,
        connection: psycopg.Connection,
        batch: Batch,
        target: Target,
        memory: Memory,
        positions: dict[Partition, Position],
        on_sent: Callable[[], None],
        confirm: Callable[[], None],
    ) -> None:
        super().__init__(connection, batch, target, memory)
        self.positions = positions
        self._on_sent = on_sent
        self._confirm = confirm
        self.at_letter: Callable[[str, Record | None], None] = lambda _route, _record: None

    def sent(self) -> None:
        """Let the flusher do what would have delayed these rows."""
        self._on_sent()

    def account(self, last: int, dead: Mapping[int, Refusal]) -> None:
        """Write the dead letters, move progress, and add the line of this transaction."""
        batch, owner, next_offsets = self.batch, self.target.owner, self._next_offsets(last)
        if dead:
            self._write_dead_letters(dead)
        progress.advance(self.connection, owner, self.positions, next_offsets, batch.lineages)
        starts = {partition: self.positions[partition].next_offset for partition in next_offsets}
        agree_on_offsets(batch.records[self.done : last], starts, next_offsets, self._ends(last))
        ledger.write_ledger(
            self.connection,
            owner,
            str(batch.reason),
            {partition: (starts[partition], offset) for partition, offset in next_offsets.items()},
            ledger.Flushed(
                rows=self.books.rows - self.books.skipped,
                dead_letters=len(dead),
                skipped=self.books.skipped,
                size_bytes=batch.size if last == len(batch.records) else 0,
                fill_seconds=batch.closed_at - batch.opened_at,
            ),
        )
        self._confirm()

    def committed(self, last: int, dead: Mapping[int, Refusal]) -> None:
        """Remember where progress stands now."""
        for partition, offset in self._next_offsets(last).items():
            self.positions[partition] = self.positions[partition]._replace(next_offset=offset)
        super().committed(last, dead)

    def _next_offsets(self, last: int) -> dict[Partition, int]:
        """Return where progress stands after record `last`; only the whole batch knows of ends of partitions."""
        if last == len(self.batch.records):
            return self.batch.next_offsets
        return Chunk(self.batch.records[self.done : last], ()).next_offsets()

    def _ends(self, last: int) -> Mapping[Partition, int] | None:
        return self.batch.ends if last == len(self.batch.records) else {}

    def _write_dead_letters(self, dead: Mapping[int, Refusal]) -> None:
        records, owner = self.batch.records, self.target.owner
        topic_ids = {partition.number: position.topic_id for partition, position in self.positions.items()}
        with copying_letters(self.connection, len(dead)) as write:
            for index in sorted(dead):
                topic_id = topic_ids[records[index].partition() or 0]
                self.at_letter(owner.route, records[index])
                letter = dead_letter(owner, topic_id, records[index], dead[index])
                self.at_letter(owner.route, None)
                write(letter)


@contextmanager
def copying_letters(connection: psycopg.Connection, count: int) -> Iterator[Callable[[Sequence[object]], None]]:
    """Copy dead letters in the caller's transaction, made by `dead_letter`; Unbalanced unless so many are in."""
    cursor = connection.cursor()
    with cursor.copy(_DEAD_LETTERS, writer=Writer(cursor)) as copy:
        yield copy.write_row
    agree("dead letters written", count, cursor.rowcount)


def dead_letter(owner: Owner, topic_id: str, record: Record, why: Refusal) -> Sequence[object]:
    """Make the line of one dead letter, of what can be read of its record; what cannot is named in the message."""
    unread: list[str] = []
    topic, partition, offset = record.topic(), record.partition(), record.offset()
    timestamps = _readable("timestamp", lambda: _timestamps(record), unread)
    key = _readable("key", lambda: _bytes(record.key()), unread)
    value = _readable("value", lambda: _bytes(record.value()), unread)
    headers = _readable("headers", lambda: _headers(record), unread)
    return (
        owner.pipeline,
        owner.route,
        topic,
        topic_id,
        partition,
        offset,
        *(timestamps or (None, None)),
        key,
        value,
        headers,
        why.code,
        why.column and storable(why.column),
        storable("; ".join([why.message, *unread])),
    )


def _readable(part: str, read: Callable[[], _T], unread: list[str]) -> _T | None:
    """Read a part of a record; where that raises, there is none, and a note of why."""
    try:
        return read()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is: see encode/internal.py
        tell(error)
        unread.append(f"its {part} cannot be read: {describe(error)}")
        return None


def _headers(record: Record) -> str | None:
    pairs = [
        [storable(name), None if value is None else b64encode(value).decode()] for name, value in read_headers(record)
    ]
    return orjson.dumps(pairs).decode() if pairs else None


def _timestamps(record: Record) -> tuple[datetime | None, int | None]:
    """Return it as a time, where that is within Python's, and the milliseconds that Kafka has: any 64-bit number."""
    kind, milliseconds = record.timestamp()
    if not kind and milliseconds < 0:
        return None, None
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds >= 0 else None, milliseconds
    except (OverflowError, ValueError, OSError):
        return None, milliseconds


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def storable(value: str) -> str:
    """Make any string one that a text column takes."""
    return value.replace("\0", "\\0").encode(errors="backslashreplace").decode()
