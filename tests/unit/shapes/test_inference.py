"""The types that are made of samples, and the SQL that is made of the types."""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence

import orjson
import pytest
import tomli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbatchd.config import RouteMapping
from kbatchd.encode.rows import build_encoder
from kbatchd.paths import parse_path, show_path
from kbatchd.postgres.table import Column
from kbatchd.shapes.column_names import quoted
from kbatchd.shapes.inference import infer
from kbatchd.shapes.table_text import commented, create_table, route, table_of_topic


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
    assert "4 of the records are not JSON objects" in create_table(inferred, "t")


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ("plain_1 _id x2 é größe", "plain_1 _id x2 é größe"),
        ("orderDate HTTPStatus userIDs APIKey aB2C", "order_date http_status user_ids api_key a_b2_c"),
        ("event.type a-b @timestamp $ref Größe", "event_type a_b timestamp ref größe"),
        ("order user ctid 1st", "order_ user_ ctid_ _1st"),
        ("userId userid user_id USER_ID", "user_id_2 userid user_id user_id_3"),
        ("@ $", "field field_2"),
        (f"{'x' * 64} {'x' * 65} {'é' * 32}", f"{'x' * 63} {'x' * 61}_2 {'é' * 31}"),
    ],
)
def test_names(fields: str, names: str) -> None:
    inferred = infer([orjson.dumps(dict.fromkeys(fields.split(), True))])
    assert [column.name for column in inferred.columns] == names.split()
    # And: the mapping names the field of each that has another name.
    mapping = tomli.loads(route("t", "t", inferred.columns))["route"][0].get("columns", {})
    assert mapping == {
        name: show_path((field,))
        for field, name in zip(fields.split(), names.split(), strict=True)
        if field != name
    }  # fmt: skip


def test_any_name_survives_toml() -> None:
    names = ["", "a\nb", 'q"\\', "\x7f\u2028", "\0", "a b", "[0]", "ß"]
    columns = infer([orjson.dumps(dict.fromkeys(names, 1))]).columns
    for text in route("t", "t", columns), re.sub("(?m)^-- ?", "", commented(route("t", "t", columns))):
        mapping = tomli.loads(text)["route"][0]["columns"]
        assert {parse_path(mapping.get(column.name, column.name)) for column in columns} == {(name,) for name in names}


def test_flat_topics_have_a_plain_table_and_no_mapping() -> None:
    record = {"id": 7, "path": "/", "at": "2026-01-31T08:00:00Z", "ms": 1.5, "size": 1_767_225_600, "tags": ["a"]}
    inferred = infer([orjson.dumps(record)] * 20)
    assert create_table(inferred, "public.t").startswith("""\
CREATE TABLE public.t (
    id integer NOT NULL,
    path text NOT NULL,
    at timestamptz NOT NULL,
    ms numeric NOT NULL,
    size bigint NOT NULL,
    tags jsonb NOT NULL
);
""")
    assert route("t", "public.t", inferred.columns) == '[[route]]\ntopic = "t"\ntable = "public.t"\n'


def paths(records: Sequence[object]) -> list[str]:
    """Infer the fields that have columns."""
    return [show_path(column.path) for column in infer([orjson.dumps({"it": record}) for record in records]).columns]


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([{"a": 1, "b": {"c": "x"}}] * 10, ["it.a", "it.b.c"]),
        ([{"a": 1, "b": {"c": "x"}}] * 9, ["it"]),  # too few to know
        ([{"a": 1}] * 10 + [None], ["it.a"]),
        ([{"a": None, "b": 2}] * 10 + [{"a": 1, "b": 2}], ["it.a", "it.b"]),
        ([{"a": None}] * 10 + [{"a": 1}], ["it.a"]),
        ([{"a": None}] * 10 + [{"a": 1}, None], ["it"]),  # NULL could be either
        ([{"a": 1}] * 10 + [{}], ["it"]),
        ([{"a": 1}] * 10 + [{"a": 1, "b": 2}], ["it"]),
        ([{"a": 1}] * 10 + [1], ["it"]),
        ([{}] * 10, ["it"]),
        ([{"a": [1]}] * 10, ["it"]),  # nothing to gain
        ([{"a": 1}, {"a": "x"}] * 5, ["it"]),
        ([{"a": {"b": {"c": 1}, "d": 1}}] * 10, ["it.a.b", "it.a.d"]),  # deep enough
        ([{f"a{n}": 1 for n in range(17)}] * 10, ["it"]),
    ],
)
def test_objects_that_look_the_same_have_columns_of_their_own(records: Sequence[object], expected: list[str]) -> None:
    assert paths(records) == expected


