"""Rows that meet rows of the same key: staged, merged, deleted, refused, in one transaction with their progress."""

from __future__ import annotations

import random
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import psycopg
import pytest
from psycopg import sql

from kbatchd.config import Route
from kbatchd.errors import ConfigError, TableChanged
from kbatchd.model import DELETED, FlushReason, Partition
from kbatchd.postgres import catalogue
from kbatchd.postgres.books import Books
from kbatchd.schema import claiming
from kbatchd.schema.progress import Owner
from kbatchd.sink.batch import Batch
from kbatchd.sink.batch_copy import Target
from kbatchd.sink.chunk import Chunk
from kbatchd.sink.insertion import Outcome
from kbatchd.sink.sink import Sink
from kbatchd.sink.upsert import VACUUM_SECONDS, build_merge
from tests.fix_daemon import wait_until
from tests.records import TOPIC, Sent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import LiteralString

P0 = Partition(TOPIC, 0)
COLUMNS = ("id", "v", "note")


class Row(NamedTuple):
    """A record as the encoder gives it for the table `kept`."""

    id: int
    v: int | None = None
    note: str | None = None
    deleted: bool = False

    def encode(self, *, deletes: bool) -> bytes:
        note = None if self.note is None else self.note.encode()
        fields = [
            struct.pack(">q", self.id),
            None if self.v is None else struct.pack(">i", self.v),
            note,
            *([struct.pack(">?", self.deleted)] if deletes else []),
        ]
        packed = [b"\xff\xff\xff\xff" if field is None else struct.pack(">i", len(field)) + field for field in fields]
        return struct.pack(">h", len(fields)) + b"".join(packed)


class Upserts:
    """A table with a key, and one claimed partition."""

    def __init__(
        self,
        connection: psycopg.Connection,
        *,
        insert_only: bool = False,
        may_merge: bool = True,
        key: tuple[str, ...] = ("id",),
    ) -> None:
        """`may_merge`: as this server and this table allow; else as if the server were an old one."""
        self.connection = connection
        self._may_merge = may_merge
        self.route = Route(topic=TOPIC, table="public.kept", mode="upsert", key=key, insert_only=insert_only)
        self.sink = Sink(connection, lambda: None)
        self.target = self.build()
        claiming.register(connection, self.target.owner, "id", {0: 0})
        claimed, _ = claiming.claim(connection, self.target.owner, {0: "id"})
        self.positions = {P0: claimed[0]}

    def build(self) -> Target:
        table = catalogue.read_table(self.connection, self.route.table)
        table = replace(table, mergeable=table.mergeable and self._may_merge)
        columns = COLUMNS if self.route.insert_only else (*COLUMNS, DELETED)
        owner = Owner("pipe", "route", TOPIC, table.quoted, "worker-0")
        return Target(owner, table, [columns], 0, merge=build_merge(self.route, table, columns))

    def flush(self, *rows: Row) -> Outcome:
        start = self.positions[P0].next_offset
        encoded = [row.encode(deletes=not self.route.insert_only) for row in rows]
        batch = Batch(0.0, buffer=bytearray(sum(map(len, encoded))), reason=FlushReason.LINGER)
        chunk = Chunk([Sent(start + index) for index in range(len(rows))], encoded)
        batch.append(chunk)
        batch.next_offsets = chunk.next_offsets()
        return self.sink.flush(batch, self.target, self.positions)

    def flush_beside(self, statement: LiteralString, *rows: Row, end: LiteralString = "COMMIT") -> Outcome:
        """Flush while another program has done something, which it commits when the flush waits for it."""
        with psycopg.connect(self.connection.info.dsn, autocommit=True) as other, ThreadPoolExecutor() as threads:
            other.execute("BEGIN")
            other.execute(statement)
            flushed = threads.submit(self.flush, *rows)
            waits = "SELECT 1 WHERE pg_backend_pid() = ANY (pg_blocking_pids(%s))"
            pid = self.connection.info.backend_pid
            wait_until(lambda: other.execute(waits, (pid,)).fetchone(), 10, "the flush to wait")
            other.execute(end)
            return flushed.result()

    def kept(self) -> dict[int, int | None]:
        return dict(self.connection.execute("SELECT id, v FROM public.kept ORDER BY id").fetchall())

    def dead(self) -> list[tuple[int, str]]:
        return self.connection.execute('SELECT "offset", code FROM kbatchd.dead_letters ORDER BY "offset"').fetchall()

    def staging(self) -> tuple[int, ...]:
        """What the catalogue says of the staging table: its oid, its file, its age."""
        assert self.target.merge is not None
        row = self.connection.execute(
            "SELECT oid, relfilenode, age(relfrozenxid) FROM pg_class WHERE oid = %s::regclass",
            (f"pg_temp.{self.target.merge.staging}",),
        ).fetchone()
        assert row is not None
        return row


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.kept (id bigint PRIMARY KEY, v int, note text)")
        yield connection


