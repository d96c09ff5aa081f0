"""A range of offsets, read again into its table: the rows it had go, and those that its records make now come.

All of it is one transaction, so nobody sees the table without these rows, and whatever fails leaves them as they were.
It needs topic, partition and offset as columns. The daemon may run: it never writes below progress, and the range must
lie there still when the transaction ends. A row is deleted only where its record was read. Called by `kbatchd
replay-range`, in its main thread.

A record that is refused becomes a dead letter, as in the daemon. Letters that are there go on: one whose record is a
row now is replayed; one that was replayed with a corrected value has that value again; one whose record is refused
again has the new reason, and is open, unless somebody has discarded it.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.audit import history, places
from kbatchd.audit.ranges import Range, listed, meets, runs
from kbatchd.errors import ConfigError, SinkError
from kbatchd.kafka import offsets, topics
from kbatchd.kafka.span import SpanReader
from kbatchd.postgres import catalogue
from kbatchd.schema import by_hand, ledger, progress
from kbatchd.sink.insertion import Insertion, Memory, Outcome
from kbatchd.sink.sink import copying_letters, dead_letter, storable
from kbatchd.sink.targets import build_target, fill_batch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import psycopg

    from kbatchd.config import Config, Route
    from kbatchd.encode.rows import RowEncoder
    from kbatchd.lineage import Lineage
    from kbatchd.model import Partition, Record, Refusal
    from kbatchd.schema.by_hand import ProgressRow
    from kbatchd.sink.batch import Batch
    from kbatchd.sink.batch_copy import Target

#: How long the brokers may take to answer.
KAFKA_SECONDS = 10.0

#: The letters of the range, held until the end: nobody else settles them meanwhile.
_LETTERS = """
SELECT "offset", id, state, corrected FROM kbatchd.dead_letters
WHERE pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND route OPERATOR(pg_catalog.=) %(route)s
  AND topic OPERATOR(pg_catalog.=) %(topic)s AND partition OPERATOR(pg_catalog.=) %(partition)s
  AND (topic_id IS NULL OR topic_id OPERATOR(pg_catalog.=) %(topic_id)s)
  AND "offset" OPERATOR(pg_catalog.>=) %(first)s AND "offset" OPERATOR(pg_catalog.<) %(end)s
