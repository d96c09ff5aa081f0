"""The sink: one batch, its dead letters, its progress and its ledger line in one PostgreSQL transaction.

The only code that copies. The flusher calls it, in its own thread, on the connection that only the flusher uses. A
batch that PostgreSQL refuses is copied around the refused rows: PostgreSQL names most of them in the error's context,
and halving finds the others. Whatever is raised here, the transaction at hand has left no trace.
"""

from __future__ import annotations

import re
from base64 import b64encode
from bisect import bisect_left
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

import orjson
import psycopg
from psycopg import sql

from kbatchd import catalogue, progress
from kbatchd.batch import Batch, Chunk
from kbatchd.errors import BreakerOpen, TableChanged
from kbatchd.model import Partition, Record, Refusal
from kbatchd.postgres import Verdict, verdict
from kbatchd.progress import Owner, Position

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

#: The head of a binary COPY: signature, flags, length of the header extension.
#: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)

#: Refused rows in one transaction before its prefix is committed. Each leaves one or two subtransactions, and more than
#: 64 of them overflow PostgreSQL's cache, which slows the whole server.
MAX_REFUSALS = 32

#: Rows copied after a refused one, doubled as long as all goes well. A small window loses little to the next refusal.
FIRST_WINDOW = 100

_DEAD_LETTERS = """
    COPY kbatchd.dead_letters
        (pipeline, route, topic, partition, "offset", "timestamp", key, value, headers, code, "column", message)
    FROM STDIN"""


@dataclass(frozen=True, slots=True)
class Target:
    """Where a route's rows go, and the columns they were encoded for, in that order."""

    owner: Owner
    table: catalogue.Table
    columns: tuple[str, ...]
    max_dead_letters: int

    @property
    def copy(self) -> sql.Composed:
        """The COPY statement for this table and these columns."""
        return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            sql.Identifier(self.table.schema, self.table.name),
            sql.SQL(", ").join(map(sql.Identifier, self.columns)),
        )


@dataclass(slots=True)
class Outcome:
    """What a flush has written so far."""

    rows: int = 0
    dead_letters: int = 0
    #: Why the first dead letter is one: an example for the log, no part of what was written.
    reason: Refusal | None = field(default=None, compare=False)


