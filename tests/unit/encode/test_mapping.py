"""What of a record goes into which column; and that the encoders agree about it."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from kbatchd.config import RouteMapping
from kbatchd.config.mapping import ColumnMapping
from kbatchd.encode.compiled import COMPILED
from kbatchd.encode.mapping import Deletes, row_columns
from kbatchd.encode.rows import RowEncoder, _Call, build_encoder
from kbatchd.errors import ConfigError
from kbatchd.model import DELETED, Encoded
from kbatchd.paths import parse_path, show_path
from kbatchd.postgres.table import Column, Table
from tests.unit.encode.test_rows import codes, fields

MILLISECONDS = 1_763_855_045_123
#: The same in microseconds from 2000.
MOMENT = struct.pack(">q", MILLISECONDS * 1000 - 946_684_800_000_000)


class Sent:
    """A record with all that a consumer gives."""

    def __init__(
        self, value: object, key: bytes | None = b"k", headers: Sequence[tuple[str, bytes | None]] | None = None
    ) -> None:
        self._value = value if value is None or isinstance(value, bytes) else orjson.dumps(value)
        self._key, self._headers = key, headers

    def value(self) -> bytes | None:
        return self._value

    def key(self) -> bytes | None:
        return self._key

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        return self._headers

    def topic(self) -> str:
        return "orders"

    def partition(self) -> int:
        return 3

    def offset(self) -> int:
        return 77

    def leader_epoch(self) -> int | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return (1, MILLISECONDS)


def column(name: str, type_name: str, *, not_null: bool = False, **more: Any) -> Column:
    return Column(name, sum(map(ord, name)), type_name, -1, not_null, **more)


def mapping(columns: dict[str, Any] | None = None, **keys: Any) -> RouteMapping:
    return RouteMapping.model_validate({"columns": columns or {}, **keys})


def encode(encoder: RowEncoder, *records: Sent) -> tuple[list[dict[str, bytes | None]], Encoded]:
    rows: list[bytes] = []
    encoded = encoder.encode(records, [record.value() for record in records], rows)
    layouts = encoded.layouts or [0] * len(rows)
    return [
        dict(zip(encoder.layouts[layout], fields(row), strict=True)) for row, layout in zip(rows, layouts, strict=True)
    ], encoded


def one(type_name: str, said: object, record: Sent, *, not_null: bool = False, **keys: Any) -> object:
    """Encode one record into one column; return the field, or the code of the refusal."""
    made = build_encoder([column("v", type_name, not_null=not_null)], mapping({"v": said}, **keys))
    rows, encoded = encode(made, record)
    return encoded.refused[0][1].code if encoded.refused else rows[0].get("v", "its default")


@pytest.mark.parametrize("path", ["city", "address.city", "items[0].sku", '"a.b"[2]', "a[1][2]", 'a."\\"".b'])
def test_paths_are_read_and_written(path: str) -> None:
    assert show_path(parse_path(path)) == path


@pytest.mark.parametrize("path", ["", ".", "a.", "a..b", ".a", "[0]", "a[", "a[x]", "a[-1]", "a.[0]", 'a"b"', "a]"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        parse_path(path)


@pytest.mark.parametrize(
    ("said", "value", "found"),
    [
        ("address.city", {"address": {"city": "X"}}, b"X"),
        ("address.city", {"address": {"city": None}}, None),
        ("address.city", {"address": None}, None),
        ("address.city", {}, None),
        ("address.city", {"address": "X"}, "wrong_type"),
        ("items[1].sku", {"items": [{}, {"sku": "s"}]}, b"s"),
        ("items[1].sku", {"items": [{}]}, None),
        ("items[0]", {"items": "text"}, "wrong_type"),
        ({"field": "a", "default": "d"}, {}, b"d"),
        ({"field": "a", "default": "d"}, {"a": None}, None),
        ({"field": "a.b", "default": "d"}, {"a": {"b": None}}, None),
        ({"field": "a.b", "default": "d"}, {"a": None}, b"d"),
        ({"constant": "c"}, {"v": "x"}, b"c"),
        ({"on_missing": "reject"}, {}, "missing"),
        ({"on_missing": "reject"}, {"v": None}, None),
        ({"on_null_byte": "strip"}, {"v": "a\0b\\u0000"}, b"ab\\u0000"),
        ({}, {"v": "a\0"}, "null_byte"),
        ({"source": "topic"}, {}, b"orders"),
        ({"source": "offset"}, {}, b"77"),
        ({"source": "key"}, {}, b"k"),
        ({"source": "header:h"}, {}, None),
        ({"source": "value"}, {"a": 1}, b'{"a":1}'),
        ({"source": "value", "field": "a.b"}, {"a": {"b": "x"}}, b"x"),
    ],
)
def test_a_text_column(said: object, value: object, found: object) -> None:
    assert one("text", said, Sent(value)) == found


@pytest.mark.parametrize(
    ("unit", "value", "found"),
    [
        ("ms", MILLISECONDS, MOMENT),
        ("us", MILLISECONDS * 1000, MOMENT),
        ("ns", MILLISECONDS * 1_000_000 + 500, MOMENT),
        ("s", MILLISECONDS // 1000, struct.pack(">q", MILLISECONDS // 1000 * 1_000_000 - 946_684_800_000_000)),
        ("s", 1763855045.123, MOMENT),
        ("ms", str(MILLISECONDS), MOMENT),
        ("ms", "soon", "not_a_number"),
        ("ms", True, "wrong_type"),
        ("s", 10**30, "out_of_range"),
        ("s", 9_224_318_016_000, "out_of_range"),
    ],
)
def test_a_time_that_is_a_number(unit: str, value: object, found: object) -> None:
    sent = Sent(json.dumps({"v": value}).encode())
    assert one("timestamptz", {"field": "v", "unit": unit}, sent) == found
    assert one("timestamptz", {"field": "v", "unit": unit}, sent, not_null=True) == found


def test_what_the_record_has_beside_its_value() -> None:
    headers = [("a", b"1"), ("a", b"2"), ("b", None), ("c", b"\xff"), ("j", b'{"n":12345678901234567890123}')]
    sent = Sent(None, key=b'{"id":12345678901234567890}', headers=headers)
    assert one("jsonb", {"source": "headers"}, sent, format="raw") == (
        b'\x01{"a":["1","2"],"b":null,"c":{"base64":"/w=="},"j":"{\\"n\\":12345678901234567890123}"}'
    )
    assert one("int8", {"source": "header:a"}, sent, format="raw") == struct.pack(">q", 2)
    assert one("text", {"source": "header:b"}, sent, format="raw") is None
    assert one("text", {"source": "header:c"}, sent, format="raw") == "not_utf8"
    assert one("bytea", {"source": "header:c"}, sent, format="raw") == b"\xff"
    assert one("jsonb", {"source": "header:j"}, sent, format="raw") == b'\x01{"n":12345678901234567890123}'
    assert one("text", {"source": "key"}, sent, format="raw") == b'{"id":12345678901234567890}'
    assert one("int8", {"source": "key", "field": "id"}, sent, format="raw") == "out_of_range"
    assert one("timestamptz", {"source": "timestamp"}, sent, format="raw") == MOMENT
    assert one("text", {"source": "value"}, sent, format="raw") is None


@pytest.mark.parametrize(
    ("type_name", "value", "found"),
    [
        ("text", b"any \xc3\xbc", "any ü".encode()),
        ("text", b"\xff", "not_utf8"),
        ("text", b"\0", "null_byte"),
        ("bytea", b"\xff\0", b"\xff\0"),
        ("jsonb", b"[1e400]", b"\x01[1e400]"),
        ("jsonb", b"no", "not_json"),
        ("int4", b"12", struct.pack(">i", 12)),
    ],
)
def test_raw(type_name: str, value: bytes, found: object) -> None:
    encoder = build_encoder([column("v", type_name)], mapping(format="raw"))
    rows, encoded = encode(encoder, Sent(value))
    assert (encoded.refused[0][1].code if encoded.refused else rows[0]["v"]) == found


def test_json_in_a_string() -> None:
    inner = '{"n": 12345678901234567890123, "t": "\\u00fc"}'
    assert one("jsonb", {"json_text": True}, Sent({"v": inner})) == b"\x01" + inner.encode()
    assert one("numeric", {"json_text": True}, Sent({"v": "1.50"})) == one("numeric", {}, Sent(b'{"v":1.50}'))
    assert one("jsonb", {"json_text": True}, Sent({"v": "no"})) == "not_json"
    assert one("jsonb", {"json_text": True}, Sent({"v": {}})) == "wrong_type"


@pytest.mark.parametrize(
    ("said", "value", "message"),
    [
        ({"json_text": True}, b'{"v":1e400}', "expected a string with JSON in it, got 1e400"),
        ({"field": "v.x"}, b'{"v":1e400}', "expected an object at v, got 1e400"),
        ({"field": "v[1].x"}, b'{"v":[0,1e400]}', "expected an object at v[1], got 1e400"),
        ({}, b"1e400", "expected an object, got 1e400"),
    ],
)
def test_a_number_beyond_a_double_is_shown_as_it_was_written(said: object, value: bytes, message: str) -> None:
    _, encoded = encode(build_encoder([column("v", "jsonb")], mapping({"v": said})), Sent(value))
    assert message in encoded.refused[0][1].message


def test_an_envelope() -> None:
    columns = [column("id", "int8", not_null=True), column("op", "text")]
    said = mapping({"op": {"source": "value", "field": "op"}}, value_field="payload.after")
    values = [
        {"op": "c", "payload": {"after": {"id": 1}}},
        {"op": "u", "payload": {"after": '{"id":2}'}},
        {"op": "d", "payload": {"after": None}},
        {"op": "d"},
    ]
    rows, encoded = encode(build_encoder(columns, said), *map(Sent, values))
    assert [(row["id"], row["op"]) for row in rows] == [(struct.pack(">q", n), op) for n, op in ((1, b"c"), (2, b"u"))]
    assert codes(encoded.refused) == [(2, "not_object", None), (3, "not_object", None)]


def test_fields_that_no_column_takes() -> None:
    columns = [column("a", "int4"), column("city", "text"), column("rest", "jsonb")]
    sent = Sent(b'{"a":1,"x":1.50,"address":{"city":"c","zip":1}}')
    rows, _ = encode(build_encoder(columns, mapping({"city": "address.city"}, unknown_fields="rest")), sent)
    assert rows[0]["rest"] == b'\x01{"x":1.50,"address":{"city":"c","zip":1}}'
    encoder = build_encoder(columns[:2], mapping({"city": "address.city"}, unknown_fields="reject"))
    rows, encoded = encode(encoder, sent, Sent({"a": 1, "address": {}}), Sent({}))
    assert (len(rows), codes(encoded.refused)) == (2, [(0, "unknown_field", None)])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("other", ["int4", "int4range"])
def test_without_an_envelope_a_field_of_the_value_is_the_record_s(other: str) -> None:
    """Of each encoder: a column of int4range makes the route one of text."""
    columns = [column("a", "text"), column("b", other), column("rest", "jsonb")]
    said = {"a": {"source": "value", "field": "x"}, "b": {"source": "value", "field": "in.b"}}
    sent = [Sent(b'{"x":"1","in":{"b":7},"more":0}'), Sent(b'{"x":"2","in":{"b":8}}'), Sent(b'{"a":"3"}')]
    encoder = build_encoder(columns[:2], mapping(said, unknown_fields="reject"))
    own_way = build_encoder(columns[:2], mapping({"a": "x", "b": "in.b"}, unknown_fields="reject"))
    made: list[list[bytes]] = [[], [], []]
    values = [each.value() for each in sent]
    encoded = encoder.encode(sent, values, made[0])
    assert codes(encoded.refused) == [(0, "unknown_field", None), (2, "unknown_field", None)]
    assert encoded == own_way.encode(sent, values, made[1])
    careful = _Call(encoder, sent, 0)
    careful.careful(sent[1].value(), 1, made[2], careful.refused)
    assert made[0] == made[1] == made[2] != []
    # What such a column takes, the one that collects the rest does not.
    rows = b"".join(_rows(build_encoder(columns, mapping(said, unknown_fields="rest")), sent[0]))
    assert (b'"more":0' in rows, b'"x":"1"' in rows) == (True, False)


def _rows(encoder: RowEncoder, *sent: Sent) -> list[bytes]:
    rows: list[bytes] = []
    assert encoder.encode(sent, [each.value() for each in sent], rows).refused == []
    return rows


def test_columns_that_take_their_default() -> None:
    columns = [column("id", "int8", not_null=True), column("a", "int4", has_default=True), column("b", "text")]
    encoder = build_encoder(columns, mapping({"a": {"on_missing": "default"}, "b": {"on_missing": "default"}}))
    values = [
        {"id": 1, "a": 1, "b": "x"},
        {"id": 2},
        {"id": 3, "b": "y"},
        {"id": 4, "a": None, "b": None},
        {"id": 5},
        {},
    ]
    rows, encoded = encode(encoder, *map(Sent, values))
    assert encoded.layouts == [0, 1, 2, 0, 1]
    assert encoder.layouts == [("id", "a", "b"), ("id",), ("id", "b")]
    assert [sorted(row) for row in rows] == [["a", "b", "id"], ["id"], ["b", "id"], ["a", "b", "id"], ["id"]]
    assert codes(encoded.refused) == [(5, "missing", "id")]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("source", ["key", "timestamp"])
def test_what_a_record_lacks_beside_its_value_is_missing(source: str) -> None:
    class Bare(Sent):
        def key(self) -> None:
            return None

        def timestamp(self) -> tuple[int, int]:
            return (0, -1)

    columns = [column("id", "int4"), column("v", "text")]
    given = {"default": "none"}, {"on_missing": "null"}, {"on_missing": "default"}, {"on_missing": "reject"}
    encoders = [build_encoder(columns, mapping({"v": {"source": source, **more}})) for more in given]
    (default, _), (null, _), (without, _), (none, refused) = (encode(each, Bare({"id": 1})) for each in encoders)
    assert ([row["v"] for row in default], [row["v"] for row in null]) == ([b"none"], [None])
    assert ([list(row) for row in without], none) == ([["id"]], [])
    assert codes(refused.refused) == [(0, "missing", "v")]


needs_compiler = pytest.mark.skipif(not COMPILED, reason="there is no compiled encoder")

#: As a message may have it.
OWN = b'{"b" : 1.50, "a": "\\u00e9", "b" : 2.50}'


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ({}, b'{ "v" : %b }' % OWN),
        ({}, b'{ "more": "v", "v" : %b }' % OWN),
        ({}, b'{ "more": {"v": 1}, "\\u0076" : %b }' % OWN),
        ({}, b'{ "more": "\\"v", "v" : %b }' % OWN),
        ({"field": "v"}, b'{ "v" : %b, "more": 0.1234567890123456789 }' % OWN),
        ({"field": "v"}, b'{ "v" : %b, "more": "\\u0000" }' % OWN),
        ({"field": "in.v"}, b'{ "in" : { "v" : %b } }' % OWN),
        ({"field": "in.v"}, b'{ "in" : { "v" : %b }, "v": 1 }' % OWN),
        ({"field": "in[1].v"}, b'{ "in" : [ 1, { "v" : %b } ] }' % OWN),
        ({"field": "in[1]"}, b'{ "in" : [ 1, %b ] }' % OWN),
        ({"source": "value", "field": "v"}, b'{ "v" : %b }' % OWN),
        ({"source": "value"}, OWN),
        ({"source": "key"}, b"{}"),
        ({"source": "header:h"}, b"{}"),
        ({"json_text": True}, orjson.dumps({"v": OWN.decode()})),
        ({"default": {"a": 1}}, b'{ "v" : %b }' % OWN),
    ],
)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_json_is_the_messages_own_text(said: dict[str, object], value: bytes, compiled: bool) -> None:
    encoder = build_encoder([column("v", "json")], mapping({"v": said} if said else {}), compiled=compiled)
    [row], _ = encode(encoder, Sent(value, OWN, [("h", OWN)]))
    assert row["v"] == OWN


def test_json_in_an_envelope_and_in_an_array_is_the_messages_own_text() -> None:
    columns = [column("v", "json"), column("a", "array", element=column("a", "json"), dimensions=1)]
    rows, _ = encode(
        build_encoder(columns, mapping(value_field="in")),
        Sent(b'{"in": {"v" : %b, "a" : [%b]}}' % (OWN, OWN)),
        Sent(b'{"v": 1, "in": {"v" : %b, "a" : []}, "a": []}' % OWN),
    )
    assert [row["v"] for row in rows] == [OWN, OWN]
    assert (rows[0]["a"] or b"").endswith(OWN)


@pytest.mark.parametrize("compiled", [False, True])
def test_rows_that_delete(compiled: bool) -> None:
    columns = [column("id", "int8", not_null=True), column("v", "text", not_null=True)]
    said = mapping({"id": {"source": "key"}})
    encoder = build_encoder(columns, said, deletes=Deletes(("id",), ("op",), "d"), compiled=compiled)
    sent = [
        Sent({"v": "x"}, b"1"),
        Sent(None, b"2"),
        Sent({"op": "d"}, b"3"),
        Sent(None, None),
        Sent({"op": "e"}, b"5"),
    ]
    rows, encoded = encode(encoder, *sent)
    assert encoder.columns == ("id", "v", DELETED)
    assert [tuple(row[name] for name in encoder.columns) for row in rows] == [
        (struct.pack(">q", 1), b"x", b"\0"),
        (struct.pack(">q", 2), None, b"\1"),
        (struct.pack(">q", 3), None, b"\1"),
    ]
    assert codes(encoded.refused) == [(3, "missing", "id"), (4, "missing", "v")]


def test_rows_of_the_compiled_encoder_say_that_they_do_not_delete() -> None:
    columns = [column("id", "int8", not_null=True), column("v", "text")]
    rows, encoded = encode(build_encoder(columns, deletes=Deletes(("id",))), Sent({"id": 1, "v": "x"}), Sent(None))
    assert rows == [{"id": struct.pack(">q", 1), "v": b"x", DELETED: b"\0"}]
    assert codes(encoded.refused) == [(1, "no_value", "id")]


@pytest.mark.parametrize(
    ("columns", "keys", "words"),
    [
        ({"a": {"unit": "ms"}}, {}, ["column a is of type int4", "`unit`"]),
        ({"a": {"source": "headers"}}, {}, ["json or jsonb"]),
        ({"a": {"constant": "x"}}, {}, ["column a does not take its constant"]),
        ({"a": {"default": 1.5}}, {}, ["column a does not take its default"]),
        ({"nothing": "x"}, {}, ["names column nothing, which is not there"]),
        ({"g": "x"}, {}, ["column g is generated"]),
        ({}, {"unknown_fields": "a"}, ["json or jsonb"]),
        ({}, {"format": "raw"}, ["several columns"]),
        ({"a": {"field": "x"}}, {"format": "raw"}, ["no field for column a"]),
    ],
)
def test_faults(columns: dict[str, Any], keys: dict[str, Any], words: list[str]) -> None:
    table = Table(1, "public", "t", (column("a", "int4"), column("b", "text"), column("g", "int4", generated=True)), "")
    said = mapping(columns, **keys)
    with pytest.raises(ConfigError) as caught:
        build_encoder(row_columns(table, said), said)
    assert any(all(word in fault for word in words) for fault in caught.value.faults), caught.value.faults


def test_all_faults_are_told_at_once() -> None:
    table = Table(1, "public", "t", (column("a", "int4"), column("b", "text")), "")
    with pytest.raises(ConfigError) as caught:
        row_columns(table, mapping({"nothing": "x", "a": {"unit": "ms"}, "b": {"source": "headers"}}))
    assert len(caught.value.faults) == 3


def test_an_identity_column_may_be_mapped() -> None:
    table = Table(1, "public", "t", (column("id", "int8", not_null=True, identity=True), column("b", "text")), "")
    assert [each.name for each in row_columns(table, mapping())] == ["b"]
    assert [each.name for each in row_columns(table, mapping({"id": "n"}))] == ["id", "b"]


def test_the_fast_encoder_and_the_careful_one_agree_about_mappings() -> None:
    columns = [
        column("id", "int8", not_null=True), column("city", "text"), column("sku", "varchar"), column("at",
        "timestamptz"),
        column("day", "date", not_null=True), column("k", "uuid"), column("o", "int4", not_null=True), column("c",
        "text"),
        column("op", "text"), column("n", "numeric"), column("f", "float8"), column("all", "jsonb"),
        column("x", "numeric"), column("y", "float8"),
    ]  # fmt: skip
    said = mapping(
        {
            "city": {"field": "address.city", "default": "unknown"}, "sku": "items[0].sku", "at": {"field": "ts",
            "unit": "ms"},
            "day": {"source": "timestamp"}, "k": {"source": "key"}, "o": {"source": "offset"}, "c": {"constant": "x"},
            "op": {"source": "value", "field": "op"}, "f": {"field": "f", "default": 7}, "n": "m.n",
            "all": {"source": "value"},
        },
        value_field="after", unknown_fields="reject",
    )  # fmt: skip
    encoder = build_encoder(columns, said)
    assert encoder.source is not None
    chance = random.Random(7)
    key = b"cd613e30-d8f1-6adf-91b7-584a2265b1f5"
    literals = [
        "1",
        "-0",
        "null",
        '"x"',
        "{}",
        "[]",
        "1.5",
        '{"city":"c"}',
        '[{"sku":"s"}]',
        '{"n":12.50}',
        "1763855045123",
    ]
    for _ in range(1500):
        inner = {"id": "7", "address": '{"city":"c"}', "items": '[{"sku":"s"}]', "ts": "1763855045123",
                 "m": '{"n":1}', "x": "2.50", "y": "0"}  # fmt: skip
        for name in chance.sample(sorted([*inner, "f", "more"]), chance.choice((0, 0, 1, 2))):
            if chance.randrange(2):
                inner.pop(name, None)
            else:
                inner[name] = chance.choice(literals)
        body = "{" + ",".join(f'"{name}":{text}' for name, text in inner.items()) + "}"
        # Names of the object's own fields, outside of it as well.
        more = chance.choice(["", '"x":7.25,', '"y":7.25,', '"n":{"x":7,"y":"n"},'])
        outer = chance.choice(
            [f'{{{more}"op":"c","after":{body}}}'] * 8 + [f'{{{more}"after":{json.dumps(body)}}}', body, "[]"]
        )
        sent = Sent(outer.encode(), chance.choice([key, key, key, None, b"x"]))
        fast: list[bytes] = []
        refused = encoder.encode([sent], [sent.value()], fast).refused
        careful: list[bytes] = []
        call = _Call(encoder, [sent], 0)
        call.careful(sent.value(), 0, careful, call.refused)
        assert (fast, refused) == (careful, call.refused), outer


def test_a_string_alone_is_the_field() -> None:
    assert ColumnMapping.model_validate("a.b") == ColumnMapping(field="a.b")


@pytest.mark.parametrize("type_name", ["numeric", "float8", "float4"])
def test_a_number_in_an_envelope_is_not_one_of_its_name_outside(type_name: str) -> None:
    made = build_encoder([column("v", type_name)], mapping(value_field="in"))
    lone = [Sent(b'{"in":{"v":2.50}}'), Sent(b'{"in":{"v":-0}}')]
    both = [Sent(b'{"v":7.25,"in":{"v":2.50}}'), Sent(b'{"in":{"v":-0},"v":7.25}')]
    assert encode(made, *both) == encode(made, *lone)
