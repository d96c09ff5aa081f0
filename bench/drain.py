"""How fast kbatchd drains a topic, against the raw limit of COPY on the same machine: `python bench/drain.py`.

Topics are filled first. Then, in rounds, the raw limit is measured before each drain, and the drain's ratio is to that
one: machines drift, and a ratio to its neighbour does not. All figures are medians over the rounds. rig.py says what
exactly is counted. Uses the servers that KBATCHD_KAFKA and KBATCHD_DSN name, else starts its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

# From the directory above: http.py in this one must not hide Python's own http.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from bench.rig import BATCH_ROWS, Drained, Rig, encode_blocks, rig
from kbatchd.devstack.requests import generate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

console = Console()


@dataclass(slots=True)
class Run:
    """One combination, measured once a round."""

    partitions: int
    workers: int
    topic: str
    drains: list[Drained] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    def of(self, figure: Callable[[Drained], float | None]) -> float | None:
        """Return the median of one figure; None where it could not be measured."""
        measured = [value for value in map(figure, self.drains) if value is not None]
        return median(measured) if measured else None

    def summary(self) -> dict[str, float | None]:
        """Return what --json writes of it."""
        return {
            "partitions": self.partitions,
            "workers": self.workers,
            "rows_per_second": self.of(lambda drain: drain.records_per_second),
            "ratio": median(self.ratios),
            "worker_cpu_us_per_row": self.of(lambda drain: drain.worker_cpu_us),
            "postgres_cpu_us_per_row": self.of(lambda drain: drain.postgres_cpu_us),
            "broker_cpu_us_per_row": self.of(lambda drain: drain.broker_cpu_us),
            "worker_rss_bytes": max(drain.worker_rss_bytes for drain in self.drains),
        }


def main() -> None:
    """Measure, print a table, and write the figures where --json says."""
    options = _options()
    with rig() as servers:
        values, runs = _fill(servers, options)
        raw = _measure(servers, values, runs, options.rounds)
    summaries = [run.summary() for run in runs]
    _print(raw, summaries, options)
    if options.json is not None:
        options.json.write_text(json.dumps({"raw_copy_rows_per_second": raw, "runs": summaries}, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=500_000, help="records in each topic (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of everything (%(default)s)")
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 4], help="topics to fill (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="worker processes (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    if options.records < 4 * BATCH_ROWS * max(options.workers):
        parser.error(f"--records must be at least 4 batches of {BATCH_ROWS} for each worker")
    return options


def _fill(servers: Rig, options: argparse.Namespace) -> tuple[list[bytes], list[Run]]:
    values = list(generate(options.records))
    runs = []
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console, transient=True
    ) as progress:
        for partitions in options.partitions:
            task = progress.add_task(f"filling a topic, {partitions} partitions", total=options.records)
            topic = servers.fill_topic(values, partitions, partial(_show_sent, progress, task))
            runs += [Run(partitions, workers, topic) for workers in options.workers]
    return values, runs


def _show_sent(progress: Progress, task: TaskID, sent: int) -> None:
    progress.update(task, completed=sent)


def _measure(servers: Rig, values: Sequence[bytes], runs: Sequence[Run], rounds: int) -> float:
    encoder = servers.encoder()
    blocks = encode_blocks(encoder, values)
    raws = []
    for run in runs:
        servers.drain(run.topic, len(values), run.workers)  # not counted: a broker just started compiles its own code
    for number in range(1, rounds + 1):
        for run in runs:
            raw = servers.copy_raw(blocks, encoder.columns)
            drain = servers.drain(run.topic, len(values), run.workers)
            raws.append(raw)
            run.drains.append(drain)
            run.ratios.append(drain.records_per_second / raw)
            console.print(
                f"round {number}: partitions={run.partitions} workers={run.workers}: raw {raw:,.0f} rows/s, "
                f"kbatchd {drain.records_per_second:,.0f} ({run.ratios[-1]:.2f}), {drain.worker_cpu_us:.2f} us a row",
                highlight=False,
            )
    return median(raws)


def _print(raw: float, summaries: Iterable[dict[str, float | None]], options: argparse.Namespace) -> None:
    table = Table(title=f"{options.records:,} records, medians of {options.rounds} rounds; raw COPY {raw:,.0f} rows/s")
    costs = ("worker\nus/row", "PostgreSQL\nus/row", "broker\nus/row", "RSS\nMB")
    for name in ("partitions", "workers", "rows/s", "ratio", *costs):
        table.add_column(name, justify="right")
    for summary in summaries:
        partitions, workers, rate, ratio, *cpu, rss = summary.values()
        shown = ("-" if value is None else f"{value:.2f}" for value in cpu)
        table.add_row(f"{partitions}", f"{workers}", f"{rate:,.0f}", f"{ratio:.2f}", *shown, f"{(rss or 0) / 1e6:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