@pytest.fixture(params=[True, False], ids=["merge", "insert"])
def upserts(connection: psycopg.Connection, request: pytest.FixtureRequest) -> Upserts:
    return Upserts(connection, may_merge=request.param)


class TestMerge:
    def test_the_last_of_a_key_wins_in_a_batch_and_across(self, upserts: Upserts) -> None:
        assert upserts.flush(Row(1, 10), Row(2, 20), Row(1, 11)) == Outcome(rows=3)
        assert upserts.kept() == {1: 11, 2: 20}
        upserts.flush(Row(2, 21), Row(3, 30))
        assert upserts.kept() == {1: 11, 2: 21, 3: 30}
        assert upserts.positions[P0].next_offset == 5

    def test_a_null_is_a_value(self, upserts: Upserts) -> None:
        upserts.flush(Row(1, 10, "x"))
        upserts.flush(Row(1, None, None))
        assert upserts.connection.execute("SELECT * FROM public.kept").fetchall() == [(1, None, None)]

    def test_deletes(self, upserts: Upserts) -> None:
        upserts.flush(Row(1, 10), Row(2, 20), Row(3, 30))
        upserts.flush(
            Row(1, deleted=True),
            Row(2, deleted=True),
            Row(2, 21),
            Row(4, 40),
            Row(4, deleted=True),
            Row(9, deleted=True),
        )
        assert upserts.kept() == {2: 21, 3: 30}

    def test_the_order_of_arrival_and_not_the_place_in_the_staging_table(self, upserts: Upserts) -> None:
        """Small rows go into gaps that large ones have left on earlier pages."""
        rows = [Row(n % 50, n, "x" * random.choice([10, 300, 1_500])) for n in range(5_000)]
        upserts.flush(*rows)
        assert upserts.kept() == {n: 4_950 + n for n in range(50)}

    def test_insert_only_keeps_the_first(self, connection: psycopg.Connection) -> None:
        upserts = Upserts(connection, insert_only=True)
        upserts.flush(Row(1, 10), Row(1, 11), Row(2, 20))
        upserts.flush(Row(2, 21), Row(3, 30))
        assert upserts.kept() == {1: 10, 2: 20, 3: 30}

    def test_a_table_of_nothing_but_its_key(self, connection: psycopg.Connection) -> None:
        connection.execute("CREATE TABLE public.pairs (a int, b int, PRIMARY KEY (b, a))")
        table = catalogue.read_table(connection, "public.pairs")
        route = Route(topic=TOPIC, table="public.pairs", mode="upsert", key=("a", "b"))
        merge = build_merge(route, table, ("a", "b", DELETED))
        assert b"DO NOTHING" in merge.insert.as_bytes(connection)

    def test_model(self, upserts: Upserts) -> None:
        """Random batches against a dict."""
        kept: dict[int, int | None] = {}
        for _ in range(15):
            rows = [Row(random.randrange(30), random.randrange(1_000), None, random.random() < 0.3) for _ in range(40)]
            rows = [row._replace(v=None) if row.deleted else row for row in rows]
            for row in rows:
                kept.pop(row.id, None)
                if not row.deleted:
                    kept[row.id] = row.v
            upserts.flush(*rows)
            assert upserts.kept() == kept


