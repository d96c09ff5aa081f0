"""Which records are suspected, and what their fields' own text is."""

from __future__ import annotations

import json
import random
from decimal import Decimal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbatchd.encode.exact import Texts, field_slices, field_text, loads_huge, suspects

HARMLESS = [
    b'{"a":1,"b":12.5,"c":"x"}',
    b'{"a":123456789012345}',
    b'{"a":1234567890123456,"b":1234567890123456789,"c":-9223372036854775807}',
    b'{"a":0.30000000000000004,"b":[37.45401188473625]}',
    b'{"a":"12345678901234567890123"}',
    b'{"a":"4111 1111 1111 1111","b":"1.2.3.4.5.6.7.8.9.10"}',
    b'{"id":"cd613e30-d8fe-1234-91b7-584a2265b1f5","b":"00000000-000e-0000-000e-000000000000"}',
    b'{"a":"\\\\ \\u0001"}',
    b'{"a":1e5,"b":1e-99,"c":1.5E+99}',
]
SUSPECT = [
    b'{"a":18446744073709551616}',
    b'{"a":-9223372036854775809}',
    b'{"a":0.12345678901234567890}',
    b'{"a":100.50000000000000000}',
    b'{"a":1.2345e-320}',
    b'{"a":1E-400}',
    b'{"a":[1e-400 ]}',
    b'{"a":{"b":1e-0000000000000000400}}',
    b'{"a":1234567890123456e-310}',
    b'{"a":0.00000000000000000000001}',
    b'{"a":"\\u0000"}',
    b'{"a": \n12345678901234567890}',
]


@pytest.mark.parametrize("value", HARMLESS)
def test_harmless_records_are_not_suspected(value: bytes) -> None:
    assert suspects([value], numbers=True) == []


@pytest.mark.parametrize("value", SUSPECT)
def test_inexact_records_are_suspected_wherever_they_stand(value: bytes) -> None:
    values = [*HARMLESS, value, None, *HARMLESS, b"", value]
    assert suspects(values, numbers=True) == [len(HARMLESS), len(values) - 1]


def test_numbers_are_not_looked_at_when_no_column_needs_them() -> None:
    assert suspects([b'{"a":18446744073709551616}', b'{"a":"\\u0000"}'], numbers=False) == [1]


def test_records_are_found_in_every_piece_of_a_large_call() -> None:
    values = [b'{"a":1,"b":"%s"}' % (b"x" * 500)] * 5000
    for index in (0, 1, 2499, 2500, 4999):
        values[index] = b'{"a":1e-400,"b":"%s"}' % (b"x" * 500)
    assert suspects(values, numbers=True) == [0, 1, 2499, 2500, 4999]


def test_every_number_that_orjson_changes_is_suspected() -> None:
    chance = random.Random(1)
    for _ in range(20_000):
        literal = random_number(chance)
        value = b'{"a":%s}' % literal.encode()
        try:
            decoded = orjson.loads(value)["a"]
        except orjson.JSONDecodeError:
            continue
        if Decimal(repr(decoded)) != Decimal(literal):
            assert suspects([value], numbers=True) == [0], literal


def random_number(chance: random.Random) -> str:
    digits = "".join(chance.choices("0123456789", k=chance.choice([1, 5, 14, 15, 16, 17, 18, 19, 20, 21])))
    whole = digits[: chance.randrange(len(digits)) + 1].lstrip("0") or "0"
    fraction = digits[len(whole) :]
    exponent = chance.choice(
        ["", "", f"e{chance.randrange(-20, 20)}", f"E{chance.randrange(-360, -280)}", f"e+{chance.randrange(310)}"]
    )
    return chance.choice(["", "-"]) + whole + (f".{fraction}" if fraction else "") + exponent


@pytest.mark.parametrize(
    ("value", "slices"),
    [
        (b"{}", {}),
        (b" { } ", {}),
        (b'{"a":1}', {"a": b"1"}),
        (b'\n{ "a" : 1.50 , "b":[1, {"c":"}"}] }\t', {"a": b"1.50", "b": b'[1, {"c":"}"}]'}),
        (b'{"a":1,"a":2}', {"a": b"2"}),
        (b'{"\\u0061":"\\"","":null,"\xc3\xbc":"\xc3\xbc"}', {"a": b'"\\""', "": b"null", "\xfc": b'"\xc3\xbc"'}),
        (b'{"a":%b}' % (b"9" * 5000), {"a": b"9" * 5000}),
        (b'{"a":1e400}', {"a": b"1e400"}),
    ],
)
def test_slices_are_the_text_of_the_fields(value: bytes, slices: dict[str, bytes]) -> None:
    assert field_slices(value) == slices


@pytest.mark.parametrize(
    "value",
    [
        b"", b"[]", b"1", b"{", b'{"a"}', b'{"a":}', b'{"a":1,}', b'{"a":1}x', b'{"a":1 "b":2}', b"{a:1}", b'{"a":NaN}',
        b'{"a":-Infinity}', b'{"a":[Infinity]}', b'{"a":01}', b'{"a":"\x01"}', b'{"a":1}{}',
    ],
)  # fmt: skip
def test_what_is_no_object_has_no_slices(value: bytes) -> None:
    with pytest.raises(ValueError, match="column"):
        field_slices(value)