def test_what_is_in_an_object_may_be_missing_tomorrow_and_is_no_key() -> None:
    inferred = infer([orjson.dumps({"it": {"id": str(uuid.uuid4()), "n": n}}) for n in range(20)])
    assert [(column.name, column.type, column.not_null) for column in inferred.columns] == [
        ("it_id", "uuid", False),
        ("it_n", "bigint", False),
    ]
    assert inferred.key is None


def test_an_object_keeps_its_nanoseconds() -> None:
    time = "2026-01-31T08:00:00.123456789Z"
    inferred = infer([orjson.dumps({"at": time, "in": {"at": time}})] * 10)
    assert [column.type for column in inferred.columns] == ["timestamptz", "text"]


def test_a_table_that_would_be_too_wide_has_its_objects_whole() -> None:
    record = {f"a{n}": {"b": 1, "c": 2} for n in range(101)}
    assert len(infer([orjson.dumps(record)] * 10).columns) == 101


@pytest.mark.parametrize(
    ("name", "literals", "unit"),
    [
        ("ts", ["1767225600"], "s"),
        ("created_at", ["1767225600000", "null"], "ms"),
        ("eventTime", ["1767225600000000"], "us"),
        ("startDate", ["1767225600"], "s"),
        ("ts", ["1767225600000000000"], None),  # nanoseconds would be rounded
        ("ts", ["1767225600", "1767225600000"], None),
        ("ts", ["1767225600", "0"], None),
        ("ts", ["1767225600.5"], None),
        ("ts", ['"1767225600"'], None),
        ("ts", ["null"], None),
        ("timeout", ["30000"], None),
        ("size", ["1767225600"], None),
        ("rate", ["1767225600"], None),
        ("update_count", ["1767225600"], None),
    ],
)
def test_times_that_are_numbers(name: str, literals: list[str], unit: str | None) -> None:
    columns = infer([f'{{"{name}":{literal}}}'.encode() for literal in literals]).columns
    assert columns[0].unit == unit
    assert (columns[0].type == "timestamptz") == (unit is not None)
    assert (f'unit = "{unit}"' in route("t", "t", columns)) == (unit is not None)


def test_free_keys_make_no_table_of_any_width() -> None:
    inferred = infer([orjson.dumps({"id": n, **{f"k{n}_{m}": 1 for m in range(10)}}) for n in range(50)])
    assert len(inferred.columns) == 200
    assert inferred.columns[0].name == "id"
    assert len(inferred.left_out) == 301


NAMES = st.sampled_from(["id", "createdAt", "a.b", "order", "ID", "at"])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(1_767_225_600, 1_767_225_700),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["", "x\0", "2026-01-31", "2026-01-31T08:00:00Z", "6f9619ff-8b86-d011-b42d-00cf4fc964ff"]),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(NAMES, inner, max_size=3))
)
#: Values of one kind, as a topic has them: of an object each field has its own.
KINDS = st.recursive(
    st.sampled_from([st.integers(), st.booleans(), st.just("x"), st.just(1_767_225_600_000), SCALARS, VALUES]),
    lambda inner: st.dictionaries(NAMES, inner, min_size=1, max_size=3).flatmap(
        lambda fields: st.sampled_from([st.fixed_dictionaries(fields), st.none() | st.fixed_dictionaries(fields)])
    ),
)
SAMPLES = st.dictionaries(NAMES, KINDS, min_size=1, max_size=3).flatmap(
    lambda fields: st.lists(st.fixed_dictionaries(fields), min_size=10, max_size=20)
)
TYPE_NAMES = {
    "bigint": "int8", "integer": "int4", "double precision": "float8", "boolean": "bool",
}  # fmt: skip


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(SAMPLES)
def test_every_record_of_the_sample_is_taken(records: list[dict[str, object]]) -> None:
    values = [json.dumps(record).encode() for record in records]
    inferred = infer(values)
    columns = [
        Column(column.name, number, TYPE_NAMES.get(column.type, column.type), -1, column.not_null)
        for number, column in enumerate(inferred.columns, 1)
    ]
    said = tomli.loads(route("t", "t", inferred.columns))["route"][0].get("columns", {})
    encoder = build_encoder(columns, RouteMapping.model_validate({"columns": said}))
    assert encoder.encode((), values, []).refused == []


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
    assert route("order", 'public."order"', []) == '[[route]]\ntopic = "order"\ntable = "public.\\"order\\""\n'
