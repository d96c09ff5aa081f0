"""Made-up records: whatever the mapping reads, each of them is a row."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kbatchd.config import RouteMapping
from kbatchd.encode.mapping import Source, resolve_feeds
from kbatchd.encode.rows import build_encoder
from kbatchd.paths import show_path
from kbatchd.postgres.table import Column
from kbatchd.shapes import samples
from tests.unit.encode.test_mapping import Sent, column, encode, mapping

TYPES = [*sorted(name for name in samples._TEMPLATES if name != "array"), "text", "varchar", "bpchar", "numeric"]
TIMES = ("date", "timestamp", "timestamptz")

# A way ends in a name that no other has, so that no field is also within another one.
NAMES = st.sampled_from(["a", "b c", 'd."e"', "%s", "é", "{f}"])
WAYS = st.lists(st.one_of(NAMES, st.integers(0, 2)), max_size=3)


@st.composite
def mapped(draw: st.DrawFn) -> tuple[list[Column], RouteMapping]:
    """Draw a table, and a mapping that feeds each of its columns in some way."""
    columns: list[Column] = []
    said: dict[str, dict[str, Any]] = {}
    for number, type_name in enumerate(draw(st.lists(st.sampled_from(TYPES), min_size=1, max_size=6))):
        name = f"c{number}"
        columns.append(Column(name, number + 1, type_name, -1, draw(st.booleans())))
        path = (f"object{number % 2}", *draw(WAYS), f"leaf{number}") if draw(st.booleans()) else (f"leaf{number}",)
        said[name] = {"field": show_path(path)}
        if draw(st.integers(0, 4)) == 0:
            said[name]["source"] = draw(st.sampled_from(["value", "key", "header:a", "header:b"]))
        if type_name in TIMES and draw(st.booleans()):
            said[name]["unit"] = draw(st.sampled_from(["s", "ms", "us", "ns"]))
        if draw(st.integers(0, 4)) == 0:
            said[name]["json_text"] = True
        if draw(st.integers(0, 4)) == 0:
            said[name]["on_missing"] = draw(st.sampled_from(["null", "default", "reject"]))
    envelope = {"value_field": "envelope.of[1].it"}
    return columns, mapping(said, **draw(st.sampled_from([{}, envelope, {**envelope, "unknown_fields": "reject"}])))


def rows(columns: list[Column], how: RouteMapping, count: int, seed: int = 3) -> list[dict[str, bytes | None]]:
    """Make records up, and encode them; all must be rows."""
    feeds = resolve_feeds(columns, how)
    values = list(samples.values(feeds, how, count, seed))
    labels = samples.labels(feeds, seed)
    sent = [Sent(value) for value in values]
    if labels is not None:
        sent = [Sent(value, *label) for value, label in zip(values, labels, strict=False)]
    found, encoded = encode(build_encoder(columns, how), *sent)
    assert encoded.refused == []
    assert len(found) == len(values) == count
    return found


@settings(max_examples=100, deadline=None)
@given(mapped())
def test_what_is_made_up_is_a_row_under_any_mapping(drawn: tuple[list[Column], RouteMapping]) -> None:
    columns, how = drawn
    if clashes(columns, how):
        return
    found = rows(columns, how, 200)
    # A column has values, and one that may be NULL has nulls as well, unless it must be there.
    for each in columns:
        fields = [row.get(each.name) for row in found]
        assert any(field is not None for field in fields)
        assert not (each.not_null and None in fields)


def clashes(columns: list[Column], how: RouteMapping) -> bool:
    """Whether the same place must be an object for one column, and an array for another."""
    kinds: dict[tuple[object, ...], set[type]] = {}
    for feed in resolve_feeds(columns, how):
        start = (feed.source is Source.KEY, feed.header)
        for depth, step in enumerate(feed.path):
            kinds.setdefault((*start, *feed.path[:depth]), set()).add(type(step))
    return any(len(found) > 1 for found in kinds.values())


@pytest.mark.parametrize(
    ("said", "types", "value"),
    [
        ({"city": "address.city"}, {"city": "bool", "address": "jsonb"}, {"address": {"city": True}}),
        ({"sku": "items[1].sku"}, {"sku": "int8"}, {"items": [None, {"sku": 1}]}),
        ({"a": "x", "b": "x"}, {"a": "jsonb", "b": "int2"}, {"x": 1}),
        ({"a": "x", "b": {"field": "x", "json_text": True}}, {"a": "text", "b": "int8"}, {"x": "1"}),
        ({"a": {"constant": 1}, "b": {"source": "offset"}}, {"a": "int8", "b": "int8", "c": "int8"}, {"c": 1}),
    ],
)  # fmt: skip
def test_the_shape_is_the_mapping_s(said: dict[str, Any], types: dict[str, str], value: object) -> None:
    columns = [column(name, type_name, not_null=True) for name, type_name in types.items()]
    how = mapping(said)
    assert samples.example(resolve_feeds(columns, how), how) == value
    rows(columns, how, 20)


def test_a_time_that_is_a_number_is_one_of_its_unit() -> None:
    columns = [column(unit, "timestamptz", not_null=True) for unit in ("s", "ms", "us", "ns")]
    how = mapping({unit: {"unit": unit} for unit in ("s", "ms", "us", "ns")})
    record = orjson.loads(next(samples.values(resolve_feeds(columns, how), how, 1, 0)))
    assert [len(str(record[unit])) for unit in ("s", "ms", "us", "ns")] == [10, 13, 16, 19]


@pytest.mark.parametrize(
    ("said", "type_name", "key"),
    [({}, "int8", b"1"), ({}, "uuid", None), ({}, "text", None), ({"field": "a.b"}, "int8", b'{"a":{"b":1}}')],
)
def test_a_key_is_a_text_or_json_as_its_column_reads_it(
    said: dict[str, Any], type_name: str, key: bytes | None
) -> None:
    labels = samples.labels(resolve_feeds([column("k", type_name)], mapping({"k": {"source": "key", **said}})), 0)
    assert labels is not None
    made = next(labels).key
    assert made is not None
    assert made == key or (key is None and made[:1] != b'"')


@pytest.mark.parametrize("type_name", ["text", "int8", "uuid", "timestamptz", "bool", "jsonb", "bytea"])
def test_a_raw_value_is_a_text_or_json_as_its_column_reads_it(type_name: str) -> None:
    [column_] = columns = [column("v", type_name)]
    how = mapping(format="raw")
    rows(columns, how, 200)
    value = next(samples.values(resolve_feeds([column_], how), how, 1, 0))
    assert (value[:1] == b"{") == (type_name == "jsonb")
    assert value[:1] != b'"'


def test_raw_values_may_have_fields() -> None:
    said = {"all": {"source": "value"}, "id": {"source": "value", "field": "a.id"}}
    columns = [column("all", "text", not_null=True), column("id", "int8", not_null=True)]
    assert json.loads(rows(columns, mapping(said, format="raw"), 1, seed=0)[0]["all"] or b"") == {"a": {"id": 1}}


@pytest.mark.parametrize("keys", [{"unknown_fields": "rest"}, {"value_field": "data"}])
def test_an_object_without_a_known_field_has_some(keys: dict[str, str]) -> None:
    columns = [column("rest", "jsonb", not_null=True)]
    found = rows(columns, mapping({} if "unknown_fields" in keys else {"rest": {"source": "value"}}, **keys), 3)
    assert all(b'"word"' in (row["rest"] or b"") for row in found)
