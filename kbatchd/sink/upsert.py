"""Upsert: how rows get from a staging table into a table that has some of their keys already.

The sink copies a batch into a temporary table of its own session, where nobody waits for anybody. Then it merges, one
session at a time for each table (`Merge.lock`), so that eight workers on the same keys cannot deadlock: of each key the
last record wins. The statements are made once, when the table has been read; that is also when all that speaks against
an upsert is found. Called by the start-up checks and the flusher, in their own threads and on their connections.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import sql

from kbatchd.errors import ConfigError, TableChanged
from kbatchd.model import DELETED
from kbatchd.postgres import catalogue
from kbatchd.postgres.books import Books, agree
from kbatchd.postgres.table import Table
from kbatchd.sink.merge_faults import key_faults, missing_rights

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from kbatchd import config

#: Numbers the staged rows. Their place (ctid) would not do: COPY fills gaps of earlier pages with small rows.
ORDER = "kbatchd_order"

#: Of a session that upserts. The winners of a batch are sorted by their keys: 5 % slower where that spills to disk.
_SETTINGS = {"work_mem": "64MB", "temp_buffers": "32MB"}

#: How often the staging tables are vacuumed. Autovacuum cannot see them, and an old one keeps the whole database from
#: forgetting old transactions.
VACUUM_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Merge:
    """The statements of one route, for one shape of its table."""

    table: Table
    #: The staging table's name.
    staging: str
    #: The advisory lock under which one session at a time merges into the table.
    lock_key: int
    create: sql.Composed
    #: INSERT ... ON CONFLICT.
    insert: sql.Composed
    #: MERGE, where it does the same in less time. It fails where another program has just inserted the same key.
    merge: sql.Composed | None
    #: None where no record deletes.
    delete: sql.Composed | None
    #: How many rows are staged, and how many of them delete.
    count: sql.Composed
    #: How many keys these rows have.
    count_keys: sql.Composed
    #: After the deletes: how many keys are to have a row, and how many have one that are to have none.
    count_deletes: sql.Composed | None
    #: How many keys have no row, where one that is there stays as it is.
    count_absent: sql.Composed | None

    def lock(self, connection: psycopg.Connection) -> None:
        """Wait for our turn; it lasts until the transaction's end."""
        connection.execute("SELECT pg_catalog.pg_advisory_xact_lock(%s)", (self.lock_key,))

    def run(self, connection: psycopg.Connection, copied: int, *, is_first_try: bool = False) -> Books:
        """Merge what is staged, so many rows, under the lock; Unbalanced where one of them is lost on the way.

        A first try may fail with a unique violation that no row is to blame for.
        """
        staged, marked = _counts(connection, self.count)
        agree(f"rows staged for {self.table}", copied, staged)
        keys, skipped = 0, 0
        if self.delete is not None and self.count_deletes is not None and marked:
            # Never prepared: a plan from when the table was small would scan it whole.
            connection.execute(self.delete, prepare=False)
            keys, skipped = _counts(connection, self.count_deletes)
            if skipped and not catalogue.may_skip_rows(connection, self.table.oid, catalogue.DELETES):
                agree(f"rows of {self.table} that are there though their key's last record deletes them", 0, skipped)
        if not is_first_try or self.merge is None:
            changed = connection.execute(self.insert, prepare=False).rowcount
        else:
            cursor = connection.execute(self.merge, prepare=False)
            cursor.nextset()  # behind a SET
            changed = cursor.rowcount
        if not marked:  # to count the keys takes a tenth of the merge: not where each row had its own
            keys = staged if changed == staged else _counts(connection, self.count_keys)[0]
        if changed != keys:
            skipped += self._missing(connection, keys, changed)
        return Books(staged, skipped, changed)

    def clear(self, connection: psycopg.Connection) -> None:
        """Empty the staging table within the transaction; at its end it is emptied anyway."""
        connection.execute(sql.SQL("DELETE FROM {}").format(_temporary(self.staging)))

    def _missing(self, connection: psycopg.Connection, keys: int, changed: int) -> int:
        """Return how many keys a trigger has kept out; Unbalanced where there is none.

        Where a row that is there stays as it is, only keys without one are missing.
        """
        missing = keys - changed
        if self.count_absent is not None and missing > 0:
            (missing,) = _counts(connection, self.count_absent)
        events = catalogue.INSERTS | catalogue.UPDATES
        if missing and (missing < 0 or not catalogue.may_skip_rows(connection, self.table.oid, events)):
            agree(f"keys merged into {self.table}", keys, keys - missing)
        return missing


