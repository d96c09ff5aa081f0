"""The columns that say of each row which record it was, where a route fills such columns.

With topic, partition and offset in the table a row can be found again, and only then. Called by the audit and by the
replay of ranges.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from psycopg import sql

from kbatchd.encode.mapping import Source, resolve_feeds, row_columns
from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import psycopg

    from kbatchd.config import Route
    from kbatchd.model import Partition
    from kbatchd.postgres.table import Table

_INTEGERS = frozenset({"int2", "int4", "int8", "numeric"})
_TEXTS = frozenset({"text", "varchar"})
_SOURCES = {Source.TOPIC: _TEXTS, Source.PARTITION: _INTEGERS, Source.OFFSET: _INTEGERS}

#: How many rows there are of each record, in the order of partitions and offsets.
_ROWS = sql.SQL("""
SELECT r.{}::int, r.{}::bigint, pg_catalog.count(*)
FROM {}.{} AS r
JOIN ROWS FROM (pg_catalog.unnest(%(partitions)s::int[]), pg_catalog.unnest(%(firsts)s::bigint[]))
    AS asked(partition, first) ON r.{}::int OPERATOR(pg_catalog.=) asked.partition
    AND r.{}::bigint OPERATOR(pg_catalog.>=) asked.first
WHERE r.{}::pg_catalog.text OPERATOR(pg_catalog.=) %(topic)s
GROUP BY 1, 2 ORDER BY 1, 2
""")

#: Tables whose rows a DELETE would take along, or alter.
_FOLLOWERS = """
SELECT DISTINCT c.conrelid::pg_catalog.regclass::pg_catalog.text FROM pg_catalog.pg_constraint AS c
WHERE c.contype OPERATOR(pg_catalog.=) 'f'
  AND c.confdeltype OPERATOR(pg_catalog.=) ANY (ARRAY['c', 'n', 'd']::pg_catalog."char"[])
  AND (c.confrelid OPERATOR(pg_catalog.=) %(oid)s
       OR c.confrelid OPERATOR(pg_catalog.=) ANY (SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s)))
ORDER BY 1
"""

#: The rows of a range go.
_DELETE = sql.SQL("""
DELETE FROM {}.{}
WHERE {}::pg_catalog.text OPERATOR(pg_catalog.=) %(topic)s
  AND {}::int OPERATOR(pg_catalog.=) %(partition)s
  AND {}::bigint OPERATOR(pg_catalog.>=) %(first)s AND {}::bigint OPERATOR(pg_catalog.<) %(end)s
RETURNING {}::bigint
""")

#: Rows are fetched so many at a time.
_PAGE = 10_000


class Places(NamedTuple):
    """A table, and its columns that have topic, partition and offset."""

    table: Table
    topic: sql.Identifier
    partition: sql.Identifier
    offset: sql.Identifier

    def rows(
        self, connection: psycopg.Connection, topic: str, firsts: Mapping[int, int]
    ) -> Iterator[tuple[int, int, int]]:
        """Yield partition, offset and the number of its rows, of these partitions from these offsets on."""
        query = _ROWS.format(self.partition, self.offset, *self._table, self.partition, self.offset, self.topic)
        values = {"partitions": list(firsts), "firsts": list(firsts.values()), "topic": topic}
        with connection.cursor(name="rows") as cursor:
            cursor.itersize = _PAGE
            yield from cursor.execute(query, values)

    def delete(self, connection: psycopg.Connection, partition: Partition, first: int, end: int) -> list[int]:
        """Delete the rows of [first, end); return the offset of each."""
        columns = (self.topic, self.partition, self.offset, self.offset, self.offset)
        values = {"topic": partition.topic, "partition": partition.number, "first": first, "end": end}
        rows = connection.execute(_DELETE.format(*self._table, *columns), values)
        return [offset for (offset,) in rows]

    def followers(self, connection: psycopg.Connection) -> list[str]:
        """Return the tables that have a foreign key with ON DELETE CASCADE, SET NULL or SET DEFAULT to this one."""
        return [name for (name,) in connection.execute(_FOLLOWERS, {"oid": self.table.oid})]

    @property
    def _table(self) -> tuple[sql.Identifier, sql.Identifier]:
        return sql.Identifier(self.table.schema), sql.Identifier(self.table.name)


def find(table: Table, route: Route, routes: Iterable[Route], rights: Sequence[str] = ("SELECT",)) -> Places:
    """Say which columns they are; ConfigError where rows cannot be found again."""
    others = [each.name for each in routes if (each.topic, each.table) == (route.topic, route.table)]
    if len(others) > 1:
        raise ConfigError(f"routes {', '.join(others)} fill the table from the same topic: whose a row is nobody knows")
    found: dict[Source, str] = {}
    for feed in resolve_feeds(row_columns(table, route), route):
        if feed.column.type_name in _SOURCES.get(feed.source, ()) and not feed.path:
            found[feed.source] = feed.column.name
    missing = [source.name.lower() for source in _SOURCES if source not in found]
    if missing:
        raise ConfigError(f"no column of table {table} has the record's {' and '.join(missing)}")
    for right in rights:
        if right not in table.rights:
            raise ConfigError(f"no right to {right} on table {table}; GRANT {right} ON {table.quoted} TO {table.user}")
    return Places(table, *(sql.Identifier(found[source]) for source in _SOURCES))