class TestRefused:
    def test_the_next_older_is_merged(self, upserts: Upserts) -> None:
        upserts.connection.execute("ALTER TABLE public.kept ADD CHECK (v >= 0)")
        outcome = upserts.flush(Row(1, 10), Row(1, 11), Row(1, -1), Row(2, -1), Row(3, 30), Row(2, 20), Row(4, -1))
        assert (outcome.rows, outcome.dead_letters) == (4, 3)
        assert upserts.kept() == {1: 11, 2: 20, 3: 30}
        assert upserts.dead() == [(2, "23514"), (3, "23514"), (6, "23514")]

    def test_one_that_a_later_one_replaced_is_never_tried(self, upserts: Upserts) -> None:
        upserts.connection.execute("ALTER TABLE public.kept ADD CHECK (v >= 0)")
        assert upserts.flush(Row(1, -1), Row(1, 10)) == Outcome(rows=2)
        assert upserts.kept() == {1: 10}

    def test_a_delete_that_a_foreign_key_refuses(self, upserts: Upserts) -> None:
        upserts.connection.execute(
            "CREATE TABLE public.child (id bigint REFERENCES public.kept DEFERRABLE INITIALLY DEFERRED)"
        )
        upserts.flush(*[Row(n, n) for n in range(20)])
        upserts.connection.execute("INSERT INTO public.child VALUES (7)")
        upserts.flush(*[Row(n, None, None, n % 2 == 1) for n in range(20)])
        assert upserts.kept() == {**dict.fromkeys(range(0, 20, 2)), 7: 7}
        assert upserts.dead() == [(27, "23503")]

    def test_what_the_staging_table_refuses(self, connection: psycopg.Connection) -> None:
        """A domain's constraint holds there too, and names the line."""
        connection.execute(
            "CREATE DOMAIN public.positive AS int CHECK (VALUE >= 0); "
            "ALTER TABLE public.kept ALTER v TYPE public.positive"
        )
        upserts = Upserts(connection)
        upserts.flush(*[Row(n % 40, -1 if n in {13, 60} else n) for n in range(80)])
        assert upserts.kept() == {n: 20 if n == 20 else 40 + n for n in range(40)}
        assert upserts.dead() == [(13, "23514"), (60, "23514")]

    def test_many(self, upserts: Upserts) -> None:
        """More than one transaction takes."""
        upserts.connection.execute("ALTER TABLE public.kept ADD CHECK (v % 7 <> 0)")
        upserts.flush(*[Row(n % 100, n) for n in range(600)])
        assert upserts.kept() == {n % 100: n for n in range(600) if n % 7}
        assert len(upserts.dead()) == len(range(0, 600, 7))


class TestOthers:
    """Another program writes the same row; the flush waits, and what is there at its end is the record."""

    def test_inserted(self, upserts: Upserts) -> None:
        """No dead letter for the key that was not there when the merge began; and the next batch goes at once."""
        outcome = upserts.flush_beside("INSERT INTO public.kept VALUES (2, -2)", *[Row(n, n) for n in range(400)])
        assert outcome == Outcome(rows=400)
        upserts.flush(Row(2, 20))
        assert upserts.kept() == {n: 20 if n == 2 else n for n in range(400)}
        assert upserts.dead() == []
        ledger = upserts.connection.execute("SELECT rows FROM kbatchd.batches ORDER BY committed_at").fetchall()
        assert ledger == [(400,), (1,)]

    @pytest.mark.parametrize(
        ("statement", "end", "others"),
        [
            ("UPDATE public.kept SET v = -2, note = 'theirs' WHERE id = 2", "COMMIT", {}),
            ("UPDATE public.kept SET v = -2, note = 'theirs' WHERE id = 2", "ROLLBACK", {}),
            ("DELETE FROM public.kept WHERE id = 2", "COMMIT", {}),
            ("DELETE FROM public.kept WHERE id = 2", "ROLLBACK", {}),
            ("INSERT INTO public.kept VALUES (4, -4)", "ROLLBACK", {}),
            ("UPDATE public.kept SET id = 9, v = -9 WHERE id = 2", "COMMIT", {9: -9}),
            ("UPDATE public.kept SET id = 4 WHERE id = 2", "COMMIT", {}),
        ],
    )
    def test_changed(
        self, upserts: Upserts, statement: LiteralString, end: LiteralString, others: dict[int, int]
    ) -> None:
        upserts.flush(*[Row(n, n) for n in range(4)])
        upserts.flush_beside(statement, *[Row(n, n * 10, "ours") for n in range(5)], end=end)
        assert upserts.kept() == {n: n * 10 for n in range(5)} | others
        assert upserts.dead() == []

    def test_insert_only(self, connection: psycopg.Connection) -> None:
        upserts = Upserts(connection, insert_only=True)
        upserts.flush_beside("INSERT INTO public.kept VALUES (2, -2)", Row(1, 1), Row(2, 2), Row(3, 3))
        assert upserts.kept() == {1: 1, 2: -2, 3: 3}