ORDER BY id FOR UPDATE
"""

_SETTLE = """
UPDATE kbatchd.dead_letters SET state = 'replayed', settled_at = pg_catalog.now()
WHERE id OPERATOR(pg_catalog.=) ANY(%s) AND state OPERATOR(pg_catalog.<>) 'replayed'
"""

_REOPEN = """
UPDATE kbatchd.dead_letters
SET state = 'open', settled_at = NULL, code = %(code)s, "column" = %(column)s, message = %(message)s
WHERE id OPERATOR(pg_catalog.=) ANY(%(ids)s) AND state OPERATOR(pg_catalog.<>) 'discarded'
"""


class Done(NamedTuple):
    """What has become of the range."""

    records: int
    #: Rows that it had before.
    deleted: int
    outcome: Outcome


class _Letter(NamedTuple):
    """A dead letter that is there."""

    id: int
    #: The value that was replayed instead of the one that came.
    corrected: bytes | None


def replay_range(
    connection: psycopg.Connection, config: Config, route: Route, partition: Partition, span: Range
) -> Done:
    """Read [first, end) again. Raises ConfigError where that cannot be, SinkError where it failed: all is as it was."""
    if route.mode == "upsert":
        raise ConfigError(
            f"route {route.name}: an old range would overwrite newer values of its keys; read it all again from there: "
            f"`kbatchd progress set --config FILE {route.name} {partition.number} {span[0]}`"
        )
    table = catalogue.read_table(connection, route.table)
    try:
        columns = places.find(table, route, config.route, ("SELECT", "DELETE"))
    except ConfigError as error:
        raise ConfigError(
            *(f"route {route.name}: its rows cannot be found again: {each}" for each in error.faults)
        ) from error
    if followers := columns.followers(connection):
        raise ConfigError(
            f"route {route.name}: rows of table {', '.join(followers)} would go or change with those that are deleted: "
            "it has a foreign key with ON DELETE CASCADE, SET NULL or SET DEFAULT"
        )
    target, encoder = build_target(config.pipeline, route, "kbatchd replay-range", table)
    row = _stand(connection, target, partition)
    _refuse(connection, config, target, row, partition, span)
    with (
        closing(SpanReader(config.kafka, "replay-range", route.topic)) as reader,
        progress.durable_transaction(connection),
    ):
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")  # Kafka may take a moment
        deleted = columns.delete(connection, partition, *span)
        again = _Again(connection, target, encoder, row, partition, span)
        for records in reader.read(partition, *span):
            again.take(records)
        if gone := set(deleted) - again.offsets:
            raise ConfigError(
                f"{partition}: Kafka has no record of offsets {listed(runs(gone))} any more, and the table has rows of "
                "them: compaction has taken it, or it never was one; nothing was changed"
            )
        again.close()
    return Done(len(again.offsets), len(deleted), again.outcome)


def _stand(connection: psycopg.Connection, target: Target, partition: Partition) -> ProgressRow:
    every = by_hand.show(connection, target.owner.pipeline)
    for row in every:
        if (row.route, row.topic, row.partition) == (target.owner.route, *partition):
            return row
    raise ConfigError(f"route {target.owner.route}: there is no progress of {partition}; see `kbatchd progress show`")


def _refuse(
    connection: psycopg.Connection, config: Config, target: Target, row: ProgressRow, partition: Partition, span: Range
) -> None:
    """Raise ConfigError unless the range lies below progress, in the topic that was read, and wholly in Kafka."""
    first, end = span
    if row.target != target.owner.target:
        raise ConfigError(f"{partition}: its progress was made for table {row.target}, not {target.owner.target}")
    _refuse_ahead(partition, row.next_offset, end)
    admin = topics.make_admin(config.kafka)
    topic = topics.describe(admin, [partition.topic], KAFKA_SECONDS)[partition.topic]
    if topic is None or topic.topic_id != row.topic_id:
        raise ConfigError(f"{partition}: the topic was recreated since it was read: nobody has these records any more")
    former = history.former_offsets(connection, target.owner).get(partition.number, ())
    if meets(former, first, end):
        raise ConfigError(
            f"{partition}: a former topic of the name, or a log that was truncated, had offsets {listed(former)} too: "
            "their rows cannot be told from those of the range"
        )
    marks = offsets.patiently(lambda asked: offsets.watermarks(admin, asked), [partition], KAFKA_SECONDS)
    low, high = marks.all()[partition]
    if first < low or end > high:
        raise ConfigError(f"{partition}: Kafka has offsets {low} to {high - 1} only, and not all of {listed([span])}")


def _refuse_ahead(partition: Partition, next_offset: int | None, end: int) -> None:
    if next_offset is None or end > next_offset:
        stands = "has not begun" if next_offset is None else f"stands at {next_offset}"
        raise ConfigError(
            f"{partition}: progress {stands}, and the range must end there or before: the daemon reads on"
        )


class _Again:
    """The range on its way, chunk by chunk, in one transaction."""

    def __init__(
        self,
        connection: psycopg.Connection,
        target: Target,
        encoder: RowEncoder,
        row: ProgressRow,
        partition: Partition,
        span: Range,
    ) -> None:
        self._connection = connection
        self._target = target
        self._encoder = encoder
        self._row = row
        self._partition = partition
        self._span = span
        self._lineage: Lineage = progress.lineages(connection, target.owner)[partition.number]
        self._memory = Memory()
        self._letters: dict[int, list[_Letter]] = {}
        names = {
            "pipeline": target.owner.pipeline,
            "route": target.owner.route,
            "topic": partition.topic,
            "partition": partition.number,
            "topic_id": row.topic_id,
            "first": span[0],
            "end": span[1],
        }
        for offset, id_, state, corrected in connection.execute(_LETTERS, names):
            kept = corrected if state == "replayed" else None
            self._letters.setdefault(offset, []).append(_Letter(id_, kept))
        self.offsets: set[int] = set()
        self.outcome = Outcome()

    def take(self, records: Sequence[Record]) -> None:
        """Insert these; their dead letters too."""
        for record in records:
            before = self._lineage.at(record.offset() or 0)
            if before is not None and record.leader_epoch() not in {None, before}:
                raise ConfigError(
                    f"{self._partition}: offset {record.offset()} is another record than the one that was read"
                )
        values = [self._value(record) for record in records]
        batch = fill_batch(self._encoder, records, values)
        insertion = _Inserting(self._connection, batch, self._target, self._memory, self._letters, self._row.topic_id)
        insertion.run()
        self.offsets.update(record.offset() or 0 for record in records)
        self.outcome.rows += insertion.outcome.rows
        self.outcome.skipped += insertion.outcome.skipped
        self.outcome.dead_letters += insertion.outcome.dead_letters
        self.outcome.reason = self.outcome.reason or insertion.outcome.reason

    def _value(self, record: Record) -> bytes | None:
        corrected = [
            each.corrected for each in self._letters.get(record.offset() or 0, ()) if each.corrected is not None
        ]
        return corrected[-1] if corrected else record.value()

    def close(self) -> None:
        """Compare with progress as it is now, and hold it until the end; then write the line of the ledger."""
        found = self._connection.execute(
            f"""
            SELECT next_offset, epoch, topic_id FROM kbatchd.progress
            WHERE {progress.OURS} AND partition OPERATOR(pg_catalog.=) %(partition)s FOR SHARE
            """,  # noqa: S608 - a constant
            {**progress.keys_of(self._target.owner), "partition": self._partition.number},
        ).fetchone()
        if found is None or found[1:] != (self._row.epoch, self._row.topic_id):
            raise SinkError(f"{self._partition}: it was claimed or moved meanwhile; nothing was changed: run it again")
        _refuse_ahead(self._partition, found[0], self._span[1])
        counts = ledger.Flushed(self.outcome.rows, self.outcome.dead_letters, self.outcome.skipped)
        ledger.write_ledger(
            self._connection, self._target.owner, ledger.READ_AGAIN, {self._partition: self._span}, counts
        )


class _Inserting(Insertion):
    """A chunk of the range."""

    def __init__(
        self,
        connection: psycopg.Connection,
        batch: Batch,
        target: Target,
        memory: Memory,
        letters: Mapping[int, Sequence[_Letter]],
        topic_id: str,
    ) -> None:
        """`letters` are those that there are, by offset."""
        super().__init__(connection, batch, target, memory)
        self.letters, self.topic_id = letters, topic_id

    def account(self, last: int, dead: Mapping[int, Refusal]) -> None:
        """Settle the letters of what is in, and let those of what is refused go on; write those that are new."""
        records = self.batch.records
        there = {index: self.letters.get(records[index].offset() or 0, ()) for index in range(self.done, last)}
        settled = [letter.id for index, letters in there.items() if index not in dead for letter in letters]
        if settled:
            self.connection.execute(_SETTLE, (settled,))
        for index in sorted(index for index in dead if there[index]):
            why = dead[index]
            names = {"code": why.code, "column": why.column and storable(why.column), "message": storable(why.message)}
            self.connection.execute(_REOPEN, {**names, "ids": [letter.id for letter in there[index]]})
        new = sorted(index for index in dead if not there[index])
        if new:
            with copying_letters(self.connection, len(new)) as write:
                for index in new:
                    write(dead_letter(self.target.owner, self.topic_id, records[index], dead[index]))
