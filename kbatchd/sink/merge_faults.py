"""Whether batches can be merged into a table: its key, its columns, and the rights.

Called when a merge is built, by the start-up checks first; pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from psycopg import sql

from kbatchd.postgres.table import Table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def key_faults(table: Table, columns: Sequence[str], key: Sequence[str]) -> Iterator[str]:
    """Say what is wrong with the key, or missing for it."""
    known = {column.name: column for column in table.columns}
    for name in key:
        if name not in known:
            yield f"table {table}: key names column {name}, which is not there: correct it"
        elif name not in columns:
            yield f"table {table}: key column {name} gets nothing from the records: take it out of `key`, or feed it"
        elif not known[name].not_null:
            quoted = sql.Identifier(name).as_string(None)
            yield (
                f"table {table}: key column {name} may be NULL, and NULLs are never the same key: "
                f"ALTER TABLE {table.quoted} ALTER COLUMN {quoted} SET NOT NULL"
            )
    if frozenset(key) in table.odd_keys:
        yield (
            f"table {table}: a unique index on ({', '.join(key)}) has another collation than its column, and two keys "
            "may be one to it alone: recreate the index without COLLATE"
        )
    if known.keys() >= set(key) and frozenset(key) not in table.unique_keys:
        yield (
            f"table {table}: there is no unique index on ({', '.join(key)}), and no partial or deferrable one will do: "
            f"CREATE UNIQUE INDEX ON {table.quoted} ({sql.SQL(', ').join(map(sql.Identifier, key)).as_string(None)})"
        )


def missing_rights(table: Table, wanted: set[str]) -> Iterator[str]:
    """Say what is to be granted."""
    role = sql.Identifier(table.user).as_string(None)
    if "TEMPORARY" not in table.rights:
        grant = f"GRANT TEMPORARY ON DATABASE ... TO {role}"
        yield f"an upsert needs temporary tables, which {table.user} may not make in this database: {grant}"
    missing = ", ".join(sorted(wanted - table.rights))
    if missing:
        yield f"table {table} may not be merged into by {table.user}: GRANT {missing} ON {table.quoted} TO {role}"