class TestStatement:
    """MERGE where it does the same as INSERT ... ON CONFLICT, and that one elsewhere."""

    def test_of_a_new_server(self, connection: psycopg.Connection) -> None:
        merge = Upserts(connection).target.merge
        assert merge is not None
        assert (merge.merge is not None) == (connection.info.server_version >= 170_000)

    @pytest.mark.parametrize(
        "change",
        [
            "CREATE RULE r AS ON DELETE TO public.kept DO ALSO NOTIFY r",
            "CREATE TRIGGER t BEFORE INSERT ON public.kept FOR EACH ROW EXECUTE FUNCTION kept()",
            "CREATE TRIGGER t AFTER UPDATE ON public.kept FOR EACH STATEMENT EXECUTE FUNCTION kept()",
        ],
    )
    def test_of_a_table_with(self, connection: psycopg.Connection, change: LiteralString) -> None:
        """It is looked at in each batch's own transaction: the first trigger sees the next batch."""
        connection.execute(
            "CREATE FUNCTION kept() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.note := ''seen''; RETURN NEW; END'"
        )
        upserts = Upserts(connection)
        upserts.flush(Row(1, 10))
        connection.execute(change)
        if connection.info.server_version >= 170_000:
            with pytest.raises(TableChanged):
                upserts.flush(Row(1, 11))
        upserts.target = upserts.build()
        assert upserts.target.merge is not None
        assert upserts.target.merge.merge is None
        upserts.flush(Row(1, 11))
        note = "seen" if "ROW" in change else None
        assert connection.execute("SELECT * FROM public.kept").fetchall() == [(1, 11, note)]

    def test_of_a_partitioned_table(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "DROP TABLE public.kept;"
            "CREATE TABLE public.kept (id bigint PRIMARY KEY, v int, note text) PARTITION BY HASH (id);"
            "CREATE TABLE public.part PARTITION OF public.kept FOR VALUES WITH (MODULUS 1, REMAINDER 0)"
        )
        upserts = Upserts(connection)
        assert upserts.target.merge is not None
        assert upserts.target.merge.merge is None
        upserts.flush(Row(1, 10), Row(2, 20))
        upserts.flush(Row(2, 21))
        assert upserts.kept() == {1: 10, 2: 21}

    def test_it_counts_rows_and_leaves_the_planner_alone(self, upserts: Upserts) -> None:
        connection, merge = upserts.connection, upserts.target.merge
        assert merge is not None
        upserts.flush(Row(1, 10))  # makes the staging table
        with connection.transaction():
            connection.execute(
                sql.SQL("INSERT INTO {} (id, v, {}) VALUES (1, 11, false), (2, 20, false), (2, 21, false)").format(
                    sql.Identifier("pg_temp", merge.staging), sql.Identifier(DELETED)
                )
            )
            assert merge.run(connection, 3, is_first_try=True) == Books(rows=3, merged=2)
            assert connection.execute("SHOW enable_nestloop").fetchone() == ("on",)
        assert upserts.kept() == {1: 11, 2: 21}

    def test_tables_that_inherit_are_left_alone(self, upserts: Upserts) -> None:
        upserts.connection.execute("CREATE TABLE public.heir () INHERITS (public.kept)")
        upserts.connection.execute("INSERT INTO public.heir VALUES (1, -1)")
        upserts.flush(Row(1, 10))
        upserts.flush(Row(1, 11))
        rows = upserts.connection.execute("SELECT tableoid::regclass::text, v FROM public.kept ORDER BY v").fetchall()
        assert rows == [("heir", -1), ("kept", 11)]

    def test_a_type_of_the_users_own_is_compared_as_its_index_does(self, connection: psycopg.Connection) -> None:
        """The `=` that a statement finds may be another one: citext's, in a schema that is not searched, is text's."""
        connection.execute(
            "CREATE TYPE public.letter AS ENUM ('a', 'b');CREATE TABLE public.odd (id public.letter PRIMARY KEY, v int)"
        )
        route = Route(topic=TOPIC, table="public.odd", mode="upsert", key=("id",))
        assert build_merge(route, catalogue.read_table(connection, "public.odd"), ("id", "v")).merge is None

    @pytest.mark.parametrize(
        ("columns", "key"),
        [
            ("id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int, note text", ("id",)),
            ("id bigint PRIMARY KEY, v int GENERATED ALWAYS AS IDENTITY, note text", ("id",)),
            (
                "id bigint, v int, note text, twice bigint GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY (id)",
                ("id",),
            ),
            ("id bigint PRIMARY KEY, v int UNIQUE, note text", ("id",)),
            ("id bigint, v int, note text, PRIMARY KEY (v, id)", ("id", "v")),
            ("id bigint UNIQUE NOT NULL, v int, note varchar(9), s serial PRIMARY KEY", ("id",)),
        ],
    )
    def test_both_leave_the_same(
        self, connection: psycopg.Connection, columns: LiteralString, key: tuple[str, ...]
    ) -> None:
        batches = [
            [Row(draw.randrange(30), draw.randrange(3, 9), "x") for _ in range(40)]
            for draw in map(random.Random, range(4))
        ]
        found = []
        for may_merge in (True, False):
            connection.execute(
                sql.SQL("DROP TABLE public.kept; CREATE TABLE public.kept ({})").format(sql.SQL(columns))
            )
            connection.execute("TRUNCATE kbatchd.progress, kbatchd.dead_letters")
            upserts = Upserts(connection, may_merge=may_merge, key=key)
            for batch in batches:
                upserts.flush(*batch)
            rows = connection.execute(
                "SELECT id, v, note, to_jsonb(kept) ->> 'twice' FROM public.kept ORDER BY id, v"
            ).fetchall()
            found.append((rows, upserts.dead()))
        assert found[0] == found[1]
        assert found[0][0]

    def test_a_delete_leaves_tables_that_inherit_alone_too(self, upserts: Upserts) -> None:
        upserts.flush(Row(1, 10), Row(2, 20))
        upserts.connection.execute("CREATE TABLE public.heir () INHERITS (public.kept)")
        upserts.connection.execute("INSERT INTO public.heir VALUES (1, -1), (3, -3)")
        upserts.flush(Row(1, deleted=True), Row(3, deleted=True))
        rows = upserts.connection.execute("SELECT tableoid::regclass::text, id FROM public.kept ORDER BY id").fetchall()
        assert rows == [("heir", 1), ("kept", 2), ("heir", 3)]

    def test_a_delete_finds_its_row_in_whichever_partition(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "DROP TABLE public.kept;"
            "CREATE TABLE public.kept (id bigint PRIMARY KEY, v int, note text) PARTITION BY HASH (id);"
            "CREATE TABLE public.even PARTITION OF public.kept FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
            "CREATE TABLE public.odd PARTITION OF public.kept FOR VALUES WITH (MODULUS 2, REMAINDER 1)"
        )
        upserts = Upserts(connection)
        upserts.flush(*[Row(n, n) for n in range(8)])
        upserts.flush(*[Row(n, deleted=True) for n in range(7)])
        assert upserts.kept() == {7: 7}


