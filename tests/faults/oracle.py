"""The oracle: what became of each record of a topic, by partition and offset, whatever the daemon says of itself.

Every record has a number that no other has, and its row keeps it, its offset and a text made from the number. So a row
tells which record it is of, also when the topic was recreated or its log truncated meanwhile: `remember` reads what is
about to vanish. `faults` then finds every record lost, doubled, altered, written beyond progress, or skipped under no
name, and every answer of `ack=db` that the table gives the lie.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import orjson
import psycopg
from confluent_kafka import Consumer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.faults.books import Books, Edition, Fault, Gap, Kept, Move, Row
from tests.fix_load import read_topic, watermarks

if TYPE_CHECKING:
    from collections.abc import Mapping

#: The identity tells the order of insertion.
TABLE = """CREATE TABLE {} (
    id bigint GENERATED ALWAYS AS IDENTITY, topic text NOT NULL, partition int NOT NULL, "offset" bigint NOT NULL,
    seq bigint NOT NULL, note text NOT NULL)"""

#: The columns of the route that no field fills.
COLUMNS = {name: {"source": name} for name in ("topic", "partition", "offset")}


class Unbalanced(AssertionError):
    """The books do not balance: records were lost, doubled, altered, skipped in silence, or confirmed and not there."""


def note(seq: int) -> str:
    """Make the text that a record carries: about 40 characters that depend on its number in each place."""
    return f"{seq * 2_654_435_761 % 2**61:016x}" * 2 + f"-{seq}"


def value(seq: int, *, sound: bool = True) -> bytes:
    """Make a record's value: one that becomes a dead letter where it is not sound."""
    return orjson.dumps({"seq": seq, "note": note(seq) if sound else None})


@dataclass(frozen=True, slots=True)
class Answered:
    """What a client was told of records it had sent with `ack=db`."""

    status: int
    kind: str
    seqs: tuple[int, ...]


@dataclass
class Oracle:
    """One topic, one route, one table."""

    bootstrap_servers: str
    topic: str
    dsn: str
    table: str = "public.kept"
    route: str = ""
    pipeline: str = "kbatchd"
    #: Where reading may begin, by partition: 0, but for a route with `start`.
    first: Mapping[int, int] = field(default_factory=dict)
    #: Reading began where the ledger begins, wherever that is.
    begins_late: bool = False
    answers: list[Answered] = field(default_factory=list)
    _former: list[Edition] = field(default_factory=list)

    def edition(self) -> Edition:
        """Read the topic as it is now."""
        settings: dict[str, str | int | float | bool] = {"bootstrap.servers": self.bootstrap_servers, "log_level": 0}
        admin = AdminClient(settings)
        described = admin.describe_topics(TopicCollection([self.topic]))[self.topic].result()
        consumer = Consumer({**settings, "group.id": "oracle"})
        marks = {each.id: watermarks(consumer, TopicPartition(self.topic, each.id)) for each in described.partitions}
        consumer.close()
        records = [
            Kept(m.partition() or 0, m.offset() or 0, m.leader_epoch(), orjson.loads(m.value() or b"")["seq"])
            for m in read_topic(self.bootstrap_servers, self.topic)
        ]
        begins, stops = ({number: mark[at] for number, mark in marks.items()} for at in (0, 1))
        return Edition(str(described.topic_id), begins, stops, records)

    def remember(self) -> Edition:
        """Keep what is in the topic, before it is deleted or cut off."""
        self._former.append(self.edition())
        return self._former[-1]

    def check(self) -> None:
        """Raise Unbalanced with all that is wrong."""
        faults = self.faults()
        if faults:
            raise Unbalanced("; ".join(map(str, faults)))

    def faults(self) -> list[Fault]:
        """Compare the topic, as it is and as it was, with rows, dead letters, gaps, the ledger and answers."""
        now, books = self.edition(), self.books()
        known = {record.seq: record for edition in (*self._former, now) for record in edition.records}
        count = Counter(row.seq for row in books.rows)
        found = [
            _named("out of order", _late(books.rows)),
            _named("written twice", [known[seq] for seq, times in count.items() if times > 1 and seq in known]),
            _named("rows of no record", [row for row in books.rows if row.seq not in known]),
            _named("rows altered", [row for row in books.rows if row.seq in known and not _same(row, known[row.seq])]),
            *self._faults_of_now(now, books, count),
        ]
        for edition in self._former:
            seqs = {record.seq for record in now.records} if edition.topic_id == now.topic_id else set()
            gone = [record for record in edition.records if record.seq not in seqs]
            found.append(_faults_of_former(edition.topic_id, gone, now, books, count))
        found += [_against(answered, count) for answered in self.answers]
        found += _faults_of_ledger(books)
        return [fault for fault in found if fault is not None]

    def _faults_of_now(self, now: Edition, books: Books, count: Counter[int]) -> list[Fault | None]:
        """Everything below progress is one row or one dead letter; nothing at it or above is anything.

        Gaps excuse nothing here: what can still be read was not lost.
        """
        lost, both, beyond = [], [], []
        for record in now.records:
            topic_id, next_offset = books.progress.get(record.partition, (now.topic_id, 0))
            begins = books.began(record.partition) if self.begins_late else self.first.get(record.partition, 0)
            is_due = topic_id == now.topic_id and begins <= record.offset < next_offset
            times = count[record.seq] + books.letters(now.topic_id, record)
            if is_due and not times:
                lost.append(record)
            elif times > 1 and count[record.seq] <= 1:
                both.append(record)
            elif not is_due and times:
                beyond.append(record)
        return [
            _named("lost", lost),
            _named("row and dead letter, or dead letters twice", both),
            _named("written before the start or beyond progress", beyond),
        ]

    @property
    def _keys(self) -> tuple[str, str, str]:
        return self.pipeline, self.route or self.topic, self.topic

    def progress(self) -> dict[int, tuple[str, int]]:
        """Return of which topic each partition's progress is, and how far."""
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute(
                """
                SELECT partition, topic_id, next_offset FROM kbatchd.progress
                WHERE (pipeline, route, topic) = (%s, %s, %s)
                """,
                self._keys,
            )
            return {number: (topic_id, next_offset) for number, topic_id, next_offset in rows}

    def books(self) -> Books:
        """Read all that PostgreSQL has."""
        of_route = "WHERE (pipeline, route, topic) = (%s, %s, %s)"

        def ask(statement: str) -> list[tuple[Any, ...]]:
            return connection.execute(f"{statement} {of_route}".encode(), self._keys).fetchall()

        with psycopg.connect(self.dsn) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            rows = connection.execute(f'SELECT partition, "offset", seq, note FROM {self.table} ORDER BY id'.encode())
            stored = [Row(*row) for row in rows]
            progress = ask("SELECT partition, topic_id, next_offset FROM kbatchd.progress")
            dead = ask('SELECT topic_id, partition, "offset" FROM kbatchd.dead_letters')
            gaps = ask("SELECT topic_id, kind, partition, first_offset, last_offset FROM kbatchd.gaps")
            moves = connection.execute(
                """
                SELECT reason, span.key::int, (span.value->>0)::bigint, (span.value->>1)::bigint
                FROM kbatchd.batches, jsonb_each(spans->%s) AS span
                WHERE (pipeline, route) = (%s, %s) ORDER BY id
                """,
                (self.topic, *self._keys[:2]),
            ).fetchall()
        return Books(
            stored,
            {number: (topic_id, offset or 0) for number, topic_id, offset in progress},
            Counter((topic_id, number, offset) for topic_id, number, offset in dead),
            [Gap(*gap) for gap in gaps],
            [Move(*move) for move in moves],
        )


