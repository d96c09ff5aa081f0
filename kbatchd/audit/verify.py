"""The comparison of a route: what is in Kafka, progress, the ledger, dead letters, gaps and the table.

All of PostgreSQL's part is of one snapshot, and nothing is locked; Kafka's is read behind it, up to where progress
stood then. So the daemon may run. What retention has deleted is not known where the ledger does not tell, and said to
be; holes of markers and of compaction are no records, and nobody looks for them. Called by `kbatchd verify`, in its
main thread.
"""

from __future__ import annotations

from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.audit import history, places
from kbatchd.audit.comparison import Comparison, Report, Rows, Stand, judge_lines
from kbatchd.errors import ConfigError, ServerUnavailable, SourceError
from kbatchd.kafka import offsets, topics
from kbatchd.kafka.span import SpanReader
from kbatchd.model import Partition
from kbatchd.postgres import catalogue
from kbatchd.schema import by_hand, claiming, progress
from kbatchd.schema.progress import Owner

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    import psycopg

    from kbatchd.audit.history import History
    from kbatchd.audit.places import Places
    from kbatchd.config import Config, Route

#: How long the brokers may take to answer.
KAFKA_SECONDS = 10.0

_LETTERS = """
SELECT partition, "offset", state FROM kbatchd.dead_letters
WHERE pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND route OPERATOR(pg_catalog.=) %(route)s
  AND topic OPERATOR(pg_catalog.=) %(topic)s AND (topic_id IS NULL OR topic_id OPERATOR(pg_catalog.=) %(topic_id)s)
ORDER BY partition, "offset"
"""


class Audit(NamedTuple):
    """What was found of a route; `why_no_rows` is why its table was not compared, None if it was."""

    route: str
    why_no_rows: str | None
    reports: list[Report]


@contextmanager
def snapshot(connection: psycopg.Connection) -> Iterator[None]:
    """Let all that is read be of one moment, for as long as Kafka takes; nothing is written."""
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        yield


def verify(connection: psycopg.Connection, config: Config, route: Route, since: datetime | None) -> Audit:
    """Compare all of a route, or what was written since a time; the caller has begun the snapshot."""
    owner = Owner(config.pipeline, route.name, route.topic, route.table, "kbatchd verify")
    histories, lines = history.read(connection, owner, since)
    stands, lost = _stands(connection, owner, histories, since)
    for stand in stands.values():
        lines += stand.history.close(stand.partition.number, stand.next_offset)
    table, why = _table(connection, config, route)
    firsts = {number: stand.begin for number, stand in stands.items()}
    rows = Rows(table.rows(connection, route.topic, firsts)) if table and stands else None
    compacts = _ask_kafka(config, route, stands, is_part=since is not None)
    with closing(SpanReader(config.kafka, "verify", route.topic)) as reader:
        for _, stand in sorted(stands.items()):
            _compare(stand, reader, rows)
    reports = {number: stand.report for number, stand in stands.items()}
    judge_lines(reports, lines, compacts=compacts, has_rows=rows is not None)
    return Audit(route.name, why, sorted([*reports.values(), *lost], key=lambda report: report.partition))


def _stands(
    connection: psycopg.Connection, owner: Owner, histories: Mapping[int, History], since: datetime | None
) -> tuple[dict[int, Stand], list[Report]]:
    """Read where each partition stands, and what is known below; and report those of which there is nothing to read."""
    every = by_hand.show(connection, owner.pipeline)
    rows = [row for row in every if (row.route, row.topic) == (owner.route, owner.topic)]
    lineages = progress.lineages(connection, owner)
    letters = _letters(connection, owner, {row.topic_id for row in rows})
    stands, others = {}, []
    for row in rows:
        partition = Partition(row.topic, row.partition)
        report = Report(owner.route, partition, row.next_offset)
        if row.next_offset is None:
            report.unknown.append("its broker has not said yet where it begins")
            others.append(report)
            continue
        own = histories.get(row.partition) or history.History()
        epochs = [] if since else [first for _, first in lineages[row.partition].epochs]
        begin = min([*epochs, row.next_offset if own.first is None else own.first, row.next_offset])
        known = [letter for letter in letters.get(row.partition, ()) if letter[0] >= begin]
        stands[row.partition] = Stand(report, partition, row.topic_id, row.next_offset, begin, own, known)
    missing = set(range(claiming.known_partitions(connection, owner))) - {row.partition for row in rows}
    for number in missing:
        lost = Report(owner.route, Partition(owner.topic, number), None)
        lost.lost.append("its progress is gone from kbatchd.progress, and that of others is there")
        others.append(lost)
    return stands, others


def _letters(connection: psycopg.Connection, owner: Owner, topic_ids: set[str]) -> dict[int, list[tuple[int, str]]]:
    found: dict[int, list[tuple[int, str]]] = {}
    names = {"pipeline": owner.pipeline, "route": owner.route, "topic": owner.topic}
    for topic_id in topic_ids:
        for number, offset, state in connection.execute(_LETTERS, {**names, "topic_id": topic_id}):
            found.setdefault(number, []).append((offset, state))
    return found


def _table(connection: psycopg.Connection, config: Config, route: Route) -> tuple[Places | None, str | None]:
    """Find the columns by which rows are compared; or say why there are none."""
    if route.mode == "upsert":
        return None, "an upsert's table has the last row of each key only"
    try:
        return places.find(catalogue.read_table(connection, route.table), route, config.route), None
    except ConfigError as error:
        return None, "; ".join(error.faults)


def _ask_kafka(config: Config, route: Route, stands: Mapping[int, Stand], *, is_part: bool) -> bool:
    """Ask what there is to read of each partition; return whether the topic is compacted."""
    admin = topics.make_admin(config.kafka)
    topic = topics.describe(admin, [route.topic], KAFKA_SECONDS)[route.topic]
    if topic is None:
        raise ConfigError(f"route {route.name}: topic {route.topic} does not exist")
    asked = [stand.partition for number, stand in stands.items() if number < topic.partitions]
    marks = offsets.patiently(lambda some: offsets.watermarks(admin, some), asked, KAFKA_SECONDS)
    for number, stand in stands.items():
        if stand.topic_id != topic.topic_id:
            stand.report.unknown.append(f"the topic was recreated (id {topic.topic_id}): what was read is gone")
        elif number >= topic.partitions:
            stand.report.unknown.append(f"the topic has only {topic.partitions} partitions")
        elif stand.partition in marks.silent:
            stand.report.unknown.append(str(marks.silent[stand.partition]))
        else:
            stand.place(*marks.known[stand.partition], is_part=is_part)
    return topics.is_compacted(admin, route.topic, KAFKA_SECONDS)


def _compare(stand: Stand, reader: SpanReader, rows: Rows | None) -> None:
    """Read what Kafka has of a partition, and compare it, window by window."""
    comparison = Comparison(stand, rows)
    if stand.report.compared is None:
        comparison.pass_over(stand.next_offset)
    else:
        first, end = stand.report.compared
        comparison.pass_over(first)
        try:
            for records in reader.read(stand.partition, first, end):
                found = [record.offset() or 0 for record in records]
                comparison.take(found, found[-1] + 1)
            comparison.take([], end)
        except (SourceError, ServerUnavailable) as error:
            stand.report.unknown.append(str(error))
            stand.report.compared = first, comparison.reached
        comparison.pass_over(stand.next_offset)
    comparison.end()
