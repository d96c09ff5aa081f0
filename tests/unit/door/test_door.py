"""What passes the door becomes a row, what does not is named with its reason, and a record's key is a field of it."""

from __future__ import annotations

import json
import random

import pytest

from kbatchd.door.door import Door
from kbatchd.encode.rows import build_encoder
from kbatchd.model import Refusal
from kbatchd.postgres.table import Column
from tests.unit.encode.test_rows import REQUEST, REQUEST_TYPES, columns

ANYTHING = Door(None, None)


def test_refuses_what_the_workers_encoder_refuses() -> None:
    table = columns(REQUEST_TYPES)
    good = json.dumps(REQUEST).encode()
    values = [good, b"{}", good, json.dumps(REQUEST | {"id": 2**63}).encode(), b"no", b"[]", good]
    refusals = Door(table, None).check(values)
    assert refusals == build_encoder(table).encode((), values, []).refused
    assert [(index, why.code, why.column) for index, why in refusals] == [
        (1, "missing", "id"),
        (3, "out_of_range", "id"),
        (4, "not_json", None),
        (5, "not_object", None),
    ]


def test_nothing_is_nothing() -> None:
    door = Door(columns({"id": "int8"}), "id")
    assert door.check([]) == []
    assert door.keys([]) == ([], [])


def test_without_columns_any_object_passes() -> None:
    values = [b"{}", b'{"a":1e400}', b'{"a":123456789012345678901234567890}', b"[]", b"1", b'"a"', b"null", b"{", b""]
    codes = [(index, why.code, why.column) for index, why in ANYTHING.check(values)]
    assert codes == [
        *((index, "not_object", None) for index in (3, 4, 5, 6)),
        (7, "not_json", None),
        (8, "not_json", None),
    ]


@pytest.mark.parametrize("table", [None, columns({"a": "jsonb", "b": "int4"}, not_null=False)])
def test_what_passes_is_json(table: list[Column] | None) -> None:
    """The gateway leans on that: it cuts an array by guess, and the pieces' soundness is the proof."""
    door = Door(table, None)
    chance = random.Random(random.random())
    good = b'{"a":{"x":[{"y":"}, {"},{}]},"b":7,"c":"\xc3\xbc\\n"}'
    passed = 0
    for _ in range(5_000):
        value = bytearray(good)
        at = chance.randrange(len(value))
        value[at : at + chance.randrange(3)] = chance.choice(
            [b"", b",", b"}", b"{", b"]", b'"', b"\\", b"\xff", b" ", b"0"]
        )
        if not door.check([bytes(value)]):
            assert isinstance(json.loads(value.decode()), dict)
            passed += 1
    assert passed > 100


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (b'{"id":"a"}', b"a"),
        (b'{"id":"\\u00fc\xe2\x82\xac"}', "ü€".encode()),
        (b'{"id":""}', b""),
        (b'{"id":7}', b"7"),
        (b'{"id":-7}', b"-7"),
        (b'{"id":18446744073709551615}', b"18446744073709551615"),
        (b'{"id":123456789012345678901234567890}', b"123456789012345678901234567890"),
        (b'{"id":7,"x":1e400}', b"7"),
        (b'{"id":1,"id":2}', b"2"),
        (b'{"x":{"id":1},"id":2}', b"2"),
        (b'{"x":{"id":1}}', None),
        (b'{"id":null}', None),
        (b"{}", None),
    ],
)
def test_key_is_the_fields_text(value: bytes, key: bytes | None) -> None:
    door = Door(None, "id")
    assert door.check([value]) == []
    assert door.keys([value]) == ([key], [])


@pytest.mark.parametrize("literal", [b"true", b"1.5", b"1.0", b"1e3", b"1e400", b"[]", b"{}"])
def test_what_has_no_one_text_is_no_key(literal: bytes) -> None:
    keys, refusals = Door(None, "id").keys([b"{}", b'{"id":' + literal + b"}"])
    assert keys == [None, None]
    assert refusals == [(1, Refusal("wrong_type", "id", "the record's key must be a string or an integer"))]


def test_without_a_key_field_there_are_no_keys() -> None:
    assert ANYTHING.keys([b'{"id":1}', b"{}"]) == ([None, None], [])
