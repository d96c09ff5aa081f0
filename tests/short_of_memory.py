"""A flush with hardly any memory left, as a process of its own: `python -m tests.short_of_memory DSN`.

400 records of 20 kB, one of them refused by PostgreSQL, into the table `public.target`; prints what was written.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import orjson
import psycopg

from kbatchd.config import RouteMapping
from kbatchd.encode.mapping import row_columns
from kbatchd.encode.rows import build_encoder
from kbatchd.model import FlushReason, Partition
from kbatchd.postgres import catalogue
from kbatchd.schema import claiming
from kbatchd.schema.progress import Owner
from kbatchd.sink.batch import RouteBatches
from kbatchd.sink.batch_copy import Target
from kbatchd.sink.buffers import BufferPool
from kbatchd.sink.chunk import Chunk
from kbatchd.sink.sink import Sink
from tests.records import TOPIC, Sent

RECORDS, REFUSED, RECORD_BYTES = 400, 380, 20_000
BUFFER_BYTES = 16 * 1024 * 1024
LEFT_BYTES = 2 * 1024 * 1024


def main(dsn: str) -> None:
    """Flush once."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.target (id bigint NOT NULL CHECK (id >= 0), note text)")
        table = catalogue.read_table(connection, "public.target")
        encoder = build_encoder(row_columns(table, RouteMapping()))
        owner = Owner("pipe", "route", TOPIC, table.quoted, "worker-0")
        target = Target(owner, table, [encoder.columns], 0)
        claiming.register(connection, owner, "id", {0: 0})
        claimed, _ = claiming.claim(connection, owner, {0: "id"})
        partition = Partition(TOPIC, 0)
        records = [
            Sent(n, orjson.dumps({"id": -1 if n == REFUSED else n, "note": "x" * RECORD_BYTES})) for n in range(RECORDS)
        ]
        rows: list[bytes] = []
        encoder.encode(records, [record.value() for record in records], rows)
        batches = RouteBatches(BufferPool(2 * BUFFER_BYTES, BUFFER_BYTES), RECORDS)
        batches.reached = {partition: 0}
        assert batches.put(Chunk(records, rows), {partition: claimed[0].epoch}, 0.0) is None
        batches.close(FlushReason.LINGER, 1.0)
        (batch,) = batches.closed
        sink = Sink(connection, lambda: None)
        used = re.search(r"^VmData:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert used is not None
        limit = int(used[1]) * 1024 + LEFT_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        outcome = sink.flush(batch, target, {partition: claimed[0]})
        sys.stdout.write(f"{outcome.rows} rows, {outcome.dead_letters} dead letters\n")


if __name__ == "__main__":
    main(sys.argv[1])
