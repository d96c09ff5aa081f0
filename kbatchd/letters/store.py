"""Dead letters after the fact: to be chosen, looked at, and settled.

A letter is open until somebody replays or discards it; replayed, it keeps all it had. Letters are read page by page in
the order of their offsets, without a transaction that a slow reader would hold open. Called by `kbatchd dead-letters`
and by the replay, in the command's main thread.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from psycopg.rows import class_row

from kbatchd.sink.sink import storable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import psycopg

    from kbatchd.model import Refusal

#: Letters of a page: each may be as large as Kafka's largest record.
PAGE = 200

#: What a letter without a timestamp had in Kafka.
_NO_TIMESTAMP = (0, -1)
_CREATE_TIME = 1


@dataclass(frozen=True, slots=True)
class Letter:
    """One line of kbatchd.dead_letters."""

    id: int
    route: str
    topic: str
    #: The topic that the offset is of; None in letters of former versions.
    topic_id: str | None
    partition: int
    offset: int
    timestamp: datetime | None
    #: Kafka's own, in milliseconds since 1970; None in letters of former versions, and where the record had none.
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None
    headers: list[list[str | None]] | None
    code: str
    column: str | None
    message: str
    refused_at: datetime
    state: str
    settled_at: datetime | None
    #: The value that was replayed instead of the one that came.
    corrected: bytes | None

    def as_json(self) -> dict[str, object]:
        """Return it for NDJSON: bytes as text where they are UTF-8, else in base64 under a name that says so."""
        return {
            "id": self.id,
            "route": self.route,
            "topic": self.topic,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp": self.timestamp,
            "timestamp_ms": self.timestamp_ms,
            **_readable("key", self.key),
            **_readable("value", self.value),
            "headers": self.headers,
            "code": self.code,
            "column": self.column,
            "message": self.message,
            "refused_at": self.refused_at,
            "state": self.state,
            "settled_at": self.settled_at,
            **_readable("corrected", self.corrected),
        }


class LetterRecord:
    """A letter as the record it once was; see model.Record."""

    def __init__(self, letter: Letter) -> None:
        self._letter = letter

    def topic(self) -> str:
        """Return the topic it came from."""
        return self._letter.topic

    def partition(self) -> int:
        """Return the partition's number."""
        return self._letter.partition

    def offset(self) -> int:
        """Return the offset in the partition."""
        return self._letter.offset

    def leader_epoch(self) -> int | None:
        """Return None: nobody has kept it."""
        return None

    def timestamp(self) -> tuple[int, int]:
        """Return the timestamp's kind and its milliseconds since 1970."""
        at, milliseconds = self._letter.timestamp, self._letter.timestamp_ms
        if milliseconds is not None:
            return _CREATE_TIME, milliseconds
        return _NO_TIMESTAMP if at is None else (_CREATE_TIME, round(at.timestamp() * 1000))

    def key(self) -> bytes | None:
        """Return the key, if it has one."""
        return self._letter.key

    def value(self) -> bytes | None:
        """Return the value as it came."""
        return self._letter.value

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        """Return the headers in their order."""
        pairs = self._letter.headers or ()
        return [(name or "", None if value is None else b64decode(value)) for name, value in pairs] or None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which letters: all conditions that are given must hold."""

    ids: tuple[int, ...] | None = None
    route: str | None = None
    code: str | None = None
    column: str | None = None
    partition: int | None = None
    #: Both ends included.
    first_offset: int | None = None
    last_offset: int | None = None
    #: Of `refused_at`; the end is not included.
    since: datetime | None = None
    until: datetime | None = None
    state: str | None = "open"


_CHOSEN = """
    pipeline OPERATOR(pg_catalog.=) %(pipeline)s
    AND (%(ids)s::bigint[] IS NULL OR id OPERATOR(pg_catalog.=) ANY(%(ids)s))
    AND (%(route)s::pg_catalog.text IS NULL OR route OPERATOR(pg_catalog.=) %(route)s)
    AND (%(code)s::pg_catalog.text IS NULL OR code OPERATOR(pg_catalog.=) %(code)s)
    AND (%(column)s::pg_catalog.text IS NULL OR "column" OPERATOR(pg_catalog.=) %(column)s)
    AND (%(partition)s::int IS NULL OR partition OPERATOR(pg_catalog.=) %(partition)s)
    AND (%(first_offset)s::bigint IS NULL OR "offset" OPERATOR(pg_catalog.>=) %(first_offset)s)
    AND (%(last_offset)s::bigint IS NULL OR "offset" OPERATOR(pg_catalog.<=) %(last_offset)s)
    AND (%(since)s::pg_catalog.timestamptz IS NULL OR refused_at OPERATOR(pg_catalog.>=) %(since)s)
    AND (%(until)s::pg_catalog.timestamptz IS NULL OR refused_at OPERATOR(pg_catalog.<) %(until)s)
    AND (%(state)s::pg_catalog.text IS NULL OR state OPERATOR(pg_catalog.=) %(state)s)
"""

_PAGE_SQL = """
SELECT id, route, topic, topic_id, partition, "offset", "timestamp", timestamp_ms, key, value, headers, code, "column",
    message, refused_at,
    state, settled_at, corrected
