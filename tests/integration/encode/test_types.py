"""Each type, literal by literal: the row is what PostgreSQL itself makes of the literal, or the record is refused."""

from __future__ import annotations

import json
import random
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, LiteralString

import orjson
import psycopg
import pytest

from kbatchd.config import RouteMapping
from kbatchd.encode.mapping import row_columns
from kbatchd.encode.rows import build_encoder
from kbatchd.postgres.catalogue import read_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kbatchd.model import Refusal

pytestmark = pytest.mark.usefixtures("compiled")

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
TRAILER = struct.pack(">h", -1)

BIG = "1" * 400
#: The smallest double that lies halfway between two float4, and literals on both sides of it with the same double.
HALFWAY = "1.000000059604644775390625"

INTEGERS = {
    "0": "", "-0": "", "1": "", "-1": "", "7.0": "wrong_type", "1e2": "wrong_type", "true": "wrong_type",
    '"1"': "", '"-007"': "", '"+5"': "", '"1.0"': "wrong_type", '""': "wrong_type", '" 1"': "wrong_type",
    '"1_000"': "wrong_type", '"\\u0661"': "wrong_type", '"18446744073709551616"': "out_of_range",
    f'"{BIG}"': "out_of_range",
    "{}": "wrong_type", "[1]": "wrong_type", "18446744073709551616": "out_of_range",
    "-9223372036854775809": "out_of_range", BIG: "out_of_range", "1e400": "wrong_type",
}  # fmt: skip

FLOATS = {
    "0": "", "0.0": "", "-0.0": "", "1": "", "-1.5": "", "1e5": "", "1E5": "", "1e+5": "", "0.1": "", "123456.789": "",
    "9007199254740993": "", "18446744073709551617": "", "123456789012345678901234567890": "", "3.4e38": "",
    "0.30000000000000004": "", "0e400": "", "0e-400": "",
    "0e1000000000000000000": "", "-0e-1000000000000000000": "",
    "0.00000000000000000000000": "", HALFWAY: "",
    "1.0000000596046448": "", "1.00000005960464477539062501": "", "1.00000005960464477539062499": "",
    "16777217": "", "16777219": "", "16777217.000000001": "", "33554434.000000000001": "",
    "1e400": "out_of_range", "-1e400": "out_of_range", "1e-400": "out_of_range", "-1.5e-4000": "out_of_range",
    BIG: "out_of_range", "0." + "0" * 400 + "1": "out_of_range", "true": "wrong_type", "-0": "", "-0 ": "", '"1.5"': "",
    '"-0"': "", '"NaN"': "", '"nan"': "", '"Infinity"': "", '"-inf"': "", '"1e5"': "", '".5"': "",
    '"1e400"': "out_of_range",
    '"x"': "wrong_type", '""': "wrong_type", '"."': "wrong_type", '" 1"': "wrong_type", '"1_0"': "wrong_type",
    "{}": "wrong_type", "[]": "wrong_type",
}  # fmt: skip

NUMERICS = {
    "0": "", "-0": "", "0.0": "", "-0.0": "", "0.000": "", "1": "", "-1": "", "10": "", "9999": "", "10000": "",
    "10001": "",
    "100000000": "", "12.30": "", "-12.30": "", "0.1": "", "0.0001": "", "0.00001": "", "0.00012": "", "1e5": "",
    "1E5": "",
    "1.50e1": "", "1.5e-3": "", "1e-7": "", "120e-1": "", "12345678901234567890123456789": "",
    "9223372036854775807": "",
    "-9223372036854775808": "", "9223372036854775808": "", "18446744073709551615": "", "18446744073709551616": "",
    "1234567890123456.7890": "", "0.12345678901234567890": "", "1e400": "", "1e-400": "", "1.2345e-320": "",
    "123.45e-310": "",
    "0.30000000000000004": "", "100.50000000000000000": "", "1e308": "", "1.7976931348623157e308": "", "1e131071": "",
    "0." + "0" * 400 + "1": "", BIG: "", "9" * 5000: "", "1e16383": "", "1e-16383": "",
    "1e-16384": "out_of_range", "1e131072": "out_of_range", "1e99999999999": "out_of_range",
    '"12.30"': "", '"-0.5"': "", '".5"': "", '"5."': "", '"+5"': "", '"1e3"': "", '"NaN"': "", '"nan"': "",
    '"Infinity"': "",
    '"-Infinity"': "", '"inf"': "", '"007"': "",
    '""': "not_a_number", '"."': "not_a_number", '"1,5"': "not_a_number", '"abc"': "not_a_number",
    '"1 000"': "not_a_number",
    '"--1"': "not_a_number", '"1e"': "not_a_number", '"0x1F"': "not_a_number", '"\\u0661"': "not_a_number",
    "true": "wrong_type", "[1]": "wrong_type", "{}": "wrong_type",
}  # fmt: skip

