"""Progress: how far each partition is in the table, and who may move it.

The truth about delivery is `kbatchd.progress`, in the same database as the rows. A claim raises the epoch; from then on
only the claimant's session moves that partition, by compare-and-set in the transaction that holds the rows. Called by
the flusher, by the start-up checks (`register`), by `kbatchd progress`, and, to look only, by reached.py.
"""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, LiteralString, NamedTuple

import orjson
from psycopg.rows import class_row

from kbatchd.errors import ConfigError, Fenced, SinkError
from kbatchd.lineage import Lineage
from kbatchd.model import Gap, GapKind, Partition
from kbatchd.postgres.books import agree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from datetime import datetime

    import psycopg


#: The lines of a route and its topic.
_OURS: LiteralString = """
    pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND route OPERATOR(pg_catalog.=) %(route)s
    AND topic OPERATOR(pg_catalog.=) %(topic)s"""

#: How many partitions are known, of a route's topic: more than are there where some were lost. NULL: none.
_KNOWN: LiteralString = f"""
    SELECT pg_catalog.max(greatest(partition OPERATOR(pg_catalog.+) 1, partitions))
    FROM kbatchd.progress WHERE {_OURS}"""  # noqa: S608 - a constant


class Position(NamedTuple):
    """A claimed partition: the epoch to write under, the offset to read on from, and of which topic and log that is."""

    epoch: int
    next_offset: int
    topic_id: str = ""
    lineage: Lineage = Lineage()


class Unbegun(NamedTuple):
    """A partition whose beginning is not known yet: the route's `start` when its topic was read first, and of which."""

    start: str
    topic_id: str


#: Whether a topic has any progress.
_ANY = f"""
SELECT FROM kbatchd.progress WHERE {_OURS}
"""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who claims: the pipeline and route from the file, the table, and a name for people to read."""

    pipeline: str
    route: str
    topic: str
    target: str
    worker: str


class Flushed(NamedTuple):
    """What a transaction has written, for the ledger."""

    rows: int = 0
    dead_letters: int = 0
    #: Rows that a BEFORE trigger did not let in.
    skipped: int = 0
    size_bytes: int = 0
    #: From the batch's first record until it was closed.
    fill_seconds: float = 0.0


NOTHING = Flushed()


@dataclass(frozen=True, slots=True)
class ProgressRow:
    """One line of kbatchd.progress."""

    route: str
    topic: str
    partition: int
    #: None: its beginning is not known yet.
    next_offset: int | None
    epoch: int
    owner: str | None
    target: str
    topic_id: str
    updated_at: datetime
    #: Who has claimed it last, and when; None: nobody.
    host: str | None
    pid: int | None
    claimed_at: datetime | None
    #: Why it stands still: see halting.py.
    halted: str | None


def is_begun(connection: psycopg.Connection, owner: Owner) -> bool:
    """Tell whether the topic has any progress: `start` holds no more."""
    return bool(connection.execute(f"SELECT EXISTS ({_ANY})", _keys(owner)).fetchone() == (True,))


def register(
    connection: psycopg.Connection,
    owner: Owner,
    topic_id: str,
    start_offsets: Mapping[int, int | None],
    start: str = "earliest",
) -> None:
    """Write the first progress of a topic, for all its partitions at once; do nothing if it has any already.

    A partition whose offset is None begins when its broker has said where: see `begin`, and worker/starting.py. One
    that appears later starts at 0, whatever `start` says: see `claim`.
    """
    with _durable_transaction(connection):
        connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", (_lock_key(owner, -1),))
        connection.execute(
            f"""
            INSERT INTO kbatchd.progress
                (pipeline, route, topic, partition, topic_id, target, next_offset, start, partitions)
            SELECT %(pipeline)s, %(route)s, %(topic)s, s.partition, %(topic_id)s, %(target)s, s.next_offset,
                   CASE WHEN s.next_offset IS NULL THEN %(start)s END,
                   pg_catalog.max(s.partition) OVER () OPERATOR(pg_catalog.+) 1
            FROM ROWS FROM (pg_catalog.unnest(%(partitions)s::int[]), pg_catalog.unnest(%(offsets)s::bigint[]))
                 AS s(partition, next_offset)
            WHERE NOT EXISTS ({_ANY})
            """,  # noqa: S608 - a constant
            {
                **_keys(owner),
                "topic_id": topic_id,
                "partitions": list(start_offsets),
                "offsets": list(start_offsets.values()),
                "start": start,
            },
        )


def unbegun(connection: psycopg.Connection, owner: Owner, partitions: Iterable[int]) -> dict[int, Unbegun]:
    """Return those of the partitions whose beginning is not known yet."""
    cursor = connection.execute(
        f"""
        SELECT partition, start, topic_id FROM kbatchd.progress
        WHERE {_OURS}
          AND partition OPERATOR(pg_catalog.=) ANY(%(partitions)s::int[]) AND next_offset IS NULL
        """,  # noqa: S608 - a constant
        {**_keys(owner), "partitions": list(partitions)},
    )
    return {partition: Unbegun(start, topic_id) for partition, start, topic_id in cursor}


def begin(
    connection: psycopg.Connection, owner: Owner, offsets: Mapping[int, int], topic_ids: Mapping[int, str]
) -> None:
    """Write down where partitions begin of which it was not known; those that have begun stay."""
    with _durable_transaction(connection):
        connection.execute(
            f"""
            UPDATE kbatchd.progress AS p
            SET next_offset = n.next_offset, topic_id = n.topic_id, updated_at = pg_catalog.now()
            FROM ROWS FROM (
                pg_catalog.unnest(%(partitions)s::int[]), pg_catalog.unnest(%(offsets)s::bigint[]),
                pg_catalog.unnest(%(topic_ids)s::pg_catalog.text[])
            ) AS n(partition, next_offset, topic_id)
            WHERE {_OURS}
              AND p.partition OPERATOR(pg_catalog.=) n.partition AND p.next_offset IS NULL
            """,  # noqa: S608 - a constant
            {
                **_keys(owner),
                "partitions": list(offsets),
                "offsets": list(offsets.values()),
                "topic_ids": [topic_ids[partition] for partition in offsets],
            },
        )


def lock(connection: psycopg.Connection, owner: Owner, partitions: Iterable[int]) -> set[int]:
    """Try the partitions' advisory locks; return those we hold now. They only spare two daemons a duel of claims."""
    keys = {_lock_key(owner, partition): partition for partition in partitions}
    cursor = connection.execute(
        "SELECT key FROM pg_catalog.unnest(%s::bigint[]) AS k(key) WHERE pg_catalog.pg_try_advisory_lock(key)",
        (list(keys),),
    )
    return {keys[key] for (key,) in cursor}