class Sink:
    """Writes batches on one connection."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        #: Dead letters in a row by route, across batches, for the breaker.
        self._in_a_row: dict[str, int] = {}
        #: What the last flush has written, also when it failed after a part.
        self.outcome = Outcome()

    def flush(self, batch: Batch, target: Target, positions: dict[Partition, Position]) -> Outcome:
        """Write the batch and move `positions`, which tells where each claimed partition stands.

        Outcomes:
        - returns: rows and dead letters are in, progress has moved;
        - psycopg.Error: `postgres.verdict` tells whether to try again, or that the outcome is unknown;
        - Fenced: another session owns a partition. TableChanged: the rows were made for other columns;
        - BreakerOpen: what came before the breaker is in; the route must halt.

        A poisoned batch takes several transactions. When one fails, those before it stay, and `positions` knows.
        """
        route = target.owner.route
        flush = _Flush(self._connection, batch, target, positions, self._in_a_row.get(route, 0))
        try:
            flush.run()
        finally:
            self._in_a_row[route] = flush.in_a_row
            self.outcome = flush.outcome
        return flush.outcome


class _Flush:
    """One batch on its way in: its records before `done` are committed."""

    def __init__(
        self,
        connection: psycopg.Connection,
        batch: Batch,
        target: Target,
        positions: dict[Partition, Position],
        in_a_row: int,
    ) -> None:
        self.connection = connection
        self.batch = batch
        self.target = target
        self.positions = positions
        self.in_a_row = in_a_row
        self.outcome = Outcome()
        self.done = 0
        self.window = 0

    @cached_property
    def row_records(self) -> Sequence[int]:
        """The record of each row; 1 ms for a batch with a refusal, so only where a part of it is written."""
        return self.batch.row_records()

    @cached_property
    def row_starts(self) -> Sequence[int]:
        """Where each row begins in the buffer."""
        return self.batch.row_starts()

    def run(self) -> None:
        """Write everything in one transaction; where rows are poison, in several around them."""
        last = self._breaker_limit()
        if last == 0 and self.batch.records:
            raise self._breaker_open()
        poison = None
        try:
            self._write(last, self._copy_all)
        except psycopg.Error as error:
            if not self._is_poison(error):
                raise
            poison = _without_frames(error)
        if poison is not None:
            self._write_around_poison(last, poison)
        if last < len(self.batch.records):
            raise self._breaker_open()

    def _write_around_poison(self, last: int, error: psycopg.Error) -> None:
        named = self._named_line(error)
        self.window = max(1, len(self.row_records) // 2 if named is None else named)
        while self.done < last:
            self._write(last, self._copy_around)

    def _write(self, last: int, copy: Callable[[int], tuple[int, dict[int, Refusal]]]) -> None:
        """Commit the records from `done` to `last`, or as far as `copy` came."""
        batch, owner = self.batch, self.target.owner
        with self.connection.transaction():
            last, refused = copy(last)
            dead = {index: why for index, why in batch.refused if self.done <= index < last} | refused
            rows = last - self.done - len(dead)
            if rows or dead:  # the table as it is now may take what its former columns refused
                self._check_columns()
            if dead:
                self._write_dead_letters(dead)
            next_offsets = self._next_offsets(last)
            progress.advance(self.connection, owner, self.positions, next_offsets)
            progress.write_ledger(
                self.connection,
                owner,
                str(batch.reason),
                {p: (self.positions[p].next_offset, offset) for p, offset in next_offsets.items()},
                rows=rows,
                dead_letters=len(dead),
                size_bytes=batch.size if last == len(batch.records) else 0,
                fill_seconds=batch.closed_at - batch.opened_at,
            )
        self._committed(last, next_offsets, dead)

    def _committed(self, last: int, next_offsets: Mapping[Partition, int], dead: Mapping[int, Refusal]) -> None:
        for partition, offset in next_offsets.items():
            self.positions[partition] = self.positions[partition]._replace(next_offset=offset)
        good = next((index for index in range(last - 1, self.done - 1, -1) if index not in dead), None)
        self.in_a_row = self.in_a_row + last - self.done if good is None else last - 1 - good
        self.outcome.rows += last - self.done - len(dead)
        self.outcome.dead_letters += len(dead)
        self.outcome.reason = self.outcome.reason or next(iter(dead.values()), None)
        self.done = last

    def _next_offsets(self, last: int) -> dict[Partition, int]:
        """Return where progress stands after record `last`; only the whole batch knows of ends of partitions."""
        if last == len(self.batch.records):
            return self.batch.next_offsets
        return Chunk(self.batch.records[self.done : last], ()).next_offsets()

    def _copy_all(self, last: int) -> tuple[int, dict[int, Refusal]]:
        """Copy all rows before record `last` at once: the way of nearly every batch."""
        whole = last == len(self.batch.records)
        size = self.batch.size if whole else self.row_starts[bisect_left(self.row_records, last)]
        if size:
            assert self.batch.buffer is not None
            self._copy(memoryview(self.batch.buffer)[:size])
        return last, {}

    def _copy_around(self, last: int) -> tuple[int, dict[int, Refusal]]:
        """Copy rows in windows, leaving out those PostgreSQL refuses; stop where the next refusal is one too many.

        Each row is sent about three times at most: going on with the whole rest after each refusal measured 102
        times at 1 % refused.
        """
        # Deferred constraints speak at COMMIT, too late to tell the row: let each COPY hear them.
        self.connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        refused: dict[int, Refusal] = {}
        row, end = bisect_left(self.row_records, self.done), bisect_left(self.row_records, last)
        while row < end:
            until = min(row + self.window, end)
            error = self._try_copy(row, until)
            if error is None:
                row, self.window = until, 2 * self.window
                continue
            bad = row + (self._named_line(error) or 0)
            if not self._is_to_blame(error, row, bad, until):
                self.window = (until - row) // 2
                continue
            if len(refused) == self._refusals_allowed():
                if self.row_records[bad] == self.done:
                    raise self._breaker_open()
                return self.row_records[bad], refused
            refused[self.row_records[bad]] = _refusal(error)
            row, self.window = bad + 1, FIRST_WINDOW
        return last, refused

    def _is_to_blame(self, error: psycopg.Error, row: int, bad: int, until: int) -> bool:
        """Say whether row `bad` is the poison of a refused window; if so, the rows before it are in."""
        if until - row == 1:
            return True
        if self._named_line(error) is None or bad >= until:
            return False
        return bad == row or self._try_copy(row, bad) is None

    def _try_copy(self, row: int, until: int) -> psycopg.Error | None:
        """Copy rows [row, until) under a savepoint; return what PostgreSQL has against one of them."""
        assert self.batch.buffer is not None
        try:
            with self.connection.transaction():
                self._copy(memoryview(self.batch.buffer)[self.row_starts[row] : self.row_starts[until]])
        except psycopg.Error as error:
            if not self._is_poison(error):
                raise
            return _without_frames(error)
        return None

    def _is_poison(self, error: psycopg.Error) -> bool:
        return verdict(error, broken=self.connection.broken) is Verdict.POISON

    def _copy(self, rows: memoryview) -> None:
        with self.connection.cursor().copy(self.target.copy) as copy:
            copy.write(COPY_HEADER)
            copy.write(rows)

    def _named_line(self, error: psycopg.Error) -> int | None:
        """Return the row, from 0, that the error's context names: `COPY requests, line 7, column id`.

        The words are in the server's language, the form is not. A trigger's own lines stand before it.
        """
        head = re.escape(f"COPY {self.target.table.name}")
        match = re.search(rf"^{head}\D+(\d+)", error.diag.context or "", re.MULTILINE)
        return int(match[1]) - 1 if match and int(match[1]) > 0 else None

    def _check_columns(self) -> None:
        """Compare the table's columns with those encoded for.

        COPY holds the table's lock now, so they cannot change before COMMIT. Without this, binary COPY would take a
        float8's bytes for an int8 without a word.
        """
        table = self.target.table
        if catalogue.fingerprint(self.connection, table.quoted) != table.fingerprint:
            raise TableChanged(f"route {self.target.owner.route}: table {table.quoted} was altered")

    def _write_dead_letters(self, dead: Mapping[int, Refusal]) -> None:
        records = self.batch.records
        with self.connection.cursor().copy(_DEAD_LETTERS) as copy:
            for index in sorted(dead):
                copy.write_row(_dead_letter(self.target.owner, records[index], dead[index]))

    def _refusals_allowed(self) -> int:
        limit = self.target.max_dead_letters
        return min(MAX_REFUSALS, max(0, limit - self.in_a_row)) if limit else MAX_REFUSALS

    def _breaker_limit(self) -> int:
        """Return how many records may be written before the encoder's refusals in a row are too many."""
        limit, run, previous = self.target.max_dead_letters, self.in_a_row, -1
        for index, _ in self.batch.refused if limit else ():
            run = run + 1 if index == previous + 1 else 1
            previous = index
            if run > limit:
                return index
        return len(self.batch.records)

    def _breaker_open(self) -> BreakerOpen:
        return BreakerOpen(
            f"route {self.target.owner.route}: more than {self.target.max_dead_letters} dead letters in a row; "
            "look into kbatchd.dead_letters, mend the cause, then restart"
        )