CLOCKS = {
    "2026-11-22T23:44:05{}", "2026-11-22 23:44:05{}", "2026-11-22T23:44:05.1{}", "2026-11-22T23:44:05.000001{}",
    "2026-11-22T23:44:05.999999{}", "2026-11-22T23:44:05.1234564{}", "2026-11-22T23:44:05.1234565{}",
    "2026-11-22T23:44:05.1234575{}", "2026-11-22T23:44:05.9999999{}", "2026-12-31T23:59:59.9999995{}",
    "2026-11-22T23:44:05.123456789{}", "2026-11-22T23:44{}", "2026-11-22T23:44:05.{}", "2024-02-29T00:00:00{}",
    "0001-01-01T00:00:00{}",
    "2026-11-22T24:00:00{}", "10000-01-01T00:00:00{}", "294276-12-30T23:59:59.999999{}", "2026-11-22T23:44:60{}",
    "9999-12-31T23:59:59.999999{}", "1969-12-31T23:59:59.5{}", "2016-12-31T23:59:60{}", "2026-03-29T02:30:00{}",
}  # fmt: skip
NOT_CLOCKS = {
    "2026-11-22T24:00:01{}", "2026-11-22T23:60:00{}", "2026-11-22T23:44:61{}", "2026-02-29T00:00:00{}",
    "2026-13-01T00:00:00{}",
    "2026-00-10T00:00:00{}", "0000-01-01T00:00:00{}", "2026-11-22T23:59:60.5{}", "010000-01-01T00:00:00{}",
    "2026-W47-7T23:44:05{}",
    "20261122T234405{}",
    "2026-11-22T234405{}", "2026-11-22T23{}", "2026-11-22T23:44:05,5{}", "2026-326T23:44:05{}",
    "2026-11-22x23:44:05{}", "2026-11-22{}", " 2026-11-22T23:44:05{}", "2026-11-22T23:44:05 {}",
    "2026-11-22T23:44:05{}\\n",
    "\\u0662026-11-22T23:44:05{}", "{}", "now{}", "today{}", "epoch{}", "1763855045{}", "22.11.2026 23:44:05{}",
}  # fmt: skip
NOT_STRINGS = {
    "1763855045": "wrong_type",
    "1.5": "wrong_type",
    "true": "wrong_type",
    "{}": "wrong_type",
    "[1,2]": "wrong_type",
}


def quoted(texts: Sequence[str] | set[str], code: str = "") -> dict[str, str]:
    return {f'"{text}"': code for text in texts}