def unlock(connection: psycopg.Connection, owner: Owner, partitions: Iterable[int]) -> None:
    """Give the advisory locks back, so that whoever waits may have them."""
    keys = [_lock_key(owner, partition) for partition in partitions]
    connection.execute(
        "SELECT pg_catalog.pg_advisory_unlock(key) FROM pg_catalog.unnest(%s::bigint[]) AS k(key)", (keys,)
    )


def claim(
    connection: psycopg.Connection, owner: Owner, topic_ids: Mapping[int, str]
) -> tuple[dict[int, Position], list[Gap]]:
    """Make the partitions ours; return where each stands, and those whose topic was made anew since.

    Partitions beyond those known so far are new, and start at 0: all of them at once, whoever claims them, so that one
    without progress among the known ones can only be lost. Durably: an epoch that vanished in a crash could come twice.
    """
    with _durable_transaction(connection):
        connection.execute(
            f"""
            INSERT INTO kbatchd.progress (pipeline, route, topic, partition, topic_id, target, next_offset)
            SELECT %(pipeline)s, %(route)s, %(topic)s, new.partition, %(topic_id)s, %(target)s, 0
            FROM pg_catalog.generate_series(({_KNOWN}), %(highest)s) AS new(partition)
            ON CONFLICT DO NOTHING
            """,  # noqa: S608 - made of constants
            {
                **_keys(owner),
                "topic_id": next(iter(topic_ids.values())),
                "highest": max(topic_ids),
            },
        )
        rows = connection.execute(
            f"""
            UPDATE kbatchd.progress
            SET epoch = epoch OPERATOR(pg_catalog.+) 1, owner = %(worker)s,
                backend_pid = pg_catalog.pg_backend_pid(), claimed_at = pg_catalog.now(),
                partitions = ({_KNOWN}), host = %(host)s, pid = %(pid)s, halted = NULL
            WHERE {_OURS}
              AND partition OPERATOR(pg_catalog.=) ANY(%(partitions)s::int[])
            RETURNING partition, epoch, next_offset, topic_id, leader_epochs, records_end, target
            """,  # noqa: S608 - made of constants
            {**_keys(owner), "partitions": list(topic_ids), "host": socket.gethostname(), "pid": os.getpid()},
        ).fetchall()
        missing = topic_ids.keys() - {partition for partition, *_ in rows}
        if missing:
            raise ConfigError(_gone(owner, missing, all_of_it=not known_partitions(connection, owner)))
        _refuse_other_target(owner, {target for *_, target in rows})
    positions = {
        partition: Position(epoch, offset, topic_id, _lineage(epochs, end))
        for partition, epoch, offset, topic_id, epochs, end, _ in rows
    }
    anew = [
        Gap(Partition(owner.topic, number), GapKind.RECREATED, at.next_offset, at.next_offset, 0, at.topic_id, now)
        for number, at in positions.items()
        if at.topic_id != (now := topic_ids[number])
    ]
    return positions, anew


