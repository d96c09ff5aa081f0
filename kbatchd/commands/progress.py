"""`kbatchd progress show|set|accept|rename`: where partitions stand, and how somebody moves them by hand."""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import NamedTuple

from kbatchd import log
from kbatchd.check.inspection import privilege_faults
from kbatchd.commands import load_config, print_table, route_named
from kbatchd.config import Config, Route
from kbatchd.errors import EX_OK, ConfigError, KbatchError, ServerUnavailable, SourceError
from kbatchd.kafka import offsets, topics
from kbatchd.kafka.watch import diagnose
from kbatchd.model import Gap, Partition, Position
from kbatchd.postgres import catalogue
from kbatchd.postgres.connection import connect, explained
from kbatchd.schema import by_hand, claiming, halting, progress, renaming
from kbatchd.schema.by_hand import ProgressRow
from kbatchd.schema.migrations import check_version
from kbatchd.schema.progress import Owner

#: How long `progress show` waits for Kafka, which it can do without.
LAG_TIMEOUT_SECONDS = 5.0


class _Lag(NamedTuple):
    """What Kafka adds to a line of progress; None where it does not know."""

    end: int | None
    lag: int | None


def show(arguments: argparse.Namespace) -> int:
    """Print where each partition stands, and its lag when Kafka answers."""
    config = load_config(arguments)
    with connect(config.postgres, "kbatchd progress show") as connection, explained():
        check_version(connection)
        rows = by_hand.show(connection, config.pipeline)
    try:
        lags = _lags(config, rows)
    except KbatchError as error:
        log.complain([f"the lag is not known: {error}"])
        lags = [_Lag(None, None)] * len(rows)
    _print_progress(rows, lags)
    return EX_OK


def set_one(arguments: argparse.Namespace) -> int:
    """Move one partition, forward or back."""
    config = load_config(arguments)
    route = route_named(config, arguments.route)
    partition = Partition(route.topic, arguments.partition)
    with connect(config.postgres, "kbatchd progress set") as connection, explained():
        check_version(connection)
        owner = _owner(config, route)
        if partition.number >= claiming.known_partitions(connection, owner):
            raise ConfigError(f"route {route.name}: there is no progress of {partition}; see `kbatchd progress show`")
        _refuse_outside(config, partition, arguments.next_offset)
        before = by_hand.set_progress(connection, owner, partition, arguments.next_offset)
    was = "not known" if before is None else before
    print(f"{partition}: next_offset was {was}, is {arguments.next_offset}")
    return EX_OK


def accept(arguments: argparse.Namespace) -> int:
    """Let halted partitions go on: behind their gaps, or where the breaker has halted them."""
    config = load_config(arguments)
    route = route_named(config, arguments.route)
    admin = topics.make_admin(config.kafka)
    topic = topics.describe(admin, [route.topic], config.startup_timeout_seconds)[route.topic]
    if topic is None:
        raise ConfigError(f"route {route.name}: topic {route.topic} does not exist; `kbatchd create-topic` makes it")
    with connect(config.postgres, "kbatchd progress accept") as connection, explained():
        check_version(connection)
        every = by_hand.show(connection, config.pipeline)
        rows = [row for row in every if (row.route, row.topic) == (route.name, route.topic)]
        lineages = progress.lineages(connection, _owner(config, route))
        former = claiming.former_ids(connection, _owner(config, route))
        for row in _chosen(route, rows, arguments.partition):
            partition = Partition(row.topic, row.partition)
            if row.partition >= topic.partitions:
                print(f"{partition}: the topic has only {topic.partitions} partitions now; nothing can be read of it")
                continue
            if row.next_offset is None:
                print(f"{partition}: there is nothing to accept: its broker has not said yet where it begins")
                continue
            position = Position(row.epoch, row.next_offset, row.topic_id, lineages[row.partition])
            gap = _diagnose(config, admin, partition, position, former)
            if gap is None and halting.resume(connection, _owner(config, route), row.partition):
                print(f"{partition}: the breaker is closed; the route goes on at offset {row.next_offset}")
            elif gap is None:
                print(f"{partition}: there is nothing to accept")
            else:
                by_hand.accept(connection, _owner(config, route), gap, row.epoch)
                print(f"accepted {gap}")
    return EX_OK


