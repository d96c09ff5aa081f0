"""The compiled encoder takes nothing that the Python encoders refuse, and makes the same row of what it takes."""

from __future__ import annotations

import json
import random
import struct
import sys
from decimal import ROUND_HALF_UP, Decimal

import orjson
import pytest

from kbatchd.config import RouteMapping
from kbatchd.encode import compiled
from kbatchd.encode.rows import build_encoder
from kbatchd.postgres.table import Column
from tests.fix_encoders import CAN_COMPILE
from tests.records import Sent

pytestmark = pytest.mark.skipif(
    not (compiled.COMPILED or CAN_COMPILE),
    reason="there is no compiler, so there is no compiled encoder to be tested",
)

#: numeric(12,3), varchar(5), and each type alone.
SCALE, PRECISION, LENGTH = 3, 12, 5
TYPMODS = {"scaled": (PRECISION << 16 | SCALE) + 4, "short": LENGTH + 4}
TYPES = {**{f"c_{name}": name for name in sorted(compiled.TYPES)}, "scaled": "numeric", "short": "varchar"}

#: Literals that are plain, odd or wrong, of which each column gets some of its own and some of the others.
LITERALS = [
    *(b"null true false 0 -0 1 -1 7.0 1e2 1E+2 01 1. .5 - 127 32767 32768 -32768 -32769 2147483648".split()),
    *(b"9223372036854775807 9223372036854775808 -9223372036854775808 18446744073709551616 1e400 1e-400 0.1".split()),
    *(b"123456789.1235 0.00050 -0.0005 1.7976931348623157e308 5e-324 2.2250738585072014e-308".split()),
    *(b"16777217 3.4028236e38 1e39 1e-46 1.000000059604644775390625 999999999.9995 1234567890123456789012345".split()),
    *(b'"" "x" "abcde" "abcdef" "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9" "a\\nb" "\\u0041" "\\u0000"'.split()),
    *(b'"\\ud83d\\ude00" "\\ud83d" "\xff" "\xc0\x80" "\xed\xa0\x80" "\xf4\x90\x80\x80" "\x01"'.split()),
    *(b'"AAEC" "AAE=" "A" "AA==" "A A=" "NaN"'.split()),
    *(b'"2026-11-22" "2024-02-29" "2023-02-29" "0001-01-01" "9999-12-31" "2026-1-2" "20261122" "2026-W47-7"'.split()),
    b'"2026-11-22T23:44:05Z"', b'"2026-11-22T23:44:05.123456Z"', b'"2026-11-22 23:44:05.12Z"',
    b'"2026-11-22T23:44:05+02:00"', b'"2026-11-22T23:44:05"', b'"2026-11-22T24:00:00Z"', b'"2026-11-22T23:44:60Z"',
    b'"2026-11-22T23:44:05.1234567Z"', b'"2026-11-22T23:44Z"', b'"1999-12-31T23:59:59.999999-11:30"',
    b'"0001-01-01T00:00:00+14:00"', b'"2026-11-22t23:44:05z"', b'"2026-11-22T23:44:05,5Z"',
    b'"cd613e30-d8f1-6adf-91b7-584a2265b1f5"', b'"CD613E30-D8F1-6ADF-91B7-584A2265B1F5"',
    b'"cd613e30d8f16adf91b7584a2265b1f5"', b'"{cd613e30-d8f1-6adf-91b7-584a2265b1f5}"',
    b'"cd613e30-d8f1-6adf-91b7-584a2265b1fg"',
    b"{}", b"[]", b'{"a":1,"a":2}', b'{"a":[1,{"b":null}]}', b"[1,]", b'{"a"}', b'{"k\\u0000":1}', b'["\\u0000"]',
    b"[1e400,1e-400,123456789012345678901234567890]", b"[" * 70 + b"]" * 70, b'{"a": [ 1 , 2.50 ] }', b"[tru]",
]  # fmt: skip

PLAIN = {
    "c_bool": b"true", "c_bytea": b'"AAEC"', "c_date": b'"2026-11-22"', "c_float4": b"0.1", "c_float8": b"12.5",
    "c_int2": b"7", "c_int4": b"7", "c_int8": b"7", "c_json": b'{"a": [1.5, "x\\""]}', "c_jsonb": b'{"a":[-1e-7,"x"]}',
    "c_numeric": b"12.50", "c_text": b'"x"', "c_varchar": b'"x"', "c_timestamp": b'"2026-11-22T23:44:05.123456"',
    "c_timestamptz": b'"2026-11-22 23:44:05.12Z"', "c_uuid": b'"cd613e30-d8f1-6adf-91b7-584a2265b1f5"',
    "scaled": b"1.5", "short": b'"abc"',
}  # fmt: skip


