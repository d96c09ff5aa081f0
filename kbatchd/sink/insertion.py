"""An insertion: a batch on its way into the table, in one transaction, or in several around what PostgreSQL refuses.

How rows are copied, and how PostgreSQL's errors are read, is batch_copy.py's. Here it is decided which rows are tried
together and whom to blame: PostgreSQL names most of the refused rows, and halving finds the others, such as those that
only a merge refuses. Called by the sink, in the flusher's thread, and by the others that insert, a replay and a trial:
what goes into the transaction beside the rows is theirs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

import psycopg
from psycopg.pq import TransactionStatus

from kbatchd.encode.internal import INTERNAL
from kbatchd.errors import BreakerOpen, NotTheRecords, TableChanged, Unbalanced
from kbatchd.postgres import catalogue
from kbatchd.postgres.books import Books, agree
from kbatchd.postgres.connection import Verdict
from kbatchd.sink.batch_copy import BatchCopy

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from kbatchd.model import Refusal
    from kbatchd.sink.batch import Batch
    from kbatchd.sink.batch_copy import Blame, Target

#: Windows in one transaction before its prefix is committed. Each leaves a subtransaction, and more than 64 of them
#: overflow PostgreSQL's cache, which slows the whole server. (One that is rolled back leaves the cache.)
MAX_WINDOWS = 48

#: Rows in a window: as many as lie between two refusals, within these limits. Many small ones cost a COPY each, 0.3 ms;
#: of a large one the rows up to a refused one are sent again.
MIN_WINDOW_ROWS = 64
MAX_WINDOW_ROWS = 5_000


@dataclass(slots=True)
class Outcome:
    """What a flush has written so far."""

    rows: int = 0
    dead_letters: int = 0
    #: Rows that a BEFORE trigger did not let in.
    skipped: int = 0
    #: Why the first dead letter is one: an example for the log, no part of what was written.
    reason: Refusal | None = field(default=None, compare=False)
    #: The codes of the dead letters, for the statistics.
    codes: Counter[str] = field(default_factory=Counter, compare=False)


@dataclass(frozen=True, slots=True)
class Run:
    """Dead letters in a row: of any code, and of those for which kbatchd itself is to blame."""

    any: int = 0
    internal: int = 0


@dataclass(slots=True)
class Memory:
    """What a route's next batch is to know of those before it."""

    #: For the breaker.
    in_a_row: Run = Run()
    #: Expect poison every so many rows, and do not try the whole batch at once; 0: expect none.
    gap: int = 0
    #: The code for which the last rows were refused, where none has gone in since, and how many they were.
    alike: tuple[str, int] = ("", 0)