TIMESTAMPTZ = {
    **quoted({clock.format(offset) for clock in CLOCKS for offset in ("Z", "+00:00", "+01:00", "-0530", "+05:45",
    "+00")}),
    **quoted({clock.format("Z") for clock in NOT_CLOCKS} | {clock.format("") for clock in CLOCKS}, "not_a_timestamp"),
    **quoted([f"2026-11-22T23:44:05{offset}" for offset in ("+15:59", "-15:59:59", "+15:59:59", "z", "+01:02:03")]),
    **quoted(
        [f"2026-11-22T23:44:05{offset}" for offset in (
            "+16:00", "-23:59", "+01:60", "+1", "+010203", "+01:", "Z+01", "+01Z", "UTC", " UTC", "Europe/Paris",
            "+0102:03",
        )],
        "not_a_timestamp",
    ),
    **quoted(["infinity", "-infinity", "2026-11-22t23:44:05Z", "0044-03-15T12:00:00+01:00 BC",
    "0001-01-01T00:00:00+14:00",
    "4714-11-24T00:00:00Z BC", "294276-12-31T23:59:59.999999Z", "0001-02-29T00:00:00Z BC"]),
    **quoted(["4714-11-23T23:59:59Z BC", "294277-01-01T00:00:00Z", "294276-12-31T23:59:59-01:00"],
    "out_of_range"),
    **NOT_STRINGS,
}  # fmt: skip
TIMESTAMP = {
    **quoted({clock.format(offset) for clock in CLOCKS for offset in ("", "Z", "+00:00", "-00")}),
    **quoted(
        {clock.format("") for clock in NOT_CLOCKS} | {clock.format("+01:00") for clock in CLOCKS}, "not_a_timestamp"
    ),
    **quoted(["infinity", "-infinity", "0044-03-15 12:00:00 BC", "4714-11-24 00:00:00 BC"]),
    **quoted(["4714-11-23 23:59:59 BC", "294277-01-01 00:00:00"], "out_of_range"),
    **NOT_STRINGS,
}
DATE = {
    **quoted(["2026-11-22", "2024-02-29", "0001-01-01", "9999-12-31", "1999-12-31", "2000-01-01", "infinity",
    "-infinity", "10000-01-01", "5874897-12-31", "0044-03-15 BC", "0001-02-29 BC", "4714-11-24 BC"]),
    **quoted(["5874898-01-01", "4714-11-23 BC"], "out_of_range"),
    **quoted(
        ["2026-02-29", "2026-13-01", "0000-01-01", "20261122", "2026-W47-7", "2026-1-2", "2026-11-22T00:00:00",
        "22.11.2026",
         "today", "", "2026-11-22 ", "-0044-03-15", "0002-02-29 BC", "\\u0662026-11-22"],
        "not_a_date",
    ),
    **NOT_STRINGS,
}  # fmt: skip

HEX = "cd613e30-d8f1-6adf-91b7-584a2265b1f5"
UUIDS = {
    **quoted([HEX, HEX.upper(), HEX.replace("-", ""), f"{{{HEX}}}", "cd61-3e30-d8f1-6adf-91b7-584a-2265-b1f5"]),
    **quoted(
        ["", HEX[:-1], HEX + "0", HEX[:-1] + "g", HEX.replace("c", " "), f"{{{HEX}", f"{HEX}}}",
        "c-d613e30d8f1-6adf-91b7-584a2265b1f5",
         "cd613e30-d8f1-6adf-91b7-584a2265b1f", "cd613e30-d8f1-6adf-91b7-584a2265b1--", f" {HEX}",
         "cd613e30-d8f1-6adf-91b7--84a2265b1f5",
         "cd613e30-d8f1-6adf-91b7-584a2265b1f5-", "cd-13e30-d8f1-6adf-91b7584a2265b1f5",
         "cd613e30-d8f1-6adf-91b7-584a2265  b1f5"],
        "not_a_uuid",
    ),
    **NOT_STRINGS,
}  # fmt: skip

TEXTS = {
    **quoted(["", "a", "Zürich", "\\u00fc", "\\ud83d\\ude00", "😀", "\\\\u0000", "a\\nb", "\\\\", "\\\\N", "x" * 5000]),
    **quoted(["\\u0000", "a\\u0000b", "\\\\\\u0000"], "null_byte"),
    **quoted(["\\ud800"], "not_json"),
    **NOT_STRINGS,
}
VARCHARS = {
    **quoted(["", "abc", "äöü", "😀😀😀", "ab ", "abc  "]),
    **quoted(["abcd", "abc d", "äöüä"], "out_of_range"),
    **quoted(["\\u0000"], "null_byte"),
    **NOT_STRINGS,
}

JSONS = dict.fromkeys(
    (
        "{}", "[]", "1", "1.0", "-0", "-0.0", "true", '"x"', '"\\\\u0000"', '"\\\\\\\\u0000"',
        '{"a":{"b":[1,2,{"c":null}]}}', '{"a":1,"a":2}', ' { "b" : 1 , "a" : "\\u00fc" } ', "12345678901234567890123",
        "1e400", "-1e400", "1e-400", "1.2345e-320", "[1.2345e-320]", "[1e-0000000000000000400]", '{"e":1e-310 }',
        "0.12345678901234567890", '[1e400, 2, "1e400"]',
        "[9223372036854775808, 18446744073709551615, 18446744073709551616, -9223372036854775809]",
        "100000000000000000000000.5", "0.30000000000000004", "[100.50000000000000000]", "1.7976931348623157e308",
        "2.2250738585072011e-308", "5e-324", '"1e400 and 0.12345678901234567890"', '["a\\"1e400", 1e400]', f"[{BIG}]",
        f"{BIG}.5", "9" * 5000, '"' + "x" * 5000 + '"', "[" * 300 + "1" + "]" * 300, "123456789012345678",
        "[1234567890123456789,-9223372036854775808]", "1E5", "12.30", '"0.0"',
    ),
    "",
)  # fmt: skip

