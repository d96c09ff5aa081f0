"""Routes that are copied as text: the same rows as in binary, and types whose values PostgreSQL itself reads."""

from __future__ import annotations

import json
import struct
from typing import TYPE_CHECKING

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbatchd.config import RouteMapping
from kbatchd.encode.mapping import row_columns
from kbatchd.encode.rows import build_encoder
from kbatchd.model import CopyFormat
from kbatchd.postgres.catalogue import read_table
from kbatchd.postgres.connection import Verdict, verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kbatchd.model import Refusal

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = struct.pack(">h", -1)

FAST = {
    "b": "bool", "i2": "int2", "i8": "int8", "f4": "float4", "f8": "float8", "n": "numeric", "n2": "numeric(20,2)",
    "t": "text", "v": "varchar(4)", "c": "char(4)", "u": "uuid", "d": "date", "ts": "timestamp", "tz": "timestamptz",
    "ti": "time", "tt": "timetz", "iv": "interval", "ip": "inet", "j": "json", "jb": "jsonb", "y": "bytea", "m": "mood",
    "a": "text[]", "ai": "int4[]", "an": "numeric[]", "aj": "jsonb[]",
}  # fmt: skip

#: jsonb writes a number as it came: 100.0 or 1e2.
AS_JSONB = {"jb": "jb", "aj": "aj"}

#: Literals of every kind, so that each column gets good ones and bad ones.
NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(allow_nan=False, allow_infinity=False, places=25).map(lambda number: f"{number:f}"),
    st.sampled_from(["-0", "1e400", "1e-400", "18446744073709551616", "0.1", "1.50", "7", "-7", "1e2"]),
)
WORDS = st.sampled_from([
    "", "a", "\\N", "\\.", "a\tb", "a\nb", "\r", "\\", "é", "😀", "abcde", "ab  ", "sad", "NaN", "Infinity", "12",
    "true",
    "2026-11-22", "2026-11-22T23:44:05Z", "2026-11-22T23:44:05.1234567+01:00", "0044-03-15 BC", "24:00:00", "12:30Z",
    "P1Y2DT-3.5S", "-1 day +02:03:00", "10.0.0.1/8", "::1", "AAEC", "cd613e30-d8f1-6adf-91b7-584a2265b1f5", "infinity",
    "294276-12-31T23:59:59Z", "\0", "so, so", '"', "{}", "null",
]).map(json.dumps)  # fmt: skip
SCALARS = st.one_of(NUMBERS, WORDS, st.text(max_size=6).map(json.dumps), st.sampled_from(["null", "true", "false"]))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
        st.dictionaries(st.sampled_from(["a", "b\\n", ""]), inner, max_size=2).map(
            lambda fields: "{" + ",".join(f'"{name}":{value}' for name, value in fields.items()) + "}"
        ),
    ),
    max_leaves=4,
)


class Pair:
    """The same columns in two tables; one has a range beside them, and so is fed as text."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        columns = ", ".join(f"{name} {kind}" for name, kind in FAST.items())
        connection.execute("""CREATE TYPE mood AS ENUM ('sad', 'so, so')""")
        connection.execute(f"CREATE TABLE bin (no int NOT NULL, {columns})".encode())
        connection.execute(f"CREATE TABLE txt (no int NOT NULL, {columns}, r int4range)".encode())

    def feed(self, table: str, values: Sequence[bytes]) -> list[tuple[int, Refusal]] | str | None:
        """Copy what the encoder takes; return what it refuses, or PostgreSQL does (a number too large, say)."""
        try:
            return copy(self.connection, table, values)
        except psycopg.DataError as error:
            return error.sqlstate


def copy(connection: psycopg.Connection, table: str, values: Sequence[bytes]) -> list[tuple[int, Refusal]]:
    encoder = build_encoder(row_columns(read_table(connection, table), RouteMapping()))
    rows: list[bytes] = []
    refused = encoder.encode((), values, rows).refused
    binary = encoder.copy_format is CopyFormat.BINARY
    names = ",".join(f'"{name}"' for name in encoder.columns)
    statement = f"COPY {table} ({names}) FROM STDIN (FORMAT {encoder.copy_format.value})"
    with connection.cursor() as cursor, cursor.copy(statement.encode()) as stream:
        stream.write(HEADER + b"".join(rows) + TRAILER if binary else b"".join(rows))
    return refused


@pytest.fixture
def odd_session(database: str) -> Iterator[psycopg.Connection]:
    """A session with settings that hardly anybody has: none of them may decide anything."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'")
        connection.execute("SET intervalstyle = 'sql_standard'")
        yield connection


