"""A table that is not there, or that no row can be put into: said so that one knows what to do.

Called by catalogue.py when it reads a table.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import psycopg
from psycopg import sql

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence


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


def tables_like(cursor: psycopg.Cursor[Any], name: str) -> list[str]:
    """Return the tables that may be meant."""
    try:
        return [each for (each,) in cursor.execute(_LIKE_SQL, (name,))]
    except psycopg.errors.InvalidParameterValue:  # no name at all
        return []


def not_there(name: str, others: Sequence[str]) -> str:
    """Say that there is no such table, and what to do."""
    if not others:
        return f"table {name} does not exist: create it, or correct the route's `table`"
    lines = "  or  ".join(f"table = {_toml(each)}" for each in others)
    return f"table {name} does not exist, but {' and '.join(others)}: correct the route's line to  {lines}"


def _toml(text: str) -> str:
    return f"'{text}'" if '"' in text and "'" not in text else json.dumps(text, ensure_ascii=False)


def check_relation(name: str, kind: str, user: str, *, may_insert: bool, row_security: bool) -> None:
    """Raise ConfigError for what no row can be put into."""
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