class Staging:
    """The staging tables of one session, made when they are first wanted."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self._connection = connection
        #: By the staging table's name: what it was made for, and when to vacuum it.
        self._made: dict[str, tuple[Merge, float]] = {}

    def prepare(self, merge: Merge) -> None:
        """See that the staging table is there, in the table's present shape; outside of any transaction."""
        made, vacuum_at = self._made.get(merge.staging, (None, 0.0))
        now = time.monotonic()
        if made is not merge:
            self._make(merge)
        elif now >= vacuum_at:
            self._connection.execute(sql.SQL("VACUUM {}").format(_temporary(merge.staging)))
        else:
            return
        self._made[merge.staging] = merge, now + VACUUM_SECONDS

    def _make(self, merge: Merge) -> None:
        connection = self._connection
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(_temporary(merge.staging)))
        if not self._made:  # temp_buffers cannot be set any more once a session has used a temporary table
            for name, value in _SETTINGS.items():
                connection.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))
        with connection.transaction():
            connection.execute(merge.create)
            # From here on its columns are locked, and must be those that the rows were encoded for.
            if catalogue.fingerprint(connection, merge.table.quoted) != merge.table.fingerprint:
                raise TableChanged(f"table {merge.table.quoted} was altered")


def build_merge(route: config.Route, table: Table, columns: Sequence[str]) -> Merge:
    """Make the statements; ConfigError with all faults when rows of these columns cannot be merged by this key.

    `columns` are the encoder's, with DELETED at their end where records may delete.
    """
    key, insert_only, deletes = route.key, route.insert_only, columns[-1] == DELETED
    columns = columns[:-1] if deletes else columns
    faults = [*key_faults(table, columns, key)]
    faults += missing_rights(table, {"SELECT", "UPDATE" * (not insert_only), "DELETE" * deletes} - {""})
    if faults:
        raise ConfigError(*faults)
    staging = f"kbatchd_{_digest(route.name, 6).hex()}"
    identities = {column.name for column in table.columns if column.identity}
    values = [name for name in columns if name not in key and name not in identities]
    updates = [] if insert_only else values
    names = _list(columns)
    winners = sql.SQL("SELECT DISTINCT ON ({key}) * FROM {staging} ORDER BY {key}, {order} {way}").format(
        key=_list(key),
        staging=_temporary(staging),
        order=sql.Identifier(ORDER),
        way=sql.SQL("ASC" if insert_only else "DESC"),
    )
    target = sql.Identifier(table.schema, table.name)
    # As ON CONFLICT does, leave tables that inherit from this one alone; of a partitioned one it would be no row.
    only = sql.SQL("{}" if table.partitioned_by else "ONLY {}").format(target)
    same = _same(key, table)
    where = sql.SQL("WHERE NOT {}" if deletes else "").format(sql.Identifier(DELETED))
    kept = sql.SQL("SELECT {names} FROM ({winners}) AS winner {where}").format(
        names=names, winners=winners, where=where
    )
    simple = {column.name for column in table.columns if column.is_simple}
    # Of a longer key all at once would be all rows that share its first column, and one by one MERGE gains little.
    merges = table.mergeable and updates and len(key) == 1 and key[0] in simple
    return Merge(
        table=table,
        staging=staging,
        lock_key=int.from_bytes(_digest(table.quoted, 8), signed=True),
        create=_create(staging, target, names, deletes=deletes),
        insert=_insert(target, columns, kept, key, updates),
        merge=_merge(table, columns, kept, key, updates, _temporary(staging)) if merges else None,
        delete=_delete(only, winners, same) if deletes else None,
        count=_count(_temporary(staging), deletes=deletes),
        count_keys=sql.SQL("SELECT pg_catalog.count(*) FROM (SELECT DISTINCT {key} FROM {staging}) AS keys").format(
            key=_list(key), staging=_temporary(staging)
        ),
        count_deletes=_count_deletes(only, winners, same) if deletes else None,
        count_absent=_count_absent(only, kept, same) if not updates else None,
    )


def _create(staging: str, target: sql.Identifier, names: sql.Composed, *, deletes: bool) -> sql.Composed:
    # The rows of a batch, and nothing at its end: emptying it leaves no dead rows, here or in the catalogue.
    return sql.SQL(
        "CREATE TEMPORARY TABLE {temporary} ON COMMIT DELETE ROWS "
        "AS SELECT {names}{deleted} FROM {target} WITH NO DATA; "
        "ALTER TABLE {temporary} ADD {order} bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000)"
    ).format(
        names=names,
        deleted=sql.SQL(", false AS {}" if deletes else "").format(sql.Identifier(DELETED)),
        target=target,
        temporary=_temporary(staging),
        order=sql.Identifier(ORDER),
    )


