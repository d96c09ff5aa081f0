"""What is made of a route and its table: the encoder of its rows, and where the sink puts them.

The daemon's claims, the start-up checks and the operator's commands all make it here, so that a record fares the same
wherever it comes from. No I/O: the caller has read the table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbatchd.encode.mapping import Deletes, row_columns
from kbatchd.encode.rows import build_encoder
from kbatchd.paths import parse_path
from kbatchd.schema.progress import Owner
from kbatchd.sink.batch import Batch
from kbatchd.sink.batch_copy import Target
from kbatchd.sink.chunk import Chunk
from kbatchd.sink.upsert import build_merge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.config import Route
    from kbatchd.encode.rows import RowEncoder
    from kbatchd.model import Record
    from kbatchd.postgres.table import Table


def build_target(pipeline: str, route: Route, worker: str, table: Table) -> tuple[Target, RowEncoder]:
    """Make the encoder and the target of a route's table as it is now; ConfigError when it cannot be fed."""
    encoder = build_encoder(row_columns(table, route), route, deletes=deletes(route))
    owner = Owner(pipeline, route.name, route.topic, table.quoted, worker)
    merge = build_merge(route, table, encoder.columns) if route.mode == "upsert" else None
    target = Target(
        owner,
        table,
        encoder.layouts,
        route.max_dead_letters,
        copy_format=encoder.copy_format,
        merge=merge,
        waits_for_partition=route.on_missing_partition == "wait",
    )
    return target, encoder


def deletes(route: Route) -> Deletes | None:
    """Say which records of a route delete; None: none."""
    if route.mode != "upsert" or route.insert_only:
        return None
    when = route.delete_when
    return Deletes(route.key) if when is None else Deletes(route.key, parse_path(when.field), when.equals)


def fill_batch(encoder: RowEncoder, records: Sequence[Record], values: Sequence[bytes | None]) -> Batch:
    """Make one batch of records that come from no poll: `values` are what to encode of each."""
    rows: list[bytes] = []
    encoded = encoder.encode(records, values, rows)
    batch = Batch(opened_at=0.0, buffer=bytearray(sum(map(len, rows))))
    batch.append(Chunk(records, rows, encoded.refused, sum(map(len, filter(None, values))), encoded.layouts))
    return batch