FROM kbatchd.dead_letters
WHERE {chosen} AND (%(after)s::boolean IS NOT TRUE
    OR (route, topic, partition, "offset", id) OPERATOR(pg_catalog.{beyond})
    (%(route_)s::pg_catalog.text, %(topic_)s::pg_catalog.text, %(partition_)s::int,
    %(offset_)s::bigint, %(id_)s::bigint))
ORDER BY route {way}, topic {way}, partition {way}, "offset" {way}, id {way}
LIMIT {page}
"""
_OLDEST_FIRST = _PAGE_SQL.format(chosen=_CHOSEN, beyond=">", way="ASC", page=PAGE)
_NEWEST_FIRST = _PAGE_SQL.format(chosen=_CHOSEN, beyond="<", way="DESC", page=PAGE)


def read(
    connection: psycopg.Connection, pipeline: str, choice: Choice, *, newest_first: bool = False
) -> Iterator[list[Letter]]:
    """Yield the chosen letters in the order of routes, partitions and offsets, or backwards, a page at a time."""
    query = (_NEWEST_FIRST if newest_first else _OLDEST_FIRST).encode()
    last: Letter | None = None
    while True:
        after = {f"{name}_": getattr(last, name, None) for name in ("route", "topic", "partition", "offset", "id")}
        with connection.cursor(row_factory=class_row(Letter)) as cursor:
            parameters = _parameters(pipeline, choice) | after | {"after": last is not None}
            page = cursor.execute(query, parameters).fetchall()
        if page:
            yield page
            last = page[-1]
        if len(page) < PAGE:
            return


def routes(connection: psycopg.Connection, pipeline: str, choice: Choice) -> list[str]:
    """Return the routes of the chosen letters."""
    query = f"SELECT DISTINCT route FROM kbatchd.dead_letters WHERE {_CHOSEN} ORDER BY 1"  # noqa: S608 - a constant
    return [name for (name,) in connection.execute(query.encode(), _parameters(pipeline, choice))]


def keys_by_offset(
    connection: psycopg.Connection, pipeline: str, choice: Choice, topic_id: str
) -> list[tuple[int, int, bytes | None]]:
    """Return partition, offset and key of the chosen letters that are of this topic."""
    query = f"""
    SELECT partition, "offset", key FROM kbatchd.dead_letters
    WHERE {_CHOSEN} AND topic_id OPERATOR(pg_catalog.=) %(topic_id)s
    """  # noqa: S608 - a constant
    return connection.execute(query.encode(), _parameters(pipeline, choice) | {"topic_id": topic_id}).fetchall()


def known(connection: psycopg.Connection, pipeline: str, choice: Choice) -> list[int]:
    """Return the ids of the chosen letters."""
    query = f"SELECT id FROM kbatchd.dead_letters WHERE {_CHOSEN}"  # noqa: S608 - a constant
    return [number for (number,) in connection.execute(query.encode(), _parameters(pipeline, choice))]


def settle_replayed(connection: psycopg.Connection, ids: Iterable[int], corrected: bytes | None) -> int:
    """Mark open letters as replayed, in the caller's transaction; return how many were open still."""
    return connection.execute(
        """
        UPDATE kbatchd.dead_letters SET state = 'replayed', settled_at = pg_catalog.now(), corrected = %s
        WHERE id OPERATOR(pg_catalog.=) ANY(%s) AND state OPERATOR(pg_catalog.=) 'open'
        """,
        (corrected, list(ids)),
    ).rowcount


def keep_refused(connection: psycopg.Connection, reasons: Mapping[int, Refusal]) -> None:
    """Give letters that were refused again their new reason."""
    connection.execute(
        """
        UPDATE kbatchd.dead_letters AS d SET code = n.code, "column" = n.column, message = n.message
        FROM ROWS FROM (
            pg_catalog.unnest(%s::bigint[]), pg_catalog.unnest(%s::pg_catalog.text[]),
            pg_catalog.unnest(%s::pg_catalog.text[]), pg_catalog.unnest(%s::pg_catalog.text[])
        ) AS n(id, code, "column", message)
        WHERE d.id OPERATOR(pg_catalog.=) n.id AND d.state OPERATOR(pg_catalog.=) 'open'
        """,
        (
            list(reasons),
            [why.code for why in reasons.values()],
            [why.column and storable(why.column) for why in reasons.values()],
            [storable(why.message) for why in reasons.values()],
        ),
    )


def discard(connection: psycopg.Connection, pipeline: str, choice: Choice, *, delete: bool) -> int:
    """Settle the chosen letters without a row, or delete them; return how many."""
    change = "DELETE FROM kbatchd.dead_letters"
    if not delete:
        change = "UPDATE kbatchd.dead_letters SET state = 'discarded', settled_at = pg_catalog.now()"
    return connection.execute(f"{change} WHERE {_CHOSEN}".encode(), _parameters(pipeline, choice)).rowcount


def _parameters(pipeline: str, choice: Choice) -> dict[str, object]:
    values: dict[str, object] = {name: getattr(choice, name) for name in Choice.__dataclass_fields__}
    return values | {"pipeline": pipeline, "ids": None if choice.ids is None else list(choice.ids)}


def _readable(name: str, value: bytes | None) -> dict[str, str | None]:
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(value).decode()}