def columns(types: dict[str, str], *, not_null: bool) -> list[Column]:
    return [
        Column(name, number, kind, TYPMODS.get(name, -1), not_null, generated=False, identity=False, has_default=False)
        for number, (name, kind) in enumerate(types.items(), 1)
    ]


class Pair:
    """Two encoders of the same columns, with the compiled encoder and without."""

    def __init__(self, types: dict[str, str], *, not_null: bool, mapping: RouteMapping | None = None) -> None:
        self._compiled = build_encoder(columns(types, not_null=not_null), mapping, compiled=True)
        self._python = build_encoder(columns(types, not_null=not_null), mapping, compiled=False)

    def compare(self, values: list[bytes | None], records: list[Sent] | None = None) -> None:
        got: list[bytes] = []
        due: list[bytes] = []
        encoded = self._compiled.encode(records or (), values, got)
        assert encoded == self._python.encode(records or (), values, due), (values, records)
        assert len(got) == len(due)
        for ours, theirs in zip(got, due, strict=True):
            if ours != theirs:
                assert self._meanings(ours) == self._meanings(theirs), (values, records)

    def _meanings(self, row: bytes) -> list[object]:
        return [_meaning(name, field) for name, field in zip(self._compiled.columns, _fields(row), strict=True)]


def _fields(row: bytes) -> list[bytes | None]:
    at, found = 2, []
    for _ in range(struct.unpack_from(">h", row)[0]):
        (size,) = struct.unpack_from(">i", row, at)
        found.append(None if size < 0 else row[at + 4 : at + 4 + size])
        at += 4 + max(size, 0)
    assert at == len(row)
    return found


def _meaning(name: str, field: bytes | None) -> object:
    """Return what PostgreSQL makes of a field, where two forms of it mean the same."""
    if field is None:
        return None
    if name == "c_jsonb":
        return json.loads(field[1:], parse_float=Decimal, parse_int=Decimal)
    if name == "scaled":
        return _decimal(field).quantize(Decimal(10) ** -SCALE, ROUND_HALF_UP)
    return field


def _decimal(field: bytes) -> Decimal:
    count, weight, sign, _ = struct.unpack_from(">hhHh", field)
    digits = struct.unpack_from(f">{count}h", field, 8)
    value = sum((Decimal(digit) * Decimal(10000) ** (weight - at) for at, digit in enumerate(digits)), Decimal(0))
    return -value if sign else value


