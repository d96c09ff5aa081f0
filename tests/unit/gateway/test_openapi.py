"""What the document says is true: its schemas let through what the door does, and its problems are all there are."""

from __future__ import annotations

import ast
import json
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeGuard
from urllib.parse import unquote

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

import kbatchd.gateway
from kbatchd.config import Gateway, Route
from kbatchd.door.door import Door
from kbatchd.door.tables import Columns, Tables
from kbatchd.errors import ConfigError
from kbatchd.gateway import openapi, pages, schemas
from kbatchd.postgres.table import Column

SUPPORTED_TYPES = frozenset(schemas.TYPES)
VARCHAR_5, NUMERIC_4_2, NUMERIC_3_MINUS_2 = 5 + 4, (4 << 16) + 2 + 4, (3 << 16) + (-2 & 0x7FF) + 4
TYPES = [*((name, -1) for name in sorted(SUPPORTED_TYPES)), ("varchar", VARCHAR_5), ("numeric", NUMERIC_4_2),
         ("numeric", NUMERIC_3_MINUS_2)]  # fmt: skip
ORDERS = Route(topic="orders", table="public.orders")

UUID = "cd613e30-d8f1-6adf-91b7-584a2265b1f5"
#: Values of each type that both let through, and such that neither does.
GOOD: dict[str, list[str]] = {
    "bool": ["true", "false"],
    "int2": ["0", "-32768", "32767"],
    "int4": ["-2147483648", "2147483647"],
    "int8": ["-9223372036854775808", "9223372036854775807"],
    "float4": ["0", "-1.5", "3.4028234e38", "1e-30"],
    "float8": ["0", "-1.5e-300", "1.7976931348623157e308", "7"],
    "numeric": ["0", "-12.30", "1e20",
                '"12.30"', '"+.5"', '"7."', '"1e-3"', '"NaN"', '"123456789012345678901234567890.5"'],
    "text": ['""', '"a\\nb"', '"\\u00fc\\ud83d\\ude00"'],
    "varchar": ['""', '"\\ud83d\\ude00abcd"'],
    "uuid": [f'"{UUID}"', f'"{UUID.upper()}"'],
    "date": ['"2026-01-31"', '"0001-01-01"', '"2024-02-29"'],
    "timestamp": ['"2026-01-31T08:00:00"', '"2026-01-31 08:00:60.123456789"'],
    "timestamptz": ['"2026-01-31T08:00:00Z"', '"2026-01-31t23:59:59.5z"', '"2026-01-31T08:00:00-15:59"'],
    "json": ['{"a":[1,null]}', "[]", '"a"', "1", "false"],
    "jsonb": ['{"a":[1,null]}', "[]", '"a"', "1", "false"],
    "bytea": ['""', '"AA=="', '"AAA="', '"+/+/"'],
}  # fmt: skip
BAD: dict[str, list[str]] = {
    "bool": ["0", '"maybe"', "[]"],
    "int2": ["-32769", "32768", "1.5", '"x"', "true"],
    "int4": ["-2147483649", "2147483648", "1.5", "{}"],
    "int8": ["-9223372036854775809", "9223372036854775808", "1e300", "0.1"],
    "float4": ["3.5e38", "-1e39", '"x"', "true"],
    "float8": ["1e309", '"x"', "[1]"],
    "numeric": ["true", '""', '"."', '"1.5.2"', '"0x10"', '" 1"', '"1e"', '"one"', "{}"],
    "text": ["1", "true", '"a\\u0000b"', "{}"],
    "varchar": ['"abcdef"', '"\\u0000"', "1"],
    "uuid": [f'"{UUID[:-1]}"', f'"{UUID}0"', f'"{UUID.replace("-", "_")}"', f'"{UUID.replace("c", "g")}"', "1"],
    "date": ['"2026-1-31"', '"31.01.2026"', '"2026-01-31T00:00:00Z"', '"0000-01-01"', '"20260131"', "20260131"],
    "timestamp": ['"2026-01-31"', '"2026-01-31T08:00:00+01:00"', '"2026-01-31T25:00:00"', '"now"', "0"],
    "timestamptz": ['"2026-01-31T08:00:00"', '"2026-01-31T08:00:00+16:00"', '"2026-01-31T08:60:00Z"', '"today"', "1.5"],
    "json": ["null"],
    "jsonb": ["null"],
    "bytea": ['"A"', '"AA"', '"AA="', '"A==="', '"AA==AA=="', '"--__"', '"A A="', "1"],
}
#: What only the door can refuse: to a schema 1.0 is an integer; a double that becomes zero; days that are not there.
BEYOND_A_SCHEMA = {
    "int2": ["1.0", "1e2"],
    "int4": ["1.0", "1e2"],
    "int8": ["1.0", "1e2"],
    "float4": ["1e-50", "-1.5e-300"],
    "float8": ["1e-400"],
    "date": ['"2026-02-30"'],
    "timestamp": ['"2026-02-30T08:00:00"'],
    "timestamptz": ['"2026-13-01T08:00:00Z"'],
    "jsonb": ['{"a":["\\u0000"]}', '"a\\u0000b"', '"\\u0000"'],
}


