"""Who is to blame for a refused row: the record, the table's own code, a partition that is missing, or nobody."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson
import psycopg
import pytest

from kbatchd.errors import NotTheRecords
from kbatchd.model import FlushReason
from kbatchd.sink.batch import Batch
from kbatchd.sink.chunk import Chunk
from kbatchd.sink.insertion import Outcome
from tests.fix_daemon import wait_until
from tests.integration.sink.test_sink import Route, binary, connection, make_route, sent
from tests.integration.sink.test_upsert import Row, Upserts
from tests.records import Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["connection", "make_route"]

#: What a function of the table's own says of the number 4, by its code.
BODIES = {
    "P0002": "SELECT 1 INTO STRICT x WHERE i <> 4;",
    "P0003": "SELECT g INTO STRICT x FROM generate_series(1, CASE WHEN i = 4 THEN 2 ELSE 1 END) AS g;",
    "P0004": "ASSERT i <> 4, 'not this one';",
    "20000": "CASE WHEN i <> 4 THEN NULL; END CASE;",
    "21000": "x := (SELECT g FROM generate_series(1, CASE WHEN i = 4 THEN 2 ELSE 1 END) AS g);",
    "2F005": "IF i = 4 THEN PERFORM public.endless(); END IF;",
    "55000": "IF i = 4 THEN x := r.a; END IF;",
    **{
        code: f"IF i = 4 THEN RAISE EXCEPTION 'not this one' USING ERRCODE = '{code}'; END IF;"
        for code in ("0A000", "42501", "57014", "42P01", "XX000", "40001", "55P03", "08006", "57P01", "53100", "25006")
    },
}
WHERE = {
    "BEFORE": "CREATE TRIGGER judge BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION public.judge_new()",
    "AFTER": "CREATE TRIGGER judge AFTER INSERT ON {} FOR EACH ROW EXECUTE FUNCTION public.judge_new()",
    "CHECK": "ALTER TABLE {} ADD CHECK (public.judge(id))",
    "index": "CREATE INDEX ON {} (public.judge(id))",
}


def judge(body: str, where: str, table: str = "public.target") -> str:
    """Return what makes the table refuse some rows by code of its own."""
    return (
        "CREATE FUNCTION public.endless() RETURNS bool LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE FUNCTION public.judge(i bigint) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS "
        f"$$DECLARE x int; r record; BEGIN {body} RETURN true; END$$;"
        "CREATE FUNCTION public.judge_new() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$BEGIN PERFORM public.judge(NEW.id); RETURN NEW; END$$; {WHERE[where].format(table)};"
    )


def raising(condition: str, code: str = "0A000") -> str:
    return f"IF {condition} THEN RAISE EXCEPTION 'no %', i USING ERRCODE = '{code}'; END IF;"


class TestTheTablesOwnCode:
    @pytest.mark.parametrize("where", list(WHERE))
    @pytest.mark.parametrize("code", list(BODIES))
    def test_nine_rows_and_a_dead_letter(self, make_route: Callable[..., Route], code: str, where: str) -> None:
        route = make_route(setup=judge(BODIES[code], where))
        assert route.flush(sent(range(10))) == Outcome(rows=9, dead_letters=1)
        assert route.dead() == [(0, 4, code, None)]
        assert route.ids() == [0, 1, 2, 3, 5, 6, 7, 8, 9]

    @pytest.mark.parametrize("code", ["P0002", "21000", "55000", "42501"])
    def test_of_an_upsert(self, connection: psycopg.Connection, code: str) -> None:
        """The merge names no row."""
        connection.execute("CREATE TABLE public.kept (id bigint PRIMARY KEY, v int, note text)")
        connection.execute(judge(BODIES[code], "BEFORE", "public.kept").encode())
        upserts = Upserts(connection)
        assert upserts.flush(*[Row(n, n) for n in range(10)]) == Outcome(rows=9, dead_letters=1)
        assert upserts.dead() == [(4, code)]

    def test_a_query_that_was_cancelled_is_nobodys(self, database: str, make_route: Callable[..., Route]) -> None:
        """Its error names a line too."""
        route = make_route(setup=judge("IF i = 4 THEN PERFORM pg_sleep(60); END IF;", "BEFORE"))
        batch = route.batch(sent(range(10)))
        with psycopg.connect(database, autocommit=True) as other, ThreadPoolExecutor() as threads:
            flushed = threads.submit(route.sink.flush, batch, route.target, route.positions)
            pid = route.connection.info.backend_pid
            sleeps = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'PgSleep'"
            wait_until(lambda: other.execute(sleeps, (pid,)).fetchone(), 10, "the trigger to sleep")
            other.execute("SELECT pg_cancel_backend(%s)", (pid,))
            with pytest.raises(psycopg.errors.QueryCanceled) as caught:
                flushed.result()
        assert "COPY target, line 5" in (caught.value.diag.context or "")
        assert route.is_untouched()

    def test_a_missing_right_is_nobodys(self, connection: psycopg.Connection, make_route: Callable[..., Route]) -> None:
        route = make_route(setup=judge("IF i = 4 THEN PERFORM FROM public.secret; END IF;", "BEFORE"))
        with a_role(connection) as role:
            connection.execute(
                f"CREATE TABLE public.secret (); ALTER FUNCTION public.judge SECURITY DEFINER;"
                f"ALTER FUNCTION public.judge OWNER TO {role}".encode()
            )
            with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
                route.flush(sent(range(10)))
            assert "COPY target, line 5" in (caught.value.diag.context or "")
            assert route.is_untouched()


class TestRefusedAlike:
    """So many rows running, for the same, and none went in: the table's code is to blame, and the route waits."""

    @pytest.mark.parametrize("where", ["BEFORE", "AFTER"])
    def test_the_hundredth(self, make_route: Callable[..., Route], where: str) -> None:
        route = make_route(setup=judge(raising("i >= 10"), where))
        with pytest.raises(
            NotTheRecords, match=r"100 rows running were refused alike \(0A000\).*requests\[0\] at 109: "
        ):
            route.flush(sent(range(300)))
        assert route.is_untouched()

    @pytest.mark.parametrize("where", ["BEFORE", "AFTER"])
    def test_fewer_are_dead_letters(self, make_route: Callable[..., Route], where: str) -> None:
        route = make_route(setup=judge(raising("i BETWEEN 10 AND 108 OR i BETWEEN 110 AND 208"), where))
        assert route.flush(sent(range(300))) == Outcome(rows=102, dead_letters=198)

    def test_for_different_reasons(self, make_route: Callable[..., Route]) -> None:
        route = make_route(setup=judge(raising("i % 2 = 0") + raising("i % 2 = 1", "42501"), "BEFORE"))
        assert route.flush(sent(range(300))) == Outcome(dead_letters=300)

    def test_across_batches(self, make_route: Callable[..., Route]) -> None:
        route = make_route(setup=judge(raising("i > 0"), "BEFORE"))
        assert route.flush(sent(range(1, 61))) == Outcome(dead_letters=60)
        with pytest.raises(NotTheRecords):
            route.flush(sent(range(1, 61), first=60))
        assert len(route.dead()) == 60
        # Once the cause is fixed, it goes on.
        route.connection.execute("DROP TRIGGER judge ON public.target")
        route.target, route.encoder = route.build()
        assert route.flush(sent(range(1, 61), first=60)) == Outcome(rows=60)

    def test_a_good_batch_in_between(self, make_route: Callable[..., Route]) -> None:
        route = make_route(setup=judge(raising("i > 0"), "BEFORE"))
        route.flush(sent(range(1, 61)))
        route.flush(sent([0], first=60))
        assert route.flush(sent(range(1, 61), first=61)) == Outcome(dead_letters=60)

    def test_what_is_surely_the_records_fault_has_no_limit(self, make_route: Callable[..., Route]) -> None:
        route = make_route("CHECK (id < 0)", setup=judge(raising("i > 500", "P0001"), "BEFORE"))
        assert route.flush(sent(range(1_000))) == Outcome(dead_letters=1_000)


