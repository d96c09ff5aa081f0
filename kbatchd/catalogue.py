"""What PostgreSQL's catalogue says about a target table: its columns, and which of them a record must feed.

The preflight child reads it to report every fault of the tables at once. The flusher thread reads it when it builds a
route's encoder, and again when a fingerprint differs. The sink runs `FINGERPRINT_SQL` inside each batch's transaction,
after its COPY, which holds the table's lock: binary COPY takes a float8's bytes for an int8 without a word.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import psycopg
from psycopg import sql
from psycopg.rows import tuple_row

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


#: All types that these oids are made of: a domain's base, an array's element, a composite's attributes.
_REACHED = """
WITH RECURSIVE target(oid) AS (SELECT {table}), reached(oid) AS (
    SELECT a.atttypid FROM target JOIN pg_catalog.pg_attribute a ON a.attrelid = target.oid
    WHERE a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= {from_oid}
    UNION
    SELECT part.oid FROM reached JOIN pg_catalog.pg_type t ON t.oid = reached.oid CROSS JOIN LATERAL (
        SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT e.oid FROM pg_catalog.pg_type e WHERE e.typarray = t.oid
        UNION ALL SELECT a.atttypid FROM pg_catalog.pg_attribute a
            WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped
    ) part(oid)
)
"""
_LABELS = "ARRAY(SELECT enumlabel::text FROM pg_catalog.pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder)"
_ATTRIBUTES = """
    (SELECT json_agg(json_build_array(a.attname, a.atttypid::bigint, a.atttypmod, a.attndims) ORDER BY a.attnum)
    FROM pg_catalog.pg_attribute a
    WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)"""
#: What a range, or a multirange, is of; where that is a domain, the domain's base.
_RANGE_OF = """
    coalesce((SELECT coalesce(b.typname, s.typname)::text FROM pg_catalog.pg_range r
    JOIN pg_catalog.pg_type s ON s.oid = r.rngsubtype LEFT JOIN pg_catalog.pg_type b ON b.oid = s.typbasetype
    WHERE t.oid IN (r.rngtypid, r.rngmultitypid)), '')"""
#: Types below this oid are PostgreSQL's own, and do not change.
_FIRST_USER_OID = 16384

#: MERGE does to the table `c` what INSERT ... ON CONFLICT does. Not before 17: in 15 and 16 it can mix rows up where
#: another session writes too (bug 18103, mended in 15.5 and 16.1), and looks each key of an array up from the root.
#: BEFORE INSERT triggers see rows that MERGE only updates; rules forbid it; each key would visit all partitions.
_MERGEABLE = """
    (current_setting('server_version_num')::int >= 170000 AND c.relkind = 'r' AND NOT c.relhasrules AND NOT EXISTS
        (SELECT FROM pg_catalog.pg_trigger WHERE tgrelid = c.oid AND NOT tgisinternal))"""

#: Not partial, not of expressions, not deferrable: what else is unique cannot decide a conflict.
_DECIDES = "i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL"
#: The columns and collations of all such indexes: without its own, MERGE makes two rows of a key.
_UNIQUE_INDEXES = f"""
    (SELECT string_agg(DISTINCT concat_ws(':', i.indnkeyatts, i.indkey, i.indcollation), ';')
    FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND {_DECIDES})"""  # noqa: S608 - made of constants
#: A foreign server's partition of `c`: what goes there is another transaction's. Few databases have foreign tables.
_FOREIGN_PARTITION = """
    (SELECT min(f.ftrelid::regclass::text) FROM pg_catalog.pg_foreign_table f WHERE c.relkind = 'p'
    AND c.oid IN (SELECT relid FROM pg_catalog.pg_partition_ancestors(f.ftrelid)))"""

#: Its one parameter is the table's quoted name (`Table.quoted`). It is resolved anew each time, and the oid is part of
#: the result: a table that was dropped and made anew, or renamed, differs too. What users' types are made of is in it
#: as well (labels, domains, attributes), and so is what decides how rows may be merged, and whether all can be seen:
#: with row-level security a merge passes over rows in silence. No row when there is no such table.
FINGERPRINT_SQL: Final = f"""
{_REACHED.format(table="pg_catalog.to_regclass(%s)", from_oid=_FIRST_USER_OID)}
SELECT attrelid::text || ':' || md5(string_agg(
    concat_ws(' ', attnum, atttypid, atttypmod, attnotnull, attgenerated, attidentity, attname), ',' ORDER BY attnum)
    || coalesce((SELECT string_agg(
        concat_ws(' ', t.oid, t.typbasetype, t.typtypmod, t.typnotnull, {_LABELS}, {_ATTRIBUTES}), ',' ORDER BY t.oid)
        FROM reached JOIN pg_catalog.pg_type t ON t.oid = reached.oid), '')
    || (SELECT concat_ws(' ', {_MERGEABLE}, current_setting('lc_monetary'), row_security_active(c.oid),
         {_UNIQUE_INDEXES}, {_FOREIGN_PARTITION})
        FROM pg_catalog.pg_class c WHERE c.oid = attrelid))
