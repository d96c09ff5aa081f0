"""A request that waits for rows hears of them when they are there for good, and of nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import psycopg
import pytest
import uvloop

from kbatchd.config import Config, load
from kbatchd.door.tables import Columns, Tables
from kbatchd.errors import ConfigError
from kbatchd.gateway import database as module
from kbatchd.gateway.database import Database, Outcome
from kbatchd.gateway.logs import Log
from kbatchd.model import Gap, GapKind, OffsetRange, Partition, Position
from kbatchd.schema import by_hand, claiming, pausing, progress
from kbatchd.schema.pausing import Pause
from kbatchd.schema.progress import Owner
from tests.fix_http import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from pathlib import Path

    from kbatchd.config import Route
    from kbatchd.devstack.postgres import Postgres
    from kbatchd.schema.arrived import DeadLetter

TOPIC = "orders"
OWNER = Owner("kbatchd", TOPIC, TOPIC, '"public"."orders"', "test")
P0, P1 = Partition(TOPIC, 0), Partition(TOPIC, 1)


def run(test: Coroutine[object, object, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(test)


def make_config(directory: Path, dsn: str) -> Config:
    file = directory / "kbatchd.toml"
    file.write_text(
        f"state_directory = 'state'\n[kafka]\nbootstrap_servers = 'x:1'\n[postgres]\ndsn = {json.dumps(dsn)}\n"
        f"[[route]]\ntopic = '{TOPIC}'\ntable = 'public.orders'\n"
    )
    return load(file)


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[tuple[Database, asyncio.Queue[Tables]]]:
    """Start the thread; whatever it says of the tables goes into the queue."""
    heard: asyncio.Queue[Tables] = asyncio.Queue()
    database = Database(config, "gateway-0")
    database.on_tables = heard.put_nowait
    database.start()
    try:
        yield database, heard
    finally:
        await asyncio.to_thread(database.stop)
        database.stop()


async def committed(
    watcher: Database,
    route: Route,
    ranges: list[OffsetRange],
    seconds: float,
    log: Log | None = Log("id", {0: 0, 1: 0}),  # noqa: B008 - it does not change
) -> Outcome | Pause | list[DeadLetter]:
    """Wait for records that have been sent just now, into this log."""
    known: asyncio.Future[Log | None] = asyncio.get_running_loop().create_future()
    known.set_result(log)
    return await watcher.committed(route, ranges, seconds, time.monotonic(), known)


class Table:
    """The table, its progress, and how both move."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.connection.execute("CREATE TABLE public.orders (id bigint NOT NULL)")
        claiming.register(self.connection, OWNER, "id", {0: 0, 1: 0})
        positions, _ = claiming.claim(self.connection, OWNER, {0: "id", 1: "id"})
        self.positions = {Partition(TOPIC, number): position for number, position in positions.items()}

    def advance(self, partition: Partition, next_offset: int) -> None:
        progress.advance(self.connection, OWNER, self.positions, {partition: next_offset})
        self.read(partition, [0, 0])
        self.positions[partition] = Position(self.positions[partition].epoch, next_offset)

    def read(self, partition: Partition, *epochs: list[int]) -> None:
        """Note what was read under which leader epoch, from which offset on."""
        self.connection.execute(
            "UPDATE kbatchd.progress SET leader_epochs = %s::jsonb, records_end = next_offset WHERE partition = %s",
            (json.dumps(epochs), partition.number),
        )

    def refuse(self, partition: Partition, offset: int, topic_id: str | None = "id") -> None:
        self.connection.execute(
            "INSERT INTO kbatchd.dead_letters "
            '(pipeline, route, topic, topic_id, partition, "offset", code, message, "column") '
            "VALUES ('kbatchd', %s, %s, %s, %s, %s, '23514', 'too small', 'id')",
            (TOPIC, TOPIC, topic_id, partition.number, offset),
        )


@pytest.fixture
def table(database: str) -> Iterator[Table]:
    with psycopg.connect(database, autocommit=True) as connection:
        yield Table(connection)


