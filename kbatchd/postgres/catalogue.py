"""What PostgreSQL's catalogue says about a target table: its columns, and which of them a record must feed.

The preflight child reads it to report every fault of the tables at once. The flusher thread reads it when it builds a
route's encoder, and again when a fingerprint differs. The sink runs `FINGERPRINT_SQL` inside each batch's transaction,
after its COPY, which holds the table's lock: binary COPY takes a float8's bytes for an int8 without a word.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from kbatchd.errors import ConfigError
from kbatchd.postgres.table import FIRST_USER_OID, Column, Table
from kbatchd.postgres.wrong_table import check_relation, not_there, tables_like

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


#: All types that these oids are made of: a domain's base, an array's element, a composite's attributes.
_REACHED = """
WITH RECURSIVE target(oid) AS (SELECT {table}), reached(oid) AS (
    SELECT a.atttypid FROM target JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) target.oid
    WHERE a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped AND a.atttypid OPERATOR(pg_catalog.>=) {from_oid}
    UNION
    SELECT part.oid FROM reached JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) reached.oid
    CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typtype OPERATOR(pg_catalog.=) 'd'
        UNION ALL SELECT e.oid FROM pg_catalog.pg_type e WHERE e.typarray OPERATOR(pg_catalog.=) t.oid
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype OPERATOR(pg_catalog.=) 'c' AND a.attrelid OPERATOR(pg_catalog.=) t.typrelid
                AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped
    ) part(oid)
)
"""
_LABELS = """
    ARRAY(SELECT enumlabel::pg_catalog.text FROM pg_catalog.pg_enum WHERE enumtypid OPERATOR(pg_catalog.=) t.oid
    ORDER BY enumsortorder)"""
_ATTRIBUTES = """
    (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(a.attname, a.atttypid::bigint, a.atttypmod, a.attndims)
        ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE t.typtype OPERATOR(pg_catalog.=) 'c' AND a.attrelid OPERATOR(pg_catalog.=) t.typrelid
        AND a.attnum OPERATOR(pg_catalog.>) 0 AND NOT a.attisdropped)"""
#: What a range, or a multirange, is of; where that is a domain, the domain's base.
_RANGE_OF = """
    coalesce((SELECT coalesce(b.typname, s.typname)::pg_catalog.text FROM pg_catalog.pg_range r
    JOIN pg_catalog.pg_type s ON s.oid OPERATOR(pg_catalog.=) r.rngsubtype
    LEFT JOIN pg_catalog.pg_type b ON b.oid OPERATOR(pg_catalog.=) s.typbasetype
    WHERE t.oid OPERATOR(pg_catalog.=) ANY (ARRAY[r.rngtypid, r.rngmultitypid])), '')"""

#: MERGE does to the table `c` what INSERT ... ON CONFLICT does. Not before 17: in 15 and 16 it can mix rows up where
#: another session writes too (bug 18103, fixed in 15.5 and 16.1), and looks each key of an array up from the root.
#: BEFORE INSERT triggers see rows that MERGE only updates; rules forbid it; each key would visit all partitions.
_MERGEABLE = """
    (pg_catalog.current_setting('server_version_num')::int OPERATOR(pg_catalog.>=) 170000
    AND c.relkind OPERATOR(pg_catalog.=) 'r' AND NOT c.relhasrules AND NOT EXISTS
        (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid OPERATOR(pg_catalog.=) c.oid AND NOT tgisinternal))"""

#: Not partial, not of expressions, not deferrable: what else is unique cannot decide a conflict.
_DECIDES = "i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL"
#: The columns and collations of all such indexes: without its own, MERGE makes two rows of a key.
_UNIQUE_INDEXES = f"""
    (SELECT pg_catalog.string_agg(
        DISTINCT pg_catalog.concat_ws(':', i.indnkeyatts, i.indkey, i.indcollation, i.indclass), ';')
    FROM pg_catalog.pg_index i
    WHERE i.indrelid OPERATOR(pg_catalog.=) c.oid AND {_DECIDES})"""  # noqa: S608 - made of constants
#: A foreign server's partition of `c`: what goes there is another transaction's. Few databases have foreign tables.
_FOREIGN_PARTITION = """
    (SELECT pg_catalog.min(f.ftrelid::pg_catalog.regclass::pg_catalog.text) FROM pg_catalog.pg_foreign_table f
    WHERE c.relkind OPERATOR(pg_catalog.=) 'p'
        AND c.oid OPERATOR(pg_catalog.=) ANY (SELECT relid FROM pg_catalog.pg_partition_ancestors(f.ftrelid)))"""

#: Its one parameter is the table's quoted name (`Table.quoted`). It is resolved each time, and the oid is part of
#: the result: a table that was dropped and recreated, or renamed, differs too. What users' types are made of is in it
#: as well (labels, domains, attributes), and so is what decides how rows may be merged, and whether all can be seen:
#: with row-level security a merge passes over rows in silence. No row when there is no such table.
FINGERPRINT_SQL: Final = f"""
{_REACHED.format(table="pg_catalog.to_regclass(%s)", from_oid=FIRST_USER_OID)}
SELECT attrelid::pg_catalog.text OPERATOR(pg_catalog.||) ':' OPERATOR(pg_catalog.||)
    pg_catalog.md5(pg_catalog.string_agg(
    pg_catalog.concat_ws(' ', attnum, atttypid, atttypmod, attnotnull, attgenerated, attidentity, attname), ','
    ORDER BY attnum)
    OPERATOR(pg_catalog.||) coalesce((SELECT pg_catalog.string_agg(
        pg_catalog.concat_ws(' ', t.oid, t.typbasetype, t.typtypmod, t.typnotnull, {_LABELS}, {_ATTRIBUTES}), ','
        ORDER BY t.oid)
        FROM reached JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) reached.oid), '')
    OPERATOR(pg_catalog.||) (SELECT pg_catalog.concat_ws(' ', {_MERGEABLE},
        pg_catalog.current_setting('lc_monetary'), pg_catalog.row_security_active(c.oid),
        {_UNIQUE_INDEXES}, {_FOREIGN_PARTITION})
        FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) attrelid))
