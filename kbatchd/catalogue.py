"""What PostgreSQL's catalogue says about a target table: its columns, and which of them a record must feed.

The preflight child reads it to report every fault of the tables at once. The flusher thread reads it when it builds a
route's encoder, and again when a fingerprint differs. The sink runs `FINGERPRINT_SQL` inside each batch's transaction,
after its COPY, which holds the table's lock: binary COPY takes a float8's bytes for an int8 without a word.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


#: The names, in pg_catalog, of the types the row encoder knows. A unit test compares it with rows.py.
SUPPORTED_TYPES: Final = frozenset({
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "uuid",
    "date", "timestamp", "timestamptz", "json", "jsonb", "bytea",
})  # fmt: skip

#: Its one parameter is the table's quoted name (`Table.quoted`). It is resolved anew each time, and the oid is part of
#: the result: a table that was dropped and made anew, or renamed, differs too. No row when there is no such table.
FINGERPRINT_SQL: Final = """
SELECT attrelid::text || ':' || md5(string_agg(
    concat_ws(' ', attnum, atttypid, atttypmod, attnotnull, attgenerated, attidentity, attname), ',' ORDER BY attnum))
FROM pg_catalog.pg_attribute
WHERE attrelid = pg_catalog.to_regclass(%s) AND attnum > 0 AND NOT attisdropped
GROUP BY attrelid
"""

_TABLE_SQL: Final = """
SELECT c.oid, n.nspname, c.relname, c.relkind::text,
    has_any_column_privilege(c.oid, 'INSERT'), row_security_active(c.oid), current_user
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = pg_catalog.to_regclass(%s)
"""

_COLUMNS_SQL: Final = """
SELECT a.attname, a.attnum,
    CASE WHEN n.nspname = 'pg_catalog' AND t.typtype = 'b' AND t.typcategory <> 'A' THEN t.typname
        ELSE format_type(a.atttypid, a.atttypmod) END,
    a.atttypmod, a.attnotnull, a.attgenerated <> '', a.attidentity <> '', a.atthasdef
FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
    JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

_RELATION_KINDS: Final = {
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
    "i": "an index",
    "I": "an index",
    "S": "a sequence",
    "c": "a composite type",
    "t": "a TOAST table",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column, as pg_attribute has it; `type_name` is pg_catalog's name, or what format_type says of other types."""

    name: str
    number: int
    type_name: str
    typmod: int
    not_null: bool
    generated: bool
    identity: bool
    has_default: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A table rows can be copied to."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    fingerprint: str

    @property
    def quoted(self) -> str:
        """The name with its schema, quoted: safe in SQL text and right for to_regclass."""
        return sql.Identifier(self.schema, self.name).as_string(None)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"


def read_table(connection: psycopg.Connection, name: str) -> Table:
    """Read a table and its columns; ConfigError when rows cannot be copied to it."""
    try:
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            row = cursor.execute(_TABLE_SQL, (name,)).fetchone()
            if row is None:
                message = f"table {name} does not exist: create it, or correct the route's `table`"
                raise ConfigError(message)
            oid, schema, relation, kind, may_insert, row_security, user = row
            _check_relation(f"{schema}.{relation}", kind, user, may_insert=may_insert, row_security=row_security)
            table = Table(oid, schema, relation, (), "")
            # Before the columns: should they change in between, the next batch sees another fingerprint.
            table = replace(table, fingerprint=fingerprint(connection, table.quoted))
            return replace(table, columns=tuple(Column(*values) for values in cursor.execute(_COLUMNS_SQL, (oid,))))
    except (psycopg.errors.InvalidName, psycopg.errors.SyntaxError, psycopg.errors.FeatureNotSupported) as error:
        message = f"table {name} is not a table's name ({_primary(error)}): correct the route's `table`"
        raise ConfigError(message) from error
    except psycopg.errors.InsufficientPrivilege as error:
        message = f"table {name} cannot be looked at ({_primary(error)}): grant USAGE on its schema"
        raise ConfigError(message) from error


def _check_relation(name: str, kind: str, user: str, *, may_insert: bool, row_security: bool) -> None:
    if kind not in {"r", "p"}:
        what = _RELATION_KINDS.get(kind, "no table")
        message = f"table {name} is {what}: rows can be copied to ordinary and partitioned tables only"
        raise ConfigError(message)
    role = sql.Identifier(user).as_string(None)
    if not may_insert:
        message = f"table {name} may not be written by {user}: GRANT INSERT ON {name} TO {role}"
        raise ConfigError(message)
    if row_security:
        message = f"table {name} has row-level security, which COPY cannot obey: ALTER ROLE {role} BYPASSRLS"
        raise ConfigError(message)


def _primary(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error)


def fingerprint(connection: psycopg.Connection, quoted_name: str) -> str:
    """Return what identifies the table and all that the encoding of its rows depends on; "" if it is gone.

    One query in the caller's transaction: a batch's own, after its COPY.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(FINGERPRINT_SQL, (quoted_name,)).fetchone()
    return "" if row is None else str(row[0])


def row_columns(table: Table, omit: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns that a record feeds; ConfigError with all faults when some cannot be fed."""
    columns = tuple(
        column for column in table.columns if not (column.generated or column.identity or column.name in omit)
    )
    faults = [*_omit_faults(table, omit), *_column_faults(table, columns, omit)]
    if not columns:
        faults.append(f"table {table}: no column is left for the records: take some out of `omit`")
    if faults:
        raise ConfigError(*faults)
    return columns


def _omit_faults(table: Table, omit: Sequence[str]) -> Iterator[str]:
    columns = {column.name: column for column in table.columns}
    for name in omit:
        column = columns.get(name)
        if column is None:
            yield f"table {table}: omit names column {name}, which is not there: correct it, or take it out of `omit`"
        elif column.not_null and not (column.has_default or column.generated or column.identity):
            yield (
                f"table {table}: omitted column {name} is NOT NULL and has no default: "
                f"give it one, or take it out of `omit`"
            )


def _column_faults(table: Table, columns: Sequence[Column], omit: Sequence[str]) -> Iterator[str]:
    defaults = [column.name for column in columns if column.not_null and column.has_default]
    if defaults:
        # JSON's strings are TOML's as well, whatever is in a column's name.
        line = f"omit = {json.dumps([*omit, *defaults], ensure_ascii=False)}"
        yield (
            f"table {table}: {', '.join(defaults)}: NOT NULL with a default, which PostgreSQL applies to omitted "
            f"columns only: add to the route the line  {line}  or drop the default if every record has the field"
        )
    for column in columns:
        if column.type_name not in SUPPORTED_TYPES:
            yield (
                f"table {table}: column {column.name} is of type {column.type_name}, which is not supported: "
                f"change its type, or put it into `omit`"
            )
