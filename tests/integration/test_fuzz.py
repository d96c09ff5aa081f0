"""All types, sources, modes and odd records, at random: nothing leaves its record, and all ways to encode one agree.

Each round draws a route and some records for it. No exception may come out of the encoders, the door, a dead letter, or
what `check` and `infer` do with records, and no refusal may be `internal`, which is a fault of ours. All encoders must
take and refuse the same; where their bytes differ, PostgreSQL must find the values equal.
"""

from __future__ import annotations

import json
import random
import re
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from kbatchd.check import remedies
from kbatchd.config import RouteMapping
from kbatchd.door.door import Door
from kbatchd.encode.compiled import TYPES as COMPILED_TYPES
from kbatchd.encode.internal import INTERNAL
from kbatchd.encode.mapping import Deletes, row_columns
from kbatchd.encode.rows import RowEncoder, build_encoder
from kbatchd.errors import ConfigError
from kbatchd.model import DELETED, CopyFormat, Refusal
from kbatchd.paths import parse_path
from kbatchd.postgres.catalogue import read_table
from kbatchd.postgres.table import Column, Table
from kbatchd.schema.progress import Owner
from kbatchd.shapes.inference import infer
from kbatchd.sink.sink import dead_letter
from tests.fix_encoders import ENCODERS
from tests.integration.encode.test_near_misses import SEEDS, mutated
from tests.integration.encode.test_types import HEADER, TRAILER
from tests.records import Sent
from tests.unit.encode.test_compiled import LITERALS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.model import Encoded

TYPES = [
    *(  # noqa: SIM905 - a line each would be a page
        "bool int2 int4 int8 float4 float8 numeric numeric(12,3) text varchar varchar(5) char(4) uuid date time timetz "
        "timestamp timestamptz interval inet cidr json jsonb bytea mood positive int4range tstzrange daterange visit "
        "bit(4) money oid point macaddr tsvector jsonpath xid int4[] float8[] numeric[] text[] jsonb[] json[] "
        "timestamptz[] mood[] bytea[] visit[] int4range[] timestamptz(0) int4[][] timestamptz[][]"
    ).split(),
    "interval minute to second",
]

#: Values of types that have no texts among the near misses.
FITTING = {
    **{kind: [b"null"] for kind in ("numeric(12,3)", "money", "int4[][]")},
    **{kind: [b'"x"', b'"\\u00fc\\n"', b'""'] for kind in ("text", "varchar", "varchar(5)", "tsvector")},
    **{kind: [b"1.50", b'{"a": 1e9, "b":[-0]}', b'"x"', b"[1E5 ]"] for kind in ("json", "jsonb")},
    "bytea": [b'"AAEC"'], "positive": [b"7"], "int4range": [b'"[1,5)"', b"[1,5]"], "bit(4)": [b'"0101"'],
    "oid": [b"7"], "point": [b'"(1,2)"'], "macaddr": [b'"08:00:2b:01:02:03"'], "jsonpath": [b'"$.a"'], "xid": [b"7"],
    **{kind: [b"[1, null,-0]", b"[]", b"[1.50]"] for kind in ("int4[]", "float8[]", "numeric[]", "jsonb[]", "json[]")},
    **{kind: [b'["AAEC"]', b"[null]"] for kind in ("text[]", "bytea[]")}, "mood[]": [b'["sad"]'],
    "timestamptz[]": [b'["2026-11-22T23:44:05Z"]'], "timestamptz[][]": [b'[["2026-11-22T23:44:05Z"]]'],
    "visit[]": [b'[{"id":1,"doc":{"a":1.50}},null]'], "int4range[]": [b"[[1,5]]"],
}  # fmt: skip

SOURCES = ["key", "value", "headers", "header:a", "header:b", "timestamp", "topic", "partition", "offset", "now"]
PATHS = ["a", "b", "a.b", "a.b.c", "a[0]", "a[1].b", '"x.y"', "f0", "f1", "f2", "f0.f1"]
CONSTANTS = [1, -7, 1.5, "x", True, [1, 2], {"a": 1}, "2026-01-01", "2026-01-01T00:00:00Z", 10**18, "1e3", ""]
TEXTS = [text for seeds, _ in SEEDS.values() for text in seeds]
ALPHABET = "".join(sorted({character for _, characters in SEEDS.values() for character in characters}))
ODD_BYTES = b'0123456789eE+-.,:"\\u{}[] \x00\x1f\x7f\xc3\xa9\xff\xed\xa0'
KEYS = [None, b"", b"7", b'{"a":1,"b":{"c":[1.50]}}', b"\xff", b"a\0b", b"null", b'"x"', b"[1]", b"{" * 300, b"1e400"]
MANY = b"9" * 5000


