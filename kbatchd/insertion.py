"""An insertion: a batch's rows on their way into the table, around what PostgreSQL refuses.

The only code that copies rows. They go straight into the table, or into a staging table that is then merged
(upsert.py). A batch that PostgreSQL refuses is copied around the refused rows: PostgreSQL names most of them in the
error's context, and halving finds the others, such as those that only a merge refuses. Called by the sink, in the
flusher's thread, and by whoever else inserts: what goes into the transaction beside the rows is theirs.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql

from kbatchd import catalogue
from kbatchd.copying import copy_in
from kbatchd.errors import BreakerOpen, TableChanged
from kbatchd.model import CopyFormat, Refusal
from kbatchd.postgres import Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kbatchd.batch import Batch
    from kbatchd.progress import Owner
    from kbatchd.upsert import Merge

#: The head of a binary COPY: signature, flags, length of the header extension.
#: https://www.postgresql.org/docs/current/sql-copy.html#SQL-COPY-BINARY
COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)

#: Windows in one transaction before its prefix is committed. Each leaves a subtransaction, and more than 64 of them
#: overflow PostgreSQL's cache, which slows the whole server. (One that is rolled back leaves the cache.)
MAX_WINDOWS = 48

#: Rows in a window: as many as lie between two refusals, within these limits. Many small ones cost a COPY each, 0.3 ms;
#: of a large one the rows up to a refused one are sent again.
MIN_WINDOW_ROWS = 64
MAX_WINDOW_ROWS = 5_000

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


@dataclass(slots=True)
class Outcome:
    """What a flush has written so far."""

    rows: int = 0
    dead_letters: int = 0
    #: Why the first dead letter is one: an example for the log, no part of what was written.
    reason: Refusal | None = field(default=None, compare=False)
    #: The codes of the dead letters, for the statistics.
    codes: Counter[str] = field(default_factory=Counter, compare=False)


class Insertion:
    """One batch on its way in, around what PostgreSQL refuses: its records before `done` are committed.

    What else goes into each transaction is the business of whoever inserts: `account`.
    """

    def __init__(
        self,
        connection: psycopg.Connection,
        batch: Batch,
        target: Target,
        in_a_row: int = 0,
        gap: int = 0,
    ) -> None:
        """`gap`: expect poison every so many rows, and do not try the whole batch at once; 0: expect none."""
        self.connection = connection
        self.batch = batch
        self.target = target
        self.in_a_row = in_a_row
        self.outcome = Outcome()
        self.done = 0
        #: Rows from one refused by PostgreSQL to the next, about; 0: none was refused.
        self.gap = gap
        #: The row after the last refused one.
        self.resumed = 0
        #: Before this row is one that PostgreSQL refuses and does not name.
        self.unnamed_before = 0
        #: The COPY of each layout; composing it takes as long as copying 40 rows.
        self.statements: dict[int, bytes] = {}
        #: What is to be said before the next window's COPY, in one turn with it.
        self.before = b""
        #: The rows of the last COPY, in its order: PostgreSQL's line n is the n-th of them.
        self.copied: Sequence[range] = ()
        #: The rows that a merge of the whole batch has inserted or updated.
        self.merged = 0

    @cached_property
    def row_records(self) -> Sequence[int]:
        """The record of each row; 1 ms for a batch with a refusal, so only where a part of it is written."""
        return self.batch.row_records()

    @cached_property
    def row_starts(self) -> Sequence[int]:
        """Where each row begins in the buffer."""
        return self.batch.row_starts()

    def account(self, last: int, dead: Mapping[int, Refusal]) -> None:
        """Keep the books of the records from `done` to `last`, the dead ones by index, in their own transaction."""
        raise NotImplementedError

    def sent(self) -> None:
        """Use the time while PostgreSQL works on rows that were sent."""

    def run(self) -> None:
        """Write everything in one transaction; where rows are poison, in several around them."""
        last = self._breaker_at(len(self.batch.records))
        if last == 0 and self.batch.records:
            raise self._breaker_open()
        if not self.gap or not self.batch.records:
            self._write_at_once(last)
        while self.done < last:
            if self._breaker_at(last) == self.done:
                raise self._breaker_open()
            self._write(last, self._copy_around)
        if last < len(self.batch.records):
            raise self._breaker_open()

    def _write_at_once(self, last: int) -> None:
        """Write all of it; where PostgreSQL refuses a row, nothing, and guess how far the next is."""
        try:
            self._write(last, self._copy_all)
        except psycopg.Error as error:
            if not self._is_poison(error):
                raise
            named = self._named_row(error)
            self.gap = max(1, (self._rows_before(last) // 2) if named is None else named)

    def _write(self, last: int, copy: Callable[[int], tuple[int, dict[int, Refusal]]]) -> None:
        """Commit the records from `done` to `last`, or as far as `copy` came."""
        with self.connection.transaction():
            last, refused = copy(last)
            dead = {index: why for index, why in self.batch.refused if self.done <= index < last} | refused
            if last > self.done:  # the table as it is now may take what its former columns refused
                self.check_columns()
            self.account(last, dead)
        self.committed(last, dead)

    def committed(self, last: int, dead: Mapping[int, Refusal]) -> None:
        """Count what is in."""
        good = next((index for index in range(last - 1, self.done - 1, -1) if index not in dead), None)
        self.in_a_row = self.in_a_row + last - self.done if good is None else last - 1 - good
        self.outcome.rows += last - self.done - len(dead)
        self.outcome.dead_letters += len(dead)
        self.outcome.codes.update(why.code for why in dead.values())
        self.outcome.reason = self.outcome.reason or next(iter(dead.values()), None)
        self.done = last

    def _copy_all(self, last: int) -> tuple[int, dict[int, Refusal]]:
        """Copy all rows before record `last` at once: the way of nearly every batch."""
        rows = self._rows_before(last)
        if rows:
            self._copy([range(rows)])
            if self.target.merge is not None:
                self.target.merge.lock(self.connection)
                self.merged = self.target.merge.run(self.connection, is_first_try=True)
        return last, {}

    def _copy_around(self, last: int) -> tuple[int, dict[int, Refusal]]:
        """Copy rows in windows, leaving out those PostgreSQL refuses; stop after so many windows, or at the breaker.

        A window is copied again without the row that was to blame, until it is in. Rows are merged in their order too:
        where a key's last one is refused, the one before it is in.
        """
        self.sent()
        if self.target.merge is not None:
            self.target.merge.lock(self.connection)  # a savepoint that is rolled back gives its own locks up
        # Deferred constraints speak at COMMIT, too late to tell the row: let each COPY hear them.
        self.before = b"SET CONSTRAINTS ALL IMMEDIATE; SAVEPOINT good; "
        refused: dict[int, Refusal] = {}
        row = self._rows_before(self.done)
        for _ in range(MAX_WINDOWS):
            if row == self._rows_before(last):
                break
            row, last, blamed = self._copy_window(row, last, refused)
            refused |= blamed
        if self.before.startswith(b"ROLLBACK"):  # the last window has no row left
            self.connection.execute(self.before)
        return (last if row == self._rows_before(last) else self.row_records[row]), refused

    def _copy_window(self, row: int, last: int, refused: dict[int, Refusal]) -> tuple[int, int, dict[int, Refusal]]:
        """Copy some rows from `row` on, less those to blame; return where they end, `last` or the breaker, and these.

        Whom PostgreSQL names is to blame only if the rows before it are in: one of them, refused at the end of the
        COPY, may be what the named one was refused for. So whoever comes first clears those after it.
        """
        blamed: dict[int, Refusal] = {}
        until = self._window_end(row, last)
        while True:
            error = self._try(_runs(row, until, blamed))
            if error is None:
                self.gap = max(self.gap, until - self.resumed)
                return until, last, {self.row_records[at]: why for at, why in blamed.items()}
            bad = row if until - row == 1 else self._named_row(error)
            if bad is None:
                blamed, self.unnamed_before = {}, until
            else:
                self.gap = (self.gap + abs(bad - self.resumed)) // 2 + 1
                self.resumed, self.unnamed_before = bad + 1, 0
                blamed[bad] = _refusal(error)
                blamed = {at: why for at, why in blamed.items() if at <= bad}
                last = self._breaker_at(last, refused | {self.row_records[at]: why for at, why in blamed.items()})
                if last == self.done:
                    raise self._breaker_open()
            until = min(until, self._window_end(row, last))
            blamed = {at: why for at, why in blamed.items() if at < until}

    def _window_end(self, row: int, last: int) -> int:
        """Return where the rows from `row` on that are to be tried together end: halfway to an unnamed refused one."""
        rows = min(max(self.gap, MIN_WINDOW_ROWS), MAX_WINDOW_ROWS)
        if self.unnamed_before > row:
            rows = max((self.unnamed_before - row) // 2, 1)
        return min(row + rows, self._rows_before(last))

    def _try(self, runs: Sequence[range]) -> psycopg.Error | None:
        """Copy and merge rows; return what PostgreSQL has against one of them, and nothing is in then.

        The statements for the savepoint go with the next COPY.
        """
        if not runs:
            return None
        try:
            for layout, together in self._by_layout(runs):
                self.copied = together
                copy_in(self.connection, self.before + self._statement(layout), [self._head, *self._pieces(together)])
                self.before = b""
            if self.target.merge is not None:
                self.target.merge.run(self.connection)
                self.target.merge.clear(self.connection)
        except psycopg.Error as error:
            if not self._is_poison(error):
                raise
            self.before = b"ROLLBACK TO SAVEPOINT good; "
            return _without_frames(error)
        self.before = b"RELEASE SAVEPOINT good; SAVEPOINT good; "
        return None

    def _is_poison(self, error: psycopg.Error) -> bool:
        judged = verdict(error, broken=self.connection.broken)
        if judged is Verdict.ASIDE and (error.sqlstate or "").startswith(_OF_INPUT_FUNCTIONS):
            return re.search(rf"^{self._copy_head}\D+\d+, ", error.diag.context or "", re.MULTILINE) is not None
        return judged is Verdict.POISON

    def _copy(self, runs: Sequence[range]) -> None:
        """Copy rows, those of each layout together."""
        for layout, together in self._by_layout(runs):
            self.copied = together
            with self.connection.cursor().copy(self._statement(layout)) as copy:
                copy.write(self._head)
                for piece in self._pieces(together):
                    copy.write(piece)
                self.sent()

    def _statement(self, layout: int) -> bytes:
        statement = self.statements.get(layout)
        if statement is None:
            statement = self.statements[layout] = self.target.copy(layout).as_bytes(self.connection)
        return statement

    @property
    def _head(self) -> bytes:
        return COPY_HEADER if self.target.copy_format is CopyFormat.BINARY else b""

    def _by_layout(self, runs: Sequence[range]) -> Iterable[tuple[int, Sequence[range]]]:
        """Tell the rows apart by their layouts, each layout's in their order."""
        layouts = self.batch.layouts
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

    def _pieces(self, runs: Sequence[range]) -> list[memoryview]:
        """Return the bytes of the rows."""
        batch = self.batch
        assert batch.buffer is not None
        buffer = memoryview(batch.buffer)
        if runs == [range(len(batch.row_sizes))]:
            return [buffer[: batch.size]]
        starts = self.row_starts
        return [buffer[starts[run.start] : starts[run.stop]] for run in runs]

    def _rows_before(self, record: int) -> int:
        """Return how many rows come from the records before this one."""
        if record == len(self.batch.records):
            return len(self.batch.row_sizes)
        return bisect_left(self.row_records, record)

    @property
    def _copy_head(self) -> str:
        return re.escape(f"COPY {self.target.copied[1]}")

    def _named_row(self, error: psycopg.Error) -> int | None:
        """Return the row that the error's context names: `COPY requests, line 7, column id`.

        The words are in the server's language, the form is not. A trigger's own lines stand before it.
        """
        match = re.search(rf"^{self._copy_head}\D+(\d+)", error.diag.context or "", re.MULTILINE)
        at = int(match[1]) - 1 if match else -1
        return next(islice(chain.from_iterable(self.copied), at, None), None) if at >= 0 else None

    def check_columns(self) -> None:
        """Compare the table's columns with those encoded for.

        After a COPY it holds the table's lock, so they cannot change before COMMIT. Without this, binary COPY would
        take a float8's bytes for an int8 without a word.
        """
        table = self.target.table
        if catalogue.fingerprint(self.connection, table.quoted) != table.fingerprint:
            raise TableChanged(f"route {self.target.owner.route}: table {table.quoted} was altered")

    def _breaker_at(self, last: int, refused: Mapping[int, Refusal] | None = None) -> int:
        """Return the first record before `last` that is one dead letter in a row too many; else `last`."""
        limit, run, previous = self.target.max_dead_letters, self.in_a_row, self.done - 1
        if not limit:
            return last
        dead = (index for index, _ in self.batch.refused if self.done <= index < last)
        for index in sorted((*dead, *refused)) if refused else dead:
            run = run + 1 if index == previous + 1 else 1
            previous = index
            if run > limit:
                return index
        return last

    def _breaker_open(self) -> BreakerOpen:
        return BreakerOpen(
            f"route {self.target.owner.route}: more than {self.target.max_dead_letters} dead letters in a row; "
            "look into kbatchd.dead_letters, mend the cause, then restart"
        )


def _runs(start: int, stop: int, without: Iterable[int]) -> list[range]:
    """Cut a range into those between the numbers that are left out."""
    runs = []
    for number in sorted(without):
        runs.append(range(start, number))
        start = number + 1
    return [run for run in [*runs, range(start, stop)] if run]


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