def former_ids(connection: psycopg.Connection, owner: Owner) -> set[str]:
    """Return the ids that the topic had, as far as gaps tell: none of them ever comes back."""
    cursor = connection.execute(
        """
        SELECT topic_id FROM kbatchd.gaps
        WHERE pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND topic OPERATOR(pg_catalog.=) %(topic)s
          AND kind OPERATOR(pg_catalog.=) 'recreated' AND topic_id IS NOT NULL
        """,
        _keys(owner),
    )
    return {topic_id for (topic_id,) in cursor}


def advance(
    connection: psycopg.Connection,
    owner: Owner,
    expected: Mapping[Partition, Position],
    next_offsets: Mapping[Partition, int],
    lineages: Mapping[Partition, Lineage] | None = None,
) -> None:
    """Move progress in the caller's transaction, if it stands where we left it under our own epoch; else Fenced.

    `expected` is where our last flush left each partition, never the offset of a first record: offsets have holes.
    `lineages` are those of partitions that records were read of, perhaps of more of them than this transaction has.
    """
    read = {p: lineage.below(next_offsets[p]) for p, lineage in (lineages or {}).items() if p in next_offsets}
    cursor = connection.execute(
        f"""
        UPDATE kbatchd.progress AS p
        SET next_offset = n.next_offset, updated_at = pg_catalog.clock_timestamp(),
            leader_epoch = COALESCE(n.leader_epoch, p.leader_epoch),
            leader_epochs = COALESCE(n.leader_epochs, p.leader_epochs),
            records_end = COALESCE(n.records_end, p.records_end)
        FROM ROWS FROM (
            pg_catalog.unnest(%(partitions)s::int[]), pg_catalog.unnest(%(epochs)s::bigint[]),
            pg_catalog.unnest(%(expected)s::bigint[]), pg_catalog.unnest(%(offsets)s::bigint[]),
            pg_catalog.unnest(%(leader_epoch)s::int[]), pg_catalog.unnest(%(leader_epochs)s::pg_catalog.jsonb[]),
            pg_catalog.unnest(%(records_end)s::bigint[])
        ) AS n(partition, epoch, expected, next_offset, leader_epoch, leader_epochs, records_end)
        WHERE {_OURS}
          AND p.partition OPERATOR(pg_catalog.=) n.partition AND p.epoch OPERATOR(pg_catalog.=) n.epoch
          AND p.next_offset OPERATOR(pg_catalog.=) n.expected
          AND p.backend_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
        """,  # noqa: S608 - a constant
        {
            **_keys(owner),
            "partitions": [partition.number for partition in next_offsets],
            "epochs": [expected[partition].epoch for partition in next_offsets],
            "expected": [expected[partition].next_offset for partition in next_offsets],
            "offsets": list(next_offsets.values()),
            "leader_epoch": [read[p].epoch if p in read else None for p in next_offsets],
            "leader_epochs": [orjson.dumps(read[p].epochs).decode() if p in read else None for p in next_offsets],
            "records_end": [read[p].end if p in read else None for p in next_offsets],
        },
    )
    if cursor.rowcount != len(next_offsets):
        raise _why_not_advanced(connection, owner, expected, next_offsets)