FROM target JOIN pg_catalog.pg_attribute ON attrelid OPERATOR(pg_catalog.=) target.oid
WHERE attnum OPERATOR(pg_catalog.>) 0 AND NOT attisdropped
GROUP BY attrelid
"""  # noqa: S608 - made of constants

_TABLE_SQL: Final = f"""
SELECT c.oid, n.nspname, c.relname, c.relkind::pg_catalog.text,
    pg_catalog.has_any_column_privilege(c.oid, 'INSERT'), pg_catalog.row_security_active(c.oid), current_user,
    {_MERGEABLE},
    coalesce(pg_catalog.pg_get_partkeydef(c.oid), ''), {_FOREIGN_PARTITION}
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.oid OPERATOR(pg_catalog.=) pg_catalog.to_regclass(%s)
"""  # noqa: S608 - made of constants


_COLUMNS_SQL: Final = """
SELECT attname, attnum, atttypid::bigint, atttypmod, attndims, attnotnull,
    attgenerated OPERATOR(pg_catalog.<>) '', attidentity OPERATOR(pg_catalog.<>) '', atthasdef
FROM pg_catalog.pg_attribute
WHERE attrelid OPERATOR(pg_catalog.=) %s AND attnum OPERATOR(pg_catalog.>) 0 AND NOT attisdropped
ORDER BY attnum
"""

#: With whether one of its columns has another collation there: then two values may be one to the index alone. And with
#: the operators that say which values are equal to it: strategy 3 of a btree.
#: https://www.postgresql.org/docs/current/btree.html
_UNIQUE_SQL: Final = f"""
SELECT pg_catalog.array_agg(a.attname::pg_catalog.text),
    pg_catalog.bool_or(k.compares OPERATOR(pg_catalog.<>) a.attcollation),
    pg_catalog.array_agg(n.nspname::pg_catalog.text), pg_catalog.array_agg(o.oprname::pg_catalog.text)
FROM pg_catalog.pg_index i
    CROSS JOIN ROWS FROM (
        pg_catalog.unnest(i.indkey::pg_catalog.int2[]), pg_catalog.unnest(i.indcollation::pg_catalog.oid[]),
        pg_catalog.unnest(i.indclass::pg_catalog.oid[])
    ) WITH ORDINALITY AS k(number, compares, class, place)
    JOIN pg_catalog.pg_attribute a
        ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid AND a.attnum OPERATOR(pg_catalog.=) k.number
    JOIN pg_catalog.pg_opclass c ON c.oid OPERATOR(pg_catalog.=) k.class
    JOIN pg_catalog.pg_amop m
        ON m.amopfamily OPERATOR(pg_catalog.=) c.opcfamily AND m.amopstrategy OPERATOR(pg_catalog.=) 3
        AND m.amoplefttype OPERATOR(pg_catalog.=) c.opcintype AND m.amoprighttype OPERATOR(pg_catalog.=) c.opcintype
    JOIN pg_catalog.pg_operator o ON o.oid OPERATOR(pg_catalog.=) m.amopopr
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) o.oprnamespace
WHERE i.indrelid OPERATOR(pg_catalog.=) %s AND {_DECIDES} AND k.place OPERATOR(pg_catalog.<=) i.indnkeyatts
GROUP BY i.indexrelid
"""  # noqa: S608 - made of constants

#: The bits of pg_trigger.tgtype: for each row, before, and the events.
#: https://github.com/postgres/postgres/blob/REL_18_STABLE/src/include/catalog/pg_trigger.h
_SKIPS_SQL: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_trigger
    WHERE (tgtype OPERATOR(pg_catalog.&) 3) OPERATOR(pg_catalog.=) 3
        AND (tgtype OPERATOR(pg_catalog.&) %(events)s) OPERATOR(pg_catalog.<>) 0
        AND tgenabled OPERATOR(pg_catalog.<>) 'D'
        AND (tgrelid OPERATOR(pg_catalog.=) %(oid)s OR tgrelid OPERATOR(pg_catalog.=) ANY (
            SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s))))
"""
INSERTS: Final = 4
DELETES: Final = 8
UPDATES: Final = 16