def _insert(
    target: sql.Identifier, columns: Sequence[str], winners: sql.Composed, key: Sequence[str], updates: Sequence[str]
) -> sql.Composed:
    # OVERRIDING: a mapped identity column takes the record's value, as it does with COPY.
    return sql.SQL(
        "INSERT INTO {target} ({names}) OVERRIDING SYSTEM VALUE {winners} ON CONFLICT ({key}) DO {action}"
    ).format(
        target=target,
        names=_list(columns),
        winners=winners,
        key=_list(key),
        action=sql.SQL("UPDATE SET {}" if updates else "NOTHING").format(_assignments(updates, "excluded")),
    )


def _merge(
    table: Table,
    columns: Sequence[str],
    winners: sql.Composed,
    key: Sequence[str],
    updates: Sequence[str],
    staging: sql.Identifier,
) -> sql.Composed:
    """All keys at once: the index is then read from leaf to leaf, not from its root for each.

    No statistics know how many rows are staged. Taken for a few, they might be compared each with each.
    """
    return sql.SQL(
        "SET LOCAL enable_nestloop = off; "
        # ONLY: as ON CONFLICT, it leaves tables that inherit from this one alone.
        "MERGE INTO ONLY {target} AS old USING ({winners}) AS winner "
        "ON {same} AND old.{key} {equals} ANY (ARRAY(SELECT {key} FROM {staging})) "
        "WHEN MATCHED THEN UPDATE SET {assignments} "
        "WHEN NOT MATCHED THEN INSERT ({names}) OVERRIDING SYSTEM VALUE VALUES ({values}); "
        "RESET enable_nestloop"
    ).format(
        target=sql.Identifier(table.schema, table.name),
        winners=winners,
        same=_same(key, table),
        key=_list(key),
        equals=_equals(key, table)[0],
        staging=staging,
        assignments=_assignments(updates, "winner"),
        names=_list(columns),
        values=sql.SQL(", ").join(sql.Identifier("winner", name) for name in columns),
    )


def _delete(only: sql.Composed, winners: sql.Composed, same: sql.Composed) -> sql.Composed:
    return sql.SQL("DELETE FROM {only} AS old USING ({winners}) AS winner WHERE winner.{deleted} AND {same}").format(
        only=only, winners=winners, deleted=sql.Identifier(DELETED), same=same
    )


def _count(staging: sql.Identifier, *, deletes: bool) -> sql.Composed:
    marked = (
        sql.SQL("pg_catalog.count(*) FILTER (WHERE {})").format(sql.Identifier(DELETED)) if deletes else sql.SQL("0")
    )
    return sql.SQL("SELECT pg_catalog.count(*), {marked} FROM {staging}").format(marked=marked, staging=staging)


def _count_deletes(only: sql.Composed, winners: sql.Composed, same: sql.Composed) -> sql.Composed:
    return sql.SQL(
        "SELECT pg_catalog.count(*) FILTER (WHERE NOT {deleted}), "
        "pg_catalog.count(*) FILTER (WHERE {deleted} AND EXISTS (SELECT FROM {only} AS old WHERE {same})) "
        "FROM ({winners}) AS winner"
    ).format(deleted=sql.Identifier("winner", DELETED), only=only, same=same, winners=winners)


def _count_absent(only: sql.Composed, kept: sql.Composed, same: sql.Composed) -> sql.Composed:
    return sql.SQL(
        "SELECT pg_catalog.count(*) FROM ({kept}) AS winner WHERE NOT EXISTS (SELECT FROM {only} AS old WHERE {same})"
    ).format(kept=kept, only=only, same=same)


def _same(key: Sequence[str], table: Table) -> sql.Composed:
    return sql.SQL(" AND ").join(
        sql.SQL("old.{name} {equals} winner.{name}").format(name=sql.Identifier(name), equals=equals)
        for name, equals in zip(key, _equals(key, table), strict=True)
    )


def _equals(key: Sequence[str], table: Table) -> list[sql.Composed]:
    """Return what makes two values of each key column one: what its unique index has, whatever the search_path."""
    operators = table.key_operators[frozenset(key)]
    return [
        sql.SQL("OPERATOR({}.{})").format(sql.Identifier(schema), sql.SQL(name))
        for schema, name in map(operators.__getitem__, key)
    ]


def _counts(connection: psycopg.Connection, statement: sql.Composed) -> tuple[int, ...]:
    row = connection.execute(statement, prepare=False).fetchone()
    assert row is not None
    return tuple(map(int, row))


def _assignments(columns: Sequence[str], source: str) -> sql.Composed:
    return sql.SQL(", ").join(
        sql.SQL("{} = {}").format(sql.Identifier(name), sql.Identifier(source, name)) for name in columns
    )


def _list(names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))


def _temporary(name: str) -> sql.Identifier:
    return sql.Identifier("pg_temp", name)


def _digest(name: str, size: int) -> bytes:
    return hashlib.blake2b(f"kbatchd merge {name}".encode(), digest_size=size).digest()