class TestChangedWhileItRuns:
    """What a merge would pass over in silence."""

    def test_row_level_security(self, upserts: Upserts, database: str) -> None:
        """Rows that cannot be seen are not deleted, and nothing is said."""
        upserts.flush(*[Row(n, n) for n in range(3)])
        role = f"r_{random.randrange(10**9)}"
        with psycopg.connect(database, autocommit=True) as admin:
            admin.execute(
                f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA kbatchd, public TO {role};"
                f"GRANT ALL ON ALL TABLES IN SCHEMA kbatchd, public TO {role}".encode()
            )
            upserts.connection.execute(f"SET ROLE {role}".encode())
            try:
                upserts.sink = Sink(upserts.connection, lambda: None)  # its staging table is to be the role's
                upserts.connection.execute("DISCARD TEMP")
                upserts.flush(Row(0, deleted=True))
                admin.execute("ALTER TABLE public.kept ENABLE ROW LEVEL SECURITY")
                with pytest.raises(TableChanged):
                    upserts.flush(*[Row(n, deleted=True) for n in range(3)])
                with pytest.raises(ConfigError, match="row-level security"):
                    upserts.build()
                assert upserts.positions[P0].next_offset == 4
                assert admin.execute("SELECT count(*) FROM public.kept").fetchone() == (2,)
            finally:
                upserts.connection.execute("RESET ROLE; DISCARD TEMP")
                admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}".encode())

    def test_the_unique_index_is_dropped(self, connection: psycopg.Connection) -> None:
        """MERGE would make two rows of a key."""
        connection.execute(
            "DROP TABLE public.kept; CREATE TABLE public.kept (id bigint NOT NULL, v int, note text);"
            "CREATE UNIQUE INDEX kept_id ON public.kept (id)"
        )
        for may_merge in (True, False):
            upserts = Upserts(connection, may_merge=may_merge)
            upserts.flush(Row(1, 10))
            connection.execute("DROP INDEX public.kept_id")
            with pytest.raises(TableChanged):
                upserts.flush(Row(1, 11), Row(2, 20))
            assert upserts.kept() == {1: 10}
            with pytest.raises(ConfigError, match="no unique index"):
                upserts.build()
            connection.execute("CREATE UNIQUE INDEX kept_id ON public.kept (id)")
            upserts.flush(Row(1, 11), Row(2, 20))  # the index need not be the same one
            assert upserts.kept() == {1: 11, 2: 20}
            connection.execute("TRUNCATE public.kept, kbatchd.progress")

    def test_a_partition_on_another_server(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "DROP TABLE public.kept;"
            "CREATE TABLE public.kept (id bigint, v int, note text) PARTITION BY RANGE (id);"
            "CREATE TABLE public.low PARTITION OF public.kept FOR VALUES FROM (0) TO (9);"
            "CREATE UNIQUE INDEX ON public.low (id);"
            "CREATE FOREIGN DATA WRAPPER far; CREATE SERVER far FOREIGN DATA WRAPPER far"
        )
        before = catalogue.read_table(connection, "public.kept")
        connection.execute(
            "CREATE FOREIGN TABLE public.high PARTITION OF public.kept FOR VALUES FROM (9) TO (20) SERVER far"
        )
        assert catalogue.fingerprint(connection, before.quoted) != before.fingerprint
        with pytest.raises(ConfigError, match="its partition high on another server"):
            catalogue.read_table(connection, "public.kept")