#: What stands before the fraction of a money value, by the session's lc_monetary: the one with which the text is the
#: same as the number. NULL where neither is.
_MONEY_SQL: Final = """
SELECT CASE WHEN 1.5::numeric::pg_catalog.money OPERATOR(pg_catalog.=) '1.5'::pg_catalog.money THEN '.'
    WHEN 1.5::numeric::pg_catalog.money OPERATOR(pg_catalog.=) '1,5'::pg_catalog.money THEN ',' END
"""

_RIGHTS_SQL: Final = """
SELECT name FROM (VALUES
    ('SELECT', pg_catalog.has_any_column_privilege(%(oid)s, 'SELECT')),
    ('UPDATE', pg_catalog.has_any_column_privilege(%(oid)s, 'UPDATE')),
    ('DELETE', pg_catalog.has_table_privilege(%(oid)s, 'DELETE')),
    ('TEMPORARY', pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY'))) AS rights(name, given)
WHERE given
"""

_TYPES_SQL: Final = f"""
{_REACHED.format(table="%s::pg_catalog.oid", from_oid=0)}
SELECT t.oid::bigint,
    CASE WHEN n.nspname OPERATOR(pg_catalog.=) 'pg_catalog' AND t.typtype OPERATOR(pg_catalog.=) 'b'
        THEN t.typname::pg_catalog.text ELSE pg_catalog.format_type(t.oid, NULL) END,
    t.typtype::pg_catalog.text, t.typbasetype::bigint, t.typtypmod, t.typnotnull, t.typndims,
    (SELECT e.oid::bigint FROM pg_catalog.pg_type e WHERE e.typarray OPERATOR(pg_catalog.=) t.oid),
    t.typdelim::pg_catalog.text,
    {_LABELS}, {_ATTRIBUTES}, {_RANGE_OF}
FROM reached JOIN pg_catalog.pg_type t ON t.oid OPERATOR(pg_catalog.=) reached.oid
    JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) t.typnamespace
"""  # noqa: S608 - made of constants


class _Key(NamedTuple):
    """A unique index."""

    columns: Sequence[str]
    is_odd: bool
    operator_schemas: Sequence[str]
    operator_names: Sequence[str]

    @property
    def operators(self) -> dict[str, tuple[str, str]]:
        return dict(zip(self.columns, zip(self.operator_schemas, self.operator_names, strict=True), strict=True))


def read_table(connection: psycopg.Connection, name: str) -> Table:
    """Read a table and its columns; ConfigError when rows cannot be copied to it."""
    try:
        with connection.transaction(), connection.cursor(row_factory=tuple_row) as cursor:
            row = cursor.execute(_TABLE_SQL, (name,)).fetchone()
            if row is None:
                raise ConfigError(not_there(name, tables_like(cursor, name)))
            oid, schema, relation, kind, may_insert, row_security, user, mergeable, partitioned_by, foreign = row
            check_relation(f"{schema}.{relation}", kind, user, may_insert=may_insert, row_security=row_security)
            if foreign is not None:
                message = (
                    f"table {schema}.{relation} has its partition {foreign} on another server, where nothing is "
                    "exactly once: detach it, or name a table without it"
                )
                raise ConfigError(message)
            table = Table(oid, schema, relation, (), "", user=user, mergeable=mergeable, partitioned_by=partitioned_by)
            # Before the columns: should they change in between, the next batch sees another fingerprint.
            table = replace(table, fingerprint=fingerprint(connection, table.quoted))
            types = {row[0]: _Type(*row) for row in cursor.execute(_TYPES_SQL, (oid,))}
            if any(type_.shown == "money" for type_ in types.values()):
                (point,) = cursor.execute(_MONEY_SQL).fetchone() or ("",)
                types = {at: each._replace(decimal_point=point or "") for at, each in types.items()}
            keys = [_Key(*row) for row in cursor.execute(_UNIQUE_SQL, (oid,))]
            return replace(
                table,
                columns=tuple(_column(types, *values) for values in cursor.execute(_COLUMNS_SQL, (oid,))),
                unique_keys=frozenset(frozenset(key.columns) for key in keys),
                key_operators={frozenset(key.columns): key.operators for key in keys},
                odd_keys=frozenset(frozenset(key.columns) for key in keys if key.is_odd),
                rights=frozenset(name for (name,) in cursor.execute(_RIGHTS_SQL, {"oid": oid})),
            )
    except (psycopg.errors.InvalidName, psycopg.errors.SyntaxError, psycopg.errors.FeatureNotSupported) as error:
        message = f"table {name} is not a table's name ({_primary(error)}): correct the route's `table`"
        raise ConfigError(message) from error
    except psycopg.errors.InsufficientPrivilege as error:
        message = f"table {name} cannot be looked at ({_primary(error)}): grant USAGE on its schema"
        raise ConfigError(message) from error