def write_ledger(
    connection: psycopg.Connection,
    owner: Owner,
    reason: str,
    spans: Mapping[Partition, tuple[int, int]],
    flushed: Flushed = NOTHING,
) -> None:
    """Add the line of this transaction to kbatchd.batches."""
    written = connection.execute(
        """
        INSERT INTO kbatchd.batches
            (pipeline, route, worker, reason, rows, dead_letters, skipped, bytes, spans, fill_seconds)
        VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s::pg_catalog.jsonb, %s)
        """,
        (
            owner.pipeline,
            owner.route,
            owner.worker,
            reason,
            flushed.rows,
            flushed.dead_letters,
            flushed.skipped,
            flushed.size_bytes,
            orjson.dumps({owner.topic: {str(partition.number): span for partition, span in spans.items()}}).decode(),
            flushed.fill_seconds,
        ),
    ).rowcount
    agree("lines of the ledger", 1, written)


def accept(connection: psycopg.Connection, owner: Owner, gap: Gap, epoch: int) -> None:
    """Record the gap and let reading go on behind it; the epoch goes up, so whoever reads must claim anew.

    Raises Fenced when the partition is no longer under this epoch, is of another topic than the gap, or does not stand
    at the gap any more.
    """
    with _durable_transaction(connection):
        moved = connection.execute(
            f"""
            UPDATE kbatchd.progress
            SET next_offset = %(resume_at)s, topic_id = %(next_topic_id)s, epoch = epoch OPERATOR(pg_catalog.+) 1,
                halted = NULL, updated_at = pg_catalog.now()
            WHERE {_OURS} AND partition OPERATOR(pg_catalog.=) %(partition)s
              AND epoch OPERATOR(pg_catalog.=) %(epoch)s AND topic_id OPERATOR(pg_catalog.=) %(topic_id)s
              AND next_offset OPERATOR(pg_catalog.=) ANY (ARRAY[%(first)s, %(last)s])
            """,  # noqa: S608 - a constant
            {
                **_keys(owner),
                "partition": gap.partition.number,
                "resume_at": gap.resume_at,
                "topic_id": gap.topic_id,
                "next_topic_id": gap.next_topic_id or gap.topic_id,
                "first": gap.first,
                "last": gap.last,
                "epoch": epoch,
            },
        ).rowcount
        if not moved:
            raise Fenced([gap.partition])
        _keep_lineage(connection, owner, gap.partition, None if gap.next_topic_id else gap.resume_at)
        where = (owner.pipeline, owner.route, owner.topic, gap.partition.number)
        for line in gap.lines():
            connection.execute(
                """
                INSERT INTO kbatchd.gaps
                    (pipeline, route, topic, partition, topic_id, next_topic_id, kind, first_offset, last_offset)
                VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)
                """,
                (*where, line.topic_id, line.next_topic_id, line.kind.value, line.first, line.last),
            )
        stood = gap.last if gap.kind is GapKind.TRUNCATION else gap.first
        write_ledger(connection, owner, "gap", {gap.partition: (stood, gap.resume_at)})


def set_progress(connection: psycopg.Connection, owner: Owner, partition: Partition, next_offset: int) -> int | None:
    """Move a partition by hand; return where it stood, None if it had not begun, or its progress was lost.

    The epoch goes up, so a running worker reads anew from there.
    """
    keys = {**_keys(owner), "partition": partition.number, "next_offset": next_offset}
    with _durable_transaction(connection):
        row = connection.execute(
            f"""
            UPDATE kbatchd.progress AS p
            SET next_offset = %(next_offset)s, epoch = p.epoch OPERATOR(pg_catalog.+) 1,
                updated_at = pg_catalog.now(), halted = NULL
            FROM (
                SELECT next_offset FROM kbatchd.progress
                WHERE {_OURS} AND partition OPERATOR(pg_catalog.=) %(partition)s
                FOR UPDATE  -- a flush may be about to move it
            ) AS old
            WHERE {_OURS}
              AND p.partition OPERATOR(pg_catalog.=) %(partition)s
            RETURNING old.next_offset
            """,  # noqa: S608 - a constant
            keys,
        ).fetchone()
        if row is None and not _add_lost(connection, keys):
            raise ConfigError(f"route {owner.route}: there is no progress of {partition}; see `kbatchd progress show`")
        _keep_lineage(connection, owner, partition, next_offset)
        stood: Any = None if row is None else row[0]
        write_ledger(connection, owner, "set", {partition: (stood, next_offset)})
    return None if stood is None else int(stood)


