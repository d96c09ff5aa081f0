"""The bytes of good records, and why the others are refused. test_types.py compares them with PostgreSQL."""

from __future__ import annotations

import random
import struct
import uuid
from typing import TYPE_CHECKING

import orjson
import pytest

from kbatchd.encode import compiled
from kbatchd.encode.exact import suspects
from kbatchd.encode.numbers import pack_numeric
from kbatchd.encode.rows import _Call, build_encoder
from kbatchd.postgres.table import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.model import Refusal

pytestmark = pytest.mark.usefixtures("compiled")

REQUEST_TYPES = {
    "id": "int8", "request_id": "uuid", "user_id": "int4", "method": "text", "path": "text", "status": "int2",
    "latency_ms": "float8", "created_at": "timestamptz", "payload": "jsonb",
}  # fmt: skip
REQUEST = {
    "id": 7, "request_id": "cd613e30-d8f1-6adf-91b7-584a2265b1f5", "user_id": 8, "method": "GET", "path": "/ü",
    "status": 200, "latency_ms": 1.5, "created_at": "2000-01-01T00:00:01.000002Z", "payload": {"a": [1, None]},
}  # fmt: skip


def columns(types: dict[str, str], *, not_null: bool = True, typmod: int = -1) -> list[Column]:
    return [
        Column(name, number, type_name, typmod, not_null, generated=False, identity=False, has_default=False)
        for number, (name, type_name) in enumerate(types.items(), 1)
    ]


def fields(row: bytes) -> list[bytes | None]:
    """Read one row of a binary COPY."""
    (count,) = struct.unpack_from(">h", row)
    at, found = 2, []
    for _ in range(count):
        (size,) = struct.unpack_from(">i", row, at)
        at += 4
        found.append(None if size < 0 else row[at : at + size])
        at += max(size, 0)
    assert at == len(row)
    return found


def encode(
    types: dict[str, str], *values: bytes | None, not_null: bool = True
) -> tuple[list[dict[str, bytes | None]], list[tuple[int, Refusal]]]:
    encoder = build_encoder(columns(types, not_null=not_null))
    encoded: list[bytes] = []
    refusals = encoder.encode((), values, encoded).refused
    return [dict(zip(encoder.columns, fields(row), strict=True)) for row in encoded], refusals


def codes(refusals: Sequence[tuple[int, Refusal]]) -> list[tuple[int, str, str | None]]:
    return [(index, refusal.code, refusal.column) for index, refusal in refusals]


def test_a_request_becomes_a_row_with_its_fixed_columns_first() -> None:
    assert build_encoder(columns(REQUEST_TYPES)).columns == (
        "id", "request_id", "user_id", "status", "latency_ms", "created_at", "method", "path", "payload",
    )  # fmt: skip
    encoded, refusals = encode(REQUEST_TYPES, orjson.dumps(REQUEST))
    assert refusals == []
    assert encoded == [{
        "id": struct.pack(">q", 7), "request_id": uuid.UUID(str(REQUEST["request_id"])).bytes,
        "user_id": struct.pack(">i", 8), "status": struct.pack(">h", 200), "latency_ms": struct.pack(">d", 1.5),
        "created_at": struct.pack(">q", 1_000_002), "method": b"GET", "path": "/ü".encode(),
        "payload": b'\x01{"a":[1,null]}',
    }]  # fmt: skip


@pytest.mark.parametrize("type_name", sorted(compiled.TYPES))
def test_absent_and_null_fields_are_null_or_refused(type_name: str) -> None:
    values = (b"{}", b'{"v":null}')
    encoded, refusals = encode({"v": type_name}, *values, not_null=False)
    assert (encoded, refusals) == ([{"v": None}, {"v": None}], [])
    encoded, refusals = encode({"v": type_name}, *values)
    assert (encoded, codes(refusals)) == ([], [(0, "missing", "v"), (1, "null", "v")])


@pytest.mark.parametrize("not_null", [True, False])
def test_what_is_no_object_is_refused(*, not_null: bool) -> None:
    values = (
        None,
        b"",
        b"{",
        b"[]",
        b"1",
        b'"v"',
        b"null",
        b'{"v":"\xff"}',
        b'{"v":"\\ud800"}',
        b'{"v":NaN}',
        b'\xef\xbb\xbf{"v":"x"}',
    )
    encoded, refusals = encode({"v": "text"}, *values, not_null=not_null)
    assert encoded == []
    assert [refusal.code for _, refusal in refusals] == [
        "no_value", "not_json", "not_json", *["not_object"] * 4, *["not_json"] * 4,
    ]  # fmt: skip
    assert [index for index, _ in refusals] == list(range(len(values)))


def test_refusals_have_the_index_of_their_record_and_good_ones_stay_in_order() -> None:
    values = [orjson.dumps({"v": n if n % 3 else "x", "j": 1.5}) for n in range(100)]
    values[50] = b'{"v":50,"j":0.12345678901234567890}'
    values[51] = b'{"v":1e400,"j":1}'
    values[52] = b'{"v":52,"j":1e400}'
    values[53] = b'{"v":53,"j":"\\u0000"}'
    encoded, refusals = encode({"v": "int4", "j": "jsonb"}, *values)
    refused = [n for n in range(100) if (n % 3 == 0 and n != 50) or n in {51, 53}]
    assert sorted(index for index, _ in refusals) == refused
    assert [row["v"] for row in encoded] == [struct.pack(">i", n) for n in range(100) if n not in refused]
    assert encoded[33]["j"] == b"\x010.12345678901234567890"


