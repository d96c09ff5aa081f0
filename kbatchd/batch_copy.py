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

from kbatchd.copying import copy_in
from kbatchd.model import CopyFormat, Refusal
from kbatchd.postgres import Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from kbatchd import catalogue
    from kbatchd.batch import Batch
    from kbatchd.progress import Owner
    from kbatchd.upsert import Merge

#: The head of a binary COPY: signature, flags, length of the header extension.
#: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)

#: Each piece of a COPY's bytes takes a call of libpq.
MAX_PIECES = 64

#: What input functions of extensions say of a value, beside the codes that are for that: ltree and hstore a syntax
#: error, PostGIS an internal one, others that of an external routine.
_OF_INPUT_FUNCTIONS = ("42601", "XX000", "38", "39")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a route's rows go, and how they were encoded."""

    owner: Owner
    table: catalogue.Table
    #: The columns of each layout, in the rows' order; the encoder may add more layouts at any time.
    layouts: Sequence[tuple[str, ...]]
    max_dead_letters: int
    copy_format: CopyFormat = CopyFormat.BINARY
    #: How the rows get on from their staging table, where the route upserts.
    merge: Merge | None = None
    #: The same limit for dead letters that are kbatchd's own fault: it must not empty a topic into the bin. 0: none.
    max_internal: int = 100

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

    def copy_all(self, rows: int, sent: Callable[[], None]) -> int:
        """Copy the first so many rows at once, and merge them; return how many a merge has inserted or updated.

        `sent` is called while PostgreSQL works on them.
        """
        for layout, together in self._by_layout([range(rows)]):
            self._copied = together
            with self._connection.cursor().copy(self._statement(layout)) as copy:
                copy.write(self._head)
                for piece in self._pieces(together):
                    copy.write(piece)
                sent()
        merge = self._target.merge
        if merge is None:
            return 0
        merge.lock(self._connection)
        return merge.run(self._connection, is_first_try=True)

    def begin_tries(self) -> None:
        """Make ready for `try_rows`, in a transaction that has copied nothing yet."""
        if self._target.merge is not None:
            self._target.merge.lock(self._connection)  # a savepoint that is rolled back gives its own locks up
        # Deferred constraints speak at COMMIT, too late to tell the row: let each COPY hear them.
        self._before = b"SET CONSTRAINTS ALL IMMEDIATE; SAVEPOINT good; "

    def try_rows(self, start: int, stop: int, without: Collection[int], sent: Callable[[], None]) -> Blame | None:
        """Copy and merge a range of rows; return what PostgreSQL has against one of them, and nothing is in then.

        The statements for the savepoint go with the next COPY. `sent` is as for `copy_all`.
        """
        runs = _runs(start, stop, without)
        if not runs:
            return None
        merge = self._target.merge
        try:
            for layout, together in self._by_layout(runs):
                self._copied = together
                statements, pieces = self._before + self._statement(layout), [self._head, *self._pieces(together)]
                copy_in(self._connection, statements, pieces, sent)
                self._before = b""
            if merge is not None:
                merge.run(self._connection)
                merge.clear(self._connection)
        except psycopg.Error as error:
            if not self.is_poison(error):
                raise
            self._before = b"ROLLBACK TO SAVEPOINT good; "
            # Not the error itself: its traceback's frames would hold it and the batch, and a worker's collector is off.
            return Blame(self.named_row(error), _refusal(error))
        self._before = b"RELEASE SAVEPOINT good; SAVEPOINT good; "
        return None

    def end_tries(self) -> None:
        """Keep what is in."""
        if self._before.startswith(b"ROLLBACK"):  # no row of the last window is left
            self._connection.execute(self._before)

    def is_poison(self, error: psycopg.Error) -> bool:
        """Tell whether a row is to blame."""
        judged = verdict(error, broken=self._connection.broken)
        if judged is Verdict.ASIDE and (error.sqlstate or "").startswith(_OF_INPUT_FUNCTIONS):
            return re.search(rf"^{self._copy_head}\D+\d+, ", error.diag.context or "", re.MULTILINE) is not None
        return judged is Verdict.POISON

    def named_row(self, error: psycopg.Error) -> int | None:
        """Return the row that the error's context names: `COPY requests, line 7, column id`.

        The words are in the server's language, the form is not. A trigger's own lines stand before it.
        """
        match = re.search(rf"^{self._copy_head}\D+(\d+)", error.diag.context or "", re.MULTILINE)
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