@pytest.fixture(scope="module")
def everything() -> list[tuple[str, bool]]:
    return [(kind, not_null) for kind in TYPES for not_null in (False, True)]


class Fuzz:
    """One table with a column of each type, and what is drawn from it."""

    def __init__(self, connection: psycopg.Connection, kinds: Sequence[tuple[str, bool]], seed: int) -> None:
        self.connection = connection
        self.chance = random.Random(seed)
        connection.execute(
            "CREATE TYPE mood AS ENUM ('sad', 'so, so'); CREATE DOMAIN positive AS int4 CHECK (VALUE > 0)"
        )
        connection.execute("CREATE TYPE visit AS (id int, at timestamptz, note text, doc jsonb)")
        columns = ", ".join(f"c{n} {kind}{' NOT NULL' if not_null else ''}" for n, (kind, not_null) in enumerate(kinds))
        connection.execute(f"CREATE TABLE everything ({columns})".encode())
        self.table = read_table(connection, "everything")

    def columns(self) -> list[Column]:
        """Draw some columns, as those of a table; mostly of types that have a binary form, else all is text."""
        chance = self.chance
        text, plain = chance.random() < 0.3, _COMPILED if chance.random() < 0.5 else _PLAIN
        pool = [column for column in self.table.columns if text or column.type_name in plain]
        return chance.sample(pool, chance.choice((1, 2, 3, 5, 9)))

    def mapping(self, columns: Sequence[Column]) -> dict[str, Any]:
        chance = self.chance
        said = {column.name: self.entry() for column in columns if chance.random() < 0.3}
        route: dict[str, Any] = {"columns": said}
        for key, values in _ROUTE.items():
            if chance.random() < 0.1:
                route[key] = chance.choice(values)
        if chance.random() < 0.1:
            route["unknown_fields"] = chance.choice(columns).name
        return route

    def entry(self) -> dict[str, Any]:
        """Draw what is said of one column."""
        chance = self.chance
        if chance.random() < 0.2:
            return {"constant": chance.choice(CONSTANTS)}
        entry: dict[str, Any] = {}
        for key, often, values in (("source", 0.4, SOURCES), ("field", 0.7, PATHS)):
            if chance.random() < often:
                entry[key] = chance.choice(values)
        return entry | {key: chance.choice(values) for key, values in _MORE.items() if chance.random() < 0.15}

    def literal(self, depth: int = 0) -> bytes:  # noqa: PLR0911 - one for each kind
        """Draw a JSON value, plain, odd or wrong."""
        chance = self.chance
        match chance.randrange(9 if depth < 3 else 6):
            case 0 | 1:
                return chance.choice(LITERALS)
            case 2:
                return json.dumps(chance.choice(TEXTS)).encode()
            case 3:
                return json.dumps(mutated(chance, [chance.choice(TEXTS), chance.choice(TEXTS)], ALPHABET)).encode()
            case 4:
                return chance.choice(_NUMBERS)
            case 5:
                return str(chance.randrange(-(2**65), 2**65) >> chance.randrange(66)).encode()
            case 6:
                return b"[%b]" % b",".join(self.literal(depth + 1) for _ in range(chance.randrange(3)))
            case 7:
                return json.dumps(self.an_object(depth + 1).decode(errors="replace")).encode()
        return self.an_object(depth + 1)

    def an_object(self, depth: int = 0, names: Sequence[str] = ()) -> bytes:
        chance = self.chance
        drawn = [*chance.sample(_NAMES, chance.randrange(3)), *names]
        fields = [
            b"%b:%b" % (self.name(name), self.fitting(name) if chance.random() < 0.85 else self.literal(depth))
            for name in drawn
            if chance.random() < 0.95
        ]
        if fields and chance.random() < 0.1:
            fields.append(chance.choice(fields))
        return b"{%b}" % b",".join(fields)

    def fitting(self, name: str) -> bytes:
        """Draw a value that a column's type takes, whatever its mapping says; for other fields an integer."""
        if not re.fullmatch(r"c[0-9]+", name):
            return b"7"
        kind = TYPES[int(name[1:]) // 2]
        texts = SEEDS[kind][0] if kind in SEEDS else ()
        return (
            self.chance.choice(FITTING.get(kind, [])) if not texts else json.dumps(self.chance.choice(texts)).encode()
        )

    def name(self, name: str) -> bytes:
        written = json.dumps(name).encode()
        return b'"' + b"".join(b"\\u%04x" % ord(c) for c in name) + b'"' if self.chance.random() < 0.05 else written

    def value(self, names: Sequence[str]) -> bytes | None:
        chance = self.chance
        if chance.random() < 0.05:
            return chance.choice([None, b"", b"null", b"[]", b"\xff", b"[" * 2000, b"1e400", b'{"a":' * 400])
        value = self.an_object(0, names)
        if chance.random() < 0.1:
            value = b'{"in":%b,"a":{"b":{"c":1}}}' % value
        torn = bytearray(value)
        for _ in range(chance.choice((0, 0, 0, 0, 1, 2))):
            at = chance.randrange(len(torn) + 1)
            torn[at : at + chance.randrange(3)] = chance.choice(ODD_BYTES).to_bytes()
        return bytes(torn)

    def record(self, value: bytes | None) -> Sent:
        chance = self.chance
        headers = [
            (chance.choice(["a", "b", "c", "n\0l", "caf\\xe9", ""]), chance.choice(KEYS))
            for _ in range(chance.randrange(4))
        ]
        return Sent(
            chance.choice((0, 7, 2**40)),
            value,
            chance.choice((0, 3, 99_999)),
            chance.choice(KEYS),
            chance.choice((1_763_855_045_123, 0, -1, 2**62, 253_402_300_800_000)),
            chance.choice((None, headers)),
            chance.choice(("requests", "t" * 200)),
        )

    def round(self) -> int:
        """Draw a route and records, and encode them in all ways; return how many rows there were."""
        columns = self.columns()
        try:
            mapping = RouteMapping.model_validate(self.mapping(columns))
            table = Table(1, "public", "everything", tuple(columns), "")
            fed = row_columns(table, mapping)
            encoders = self.encoders(fed, mapping)
        except (ConfigError, ValueError):
            return 0
        names = [column.name for column in columns]
        values = [self.value(names) for _ in range(self.chance.choice((1, 3, 12)))]
        records = [self.record(value) for value in values]
        made: list[tuple[Encoded, list[bytes]]] = []
        for encoder, careful in encoders:
            rows: list[bytes] = []
            encode = encoder.encode_carefully if careful else encoder.encode
            made.append((encode(records, values, rows), rows))
        (first, rows), *others = made
        for index, why in first.refused:
            assert why.code != INTERNAL, (mapping, columns, values[index], why)
            dead_letter(OWNER, "id", records[index], why)
        uses_now = any(said.source == "now" for said in mapping.columns.values())
        for encoded, other_rows in others:
            assert _codes(encoded) == _codes(first), (mapping, columns, values)
            if rows != other_rows and not uses_now:
                self.compare(encoders[0][0], rows, other_rows, (mapping, columns, values))
        self.look_at(columns, mapping, values, records)
        return len(rows)

    def encoders(self, fed: tuple[Column, ...], mapping: RouteMapping) -> list[tuple[RowEncoder, bool]]:
        deletes = None
        if self.chance.random() < 0.3:
            key = tuple(column.name for column in self.chance.sample(fed, self.chance.randrange(1, 3) % len(fed) or 1))
            deletes = Deletes(key)
            if self.chance.random() < 0.5 and mapping.format == "json":
                deletes = Deletes(key, parse_path(self.chance.choice(PATHS)), self.chance.choice(["d", True, 1]))
        made = [(build_encoder(fed, mapping, deletes=deletes, compiled=compiled), False) for compiled in ENCODERS]
        return [*made, (made[0][0], True)]

    def compare(self, encoder: RowEncoder, ours: Sequence[bytes], others: Sequence[bytes], about: object) -> None:
        """Let PostgreSQL compare two encodings, of the rows with all columns."""
        assert len(ours) == len(others), about
        assert encoder.copy_format is CopyFormat.BINARY, about
        names = ",".join(f'"{name}"' for name in encoder.columns)
        for mine, other in zip(ours, others, strict=True):
            if mine != other and mine[:2] == len(encoder.columns).to_bytes(2):
                read = [self.read(names, row) for row in (mine, other)]
                assert read[0] == read[1], (about, mine, other)

    def read(self, names: str, row: bytes) -> object:
        try:
            with self.connection.transaction(force_rollback=True), self.connection.cursor() as cursor:
                cursor.execute(
                    f"CREATE TEMP TABLE one AS SELECT {names} FROM everything, (VALUES (false)) deleted({DELETED}) "
                    "WITH NO DATA".encode()
                )
                with cursor.copy(f"COPY one ({names}) FROM STDIN (FORMAT binary)".encode()) as copy:
                    copy.write(HEADER + row + TRAILER)
                return cursor.execute("SELECT one::text FROM one").fetchall()
        except psycopg.DataError as error:
            return error.sqlstate

    def look_at(
        self,
        columns: Sequence[Column],
        mapping: RouteMapping,
        values: Sequence[bytes | None],
        records: Sequence[Sent],
    ) -> None:
        """Do with the records what the door, `check` and `infer` do."""
        there = [value for value in values if value is not None]
        door = Door(columns, None, mapping)
        assert all(why.code != INTERNAL for _, why in door.check(there)), (mapping, columns, there)
        plain = Door(None, "f0")
        refused = dict(plain.check(there))
        assert all(why.code != INTERNAL for why in refused.values()), there
        objects = [value for index, value in enumerate(there) if index not in refused]
        assert all(why.code != INTERNAL for _, why in plain.keys(objects)[1]), objects
        infer(values)
        names = [column.name for column in columns]
        list(remedies.unfed_columns(names, mapping, values))
        remedies.scattered_key(names[:2], mapping, records, values)
        for column, value in zip(columns, values, strict=False):
            for code in ("missing", "wrong_type", "not_a_timestamp", "internal"):
                assert remedies.remedy(Refusal(code, column.name, "no offset"), column, mapping, value)


def _codes(encoded: Encoded) -> list[tuple[int, str, str | None]]:
    return [(index, why.code, why.column) for index, why in encoded.refused]


OWNER = Owner("pipe", "route", "requests", '"public"."everything"', "worker-0")
_COMPILED = COMPILED_TYPES
_PLAIN = {
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "text", "varchar", "uuid", "date", "timestamp",
    "timestamptz", "json", "jsonb", "bytea", "bpchar", "time", "timetz", "interval", "inet", "cidr", "enum", "array",
}  # fmt: skip
_MORE: dict[str, list[Any]] = {
    "default": CONSTANTS, "unit": ["s", "ms", "us", "ns"], "json_text": [True], "on_missing": ["default", "reject"],
    "on_null_byte": ["strip"],
}  # fmt: skip
_ROUTE: dict[str, list[Any]] = {
    "format": ["raw"], "value_field": ["in", "a.b"], "unknown_fields": ["reject"], "on_missing": ["default", "reject"],
    "on_null_byte": ["strip"],
}  # fmt: skip
_NAMES = ["a", "b", "c", "f0", "f1", "f2", "x.y", "in", "", "\u00fc", 'q"', "\\", "\0"]
_NUMBERS = [
    b"0e1000000000000000000", b"-0", b"-0.0", b"1e-1000000000000000000", b"1E+999", b"0.1234567890123456789", b"1.50",
    b"1e9", b"1763855045123", b"1763855045.123456789", MANY, b"1" + b"0" * 299 + b"e99", b"0." + b"0" * 400 + b"1",
]  # fmt: skip


@pytest.mark.parametrize("seconds", [60, pytest.param(600, marks=pytest.mark.soak)])
def test_nothing_leaves_its_record(database: str, everything: list[tuple[str, bool]], seconds: int) -> None:
    seed = 1 if seconds == 60 else random.randrange(2**32)
    with psycopg.connect(database, autocommit=True) as connection:
        fuzz = Fuzz(connection, everything, seed)
        until, rounds, rows = time.monotonic() + seconds, 0, 0
        while time.monotonic() < until:
            rounds += 1
            try:
                rows += fuzz.round()
            except BaseException as error:
                error.add_note(f"seed {seed}, round {rounds}")
                raise
    assert rows > rounds / 2, (rounds, rows)