class TestNoPartition:
    PARTITIONED = (
        "DROP TABLE public.target;"
        "CREATE TABLE public.target (id bigint NOT NULL, day date) PARTITION BY RANGE (id);"
        "CREATE TABLE public.low PARTITION OF public.target FOR VALUES FROM (0) TO (100);"
    )

    def waits(self, route: Route) -> Route:
        route.target = replace(route.target, waits_for_partition=True)
        return route

    def test_the_route_waits_and_says_what_is_missing(self, make_route: Callable[..., Route]) -> None:
        route = self.waits(make_route(setup=self.PARTITIONED))
        records = [Sent(n, b'{"id":%d,"day":null}' % (500 if n == 7 else n)) for n in range(10)]
        with pytest.raises(NotTheRecords) as caught:
            route.flush(records)
        text = str(caught.value)
        assert "requests[0] at 7 has no partition to go to" in text
        assert """CREATE TABLE ... PARTITION OF "public"."target" FOR VALUES FROM ('500') TO (...)""" in text
        assert 'on_missing_partition = "dead_letter"' in text
        assert route.is_untouched()
        route.connection.execute("CREATE TABLE high PARTITION OF target FOR VALUES FROM (500) TO (600)")
        assert route.flush(records) == Outcome(rows=10)

    def test_or_it_is_a_dead_letter(self, make_route: Callable[..., Route]) -> None:
        route = make_route(setup=self.PARTITIONED)
        records = [Sent(n, b'{"id":%d,"day":null}' % (500 if n == 7 else n)) for n in range(10)]
        assert route.flush(records) == Outcome(rows=9, dead_letters=1)
        assert route.dead() == [(0, 7, "23514", None)]

    def test_behind_another_refused_row(self, make_route: Callable[..., Route]) -> None:
        route = self.waits(make_route(setup=self.PARTITIONED + "ALTER TABLE public.target ADD CHECK (id <> 3)"))
        ids = [3 if n == 3 else 500 if n == 7 else n for n in range(10)]
        with pytest.raises(NotTheRecords, match=r"requests\[0\] at 7 has no partition"):
            route.flush([Sent(n, b'{"id":%d,"day":null}' % i) for n, i in enumerate(ids)])

    def test_a_constraint_of_a_partitioned_table_is_the_records(self, make_route: Callable[..., Route]) -> None:
        route = self.waits(make_route(setup=self.PARTITIONED + "ALTER TABLE public.low ADD CHECK (id <> 3)"))
        assert route.flush([Sent(n, b'{"id":%d,"day":null}' % n) for n in range(5)]) == Outcome(rows=4, dead_letters=1)

    def test_of_a_partition_that_is_partitioned(self, make_route: Callable[..., Route]) -> None:
        route = self.waits(
            make_route(
                setup=self.PARTITIONED + "CREATE TABLE public.high PARTITION OF public.target"
                " FOR VALUES FROM (500) TO (600) PARTITION BY LIST (day)"
            )
        )
        with pytest.raises(NotTheRecords, match=r'PARTITION OF "public"\."high" FOR VALUES \.\.\.,'):
            route.flush([Sent(0, b'{"id":500,"day":"1970-01-01"}')])

    def test_of_a_list(self, make_route: Callable[..., Route]) -> None:
        setup = (
            "DROP TABLE public.target; CREATE TABLE public.target (id bigint NOT NULL, c text) PARTITION BY LIST (c)"
        )
        route = self.waits(make_route(setup=setup))
        with pytest.raises(NotTheRecords, match=r"FOR VALUES IN \('it''s'\), or set"):
            route.flush([Sent(0, orjson.dumps({"id": 1, "c": "it's"}))])

    @pytest.mark.parametrize("waits", [True, False])
    def test_of_an_upsert(self, connection: psycopg.Connection, waits: bool) -> None:
        """Its error names no row: it is looked for."""
        connection.execute(
            "CREATE TABLE public.kept (id bigint PRIMARY KEY, v int, note text) PARTITION BY RANGE (id);"
            "CREATE TABLE public.low PARTITION OF public.kept FOR VALUES FROM (0) TO (100)"
        )
        upserts = Upserts(connection)
        upserts.target = replace(upserts.target, waits_for_partition=waits)
        rows = [Row(500 if n == 7 else n, n) for n in range(10)]
        if waits:
            with pytest.raises(NotTheRecords, match=r"requests\[0\] at 7 has no partition"):
                upserts.flush(*rows)
            assert (upserts.kept(), upserts.dead()) == ({}, [])
        else:
            assert upserts.flush(*rows) == Outcome(rows=9, dead_letters=1)
            assert upserts.dead() == [(7, "23514")]