TIMES_OF_DAY = [
    "23:44:05{}",
    "23:44{}",
    "00:00:00{}",
    "24:00:00{}",
    "23:59:60{}",
    "23:44:05.1234565{}",
    "23:59:59.9999999{}",
]
NO_TIMES = ["24:00:01{}", "24:00:00.1{}", "23:59:60.5{}", "25:00{}", "23:60{}", "23{}", "{}", "noon{}", "23:44:05 PM{}"]
TIME = {
    **quoted({time.format(offset) for time in TIMES_OF_DAY for offset in ("", "Z", "+00:00")}),
    **quoted({time.format("") for time in NO_TIMES} | {"23:44:05+01:00", "allballs"}, "not_a_time"),
    **NOT_STRINGS,
}
TIMETZ = {
    **quoted(
        {time.format(offset) for time in TIMES_OF_DAY for offset in ("Z", "+01:00", "-15:59", "+0545", "+01:02:03")}
    ),
    **quoted({time.format("Z") for time in NO_TIMES} | {"23:44:05", "23:44:05+16:00"}, "not_a_time"),
    **NOT_STRINGS,
}
INTERVAL = {
    **quoted([
        "P1Y2M3DT4H5M6.7S", "P1W", "PT0S", "P-1Y", "PT-1.5S", "PT-0.000001S", "PT36H", "P1DT-2H", "P178000000Y",
        "1 year 2 mons 3 days 04:05:06.7", "-1 days +02:03:00", "-1 day -02:03", "3 days", "1 mon", "2 months",
        "1 week",
        "00:00:00", "-00:00:01.5", "100:59:60", "-1 years -2 mons", "-1 year +2 days -03:00:00",
    ]),
    **quoted(["", "P", "PT", "P1", "1", "1 fortnight", "P1.5D", "infinity", "@ 1 day", "3 days ago", " 1 day",
    "04:60:00",
        "PT1.1234567S"], "not_an_interval"),
    **quoted(["P200000000Y", "P999999999W"], "out_of_range"),
    **NOT_STRINGS,
}  # fmt: skip
ADDRESSES = {
    **quoted(["10.1.2.3", "0.0.0.0/0", "10.0.0.0/8", "::", "::1", "2001:db8::/32", "::ffff:1.2.3.4",
    "255.255.255.255/32",
        "2001:DB8::"]),
    **quoted(["", "10.1", "10.1.2.3.4", "10.1.2.256", "10.1.2.3/33", "::/129", "10.1.2.3/", "10.1.2.3/-1", "host",
    "::1%lo",
        "10.1.2.3/+8", "fe80::1::2"], "not_an_address"),
    **NOT_STRINGS,
}  # fmt: skip