def _add_lost(connection: psycopg.Connection, keys: Mapping[str, object]) -> bool:
    """Give a partition that has lost its progress one again, beside that of the others."""
    return bool(
        connection.execute(
            f"""
            INSERT INTO kbatchd.progress (pipeline, route, topic, partition, topic_id, target, next_offset, partitions)
            SELECT pipeline, route, topic, %(partition)s, topic_id, target, %(next_offset)s, partitions
            FROM kbatchd.progress WHERE {_OURS}
              AND greatest(partitions, partition OPERATOR(pg_catalog.+) 1) OPERATOR(pg_catalog.>) %(partition)s
            ORDER BY partition LIMIT 1
            """,  # noqa: S608 - a constant
            keys,
        ).rowcount
    )


def lineages(connection: psycopg.Connection, owner: Owner) -> dict[int, Lineage]:
    """Read of which logs a route's partitions were read."""
    cursor = connection.execute(
        f"""
        SELECT partition, leader_epochs, records_end FROM kbatchd.progress
        WHERE {_OURS}
        """,  # noqa: S608 - a constant
        _keys(owner),
    )
    return {partition: _lineage(epochs, end) for partition, epochs, end in cursor}


def _keep_lineage(connection: psycopg.Connection, owner: Owner, partition: Partition, at: int | None) -> None:
    """Keep what holds of a log when progress is moved to `at`, in the caller's transaction; None: of another topic.

    Whoever goes on behind what was read does not know under which epoch the offset before it was written.
    """
    before = lineages(connection, owner)[partition.number]
    after = Lineage() if at is None else before.below(at)
    if at is not None and (before.end is None or at > before.end):
        after = after.unknown()
    connection.execute(
        f"""
        UPDATE kbatchd.progress
        SET leader_epoch = %(leader_epoch)s, leader_epochs = %(leader_epochs)s, records_end = %(records_end)s
        WHERE {_OURS} AND partition OPERATOR(pg_catalog.=) %(partition)s
        """,  # noqa: S608 - a constant
        {
            **_keys(owner),
            "partition": partition.number,
            "leader_epoch": after.epoch,
            "leader_epochs": orjson.dumps(after.epochs).decode(),
            "records_end": after.end,
        },
    )


def _lineage(epochs: list[list[int]], end: int | None) -> Lineage:
    return Lineage(tuple((epoch, first) for epoch, first in epochs), end)


def show(connection: psycopg.Connection, pipeline: str) -> list[ProgressRow]:
    """Read all progress of a pipeline, in the order of routes and partitions."""
    with connection.cursor(row_factory=class_row(ProgressRow)) as cursor:
        return cursor.execute(
            """
            SELECT route, topic, partition, next_offset, epoch, owner, target, topic_id, updated_at, host, pid,
                   claimed_at, halted
            FROM kbatchd.progress WHERE pipeline OPERATOR(pg_catalog.=) %s ORDER BY route, topic, partition
            """,
            (pipeline,),
        ).fetchall()


def moved_by_others(connection: psycopg.Connection, owner: Owner, epochs: Mapping[int, int]) -> set[int]:
    """Return the partitions whose epoch is no longer the one given: an operator or another daemon was there."""
    cursor = connection.execute(
        f"""
        SELECT progress.partition FROM kbatchd.progress
        JOIN ROWS FROM (pg_catalog.unnest(%(partitions)s::int[]), pg_catalog.unnest(%(epochs)s::bigint[]))
            AS known(partition, epoch) ON known.partition OPERATOR(pg_catalog.=) progress.partition
        WHERE {_OURS} AND progress.epoch OPERATOR(pg_catalog.<>) known.epoch
        """,  # noqa: S608 - a constant
        {**_keys(owner), "partitions": list(epochs), "epochs": list(epochs.values())},
    )
    return {partition for (partition,) in cursor}