class TestStaging:
    def test_it_is_made_once_and_left_empty(self, upserts: Upserts) -> None:
        upserts.flush(Row(1, 1))
        oid, file, _ = upserts.staging()
        for n in range(5):
            upserts.flush(*[Row(k, n) for k in range(200)])
        assert upserts.staging()[:2] == (oid, file)
        assert upserts.target.merge is not None
        statement = f"SELECT count(*), pg_relation_size('pg_temp.{upserts.target.merge.staging}') FROM pg_temp.{upserts.target.merge.staging}"  # noqa: E501
        assert upserts.connection.execute(statement.encode()).fetchone() == (0, 0)

    def test_it_does_not_hold_old_transactions(self, upserts: Upserts, monkeypatch: pytest.MonkeyPatch) -> None:
        upserts.flush(Row(1, 1))
        for _ in range(50):
            upserts.connection.execute("SELECT pg_current_xact_id()")
        before = upserts.staging()[2]
        monkeypatch.setattr("kbatchd.sink.upsert.time.monotonic", lambda: 2 * VACUUM_SECONDS + 1e9)
        upserts.flush(Row(1, 1))
        assert upserts.staging()[2] < before

    def test_a_table_altered_before_it_is_made(self, upserts: Upserts) -> None:
        """The staged bytes would be read as another type's."""
        upserts.connection.execute("ALTER TABLE public.kept ALTER v TYPE float4")
        with pytest.raises(TableChanged):
            upserts.flush(Row(1, 1))
        upserts.connection.execute("ALTER TABLE public.kept ALTER v TYPE int")
        upserts.target = upserts.build()
        upserts.flush(Row(1, 1))
        assert upserts.kept() == {1: 1}

    def test_a_table_altered_later(self, upserts: Upserts) -> None:
        upserts.flush(Row(1, 1))
        upserts.connection.execute("ALTER TABLE public.kept ALTER v TYPE bigint")
        with pytest.raises(TableChanged):
            upserts.flush(Row(1, 2))
        assert upserts.kept() == {1: 1}
        assert upserts.positions[P0].next_offset == 1

    def test_a_session_of_its_own_again(self, upserts: Upserts, database: str) -> None:
        upserts.flush(Row(1, 1))
        with psycopg.connect(database, autocommit=True) as connection:
            claimed, _ = claiming.claim(connection, upserts.target.owner, {0: "id"})
            upserts.positions[P0] = claimed[0]
            upserts.sink = Sink(connection, lambda: None)
            upserts.flush(Row(1, 2))
        assert upserts.kept() == {1: 2}