CASES: dict[str, dict[str, str]] = {
    "bool": {"true": "", "false": "", "1": "wrong_type", "0": "wrong_type", "[]": "wrong_type", '"maybe"': "wrong_type",
    **quoted(["true", "false", "t", "F", "yes", "NO", "on", "off", "1", "0", "y", "n"])},
    "time": TIME,
    "time(2)": TIME,
    "timetz": TIMETZ,
    "interval": INTERVAL,
    "inet": {**ADDRESSES, '"10.1.2.3/8"': ""},
    "cidr": {**ADDRESSES, '"10.1.2.3/8"': "not_an_address"},
    "char(3)": VARCHARS,
    "mood": {**quoted(["sad", "so, so", 'ha\\"ppy']), **quoted(["", "Sad", "happy"], "not_a_label"), **NOT_STRINGS},
    "positive": {**INTEGERS, "32768": "", "1": ""},
    "int4[]": {"[]": "", "[1]": "", "[1,null,-2]": "", "[[1]]": "wrong_type", "1": "wrong_type", '"{1}"': "wrong_type",
        "[1.5]": "wrong_type", "[2147483648]": "out_of_range", '["7"]': ""},
    "float8[]": {"[]": "", "[0,-0,1e-320,0.30000000000000004]": "", "[9007199254740993, 1e23]": "",
    "[1e400]": "out_of_range"},
    "numeric[]": {"[1.50,12345678901234567890123456789012.5,1e400]": "", "[-0, 1.0]": ""},
    "text[]": {'["","a,b","{}","\\\\","\\"",null,"NULL","\\n"]': "", '["\\u0000"]': "null_byte", "[1]": "wrong_type"},
    "jsonb[]": {'[{"a":1e400},null,7]': "", '["\\u0000"]': "null_byte"},
    "timestamptz[]": {'["2026-11-22T23:44:05Z","infinity"]': "", '["2026-11-22T23:44:05"]': "not_a_timestamp"},
    "mood[]": {'["sad",null,"so, so"]': "", '["x"]': "not_a_label"},
    "int2": {**INTEGERS, "32767": "", "-32768": "", "32768": "out_of_range", "-32769": "out_of_range"},
    "int4": {**INTEGERS, "2147483647": "", "-2147483648": "", "2147483648": "out_of_range",
    "-2147483649": "out_of_range"},
    "int8": {**INTEGERS, "9223372036854775807": "", "-9223372036854775808": "", "9223372036854775808": "out_of_range"},
    "float4": {
        **FLOATS, "1e-45": "", "1.4e-45": "", "1.17549435e-38": "", "7.1e-46": "", "3.4028235e38": "",
        "3.40282356e38": "",
        "7e-46": "out_of_range", "1e-46": "out_of_range", "-1e-320": "out_of_range", "3.4028236e38": "out_of_range",
        "1e39": "out_of_range", "-1e308": "out_of_range", "2.1e-45": "", "2.1019476964872256e-45": "",
        "2.10194769648722560638559436e-45": "", "2.10194769648722560638559437e-45": "",
    },
    "float8": {
        **FLOATS, "1e308": "", "1.7976931348623157e308": "", "5e-324": "", "1.2345e-320": "",
        "2.2250738585072011e-308": "",
        "2e-324": "out_of_range", "1.8e308": "out_of_range",
    },
    "numeric": NUMERICS,
    "numeric(600,2)": {
        **{
            literal: code for literal, code in NUMERICS.items()
            if len(literal) < 1000 and not any(part in literal for part in ("nf", "131071", "16383"))
        },
        "1.005": "", "-1.005": "", "2.675": "", "1.004999999999999999999": "", "0.005": "", "1e-300": "",
    },
    "text": TEXTS,
    "varchar": TEXTS,
    "varchar(3)": VARCHARS,
    "uuid": UUIDS,
    "date": DATE,
    "timestamp": TIMESTAMP,
    "timestamptz": TIMESTAMPTZ,
    "json": {**JSONS, '"\\u0000"': "", '{"\\u0000":1}': ""},
    "jsonb": {**JSONS, '"\\u0000"': "null_byte", '{"a":["x\\u0000"]}': "null_byte", '{"\\u0000":1}': "null_byte",
    '"\\\\\\u0000"': "null_byte"},
    "bytea": {
        **quoted(["", "AA==", "AAEC", "/+8=", "aGVsbG8gd29ybGQ="]),
        **quoted(["A", "AA", "AA=", "AAE", "A===", "=AAA", "AA==AA==", "AAEC\\n", "AA EC", "-_8=", "äöü=", "\\u0000"],
        "not_base64"),
        **NOT_STRINGS,
    },
}  # fmt: skip

#: How two values of a type are compared: to the last bit, but jsonb by value (numbers of any scale are equal).
COMPARABLE: dict[str, LiteralString] = {
    "float4": "encode(float4send(v), 'hex')",
    "float8": "encode(float8send(v), 'hex')",
    "json": "btrim(v::text)",  # what is around it in the message is none of it
    "jsonb": "v",
}


