"""COPY in one turn, by libpq's own calls: rows, refusals, a killed session, and much to say on both sides."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psycopg
import pytest

from kbatchd.postgres.connection import Verdict, verdict
from kbatchd.postgres.copying import copy_in
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

COPY = b"COPY public.t (id, note) FROM STDIN"


@pytest.fixture
def transaction(empty_database: str) -> Iterator[psycopg.Connection]:
    """A session with a table of its own, within a transaction and behind a savepoint."""
    with psycopg.connect(empty_database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.t (id int CHECK (id > 0), note text)")
        connection.execute("BEGIN; SAVEPOINT good")
        yield connection


def rows(connection: psycopg.Connection) -> list[tuple[int, str]]:
    return connection.execute("SELECT id, note FROM public.t ORDER BY id").fetchall()


def test_statements_and_rows(transaction: psycopg.Connection) -> None:
    copy_in(transaction, COPY, [b"1\tone\n"])
    copy_in(transaction, b"RELEASE SAVEPOINT good; SAVEPOINT good; " + COPY, [b"2\ttwo\n"])
    transaction.execute("ROLLBACK TO SAVEPOINT good")
    assert rows(transaction) == [(1, "one")]


def test_a_refused_row_is_named(transaction: psycopg.Connection) -> None:
    copy_in(transaction, COPY, [b"1\tone\n"])
    transaction.execute("SAVEPOINT good")
    with pytest.raises(psycopg.errors.CheckViolation) as caught:
        copy_in(transaction, COPY, [b"2\ttwo\n-3\tthree\n"])
    assert (caught.value.diag.context or "").startswith("COPY t, line 2")
    # Then: the next one says first what leads out of it.
    copy_in(transaction, b"ROLLBACK TO SAVEPOINT good; " + COPY, [b"2\ttwo\n"])
    assert rows(transaction) == [(1, "one"), (2, "two")]


@pytest.mark.parametrize("statement", [b"COPY public.nowhere FROM STDIN", b"RELEASE SAVEPOINT none; " + COPY])
def test_a_refused_statement(transaction: psycopg.Connection, statement: bytes) -> None:
    with pytest.raises((psycopg.errors.UndefinedTable, psycopg.errors.InvalidSavepointSpecification)):
        copy_in(transaction, statement, [b"1\tone\n"])
    transaction.execute("ROLLBACK TO SAVEPOINT good")
    assert rows(transaction) == []


def test_a_session_killed_before(transaction: psycopg.Connection, empty_database: str) -> None:
    with psycopg.connect(empty_database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (transaction.info.backend_pid,))
    with pytest.raises(psycopg.Error) as caught:
        copy_in(transaction, COPY, [b"1\tone\n"])
    assert verdict(caught.value, broken=transaction.broken) is Verdict.RECONNECT


def test_a_session_killed_while_it_copies_and_others_run_meanwhile(
    transaction: psycopg.Connection, empty_database: str
) -> None:
    """The wait for PostgreSQL leaves the interpreter to the other threads: this one sees it, and ends it."""
    transaction.execute("CREATE FUNCTION public.linger() RETURNS trigger LANGUAGE plpgsql AS "
                       "$$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$")  # fmt: skip
    transaction.execute("CREATE TRIGGER linger BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.linger()")
    pid = transaction.info.backend_pid
    errors: list[psycopg.Error] = []

    def copy() -> None:
        try:
            copy_in(transaction, COPY, [b"1\tone\n"])
        except psycopg.Error as error:
            errors.append(error)

    thread = threading.Thread(target=copy)
    thread.start()
    with psycopg.connect(empty_database, autocommit=True) as other:
        sleeps = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
        wait_until(lambda: bool(other.execute(sleeps, (pid,)).fetchone()), 10, "the trigger to sleep")
        other.execute("SELECT pg_terminate_backend(%s)", (pid,))
    thread.join(30)
    assert [verdict(error, broken=transaction.broken) for error in errors] == [Verdict.RECONNECT]
    assert "administrator command" in str(errors[0])


def test_both_sides_have_much_to_say(transaction: psycopg.Connection) -> None:
    """A notice for each row, while the rows are being sent: two that only write would wait for each other."""
    transaction.execute("CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS "
                       "$$ BEGIN RAISE NOTICE '%', NEW.note; RETURN NEW; END $$")  # fmt: skip
    transaction.execute("CREATE TRIGGER tell BEFORE INSERT ON public.t FOR EACH ROW EXECUTE FUNCTION public.tell()")
    told: list[int] = []
    transaction.add_notice_handler(lambda notice: told.append(len(notice.message_primary or "")))
    rows = b"".join(b"%d\t%s\n" % (number, b"x" * 4_000) for number in range(1, 8_001))
    copy_in(transaction, COPY, [rows])
    assert told == [4_000] * 8_000
    assert transaction.execute("SELECT count(*) FROM public.t").fetchone() == (8_000,)


def test_while_it_waits_for_the_tables_lock_others_run(transaction: psycopg.Connection, empty_database: str) -> None:
    """This thread sees that it waits, and lets it go on."""
    transaction.commit()
    with psycopg.connect(empty_database, autocommit=True) as other, ThreadPoolExecutor() as threads:
        other.execute("BEGIN; LOCK TABLE public.t")
        transaction.execute("BEGIN")
        copied = threads.submit(copy_in, transaction, COPY, [b"1\tone\n"])
        waits = "SELECT 1 WHERE pg_backend_pid() = ANY (pg_blocking_pids(%s))"
        pid = transaction.info.backend_pid
        wait_until(lambda: other.execute(waits, (pid,)).fetchone(), 10, "the COPY to wait")
        other.execute("COMMIT")
        assert copied.result() == 1


def test_all_that_a_small_buffer_leaves_is_sent(transaction: psycopg.Connection) -> None:
    """Pieces of all sizes, more than any buffer holds, in one COPY; the count is PostgreSQL's."""
    pieces = [b"%d\t%s\n" % (number, b"x" * (number * 37 % 300_000)) for number in range(1, 301)]
    assert copy_in(transaction, COPY, pieces) == 300
    assert transaction.execute("SELECT sum(length(note)) FROM public.t").fetchone() == (
        sum(number * 37 % 300_000 for number in range(1, 301)),
    )


def test_what_cannot_be_sent_leaves_the_session_usable(transaction: psycopg.Connection) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"1\tone\n"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        copy_in(transaction, COPY, pieces())
    transaction.execute("ROLLBACK TO SAVEPOINT good")
    assert rows(transaction) == []