def _without_frames(error: psycopg.Error) -> psycopg.Error:
    """Make an error fit to be kept in a variable.

    Its traceback's frames hold that variable, and the batch: a cycle, and a worker's collector is off.
    """
    return error.with_traceback(None)


def _refusal(error: psycopg.Error) -> Refusal:
    diag = error.diag
    text = diag.message_primary or str(error)
    detail = f": {diag.message_detail}" if diag.message_detail else ""
    column = diag.column_name or _context_column(diag.context or "")
    return Refusal(error.sqlstate or "", column, text + detail)


def _context_column(context: str) -> str | None:
    """Read the column from `COPY t, line 7, column id`; only English servers name it so."""
    match = re.search(r"^COPY .*, line \d+, column (\w+)", context, re.MULTILINE)
    return match[1] if match else None


def _dead_letter(owner: Owner, record: Record, why: Refusal) -> Sequence[object]:
    return (
        owner.pipeline,
        owner.route,
        record.topic(),
        record.partition(),
        record.offset(),
        _timestamp(record),
        _bytes(record.key()),
        _bytes(record.value()),
        _headers(record),
        why.code,
        why.column and _text(why.column),
        _text(why.message),
    )


def _headers(record: Record) -> str | None:
    headers = record.headers()
    if not headers:
        return None
    pairs = [[_text(name), None if value is None else b64encode(value).decode()] for name, value in headers]
    return orjson.dumps(pairs).decode()


def _timestamp(record: Record) -> datetime | None:
    _, milliseconds = record.timestamp()
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds >= 0 else None
    except (OverflowError, ValueError, OSError):  # a producer may send any 64-bit number
        return None


def _bytes(value: bytes | str | None) -> bytes | None:
    return value.encode() if isinstance(value, str) else value


def _text(value: str) -> str:
    """Make any string one that a text column takes."""
    return value.replace("\0", "\\0").encode(errors="backslashreplace").decode()
