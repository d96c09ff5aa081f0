"""The live preflight: all that can be found wrong with the file's servers, tables, topics and records, at once.

Beyond what the daemon's own start insists on (inspection.py) it looks at what will hurt later, and tries real records
(trial.py). Whatever is away is told, and the rest is asked all the same. Nothing is left behind: no consumer group, no
row, no lock. Called by `kbatchd check`, in its main thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg

from kbatchd.check import inspection, properties, trial
from kbatchd.check.findings import Finding, Level, fault
from kbatchd.errors import ConfigError, KbatchError
from kbatchd.kafka import excerpt, groups, topics
from kbatchd.kafka.watch import judge
from kbatchd.model import GapKind, Partition
from kbatchd.postgres import catalogue
from kbatchd.postgres.connection import connect
from kbatchd.postgres.table import Table
from kbatchd.schema import by_hand, pausing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from kbatchd.config import Config, Route
    from kbatchd.kafka.offsets import Answers, Offset
    from kbatchd.kafka.topics import TopicDescription
    from kbatchd.postgres.connection import Connection

#: How long a server may take to answer: this is asked by somebody who waits.
TIMEOUT_SECONDS = 10.0

#: Records of each route that are tried.
RECORDS = 1_000

_ROLE_SQL = """
SELECT pg_catalog.current_setting('transaction_read_only') OPERATOR(pg_catalog.=) 'on',
    pg_catalog.quote_ident(current_user)
"""

#: Sequences behind the defaults of columns that no record feeds.
_SEQUENCES_SQL = """
SELECT s.oid::pg_catalog.regclass::pg_catalog.text
FROM pg_catalog.pg_attrdef d
    JOIN pg_catalog.pg_attribute a
        ON a.attrelid OPERATOR(pg_catalog.=) d.adrelid AND a.attnum OPERATOR(pg_catalog.=) d.adnum
    JOIN pg_catalog.pg_depend p
        ON p.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_attrdef'::pg_catalog.regclass
        AND p.objid OPERATOR(pg_catalog.=) d.oid
        AND p.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
    JOIN pg_catalog.pg_class s ON s.oid OPERATOR(pg_catalog.=) p.refobjid
WHERE d.adrelid OPERATOR(pg_catalog.=) %s AND a.attname OPERATOR(pg_catalog.<>) ALL(%s)
    AND CASE WHEN s.relkind OPERATOR(pg_catalog.=) 'S'
        THEN NOT pg_catalog.has_sequence_privilege(s.oid, 'USAGE') ELSE false END
