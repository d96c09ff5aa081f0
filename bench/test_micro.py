"""What each step of a record's way costs alone: `python -m pytest bench/test_micro.py`.

Each works on one full batch of generated requests: the steps of the poll loop a poll at a time, as it does them, and
the flush against a real PostgreSQL. The table's figures are for the batch; `us_per_record` in the extra info of
--benchmark-json is the median for one record. Kafka is not part of this.
"""

from __future__ import annotations

import gc
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import orjson
import psycopg
import pytest
from confluent_kafka import Message
from psycopg import sql
from psycopg.conninfo import make_conninfo

from kbatchd.config import RouteMapping
from kbatchd.devstack.postgres import postgres_server
from kbatchd.devstack.requests import generate
from kbatchd.encode.exact import suspects
from kbatchd.encode.mapping import row_columns
from kbatchd.encode.rows import RowEncoder, build_encoder
from kbatchd.model import Partition
from kbatchd.postgres import catalogue
from kbatchd.postgres.table import Table
from kbatchd.schema import by_hand, claiming, migrations
from kbatchd.schema.progress import Owner
from kbatchd.sink.batch import Batch, RouteBatches
from kbatchd.sink.batch_copy import Target
from kbatchd.sink.buffers import BufferPool
from kbatchd.sink.chunk import Chunk
from kbatchd.sink.sink import Sink
from kbatchd.worker.worker import RECORDS_PER_POLL

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pytest_benchmark.fixture import BenchmarkFixture

    from kbatchd.model import Record

REQUESTS_SQL = Path(__file__).resolve().parent.parent / "sql/examples/requests.sql"

#: The daemon's defaults.
BATCH_ROWS = 20_000
BUFFER_BYTES = 8_388_608
POOL_BYTES = 67_108_864

PARTITION = Partition("bench", 0)


@dataclass(frozen=True, slots=True)
class Received:
    """A record as the consumer would give it."""

    number: int
    content: bytes

    def topic(self) -> str:
        """Return the one topic."""
        return PARTITION.topic

    def partition(self) -> int:
        """Return the one partition."""
        return PARTITION.number

    def offset(self) -> int:
        """Return the record's number."""
        return self.number

    def leader_epoch(self) -> int:
        """Return the one epoch."""
        return 0

    def timestamp(self) -> tuple[int, int]:
        """Return a time of the producer's."""
        return 1, 1_767_225_600_000 + self.number

    def key(self) -> None:
        """Return nothing: it has no key."""

    def value(self) -> bytes:
        """Return the JSON."""
        return self.content

    def headers(self) -> None:
        """Return nothing: it has none."""


@pytest.fixture(autouse=True)
def collector_off() -> Iterator[None]:
    """As in the poll loop: the collector triples the cost of decoding."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def database() -> Iterator[psycopg.Connection]:
    """Give a session on a migrated database of its own, with the table."""
    name = f"kbatchd_bench_{uuid.uuid4().hex[:12]}"
    with postgres_server() as postgres, psycopg.connect(postgres.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        try:
            with psycopg.connect(make_conninfo(postgres.dsn, dbname=name), autocommit=True) as own:
                migrations.migrate(own)
                own.execute(REQUESTS_SQL.read_bytes())
                own.execute("SET synchronous_commit = off")
                yield own
        finally:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def table(database: psycopg.Connection) -> Table:
    """Read the table as the flusher does."""
    return catalogue.read_table(database, "requests")


@pytest.fixture(scope="module")
def encoder(table: Table) -> RowEncoder:
    """Make the encoder that the daemon would use."""
    return build_encoder(row_columns(table, RouteMapping()))


@pytest.fixture(scope="module")
def values() -> list[bytes]:
    """Generate one batch's worth of requests."""
    return list(generate(BATCH_ROWS))


def polls(values: Sequence[bytes]) -> list[Sequence[bytes]]:
    """Cut into what one poll brings."""
    return [values[start : start + RECORDS_PER_POLL] for start in range(0, len(values), RECORDS_PER_POLL)]


def chunks(encoder: RowEncoder, values: Sequence[bytes]) -> list[Chunk]:
    """Encode as the poll loop does."""
    made: list[Chunk] = []
    for part in polls(values):
        rows: list[bytes] = []
        refused = encoder.encode((), part, rows).refused
        records = [Received(len(made) * RECORDS_PER_POLL + index, value) for index, value in enumerate(part)]
        made.append(Chunk(records, rows, refused, sum(map(len, part))))
    return made


def fill(made: Sequence[Chunk]) -> Batch:
    """Put chunks into the batch they just fill."""
    batches = RouteBatches(BufferPool(POOL_BYTES, BUFFER_BYTES), BATCH_ROWS)
    batches.reached[PARTITION] = 0
    for chunk in made:
        assert batches.put(chunk, {PARTITION: 1}, 0.0) is None
    (batch,) = batches.closed
    return batch


