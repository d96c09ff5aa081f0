"""A name is an identity: progress that stands under a name which the file does not have, and how it is taken over.

Progress, dead letters, gaps and the ledger are kept under pipeline and route. With another name the whole topic
would be read into the same table again, so a route without progress of its own does not begin where another name has
progress of the same topic (by its id) and table. `kbatchd progress rename` takes that over; a route's `read_again`
says that reading again is meant. Called by check/inspection.py, and by the command in its main thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kbatchd.errors import ConfigError
from kbatchd.model import Partition
from kbatchd.schema import claiming, ledger

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from kbatchd.postgres.connection import Connection
    from kbatchd.schema.progress import Owner

#: What a rename needs, beside what the daemon does.
PRIVILEGES = (
    ("progress", "SELECT"),
    ("progress", "INSERT"),
    ("progress", "UPDATE"),
    ("dead_letters", "SELECT"),
    ("dead_letters", "UPDATE"),
    ("gaps", "SELECT"),
    ("gaps", "UPDATE"),
    ("batches", "SELECT"),
    ("batches", "INSERT"),
    ("batches", "UPDATE"),
    ("pauses", "SELECT"),
    ("pauses", "UPDATE"),
)

#: The number under which claiming.register takes its lock: of a route and topic as a whole.
_ALL_PARTITIONS = -1


class Name(NamedTuple):
    """Under what progress is kept."""

    pipeline: str
    route: str

    def __str__(self) -> str:
        return f"{self.pipeline}/{self.route}"


class Moved(NamedTuple):
    """What a rename has taken over of one route."""

    partitions: int
    dead_letters: int
    gaps: int
    batches: int

    def __str__(self) -> str:
        return (
            f"{self.partitions} partitions, {self.dead_letters} dead letters, {self.gaps} gaps, "
            f"{self.batches} lines of the ledger"
        )


def strangers(connection: Connection, owner: Owner, topic_id: str, routes: Collection[str]) -> list[Name]:
    """Return the names that this file does not have, and that the same topic was read into the same table under."""
    rows = connection.execute(
        """
        SELECT DISTINCT pipeline, route FROM kbatchd.progress
        WHERE topic OPERATOR(pg_catalog.=) %(topic)s AND topic_id OPERATOR(pg_catalog.=) %(topic_id)s
          AND target OPERATOR(pg_catalog.=) %(target)s
          AND NOT (pipeline OPERATOR(pg_catalog.=) %(pipeline)s
                   AND route OPERATOR(pg_catalog.=) ANY (%(routes)s::pg_catalog.text[]))
        ORDER BY pipeline, route
        """,
        {
            "topic": owner.topic,
            "topic_id": topic_id,
            "target": owner.target,
            "pipeline": owner.pipeline,
            "routes": list(routes),
        },
    )
    return [Name(*row) for row in rows]


def rename(connection: Connection, pairs: Sequence[tuple[Owner, Owner]]) -> list[Moved]:
    """Take over all that is kept under the former names, each with its new one: in one transaction, durably.

    The epochs go up, so a daemon that still reads under a former name writes nothing any more. Raises ConfigError, and
    nothing has changed, where somebody holds a partition; the locks taken here go with the session.
    """
    with connection.transaction():
        connection.execute("SET LOCAL synchronous_commit = on")
        return [_rename(connection, former, owner) for former, owner in pairs]


def _rename(connection: Connection, former: Owner, owner: Owner) -> Moved:
    partitions = _partitions(connection, former)
    if not partitions:
        raise ConfigError(
            f"route {owner.route}: there is no progress of topic {owner.topic} under {_name(former)}; "
            "the table kbatchd.progress has all names"
        )
    for whose in (former, owner):
        _refuse_held(connection, whose, [_ALL_PARTITIONS, *partitions])
    if claiming.is_begun(connection, owner):
        raise ConfigError(
            f"route {owner.route}: has progress of topic {owner.topic} already, so it cannot have that of "
            f"{_name(former)} too; delete the one that does not count from kbatchd.progress"
        )
    names = {
        "topic": owner.topic,
        "former_pipeline": former.pipeline,
        "former_route": former.route,
        "pipeline": owner.pipeline,
        "route": owner.route,
    }
    rows = connection.execute(_PROGRESS_SQL, names).fetchall()
    for target in {target for target, *_ in rows} - {owner.target}:
        raise ConfigError(
            f"route {owner.route}: the progress of {_name(former)} was made for table {target}, not {owner.target}; "
            "name that table in the route"
        )
    dead_letters, gaps, batches = (connection.execute(query.encode(), names).rowcount for query in _KEPT_SQL)
    connection.execute(_PAUSE_SQL, names)
    stands = {Partition(owner.topic, number): (offset, offset) for _, number, offset in rows if offset is not None}
    ledger.write_ledger(connection, owner, "rename", stands)
    return Moved(len(rows), dead_letters, gaps, batches)


_PROGRESS_SQL = """
UPDATE kbatchd.progress
SET pipeline = %(pipeline)s, route = %(route)s, epoch = epoch OPERATOR(pg_catalog.+) 1,
    owner = NULL, backend_pid = NULL, host = NULL, pid = NULL
