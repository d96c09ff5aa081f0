"""Texts that are nearly right: what is taken of them, PostgreSQL's own input functions take too, as the same value.

They read the same texts by COPY, under fixed settings, and leave out what they refuse (`ON_ERROR ignore`, from 17 on).
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING

import psycopg
import pytest

from kbatchd.config import RouteMapping
from kbatchd.encode.mapping import row_columns
from kbatchd.encode.rows import build_encoder
from kbatchd.model import CopyFormat
from kbatchd.postgres.catalogue import read_table
from tests.integration.encode.test_types import HEADER, TRAILER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_INTERVALS = [
    "P1Y2M3DT4H5M6.7S", "P1W", "PT36H", "1 year 2 mons 3 days 04:05:06.7", "-1 days +02:03:00", "1 mon", "2 months",
    "1 week", "-00:00:01.5", "100:59:60", "3 days", "P-1Y-2M3DT-4H", "PT0.5S", "04:05", "@ 1 day", "59:60",
]  # fmt: skip
_ADDRESSES = [
    "10.1.2.3", "0.0.0.0/0", "10.0.0.0/8", "::", "::1", "2001:db8::/32", "::ffff:1.2.3.4", "255.255.255.255/32",
    "fe80::1:2:3/64", "1:2:3:4:5:6:7:8",
]  # fmt: skip
_TIMES = ["23:44:05", "23:44", "24:00:00", "23:44:05.123456", "00:00:00Z", "23:59:60", "12:30:00+00:00"]
_TIMESTAMPS = [
    "2026-11-22T23:44:05", "2026-11-22 23:44:05.123456", "2026-11-22T23:44:05Z", "0044-03-15 12:00:00 BC",
    "294276-12-31T23:59:59", "infinity",
]  # fmt: skip
_TIMESTAMPTZS = [
    "2026-11-22T23:44:05Z", "2026-11-22 23:44:05.123456+01:00", "0044-03-15T12:00:00+01:00 BC", "infinity",
    "294276-12-31T23:59:59Z", "2026-11-22T23:44-0530",
]  # fmt: skip
_DATES = ["2026-11-22", "0044-03-15 BC", "10000-01-01", "infinity", "5874897-12-31", "2024-02-29"]
_NUMBERS = ["12.30", "-0.5", ".5", "5.", "+5", "1e3", "NaN", "Infinity", "-inf", "1e-20", "007", "1_000", "0x1F"]
_RANGES = ["year", "month", "day", "hour", "minute", "second", "year to month", "day to hour", "day to minute",
           "day to second", "hour to minute", "hour to second", "minute to second", "day to second(1)"]  # fmt: skip

#: Types with some texts to begin from, and the characters that are strewn in.
SEEDS: dict[str, tuple[Sequence[str], str]] = {
    "interval": (_INTERVALS, "0123456789PTYMWDHS.:+-  @dayshourmintecwk"),
    **{f"interval {fields}": (_INTERVALS, "0123456789PTMDHS.:+- days") for fields in _RANGES},
    "interval(2)": (_INTERVALS, "0123456789PTMDHS.:+- days"),
    "inet": (_ADDRESSES, "0123456789abcdef.:/% "),
    "cidr": (_ADDRESSES, "0123456789abcdef.:/% "),
    "date": (_DATES, "0123456789- BCTZinfty"),
    "time": (_TIMES, "0123456789-:.+TZz aPM"),
    "timetz": ([*_TIMES, "23:44+01", "24:00:00-05:30", "12:30:00+15:59:59"], "0123456789-:.+TZz "),
    "time(2)": (_TIMES, "0123456789-:.+TZz "),
    "timestamp": (_TIMESTAMPS, "0123456789-:.+TZz BC"),
    "timestamp(3)": (_TIMESTAMPS, "0123456789-:.+TZz BC"),
    "timestamptz": (_TIMESTAMPTZS, "0123456789-:.+TZz BC"),
    "timestamptz(0)": (_TIMESTAMPTZS, "0123456789-:.+TZz BC"),
    "uuid": (["cd613e30-d8f1-6adf-91b7-584a2265b1f5", "{CD613E30D8F16ADF91B7584A2265B1F5}"], "0123456789abcdef-{} g"),
    "bool": (["true", "false", "t", "f", "yes", "no", "on", "off", "1", "0", "y", "n"], "truefalsyno01 "),
    "int2": (["1", "-007", "+5", "32767", "-32768"], "0123456789+-_. xe"),
    "int4": (["1", "-007", "+5", "2147483647"], "0123456789+-_. xe"),
    "int8": (["1", "-007", "+5", "9223372036854775807"], "0123456789+-_. xe"),
    "float4": ([*_NUMBERS, "3.4028235e38", "1e-45"], "0123456789+-_. xeEnaif"),
    "float8": ([*_NUMBERS, "1.7976931348623157e308", "5e-324"], "0123456789+-_. xeEnaif"),
    "numeric": ([*_NUMBERS, "1e131071"], "0123456789+-_. xeEnaif"),
    "numeric(10,2)": (_NUMBERS, "0123456789+-_. xeEnaif"),
    "varchar(4)": (["abcd", "ab  ", "äöüß"], "abü 😀"),
    "char(4)": (["abcd", "ab  ", "äöüß"], "abü 😀"),
    "mood": (["sad", "so, so"], "sado, "),
    "daterange": (["[2026-11-22,2026-12-01)", "(,2026-01-01]", "empty", '["2026-01-01",infinity)'], '0-[](),"ey '),
    "tsrange": (["[2026-11-22T23:44:05,2026-12-01 00:00:00)", "(,2026-01-01]"], '0-:[](),"Z+ '),
    "tstzrange": (["[2026-11-22T23:44:05Z,2026-12-01 00:00:00+01)", '(,"2026-01-01T00:00:00Z"]'], '0-:[](),"Z+ '),
    "tstzmultirange": (["{[2026-11-22T23:44:05Z,2026-12-01 00:00:00+01),(,2025-01-01T00:00Z]}", "{}"], '0-:[](),"Z{} '),
    "clockrange": (["[23:44:05Z,23:45:00+01)", "(,00:00Z]"], '0-:[](),"Z+ '),
    "visit": (['(1,"2026-11-22 23:44:05Z",a)', '(,2026-11-22T00:00Z,"a""b")', '(1,,"x, \\\\"y")'], '01-:(),"Z+ \\a'),
}  # fmt: skip


def mutated(chance: random.Random, seeds: Sequence[str], characters: str) -> str:
    """Change nothing, or a few things, of a text that is right."""
    text = list(chance.choice(seeds))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 2, 3))):
        at = chance.randrange(len(text) + 1)
        other = chance.choice(seeds)
        start = chance.randrange(len(other) + 1)
        match chance.randrange(6):
            case 0:
                del text[at : at + chance.randrange(1, 3)]
            case 1:
                text.insert(at, chance.choice(characters))
            case 2:
                text[at : at + 1] = chance.choice(characters)
            case 3:
                text[at:at] = text[start : start + chance.randrange(1, 6)]
            case 4:
                text[at:at] = other[start : start + chance.randrange(1, 8)]
            case _:
                text[at:at] = chance.choice(("0" * chance.choice((1, 3, 30, 200)), "9" * 20, " ", "00", ".0", "\u0661"))
    return "".join(text)


@pytest.fixture
def session(database: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(database, autocommit=True) as connection:
        if connection.info.server_version < 170000:
            pytest.fail("the tests' own PostgreSQL is older than 17")
        connection.execute("""CREATE TYPE mood AS ENUM ('sad', 'so, so')""")
        connection.execute("CREATE TYPE clockrange AS RANGE (subtype = timetz)")
        connection.execute("CREATE TYPE visit AS (id int, at timestamptz, note text)")
        yield connection


@pytest.mark.parametrize("count", [1_500, pytest.param(50_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", SEEDS)
def test_what_is_taken_is_what_postgresql_takes(session: psycopg.Connection, kind: str, count: int) -> None:
    seeds, characters = SEEDS[kind]
    chance = random.Random(1) if count < 10_000 else random.Random()
    texts = [*seeds, *(mutated(chance, seeds, characters) for _ in range(count))]
    session.execute(f"CREATE TABLE ours (n int, v {kind}); CREATE TABLE theirs (n int, v {kind})".encode())
    # Ours must not depend on these; theirs are the settings that the words of the documentation are for.
    session.execute("SET timezone = 'Asia/Kathmandu'; SET datestyle = 'German'; SET intervalstyle = 'sql_standard'")
    encoder = build_encoder(row_columns(read_table(session, "ours"), RouteMapping()))
    rows: list[bytes] = []
    values = [json.dumps({"n": n, "v": text}).encode() for n, text in enumerate(texts)]
    refused = {index for index, _ in encoder.encode((), values, rows).refused}
    taken = [n for n in range(len(texts)) if n not in refused]
    binary = encoder.copy_format is CopyFormat.BINARY
    if kind == "numeric(10,2)":  # its limit is not the encoder's business: PostgreSQL names the row
        session.execute("ALTER TABLE ours ALTER v TYPE numeric; ALTER TABLE theirs ALTER v TYPE numeric")
    with (
        session.cursor() as cursor,
        cursor.copy(
            f"COPY ours ({','.join(encoder.columns)}) FROM STDIN "
            f"(FORMAT {encoder.copy_format.value}{'' if binary else ', ON_ERROR ignore'})".encode()
        ) as copy,
    ):
        copy.write(HEADER + b"".join(rows) + TRAILER if binary else b"".join(rows))
    session.execute("SET timezone = 'UTC'; SET datestyle = 'ISO'; SET intervalstyle = 'postgres'")
    with session.cursor() as cursor, cursor.copy(b"COPY theirs FROM STDIN (ON_ERROR ignore)") as copy:
        for n in taken:
            copy.write_row((n, texts[n]))
    different = session.execute(
        "SELECT n, o.v::text, t.v::text FROM ours o LEFT JOIN theirs t USING (n) "
        "WHERE t.n IS NULL OR o.v::text IS DISTINCT FROM t.v::text"
    ).fetchall()
    assert [(texts[n], ours, theirs) for n, ours, theirs in different] == []
    assert len(taken) > count / 20
    if kind not in {"varchar(4)", "char(4)"}:
        assert len(taken) < count


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        ("interval", ["P+1D", "1 monsths", "3 days04:23", "1 year2 mons", "-1 days+02:03:00"]),
        ("inet", ["::/05", "fe80::1:2:3/000064"]),
        ("cidr", ["2001:db8::/0032"]),
        ("tstzrange", ["[2026-01-01T00:00:00,)", "[2026-01-01,2026-02-01)", "(,2026-01-01 00:00]", "[now,)"]),
        ("tsrange", ["[2026-01-01T00:00:00+01,)", "[01/02/2026,)", "[today,)"]),
        ("daterange", ["[01/02/2026,)", "[today,)"]),
        ("tstzmultirange", ["{[2026-01-01T00:00:00Z,2026-02-01T00:00:00)}"]),
        ("clockrange", ["[23:44:05,)"]),
        ("visit", ["(1,2026-01-01 00:00,a)", '(1,"01/02/2026",a)', "(1,now,a)"]),
        ("tstzrange[]", ['{"[2026-01-01T00:00:00,)"}']),
        ("timestamptz[][]", ["{{2026-01-01 00:00}}"]),
        ("visit[]", ['{"(1,2026-01-01 00:00,a)"}']),
    ],
)
def test_what_postgresql_refuses_or_its_settings_would_decide(
    session: psycopg.Connection, kind: str, texts: list[str]
) -> None:
    session.execute(f"CREATE TABLE ours (v {kind})".encode())
    encoder = build_encoder(row_columns(read_table(session, "ours"), RouteMapping()))
    refused = encoder.encode((), [json.dumps({"v": text}).encode() for text in texts], []).refused
    assert [texts[index] for index, _ in refused] == texts


@pytest.mark.parametrize("text", ["1_000", " 12 ", "\u0661", "1e", "", "0x1F", "NaN", "Infinity", "1 000"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_time_that_is_a_number_in_a_string_is_a_number(session: psycopg.Connection, unit: str, text: str) -> None:
    session.execute("CREATE TABLE ours (v timestamptz)")
    mapping = RouteMapping.model_validate({"columns": {"v": {"field": "v", "unit": unit}}})
    encoder = build_encoder(row_columns(read_table(session, "ours"), mapping), mapping)
    ((_, why),) = encoder.encode((), [json.dumps({"v": text}).encode()], []).refused
    assert why.code == "not_a_number"