@pytest.mark.parametrize("examples", [60, pytest.param(5_000, marks=pytest.mark.soak)])
def test_both_formats_make_the_same_table_and_refuse_the_same(odd_session: psycopg.Connection, examples: int) -> None:
    pair = Pair(odd_session)
    # jsonb is the same value, not always the same text: 1e2 may have become 100.0. To jsonb itself they are equal.
    names = ", ".join(AS_JSONB.get(name, f"{name}::text") for name in FAST)
    fields = st.dictionaries(st.sampled_from(sorted(FAST)), VALUES, min_size=1, max_size=5)

    # The few are always the same, so that a change is judged by what it changes; the many are new ones each time.
    @settings(
        max_examples=examples,
        derandomize=examples == 60,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(fields, min_size=1, max_size=40))
    def compare(records: list[dict[str, str]]) -> None:
        odd_session.execute("TRUNCATE bin, txt")
        values = [
            ("{" + ",".join([f'"no":{no}', *(f'"{name}":{value}' for name, value in record.items())]) + "}").encode()
            for no, record in enumerate(records)
        ]
        assert pair.feed("bin", values) == pair.feed("txt", values)
        different = odd_session.execute(
            f"(SELECT no, {names} FROM bin EXCEPT SELECT no, {names} FROM txt) UNION ALL "
            f"(SELECT no, {names} FROM txt EXCEPT SELECT no, {names} FROM bin)".encode()
        ).fetchall()
        assert different == []

    compare()


READ_BY_POSTGRESQL = [
    ("bit(4)", '"0101"', "0101"),
    ("varbit", '"1"', "1"),
    ("int4range", '"[1,5)"', "[1,5)"),
    ("int4range", "[1,5]", "[1,6)"),
    ("tstzrange", '"[2026-01-01T00:00:00Z,)"', None),
    ("int4[][]", "[[1,2],[3,null]]", "{{1,2},{3,NULL}}"),
    ("text[][]", '[["a,b","\\"c\\""],["{}",""]]', '{{"a,b","\\"c\\""},{"{}",""}}'),
    ("money", "12.34", "$12.34"),
    ("macaddr", '"08:00:2b:01:02:03"', "08:00:2b:01:02:03"),
    ("point", '"(1,2)"', "(1,2)"),
    ("oid", "7", "7"),
    ("tsvector", '"a fat cat"', "'a' 'cat' 'fat'"),
    ("pair", '{"b":"x, \\"y\\"","a":1,"c":[1,2],"more":0}', '(1,"x, ""y""","{1,2}")'),
    ("pair", "[2,null,null]", "(2,,)"),
    ("pair[]", '[{"a":1},null]', '{"(1,,)",NULL}'),
    ("jsonpath", '"$.a"', '$."a"'),
    ('"char"', '"x"', "x"),
]

#: As above, from extensions; each type has its extension's name.
READ_BY_EXTENSIONS = [
    ("hstore", '{"a":"x, \\"y\\"","n":1.50,"none":null,"o":{"p":[1]}}',
     '"a"=>"x, \\"y\\"", "n"=>"1.50", "o"=>"{\\"p\\":[1]}", "none"=>NULL'),
    ("hstore", '"a=>1"', '"a"=>"1"'),
    ("ltree", '"Top.Science.Astronomy"', "Top.Science.Astronomy"),
    ("vector", "[1,2.5,-3]", "[1,2.5,-3]"),
    ("vector", '"[1,2]"', "[1,2]"),
    ("citext", '"MiXed"', "MiXed"),
    ("cube", '"(1,2),(3,4)"', "(1, 2),(3, 4)"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "literal", "shown"), READ_BY_POSTGRESQL)