def column(type_name: str, typmod: int = -1, *, name: str = "it", not_null: bool = True) -> Column:
    return Column(name, 1, type_name, typmod, not_null, generated=False, identity=False, has_default=False)


def described(tables: Tables, *routes: Route, gateway: Gateway | None = None, with_tokens: bool = False) -> Any:
    document = openapi.document(routes or (ORDERS,), tables, gateway or Gateway(), "1.2.3", with_tokens=with_tokens)
    return json.loads(document)


def of(*columns: Column) -> Tables:
    return {"orders": Columns(columns, "")}


def schema_of(*columns: Column) -> Draft202012Validator:
    return Draft202012Validator(described(of(*columns))["components"]["schemas"]["record.orders"])


@pytest.mark.parametrize("with_tokens", [True, False])
def test_document_is_openapi(*, with_tokens: bool) -> None:
    columns = [column(name, typmod, name=f"{name}{typmod}") for name, typmod in TYPES]
    routes = [ORDERS, Route(topic="b", table="b", key_field="int8-1"), Route(topic="c", table="c", key_field="k")]
    tables: Tables = {
        "orders": Columns(tuple(columns), ""),
        "b": of(column("int8", name="int8-1"))["orders"],
        "c": ConfigError("it is gone"),
    }
    document = described(tables, *routes, with_tokens=with_tokens)
    validate(document)
    assert ("security" in document) == with_tokens
    responses = document["paths"]["/v1/orders"]["post"]["responses"]
    assert ({"401", "403"} <= responses.keys()) == with_tokens
    assert {"200", "202", "400", "404", "405", "408", "413", "415", "422", "503", "504"} <= responses.keys()


def test_every_type_has_a_schema() -> None:
    assert SUPPORTED_TYPES == GOOD.keys() == BAD.keys()


@pytest.mark.parametrize(("type_name", "typmod"), TYPES)
def test_schema_lets_through_only_what_the_door_does(type_name: str, typmod: int) -> None:
    it = column(type_name, typmod)
    schema, door = schema_of(it), Door([it], None)
    everything = {literal for pool in (*GOOD.values(), *BAD.values()) for literal in pool}
    for literal in everything - set(BEYOND_A_SCHEMA.get(type_name, [])):
        record = b'{"it":%b}' % literal.encode()
        if schema.is_valid(json.loads(record)):
            assert not door.check([record]), literal


@pytest.mark.parametrize("type_name", sorted(SUPPORTED_TYPES))
def test_schema_and_door_agree(type_name: str) -> None:
    it = column(type_name, VARCHAR_5 if type_name == "varchar" else -1)
    schema, door = schema_of(it), Door([it], None)

    def both(literal: str) -> tuple[bool, bool]:
        record = b'{"it":%b}' % literal.encode()
        return schema.is_valid(json.loads(record)), not door.check([record])

    assert [literal for literal in GOOD[type_name] if both(literal) != (True, True)] == []
    assert [literal for literal in BAD[type_name] if both(literal) != (False, False)] == []
    assert [literal for literal in BEYOND_A_SCHEMA.get(type_name, []) if both(literal) != (True, False)] == []


@pytest.mark.parametrize(("type_name", "typmod"), TYPES)
@pytest.mark.parametrize("not_null", [True, False])
def test_null_and_missing_are_for_columns_that_may_be_null(type_name: str, typmod: int, *, not_null: bool) -> None:
    it = column(type_name, typmod, not_null=not_null)
    schema, door = schema_of(it), Door([it], None)
    for record in b'{"it":null}', b"{}", b'{"other":1}':
        assert schema.is_valid(json.loads(record)) == (not door.check([record])) == (not not_null)


def test_numeric_of_some_precision_says_its_limit() -> None:
    schema = schema_of(column("numeric", NUMERIC_4_2))
    assert [schema.is_valid({"it": value}) for value in (99.99, -99.99, "99.99")] == [True, True, True]
    assert [schema.is_valid({"it": value}) for value in (100, -100)] == [False, False]
    assert not schema_of(column("numeric", NUMERIC_3_MINUS_2)).is_valid({"it": 100_000})
    # So large a limit is no exact number to every reader.
    assert schema_of(column("numeric", (38 << 16) + 10 + 4)).is_valid({"it": 10**28})