def test_arrived_is_every_partition_behind_the_last_offset(table: Table, database: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            route = config.route[0]
            waits = [OffsetRange(P0, 3, 5), OffsetRange(P1, 0, 0)]
            waiting = asyncio.create_task(committed(watcher, route, waits, 20))
            other = asyncio.create_task(committed(watcher, route, [OffsetRange(P1, 0, 0)], 20))
            table.advance(P1, 1)
            assert await other is Outcome.COMMITTED
            table.advance(P0, 5)
            assert await committed(watcher, route, [OffsetRange(P0, 4, 4)], 20) is Outcome.COMMITTED
            assert not waiting.done(), "offset 5 is not below next_offset 5"
            table.advance(P0, 6)
            assert await waiting is Outcome.COMMITTED

    run(test())


@pytest.mark.usefixtures("table")
def test_a_wait_runs_out(database: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            assert await committed(watcher, config.route[0], [OffsetRange(P0, 0, 0)], 0.2) is Outcome.PENDING
            waiting = asyncio.create_task(committed(watcher, config.route[0], [OffsetRange(P0, 0, 0)], 20))
            await asyncio.sleep(0)
            watcher.give_up()
            assert await waiting is Outcome.PENDING
        assert await committed(watcher, config.route[0], [OffsetRange(P0, 0, 0)], 20) is Outcome.PENDING, "it has ended"

    run(test())


def test_nobody_waits_for_a_paused_route(table: Table, database: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            waiting = asyncio.create_task(committed(watcher, config.route[0], [OffsetRange(P0, 0, 0)], 600))
            assert pausing.pause(table.connection, "kbatchd", config.route[0].name, "ops@host")
            assert isinstance(pause := await asyncio.wait_for(waiting, 60), Pause)
            assert pause.by == "ops@host"
            # What is in the table is there, all the same.
            table.advance(P0, 1)
            assert await committed(watcher, config.route[0], [OffsetRange(P0, 0, 0)], 60) is Outcome.COMMITTED

    run(test())


def test_dead_letters_are_named(table: Table, database: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            route = config.route[0]
            waiting = asyncio.create_task(committed(watcher, route, [OffsetRange(P0, 0, 3), OffsetRange(P0, 5, 8)], 20))
            await asyncio.sleep(0)
            table.refuse(P0, 9)
            table.refuse(P0, 1)
            table.advance(P0, 10)
            letters = await waiting
            assert isinstance(letters, list)
            assert [(letter.partition, letter.offset, letter.code, letter.column) for letter in letters] == [
                (0, 1, "23514", "id")
            ]

    run(test())


@pytest.mark.parametrize(
    ("topic_id", "minutes"), [("former", 0), (None, 60), ("id", 60)], ids=["its id", "its age", "a log truncated since"]
)
def test_a_dead_letter_of_a_former_record_refuses_nobody(
    table: Table, database: str, tmp_path: Path, topic_id: str | None, minutes: int
) -> None:
    table.refuse(P0, 1, topic_id)
    table.connection.execute(
        "UPDATE kbatchd.dead_letters SET refused_at = now() - make_interval(mins => %s)", (minutes,)
    )
    table.advance(P0, 2)

    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            assert await committed(watcher, config.route[0], [OffsetRange(P0, 0, 1)], 20) is Outcome.COMMITTED

    run(test())


def test_what_kafka_lost_is_not_committed(table: Table, database: str, tmp_path: Path) -> None:
    gap = Gap(P0, GapKind.RETENTION, 0, 7, 7, "id")
    by_hand.accept(table.connection, OWNER, gap, table.positions[P0].epoch)
    table.read(P0, [0, 0])
    other = Gap(P1, GapKind.RECREATED, 0, 0, 0, "id", "id2")

    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            route = config.route[0]
            assert await committed(watcher, route, [OffsetRange(P0, 6, 6)], 20) is Outcome.LOST
            again = asyncio.create_task(committed(watcher, route, [OffsetRange(P1, 3, 3)], 20))
            # A look has been taken when somebody who came later is answered.
            await committed(watcher, route, [OffsetRange(P0, 6, 6)], 20)
            by_hand.accept(table.connection, OWNER, other, table.positions[P1].epoch)
            assert await again is Outcome.LOST

    run(test())


def test_a_gap_of_a_former_log_loses_nobodys_records(table: Table, database: str, tmp_path: Path) -> None:
    """A recreated topic's gap is empty, and a truncated one's offsets are others' now."""
    table.advance(P0, 10)
    gap = Gap(P0, GapKind.RECREATED, 10, 10, 0, "id", "id2")
    by_hand.accept(table.connection, OWNER, gap, table.positions[P0].epoch)
    table.advance(P1, 20)
    gap = Gap(P1, GapKind.TRUNCATION, 15, 20, 15, "id")
    by_hand.accept(table.connection, OWNER, gap, table.positions[P1].epoch)
    table.connection.execute("UPDATE kbatchd.progress SET next_offset = 30")
    table.read(P0, [0, 0])
    table.read(P1, [0, 0], [1, 15])

    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            route = config.route[0]
            recreated, truncated = Log("id2", {0: 0}), Log("id", {1: 1})
            assert await committed(watcher, route, [OffsetRange(P0, 0, 29)], 20, recreated) is Outcome.COMMITTED
            assert await committed(watcher, route, [OffsetRange(P1, 15, 29)], 20, truncated) is Outcome.COMMITTED
            assert await committed(watcher, route, [OffsetRange(P1, 15, 29)], 20) is Outcome.LOST, "of the former log"
            assert await committed(watcher, route, [OffsetRange(P1, 0, 14)], 20) is Outcome.COMMITTED

    run(test())


@pytest.mark.parametrize(
    ("log", "read"),
    [
        (Log("other", {0: 0}), [[0, 0]]),  # a recreated topic, and progress is of the former
        (Log("id", {0: 1}), [[0, 0]]),  # a truncated log that is halted: progress is past what was there before
        (Log("id", {0: 0}), [[0, 5]]),  # what was there before progress began, with `start = "latest"`
        (Log("id", {0: 0}), [[0, 0], [0, 5]]),  # what was passed over by hand, somewhere below 5
        (Log("id", {0: 0}), []),  # progress of a former version
        (None, [[0, 0]]),  # brokers that did not say
    ],
    ids=["recreated", "truncated", "before the start", "passed over", "unknown", "unnamed"],
)
def test_an_offset_below_progress_is_not_enough(
    table: Table, database: str, tmp_path: Path, log: Log | None, read: list[list[int]]
) -> None:
    table.advance(P0, 10)
    table.read(P0, *read)

    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            route = config.route[0]
            doubtful = asyncio.create_task(committed(watcher, route, [OffsetRange(P0, 3, 4)], 1.0, log))
            table.advance(P1, 1)
            assert await committed(watcher, route, [OffsetRange(P1, 0, 0)], 20) is Outcome.COMMITTED, "a look was taken"
            assert await doubtful is Outcome.PENDING

    run(test())


def test_seen_is_not_enough_it_must_be_on_disk(own_postgres: Postgres, own_database: str, tmp_path: Path) -> None:
    """With synchronous_commit off, rows can be seen that a crash takes back."""
    with psycopg.connect(own_database, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        connection.execute("SELECT pg_reload_conf()")
        table = Table(connection)
        connection.execute("SET synchronous_commit = off")

        async def test() -> None:
            async with running(config := make_config(tmp_path, own_database)) as (watcher, heard):
                await heard.get()
                here = [OffsetRange(P0, 0, 0)]
                table.advance(P0, 1)
                assert _read(connection, "SELECT pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()") is True
                waiting = asyncio.create_task(committed(watcher, config.route[0], here, 30))
                assert await committed(watcher, config.route[0], here, 0.3) is Outcome.PENDING
                own_postgres.kill()
                own_postgres.start()
                with psycopg.connect(own_database, autocommit=True) as later:
                    assert _read(later, "SELECT next_offset FROM kbatchd.progress WHERE partition = 0") == 0, "lost"
                    assert not waiting.done()
                    later.execute(
                        "UPDATE kbatchd.progress SET next_offset = 1, records_end = 1, leader_epochs = '[[0, 0]]'"
                    )
                assert await waiting is Outcome.COMMITTED

        run(test())


def _read(connection: psycopg.Connection, statement: str) -> object:
    row = connection.execute(statement.encode()).fetchone()
    return row and row[0]


def test_tables_come_from_the_cache_then_as_they_are(
    table: Table, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TABLES_SECONDS", 0.1)
    here = make_config(tmp_path, database)
    gone = here.model_copy(update={"postgres": make_config(tmp_path, f"host=127.0.0.1 port={free_port()}").postgres})

    def names(tables: Tables) -> list[str]:
        found = tables[TOPIC]
        assert isinstance(found, Columns)
        return [column.name for column in found.columns]

    async def test() -> None:
        async with running(here) as (_, heard):
            assert await heard.get() == {}, "nothing is cached yet"
            assert names(await heard.get()) == ["id"]
            table.connection.execute("ALTER TABLE public.orders ADD note text")
            assert names(await heard.get()) == ["id", "note"]
            table.connection.execute("DROP TABLE public.orders")
            assert isinstance((await heard.get())[TOPIC], ConfigError)
            table.connection.execute("CREATE TABLE public.orders (id bigint, more jsonb)")
            assert names(await heard.get()) == ["id", "more"]
        async with running(gone) as (watcher, heard):
            assert names(await heard.get()) == ["id", "more"]
            assert await committed(watcher, gone.route[0], [OffsetRange(P0, 0, 0)], 0.2) is Outcome.PENDING

    run(test())


def test_thousands_who_wait_are_one_query(table: Table, database: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with running(config := make_config(tmp_path, database)) as (watcher, _):
            route = config.route[0]
            waits = [committed(watcher, route, [OffsetRange(P0, n, n)], 30) for n in range(3_000)]
            waiting = asyncio.gather(*waits)
            await asyncio.sleep(0)
            table.refuse(P0, 1_500)
            table.advance(P0, 3_000)
            began = asyncio.get_running_loop().time()
            outcomes = await waiting
            assert asyncio.get_running_loop().time() - began < 15  # one look for each would take a minute
            assert outcomes.count(Outcome.COMMITTED) == 2_999
            assert isinstance(outcomes[1_500], list)

    run(test())
