"""One batch, its dead letters, its progress and its ledger line: all of them in PostgreSQL, or none."""

from __future__ import annotations

import base64
import gc
import random
import struct
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
import pytest
from psycopg import sql

from kbatchd import config
from kbatchd.config import Postgres, RouteMapping
from kbatchd.encode.mapping import row_columns
from kbatchd.encode.rows import RowEncoder, build_encoder
from kbatchd.errors import BreakerOpen, Fenced, TableChanged
from kbatchd.model import CopyFormat, FlushReason, Partition
from kbatchd.postgres import catalogue
from kbatchd.postgres.connection import Verdict, connect, verdict
from kbatchd.schema import claiming
from kbatchd.schema.progress import Owner
from kbatchd.sink.batch import Batch, RouteBatches
from kbatchd.sink.batch_copy import Target
from kbatchd.sink.buffers import BufferPool
from kbatchd.sink.chunk import Chunk
from kbatchd.sink.insertion import MAX_WINDOWS, MIN_WINDOW_ROWS, Outcome
from kbatchd.sink.sink import Sink
from kbatchd.sink.targets import build_target, fill_batch
from tests.fix_daemon import wait_until
from tests.records import TOPIC, Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

P0, P1 = Partition(TOPIC, 0), Partition(TOPIC, 1)
BUFFER_BYTES = 1_048_576

#: So many refused rows, close to each other, take more than one transaction.
TWO_TRANSACTIONS = (MAX_WINDOWS + 1) * MIN_WINDOW_ROWS // 3


class Route:
    """A table, its encoder, and a claim: what the flusher has when it calls the sink."""

    def __init__(self, connection: psycopg.Connection, table: str, max_dead_letters: int = 0) -> None:
        self.connection = connection
        self.name = table
        self._max_dead_letters = max_dead_letters
        self.target, self.encoder = self.build()
        claiming.register(connection, self.target.owner, "id", {0: 0, 1: 0})
        claimed, _ = claiming.claim(connection, self.target.owner, {0: "id", 1: "id"})
        self.positions = {Partition(TOPIC, number): position for number, position in claimed.items()}
        self.sink = Sink(connection, lambda: None)

    def build(self) -> tuple[Target, RowEncoder]:
        table = catalogue.read_table(self.connection, self.name)
        encoder = build_encoder(row_columns(table, RouteMapping()))
        owner = Owner("pipe", "route", TOPIC, table.quoted, "worker-0")
        return Target(owner, table, [encoder.columns], self._max_dead_letters), encoder

    def batch(self, records: Sequence[Sent]) -> Batch:
        """Fill a batch as the poll loop does."""
        batches = RouteBatches(BufferPool(2 * BUFFER_BYTES, BUFFER_BYTES), 100_000)
        batches.reached = {partition: position.next_offset for partition, position in self.positions.items()}
        epochs = {partition: position.epoch for partition, position in self.positions.items()}
        rows: list[bytes] = []
        refused = self.encoder.encode(records, [record.value() for record in records], rows).refused
        assert batches.put(Chunk(records, rows, refused), epochs, 10.0) is None
        batches.close(FlushReason.LINGER, 13.0)
        (batch,) = batches.closed
        return batch

    def flush(self, records: Sequence[Sent]) -> Outcome:
        return self.sink.flush(self.batch(records), self.target, self.positions)

    def ids(self) -> list[int]:
        """What is in the table, sorted: compared with a list, it shows what is missing and what is double."""
        query = sql.SQL("SELECT id FROM {} ORDER BY id").format(sql.Identifier(self.name))
        return [row[0] for row in self.connection.execute(query)]

    def dead(self) -> list[tuple[Any, ...]]:
        return self.connection.execute(
            'SELECT partition, "offset", code, "column" FROM kbatchd.dead_letters ORDER BY partition, "offset"'
        ).fetchall()

    def dead_offsets(self) -> list[int]:
        return [offset for _, offset, *_ in self.dead()]

    def next_offsets(self) -> dict[int, int]:
        rows = self.connection.execute("SELECT partition, next_offset FROM kbatchd.progress").fetchall()
        assert dict(rows) == {partition.number: at.next_offset for partition, at in self.positions.items()}
        return dict(rows)

    def ledger(self) -> list[tuple[Any, ...]]:
        return self.connection.execute(
            "SELECT reason, rows, dead_letters, spans FROM kbatchd.batches ORDER BY id"
        ).fetchall()

    def is_untouched(self) -> bool:
        return not self.ids() and not self.dead() and not self.ledger()


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def make_route(connection: psycopg.Connection) -> Callable[..., Route]:
    """Make a table of these columns beside `id`, and a route to it."""

    def make(columns: str = "", *, max_dead_letters: int = 0, setup: str = "") -> Route:
        # With its schema: the role may have a schema of its own name, which comes first in the search path.
        connection.execute(f"CREATE TABLE public.target (id bigint NOT NULL{columns and ', ' + columns}); {setup}")
        connection.execute("SET search_path = public")
        return Route(connection, "target", max_dead_letters)

    return make