def test_a_type_that_postgresql_reads(
    odd_session: psycopg.Connection, kind: str, literal: str, shown: str | None
) -> None:
    odd_session.execute("CREATE TYPE pair AS (a int, b text, c int[]); SET lc_monetary = 'C'")
    odd_session.execute(f"CREATE TABLE t (n numeric, v {kind})".encode())
    assert_is_read(odd_session, literal, shown)


@pytest.mark.parametrize(("kind", "literal", "shown"), READ_BY_EXTENSIONS)
def test_a_type_that_an_extension_reads(odd_session: psycopg.Connection, kind: str, literal: str, shown: str) -> None:
    odd_session.execute(f"CREATE EXTENSION {kind}".encode())
    odd_session.execute(f"CREATE TABLE t (n numeric, v {kind})".encode())
    assert_is_read(odd_session, literal, shown)


@pytest.mark.parametrize(
    ("kind", "literal"),
    [("hstore", '"=>"'), ("ltree", '"a b"'), ("vector", '["x"]'), ("vector", "[1e400]"), ("cube", '"(1,"')],
)
def test_what_an_extension_refuses_has_its_line_and_column(
    odd_session: psycopg.Connection, kind: str, literal: str
) -> None:
    odd_session.execute(f"CREATE EXTENSION {kind}; CREATE TABLE t (n int, v {kind})".encode())
    with pytest.raises(psycopg.Error) as caught:
        copy(odd_session, "t", [b'{"n":1}', b'{"n":2,"v":%b}' % literal.encode()])
    assert caught.value.diag.context is not None
    assert "COPY t, line 2, column v" in caught.value.diag.context


def assert_is_read(connection: psycopg.Connection, literal: str, shown: str | None) -> None:
    """Copy the literal into the table t, beside a row without it and one with a null."""
    assert copy(connection, "t", [b'{"n":0.10,"v":%b}' % literal.encode(), b'{"n":1}', b'{"n":2,"v":null}']) == []
    rows = connection.execute("SELECT n::text, v::text FROM t ORDER BY n").fetchall()
    assert [n for n, _ in rows] == ["0.10", "1", "2"]
    assert [v for _, v in rows][1:] == [None, None]
    if shown is not None:
        assert rows[0][1].removeprefix("$") == shown.removeprefix("$")


def test_what_postgresql_refuses_has_its_line_and_column(odd_session: psycopg.Connection) -> None:
    odd_session.execute("CREATE TABLE t (n int, r int4range)")
    with pytest.raises(psycopg.DataError) as caught:
        copy(odd_session, "t", [b'{"n":1,"r":"[1,2)"}', b'{"n":2,"r":"nonsense"}'])
    assert caught.value.diag.context is not None
    assert "COPY t, line 2, column r" in caught.value.diag.context


def test_xml_is_read_where_postgresql_was_built_with_libxml(odd_session: psycopg.Connection) -> None:
    """Else it takes nulls alone, and says why in its own words: the route is on hold with them."""
    odd_session.execute("CREATE TABLE t (n numeric, v xml)")
    try:
        odd_session.execute("SELECT xml '<a/>'")
    except psycopg.errors.FeatureNotSupported:
        assert copy(odd_session, "t", [b'{"n":1}', b'{"n":2,"v":null}']) == []
        with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
            copy(odd_session, "t", [b'{"n":3}', b'{"n":4,"v":"<a>x</a>"}'])
        assert "requires the server to be built with libxml" in str(caught.value)
        assert "COPY t, line 2, column v" in str(caught.value)
        assert verdict(caught.value, broken=False) is Verdict.HOLD
    else:
        assert_is_read(odd_session, '"<a b=\\"1\\">x</a>"', '<a b="1">x</a>')


def test_a_nul_is_refused_wherever_it_is(odd_session: psycopg.Connection) -> None:
    odd_session.execute("CREATE TYPE pair AS (a int, b text); CREATE TABLE t (p pair, a text[][], x tsvector)")
    values = [b'{"p":{"b":"\\u0000"}}', b'{"a":[["\\u0000"]]}', b'{"x":"\\u0000"}']
    assert [(at, why.code) for at, why in copy(odd_session, "t", values)] == [(n, "null_byte") for n in range(3)]