@pytest.mark.parametrize("not_null", [True, False])
def test_examples_fit(*, not_null: bool) -> None:
    columns = [column(name, typmod, name=f"{name} {typmod}", not_null=not_null) for name, typmod in TYPES]
    document = described(of(*columns))
    record = Draft202012Validator(document["components"]["schemas"]["record.orders"])
    content = document["paths"]["/v1/orders"]["post"]["requestBody"]["content"]
    one, many = (content["application/json"]["examples"][name]["value"] for name in ("one", "many"))
    lines = content["application/x-ndjson"]["examples"]["lines"]["value"].splitlines()
    for example in [one, *many, *map(json.loads, lines)]:
        record.validate(example)
        assert set(example) == {column.name for column in columns}
        assert Door(columns, None).check([json.dumps(example).encode()]) == []


def test_types_show_their_limits() -> None:
    columns = [column(name, typmod, name=str(number)) for number, (name, typmod) in enumerate(TYPES)]
    properties = described(of(*columns))["components"]["schemas"]["record.orders"]["properties"].values()
    shown = {each["description"].split("`")[1] for each in properties}
    assert shown == {*SUPPORTED_TYPES, "varchar(5)", "numeric(4,2)", "numeric(3,-2)"}


def test_key_that_is_no_column_has_a_schema_too() -> None:
    route = Route(topic="orders", table="t", key_field="k")
    document = described(of(column("int4")), route)
    schema = Draft202012Validator(document["components"]["schemas"]["record.orders"])
    door = Door([column("int4")], "k")
    for literal in "1", '"a"', "null", "true", "1.5", "[]":
        record = b'{"it":1,"k":%b}' % literal.encode()
        assert schema.is_valid(json.loads(record)) == (not door.keys([record])[1]), literal


MAPPED = Route.model_validate({
    "topic": "orders",
    "table": "public.orders",
    "value_field": "data",
    "unknown_fields": "reject",
    "key_field": "tenant",
    "columns": {
        "city": "address.city",
        "sku": "items[1].sku",
        "items": "items",
        "placed": {"field": "placed_ms", "unit": "ms"},
        "note": {"json_text": True},
        "state": {"default": "new"},
        "kind": {"on_missing": "reject"},
        "version": {"source": "value", "field": "meta.version"},
        "origin": {"constant": "shop"},
        "seen": {"source": "timestamp"},
    },
})  # fmt: skip
MAPPED_COLUMNS = (
    column("int8", name="id"),
    column("text", name="city", not_null=False),
    column("text", name="sku"),
    column("jsonb", name="items"),
    column("timestamptz", name="placed"),
    column("jsonb", name="note", not_null=False),
    column("text", name="state"),
    column("text", name="kind", not_null=False),
    column("int4", name="version", not_null=False),
    column("text", name="origin"),
    column("timestamptz", name="seen"),
)


def mapped() -> tuple[Any, Draft202012Validator, Door]:
    document = described(of(*MAPPED_COLUMNS), MAPPED)
    validate(document)
    content = document["paths"]["/v1/orders"]["post"]["requestBody"]["content"]
    example = content["application/json"]["examples"]["one"]["value"]
    schema = Draft202012Validator(document["components"]["schemas"]["record.orders"])
    return example, schema, Door(MAPPED_COLUMNS, "tenant", MAPPED)


def test_example_of_a_mapped_route_fits() -> None:
    example, schema, door = mapped()
    schema.validate(example)
    assert door.check([json.dumps(example).encode()]) == []
    assert example["data"]["items"][1]["sku"]
    assert type(example["data"]["placed_ms"]) is int
    assert json.loads(example["data"]["note"])
    assert type(example["meta"]["version"]) is int
    assert {"origin", "seen", "placed"}.isdisjoint(example["data"])


@pytest.mark.parametrize(
    ("at", "value", "good"),
    [
        ("data", None, False),
        ("data.id", "x", False),
        ("data.id", None, False),
        ("data.address", None, True),
        ("data.address", 1, False),
        ("data.address.city", 1, False),
        ("data.items", [1], False),
        ("data.items.1.sku", None, False),
        ("data.placed_ms", 1.5, False),
        ("data.placed_ms", 10**18, False),
        ("data.note", "{}", True),
        ("data.note", {}, False),
        ("data.state", None, False),
        ("data.kind", None, True),
        ("data.more", 1, False),
        ("meta", None, True),
        ("meta.version", "one", False),
        ("tenant", 7, True),
        ("tenant", 1.5, False),
    ],
)
def test_schema_of_a_mapped_route_is_that_of_its_fields(at: str, value: object, *, good: bool) -> None:
    example, schema, door = mapped()
    *path, last = (int(step) if step.isdigit() else step for step in at.split("."))
    place = example
    for step in path:
        place = place[step]
    place[last] = value
    record = json.dumps(example).encode()
    if good:
        assert door.check([record]) == []
    assert schema.is_valid(example) == good


