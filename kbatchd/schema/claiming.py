"""Who may move a partition's progress: its lines are made, its lock is taken, its epoch raised.

Called by the flusher, on its connection, and by the start-up checks (`register`, and what is missing).
"""

from __future__ import annotations

import hashlib
import os
import socket
from typing import TYPE_CHECKING, LiteralString, NamedTuple

from kbatchd.errors import ConfigError
from kbatchd.model import Gap, GapKind, Partition, Position
from kbatchd.schema.progress import OURS, Owner, durable_transaction, keys_of, lineage_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    import psycopg


#: pg_locks has the two halves of a key apart.
_LOW = 0xFFFF_FFFF

#: How many partitions are known, of a route's topic: more than are there where some were lost. NULL: none.
_KNOWN: LiteralString = f"""
    SELECT pg_catalog.max(greatest(partition OPERATOR(pg_catalog.+) 1, partitions))
    FROM kbatchd.progress WHERE {OURS}"""  # noqa: S608 - a constant


class Unbegun(NamedTuple):
    """A partition whose beginning is not known yet: the route's `start` when its topic was read first, and of which."""

    start: str
    topic_id: str


#: Whether a topic has any progress.
_ANY = f"""
SELECT FROM kbatchd.progress WHERE {OURS}
"""


def is_begun(connection: psycopg.Connection, owner: Owner) -> bool:
    """Tell whether the topic has any progress: `start` holds no more."""
    return bool(connection.execute(f"SELECT EXISTS ({_ANY})", keys_of(owner)).fetchone() == (True,))


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
    with durable_transaction(connection):
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
                **keys_of(owner),
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
        WHERE {OURS}
          AND partition OPERATOR(pg_catalog.=) ANY(%(partitions)s::int[]) AND next_offset IS NULL
        """,  # noqa: S608 - a constant
        {**keys_of(owner), "partitions": list(partitions)},
    )
    return {partition: Unbegun(start, topic_id) for partition, start, topic_id in cursor}


def begin(
    connection: psycopg.Connection, owner: Owner, offsets: Mapping[int, int], topic_ids: Mapping[int, str]
) -> None:
    """Write down where partitions begin of which it was not known; those that have begun stay."""
    with durable_transaction(connection):
        connection.execute(
            f"""
            UPDATE kbatchd.progress AS p
            SET next_offset = n.next_offset, topic_id = n.topic_id, updated_at = pg_catalog.now()
            FROM ROWS FROM (
                pg_catalog.unnest(%(partitions)s::int[]), pg_catalog.unnest(%(offsets)s::bigint[]),
                pg_catalog.unnest(%(topic_ids)s::pg_catalog.text[])
            ) AS n(partition, next_offset, topic_id)
            WHERE {OURS}
              AND p.partition OPERATOR(pg_catalog.=) n.partition AND p.next_offset IS NULL
            """,  # noqa: S608 - a constant
            {
                **keys_of(owner),
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


def end_silent(connection: psycopg.Connection, owner: Owner, partitions: Iterable[int], seconds: float) -> list[int]:
    """End the sessions that hold locks of these, and whose daemon has asked nothing for so long; return their pids.

    A daemon that is frozen as a whole, or whose host is gone, would keep its locks, and what its transaction has
    written. One that works asks something every second.
    """
    keys = [_lock_key(owner, partition) for partition in partitions]
    cursor = connection.execute(
        """
        SELECT pid FROM (
            SELECT DISTINCT a.pid FROM pg_catalog.pg_stat_activity AS a
            JOIN pg_catalog.pg_locks AS l ON l.pid OPERATOR(pg_catalog.=) a.pid AND l.granted
                AND l.locktype OPERATOR(pg_catalog.=) 'advisory' AND l.objsubid::int OPERATOR(pg_catalog.=) 1
            JOIN ROWS FROM (
                pg_catalog.unnest(%(high)s::bigint[]), pg_catalog.unnest(%(low)s::bigint[])
            ) AS k(high, low) ON l.classid::bigint OPERATOR(pg_catalog.=) k.high
                AND l.objid::bigint OPERATOR(pg_catalog.=) k.low
            WHERE a.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()
                AND a.usename OPERATOR(pg_catalog.=) current_user
                AND a.wait_event OPERATOR(pg_catalog.=) 'ClientRead'
                AND a.state_change OPERATOR(pg_catalog.<) (
                    pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) pg_catalog.make_interval(secs => %(seconds)s))
        ) AS silent WHERE pg_catalog.pg_terminate_backend(pid)
        """,
        {"high": [key >> 32 & _LOW for key in keys], "low": [key & _LOW for key in keys], "seconds": seconds},
    )
    return [pid for (pid,) in cursor]


def unlock(connection: psycopg.Connection, owner: Owner, partitions: Iterable[int]) -> None:
    """Give partitions back, so that those who wait may have them: until then they are nobody's."""
    partitions = list(partitions)
    connection.execute(
        f"""
        UPDATE kbatchd.progress SET backend_pid = NULL
        WHERE {OURS}
          AND partition OPERATOR(pg_catalog.=) ANY(%(partitions)s::int[])
          AND backend_pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()
        """,  # noqa: S608 - a constant
        {**keys_of(owner), "partitions": partitions},
    )
    keys = [_lock_key(owner, partition) for partition in partitions]
    connection.execute(
        "SELECT pg_catalog.pg_advisory_unlock(key) FROM pg_catalog.unnest(%s::bigint[]) AS k(key)", (keys,)
    )