"""


class Checkup:
    """One look at everything."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._admin: topics.Admin | None = None
        self._topics: Mapping[str, TopicDescription | None] = {}
        self._marks: dict[str, Answers[tuple[Offset, Offset]]] = {}
        #: Where each partition stands, by route.
        self._progress: dict[str, list[by_hand.ProgressRow]] = {}

    def run(self) -> Iterator[Finding]:
        """Yield what is found: servers first, then each route."""
        yield from self._kafka()
        try:
            connection = connect(self._config.postgres, "kbatchd check")
        except KbatchError as error:
            for line in str(error).splitlines():
                found = fault("postgres", line)
                yield found if isinstance(error, ConfigError) else found._replace(what=line, remedy=_UNREACHABLE)
            for route in self._config.route:
                yield from self._topic(route)
            return
        with connection:
            yield from _told("postgres", self._postgres(connection))
            for route in self._config.route:
                yield from self._topic(route)
                yield from _told(f"route {route.name}", self._table(connection, route))

    def _kafka(self) -> Iterator[Finding]:
        config = self._config
        for where, what in properties.judge(config).items():
            yield Finding(Level.FAULT, "kafka", f"{'.'.join(map(str, where))}: {what}", "fix it in the file")
        try:
            self._admin = topics.make_admin(config.kafka)
            self._topics = topics.describe(self._admin, {route.topic for route in config.route}, TIMEOUT_SECONDS)
            group = groups.describe(self._admin, config.kafka.group_id, TIMEOUT_SECONDS)
            for text in inspection.group_warnings(config, group) if group else ():
                yield fault("kafka", text)._replace(level=Level.WARNING)
        except KbatchError as error:
            self._admin = None
            found = fault("kafka", str(error))
            known = isinstance(error, ConfigError)
            yield found if known else found._replace(what=str(error), remedy=_UNREACHABLE)

    def _postgres(self, connection: Connection) -> Iterator[Finding]:
        found = [fault("postgres", text) for text in inspection.server_faults(connection, self._config)]
        yield from found
        row = connection.execute(_ROLE_SQL).fetchone()
        if row and row[0]:
            remedy = f"lead postgres.dsn to the primary, or: ALTER ROLE {row[1]} RESET default_transaction_read_only"
            yield Finding(Level.FAULT, "postgres", "the session is read-only: a standby, or a role's setting", remedy)
        try:
            for name, pause in pausing.read_pauses(connection, self._config.pipeline).items():
                remedy = f"when it may go on: `kbatchd route resume --config FILE {name}`"
                yield Finding(Level.WARNING, f"route {name}", f"it is {pause}", remedy)
            for standing in by_hand.show(connection, self._config.pipeline):
                self._progress.setdefault(standing.route, []).append(standing)
        except psycopg.Error:
            if not found:  # else it has been told
                raise

    def _topic(self, route: Route) -> Iterator[Finding]:
        where = f"route {route.name}"
        if self._admin is None:
            return
        topic = self._topics[route.topic]
        if topic is None:
            yield from (fault(where, text) for text in inspection.topic_faults(route, self._topics))
            return
        workers = self._config.workers.count
        partitions = sum(known.partitions for known in self._topics.values() if known)
        if self._config.kafka.assignment == "pinned" and workers > partitions:
            yield Finding(
                Level.WARNING,
                "file",
                f"{workers} workers, and {partitions} partitions of all topics together: some have nothing to do",
                "lower workers.count, or give the topics more partitions",
            )
        if route.mode == "append" and topics.is_compacted(self._admin, topic.topic, TIMEOUT_SECONDS):
            what = f"topic {topic.topic} is compacted: Kafka may delete records that have not been read yet"
            yield Finding(
                Level.WARNING, where, what, 'make the route mode = "upsert", or the topic cleanup.policy=delete'
            )
        yield from self._standing(where, route, topic)

    def _standing(self, where: str, route: Route, topic: TopicDescription) -> Iterator[Finding]:
        """Compare progress with the topic as it is."""
        assert self._admin is not None
        rows = [row for row in self._progress.get(route.name, ()) if row.topic == route.topic]
        gone = [row.partition for row in rows if row.partition >= topic.partitions]
        if gone:
            what = f"progress knows of partition {gone[0]}, and topic {topic.topic} has only {topic.partitions}"
            yield Finding(Level.WARNING, where, what, "look whether the topic was recreated")
        try:
            marks = self._marks_of(topic)
        except KbatchError as error:
            yield Finding(Level.FAULT, where, str(error), _UNREACHABLE)
            return
        for silence in marks.silent.values():
            yield Finding(Level.FAULT, where, str(silence), _NO_LEADER)
        for row in rows:
            if Partition(row.topic, row.partition) not in marks.known or row.next_offset is None:
                continue
            low, high = marks.known[Partition(row.topic, row.partition)]
            gap = judge(Partition(row.topic, row.partition), row.next_offset, row.topic_id, topic.topic_id, low, high)
            if gap is not None:
                level = Level.WARNING if route.on_gap == "record" and gap.kind is GapKind.RETENTION else Level.FAULT
                yield Finding(level, where, str(gap), f"`kbatchd progress accept --config FILE {route.name}`")

    def _marks_of(self, topic: TopicDescription) -> Answers[tuple[Offset, Offset]]:
        """Ask for a topic's offsets, once for all its routes: partitions without a leader take some seconds."""
        assert self._admin is not None
        if topic.topic not in self._marks:
            self._marks[topic.topic] = excerpt.marks(self._admin, topic, TIMEOUT_SECONDS)
        return self._marks[topic.topic]

    def _table(self, connection: Connection, route: Route) -> Iterator[Finding]:
        where = f"route {route.name}"
        faults = [*inspection.table_faults(connection, self._config, route)]
        faults += inspection.partition_faults(connection, self._config, route, self._topics.get(route.topic))
        found = [fault(where, text) for text in faults]
        try:
            table = catalogue.read_table(connection, route.table)
        except ConfigError:  # it is among the faults
            yield from found
            return
        found += _sequence_faults(connection, where, route, table)
        found += self._names(connection, where, route)
        yield from found
        for text in inspection.table_warnings(connection, table):
            yield fault(where, text)._replace(level=Level.WARNING)
        if all(finding.level is Level.WARNING for finding in found):
            yield from self._records(connection, where, route)

    def _names(self, connection: Connection, where: str, route: Route) -> Iterator[Finding]:
        """Look whether somebody has read the topic into this table under another name."""
        topic = self._topics.get(route.topic)
        if topic is None:
            return
        yield from (fault(where, text) for text in inspection.name_faults(connection, self._config, route, topic))
        for text in inspection.name_warnings(connection, self._config, route, topic):
            yield fault(where, text)._replace(level=Level.WARNING)

    def _records(self, connection: Connection, where: str, route: Route) -> Iterator[Finding]:
        topic = self._topics.get(route.topic)
        if self._admin is None or topic is None:
            return
        try:
            records = excerpt.read(self._config.kafka, self._marks_of(topic).known, RECORDS)
        except KbatchError as error:
            yield Finding(Level.FAULT, where, str(error), _UNREACHABLE)
            return
        offsets = {row.partition: row.next_offset or 0 for row in self._progress.get(route.name, ())}
        if records:
            yield from trial.run(connection, self._config.pipeline, route, records, offsets)


def _told(where: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """Make a finding of what PostgreSQL has against a question: the other findings must not go with it."""
    try:
        yield from findings
    except psycopg.Error as error:
        text = " ".join(str(error).split())
        yield Finding(Level.FAULT, where, f"PostgreSQL refuses a question: {text}", "fix the cause, and check again")


def _sequence_faults(connection: Connection, where: str, route: Route, table: Table) -> Iterator[Finding]:
    fed = [column.name for column in table.columns if column.name not in route.omit]
    for (sequence,) in connection.execute(_SEQUENCES_SQL, (table.oid, fed)):
        what = f"no right to USAGE on sequence {sequence}, which a default of table {table} needs"
        yield Finding(Level.FAULT, where, what, f"GRANT USAGE ON SEQUENCE {sequence} TO {table.user}")


_NO_LEADER = "start the broker that has it, or make another one its leader; the other partitions go on"

_UNREACHABLE = "see that it runs and can be reached from here, or fix its address in the file"