WHERE pipeline OPERATOR(pg_catalog.=) %(former_pipeline)s AND route OPERATOR(pg_catalog.=) %(former_route)s
  AND topic OPERATOR(pg_catalog.=) %(topic)s
RETURNING target, partition, next_offset
"""

#: A pause of the new name that is there already holds.
_PAUSE_SQL = """
UPDATE kbatchd.pauses SET pipeline = %(pipeline)s, route = %(route)s
WHERE pipeline OPERATOR(pg_catalog.=) %(former_pipeline)s AND route OPERATOR(pg_catalog.=) %(former_route)s
  AND NOT EXISTS (
      SELECT FROM kbatchd.pauses AS own
      WHERE own.pipeline OPERATOR(pg_catalog.=) %(pipeline)s AND own.route OPERATOR(pg_catalog.=) %(route)s)
"""

_KEPT_SQL = [
    f"""
    UPDATE kbatchd.{table} SET pipeline = %(pipeline)s, route = %(route)s
    WHERE pipeline OPERATOR(pg_catalog.=) %(former_pipeline)s AND route OPERATOR(pg_catalog.=) %(former_route)s
      AND {of_topic}
    """  # noqa: S608 - constants
    for table, of_topic in (
        ("dead_letters", "topic OPERATOR(pg_catalog.=) %(topic)s"),
        ("gaps", "topic OPERATOR(pg_catalog.=) %(topic)s"),
        ("batches", "spans OPERATOR(pg_catalog.?) %(topic)s"),
    )
]


def _refuse_held(connection: Connection, owner: Owner, numbers: Sequence[int]) -> None:
    """Take all locks of a name; ConfigError when somebody has one of them: a daemon under that name runs."""
    if len(claiming.lock(connection, owner, numbers)) == len(numbers):
        return
    [who] = connection.execute(
        """
        SELECT pg_catalog.string_agg(DISTINCT pg_catalog.concat_ws(' ', host, 'pid', pid), ', ') FROM kbatchd.progress
        WHERE pipeline OPERATOR(pg_catalog.=) %s AND route OPERATOR(pg_catalog.=) %s
          AND topic OPERATOR(pg_catalog.=) %s AND host IS NOT NULL
        """,
        (owner.pipeline, owner.route, owner.topic),
    ).fetchone() or [None]
    by = f" (the last claims: {who})" if who else ""
    raise ConfigError(f"route {owner.route}: a daemon reads under {_name(owner)}{by}; stop it first")


def _partitions(connection: Connection, owner: Owner) -> list[int]:
    rows = connection.execute(
        """
        SELECT partition FROM kbatchd.progress
        WHERE pipeline OPERATOR(pg_catalog.=) %s AND route OPERATOR(pg_catalog.=) %s
          AND topic OPERATOR(pg_catalog.=) %s
        """,
        (owner.pipeline, owner.route, owner.topic),
    )
    return [number for (number,) in rows]


def _name(owner: Owner) -> Name:
    return Name(owner.pipeline, owner.route)