def note_cost(benchmark: BenchmarkFixture, records: int) -> None:
    """Write the median cost of one record to the report."""
    if benchmark.stats is not None:  # None: --benchmark-disable
        benchmark.extra_info["us_per_record"] = round(benchmark.stats.stats.median * 1e6 / records, 3)


def test_find_suspects(benchmark: BenchmarkFixture, values: list[bytes]) -> None:
    """The search for numbers that orjson would change, a poll at a time."""
    parts = polls(values)
    benchmark(lambda: [suspects(part, numbers=True) for part in parts])
    note_cost(benchmark, len(values))


def test_decode(benchmark: BenchmarkFixture, values: list[bytes]) -> None:
    """JSON to Python alone; each object is dropped at once, as in the encoder."""

    def decode() -> None:
        loads: Callable[[bytes], object] = orjson.loads
        for value in values:
            loads(value)

    benchmark(decode)
    note_cost(benchmark, len(values))


def test_encode(benchmark: BenchmarkFixture, encoder: RowEncoder, values: list[bytes]) -> None:
    """JSON to rows: the two above and the fields."""
    encode_all(benchmark, encoder, values)


def test_encode_mapped(benchmark: BenchmarkFixture, table: Table, values: list[bytes]) -> None:
    """The same fields in an envelope and in an object in it, one of them renamed."""
    mapping = RouteMapping.model_validate(
        {"value_field": "request", "columns": {"method": "http.method", "path": "http.path", "status": "http.code"}}
    )
    encoder = build_encoder(row_columns(table, mapping), mapping)
    encode_all(benchmark, encoder, [in_envelope(value) for value in values])


def test_encode_with_metadata(benchmark: BenchmarkFixture, table: Table, values: list[bytes]) -> None:
    """Three columns of the record's metadata, one of its key, and one with a default that half of the records need."""
    mapping = RouteMapping.model_validate(
        {
            "columns": {
                "id": {"source": "offset"},
                "status": {"source": "partition"},
                "created_at": {"source": "timestamp"},
                "method": {"source": "key"},
                "path": {"field": "way", "default": "/"},
            }
        }
    )
    renamed = [value.replace(b'"path":', b'"way":', index % 2) for index, value in enumerate(values)]
    messages = [
        Message(
            topic=PARTITION.topic,
            partition=3,
            offset=offset,
            key=b"GET",
            value=value,
            timestamp=(1, 1_767_225_600_000 + offset),
        )
        for offset, value in enumerate(renamed)
    ]
    encode_all(benchmark, build_encoder(row_columns(table, mapping), mapping), renamed, cast("list[Record]", messages))


def encode_all(
    benchmark: BenchmarkFixture, encoder: RowEncoder, values: Sequence[bytes], records: Sequence[Record] = ()
) -> None:
    """Encode them over and over, a poll at a time."""
    starts = range(0, len(values), RECORDS_PER_POLL)
    parts = [(records[at : at + RECORDS_PER_POLL], values[at : at + RECORDS_PER_POLL]) for at in starts]

    def encode() -> None:
        for polled, part in parts:
            rows: list[bytes] = []
            assert not encoder.encode(polled, part, rows).refused

    benchmark(encode)
    note_cost(benchmark, len(values))


def in_envelope(value: bytes) -> bytes:
    """Return a request as another producer might write it."""
    request = orjson.loads(value)
    request["http"] = {"method": request.pop("method"), "path": request.pop("path"), "code": request.pop("status")}
    return orjson.dumps({"event": "request", "request": request})


def test_batch(benchmark: BenchmarkFixture, encoder: RowEncoder, values: list[bytes]) -> None:
    """Rows into a batch's buffer, with their sizes, records and offsets."""
    made = chunks(encoder, values)
    batch = benchmark(fill, made)
    assert len(batch.records) == BATCH_ROWS
    note_cost(benchmark, len(values))


def test_flush(
    benchmark: BenchmarkFixture,
    database: psycopg.Connection,
    table: Table,
    encoder: RowEncoder,
    values: list[bytes],
) -> None:
    """One full batch: COPY, the columns' check, progress, the ledger, COMMIT."""
    owner = Owner("bench", "bench", PARTITION.topic, table.quoted, "bench")
    target = Target(owner, table, [encoder.columns], 0)
    batch = fill(chunks(encoder, values))
    sink = Sink(database, lambda: None)
    claiming.register(database, owner, "id", {PARTITION.number: 0})

    def claim() -> tuple[tuple[object, ...], dict[str, object]]:
        # The same batch goes in again and again: progress is set back to before it.
        database.execute("TRUNCATE requests")
        by_hand.set_progress(database, owner, PARTITION, 0)
        claimed, _ = claiming.claim(database, owner, {PARTITION.number: "id"})
        return (batch, target, {PARTITION: claimed[PARTITION.number]}), {}

    outcome = benchmark.pedantic(sink.flush, setup=claim, rounds=15, warmup_rounds=2)  # type: ignore[no-untyped-call]
    assert (outcome.rows, outcome.dead_letters) == (BATCH_ROWS, 0)
    note_cost(benchmark, BATCH_ROWS)