def _primary(error: psycopg.Error) -> str:
    return error.diag.message_primary or str(error)


def fingerprint(connection: psycopg.Connection, quoted_name: str) -> str:
    """Return what identifies the table and all that the encoding of its rows depends on; "" if it is gone.

    One query in the caller's transaction: a batch's own, after its COPY.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(FINGERPRINT_SQL, (quoted_name,)).fetchone()
    return "" if row is None else str(row[0])


def missing_partition(relation: tuple[str, str], partitioned_by: str, message: str) -> str:
    """Return the statement that makes a partition for the row of this message; what nobody can know of it are dots."""
    strategy, *columns = re.findall(r"\w+", partitioned_by) or [""]
    found = re.search(r"\(.*\) = \((.*)\)", message) if len(columns) == 1 else None
    value = sql.Literal(found[1]).as_string(None).strip() if found else "..."
    bounds = {"RANGE": f"FROM ({value}) TO (...)", "LIST": f"IN ({value})", "HASH": "WITH (MODULUS ..., REMAINDER ...)"}
    parent = sql.Identifier(*relation).as_string(None)
    return f"CREATE TABLE ... PARTITION OF {parent} FOR VALUES {bounds.get(strategy, '...')}"


def may_skip_rows(connection: psycopg.Connection, oid: int, events: int) -> bool:
    """Tell whether the table, or a partition of it, has a trigger that may return NULL for a row, before such an event.

    Asked within a transaction that has written to the table, whose lock lets nobody change its triggers.
    """
    with connection.cursor(row_factory=tuple_row) as cursor:
        row = cursor.execute(_SKIPS_SQL, {"oid": oid, "events": events}).fetchone()
    return row is not None and bool(row[0])


class _Type(NamedTuple):
    """A row of `_TYPES_SQL`."""

    oid: int
    shown: str
    kind: str
    base: int
    typmod: int
    not_null: bool
    dimensions: int
    element: int | None
    delimiter: str
    labels: list[str]
    attributes: list[tuple[str, int, int, int]] | None
    range_of: str
    decimal_point: str = "."


def _column(
    types: Mapping[int, _Type], name: str, number: int, oid: int, typmod: int, dimensions: int, *flags: bool
) -> Column:
    """Make a column of its type, looking through domains; the flags are those of Column, in its order."""
    kind = types[oid]
    not_null, generated, identity, has_default = flags or (False,) * 4
    while kind.kind == "d":
        typmod = kind.typmod if kind.typmod >= 0 else typmod
        dimensions, not_null = max(dimensions, kind.dimensions), not_null or kind.not_null
        kind = types[kind.base]
    shown = types[oid].shown
    column = Column(
        name, number, kind.shown, typmod, not_null, generated, identity, has_default, kind.oid, shown_type=shown
    )
    if kind.kind == "e":
        return replace(column, type_name="enum", labels=tuple(kind.labels))
    if kind.kind == "c":
        attributes = (_column(types, *attribute) for attribute in _numbered(kind.attributes or ()))
        return replace(column, type_name="composite", attributes=tuple(attributes))
    if kind.element is not None:
        element = _column(types, name, number, kind.element, typmod, 0)
        delimiter = types[kind.element].delimiter
        return replace(column, type_name="array", dimensions=dimensions, element=element, delimiter=delimiter)
    return replace(column, range_of=kind.range_of, decimal_point=kind.decimal_point)


def _numbered(attributes: Sequence[tuple[str, int, int, int]]) -> Iterator[tuple[str, int, int, int, int]]:
    return ((name, at, oid, typmod, dimensions) for at, (name, oid, typmod, dimensions) in enumerate(attributes, 1))
