"""What refused records cost: `python bench/poison.py`.

Five topics that differ in their poison only: none, 1 record in 10,000 or 1 in 100 that the encoder refuses (a field of
the wrong type), or that PostgreSQL refuses (a CHECK constraint, which all runs have). Each round drains all five with
one worker, every other round in reverse; the ratio is to the clean drain of the same round. Rates count records, dead
letters included.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

# From the directory above: http.py in this one must not hide Python's own http.
sys.path.pop(0)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.table import Table

from bench.rig import BATCH_ROWS, Rig, Series, measure, rig
from kbatchd.devstack.requests import generate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

console = Console()

#: PostgreSQL refuses what the poison below makes of a user_id; the encoder takes it.
CHECK = "ALTER TABLE requests ADD CHECK (user_id >= 0)"


class Poison(NamedTuple):
    """One refused record in `one_in`; 0: none. `old` becomes `new` in it."""

    refused_by: str
    one_in: int
    old: bytes = b""
    new: bytes = b""


POISONS = (
    Poison("nobody", 0),
    Poison("encoder", 10_000, b'"status":', b'"status":"no number","was":'),
    Poison("encoder", 100, b'"status":', b'"status":"no number","was":'),
    Poison("PostgreSQL", 10_000, b'"user_id":', b'"user_id":-1'),
    Poison("PostgreSQL", 100, b'"user_id":', b'"user_id":-1'),
)


@dataclass(slots=True)
class Run(Series):
    """One topic, drained once a round."""

    poison: Poison
    topic: str
    refused: int

    def summary(self) -> dict[str, str | int | float]:
        """Return what --json writes of it."""
        return {
            "refused_by": self.poison.refused_by,
            "one_in": self.poison.one_in,
            "records_per_second": median(drain.records_per_second for drain in self.drains),
            "ratio": median(self.ratios),
            "worker_cpu_us_per_record": median(drain.worker_cpu_us for drain in self.drains),
        }


def main() -> None:
    """Measure, print a table, and write the figures where --json says."""
    options = _options()
    with rig() as servers:
        servers.connection.execute(CHECK)
        runs = [_fill(servers, poison, options.records) for poison in POISONS]
        servers.drain(runs[0].topic, options.records, 1)  # not counted: a broker just started compiles its own code
        measure(
            runs, options.rounds, lambda run: servers.drain(run.topic, options.records, 1, dead_letters=run.refused)
        )
    summaries = [run.summary() for run in runs]
    _print(summaries, options)
    if options.json is not None:
        options.json.write_text(json.dumps(summaries, indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=400_000, help="records in each topic (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="drains of each topic (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    if options.records < 4 * BATCH_ROWS:
        parser.error(f"--records must be at least {4 * BATCH_ROWS}: four batches")
    return options


def _fill(servers: Rig, poison: Poison, records: int) -> Run:
    # The same records each time, at random places: two refusals in one batch cost other than one in each of two.
    draw = Random(0).random
    poisoned = [number for number in range(records) if poison.one_in and draw() * poison.one_in < 1]
    topic = servers.fill_topic(_poisoned(generate(records), poison, set(poisoned)), 1, lambda _: None)
    return Run(poison, topic, len(poisoned))


def _poisoned(values: Iterable[bytes], poison: Poison, numbers: set[int]) -> Iterator[bytes]:
    for number, value in enumerate(values):
        yield value.replace(poison.old, poison.new, 1) if number in numbers else value


def _print(summaries: Iterable[dict[str, str | int | float]], options: argparse.Namespace) -> None:
    table = Table(title=f"{options.records:,} records, one worker, medians of {options.rounds} rounds")
    for name in ("refused by", "one in", "records/s", "ratio", "worker\nus/record"):
        table.add_column(name, justify="right")
    for refused_by, one_in, rate, ratio, cpu in map(dict.values, summaries):
        table.add_row(f"{refused_by}", f"{one_in:,}", f"{rate:,.0f}", f"{ratio:.2f}", f"{cpu:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