class TestLayouts:
    def test_who_was_named_before_what_it_needs_was_in(self, make_route: Callable[..., Route]) -> None:
        """Rows of one layout are copied together: a child came before its parent, which has other columns."""
        route = make_route(
            "a int DEFAULT 7, b text",
            setup="CREATE FUNCTION public.parent() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
            " IF NEW.b <> '' AND NOT EXISTS (SELECT FROM public.target WHERE id = NEW.b::bigint)"
            " THEN RAISE EXCEPTION 'no parent %', NEW.b; END IF; RETURN NEW; END$$;"
            "CREATE TRIGGER parent BEFORE INSERT ON public.target FOR EACH ROW EXECUTE FUNCTION public.parent()",
        )
        route.target = replace(route.target, layouts=(("id", "a", "b"), ("id", "a")))
        # Each second is a parent without `b`; its child follows. The last one has no parent at all.
        rows: list[tuple[int, tuple[object, ...]]] = [(0, (0, 1, ""))]
        for n in range(1, 40):
            rows += [(1, (n, 1)), (0, (100 + n, 1, str(n)))]
        rows.append((0, (999, 1, "777")))
        encoded = [binary(values) for _, values in rows]
        chunk = Chunk([Sent(n) for n in range(len(rows))], encoded, (), 0, [layout for layout, _ in rows])
        batch = Batch(0.0, buffer=bytearray(sum(map(len, encoded))), reason=FlushReason.LINGER)
        batch.append(chunk)
        batch.next_offsets = chunk.next_offsets()
        route.sink.flush(batch, route.target, route.positions)
        assert route.dead_offsets() == [len(rows) - 1]
        assert len(route.ids()) == len(rows) - 1


@contextmanager
def a_role(connection: psycopg.Connection) -> Iterator[str]:
    role = f"r_{uuid.uuid4().hex[:12]}"
    connection.execute(f"CREATE ROLE {role}".encode())
    try:
        yield role
    finally:
        connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())