def test_deep_nesting_is_an_error_that_can_be_caught() -> None:
    with pytest.raises(RecursionError):
        field_slices(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}")


def test_a_large_record_has_slices() -> None:
    text = b'"' + b"x" * 10_000_000 + b'"'
    assert field_slices(b'{"a":%b,"b":1}' % text) == {"a": text, "b": b"1"}


@pytest.mark.parametrize(
    "number",
    [
        "1e400", "1E+0000400", "-1e99999999999999999999", "9" * 309, "9" * 299 + "e99", "9" * 310 + ".5",
        "9" * 700 + "e-5", "1" + "0" * 250 + "e60", "1." + "9" * 400 + "e400",
    ],
)  # fmt: skip
def test_a_number_too_large_stands_in_nobody_s_way(number: str) -> None:
    beside = "0." + "1" * 500
    value = f'{{"a":{number},"b":{beside},"c":[1e99,-0.5]}}'.encode()
    decoded = loads_huge(value)
    assert isinstance(decoded, dict)
    assert abs(decoded.pop("a")) == 1.5
    assert decoded == {"b": float(beside), "c": [1e99, -0.5]}
    assert field_slices(value)["b"].decode() == beside


def test_huge_numbers_are_the_only_thing_that_is_replaced() -> None:
    value = b'{"a":1e400,"b":"1e400 \\" 1e400","c":[-1.5E+999,1e5],"d":%b}' % (b"9" * 400)
    assert loads_huge(value) == {"a": 1.5, "b": '1e400 " 1e400', "c": [-1.5, 1e5], "d": 1.5}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b'{"a":1',
        b'{"a":01e400}',
        b'{"a":1e400',
        b'{"a":"\\ud800","b":1e400}',
        b'{"a":"\xff","b":1e400}',
        b'{"a":NaN,"b":1e400}',
        b'{"a":--1e400}',
        b'{"a":1e400.5}',
        b'{"a":1.7976E931348623157e308}',
        b'{"a":1e400e5}',
        b'{"a":1e400,"b":"',
    ],
)
def test_what_is_not_json_stays_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="column"):
        loads_huge(value)


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (b'{"p":12.30}', "12.30"),
        (b'{"a":1, "p" : 12.30 }', "12.30"),
        (b'{"a":{"p":1.0},"p":12.30}', "12.30"),
        (b'{"a":"p","p":12.30}', "12.30"),
        (b'{"p":1.0,"p":12.30}', "12.30"),
        (b'{"a":{"p":1.0},"\\u0070":12.30}', "12.30"),
        (b'{"a":"\\"p\\":1.0","p":12.30}', "12.30"),
    ],
)
def test_a_literal_is_that_of_the_top_level_field(value: bytes, literal: str) -> None:
    assert field_text(value, "p") == literal


#: Names that hide in one another, and in the escapes of strings.
NAMES = st.sampled_from(["p", '"p', 'p"', "\\p", "/", "é", "\u0001", 'p":"q', "q", "", "\\u0070"])
VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), NAMES),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(NAMES, inner, max_size=2),
)


@st.composite
def written(draw: st.DrawFn, x: object) -> str:
    """Write a value as JSON, each name and string with escapes or without, some with all characters escaped."""
    if isinstance(x, dict):
        fields = [f"{draw(written(name))} :{draw(written(value))}" for name, value in x.items()]
        return "{" + ", ".join(fields) + "}"
    if isinstance(x, list):
        return "[" + ",".join(draw(written(item)) for item in x) + "]"
    if isinstance(x, str) and draw(st.integers(0, 5)) == 0:
        return '"' + "".join(f"\\u{ord(character):04x}" for character in x) + '"'
    return json.dumps(x, ensure_ascii=draw(st.booleans()))


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, VALUES, min_size=1, max_size=3).flatmap(lambda x: st.tuples(st.just(x), written(x))))
def test_a_field_s_text_is_the_field_s(drawn: tuple[dict[str, object], str]) -> None:
    record, text = drawn
    value = text.encode()
    for name in record:
        assert field_text(value, name) == field_slices(value)[name].decode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b'{"in":{"p" : [1.50, "x"] }}', '[1.50, "x"]'),
        ('{"é":"\\u00e9\\n","in":{"p":"é"}}'.encode(), '"é"'),
        (b'{"p":1,"in":{"p":2}}', None),
        (b'{"a":"p","in":{"p":2}}', None),
        (b'{"\\u0070":1,"in":{"p":2}}', None),
    ],
)
def test_a_lone_field_is_found_at_any_depth(value: bytes, text: str | None) -> None:
    if text is None:
        with pytest.raises(LookupError):
            Texts(value).lone("p")
    else:
        assert Texts(value).lone("p") == text
