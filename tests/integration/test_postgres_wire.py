"""The proxy before PostgreSQL does what its rules say, with messages and with the SQL in them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from tests.faults.postgres_wire import (
    PostgresWire,
    answer,
    command_complete,
    error_response,
    instead,
    message,
    statement,
)
from tests.faults.rules import Side, cut, cut_behind, holding, swallow
from tests.fix_daemon import wait_until
from tests.fix_faults import through


@pytest.fixture
def wire(postgres_wire: PostgresWire) -> PostgresWire:
    return postgres_wire


@pytest.fixture
def session(wire: PostgresWire, database: str) -> Iterator[psycopg.Connection]:
    """A session through the proxy, with a table to fill."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.t (id int)")
    with psycopg.connect(through(wire, database), autocommit=True) as connection:
        yield connection


def rows(database: str) -> int:
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM public.t").fetchone()
    assert row is not None
    return int(row[0])


def test_what_no_rule_is_for_passes(wire: PostgresWire, session: psycopg.Connection, database: str) -> None:
    with session.cursor().copy("COPY public.t FROM STDIN") as copy:
        copy.write(b"1\n2\n")
    assert rows(database) == 2
    assert wire.seen("c") == 1


def test_a_session_is_cut_before_a_statement_or_behind_it(
    wire: PostgresWire, session: psycopg.Connection, database: str
) -> None:
    wire.cut_before("insert into public.t")
    with pytest.raises(psycopg.OperationalError):
        session.execute("INSERT INTO public.t VALUES (1)")
    assert rows(database) == 0
    with psycopg.connect(through(wire, database)) as again:
        again.execute("INSERT INTO public.t VALUES (%s)", (1,))
        wire.cut_after("^commit")
        with pytest.raises(psycopg.OperationalError):
            again.commit()
    wait_until(lambda: rows(database) == 1, 5, "the commit whose answer nobody heard")


def test_the_execution_of_a_prepared_statement_is_known_by_its_sql(
    wire: PostgresWire, session: psycopg.Connection
) -> None:
    rule = wire.rule(statement("as prepared"), cut_behind, skip=2)
    for _ in range(2):
        session.execute("SELECT %s::int as prepared", (1,), prepare=True)
    with pytest.raises(psycopg.OperationalError):
        session.execute("SELECT %s::int as prepared", (1,), prepare=True)
    assert rule.hits == 1


def test_an_answer_is_held_until_it_is_let_go(wire: PostgresWire, session: psycopg.Connection, database: str) -> None:
    rule = wire.add(holding(answer("C", "INSERT")))
    with ThreadPoolExecutor() as pool:
        done = pool.submit(session.execute, "INSERT INTO public.t VALUES (1)")
        rule.wait()
        assert rows(database) == 1
        assert not done.done()
        rule.lift()
        done.result()


def test_a_piece_of_a_copy_vanishes(wire: PostgresWire, session: psycopg.Connection, database: str) -> None:
    wire.rule(message("d"), swallow, times=1)
    cursor = session.cursor()
    with cursor.copy("COPY public.t FROM STDIN") as copy:
        for number in range(30_000):  # psycopg sends 32 KiB at once
            copy.write(b"%d\n" % number)
    assert 0 < cursor.rowcount < 30_000
    assert rows(database) == cursor.rowcount


def test_an_answer_is_another_than_the_servers(wire: PostgresWire, session: psycopg.Connection, database: str) -> None:
    wire.rule(answer("C", "INSERT"), instead(error_response("57014", "made up")), times=1)
    with pytest.raises(psycopg.errors.QueryCanceled, match="made up"):
        session.execute("INSERT INTO public.t VALUES (1)")
    assert rows(database) == 1
    wire.rule(answer("C", "INSERT"), instead(command_complete("INSERT 0 7")), times=1)
    assert session.execute("INSERT INTO public.t VALUES (1)").rowcount == 7


def test_an_answer_kind_is_where_a_session_ends(wire: PostgresWire, session: psycopg.Connection, database: str) -> None:
    rule = wire.rule(answer("Z"), cut, times=1)
    with pytest.raises(psycopg.OperationalError):
        session.execute("INSERT INTO public.t VALUES (1)")
    assert rule.hits == 1
    assert rows(database) == 1
    assert wire.seen("Z", Side.ANSWER) == 2  # that of the start, and the one that was cut