def claim(
    connection: psycopg.Connection, owner: Owner, topic_ids: Mapping[int, str]
) -> tuple[dict[int, Position], list[Gap]]:
    """Make the partitions ours; return where each stands, and those whose topic was recreated since.

    Partitions beyond those known so far are new, and start at 0: all of them at once, whatever is claimed, so that one
    without progress among the known ones can only be lost. Durably: an epoch that vanished in a crash could come twice.
    """
    with durable_transaction(connection):
        connection.execute(
            f"""
            INSERT INTO kbatchd.progress (pipeline, route, topic, partition, topic_id, target, next_offset)
            SELECT %(pipeline)s, %(route)s, %(topic)s, new.partition, %(topic_id)s, %(target)s, 0
            FROM pg_catalog.generate_series(({_KNOWN}), %(highest)s) AS new(partition)
            ON CONFLICT DO NOTHING
            """,  # noqa: S608 - made of constants
            {
                **keys_of(owner),
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
            WHERE {OURS}
              AND partition OPERATOR(pg_catalog.=) ANY(%(partitions)s::int[])
            RETURNING partition, epoch, next_offset, topic_id, leader_epochs, records_end, target
            """,  # noqa: S608 - made of constants
            {**keys_of(owner), "partitions": list(topic_ids), "host": socket.gethostname(), "pid": os.getpid()},
        ).fetchall()
        missing = topic_ids.keys() - {partition for partition, *_ in rows}
        if missing:
            raise ConfigError(_gone(owner, missing, all_of_it=not known_partitions(connection, owner)))
        _refuse_other_target(owner, {target for *_, target in rows})
    positions = {
        partition: Position(epoch, offset, topic_id, lineage_of(epochs, end))
        for partition, epoch, offset, topic_id, epochs, end, _ in rows
    }
    recreated = [
        Gap(Partition(owner.topic, number), GapKind.RECREATED, at.next_offset, at.next_offset, 0, at.topic_id, now)
        for number, at in positions.items()
        if at.topic_id != (now := topic_ids[number])
    ]
    return positions, recreated


def former_ids(connection: psycopg.Connection, owner: Owner) -> set[str]:
    """Return the ids that the topic had, as far as gaps tell: none of them ever comes back."""
    cursor = connection.execute(
        """
        SELECT topic_id FROM kbatchd.gaps
        WHERE pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND topic OPERATOR(pg_catalog.=) %(topic)s
          AND kind OPERATOR(pg_catalog.=) 'recreated' AND topic_id IS NOT NULL
        """,
        keys_of(owner),
    )
    return {topic_id for (topic_id,) in cursor}


def moved_by_others(connection: psycopg.Connection, owner: Owner, epochs: Mapping[int, int]) -> set[int]:
    """Return the partitions whose epoch is no longer the one given: an operator or another daemon was there."""
    cursor = connection.execute(
        f"""
        SELECT progress.partition FROM kbatchd.progress
        JOIN ROWS FROM (pg_catalog.unnest(%(partitions)s::int[]), pg_catalog.unnest(%(epochs)s::bigint[]))
            AS known(partition, epoch) ON known.partition OPERATOR(pg_catalog.=) progress.partition
        WHERE {OURS} AND progress.epoch OPERATOR(pg_catalog.<>) known.epoch
        """,  # noqa: S608 - a constant
        {**keys_of(owner), "partitions": list(epochs), "epochs": list(epochs.values())},
    )
    return {partition for (partition,) in cursor}


def missing(connection: psycopg.Connection, owner: Owner, partitions: int) -> str | None:
    """Say what is wrong when progress of some of the topic's partitions was lost; None if nothing is."""
    known = known_partitions(connection, owner)
    rows = connection.execute(
        f"""
        SELECT partition FROM kbatchd.progress
        WHERE {OURS}
        """,  # noqa: S608 - a constant
        keys_of(owner),
    )
    lost = set(range(min(known, partitions))) - {partition for (partition,) in rows}
    return _gone(owner, lost, all_of_it=False) if lost else None


def known_partitions(connection: psycopg.Connection, owner: Owner) -> int:
    """Return how many partitions progress knows of."""
    row = connection.execute(_KNOWN, keys_of(owner)).fetchone()
    return int(row[0] or 0) if row else 0


def _gone(owner: Owner, partitions: Collection[int], *, all_of_it: bool) -> str:
    what = f"route {owner.route}: the progress of topic {owner.topic}"
    if all_of_it:
        return (
            f"{what} is gone from kbatchd.progress; "
            "if that is meant, restart the daemon to start over at the route's `start`"
        )
    numbers = ", ".join(map(str, sorted(partitions)))
    return (
        f"{what} is gone from kbatchd.progress for partition {numbers}, and that of others is there: read from 0, what "
        "is in the table would be there twice; restore it, or say where to read on: "
        f"`kbatchd progress set --config FILE {owner.route} PARTITION OFFSET`"
    )


def refuse_other_target(connection: psycopg.Connection, owner: Owner) -> None:
    """Raise ConfigError when this route's progress was made for another table."""
    cursor = connection.execute(
        f"""
        SELECT DISTINCT target FROM kbatchd.progress
        WHERE {OURS}
        """,  # noqa: S608 - a constant
        keys_of(owner),
    )
    _refuse_other_target(owner, {target for (target,) in cursor})


def _refuse_other_target(owner: Owner, targets: set[str]) -> None:
    for target in targets - {owner.target}:
        raise ConfigError(
            f"route {owner.route}: its progress was made for table {target}, not {owner.target}; "
            "give the route another name to start over, or restore the table"
        )


def _lock_key(owner: Owner, partition: int) -> int:
    """Return the 64-bit advisory lock key: the same on every host and every version of PostgreSQL."""
    name = "\x1f".join(("kbatchd", owner.pipeline, owner.route, owner.topic, str(partition)))
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), signed=True)