def sent(ids: Iterable[int], first: int = 0, number: int = 0, **fields: object) -> list[Sent]:
    """Records with these ids, their offsets in a row."""
    return [Sent(first + n, orjson.dumps({"id": i, **fields}), number) for n, i in enumerate(ids)]


def broken(records: Sequence[Sent], indexes: Iterable[int], value: bytes | None = b'{"id":"no"}') -> list[Sent]:
    """Replace some values by one that the encoder refuses."""
    at = set(indexes)
    return [Sent(r.at, value if n in at else r.body, r.number) for n, r in enumerate(records)]


class TestClean:
    def test_rows_progress_and_ledger(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        records = [*sent([1, 2, 3]), *sent([4], number=1, first=70)]
        assert route.flush(records) == Outcome(rows=4, dead_letters=0)
        assert route.ids() == [1, 2, 3, 4]
        assert route.next_offsets() == {0: 3, 1: 71}
        assert route.ledger() == [("linger", 4, 0, {TOPIC: {"0": [0, 3], "1": [0, 71]}})]

    def test_one_batch_after_another(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        route.flush(sent([1, 2]))
        route.flush(sent([3], first=9))
        assert route.ids() == [1, 2, 3]
        assert route.next_offsets() == {0: 10, 1: 0}
        assert [spans for *_, spans in route.ledger()] == [{TOPIC: {"0": [0, 2]}}, {TOPIC: {"0": [2, 10]}}]

    def test_ends_of_partitions_without_a_row(self, make_route: Callable[..., Route]) -> None:
        """A batch that only says: up to here there is nothing."""
        route = make_route()
        batch = Batch(0.0, next_offsets={P0: 8}, epochs={P0: 1}, reason=FlushReason.LINGER)
        assert route.sink.flush(batch, route.target, route.positions) == Outcome()
        assert route.next_offsets() == {0: 8, 1: 0}
        assert route.ledger() == [("linger", 0, 0, {TOPIC: {"0": [0, 8]}})]

    def test_an_end_behind_the_last_record(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        batch = route.batch(sent([1]))
        batch.next_offsets = batch.ends = {P0: 3, P1: 2}
        route.sink.flush(batch, route.target, route.positions)
        assert route.next_offsets() == {0: 3, 1: 2}


class TestRefusedByTheEncoder:
    def test_the_rest_of_the_batch_goes_in(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        assert route.flush(broken(sent(range(6)), [0, 3, 5])) == Outcome(rows=3, dead_letters=3)
        assert route.ids() == [1, 2, 4]
        assert route.dead() == [(0, offset, "wrong_type", "id") for offset in (0, 3, 5)]
        assert route.next_offsets() == {0: 6, 1: 0}

    def test_a_batch_of_nothing_else(self, make_route: Callable[..., Route]) -> None:
        """No row, no COPY, no buffer."""
        route = make_route()
        assert route.flush(broken(sent(range(3)), range(3))) == Outcome(rows=0, dead_letters=3)
        assert route.ids() == []
        assert route.dead_offsets() == [0, 1, 2]
        assert route.next_offsets() == {0: 3, 1: 0}

    def test_a_dead_letter_keeps_the_record_as_it_came(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        headers = [("trace", b"\x00\xff\xfe"), ("trace", b""), ("none", None), ("n\0l", b"x"), ("ü", "ü".encode())]
        records = [
            Sent(0, b"\x00\xff not JSON", 0, b"\x00key\xff", 1_700_000_000_123, headers),
            Sent(1, None, 0, None, -1, None),
            Sent(2, b"", 0, b"", 2**62, []),
        ]
        route.flush(records)
        rows = route.connection.execute(
            'SELECT pipeline, route, topic, "timestamp", key, value, headers, code, message FROM kbatchd.dead_letters '
            'ORDER BY "offset"'
        ).fetchall()
        first, second, third = rows
        assert first[:3] == ("pipe", "route", TOPIC)
        assert first[3] == datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC)
        assert first[4:6] == (b"\x00key\xff", b"\x00\xff not JSON")
        assert [(name, None if value is None else base64.b64decode(value)) for name, value in first[6]] == [
            ("trace", b"\x00\xff\xfe"),
            ("trace", b""),
            ("none", None),
            ("n\\0l", b"x"),
            ("ü", "ü".encode()),
        ]
        stamps = route.connection.execute('SELECT timestamp_ms FROM kbatchd.dead_letters ORDER BY "offset"').fetchall()
        assert stamps == [(1_700_000_000_123,), (-1,), (2**62,)]  # beyond what a time can hold, too
        assert first[7] == "not_json"
        assert second[3:8] == (None, None, None, None, "no_value")
        assert third[3:7] == (None, b"", b"", None)
        assert all(message for *_, message in rows)


class TestPoison:
    """Rows that PostgreSQL refuses: each case names the table and what makes a row of it good or bad."""

    RAISE = (
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN IF NEW.id % 100 = 13 THEN RAISE EXCEPTION ''unlucky %'', NEW.id; END IF; RETURN NEW; END';"
        "CREATE TRIGGER refuse {} INSERT ON public.target FOR EACH ROW EXECUTE FUNCTION public.refuse()"
    )
    BAD = (13, 113, 213, 214, 299)

    @pytest.mark.parametrize(
        ("columns", "good", "bad", "code"),
        [
            ("CHECK (id < 1000)", {}, {"id": 5000}, "23514"),
            ("UNIQUE (id)", {}, {"id": 0}, "23505"),
            ("UNIQUE (id) DEFERRABLE INITIALLY DEFERRED", {}, {"id": 0}, "23505"),
            ("n numeric(4,2)", {"n": 1}, {"n": 1000}, "22003"),
            ("note text, CHECK (note <> 'bad')", {"note": "good"}, {"note": "bad"}, "23514"),
            ("other bigint REFERENCES public.parent (id)", {"other": 1}, {"other": 2}, "23503"),
            (
                "other bigint REFERENCES public.parent (id) DEFERRABLE INITIALLY DEFERRED",
                {"other": 1},
                {"other": 2},
                "23503",
            ),
        ],
    )
    def test_each_bad_row_and_no_other(
        self,
        connection: psycopg.Connection,
        make_route: Callable[..., Route],
        columns: str,
        good: dict[str, object],
        bad: dict[str, object],
        code: str,
    ) -> None:
        connection.execute("CREATE TABLE public.parent (id bigint PRIMARY KEY); INSERT INTO public.parent VALUES (1)")
        route = make_route(columns)
        records = [Sent(i, orjson.dumps({"id": i, **good, **(bad if i in self.BAD else {})})) for i in range(300)]
        assert route.flush(records) == Outcome(rows=295, dead_letters=5)
        assert route.ids() == [i for i in range(300) if i not in self.BAD]
        assert route.dead_offsets() == list(self.BAD)
        assert {state for _, _, state, _ in route.dead()} == {code}
        assert route.next_offsets() == {0: 300, 1: 0}

    def test_not_null(self, make_route: Callable[..., Route]) -> None:
        """The encoder knows NOT NULL: only a trigger can bring such a row to PostgreSQL."""
        route = make_route(
            "note text NOT NULL",
            setup="CREATE FUNCTION public.blank() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN NEW.note := nullif(NEW.note, ''); RETURN NEW; END$$;"
            "CREATE TRIGGER blank BEFORE INSERT ON public.target FOR EACH ROW EXECUTE FUNCTION public.blank()",
        )
        records = [Sent(i, orjson.dumps({"id": i, "note": "" if i in self.BAD else "x"})) for i in range(300)]
        route.flush(records)
        assert route.dead() == [(0, offset, "23502", "note") for offset in self.BAD]
        assert route.ids() == [i for i in range(300) if i not in self.BAD]

    def test_jsonb(self, make_route: Callable[..., Route]) -> None:
        """A number of more digits than jsonb's numeric has: the encoder leaves it to PostgreSQL."""
        route = make_route("doc jsonb")
        records = [Sent(i, b'{"id":%d,"doc":[%s]}' % (i, b"1e200000" if i in self.BAD else b"1")) for i in range(300)]
        route.flush(records)
        assert route.dead() == [(0, offset, "22003", "doc") for offset in self.BAD]
        assert route.ids() == [i for i in range(300) if i not in self.BAD]

    @pytest.mark.parametrize("when", ["BEFORE", "AFTER"])
    def test_a_trigger(self, make_route: Callable[..., Route], when: str) -> None:
        """A BEFORE trigger's error names the line, an AFTER trigger's does not."""
        route = make_route(setup=self.RAISE.format(when))
        assert route.flush(sent(range(300))) == Outcome(rows=297, dead_letters=3)
        assert route.dead() == [(0, offset, "P0001", None) for offset in (13, 113, 213)]
        message = route.connection.execute("SELECT min(message) FROM kbatchd.dead_letters").fetchone()
        assert message == ("unlucky 113",)

    def test_a_trigger_with_a_code_of_its_own(self, make_route: Callable[..., Route]) -> None:
        refuse = self.RAISE.format("BEFORE").replace(", NEW.id; END", ", NEW.id USING ERRCODE = ''KB001''; END")
        route = make_route(setup=refuse)
        assert route.flush(sent(range(300))) == Outcome(rows=297, dead_letters=3)
        assert route.dead() == [(0, offset, "KB001", None) for offset in (13, 113, 213)]

    def test_a_trigger_that_is_broken_puts_the_route_on_hold(self, make_route: Callable[..., Route]) -> None:
        """Its error names a line too, but no row is to blame."""
        route = make_route(setup=self.RAISE.format("BEFORE").replace("NEW.id % 100", "NEW.gone % 100"))
        with pytest.raises(psycopg.errors.UndefinedColumn):
            route.flush(sent(range(300)))
        assert (route.ids(), route.dead()) == ([], [])

    def test_a_row_without_a_partition(self, make_route: Callable[..., Route]) -> None:
        """Its error is a check violation, and names the parent's line."""
        route = make_route(
            setup="DROP TABLE public.target;"
            "CREATE TABLE public.target (id bigint NOT NULL) PARTITION BY RANGE (id);"
            "CREATE TABLE public.low PARTITION OF public.target FOR VALUES FROM (0) TO (100)"
        )
        route.flush(sent([1, 100, 2, 500]))
        assert route.ids() == [1, 2]
        assert route.dead_offsets() == [1, 3]

    def test_one_that_was_named_because_of_another(
        self, connection: psycopg.Connection, make_route: Callable[..., Route]
    ) -> None:
        """A row is named for its id, which another has: and that one is refused for its parent, at the end only."""
        connection.execute("CREATE TABLE public.parent (id bigint PRIMARY KEY); INSERT INTO public.parent VALUES (1)")
        route = make_route("other bigint REFERENCES public.parent (id), UNIQUE (id)")
        others = [(1, 1), (7, 2), (2, 1), (7, 1), (3, 1)]
        route.flush([Sent(at, orjson.dumps({"id": id_, "other": other})) for at, (id_, other) in enumerate(others)])
        assert route.dead() == [(0, 1, "23503", None)]
        assert route.ids() == [1, 2, 3, 7]

    @pytest.mark.parametrize("bad", [[0], [1], [298], [299], [0, 1], [298, 299], [0, 299], list(range(10))])
    def test_at_the_edges(self, make_route: Callable[..., Route], bad: list[int]) -> None:
        route = make_route("CHECK (id >= 0)")
        route.flush(sent([-1 if i in bad else i for i in range(300)]))
        assert route.ids() == [i for i in range(300) if i not in bad]
        assert route.dead_offsets() == bad

    def test_a_table_whose_name_has_digits_and_quotes(self, connection: psycopg.Connection) -> None:
        connection.execute('CREATE TABLE public."COPY 7, li""ne" (id bigint NOT NULL CHECK (id > 0))')
        route = Route(connection, 'public."COPY 7, li""ne"')
        route.flush(sent([1, 2, -3, 4]))
        assert route.dead_offsets() == [2]
        assert connection.execute('SELECT count(*) FROM public."COPY 7, li""ne"').fetchone() == (3,)

    def test_among_what_the_encoder_refuses(self, make_route: Callable[..., Route]) -> None:
        route = make_route("CHECK (id >= 0)")
        records = broken(sent([-1 if i % 10 == 3 else i for i in range(100)]), [2, 4, 13, 99])
        assert route.flush(records) == Outcome(rows=87, dead_letters=13)
        dead = {3, 23, 33, 43, 53, 63, 73, 83, 93} | {2, 4, 13, 99}
        assert set(route.dead_offsets()) == dead
        assert route.ids() == [i for i in range(100) if i not in dead]

    @pytest.mark.parametrize("named", [True, False])
    def test_more_than_one_transaction_takes(self, make_route: Callable[..., Route], named: bool) -> None:
        """After MAX_WINDOWS the prefix is committed with its progress, and a new transaction goes on."""
        route = make_route() if named else make_route(setup=self.RAISE.format("AFTER"))
        if named:
            route.connection.execute("ALTER TABLE target ADD CHECK (id % 100 <> 13)")
            route.target, route.encoder = route.build()
        count = 3 * TWO_TRANSACTIONS if named else 300  # it takes several COPYs to find one that is not named
        records = sent([13 if i % 3 == 0 else i * 100 for i in range(count)])
        assert route.flush(records) == Outcome(rows=count * 2 // 3, dead_letters=count // 3)
        assert route.ids() == [i * 100 for i in range(count) if i % 3]
        assert route.dead_offsets() == list(range(0, count, 3))
        ledger = route.ledger()
        assert len(ledger) > 1
        assert sum(dead for _, _, dead, _ in ledger) == count // 3
        assert sum(rows for _, rows, _, _ in ledger) == count * 2 // 3
        spans = [spans[TOPIC]["0"] for *_, spans in ledger]
        assert [first for first, _ in spans] == [0, *(end for _, end in spans[:-1])]
        assert route.next_offsets() == {0: count, 1: 0}

    def test_the_batches_after_a_poisoned_one(self, make_route: Callable[..., Route]) -> None:
        """They go in by windows: larger than one, with poison or without, and with no record at all."""
        route = make_route("CHECK (id >= 0)")
        route.flush(sent([1, -1]))
        route.flush(sent([-1 if i == 4_321 else i for i in range(5_000)], first=2))
        batch = Batch(0.0, next_offsets={P1: 8}, epochs={P1: 1}, reason=FlushReason.LINGER)
        route.sink.flush(batch, route.target, route.positions)
        route.flush(sent([-1, 7], first=5_002))
        assert route.flush(broken(sent([8, 9, 10], first=5_004), [1])) == Outcome(rows=2, dead_letters=1)
        assert route.ids() == sorted([1, *(i for i in range(5_000) if i != 4_321), 7, 8, 10])
        assert route.dead_offsets() == [1, 4_323, 5_002, 5_005]
        assert route.next_offsets() == {0: 5_007, 1: 8}

    def test_of_two_partitions(self, make_route: Callable[..., Route]) -> None:
        """A prefix holds other records of each partition than the whole."""
        route = make_route("CHECK (id >= 0)")
        records = []
        for n in range(150):
            records += [Sent(n, b'{"id":-1}', 0), Sent(1_000 + n, b'{"id":%d}' % n, 1)]
        route.flush(records)
        assert route.ids() == list(range(150))
        assert len(route.dead()) == 150
        assert route.next_offsets() == {0: 150, 1: 1_150}

    def test_nothing_but_poison(self, make_route: Callable[..., Route]) -> None:
        route = make_route("CHECK (id >= 0)")
        assert route.flush(sent([-1] * 70)) == Outcome(rows=0, dead_letters=70)
        assert route.next_offsets() == {0: 70, 1: 0}


class TestOnSent:
    """What would delay the rows is done while PostgreSQL works on them."""

    WAIT = (
        "CREATE FUNCTION public.wait() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN PERFORM pg_advisory_xact_lock(7); RETURN NEW; END$$;"
        "CREATE TRIGGER wait BEFORE INSERT ON public.target FOR EACH ROW EXECUTE FUNCTION public.wait()"
    )

    @pytest.mark.parametrize("poison_before", [False, True])
    def test_while_the_rows_are_being_inserted(
        self, database: str, make_route: Callable[..., Route], poison_before: bool
    ) -> None:
        route = make_route("CHECK (id >= 0)", setup=self.WAIT)
        pid = route.connection.info.backend_pid
        waiting = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'advisory'"
        seen: list[bool] = []
        with psycopg.connect(database, autocommit=True) as other:

            def on_sent() -> None:
                if other.execute(
                    "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
                ).fetchone():
                    try:
                        wait_until(lambda: bool(other.execute(waiting, (pid,)).fetchone()), 10, "the insertion to wait")
                        seen.append(True)
                    finally:
                        other.execute("SELECT pg_advisory_unlock_all()")

            route.sink = Sink(route.connection, on_sent)
            # Given: after a batch with poison the next one goes in by windows.
            ids = [-1 if poison_before and n == 100 else n for n in range(300)]
            route.flush(sent(ids))
            # When: an insertion, of more than libpq keeps back, waits for a lock that only `on_sent` gives back.
            other.execute("SELECT pg_advisory_lock(7)")
            route.flush(sent(range(300, 3_300), first=300))
        assert seen == [True]
        assert route.ids() == [*(n for n in ids if n >= 0), *range(300, 3_300)]


class TestFenced:
    @pytest.mark.parametrize("what", ["epoch = epoch + 1", "next_offset = next_offset + 5"])
    @pytest.mark.parametrize("poisoned", [False, True])
    def test_nothing_is_written(self, make_route: Callable[..., Route], what: str, poisoned: bool) -> None:
        route = make_route("CHECK (id >= 0)")
        before = dict(route.positions)
        batch = route.batch([*sent([1, -2 if poisoned else 2]), *sent([3], number=1)])
        route.connection.execute(f"UPDATE kbatchd.progress SET {what} WHERE partition = 1")
        with pytest.raises(Fenced) as caught:
            route.sink.flush(batch, route.target, route.positions)
        assert caught.value.partitions == (P1,)
        assert route.is_untouched()
        assert route.positions == before

    def test_between_the_transactions_of_a_poisoned_batch(self, make_route: Callable[..., Route]) -> None:
        """What was committed before stays, and the positions know it."""
        route = make_route(
            setup="""
            CREATE FUNCTION public.take_over() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                UPDATE kbatchd.progress SET epoch = epoch + 1; RETURN NULL; END $$;
            CREATE TRIGGER take_over AFTER INSERT ON kbatchd.batches EXECUTE FUNCTION public.take_over()"""
        )
        route.connection.execute("ALTER TABLE target ADD CHECK (id >= 0)")
        route.target, route.encoder = route.build()
        records = sent([-1 if i % 3 == 0 else i for i in range(3 * TWO_TRANSACTIONS)])
        with pytest.raises(Fenced):
            route.flush(records)
        reached = route.positions[P0].next_offset
        assert route.positions[P0][:2] == (1, reached)
        assert route.dead_offsets() == list(range(0, reached, 3))
        assert len(route.ledger()) == 1
        assert route.ids() == [i for i in range(reached) if i % 3]


class TestTableChanged:
    @pytest.mark.parametrize(
        "change",
        [
            "ALTER COLUMN x TYPE bigint USING 0",  # its eight bytes are as good as a float8's
            "ALTER COLUMN x TYPE timestamptz USING now()",
            "ALTER COLUMN x SET NOT NULL",
            "ADD COLUMN y int",
            "ADD COLUMN z text NOT NULL",  # every row is refused now: none is to blame
            "RENAME id TO y; ALTER TABLE target RENAME x TO id; ALTER TABLE target RENAME y TO x",
        ],
    )
    def test_nothing_is_written(self, make_route: Callable[..., Route], change: str) -> None:
        route = make_route("x float8")
        route.connection.execute("ALTER TABLE target ALTER COLUMN id DROP NOT NULL")
        route.target, route.encoder = route.build()
        batch = route.batch(sent(range(100), x=1.5))
        route.connection.execute(f"ALTER TABLE target {change}")
        before = dict(route.positions)
        with pytest.raises(TableChanged):
            route.sink.flush(batch, route.target, route.positions)
        assert route.is_untouched()
        assert route.positions == before

        route.target, route.encoder = route.build()

    def test_good_rows_of_another_type_are_no_dead_letters(self, make_route: Callable[..., Route]) -> None:
        """int8's zero bytes are no text: PostgreSQL refuses each row as poison."""
        route = make_route("x bigint")
        batch = route.batch(sent(range(100), x=1))
        route.connection.execute("ALTER TABLE target ALTER COLUMN x TYPE text")
        with pytest.raises(TableChanged):
            route.sink.flush(batch, route.target, route.positions)
        assert route.is_untouched()

        route.target, route.encoder = route.build()
        route.flush(sent(range(100), x="1"))
        assert route.ids() == list(range(100))

    @pytest.mark.parametrize("change", ["ALTER COLUMN x TYPE bigint", "ALTER COLUMN x TYPE numeric", "DROP COLUMN x"])
    def test_what_postgresql_cannot_read_any_more(self, make_route: Callable[..., Route], change: str) -> None:
        """Neither the connection nor the route is to blame."""
        route = make_route("x int")
        batch = route.batch(sent(range(100), x=1))
        route.connection.execute(f"ALTER TABLE target {change}".encode())
        with pytest.raises(TableChanged):
            route.sink.flush(batch, route.target, route.positions)
        assert route.is_untouched()

    def test_a_table_recreated(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        batch = route.batch(sent([1]))
        route.connection.execute("DROP TABLE target; CREATE TABLE public.target (id bigint NOT NULL)")
        with pytest.raises(TableChanged):
            route.sink.flush(batch, route.target, route.positions)
        assert route.is_untouched()

    def test_a_table_that_is_gone_puts_the_route_on_hold(self, make_route: Callable[..., Route]) -> None:
        route = make_route()
        batch = route.batch(sent([1]))
        route.connection.execute("ALTER TABLE target RENAME TO elsewhere")
        with pytest.raises(psycopg.errors.UndefinedTable) as caught:
            route.sink.flush(batch, route.target, route.positions)
        assert verdict(caught.value, broken=route.connection.broken) is Verdict.HOLD
        route.connection.execute("ALTER TABLE elsewhere RENAME TO target")
        assert route.is_untouched()
        route.sink.flush(batch, route.target, route.positions)
        assert route.ids() == [1]


class TestBreaker:
    LIMIT = 5

    @pytest.mark.parametrize("by", ["encoder", "PostgreSQL"])
    def test_so_many_in_a_row_and_not_one_more(self, make_route: Callable[..., Route], by: str) -> None:
        route = make_route("CHECK (id >= 0)", max_dead_letters=self.LIMIT)
        records = refused_by(by, 10, range(2, 10))
        with pytest.raises(BreakerOpen, match="more than 5 dead letters in a row"):
            route.flush(records)
        assert route.ids() == [0, 1]
        assert route.dead_offsets() == [2, 3, 4, 5, 6]
        assert route.next_offsets() == {0: 7, 1: 0}

    @pytest.mark.parametrize("by", ["encoder", "PostgreSQL"])
    def test_exactly_the_limit_is_let_through(self, make_route: Callable[..., Route], by: str) -> None:
        route = make_route("CHECK (id >= 0)", max_dead_letters=self.LIMIT)
        route.flush(refused_by(by, 10, [0, 1, 2, 3, 4, 6, 7, 8, 9]))
        assert route.ids() == [5]
        assert route.next_offsets() == {0: 10, 1: 0}

    @pytest.mark.parametrize("by", ["encoder", "PostgreSQL"])
    def test_the_row_goes_on_from_batch_to_batch(self, make_route: Callable[..., Route], by: str) -> None:
        route = make_route("CHECK (id >= 0)", max_dead_letters=self.LIMIT)
        for first in (0, 3):
            records = refused_by(by, 3, range(3), first)
            if first == 0:
                route.flush(records)
            else:
                with pytest.raises(BreakerOpen):
                    route.flush(records)
        assert route.dead_offsets() == [0, 1, 2, 3, 4]
        ledger = route.ledger()
        with pytest.raises(BreakerOpen):  # and stays open
            route.flush(refused_by(by, 3, range(3), 5))
        assert route.dead_offsets() == [0, 1, 2, 3, 4]
        assert route.ledger() == ledger

    def test_a_good_row_ends_it(self, make_route: Callable[..., Route]) -> None:
        route = make_route(max_dead_letters=self.LIMIT)
        for first in range(0, 40, 4):
            route.flush(refused_by("encoder", 4, [1, 2, 3], first))
        assert len(route.dead()) == 30

    def test_0_is_off(self, make_route: Callable[..., Route]) -> None:
        route = make_route("CHECK (id >= 0)")
        assert route.flush([*refused_by("encoder", 50, range(50)), *refused_by("PostgreSQL", 50, range(50), 50)]) == (
            Outcome(rows=0, dead_letters=100)
        )


def refused_by(whom: str, count: int, indexes: Iterable[int], first: int = 0) -> list[Sent]:
    """Records of which those at `indexes` are refused, by the encoder or by `CHECK (id >= 0)`."""
    records = sent(range(first, first + count), first)
    return broken(records, indexes, b'{"id":true}' if whom == "encoder" else b'{"id":-1}')


def test_a_retried_batch_goes_in_once(make_route: Callable[..., Route], database: str) -> None:
    """A lock of others: the flush fails without a trace, and the same batch goes in afterwards."""
    route = make_route()
    batch = route.batch(sent([1, 2]))
    route.connection.execute("SET lock_timeout = '50ms'")
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE public.target IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
            route.sink.flush(batch, route.target, route.positions)
    assert verdict(caught.value, broken=route.connection.broken) is Verdict.RETRY
    assert route.is_untouched()
    route.sink.flush(batch, route.target, route.positions)
    assert route.ids() == [1, 2]


def test_a_killed_session_leaves_nothing(make_route: Callable[..., Route], database: str) -> None:
    route = make_route()
    batch = route.batch(sent([1, 2]))
    with psycopg.connect(database, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (route.connection.info.backend_pid,))
        with pytest.raises(psycopg.OperationalError) as caught:
            route.sink.flush(batch, route.target, route.positions)
        assert verdict(caught.value, broken=route.connection.broken) is Verdict.RECONNECT
        assert other.execute("SELECT count(*) FROM public.target").fetchone() == (0,)


def test_a_poisoned_batch_leaves_no_cycle(make_route: Callable[..., Route]) -> None:
    """A worker's collector is off: an exception that keeps its frames keeps the batch, for good."""
    route = make_route("CHECK (id >= 0)")
    records = refused_by("PostgreSQL", 500, range(0, 500, 7))
    gc.collect()
    gc.disable()
    try:
        route.flush(records)
        assert gc.collect() < 50
    finally:
        gc.enable()


class TestLayouts:
    """Rows that lack some columns: one COPY for each set of columns, all in one transaction."""

    LAYOUTS = (("id", "a", "b"), ("id", "b"), ("id",))

    def route(self, make_route: Callable[..., Route], copy_format: CopyFormat) -> Route:
        route = make_route("a int DEFAULT 7, b text DEFAULT 'none' CHECK (b <> 'bad'), CHECK (id >= 0)")
        route.target = replace(route.target, layouts=self.LAYOUTS, copy_format=copy_format)
        return route

    def batch(self, rows: Sequence[tuple[int, Sequence[object]]], copy_format: CopyFormat) -> Batch:
        encoded = [text(values) if copy_format is CopyFormat.TEXT else binary(values) for _, values in rows]
        records = [Sent(offset) for offset in range(len(rows))]
        chunk = Chunk(records, encoded, (), 0, [layout for layout, _ in rows])
        batch = Batch(0.0, buffer=bytearray(sum(map(len, encoded))), reason=FlushReason.LINGER)
        batch.append(chunk)
        batch.next_offsets = chunk.next_offsets()
        return batch

    @pytest.mark.parametrize("copy_format", list(CopyFormat))
    def test_each_gets_its_defaults(self, make_route: Callable[..., Route], copy_format: CopyFormat) -> None:
        route = self.route(make_route, copy_format)
        rows = [(0, (1, 1, "x\\\t\n")), (2, (2,)), (1, (3, "")), (0, (4, None, None)), (2, (5,))]
        route.sink.flush(self.batch(rows, copy_format), route.target, route.positions)
        assert route.connection.execute("SELECT id, a, b FROM target ORDER BY id").fetchall() == [
            (1, 1, "x\\\t\n"), (2, 7, "none"), (3, 7, ""), (4, None, None), (5, 7, "none")
        ]  # fmt: skip

    @pytest.mark.parametrize("copy_format", list(CopyFormat))
    def test_poison_names_its_record(self, make_route: Callable[..., Route], copy_format: CopyFormat) -> None:
        route = self.route(make_route, copy_format)
        rows: list[tuple[int, Sequence[object]]] = []
        bad = set()
        for index in range(400):
            layout, poison = random.randrange(3), random.random() < 0.05
            values = (-1 - index if poison and layout == 2 else index, 5, "bad" if poison else "good\n")
            rows.append((layout, (values[0], values[2]) if layout == 1 else values[: 3 if layout == 0 else 1]))
            if poison:
                bad.add(index)
        route.sink.flush(self.batch(rows, copy_format), route.target, route.positions)
        assert route.dead_offsets() == sorted(bad)
        assert route.ids() == [index for index in range(400) if index not in bad]
        assert route.next_offsets() == {0: 400, 1: 0}

    def test_what_an_input_function_refuses(self, make_route: Callable[..., Route]) -> None:
        """In text format PostgreSQL reads the values itself, and names the line and the column."""
        route = self.route(make_route, CopyFormat.TEXT)
        rows = [(0, (n, "no number" if n in {3, 70} else n, "x")) for n in range(100)]
        route.sink.flush(self.batch(rows, CopyFormat.TEXT), route.target, route.positions)
        assert route.dead() == [(0, 3, "22P02", "a"), (0, 70, "22P02", "a")]

    def test_what_an_extensions_input_function_refuses(
        self, connection: psycopg.Connection, make_route: Callable[..., Route]
    ) -> None:
        """To ltree a bad value is a syntax error: the row's, not our statement's."""
        connection.execute("CREATE EXTENSION ltree")
        route = make_route("a ltree, b text")
        route.target = replace(route.target, layouts=self.LAYOUTS, copy_format=CopyFormat.TEXT)
        rows = [(0, (n, "a b" if n in {3, 70} else "a.b", "x")) for n in range(100)]
        route.sink.flush(self.batch(rows, CopyFormat.TEXT), route.target, route.positions)
        assert route.dead() == [(0, 3, "42601", "a"), (0, 70, "42601", "a")]
        assert len(route.ids()) == 98


def test_arrays_of_a_text_route_keep_their_nulls(database: str, connection: psycopg.Connection) -> None:
    """A role or a database may have `array_nulls = off`, which takes NULL for a word."""
    connection.execute("CREATE TABLE public.target (id bigint NOT NULL, span int4range, words text[], numbers int[])")
    connection.execute(f"ALTER DATABASE {connection.info.dbname} SET array_nulls = off".encode())
    settings = Postgres(dsn=database, allow_insecure=True)
    with connect(settings, "test") as ours:
        table = catalogue.read_table(ours, "public.target")
        target, encoder = build_target("pipe", config.Route(topic=TOPIC, table="public.target"), "worker-0", table)
        assert target.copy_format is CopyFormat.TEXT
        records = [Sent(0, b'{"id":1,"span":"[1,2)","words":["a",null,"null"],"numbers":[1,null]}')]
        Sink(ours, lambda: None).flush(fill_batch(encoder, records, [records[0].body]), target, {})
    assert connection.execute("SELECT words, numbers FROM public.target").fetchall() == [
        (["a", None, "null"], [1, None])
    ]


class TestBreakerIsExact:
    @pytest.mark.parametrize("limit", [1, 3, 40])
    def test_in_any_mixture(self, make_route: Callable[..., Route], limit: int) -> None:
        """The encoder's refusals and PostgreSQL's in turn, in several batches: it opens at the one too many."""
        route = make_route("CHECK (id >= 0)", max_dead_letters=limit)
        weights = (1, limit, limit)
        kinds = list(random.choices("gep", weights, k=1_200))
        run = 0
        expected = len(kinds)
        for index, kind in enumerate(kinds):
            run = 0 if kind == "g" else run + 1
            if run > limit:
                expected = index
                break
        values = {"g": b'{"id":1}', "e": b'{"id":"no"}', "p": b'{"id":-1}'}
        records = [Sent(offset, values[kind]) for offset, kind in enumerate(kinds)]
        opened = False
        while records and not opened:
            count = random.randrange(1, 300)
            try:
                route.flush(records[:count])
            except BreakerOpen:
                opened = True
            records = records[count:]
        assert opened == (expected < len(kinds))
        assert route.next_offsets()[0] == expected
        assert route.dead_offsets() == [index for index in range(expected) if kinds[index] != "g"]


def binary(values: Sequence[object]) -> bytes:
    """Encode (id bigint, a int, b text), or a part of it, for a binary COPY."""
    parts = [struct.pack(">h", len(values))]
    for index, value in enumerate(values):
        if value is None:
            parts.append(b"\xff\xff\xff\xff")
            continue
        field = value.encode() if isinstance(value, str) else struct.pack(">i" if index else ">q", value)
        parts += struct.pack(">i", len(field)), field
    return b"".join(parts)


def text(values: Sequence[object]) -> bytes:
    """Encode the same for a COPY in text format."""
    escapes = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n"})
    return "\t".join("\\N" if value is None else str(value).translate(escapes) for value in values).encode() + b"\n"