def missing(connection: psycopg.Connection, owner: Owner, partitions: int) -> str | None:
    """Say what is wrong when progress of some of the topic's partitions was lost; None if nothing is."""
    known = known_partitions(connection, owner)
    rows = connection.execute(
        f"""
        SELECT partition FROM kbatchd.progress
        WHERE {_OURS}
        """,  # noqa: S608 - a constant
        _keys(owner),
    )
    lost = set(range(min(known, partitions))) - {partition for (partition,) in rows}
    return _gone(owner, lost, all_of_it=False) if lost else None


def known_partitions(connection: psycopg.Connection, owner: Owner) -> int:
    """Return how many partitions progress knows of."""
    row = connection.execute(_KNOWN, _keys(owner)).fetchone()
    return int(row[0] or 0) if row else 0


def _gone(owner: Owner, partitions: Collection[int], *, all_of_it: bool) -> str:
    what = f"route {owner.route}: the progress of topic {owner.topic}"
    if all_of_it:
        return (
            f"{what} is gone from kbatchd.progress; "
            "if that is meant, restart the daemon to begin anew at the route's `start`"
        )
    numbers = ", ".join(map(str, sorted(partitions)))
    return (
        f"{what} is gone from kbatchd.progress for partition {numbers}, and that of others is there: read from 0, what "
        "is in the table would be there twice; restore it, or say where to read on: "
        f"`kbatchd progress set --config FILE {owner.route} PARTITION OFFSET`"
    )


@contextmanager
def _durable_transaction(connection: psycopg.Connection) -> Iterator[None]:
    """Commit to the disk whatever the session's synchronous_commit: where reading begins must not be forgotten."""
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        yield


def refuse_other_target(connection: psycopg.Connection, owner: Owner) -> None:
    """Raise ConfigError when this route's progress was made for another table."""
    cursor = connection.execute(
        f"""
        SELECT DISTINCT target FROM kbatchd.progress
        WHERE {_OURS}
        """,  # noqa: S608 - a constant
        _keys(owner),
    )
    _refuse_other_target(owner, {target for (target,) in cursor})


def _refuse_other_target(owner: Owner, targets: set[str]) -> None:
    for target in targets - {owner.target}:
        raise ConfigError(
            f"route {owner.route}: its progress was made for table {target}, not {owner.target}; "
            "give the route another name to begin anew, or restore the table"
        )


def _why_not_advanced(
    connection: psycopg.Connection,
    owner: Owner,
    expected: Mapping[Partition, Position],
    next_offsets: Mapping[Partition, int],
) -> SinkError | ConfigError:
    """Find out, still in the failed transaction, which partitions are not ours any more.

    Those that are have moved already, as this transaction sees them.
    """
    rows = connection.execute(
        f"""
        SELECT partition, epoch, next_offset, backend_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
        FROM kbatchd.progress WHERE {_OURS}
        """,  # noqa: S608 - a constant
        _keys(owner),
    ).fetchall()
    stored = {Partition(owner.topic, number): ((epoch, offset), own) for number, epoch, offset, own in rows}
    ours = {partition: (expected[partition].epoch, expected[partition].next_offset) for partition in next_offsets}
    if any(not own and at == ours.get(partition) for partition, (at, own) in stored.items()):
        return ConfigError(
            "postgres.dsn leads to a pooler that changes sessions between transactions; "
            "kbatchd needs a session of its own: connect to PostgreSQL itself, or use session pooling"
        )
    moved = {partition: (epoch, next_offsets[partition]) for partition, (epoch, _) in ours.items()}
    return Fenced([p for p in moved if p not in stored or stored[p][0] not in {ours[p], moved[p]}] or list(moved))


def _lock_key(owner: Owner, partition: int) -> int:
    """Return the 64-bit advisory lock key: the same on every host and every version of PostgreSQL."""
    name = "\x1f".join(("kbatchd", owner.pipeline, owner.route, owner.topic, str(partition)))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)


def _keys(owner: Owner) -> dict[str, str]:
    return {
        "pipeline": owner.pipeline,
        "route": owner.route,
        "topic": owner.topic,
        "target": owner.target,
        "worker": owner.worker,
    }