def rename(arguments: argparse.Namespace) -> int:
    """Take over what routes have read under a former name of theirs, or of the pipeline."""
    config = load_config(arguments)
    pipeline = arguments.from_pipeline or config.pipeline
    names = arguments.route or [route.name for route in config.route]
    if arguments.from_route is not None and len(names) != 1:
        arguments.parser.error("--from-route is the former name of one route: name that route")
    if pipeline == config.pipeline and arguments.from_route is None:
        arguments.parser.error("say what was renamed: --from-pipeline NAME, or ROUTE --from-route NAME")
    routes = [route_named(config, name) for name in dict.fromkeys(names)]
    with connect(config.postgres, "kbatchd progress rename") as connection, explained():
        check_version(connection)
        if faults := list(privilege_faults(connection, renaming.PRIVILEGES)):
            raise ConfigError(*faults)
        pairs = []
        for route in routes:
            target = catalogue.read_table(connection, route.table).quoted
            own = replace(_owner(config, route), target=target)
            former = replace(own, pipeline=pipeline, route=arguments.from_route or route.name)
            pairs.append((former, own))
        if not arguments.route:  # the whole pipeline: a route may be newer than its name
            pairs = [pair for pair in pairs if claiming.is_begun(connection, pair[0])] or pairs
        for (former, own), moved in zip(pairs, renaming.rename(connection, pairs), strict=True):
            print(f"{former.pipeline}/{former.route} is {own.pipeline}/{own.route} now: {moved}")
    return EX_OK


def _diagnose(
    config: Config, admin: topics.Admin, partition: Partition, position: Position, former: Collection[str]
) -> Gap | None:
    """Find out why an offset cannot be read, if so; what the brokers do not answer is asked again.

    So is one that tells an id which the topic had before: it lags behind the others.
    """
    deadline = time.monotonic() + config.startup_timeout_seconds
    while True:
        try:
            return _unless_former(diagnose(config.kafka, admin, partition, {"": position}).gaps.get(""), former)
        except (ServerUnavailable, SourceError) as error:
            if time.monotonic() + offsets.PAUSE_SECONDS > deadline:
                raise ServerUnavailable(f"{partition}: {error}; nothing is accepted") from error
            time.sleep(offsets.PAUSE_SECONDS)


def _unless_former(gap: Gap | None, former: Collection[str]) -> Gap | None:
    if gap is not None and gap.next_topic_id in former:
        raise ServerUnavailable(f"a broker tells a former id of the topic, {gap.next_topic_id}: it lags behind")
    return gap


def _owner(config: Config, route: Route) -> Owner:
    return Owner(config.pipeline, route.name, route.topic, route.table, "kbatchd progress")


def _chosen(route: Route, rows: Sequence[ProgressRow], numbers: Sequence[int]) -> list[ProgressRow]:
    unknown = set(numbers) - {row.partition for row in rows}
    if unknown or not rows:
        which = ", ".join(map(str, sorted(unknown))) or "any partition"
        raise ConfigError(f"route {route.name}: there is no progress of {which}; see `kbatchd progress show`")
    return [row for row in rows if not numbers or row.partition in numbers]


def _refuse_outside(config: Config, partition: Partition, next_offset: int) -> None:
    """Refuse an offset that is not in the topic: from there nothing could be read."""
    admin = topics.make_admin(config.kafka)
    low, high = offsets.patiently(
        lambda asked: offsets.watermarks(admin, asked), [partition], config.startup_timeout_seconds
    ).all()[partition]
    if not low <= next_offset <= high:
        raise ConfigError(f"{partition}: offset {next_offset} is not in the topic, which has {low} to {high}")


def _lags(config: Config, rows: Sequence[ProgressRow]) -> list[_Lag]:
    """Ask Kafka for the ends of those partitions that are still the ones progress speaks of."""
    admin = topics.make_admin(config.kafka)
    known = topics.describe(admin, {row.topic for row in rows}, LAG_TIMEOUT_SECONDS)
    same = [
        Partition(row.topic, row.partition)
        for row in rows
        if (topic := known[row.topic]) and topic.topic_id == row.topic_id and row.partition < topic.partitions
    ]
    ends = offsets.list_offsets(admin, same, "latest", LAG_TIMEOUT_SECONDS).known
    lags = []
    for row in rows:
        end = ends.get(Partition(row.topic, row.partition))
        lags.append(_Lag(end, None if end is None or row.next_offset is None else end - row.next_offset))
    return lags


def _print_progress(rows: Sequence[ProgressRow], lags: Sequence[_Lag]) -> None:
    """Print a table for people; tab-separated lines, nothing cut, for programs."""
    names = ("route", "topic", "partition", "next_offset", "end", "lag", "epoch", "owner", "target", "updated_at")
    lines = [
        [
            "-" if value is None else str(value)
            for value in (
                row.route,
                row.topic,
                row.partition,
                row.next_offset,
                *lag,
                row.epoch,
                row.owner,
                row.target,
                row.updated_at.isoformat(timespec="seconds"),
            )
        ]
        for row, lag in zip(rows, lags, strict=True)
    ]
    numbers = frozenset({"partition", "next_offset", "end", "lag", "epoch"})
    print_table(names, lines, numbers, spare=("epoch", "updated_at", "target", "topic", "end"))