def test_rows_are_appended_to_those_that_are_there() -> None:
    encoder = build_encoder(columns({"v": "int2"}))
    encoded = [b"before"]
    assert codes(encoder.encode((), [b'{"v":1}', b'{"v":1.5}', b'{"v":2}'], encoded).refused) == [
        (1, "wrong_type", "v")
    ]
    assert encoded[0] == b"before"
    assert [fields(row) for row in encoded[1:]] == [[b"\0\1"], [b"\0\2"]]
    assert encoder.encode((), [], encoded).refused == []


def test_the_first_column_that_fails_is_named_and_the_value_is_shortened() -> None:
    _, refusals = encode({"a": "int4", "b": "int4"}, orjson.dumps({"a": 1, "b": "y" * 10_000}))
    assert codes(refusals) == [(0, "wrong_type", "b")]
    assert len(refusals[0][1].message) < 120


@pytest.mark.parametrize("size", [0, 4090, 4095, 4096, 4097, 1_000_000, 10_000_000])
def test_fields_of_any_length(size: int) -> None:
    text = "x" * size
    for not_null in (True, False):
        encoded, refusals = encode({"t": "text", "j": "jsonb"}, orjson.dumps({"t": text, "j": text}), not_null=not_null)
        assert refusals == []
        assert encoded == [{"t": text.encode(), "j": b'\x01"' + text.encode() + b'"'}]


@pytest.mark.parametrize("depth", [200, 300, 900, 2000, 300_000])
def test_deep_nesting_is_a_row_or_a_refusal(depth: int) -> None:
    nested = b"[" * depth + b"]" * depth
    for extra in (b"", b',"n":0.12345678901234567890', b',"n":1e400'):
        encoded, refusals = encode({"j": "jsonb"}, b'{"j":%b%b}' % (nested, extra))
        if encoded:
            assert encoded == [{"j": b"\x01" + nested}]
        else:
            assert codes(refusals) == [(0, "too_deep", None)]


def test_column_names_are_data_and_never_code() -> None:
    names = ['"', "'", "\\", "a'] = 1 #", "{v}", "ü", "\n", "class", "o", "value", "pack", "{0}", "%s"]
    samples = (("int4", 1, b"\0\0\0\1"), ("text", "x", b"x"), ("numeric", 1.5, pack_numeric("1.5")))
    for type_name, value, expected in samples:
        for not_null in (True, False):
            encoded, refusals = encode(
                dict.fromkeys(names, type_name), orjson.dumps(dict.fromkeys(names, value)), not_null=not_null
            )
            assert (encoded, refusals) == ([dict.fromkeys(names, expected)], [])


def test_a_number_that_was_too_large_to_decode_changes_no_other_column() -> None:
    types = {"i": "int4", "f": "float8", "t": "text", "n": "numeric", "j": "jsonb"}
    good = {"i": b"1", "f": b"1.5", "t": b'"x"', "n": b"2", "j": b"3"}
    for name, code in (("i", "wrong_type"), ("f", "out_of_range"), ("t", "wrong_type")):
        value = b"{%b}" % b",".join(
            b'"%b":%b' % (key.encode(), b"1e400" if key == name else text) for key, text in good.items()
        )
        assert codes(encode(types, value)[1]) == [(0, code, name)]
    encoded, _ = encode(types, b'{"i":1,"f":1.5,"t":"x","n":1e400,"j":1e400,"unused":1e400}')
    assert encoded[0]["f"] == struct.pack(">d", 1.5)
    assert encoded[0]["n"] == struct.pack(">HhHHH", 1, 100, 0, 0, 1)
    assert encoded[0]["j"] == b"\x011e400"


@pytest.mark.parametrize(
    "type_name",
    ["bool", "text", "varchar", "uuid", "bytea", "date", "timestamp", "timestamptz", "time", "timetz", "interval",
     "inet", "cidr", "enum", "int4"],
)  # fmt: skip
def test_a_number_of_the_wrong_type_is_shown_as_it_was_written(type_name: str) -> None:
    for number in ("1e400", "-1E+999", "1.50", "0.12345678901234567890"):
        ((_, refusal),) = encode({"v": type_name}, b'{"v":%b}' % number.encode())[1]
        assert (refusal.code, refusal.message.partition(", got ")[2]) == ("wrong_type", number)


def test_both_python_encoders_make_the_same_row_of_any_record() -> None:
    types = {f"c_{name}": name for name in sorted(compiled.TYPES)}
    record = {
        "c_bool": True, "c_bytea": "AAEC", "c_date": "2026-11-22", "c_float4": 0.1, "c_float8": 12.5,
        "c_int2": 7, "c_int4": 7, "c_int8": 7, "c_json": {"a": [1.5, 'x"']}, "c_jsonb": {"a": [-1e-7, "x"]},
        "c_numeric": 12.5, "c_text": "x", "c_varchar": "x", "c_timestamp": "2026-11-22T23:44:05.123456",
        "c_timestamptz": "2026-11-22 23:44:05.12Z", "c_uuid": "cd613e30-d8f1-6adf-91b7-584a2265b1f5",
    }  # fmt: skip
    chance = random.Random(3)
    for not_null in (True, False):
        encoder = build_encoder(columns(types, not_null=not_null), compiled=False)
        for _ in range(3_000):
            value = bytearray(orjson.dumps(record))
            for _ in range(chance.randrange(3)):
                at = chance.randrange(len(value))
                value[at : at + chance.randrange(2)] = chance.choice(b'0123456789eE+-.,:"\\u{}[] \x00\xff').to_bytes()
            fast: list[bytes] = []
            careful: list[bytes] = []
            refused = encoder.encode((), [bytes(value)], fast).refused
            refused_too: list[tuple[int, Refusal]] = []
            _Call(encoder, (), 0).careful(bytes(value), 0, careful, refused_too)
            # A suspect record's jsonb is its own text, any other's is orjson's.
            if not suspects([bytes(value)], numbers=True):
                assert (fast, refused) == (careful, refused_too), value
