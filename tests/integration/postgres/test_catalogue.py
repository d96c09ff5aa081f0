"""What is read from a real catalogue, which tables and columns are refused, and what changes a fingerprint."""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, LiteralString

import psycopg
import pytest

from kbatchd.config import RouteMapping
from kbatchd.encode.mapping import row_columns
from kbatchd.errors import ConfigError
from kbatchd.postgres.catalogue import FINGERPRINT_SQL, fingerprint, read_table

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def connection(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        # The role's own name is a schema here, and would be the first to be looked at.
        connection.execute("SET search_path = public")
        yield connection


def faults(connection: psycopg.Connection, table: str, *omit: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        row_columns(read_table(connection, table), RouteMapping(omit=omit))
    return raised.value.faults


def test_a_table_is_read_with_all_that_its_columns_are(connection: psycopg.Connection) -> None:
    connection.execute("""
        CREATE TABLE t (a int8 NOT NULL, gone int, b varchar(5), c numeric(10,2) DEFAULT 0,
            d int GENERATED ALWAYS AS IDENTITY, e int GENERATED ALWAYS AS (a + 1) STORED)""")
    connection.execute("ALTER TABLE t DROP COLUMN gone")
    table = read_table(connection, "t")
    assert (table.schema, table.name, table.quoted) == ("public", "t", '"public"."t"')
    assert [
        (c.name, c.number, c.type_name, c.not_null, c.generated, c.identity, c.has_default) for c in table.columns
    ] == [
        ("a", 1, "int8", True, False, False, False),
        ("b", 3, "varchar", False, False, False, False),
        ("c", 4, "numeric", False, False, False, True),
        ("d", 5, "int4", True, False, True, False),
        ("e", 6, "int4", False, True, False, True),
    ]
    assert [column.name for column in row_columns(table, RouteMapping(omit=("c",)))] == ["a", "b"]
    assert read_table(connection, "public.t") == table


@pytest.mark.parametrize("name", ['"Odd "" name"', '"my schema"."Odd "" name"', 'public."Odd "" name"'])
def test_names_are_quoted_as_in_sql(connection: psycopg.Connection, name: str) -> None:
    connection.execute('CREATE SCHEMA "my schema"')
    connection.execute(f"CREATE TABLE {name} (a int)".encode())
    table = read_table(connection, name)
    assert table.name == 'Odd " name'
    assert fingerprint(connection, table.quoted) == table.fingerprint


@pytest.mark.parametrize(
    "name", ["missing", "nowhere.t", "a.b.c.d", '"open', "", "otherdb.public.t", "T; DROP TABLE x", "1"]
)
def test_what_is_no_table_is_one_clear_line(connection: psycopg.Connection, name: str) -> None:
    (fault,) = faults(connection, name)
    assert fault.startswith(f"table {name} ")
    assert "`table`" in fault


@pytest.mark.parametrize(
    ("kind", "statement"),
    [
        ("a view", "CREATE VIEW t AS SELECT 1 AS a"),
        ("a materialized view", "CREATE MATERIALIZED VIEW t AS SELECT 1 AS a"),
        ("a sequence", "CREATE SEQUENCE t"),
        ("a composite type", "CREATE TYPE t AS (a int)"),
    ],
)
def test_other_relations_are_refused(connection: psycopg.Connection, kind: str, statement: LiteralString) -> None:
    connection.execute(statement)
    (fault,) = faults(connection, "t")
    assert f"table public.t is {kind}" in fault


def test_a_partitioned_table_is_a_table(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE t (a int) PARTITION BY RANGE (a)")
    assert [column.name for column in row_columns(read_table(connection, "t"), RouteMapping())] == ["a"]


def test_missing_rights_are_refused_with_what_to_grant(connection: psycopg.Connection) -> None:
    connection.execute(
        "CREATE SCHEMA closed; CREATE TABLE closed.t (a int); CREATE TABLE t (a int); CREATE ROLE reader_of_test"
    )
    try:
        connection.execute("SET ROLE reader_of_test")
        assert "GRANT INSERT ON public.t TO" in faults(connection, "t")[0]
        assert "grant USAGE on its schema" in faults(connection, "closed.t")[0]
        connection.execute("RESET ROLE; GRANT INSERT ON t TO reader_of_test; SET ROLE reader_of_test")
        assert read_table(connection, "t").name == "t"
        connection.execute("RESET ROLE; ALTER TABLE t ENABLE ROW LEVEL SECURITY; SET ROLE reader_of_test")
        assert "row-level security" in faults(connection, "t")[0]
    finally:
        connection.execute("RESET ROLE; DROP OWNED BY reader_of_test; DROP ROLE reader_of_test")


def test_all_faults_of_the_columns_are_told_at_once(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TYPE mood AS ENUM ('good'); CREATE DOMAIN positive AS int")
    connection.execute(
        """
        CREATE TABLE t (id bigserial, a int, at timestamptz NOT NULL DEFAULT now(), needed int NOT NULL,
            m mood, p positive, i int[], x point, c citext_is_not_here)""".replace(", c citext_is_not_here", "")
    )
    found = faults(connection, "t", "needed", "nothing", "a")
    assert len(found) == 3
    assert any("column nothing" in fault for fault in found)
    assert any("column needed is NOT NULL and has no default" in fault for fault in found)
    (line,) = (fault for fault in found if "omit = " in fault)
    omit = tomllib.loads(line[line.index("omit = ") : line.index("]") + 1])["omit"]
    assert omit == ["needed", "nothing", "a", "id", "at"]


def test_the_line_to_add_is_toml_for_any_column_name(connection: psycopg.Connection) -> None:
    connection.execute('CREATE TABLE t (a int, "in""serted \\at" int NOT NULL DEFAULT 0)')
    (line,) = faults(connection, "t")
    omit = tomllib.loads(line[line.index("omit = ") : line.index("]") + 1])["omit"]
    assert omit == ['in"serted \\at']
    assert [column.name for column in row_columns(read_table(connection, "t"), RouteMapping(omit=tuple(omit)))] == ["a"]


def test_a_table_without_columns_for_records_is_refused(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE t (a int)")
    assert "no column is left" in faults(connection, "t", "a")[0]


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE t ALTER a TYPE float8",
        "ALTER TABLE t ALTER b TYPE varchar(4)",
        "ALTER TABLE t ALTER a SET NOT NULL",
        "ALTER TABLE t RENAME a TO z",
        "ALTER TABLE t DROP COLUMN b",
        "ALTER TABLE t ADD COLUMN c int",
        "ALTER TABLE t RENAME TO u",
        "ALTER TABLE t SET SCHEMA other",
        "DROP TABLE t",
        "DROP TABLE t; CREATE TABLE t (a int8, b varchar(5))",
        "ALTER TABLE t RENAME a TO c; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME c TO b",
    ],
)
def test_what_the_encoding_depends_on_changes_the_fingerprint(
    connection: psycopg.Connection, change: LiteralString
) -> None:
    connection.execute("CREATE SCHEMA other; CREATE TABLE t (a int8, b varchar(5))")
    table = read_table(connection, "t")
    connection.execute(change)
    assert fingerprint(connection, table.quoted) != table.fingerprint


@pytest.mark.parametrize(
    "change",
    ["ALTER TABLE t ALTER a SET DEFAULT 1", "CREATE INDEX ON t (a)", "TRUNCATE t", "ALTER TABLE t ADD CHECK (a > 0)"],
)
def test_other_changes_leave_the_fingerprint(connection: psycopg.Connection, change: LiteralString) -> None:
    connection.execute("CREATE TABLE t (a int8, b varchar(5))")
    table = read_table(connection, "t")
    connection.execute(change)
    assert fingerprint(connection, table.quoted) == table.fingerprint


def test_the_search_path_does_not_change_the_fingerprint(connection: psycopg.Connection) -> None:
    connection.execute("CREATE TABLE t (a int8)")
    table = read_table(connection, "t")
    connection.execute("SET search_path = pg_catalog")
    row = connection.execute(FINGERPRINT_SQL, (table.quoted,)).fetchone()
    assert row == (table.fingerprint,)


def test_types_are_looked_through(connection: psycopg.Connection) -> None:
    connection.execute(
        """
        CREATE TYPE mood AS ENUM ('good', 'bad'); CREATE DOMAIN code AS varchar(5) NOT NULL;
        CREATE DOMAIN codes AS code[];
        CREATE TYPE pair AS (a int, b mood[]);
        CREATE TABLE t (m mood, c code, cs codes, p pair, n numeric(4,2)[][], r int4range, x "char")"""
    )
    m, c, cs, p, n, r, x = read_table(connection, "t").columns
    assert (m.type_name, m.labels, m.type) == ("enum", ("good", "bad"), "mood")
    assert (c.type_name, c.typmod, c.not_null, c.type) == ("varchar", 9, True, "code")
    assert cs.element is not None
    assert (cs.type_name, cs.element.type_name, cs.element.typmod) == ("array", "varchar", 9)
    assert [(a.name, a.type_name) for a in p.attributes] == [("a", "int4"), ("b", "array")]
    assert n.element is not None
    assert (n.dimensions, n.element.type_name) == (2, "numeric")
    assert (r.type_name, x.type_name) == ("int4range", "char")


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TYPE mood ADD VALUE 'worse'",
        "ALTER TYPE pair ADD ATTRIBUTE c int",
        "ALTER DOMAIN code SET NOT NULL",
    ],
)
def test_what_users_types_are_made_of_changes_the_fingerprint(
    connection: psycopg.Connection, change: LiteralString
) -> None:
    connection.execute(
        """
        CREATE TYPE mood AS ENUM ('good'); CREATE DOMAIN code AS text; CREATE TYPE pair AS (a int, b mood[]);
        CREATE TABLE t (p pair[], c code)"""
    )
    table = read_table(connection, "t")
    connection.execute(change)
    assert fingerprint(connection, table.quoted) != table.fingerprint