def _faults_of_former(topic_id: str, gone: list[Kept], now: Edition, books: Books, count: Counter[int]) -> Fault | None:
    """What is in the topic no more was written, or is named, up to where reading came.

    Of what retention deleted that is progress. Of a topic that was deleted, or of a log that was cut off, it is the
    last record that was written: what came after it went before anyone saw it, and nobody can name it.
    """
    taken = {record.seq for record in gone if count[record.seq] or books.letters(topic_id, record)}
    last = {record.partition: record.offset for record in gone if record.seq in taken}
    unnamed = []
    for record in gone:
        of_topic, next_offset = books.progress.get(record.partition, ("", 0))
        is_deleted = topic_id == now.topic_id == of_topic and record.offset < now.begins.get(record.partition, 0)
        reached = next_offset if is_deleted else last.get(record.partition, -1)
        is_named = any(gap.covers(topic_id, record) for gap in books.gaps)
        if record.seq not in taken and record.offset < reached and not is_named:
            unnamed.append(record)
    return _named("gone, not written and not named", unnamed)


def _against(answered: Answered, count: Counter[int]) -> Fault | None:
    """Hold an answer against the table: 200 is in, 422 is not, and what was lost is not there either."""
    there = [seq for seq in answered.seqs if count[seq]]
    if answered.status == HTTPStatus.OK and len(there) < len(answered.seqs):
        return Fault("confirmed and not in the table", 0, _some(sorted(set(answered.seqs) - set(there))))
    if len(there) < len(answered.seqs):
        return None
    if answered.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        return Fault("refused and in the table", 0, _some(there))
    return Fault("said to be lost and in the table", 0, _some(there)) if answered.kind.endswith("lost") else None


def _faults_of_ledger(books: Books) -> list[Fault]:
    """Each move of a partition begins where the one before it ended, and the last one ends where progress is."""
    faults = []
    for number, (_, next_offset) in books.progress.items():
        moves = [move for move in books.ledger if move.partition == number]
        for before, after in pairwise(moves):
            if after.start != before.stop:
                jump = f"from {before.stop} on at {after.start} ({after.reason})"
                faults.append(Fault(f"the ledger of [{number}] goes", 0, jump))
        if moves and moves[-1].stop != next_offset:
            ends = f"at {moves[-1].stop}, progress stands at {next_offset}"
            faults.append(Fault(f"the ledger of [{number}] ends", 0, ends))
    return faults


def _same(row: Row, record: Kept) -> bool:
    return (row.partition, row.offset, row.note) == (record.partition, record.offset, note(record.seq))


def _late(rows: list[Row]) -> list[Row]:
    """Return the rows that were inserted after one of their partition with a higher number."""
    highest: dict[int, int] = {}
    late = []
    for row in rows:
        if row.seq < highest.get(row.partition, -1):
            late.append(row)
        highest[row.partition] = max(row.seq, highest.get(row.partition, -1))
    return late


def _named(what: str, records: list[Kept] | list[Row]) -> Fault | None:
    """Say how many, and which the first ones are; nothing where there are none."""
    if not records:
        return None
    places = ", ".join(f"[{record.partition}]@{record.offset}" for record in records[:5])
    return Fault(what, len(records), f"{places}{', ...' * (len(records) > 5)}")


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
