"""The books of a transaction: a row that is lost at any place undoes all of it, and the error says what is missing."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql

from kbatchd.errors import Unbalanced
from kbatchd.model import Partition
from kbatchd.sink.batch_copy import BatchCopy
from kbatchd.sink.insertion import Outcome
from kbatchd.sink.upsert import Merge
from tests.integration.sink.test_sink import Route, broken, connection, make_route, sent
from tests.integration.sink.test_upsert import Row, Upserts
from tests.records import TOPIC
from tests.short_of_memory import RECORDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.sink.batch import Batch

__all__ = ["connection", "make_route"]

KEPT = "CREATE TABLE public.kept (id bigint PRIMARY KEY, v int, note text)"


@pytest.fixture(params=[True, False], ids=["merge", "insert"])
def upserts(connection: psycopg.Connection, request: pytest.FixtureRequest) -> Upserts:
    connection.execute(KEPT)
    return Upserts(connection, may_merge=request.param)


def flush_fails(route: Route, batch: Batch, message: str, **given: Any) -> None:
    """The batch is refused as a whole, in one line that says what was expected."""
    before = dict(route.positions)
    with pytest.raises(Unbalanced, match=message):
        route.sink.flush(batch, route.target, route.positions, **given)
    assert route.is_untouched()
    assert route.positions == before
    assert route.connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE


class TestALossIsFound:
    def test_among_the_pieces_for_libpq(
        self, make_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        route = make_route()
        batch = route.batch(sent(range(20)))

        def pieces(copy: BatchCopy, runs: object) -> list[memoryview]:
            assert copy
            assert runs
            starts, buffer = batch.row_starts(), memoryview(batch.buffer or b"")
            return [buffer[: starts[7]], buffer[starts[8] : batch.size]]

        monkeypatch.setattr(BatchCopy, "_pieces", pieces)
        flush_fails(route, batch, "expected 20, got 19")

    def test_of_bytes_that_are_not_in_the_buffer(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        batch = route.batch(sent(range(20)))
        assert batch.buffer is not None
        starts = batch.row_starts()
        del batch.buffer[starts[7] : starts[8]]
        batch.size -= starts[8] - starts[7]
        flush_fails(route, batch, r"bytes of its rows: expected \d+, got \d+")

    def test_of_a_row_that_was_never_made(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        batch = route.batch(broken(sent(range(20)), [4]))
        batch.refused.clear()
        flush_fails(route, batch, "records of the batch: expected 20, got 19")

    @pytest.mark.parametrize("which", ["first", "last"])
    def test_of_a_windows_rows(
        self, make_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch, which: str
    ) -> None:
        route = make_route("CHECK (id >= 0)")
        batch = route.batch(sent([-1 if n == 30 else n for n in range(100)]))
        try_rows = BatchCopy.try_rows

        def less(copy: BatchCopy, start: int, stop: int, *others: Any) -> object:
            return try_rows(copy, start + (which == "first"), stop - (which == "last"), *others)

        monkeypatch.setattr(BatchCopy, "try_rows", less)
        flush_fails(route, batch, "rows and dead letters of as many records")

    def test_among_the_dead_letters(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        route.connection.execute(_returns_null("kbatchd.dead_letters", "INSERT", 'NEW."offset" = 7'))
        flush_fails(route, route.batch(broken(sent(range(20)), [4, 7, 9])), "dead letters written: expected 3, got 2")

    def test_of_the_ledgers_line(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        route.connection.execute(_returns_null("kbatchd.batches", "INSERT", "true"))
        flush_fails(route, route.batch(sent(range(20))), "lines of the ledger: expected 1, got 0")

    @pytest.mark.parametrize("number", [0, 1])
    def test_behind_the_last_record(self, make_route: Callable[..., Route], number: int) -> None:
        """Progress would pass over the next one."""
        route = make_route()
        batch = route.batch([*sent(range(3)), *sent(range(3, 6), number=1)])
        batch.next_offsets[Partition(TOPIC, number)] += 1
        flush_fails(route, batch, rf"requests\[{number}\]: the offset behind the last record: expected 3, got 4")

    def test_of_a_record_that_progress_has_passed(self, make_route: Callable[..., Route]) -> None:
        """The batch before has moved it too far."""
        route = make_route()
        route.connection.execute("UPDATE kbatchd.progress SET next_offset = 1")
        batch = route.batch(sent(range(3)))
        route.positions = {p: position._replace(next_offset=1) for p, position in route.positions.items()}
        flush_fails(route, batch, r"record 0 was read, though progress stands at 1")

    def test_of_a_transaction_that_has_failed_unseen(self, make_route: Callable[..., Route]) -> None:
        """PostgreSQL answers its COMMIT with ROLLBACK, which is no error."""
        route = make_route()

        def fail() -> None:
            with suppress(psycopg.errors.DivisionByZero):
                route.connection.execute("SELECT 1 / 0")

        flush_fails(route, route.batch(sent(range(3))), "the transaction has failed", confirm=fail)


class TestALossOnTheWayOfAnUpsert:
    @pytest.fixture(autouse=True)
    def _some_rows(self, upserts: Upserts) -> None:
        upserts.flush(*[Row(n, n) for n in range(10)])

    def fails(self, upserts: Upserts, message: str, *rows: Row) -> None:
        kept, before = upserts.kept(), dict(upserts.positions)
        with pytest.raises(Unbalanced, match=message):
            upserts.flush(*rows)
        assert (upserts.kept(), upserts.positions) == (kept, before)

    def change(self, upserts: Upserts, **statements: tuple[str, str]) -> None:
        """Plant other words into statements."""
        merge = upserts.target.merge
        assert merge is not None
        planted: dict[str, sql.SQL | None] = {}
        for name, (old, new) in statements.items():
            statement = getattr(merge, name)
            text = statement and statement.as_string(None)
            assert text is None or old in text
            planted[name] = text and sql.SQL(text.replace(old, new))
        upserts.target = replace(upserts.target, merge=replace(merge, **planted))  # type: ignore[arg-type]

    def test_from_staging_to_the_table(self, upserts: Upserts) -> None:
        plant = ("WHERE NOT", "WHERE id <> 12 AND NOT")
        self.change(upserts, insert=plant, merge=plant)
        self.fails(upserts, r"keys merged into public\.kept: expected 4, got 3", *[Row(n, 0) for n in range(9, 13)])

    def test_of_a_staged_row(self, upserts: Upserts, monkeypatch: pytest.MonkeyPatch) -> None:
        lock = Merge.lock

        def lose(merge: Merge, connection: psycopg.Connection) -> None:
            lock(merge, connection)
            connection.execute(f"DELETE FROM pg_temp.{merge.staging} WHERE id = 3".encode())

        monkeypatch.setattr(Merge, "lock", lose)
        self.fails(upserts, r"rows staged for public\.kept: expected 5, got 4", *[Row(n, 0) for n in range(5)])

    def test_among_the_deletes(self, upserts: Upserts) -> None:
        self.change(upserts, delete=("WHERE winner", "WHERE old.id <> 3 AND winner"))
        self.fails(
            upserts,
            "their key's last record deletes them: expected 0, got 1",
            Row(2, deleted=True),
            Row(3, deleted=True),
            Row(4, 40),
        )


class TestWhatATriggerKeepsOut:
    """It is no loss, and counted apart."""

    def test_of_a_table(self, make_route: Callable[..., Route]) -> None:
        route = make_route(setup=_returns_null("public.target", "INSERT", "NEW.id % 10 = 3"))
        assert route.flush(sent(range(100))) == Outcome(rows=90, skipped=10)
        assert route.ids() == [n for n in range(100) if n % 10 != 3]
        assert route.next_offsets() == {0: 100, 1: 0}
        assert ledger(route) == [(90, 0, 10)]

    def test_of_a_partition(self, make_route: Callable[..., Route]) -> None:
        route = make_route(
            setup="DROP TABLE public.target;"
            "CREATE TABLE public.target (id bigint NOT NULL) PARTITION BY RANGE (id);"
            "CREATE TABLE public.low PARTITION OF public.target FOR VALUES FROM (0) TO (50);"
            "CREATE TABLE public.high PARTITION OF public.target FOR VALUES FROM (50) TO (1000);"
            + _returns_null("public.low", "INSERT", "NEW.id % 10 = 3")
        )
        assert route.flush(sent(range(100))) == Outcome(rows=95, skipped=5)
        assert ledger(route) == [(95, 0, 5)]

    def test_made_while_the_daemon_runs(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        route.connection.execute(_returns_null("public.target", "INSERT", "NEW.id = 3").encode())
        route.target, route.encoder = route.build()
        assert route.flush(sent(range(10))) == Outcome(rows=9, skipped=1)

    def test_beside_refused_rows(self, make_route: Callable[..., Route]) -> None:
        route = make_route("CHECK (id >= 0)", setup=_returns_null("public.target", "INSERT", "NEW.id % 10 = 3"))
        records = broken(sent([-1 if n == 47 else n for n in range(100)]), [5])
        assert route.flush(records) == Outcome(rows=88, dead_letters=2, skipped=10)
        assert ledger(route) == [(88, 2, 10)]

    def test_one_that_is_switched_off_explains_nothing(
        self, make_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        route = make_route(
            setup=_returns_null("public.target", "INSERT", "true") + "ALTER TABLE public.target DISABLE TRIGGER USER"
        )
        batch = route.batch(sent(range(20)))
        starts = batch.row_starts()
        pieces = [bytes(memoryview(batch.buffer or b"")[starts[1] : batch.size])]
        monkeypatch.setattr(BatchCopy, "_pieces", lambda *_: pieces)
        flush_fails(route, batch, "expected 20, got 19")

    @pytest.mark.parametrize(
        ("event", "rows", "kept", "skipped"),
        [
            ("INSERT", [Row(3, 30), Row(4, 40), Row(5, 50)], {1: 1, 2: 2, 4: 40, 5: 50}, 1),
            ("UPDATE", [Row(1, 10), Row(2, 20)], {1: 10, 2: 2}, 1),
            ("DELETE", [Row(1, deleted=True), Row(2, deleted=True)], {2: 2}, 1),
        ],
    )
    def test_of_an_upsert(
        self, upserts: Upserts, event: str, rows: list[Row], kept: dict[int, int], skipped: int
    ) -> None:
        upserts.flush(Row(1, 1), Row(2, 2))
        new = "OLD" if event == "DELETE" else "NEW"
        unwanted = 3 if event == "INSERT" else 2
        upserts.connection.execute(_returns_null("public.kept", event, f"{new}.id = {unwanted}").encode())
        upserts.target = upserts.build()
        upserts.flush(*rows)
        assert upserts.kept() == kept
        last = upserts.connection.execute("SELECT rows, skipped FROM kbatchd.batches ORDER BY id DESC").fetchone()
        assert last == (len(rows) - skipped, skipped)

    def test_insert_only_leaves_what_is_there(self, connection: psycopg.Connection) -> None:
        """That is neither lost nor kept out."""
        connection.execute(KEPT)
        upserts = Upserts(connection, insert_only=True)
        upserts.flush(Row(1, 1))
        upserts.flush(Row(1, 10), Row(2, 20))
        assert upserts.kept() == {1: 1, 2: 20}
        assert connection.execute("SELECT rows, skipped FROM kbatchd.batches ORDER BY id").fetchall() == [
            (1, 0),
            (2, 0),
        ]


def test_hardly_any_memory(database: str) -> None:
    """libpq takes no piece that it has no room for, and says so by a number."""
    command = [sys.executable, "-m", "tests.short_of_memory", database]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    with psycopg.connect(database) as connection:
        counts = connection.execute(
            "SELECT (SELECT count(*) FROM public.target), (SELECT count(*) FROM kbatchd.dead_letters), next_offset"
            " FROM kbatchd.progress"
        ).fetchone()
    assert counts == (RECORDS - 1, 1, RECORDS), done
    assert done.stdout == f"{RECORDS - 1} rows, 1 dead letters\n"


def ledger(route: Route) -> list[tuple[Any, ...]]:
    return route.connection.execute("SELECT rows, dead_letters, skipped FROM kbatchd.batches ORDER BY id").fetchall()


def _returns_null(table: str, event: str, condition: str) -> str:
    """Make a BEFORE trigger that keeps some rows out."""
    other = "OLD" if event == "DELETE" else "NEW"
    return (
        "CREATE FUNCTION public.keep_out() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN IF {condition} THEN RETURN NULL; END IF; RETURN {other}; END$$;"
        f"CREATE TRIGGER keep_out BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION public.keep_out();"
    )
