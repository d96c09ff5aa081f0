"""`kbatchd replay-range`: read a range of offsets again, into the rows that it has."""

from __future__ import annotations

import argparse

from kbatchd.audit.again import replay_range
from kbatchd.audit.ranges import listed
from kbatchd.commands import load_config, route_named
from kbatchd.errors import EX_DATA, EX_OK
from kbatchd.model import Partition
from kbatchd.postgres.connection import connect, explained
from kbatchd.printable import printable
from kbatchd.schema.migrations import check_version


def run(arguments: argparse.Namespace) -> int:
    """Replace the rows of a range by what its records make now."""
    config = load_config(arguments)
    route = route_named(config, arguments.route)
    span = arguments.first, arguments.end
    if span[0] >= span[1]:
        arguments.parser.error("--to is the offset behind the last one: it must be above --from")
    partition = Partition(route.topic, arguments.partition)
    with connect(config.postgres, "kbatchd replay-range") as connection, explained():
        check_version(connection)
        done = replay_range(connection, config, route, partition, span)
    outcome = done.outcome
    skipped = f", {outcome.skipped} kept out by a trigger" if outcome.skipped else ""
    print(
        f"{partition}: offsets {listed([span])} were read again: {done.records:,} records, {outcome.rows:,} rows in "
        f"place of {done.deleted:,}, {outcome.dead_letters:,} dead letters{skipped}"
    )
    if outcome.reason is not None:
        print(printable(f"for example {outcome.reason}"))
    return EX_DATA if outcome.dead_letters else EX_OK