def _record(fields: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(b'"%b":%b' % (name.encode(), literal) for name, literal in fields.items()) + b"}"


@pytest.mark.parametrize("not_null", [True, False])
def test_every_literal_in_every_column(not_null: bool) -> None:
    for name, kind in TYPES.items():
        pair = Pair({name: kind}, not_null=not_null)
        for literal in LITERALS:
            pair.compare([_record({name: literal})])
            pair.compare([_record({name: literal, "more": literal})])
            pair.compare([b' { "x" : %b , "%b" : %b\n}\t' % (literal, name.encode(), literal)])


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_in_a_record(seed: int) -> None:
    chance = random.Random(seed)
    pairs = [Pair(TYPES, not_null=True), Pair(TYPES, not_null=False)]
    for _ in range(250):
        values: list[bytes | None] = [_changed(chance) for _ in range(chance.choice((1, 1, 2, 8)))]
        if not chance.randrange(20):
            values.insert(chance.randrange(len(values)), None)
        for pair in pairs:
            pair.compare(values)


def _changed(chance: random.Random) -> bytes:
    """Make a record of plain fields, then change none, some fields, the order, or bytes of it."""
    fields = dict(PLAIN)
    for _ in range(chance.choice((0, 0, 1, 2))):
        fields[chance.choice(list(fields))] = chance.choice(LITERALS)
    if not chance.randrange(4):
        fields.pop(chance.choice(list(fields)))
    if not chance.randrange(3):
        fields = dict(chance.sample(list(fields.items()), len(fields)))
    value = _record(fields)
    if not chance.randrange(8):  # the same key twice
        value = value[:-1] + b',"c_int4":8}'
    return _torn(chance, value)


def _torn(chance: random.Random, record: bytes) -> bytes:
    """Change no byte, or some."""
    value = bytearray(record)
    for _ in range(chance.choice((0, 0, 1, 3))):
        at = chance.randrange(len(value))
        value[at : at + chance.randrange(3)] = chance.choice(b'0123456789eE+-.,:"\\u{}[] \x00\x1f\xc3\xff').to_bytes()
    return bytes(value)


def test_plain_records_are_taken() -> None:
    """Without this one, one that takes nothing would pass."""
    native = build_encoder(columns(TYPES, not_null=True), compiled=True)._compiled
    assert native is not None
    made: list[bytes] = []
    values = [_record(PLAIN), orjson.dumps(orjson.loads(_record(PLAIN))), _record(dict(reversed(PLAIN.items())))]
    assert native.encode((), values, 0, made) == len(values) == len(made)


def test_column_names_that_json_writes_with_escapes() -> None:
    for name in ('quo"te', "back\\slash", "tab\t", "é", "\x7f", "a\U0001f600"):
        pair = Pair({name: "int4"}, not_null=True)
        pair.compare([orjson.dumps({name: 1}), json.dumps({name: 1}).encode(), b"{}"])


MAPPED_TYPES = {
    "id": "int8", "city": "text", "zip": "varchar", "lat": "float8", "c_jsonb": "jsonb", "at": "timestamptz",
    "day": "date", "seen": "timestamp", "op": "text", "source": "text", "nothing": "int4", "state": "text",
    "lon": "float8", "offset": "int8", "key": "text", "sent": "timestamptz",
}  # fmt: skip
MAPPED = {
    "city": "address.city", "zip": "address.zip", "lat": "address.geo.lat", "c_jsonb": "meta.raw",
    "at": {"field": "ts", "unit": "ms"}, "day": {"field": "meta.day", "unit": "s"},
    "seen": {"field": "seen", "unit": "us"},
    "source": {"constant": "web"}, "nothing": {"constant": -7},
    "state": {"field": "status", "default": "new"}, "lon": {"field": "address.geo.lon", "default": -0.5},
    "offset": {"source": "offset"}, "key": {"source": "key"}, "sent": {"source": "timestamp"},
}  # fmt: skip
OF_ENVELOPE = {"op": {"source": "value", "field": "op"}}
#: What the columns' fields are in, and some values of each.
INNER = {
    "id": [b"7"],
    "address": [
        b'{"city":"Ulm","zip":"89073","geo":{"lat":48.4,"lon":9.99}}', b'{"geo":{},"city":"\\u00dclm"}', b"{}", b"null",
        b'{"city":null,"geo":null}', b'{"city":"a","city":"b"}', b'{"geo":[1],"city":"x"}', b"[]", b'"Ulm"', b"{,}",
        b'{"geo":{"lat":1}, "geo":{"lat":2}}', b'{"geo":{"lat":{"lat":1}}}', b'{"city":{"city":"x"}}',
    ],
    "meta": [b'{"day":1763855045,"raw":{"a":[1.50]}}', b'{"raw":null,"day":-1}', b'{"day":1.5}', b'{"raw":1e400}'],
    "ts": [
        b"1763855045123", b"-1", b"-0", b"0", b"1e3", b"9223372036854775807", b"-210000000000001", b"-210000000000000",
    ],
    "status": [b'"old"', b"null", b"1"],
    "seen": [
        b"1763855045123456", b"-62135596800000000", b"999999999999999999", b"9000000000000000000",
        b"8640000000000000000",
    ],
}  # fmt: skip


MAPPINGS = ["open", "closed", "envelope", "default", "reject"]


def _mapping(name: str) -> RouteMapping:
    more = {
        "open": {},
        "closed": {"unknown_fields": "reject"},
        "envelope": {"value_field": "a.after"},
        "default": {"on_missing": "default"},
        "reject": {"on_missing": "reject"},
    }[name]
    said = MAPPED | (OF_ENVELOPE if name == "envelope" else {})
    return RouteMapping.model_validate({"columns": said, **more})


def _mapped_record(chance: random.Random, inner: dict[str, bytes]) -> bytes:
    """Wrap it, mostly, in an envelope."""
    value = _record({**inner, "op": b'"i"'})
    outer = [b'{"op":"u","a":{"after":%b}}'] * 6 + [
        b"%b",
        b'{"a":%b}',
        b'{"after":%b,"a":null}',
        b'{"a":{"after":[%b]}}',
    ]
    return chance.choice(outer) % value


@pytest.mark.parametrize("not_null", [True, False])
@pytest.mark.parametrize("name", MAPPINGS)
def test_whatever_is_changed_in_a_mapped_record(name: str, not_null: bool) -> None:
    chance = random.Random(7)
    pair = Pair(MAPPED_TYPES, not_null=not_null, mapping=_mapping(name))
    for _ in range(1500):
        inner = {key: chance.choice(texts) if chance.randrange(2) else texts[0] for key, texts in INNER.items()}
        if not chance.randrange(3):
            inner[chance.choice([*inner, "more"])] = chance.choice(LITERALS)
        if not chance.randrange(4):
            inner = dict(chance.sample(list(inner.items()), chance.randrange(len(inner) + 1)))
        value = _mapped_record(chance, inner) if name == "envelope" else _record({**inner, "op": b'"i"'})
        sent = Sent(chance.choice(NUMBERS), name=chance.choice(KEYS), sent_at_ms=chance.choice(TIMES_MS))
        pair.compare([_torn(chance, value) if not chance.randrange(3) else value], [sent])


@pytest.mark.parametrize("name", MAPPINGS)
def test_plain_mapped_records_are_taken(name: str) -> None:
    native = build_encoder(columns(MAPPED_TYPES, not_null=True), _mapping(name), compiled=True)._compiled
    assert native is not None
    value = _record({**{key: texts[0] for key, texts in INNER.items()}, "op": b'"i"'})
    if name == "envelope":
        value = b'{"op":"u","a":{"before":null,"after":%b}}' % value
    made: list[bytes] = []
    records = [Sent(7, name=b"k"), Sent(8, name=b'{"a":1}')]
    assert native.encode(records, [value, orjson.dumps(orjson.loads(value))], 0, made) == 2


#: What a record may have beside its value, plain, odd and wrong.
KEYS = [
    None, b"", b"k", b"7", b"-7", b"0", b"-0", b"007", b"+7", b"32768", b"9223372036854775808", b"1.0", b"7 ", b" 7",
    b"cd613e30-d8f1-6adf-91b7-584a2265b1f5", b"CD613E30D8F16ADF91B7584A2265B1F5", b"null", b'"k"', b'{"id":"\\u0000"}',
    b"abcde", b"abcdef", b"abcde ", "\u00e9".encode() * 5, "\u00e9".encode() * 6, "\U0001f600".encode(), b"\xff",
    b"\xc0\x80", b"\xed\xa0\x80", b"a\xc3", b"a\0b", b"\0", b"\x01\t\\", b"7\0", b"plain ascii of 24 letters",
    b"cd613e30-d8f1-6adf-91b7-584a2265b1f\0", b"cd613e30-d8f1-6adf-91b7-584a2265b1fg",
]  # fmt: skip
NUMBERS = [0, 7, -7, 2**15 - 1, 2**15, 2**31 - 1, 2**31, 99_999, 2**63 - 1, 2**63]
TIMES_MS = [1_763_855_045_123, 0, -1, -1001, 253_402_300_800_000, 9_000_000_000_000_000, 2**63 - 1]
SUBJECTS = ["requests", "abcde", "\u00e9" * 5, ""]

#: Each with the types that its columns may have.
OF_RECORD = {
    "key": sorted(compiled.TYPES),
    "topic": sorted(compiled.TYPES),
    "timestamp": ["date", "timestamp", "timestamptz", "int2", "int4", "int8", "numeric", "text", "varchar"],
    "partition": ["int2", "int4", "int8", "numeric", "text", "varchar"],
    "offset": ["int2", "int4", "int8", "numeric", "text", "varchar"],
}


def _sent(source: str) -> list[Sent]:
    match source:
        case "key":
            return [Sent(1, name=key) for key in KEYS]
        case "topic":
            return [Sent(1, subject=subject) for subject in SUBJECTS]
        case "timestamp":
            return [Sent(1, sent_at_ms=time) for time in TIMES_MS]
        case "partition":
            return [Sent(1, number=number) for number in NUMBERS]
    return [Sent(number) for number in NUMBERS]


@pytest.mark.parametrize("not_null", [True, False])
@pytest.mark.parametrize("source", OF_RECORD)
def test_whatever_a_record_has_beside_its_value(source: str, not_null: bool) -> None:
    records = _sent(source)
    values: list[bytes | None] = [b'{"id":1}'] * len(records)
    for kind in OF_RECORD[source]:
        types = {"short" if kind == "varchar" else f"c_{kind}": kind, "id": "int8"}
        for more in ({}, {"on_missing": "default"}, {"on_missing": "reject"}, {"on_null_byte": "strip"}):
            mapping = RouteMapping.model_validate({"columns": {next(iter(types)): {"source": source, **more}}})
            pair = Pair(types, not_null=not_null, mapping=mapping)
            pair.compare(values, records)
            for value, record in zip(values, records, strict=True):
                pair.compare([value], [record])


@pytest.mark.parametrize("not_null", [True, False])
@pytest.mark.parametrize(("name", "kind"), TYPES.items())
def test_defaults(name: str, kind: str, not_null: bool) -> None:
    values: list[bytes | None] = [
        b"{}", b'{"a":{}}', b'{"a":null}', b'{"%b":null,"a":{"b":null}}' % name.encode(), b'{"a":[]}', b'{"a":{"b":1}}',
    ]  # fmt: skip
    value = orjson.loads(PLAIN[name])
    for path in (name, "a.b"):
        said = {"columns": {name: {"field": path, "default": value}, "k": {"source": "key", "default": "none"}}}
        pair = Pair({name: kind, "k": "text"}, not_null=not_null, mapping=RouteMapping.model_validate(said))
        for sent in (Sent(1), Sent(1, name=b"k")):
            pair.compare(values, [sent] * len(values))


def test_what_is_missing_is_taken() -> None:
    said = {"columns": {"a": {"field": "a", "default": "d"}, "b": {"source": "key"}, "c": {"source": "timestamp"}}}
    types = {"a": "text", "b": "bytea", "c": "int8"}
    encoder = build_encoder(columns(types, not_null=False), RouteMapping.model_validate(said), compiled=True)
    assert encoder._compiled is not None
    rows: list[bytes] = []
    assert (
        encoder._compiled.encode([Sent(1, sent_at_ms=-1), Sent(1, name=b"\0\xff")], [b"{}", b'{"a":null}'], 0, rows)
        == 2
    )
    assert [_fields(row) for row in rows] == [
        [b"d", None, None],
        [None, b"\0\xff", (1_700_000_000_123).to_bytes(8)],
    ]


def test_each_value_has_its_record() -> None:
    mapping = RouteMapping.model_validate({"columns": {"o": {"source": "offset"}}})
    native = build_encoder(columns({"o": "int8"}, not_null=True), mapping, compiled=True)._compiled
    assert native is not None
    with pytest.raises(ValueError, match="more values than records"):
        native.encode([Sent(1)], [b"{}", b"{}"], 0, [])


def test_what_a_record_s_method_raises_is_not_taken() -> None:
    class Broken(Sent):
        def offset(self) -> int:
            raise ZeroDivisionError

    class Exhausted(Sent):
        def offset(self) -> int:
            raise MemoryError

    said = {"columns": {"key": {"source": "key"}, "o": {"source": "offset"}}}
    types = {"key": "text", "o": "int8"}
    native = build_encoder(columns(types, not_null=True), RouteMapping.model_validate(said), compiled=True)._compiled
    assert native is not None
    assert native.encode([Sent(0, name=b"k"), Broken(1, name=b"k")], [b"{}", b"{}"], 0, []) == 1
    with pytest.raises(MemoryError):
        native.encode([Exhausted(1, name=b"k")], [b"{}"], 0, [])


def test_nothing_of_a_record_is_kept() -> None:
    said = {"columns": {"k": {"source": "key", "default": "none"}, "t": {"source": "topic"}}}
    types = {"k": "varchar", "t": "text", "short": "varchar"}
    encoder = build_encoder(columns(types, not_null=False), RouteMapping.model_validate(said), compiled=True)
    key, torn, topic = b"key of its own", b"\xff" * 20, "a topic of its own"
    held = [sys.getrefcount(thing) for thing in (key, torn, topic)]
    records = [Sent(1, name=key, subject=topic), Sent(2, name=torn, subject=topic)] * 50
    values = [b"{}", b"{", b'{"short":"abc"}', b'{"short":"abcdef"}'] * 25
    for _ in range(3):
        encoder.encode(records, values, [])
    records.clear()
    assert [sys.getrefcount(thing) for thing in (key, torn, topic)] == held


@pytest.mark.parametrize(
    "said",
    [
        {"city": "address.city", "c_jsonb": "address"},
        {"city": "address", "zip": "address"},
        {"city": "items[0].city"},
        {"city": {"field": "city", "json_text": True}},
        {"c_jsonb": {"source": "key"}},
        {"city": {"source": "key", "field": "city"}},
        {"city": {"source": "header:city"}},
        {"at": {"field": "ts", "unit": "ns"}},
    ],
)
def test_mappings_that_are_not_compiled(said: dict[str, object]) -> None:
    mapping = RouteMapping.model_validate({"columns": said})
    assert build_encoder(columns(MAPPED_TYPES, not_null=False), mapping, compiled=True)._compiled is None
    pair = Pair(MAPPED_TYPES, not_null=False, mapping=mapping)
    value = b'{"id":1,"address":{"city":"Ulm"},"items":[{"city":"Ulm"}],"ts":1763855045123456789}'
    pair.compare([value], [Sent(1, name=b'{"city":"Ulm"}')])