class TestKeys:
    @pytest.mark.parametrize(
        ("table", "key", "fault"),
        [
            ("id bigint UNIQUE, v int", ("id",), "key column id may be NULL, and NULLs are never the same key"),
            ("id bigint NOT NULL, v int", ("id",), "there is no unique index on (id)"),
            ("id bigint NOT NULL, v int NOT NULL, UNIQUE (id, v)", ("id",), "there is no unique index on (id)"),
            ("id bigint PRIMARY KEY DEFERRABLE, v int", ("id",), "there is no unique index on (id)"),
            (
                'id text NOT NULL, v int); CREATE UNIQUE INDEX ON public.odd (id COLLATE "C"',
                ("id",),
                "a unique index on (id) has another collation than its column",
            ),
            (
                'id text PRIMARY KEY, v int); CREATE UNIQUE INDEX ON public.odd (id COLLATE "C"',
                ("id",),
                "a unique index on (id) has another collation than its column",
            ),
            ("id bigint PRIMARY KEY, v int", ("ident",), "key names column ident, which is not there"),
        ],
    )
    def test_faults(self, connection: psycopg.Connection, table: str, key: tuple[str, ...], fault: str) -> None:
        connection.execute(f"CREATE TABLE public.odd ({table})".encode())
        with pytest.raises(ConfigError) as error:
            build_merge(
                Route(topic=TOPIC, table="public.odd", mode="upsert", key=key),
                catalogue.read_table(connection, "public.odd"),
                ("id", "v"),
            )
        assert [fault in found for found in error.value.faults] == [True]

    def test_a_partial_index_is_none(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "CREATE TABLE public.odd (id bigint NOT NULL); CREATE UNIQUE INDEX ON public.odd (id) WHERE id > 0;"
            "CREATE UNIQUE INDEX ON public.odd ((id + 1))"
        )
        assert catalogue.read_table(connection, "public.odd").unique_keys == frozenset()

    def test_columns_that_are_only_included_do_not_count(self, connection: psycopg.Connection) -> None:
        connection.execute(
            "CREATE TABLE public.odd (a int NOT NULL, b int NOT NULL, c int, UNIQUE (b, a) INCLUDE (c))"
            " PARTITION BY HASH (a)"
        )
        assert catalogue.read_table(connection, "public.odd").unique_keys == {frozenset({"a", "b"})}

    def test_rights(self, connection: psycopg.Connection) -> None:
        name = f"r_{random.randrange(10**9)}"
        database = connection.info.dbname
        connection.execute(
            f"CREATE ROLE {name}; GRANT INSERT ON public.kept TO {name}; "
            f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC; SET ROLE {name}".encode()
        )
        try:
            with pytest.raises(ConfigError) as error:
                Upserts(connection).build()
        finally:
            connection.execute(f"RESET ROLE; DROP OWNED BY {name}; DROP ROLE {name}".encode())
        assert [fault.partition(": GRANT ")[2] for fault in error.value.faults] == [
            f'TEMPORARY ON DATABASE ... TO "{name}"',
            f'DELETE, SELECT, UPDATE ON "public"."kept" TO "{name}"',
        ]