FROM target JOIN pg_catalog.pg_attribute ON attrelid = target.oid
WHERE attnum > 0 AND NOT attisdropped
GROUP BY attrelid
"""  # noqa: S608 - made of constants

_TABLE_SQL: Final = f"""
SELECT c.oid, n.nspname, c.relname, c.relkind::text,
    has_any_column_privilege(c.oid, 'INSERT'), row_security_active(c.oid), current_user, {_MERGEABLE},
    coalesce(pg_catalog.pg_get_partkeydef(c.oid), ''), {_FOREIGN_PARTITION}
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = pg_catalog.to_regclass(%s)
"""  # noqa: S608 - made of constants

#: Tables of the same name in other schemas, or with other capitals: "$user" comes first in the path, SQL folds names.
_LIKE_SQL: Final = """
SELECT pg_catalog.format('%%I.%%I', n.nspname, c.relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
WHERE c.relkind OPERATOR(pg_catalog.=) ANY ('{r,p}'::pg_catalog."char"[])
    AND n.nspname OPERATOR(pg_catalog.<>) ALL ('{pg_catalog,information_schema}'::pg_catalog.name[])
    AND pg_catalog.lower(c.relname::pg_catalog.text) OPERATOR(pg_catalog.=)
        (SELECT pg_catalog.lower(parts[pg_catalog.cardinality(parts)]) FROM pg_catalog.parse_ident(%s) parts)
ORDER BY n.nspname, c.relname LIMIT 3
"""

_COLUMNS_SQL: Final = """
SELECT attname, attnum, atttypid::bigint, atttypmod, attndims, attnotnull, attgenerated <> '', attidentity <> '',
    atthasdef
FROM pg_catalog.pg_attribute WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""

#: With whether one of its columns has another collation there: then two values may be one to the index alone.
_UNIQUE_SQL: Final = f"""
SELECT array_agg(a.attname::text), bool_or(k.compares <> a.attcollation)
FROM pg_catalog.pg_index i
    CROSS JOIN unnest(i.indkey::int2[], i.indcollation::oid[]) WITH ORDINALITY AS k(number, compares, place)
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
WHERE i.indrelid = %s AND {_DECIDES} AND k.place <= i.indnkeyatts
GROUP BY i.indexrelid
"""  # noqa: S608 - made of constants

#: The bits of pg_trigger.tgtype: for each row, before, and the events.
#: https://github.com/postgres/postgres/blob/REL_18_STABLE/src/include/catalog/pg_trigger.h
_SKIPS_SQL: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_trigger
    WHERE tgtype & 3 = 3 AND tgtype & %(events)s <> 0 AND tgenabled <> 'D' AND (tgrelid = %(oid)s
        OR tgrelid IN (SELECT relid FROM pg_catalog.pg_partition_tree(%(oid)s))))
"""
INSERTS: Final = 4
DELETES: Final = 8
UPDATES: Final = 16

#: What stands before the fraction of a money value, by the session's lc_monetary: the one with which the text is the
#: same as the number. NULL where neither is.
_MONEY_SQL: Final = """
SELECT CASE 1.5::numeric::money WHEN '1.5'::money THEN '.' WHEN '1,5'::money THEN ',' END
"""

_RIGHTS_SQL: Final = """
SELECT name FROM (VALUES
    ('SELECT', has_any_column_privilege(%(oid)s, 'SELECT')), ('UPDATE', has_any_column_privilege(%(oid)s, 'UPDATE')),
    ('DELETE', has_table_privilege(%(oid)s, 'DELETE')),
    ('TEMPORARY', has_database_privilege(current_database(), 'TEMPORARY'))) AS rights(name, given)
WHERE given
"""

_TYPES_SQL: Final = f"""
{_REACHED.format(table="%s::oid", from_oid=0)}
SELECT t.oid::bigint, CASE WHEN n.nspname = 'pg_catalog' AND t.typtype = 'b' THEN t.typname::text
        ELSE format_type(t.oid, NULL) END,
    t.typtype::text, t.typbasetype::bigint, t.typtypmod, t.typnotnull, t.typndims,
    (SELECT e.oid::bigint FROM pg_catalog.pg_type e WHERE e.typarray = t.oid), t.typdelim::text,
    {_LABELS}, {_ATTRIBUTES}, {_RANGE_OF}
