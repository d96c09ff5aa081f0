"""A batch's rows in PostgreSQL's hands: all of them or some, by COPY, and what it says against one of them.

The only code that copies rows. They go straight into the table, or into a staging table that is then merged
(upsert.py). All of them at once are a stream; some at a time, to get around a refused one, are tries, each behind a
savepoint. PostgreSQL names most refused rows in its error's context, by their line in the COPY.

Called by insertion.py, which knows which rows to try together and whom to blame, within its transaction: in a worker's
flusher thread, or in a command's main thread.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, NamedTuple

import psycopg
from psycopg import sql

from kbatchd.model import CopyFormat, Refusal
from kbatchd.postgres import catalogue
from kbatchd.postgres.books import Books, agree
from kbatchd.postgres.connection import Verdict, verdict
from kbatchd.postgres.copying import copy_in
from kbatchd.postgres.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from kbatchd.schema.progress import Owner
    from kbatchd.sink.batch import Batch
    from kbatchd.sink.upsert import Merge

#: The head of a binary COPY: signature, flags, length of the header extension.
#: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)

#: Each piece of a COPY's bytes takes a call of libpq.
MAX_PIECES = 64

#: Fewer rows running that the table's own code refuses, all for the same, may be the records' fault.
MAX_ALIKE = 100

#: What input functions of extensions say of a value, beside the codes that are for that: ltree and hstore a syntax
#: error, PostGIS an internal one, others that of an external routine.
_OF_INPUT_FUNCTIONS = ("42601", "XX000", "38", "39")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a route's rows go, and how they were encoded."""

    owner: Owner
    table: Table
    #: The columns of each layout, in the rows' order; the encoder may add more layouts at any time.
    layouts: Sequence[tuple[str, ...]]
    max_dead_letters: int
    copy_format: CopyFormat = CopyFormat.BINARY
    #: How the rows get on from their staging table, where the route upserts.
    merge: Merge | None = None
    #: The same limit for dead letters that are kbatchd's own fault: it must not empty a topic into the bin. 0: none.
    max_internal: int = 100
    #: Where a row has no partition to go to, the route waits for it; else the row is refused.
    waits_for_partition: bool = False
    #: So many rows running that are refused alike are no fault of theirs (`Verdict.DOUBT`); 0: always theirs.
    max_alike: int = MAX_ALIKE

    @property
    def copied(self) -> tuple[str, str]:
        """The schema and the name of the table that COPY fills."""
        if self.merge is not None:
            return "pg_temp", self.merge.staging
        return self.table.schema, self.table.name

    def copy(self, layout: int) -> sql.Composed:
        """Return the COPY statement for the rows of one layout."""
        return sql.SQL("COPY {} ({}) FROM STDIN (FORMAT {})").format(
            sql.Identifier(*self.copied),
            sql.SQL(", ").join(map(sql.Identifier, self.layouts[layout])),
            sql.SQL("BINARY" if self.copy_format is CopyFormat.BINARY else "TEXT"),
        )


class Blame(NamedTuple):
    """What PostgreSQL has against rows that were tried together."""

    #: The one that it names.
    row: int | None
    why: Refusal
    verdict: Verdict
    #: The rows before it are in. Else one of them may be what it was refused for.
    is_sure: bool = True
    #: The relation that has no partition for the row, where that is what it has.
    relation: tuple[str, str] | None = None