@dataclass
class Types:
    """A table that is fed by the encoder, and one that is fed by PostgreSQL's own input functions."""

    connection: psycopg.Connection

    def make(self, type_name: str, constraint: LiteralString = "") -> None:
        for table in ("ours", "theirs"):
            self.connection.execute(f"CREATE TABLE {table} (n int NOT NULL, v {type_name} {constraint})".encode())

    def encode(self, literals: Sequence[str]) -> list[tuple[int, Refusal]]:
        table = read_table(self.connection, "ours")
        encoder = build_encoder(row_columns(table, RouteMapping()))
        rows: list[bytes] = []
        values = [f'{{"n":{n},"v":{literal}}}'.encode() for n, literal in enumerate(literals)]
        refusals = encoder.encode((), values, rows).refused
        names = ",".join(encoder.columns)
        with (
            self.connection.cursor() as cursor,
            cursor.copy(f"COPY ours ({names}) FROM STDIN (FORMAT binary)".encode()) as copy,
        ):
            copy.write(HEADER + b"".join(rows) + TRAILER)
        return refusals

    def insert(self, type_name: str, literals: Sequence[tuple[int, str]]) -> None:
        value = "decode(%s, 'base64')" if type_name == "bytea" else "%s"
        for n, literal in literals:
            text = json.loads(literal) if literal[:1] == '"' and not type_name.startswith("json") else literal
            if type_name.endswith("[]"):
                text = array_literal(literal)
            self.connection.execute(f"INSERT INTO theirs VALUES (%s, {value})".encode(), (n, text))

    def values(self, table: str, type_name: str) -> dict[int, str]:
        shown = COMPARABLE.get(type_name, "v::text")
        return dict(self.connection.execute(f"SELECT n, {shown} FROM {table}".encode()).fetchall())

    def different(self, type_name: str) -> list[tuple[int, object, object]]:
        shown = COMPARABLE.get(type_name, "v::text")
        query = (
            f"SELECT n, o::text, t::text FROM (SELECT n, {shown} o FROM ours) o"
            f" FULL JOIN (SELECT n, {shown} t FROM theirs) t USING (n) WHERE o IS DISTINCT FROM t"
        )
        return self.connection.execute(query.encode()).fetchall()


def array_literal(literal: str) -> str:
    """Write a JSON array as PostgreSQL's, its numbers as they are."""
    decoded = json.loads(literal, parse_int=Number, parse_float=Number)
    items = ["NULL" if item is None else json.dumps(item_text(item)) for item in decoded]
    return "{" + ",".join(item.replace("\\n", "\n") for item in items) + "}"


class Number(str):  # noqa: SLOT000
    """A number as it was written."""


def item_text(item: object) -> str:
    if isinstance(item, str):
        return item
    return '{"a":1e400}' if isinstance(item, dict) else json.dumps(item)


@pytest.fixture
def types(database: str) -> Iterator[Types]:
    with psycopg.connect(database, autocommit=True) as connection:
        # A time zone far from any that the literals have: it must not matter.
        connection.execute("SET timezone = 'Asia/Kathmandu'")
        connection.execute("""CREATE TYPE mood AS ENUM ('sad', 'so, so', 'ha"ppy')""")
        connection.execute("CREATE DOMAIN positive AS int4 CHECK (VALUE > -100)")
        yield Types(connection)


@pytest.mark.parametrize("constraint", ["", "NOT NULL"])
@pytest.mark.parametrize("type_name", CASES)
def test_a_row_is_what_postgresql_makes_of_the_literal(types: Types, type_name: str, constraint: LiteralString) -> None:
    types.make(type_name, constraint)
    literals = list(CASES[type_name])
    refused = types.encode(literals)
    codes = dict.fromkeys(literals, "") | {literals[n]: refusal.code for n, refusal in refused}
    assert codes == CASES[type_name]
    types.insert(type_name, [(n, literal) for n, literal in enumerate(literals) if not CASES[type_name][literal]])
    assert [(literals[n], ours, theirs) for n, ours, theirs in types.different(type_name)] == []


@pytest.mark.parametrize("type_name", ["text", "varchar", "json", "jsonb", "bytea", "text[]"])
def test_a_megabyte(types: Types, type_name: str) -> None:
    types.make(type_name)
    characters = {"bytea": "QUJD", "text[]": "x,y "}.get(type_name, r"a\"\u00e9 ") * 350_000
    literal = f'["{characters}"]' if type_name == "text[]" else f'"{characters}"'
    assert not types.encode([literal])
    types.insert(type_name, [(0, literal)])
    assert types.different(type_name) == []
    [length] = map(len, types.values("ours", type_name).values())
    assert length > 1_000_000