class Insertion:
    """One batch on its way in, around what PostgreSQL refuses: its records before `done` are committed.

    What else goes into each transaction is the caller's business: `account`.
    """

    def __init__(
        self, connection: psycopg.Connection, batch: Batch, target: Target, memory: Memory | None = None
    ) -> None:
        self.connection = connection
        self.batch = batch
        self.target = target
        self._copy = BatchCopy(connection, batch, target)
        self.memory = Memory() if memory is None else memory
        self.outcome = Outcome()
        self.done = 0
        #: What has gone in within the transaction at hand.
        self.books = Books()
        #: Rows from one refused by PostgreSQL to the next, about; 0: none was refused.
        self.gap = self.memory.gap
        #: Rows running up to the last one tried that were refused alike, and their code.
        self._alike = self.memory.alike
        #: The row after the last refused one.
        self.resumed = 0
        #: Before this row is one that PostgreSQL refuses and does not name.
        self.unnamed_before = 0
        #: Records whose rows have no partition to go to, with the statement that makes one.
        self.without_partition: dict[int, str] = {}

    def account(self, last: int, dead: Mapping[int, Refusal]) -> None:
        """Keep the books of the records from `done` to `last`, the dead ones by index, in their own transaction."""
        raise NotImplementedError

    def sent(self) -> None:
        """Use the time while PostgreSQL works on rows that were sent."""

    def run(self) -> None:
        """Write everything in one transaction; where rows are poison, in several around them."""
        batch = self.batch
        agree("records of the batch", len(batch.records), len(batch.row_sizes) + len(batch.refused))
        agree("bytes of its rows", sum(batch.row_sizes), batch.size)
        last = self._breaker_at(len(batch.records))
        if last == 0 and batch.records:
            raise self._breaker_open()
        if not self.gap or not batch.records:
            self._write_at_once(last)
        while self.done < last:
            if self._breaker_at(last) == self.done:
                raise self._breaker_open()
            self._write(last, self._copy_around)
        if last < len(batch.records):
            raise self._breaker_open()

    def _write_at_once(self, last: int) -> None:
        """Write all of it; where PostgreSQL refuses a row, nothing, and guess how far the next is."""
        try:
            self._write(last, self._copy_all)
        except psycopg.Error as error:
            against = self._copy.blame(error)
            if against is None:
                raise
        else:
            return
        if against.row is not None:
            self._meet_no_partition(against.row, against)
        self.gap = max(1, (self._copy.rows_before(last) // 2) if against.row is None else against.row)

    def _write(self, last: int, copy: Callable[[int], tuple[int, dict[int, Refusal]]]) -> None:
        """Commit the records from `done` to `last`, or as far as `copy` came."""
        self.books, self._alike = Books(), self.memory.alike
        with self.connection.transaction():
            last, refused = copy(last)
            dead = {index: why for index, why in self.batch.refused if self.done <= index < last} | refused
            if last > self.done:  # the table as it is now may take what its former columns refused
                self.check_columns()
            agree("rows and dead letters of as many records", last - self.done, self.books.rows + len(dead))
            self.account(last, dead)
            if self.connection.info.transaction_status != TransactionStatus.INTRANS:
                raise Unbalanced("the transaction has failed, and PostgreSQL answers a COMMIT of it all the same")
        self.committed(last, dead)

    def committed(self, last: int, dead: Mapping[int, Refusal]) -> None:
        """Count what is in."""
        internal = [index for index, why in dead.items() if why.code == INTERNAL]
        before = self.memory.in_a_row
        self.memory.in_a_row = Run(
            self._run_at_end(last, dead, before.any), self._run_at_end(last, internal, before.internal)
        )
        self.memory.alike = self._alike
        self.outcome.rows += self.books.rows - self.books.skipped
        self.outcome.skipped += self.books.skipped
        self.outcome.dead_letters += len(dead)
        self.outcome.codes.update(why.code for why in dead.values())
        self.outcome.reason = self.outcome.reason or next(iter(dead.values()), None)
        self.done = last

    def _copy_all(self, last: int) -> tuple[int, dict[int, Refusal]]:
        """Copy all rows before record `last` at once: the way of nearly every batch."""
        rows = self._copy.rows_before(last)
        if rows:
            self.books = self._copy.copy_all(rows, self.sent)
            self._alike = "", 0
        return last, {}

    def _copy_around(self, last: int) -> tuple[int, dict[int, Refusal]]:
        """Copy rows in windows, leaving out those PostgreSQL refuses; stop after so many windows, or at the breaker.

        A window is copied again without the row that was to blame, until it is in. Rows are merged in their order too:
        where a key's last one is refused, the one before it is in.
        """
        self._copy.begin_tries()
        refused: dict[int, Refusal] = {}
        row = self._copy.rows_before(self.done)
        windows = 0
        # Not in the middle of rows that are refused alike: who is to blame for them is not known yet.
        while row < self._copy.rows_before(last) and (windows < MAX_WINDOWS or self._alike[1]):
            row, last, blamed = self._copy_window(row, last, refused)
            refused |= blamed
            windows += 1
        self._copy.end_tries()
        return (last if row == self._copy.rows_before(last) else self._copy.row_records[row]), refused

    def _copy_window(self, row: int, last: int, refused: dict[int, Refusal]) -> tuple[int, int, dict[int, Refusal]]:
        """Copy some rows from `row` on, less those to blame; return where they end, `last` or the breaker, and these.

        Whom PostgreSQL names is to blame only if the rows before it are in: one of them, refused at the end of the
        COPY, may be what the named one was refused for. So the first one clears those after it.
        """
        blamed: dict[int, Blame] = {}
        until = self._window_end(row, last)
        while True:
            against = self._copy.try_rows(row, until, blamed, self.sent)
            if isinstance(against, Books):
                self.books += against
                self.gap = max(self.gap, until - self.resumed)
                self._alike = self._alike_before(row, until, blamed)
                return until, last, self._refusals(blamed)
            bad = row if until - row == 1 else against.row
            if bad is None:
                blamed, self.unnamed_before = {}, until
            elif bad > row and not against.is_sure:
                until = bad  # first those that may be what it was refused for
            else:
                self._meet_no_partition(bad, against)
                self.gap = (self.gap + abs(bad - self.resumed)) // 2 + 1
                self.resumed, self.unnamed_before = bad + 1, 0
                blamed[bad] = against
                blamed = {at: blame for at, blame in blamed.items() if at <= bad}
                self._doubt(bad, self._alike_before(row, bad + 1, blamed))
                last = self._breaker_at(last, refused | self._refusals(blamed))
                if last == self.done:
                    raise self._breaker_open()
            until = min(until, self._window_end(row, last))
            blamed = {at: blame for at, blame in blamed.items() if at < until}

    def _refusals(self, blamed: Mapping[int, Blame]) -> dict[int, Refusal]:
        return {self._copy.row_records[row]: blame.why for row, blame in blamed.items()}

    def _alike_before(self, row: int, until: int, blamed: Mapping[int, Blame]) -> tuple[str, int]:
        """Return for which code the last rows before `until` were refused, and how many; the window begins at `row`.

        Only what may be the fault of the table's own code counts.
        """
        at, code = until - 1, ""
        while at >= row and at in blamed and blamed[at].verdict is Verdict.DOUBT and code in {"", blamed[at].why.code}:
            at, code = at - 1, blamed[at].why.code
        before = self._alike[1] if at < row and code in {"", self._alike[0]} else 0
        return code or self._alike[0], until - 1 - at + before

    def _doubt(self, row: int, alike: tuple[str, int]) -> None:
        """Raise NotTheRecords when so many rows are refused alike that the table's own code is to blame."""
        code, count = alike
        if self.target.max_alike and count >= self.target.max_alike:
            raise NotTheRecords(
                f"route {self.target.owner.route}: {count} rows running were refused alike ({code}), and none went in, "
                f"up to {self._place(row)}: correct the table's triggers, checks and functions, which refuse them, and "
                "the route goes on by itself; or pass over the records with `kbatchd progress set`"
            )

    def _meet_no_partition(self, row: int, against: Blame) -> None:
        """Note that a row has no partition to go to; raise NotTheRecords where the route waits for it."""
        if against.relation is None:
            return
        table = self.target.table
        by = table.partitioned_by if against.relation == (table.schema, table.name) else ""
        remedy = catalogue.missing_partition(against.relation, by, against.why.message)
        self.without_partition[self._copy.row_records[row]] = remedy
        if self.target.waits_for_partition:
            raise NotTheRecords(
                f"route {self.target.owner.route}: {self._place(row)} has no partition to go to "
                f"({against.why.message}), and the route waits for it: {remedy}, "
                'or set on_missing_partition = "dead_letter"'
            )

    def _place(self, row: int) -> str:
        record = self.batch.records[self._copy.row_records[row]]
        return f"{record.topic()}[{record.partition()}] at {record.offset()}"

    def _window_end(self, row: int, last: int) -> int:
        """Return where the rows from `row` on that are to be tried together end: halfway to an unnamed refused one."""
        rows = min(max(self.gap, MIN_WINDOW_ROWS), MAX_WINDOW_ROWS)
        if self.unnamed_before > row:
            rows = max((self.unnamed_before - row) // 2, 1)
        return min(row + rows, self._copy.rows_before(last))

    def check_columns(self) -> None:
        """Compare the table's columns with those encoded for.

        After a COPY it holds the table's lock, so they cannot change before COMMIT. Without this, binary COPY would
        take a float8's bytes for an int8 without a word.
        """
        table = self.target.table
        if catalogue.fingerprint(self.connection, table.quoted) != table.fingerprint:
            raise TableChanged(f"route {self.target.owner.route}: table {table.quoted} was altered")

    def _run_at_end(self, last: int, dead: Collection[int], run: int) -> int:
        """Return how many records before `last` are dead without one between that is not; `run` were before `done`."""
        good = next((index for index in range(last - 1, self.done - 1, -1) if index not in dead), None)
        return run + last - self.done if good is None else last - 1 - good

    def _breaker_at(self, last: int, refused: Mapping[int, Refusal] | None = None) -> int:
        """Return the first record before `last` that is one dead letter in a row too many; else `last`."""
        target, dead = self.target, [item for item in self.batch.refused if self.done <= item[0] < last]
        if refused:
            dead = sorted([*dead, *refused.items()], key=itemgetter(0))
        if not dead:
            return last
        internal = [index for index, why in dead if why.code == INTERNAL]
        return min(
            self._one_too_many(last, [index for index, _ in dead], self.memory.in_a_row.any, target.max_dead_letters),
            self._one_too_many(last, internal, self.memory.in_a_row.internal, target.max_internal),
        )

    def _one_too_many(self, last: int, dead: Sequence[int], run: int, limit: int) -> int:
        previous = self.done - 1
        for index in dead if limit else ():
            run = run + 1 if index == previous + 1 else 1
            previous = index
            if run > limit:
                return index
        return last

    def _breaker_open(self) -> BreakerOpen:
        route, limit = self.target.owner.route, self.target.max_internal
        if limit and self.memory.in_a_row.internal >= limit:
            return BreakerOpen(
                f"route {route}: more than {limit} records in a row met a fault of kbatchd itself; look into "
                f"kbatchd.dead_letters, code {INTERNAL}, please report it, and install a version without it; "
                f"`kbatchd progress accept --config FILE {route}` counts from 0 again, and the route goes on"
            )
        return BreakerOpen(
            f"route {route}: more than {self.target.max_dead_letters} dead letters in a row; "
            f"see `kbatchd dead-letters list --config FILE --route {route}`, and fix the cause; then "
            f"`kbatchd progress accept --config FILE {route}` counts from 0, and the route goes on where it stands"
        )