class BatchCopy:
    """The COPY of one batch's rows into their target."""

    def __init__(self, connection: psycopg.Connection, batch: Batch, target: Target) -> None:
        self._connection = connection
        self._batch = batch
        self._target = target
        #: The COPY of each layout; composing it takes as long as copying 40 rows.
        self._statements: dict[int, bytes] = {}
        #: The rows of the last COPY, in its order: PostgreSQL's line n is the n-th of them.
        self._copied: Sequence[range] = ()
        #: The first of the rows that other layouts' COPYs after that one are to bring.
        self._to_come = 0
        #: What is to be said before the next try's COPY, in one turn with it.
        self._before = b""

    @cached_property
    def row_records(self) -> Sequence[int]:
        """The record of each row; 1 ms for a batch with a refusal, so only where a part of it is written."""
        return self._batch.row_records()

    @cached_property
    def _row_starts(self) -> Sequence[int]:
        """Where each row begins in the buffer."""
        return self._batch.row_starts()

    def rows_before(self, record: int) -> int:
        """Return how many rows come from the records before this one."""
        if record == len(self._batch.records):
            return len(self._batch.row_sizes)
        return bisect_left(self.row_records, record)

    def copy_all(self, rows: int, sent: Callable[[], None]) -> Books:
        """Copy the first so many rows at once, and merge them; return what has gone in.

        `sent` is called while PostgreSQL works on them.
        """
        books = self._copy_in([range(rows)], sent)
        merge = self._target.merge
        if merge is None:
            return books
        merge.lock(self._connection)
        return merge.run(self._connection, books.rows, is_first_try=True)

    def _copy_in(self, runs: Sequence[range], sent: Callable[[], None]) -> Books:
        """Copy these rows, those of each layout together; Unbalanced unless all are where they go."""
        books = Books()
        groups = list(self._by_layout(runs))
        for number, (layout, together) in enumerate(groups, 1):
            self._copied = together
            self._to_come = min((later[0].start for _, later in groups[number:]), default=len(self._batch.row_sizes))
            statements, pieces = self._before + self._statement(layout), [self._head, *self._pieces(together)]
            expected, found = sum(map(len, together)), copy_in(self._connection, statements, pieces, sent)
            self._before = b""
            skipped = expected - found
            staged = self._target.merge is not None
            if skipped and (staged or skipped < 0 or not self._may_skip()):
                agree(f"rows that COPY has put into {self._target.table}", expected, found)
            books += Books(expected, skipped)
        return books

    def _may_skip(self) -> bool:
        return catalogue.may_skip_rows(self._connection, self._target.table.oid, catalogue.INSERTS)

    def begin_tries(self) -> None:
        """Make ready for `try_rows`, in a transaction that has copied nothing yet."""
        if self._target.merge is not None:
            self._target.merge.lock(self._connection)  # a savepoint that is rolled back gives its own locks up
        # Deferred constraints speak at COMMIT, too late to tell the row: let each COPY hear them.
        self._before = b"SET CONSTRAINTS ALL IMMEDIATE; SAVEPOINT good; "

    def try_rows(self, start: int, stop: int, without: Collection[int], sent: Callable[[], None]) -> Blame | Books:
        """Copy and merge a range of rows; or return what PostgreSQL has against one of them, and nothing is in then.

        The statements for the savepoint go with the next COPY. `sent` is as for `copy_all`.
        """
        runs = _runs(start, stop, without)
        if not runs:
            return Books()
        merge = self._target.merge
        try:
            books = self._copy_in(runs, sent)
            if merge is not None:
                books = merge.run(self._connection, books.rows)
                merge.clear(self._connection)
        except psycopg.Error as error:
            blame = self.blame(error)
            if blame is None:
                raise
            self._before = b"ROLLBACK TO SAVEPOINT good; "
            # Not the error itself: its traceback's frames would hold it and the batch, and a worker's collector is off.
            return blame
        self._before = b"RELEASE SAVEPOINT good; SAVEPOINT good; "
        return books

    def end_tries(self) -> None:
        """Keep what is in."""
        if self._before.startswith(b"ROLLBACK"):  # no row of the last window is left
            self._connection.execute(self._before)

    def blame(self, error: psycopg.Error) -> Blame | None:
        """Return what PostgreSQL has against a row; None where no row is to blame."""
        judged, diag = verdict(error, broken=self._connection.broken), error.diag
        of_column = rf"^{self._copy_head}\D+\d+, "
        if (
            judged is Verdict.HOLD
            and (error.sqlstate or "").startswith(_OF_INPUT_FUNCTIONS)
            and re.search(of_column, diag.context or "", re.MULTILINE) is not None
        ):
            judged = Verdict.POISON
        if judged not in {Verdict.POISON, Verdict.DOUBT, Verdict.NO_PARTITION}:
            return None
        relation = None
        if judged is Verdict.NO_PARTITION:
            table = self._target.table
            relation = diag.schema_name or table.schema, diag.table_name or table.name
        row = self._named_row(diag.context or "")
        return Blame(row, _refusal(error), judged, row is None or row < self._to_come, relation)

    def _named_row(self, context: str) -> int | None:
        """Return the row that the error's context names: `COPY requests, line 7, column id`.

        The words are in the server's language, the form is not. A trigger's own lines stand before it.
        """
        match = re.search(rf"^{self._copy_head}\D+(\d+)", context, re.MULTILINE)
        line = int(match[1]) if match else 0
        return next(islice(chain.from_iterable(self._copied), line - 1, None), None) if line else None

    @property
    def _copy_head(self) -> str:
        return re.escape(f"COPY {self._target.copied[1]}")

    def _statement(self, layout: int) -> bytes:
        statement = self._statements.get(layout)
        if statement is None:
            statement = self._statements[layout] = self._target.copy(layout).as_bytes(self._connection)
        return statement

    @property
    def _head(self) -> bytes:
        return COPY_HEADER if self._target.copy_format is CopyFormat.BINARY else b""

    def _by_layout(self, runs: Sequence[range]) -> Iterable[tuple[int, Sequence[range]]]:
        """Tell the rows apart by their layouts; those of each stay in their order."""
        layouts = self._batch.layouts
        if layouts is None:
            return [(0, runs)]
        groups: dict[int, list[range]] = {}
        for row in chain.from_iterable(runs):
            group = groups.setdefault(layouts[row], [])
            if group and group[-1].stop == row:
                group[-1] = range(group[-1].start, row + 1)
            else:
                group.append(range(row, row + 1))
        return groups.items()

    def _pieces(self, runs: Sequence[range]) -> Sequence[bytes | memoryview]:
        """Return the rows' bytes: few pieces as they are, since joining them would copy them."""
        batch = self._batch
        assert batch.buffer is not None
        buffer = memoryview(batch.buffer)
        if runs[0] == range(len(batch.row_sizes)):
            return [buffer[: batch.size]]
        starts = self._row_starts
        pieces = [buffer[starts[run.start] : starts[run.stop]] for run in runs]
        return pieces if len(pieces) <= MAX_PIECES else [b"".join(pieces)]


def _runs(start: int, stop: int, without: Iterable[int]) -> list[range]:
    """Cut a range at the numbers that are left out."""
    runs = []
    for number in sorted(without):
        runs.append(range(start, number))
        start = number + 1
    return [run for run in [*runs, range(start, stop)] if run]


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
