"""What an upsert costs beside an append: `python bench/upsert.py`.

All drains go into the same table: a primary key, and 1,000,000 rows that are put back before each. The append and one
upsert bring new keys only (the same topic); the others bring keys that are there, half of each, and 1,000 keys over and
over. The ratio is to the append of the same round. Rates count records.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING

# From the directory above: http.py in this one must not hide Python's own http.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from bench.rig import BATCH_ROWS, Drained, Rig, Series, encode_blocks, measure, rig
from kbatchd.devstack.requests import generate

if TYPE_CHECKING:
    from collections.abc import Iterable

console = Console()

UPSERT = 'mode = "upsert"\nkey = ["id"]'

HOT_KEYS = 1_000


@dataclass(slots=True)
class Run(Series):
    """One way to write one topic, drained once a round."""

    name: str
    topic: str
    #: In the table when all is in.
    rows: int
    route: str = UPSERT

    def summary(self) -> dict[str, str | float | None]:
        """Return what --json writes of it."""
        postgres = [drain.postgres_cpu_us for drain in self.drains if drain.postgres_cpu_us is not None]
        return {
            "run": self.name,
            "records_per_second": median(drain.records_per_second for drain in self.drains),
            "ratio": median(self.ratios),
            "worker_cpu_us_per_record": median(drain.worker_cpu_us for drain in self.drains),
            "postgres_cpu_us_per_record": median(postgres) if postgres else None,
        }


def main() -> None:
    """Measure, print a table, and write the figures where --json says."""
    options = _options()
    with rig() as servers:
        _fill_table(servers, options.table_rows)
        runs = _fill_topics(servers, options)

        def drain(run: Run) -> Drained:
            return servers.drain(run.topic, options.records, options.workers, rows=run.rows, route=run.route)

        console.print("once, not counted: a broker just started compiles")
        for run in reversed(runs):
            drain(run)
        measure(runs, options.rounds, drain)
    summaries = [run.summary() for run in runs]
    _print(summaries, options)
    if options.json is not None:
        options.json.write_text(json.dumps(summaries, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=400_000, help="records in each topic (%(default)s)")
    parser.add_argument("--table-rows", type=int, default=1_000_000, help="rows in the table before (%(default)s)")
    parser.add_argument("--partitions", type=int, default=1, help="of each topic (%(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="worker processes (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="drains of each (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    if options.records < 4 * BATCH_ROWS * options.workers or options.table_rows < options.records:
        parser.error(f"--records must be at least {4 * BATCH_ROWS} a worker, and no more than --table-rows")
    return options


def _fill_table(servers: Rig, rows: int) -> None:
    """Make the rows that every drain begins with, and keep a copy of them."""
    encoder = servers.encoder()
    servers.connection.execute("ALTER TABLE requests ADD PRIMARY KEY (id)")
    for first in range(0, rows, 10 * BATCH_ROWS):
        blocks = encode_blocks(encoder, list(generate(10 * BATCH_ROWS, first)))
        names = ", ".join(encoder.columns)
        for block in blocks:
            with servers.connection.cursor().copy(
                f"COPY requests ({names}) FROM STDIN (FORMAT BINARY)".encode()
            ) as copy:
                copy.write(block)
    servers.connection.execute("CREATE TABLE kept AS SELECT * FROM requests")
    servers.start_sql = [
        *servers.start_sql,
        "INSERT INTO requests SELECT * FROM kept",
        "VACUUM ANALYZE requests",
    ]


def _fill_topics(servers: Rig, options: argparse.Namespace) -> list[Run]:
    rows, records = options.table_rows, options.records
    draw = Random(0)  # the same records each time
    there = draw.sample(range(rows), records)
    half = [*there[: records // 2], *range(rows, rows + records - records // 2)]
    draw.shuffle(half)
    hot = [draw.randrange(HOT_KEYS) for _ in range(records)]

    def fill(keys: Iterable[int]) -> str:
        return servers.fill_topic(_with_keys(keys, records), options.partitions, lambda _: None)

    new = fill(range(rows, rows + records))
    return [
        Run("append, new keys", new, rows + records, ""),
        Run("upsert, new keys", new, rows + records),
        Run("upsert, half new", fill(half), rows + len(half) - records // 2),
        Run("upsert, keys that are there", fill(there), rows),
        Run(f"upsert, {HOT_KEYS:,} keys", fill(hot), rows),
    ]


def _with_keys(keys: Iterable[int], records: int) -> Iterable[bytes]:
    for number, (key, value) in enumerate(zip(keys, generate(records), strict=True)):
        yield value.replace(b'{"id":%d,' % number, b'{"id":%d,' % key, 1)


def _print(summaries: Iterable[dict[str, str | float | None]], options: argparse.Namespace) -> None:
    table = Table(
        title=f"{options.records:,} records into {options.table_rows:,} rows, {options.workers} workers, "
        f"medians of {options.rounds} rounds"
    )
    for name in ("", "records/s", "ratio", "worker\nus/record", "PostgreSQL\nus/record"):
        table.add_column(name, justify="right")
    for run, rate, ratio, *cpu in map(dict.values, summaries):
        table.add_row(f"{run}", f"{rate:,.0f}", f"{ratio:.2f}", *("-" if us is None else f"{us:.2f}" for us in cpu))
    console.print(table)


if __name__ == "__main__":
    main()