@pytest.mark.parametrize("type_name", CASES)
def test_null_and_absent_are_null(types: Types, type_name: str) -> None:
    types.make(type_name)
    encoder = build_encoder(row_columns(read_table(types.connection, "ours"), RouteMapping()))
    rows: list[bytes] = []
    assert encoder.encode((), [b'{"n":0,"v":null}', b'{"n":1}'], rows).refused == []
    assert [row[-4:] for row in rows] == [b"\xff" * 4] * 2


def test_random_numbers_survive_in_all_number_columns(types: Types) -> None:
    connection = types.connection
    for table in ("ours", "theirs"):
        connection.execute(
            f"CREATE TABLE {table} (n int, f8 float8, d numeric, d2 numeric(1000,400), j jsonb, v json)".encode()
        )
    chance = random.Random(4)
    literals = [random_number(chance) for _ in range(3000)]
    encoder = build_encoder(row_columns(read_table(connection, "ours"), RouteMapping()))
    rows: list[bytes] = []
    values = [
        f'{{"n":{n},"f8":{x},"d":{x},"d2":{x},"j":[{x}],"v":{{"x": {x}}}}}'.encode() for n, x in enumerate(literals)
    ]
    refused = {n for n, _ in encoder.encode((), values, rows).refused}
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY ours ({','.join(encoder.columns)}) FROM STDIN (FORMAT binary)".encode()) as copy,
    ):
        copy.write(HEADER + b"".join(rows) + TRAILER)
    with connection.cursor() as cursor:
        for n, x in enumerate(literals):
            if n not in refused:
                cursor.execute(
                    "INSERT INTO theirs VALUES (%s, %s, %s, %s, %s, %s)", (n, x, x, x, f"[{x}]", f'{{"x": {x}}}')
                )
    assert len(refused) < len(literals) / 4
    query = """
        SELECT o.*, t.* FROM ours o FULL JOIN theirs t USING (n)
        WHERE (o.f8, o.d::text, o.d2, o.j, o.v::jsonb) IS DISTINCT FROM (t.f8, t.d::text, t.d2, t.j, t.v::jsonb)"""
    assert connection.execute(query).fetchall() == []


def random_number(chance: random.Random) -> str:
    digits = "".join(chance.choices("0123456789", k=chance.choice([1, 3, 14, 15, 16, 17, 18, 19, 20, 40])))
    whole = digits[: chance.randrange(len(digits)) + 1].lstrip("0") or "0"
    fraction = digits[len(whole) :]
    exponent = chance.choice(
        ["", "", f"e{chance.randrange(-9, 9)}", f"E{chance.randrange(-330, 300)}", f"e+{chance.randrange(280)}"]
    )
    return chance.choice(["", "-"]) + whole + (f".{fraction}" if fraction else "") + exponent


def test_random_float4_literals_round_once(types: Types) -> None:
    chance = random.Random(5)
    literals = []
    for _ in range(1500):
        bits = chance.randrange(0x7F7FFFFF)
        low, high = (struct.unpack(">f", struct.pack(">I", bits + step))[0] for step in (0, 1))
        middle = (low + high) / 2
        literals += [
            repr(middle),
            f"{middle:.25e}",
            f"{middle:.16e}",
            f"{chance.uniform(low, high)!r}",
            f"{middle:.60e}",
        ]
    types.make("float4")
    refused = {n for n, _ in types.encode(literals)}
    assert len(refused) < 50
    types.insert("float4", [(n, literal) for n, literal in enumerate(literals) if n not in refused])
    assert [(literals[n], ours, theirs) for n, ours, theirs in types.different("float4")] == []


def test_random_changes_to_timestamps_are_never_misread(types: Types) -> None:
    chance = random.Random(6)
    seeds = [
        "2026-11-22T23:44:05.123456Z",
        "2026-11-22T23:44:05Z",
        "2026-11-22 23:44:05.12+01:00",
        "2026-11-22T23:44:05.1234567-0330",
    ]
    literals = []
    for _ in range(4000):
        text = list(chance.choice(seeds))
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(text))
            text[at : at + chance.randrange(2)] = chance.choice("0123456789-:.TZ+W ,")
        literals.append(orjson.dumps("".join(text)).decode())
    types.make("timestamptz")
    refused = {n for n, _ in types.encode(literals)}
    assert len(refused) < len(literals)
    types.insert("timestamptz", [(n, literal) for n, literal in enumerate(literals) if n not in refused])
    assert [(literals[n], ours, theirs) for n, ours, theirs in types.different("timestamptz")] == []
