"""The types that are made of samples, and the SQL that is made of the types."""

from __future__ import annotations

import orjson
import pytest

from kbatchd.inference import infer
from kbatchd.table_text import create_table, quoted, route, table_of_topic


def type_of(*literals: str) -> str:
    """Infer one column from the texts of a field."""
    [column] = infer([f'{{"x":{literal}}}'.encode() for literal in literals]).columns
    return column.type + " not null" * column.not_null


@pytest.mark.parametrize(
    ("literals", "expected"),
    [
        (["true", "false"], "boolean not null"),
        (["1", "null"], "bigint"),
        (["1", "2", "1", "2", "1", "2", "1", "2"], "integer not null"),
        (["9000000", "9000000", "9000000", "9000000"], "bigint not null"),
        (["9223372036854775807", "-9223372036854775808"], "bigint not null"),
        (["9223372036854775808"], "numeric not null"),
        (["18446744073709551616"], "numeric not null"),
        (["12.30", "7"], "numeric not null"),
        (["0.123456789", "7"], "double precision not null"),
        (["1e-7"], "double precision not null"),
        (["0.12345678901234567890123"], "numeric not null"),
        (["1e400"], "numeric not null"),
        (["1e99999"], "json not null"),
        (["1", "0.5", "99999999999999999999"], "numeric not null"),
        (['"a"', '""'], "text not null"),
        (['"a\\u0000"'], "json not null"),
        (['"6F9619FF-8B86-D011-B42D-00CF4FC964FF"'], "uuid not null"),
        (['"6f9619ff8b86d011b42d00cf4fc964ff"'], "text not null"),  # 32 digits may be any hash
        (['"2026-02-28"'], "date not null"),
        (['"2026-02-30"'], "text not null"),
        (['"2026-02-28T01:02:03Z"', '"2026-02-28 01:02:03.5+02:00"'], "timestamptz not null"),
        (['"2026-02-28T01:02:03"'], "timestamp not null"),
        (['"2026-02-28T01:02:03"', '"2026-02-28T01:02:03Z"'], "text not null"),
        (['"2026-02-28T01:02:03Z"', '"soon"'], "text not null"),
        (['"2026-02-28T01:02:03+19:00"'], "text not null"),
        (['{"a":1}', "[]"], "jsonb not null"),
        (['{"a":"\\u0000"}'], "json not null"),
        (['{"a":"1e99999"}'], "jsonb not null"),
        (['{"a":1e99999}'], "json not null"),
        (["1", '"a"'], "jsonb not null"),
        (["true", "1"], "jsonb not null"),
        (["null", "null"], "jsonb"),
    ],
)
def test_types(literals: list[str], expected: str) -> None:
    assert type_of(*literals) == expected


def test_a_field_that_is_missing_may_be_null() -> None:
    columns = {column.name: column.not_null for column in infer([b'{"a":1,"b":1}', b'{"a":2}']).columns}
    assert columns == {"a": True, "b": False}


def test_what_is_no_object_is_counted_and_left_out() -> None:
    inferred = infer([b'{"a":1}', b"[]", b"{", None, b"\xff"])
    assert (inferred.records, inferred.refused) == (1, 4)
    assert "4 of the records are no JSON objects" in create_table(inferred, "t")


def test_names_that_no_column_can_have() -> None:
    inferred = infer([orjson.dumps({"": 1, "x" * 64: 1, "ctid": 1, "é" * 31: 1, "a\nb": 1})])
    assert [column.name for column in inferred.columns] == ["é" * 31, "a\nb"]
    assert len(inferred.left_out) == 3


def test_free_keys_make_no_table_of_any_width() -> None:
    inferred = infer([orjson.dumps({"id": n, **{f"k{n}_{m}": 1 for m in range(10)}}) for n in range(50)])
    assert len(inferred.columns) == 200
    assert inferred.columns[0].name == "id"
    assert len(inferred.left_out) == 301


@pytest.mark.parametrize(
    ("records", "line"),
    [
        ([{"id": "6f9619ff-8b86-d011-b42d-00cf4fc964ff"}, {"id": "7f9619ff-8b86-d011-b42d-00cf4fc964ff"}],
         "    id uuid PRIMARY KEY"),
        ([{"id": 1}, {"id": 2}],
         "-- All different in the sample, and perhaps a key:  ALTER TABLE t ADD PRIMARY KEY (id);"),
        ([{"id": 1}, {"id": 1}], "-- id comes more than once: for one row each, make it the PRIMARY KEY"),
    ],
)  # fmt: skip
def test_keys(records: list[dict[str, object]], line: str) -> None:
    text = create_table(infer([orjson.dumps(record) for record in records]), "t")
    assert any(found.startswith(line) for found in text.splitlines())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("plain_1", "plain_1"), ("Odd", '"Odd"'), ("user", '"user"'), ('a"b', '"a""b"'), ("1st", '"1st"'), ("é", '"é"')],
)
def test_quotes(name: str, expected: str) -> None:
    assert quoted(name) == expected


def test_a_topic_s_own_names() -> None:
    assert table_of_topic("Web.Clicks-v2") == "public.web_clicks_v2"
    assert table_of_topic("2026") == "public._2026"
    assert table_of_topic("order") == 'public."order"'
    assert route("order", 'public."order"') == '[[route]]\ntopic = "order"\ntable = "public.\\"order\\""\n'