@pytest.mark.parametrize("missing", ["data", "data.id", "data.kind", "data.items", "data.placed_ms"])
def test_what_a_mapped_route_needs_is_required(missing: str) -> None:
    example, schema, door = mapped()
    *path, last = missing.split(".")
    del (example[path[0]] if path else example)[last]
    assert not schema.is_valid(example)
    assert door.check([json.dumps(example).encode()])


@pytest.mark.parametrize("missing", ["data.address", "data.state", "data.note", "meta"])
def test_what_a_mapped_route_does_not_need_is_not(missing: str) -> None:
    example, schema, door = mapped()
    *path, last = missing.split(".")
    del (example[path[0]] if path else example)[last]
    schema.validate(example)
    assert door.check([json.dumps(example).encode()]) == []


def test_raw_record_is_described_as_such() -> None:
    route = Route(topic="orders", table="t", format="raw")
    schema = described(of(column("bytea")), route)["components"]["schemas"]["record.orders"]
    assert "as it is" in schema["description"]


def test_any_name_has_a_path_of_its_own() -> None:
    names = ["orders", "a/b", "ü {x}", "1", "record-1", "~0", "%41", "<b>", "a?b#c"]
    routes = [Route(topic=f"t{number}", name=name, table="t") for number, name in enumerate(names)]
    document = described({name: Columns((column("int4", name=name),), "") for name in names}, *routes)
    validate(document)
    assert [unquote(path) for path in document["paths"]] == [f"/v1/{name}" for name in names]
    operations = [path["post"] for path in document["paths"].values()]
    assert len({operation["operationId"] for operation in operations}) == len(names)
    for name, operation in zip(names, operations, strict=True):
        reference = operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"][0]["$ref"]
        schema = document["components"]["schemas"][reference.removeprefix("#/components/schemas/")]
        assert list(schema["properties"]) == [name]


@pytest.mark.parametrize("tables", [{}, {"orders": ConfigError("table public.orders does not exist")}])
def test_route_without_a_known_table_takes_any_object(tables: Tables) -> None:
    schema = Draft202012Validator(described(tables)["components"]["schemas"]["record.orders"])
    assert schema.is_valid({"a": 1})
    assert not schema.is_valid([])


def test_gateway_that_does_not_check_says_so() -> None:
    unchecked = Gateway.model_validate({"validate": False})
    assert "does not check" in described({}, gateway=unchecked)["paths"]["/v1/orders"]["post"]["description"]


def test_every_problem_that_is_raised_is_described_and_no_other() -> None:
    raised = set()
    for path in Path(kbatchd.gateway.__path__[0]).glob("*.py"):
        raised |= _problems(ast.parse(path.read_text(encoding="utf-8")))
    assert raised == {(status, kind) for status, kinds in openapi.PROBLEMS.items() for kind in kinds}


def _problems(tree: ast.Module) -> set[tuple[HTTPStatus, str]]:
    """Return the status and the kind of every Problem; a kind is a word, or a variable that is given one of some."""
    found = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Problem":
            status, kind, *_ = call.args
            assert isinstance(status, ast.Attribute)
            for value in _values(tree, kind.id) if isinstance(kind, ast.Name) else [kind]:
                found |= {(HTTPStatus[status.attr], str(word.value)) for word in ast.walk(value) if _is_word(word)}
    return found


def _is_word(node: ast.AST) -> TypeGuard[ast.Constant]:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _values(tree: ast.Module, name: str) -> list[ast.expr]:
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name
    ]


def test_pages_change_with_the_tables_and_else_stay() -> None:
    def tags(tables: Tables) -> dict[str, bytes]:
        built = pages.build([ORDERS], tables, Gateway(), with_tokens=False)
        return {path: dict(headers)[b"etag"] for path, (_, headers, _) in built.items()}

    before, after = tags(of(column("int4"))), tags(of(column("int8")))
    assert before == tags(of(column("int4")))
    assert before["/openapi.json"] != after["/openapi.json"]
    assert before["/docs"] == after["/docs"]