FROM reached JOIN pg_catalog.pg_type t ON t.oid = reached.oid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
"""  # noqa: S608 - made of constants

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
    """One column, an array's element, or an attribute of a composite type.

    `type_name` is what decides the encoding: pg_catalog's name, of a domain that of its base; "enum", "array",
    "composite"; or what format_type says of other types. `typmod` and `not_null` include those of a domain.
    """

    name: str
    number: int
    type_name: str
    typmod: int
    not_null: bool
    generated: bool = False
    identity: bool = False
    has_default: bool = False
    #: The type's oid, of a domain that of its base.
    oid: int = 0
    #: Dimensions that an array was declared with.
    dimensions: int = 0
    #: An array's element, and what PostgreSQL's text form of the array has between two of them.
    element: Column | None = None
    delimiter: str = ","
    #: An enum's labels.
    labels: tuple[str, ...] = ()
    #: A composite type's attributes.
    attributes: tuple[Column, ...] = ()
    #: The type of a range's, or a multirange's, bounds.
    range_of: str = ""
    #: What stands before the fraction of a money value here; "" where that is not known.
    decimal_point: str = "."
    #: The type as PostgreSQL shows it, where `type_name` does not say it.
    shown_type: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Column:
        """Undo dataclasses.asdict, also after a way through JSON."""
        element, attributes = values["element"], values["attributes"]
        return cls(
            **{
                **values,
                "element": element and cls.from_dict(element),
                "labels": tuple(values["labels"]),
                "attributes": tuple(map(cls.from_dict, attributes)),
            }
        )

    @property
    def type(self) -> str:
        """The type in words for people."""
        return self.shown_type or self.type_name

    @property
    def is_simple(self) -> bool:
        """PostgreSQL's own type, so that `=` means one thing whatever the search_path; and no array."""
        return self.oid < _FIRST_USER_OID and self.element is None


@dataclass(frozen=True, slots=True)
class Table:
    """A table rows can be copied to."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    fingerprint: str
    #: The columns of each unique index that ON CONFLICT can use.
    unique_keys: frozenset[frozenset[str]] = frozenset()
    #: Those of which an index has another collation than its column.
    odd_keys: frozenset[frozenset[str]] = frozenset()
    #: How it is partitioned, such as RANGE (day); "" if it is not.
    partitioned_by: str = ""
    #: Who we are, and what we may do beside INSERT.
    user: str = ""
    rights: frozenset[str] = frozenset()
    #: MERGE may be used.
    mergeable: bool = False

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
                raise ConfigError(_not_there(name, _tables_like(cursor, name)))
            oid, schema, relation, kind, may_insert, row_security, user, mergeable, partitioned_by, foreign = row
            _check_relation(f"{schema}.{relation}", kind, user, may_insert=may_insert, row_security=row_security)
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
            keys = [(frozenset(names), is_odd) for names, is_odd in cursor.execute(_UNIQUE_SQL, (oid,))]
            return replace(
                table,
                columns=tuple(_column(types, *values) for values in cursor.execute(_COLUMNS_SQL, (oid,))),
                unique_keys=frozenset(names for names, _ in keys),
                odd_keys=frozenset(names for names, is_odd in keys if is_odd),
                rights=frozenset(name for (name,) in cursor.execute(_RIGHTS_SQL, {"oid": oid})),
            )
    except (psycopg.errors.InvalidName, psycopg.errors.SyntaxError, psycopg.errors.FeatureNotSupported) as error:
        message = f"table {name} is not a table's name ({_primary(error)}): correct the route's `table`"
        raise ConfigError(message) from error
    except psycopg.errors.InsufficientPrivilege as error:
        message = f"table {name} cannot be looked at ({_primary(error)}): grant USAGE on its schema"
        raise ConfigError(message) from error


def _tables_like(cursor: psycopg.Cursor[Any], name: str) -> list[str]:
    try:
        return [each for (each,) in cursor.execute(_LIKE_SQL, (name,))]
    except psycopg.errors.InvalidParameterValue:  # no name at all
        return []


def _not_there(name: str, others: Sequence[str]) -> str:
    if not others:
        return f"table {name} does not exist: create it, or correct the route's `table`"
    lines = "  or  ".join(f"table = {_toml(each)}" for each in others)
    return f"table {name} does not exist, but {' and '.join(others)}: correct the route's line to  {lines}"


def _toml(text: str) -> str:
    return f"'{text}'" if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


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
