"""kbatchd's own statements leave nothing to the search_path: others may create functions and operators in it."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from pglast.parser import ParseError

import kbatchd
from kbatchd import config
from kbatchd.model import DELETED
from kbatchd.postgres import catalogue
from kbatchd.postgres.table import Table
from kbatchd.schema import migrations
from kbatchd.sink.upsert import Merge, build_merge
from tests.sql_names import unqualified

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(kbatchd.__file__).parent

_STATEMENT = re.compile(
    r"\s*(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|MERGE INTO|COPY|CREATE|ALTER|DROP|SET|RESET|VACUUM)\s"
)

#: What looks like a statement and is said to people, or is filled in first.
_NO_STATEMENTS = {
    "batch_copy.py": ["COPY {}"],  # of an error's context
    "catalogue.py": ["\nWITH RECURSIVE", "CREATE TABLE ...", "WITH (MODULUS"],
    "store.py": ["\nSELECT id, route, topic, topic_id, partition"],
    "table_text.py": ["CREATE TABLE"],
}


def statements(path: Path) -> Iterator[tuple[int, str]]:
    """Find all texts of a module that are SQL; f-strings as the module's own constants fill them in."""
    source = ast.parse(path.read_text())
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    known = vars(importlib.import_module(name))
    inside = {id(part) for node in ast.walk(source) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    yield from ((0, text) for text in known.values() if isinstance(text, str) and _STATEMENT.match(text))
    for node in ast.walk(source):
        if isinstance(node, ast.JoinedStr):
            text = "".join(_part(part, known) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            text = node.value
        else:
            continue
        if _STATEMENT.match(text):
            yield node.lineno, text


def _part(part: ast.expr, known: dict[str, Any]) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    assert isinstance(part, ast.FormattedValue)
    try:
        return str(eval(compile(ast.Expression(part.value), "part", "eval"), known))
    except Exception:  # noqa: BLE001 - of the function's own values
        return "{}"


def test_all_statements_in_the_source() -> None:
    found, faults = 0, []
    for path in sorted(ROOT.rglob("*.py")):
        if path.name == "upsert.py":  # from pieces: see below
            continue
        for line, text in statements(path):
            filled = re.sub(r"\{\}", "s.x" if "COPY {}" in text else "x", text)
            try:
                names = unqualified(filled)
            except ParseError as error:
                names = [] if text.startswith(tuple(_NO_STATEMENTS.get(path.name, ()))) else [str(error)]
            else:
                found += 1
            faults += [f"{path.name}:{line}: {name}" for name in names]
    assert faults == []
    assert found > 60


TABLE = """
CREATE EXTENSION citext SCHEMA public;
CREATE TYPE public.colour AS ENUM ('red');
CREATE TABLE public.t (id bigint PRIMARY KEY, name public.citext UNIQUE NOT NULL, shade public.colour NOT NULL, v text);
CREATE UNIQUE INDEX ON public.t (name, shade);
"""


@pytest.fixture
def table(database: str) -> Table:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE)
        return catalogue.read_table(connection, "public.t")


@pytest.mark.parametrize("key", [("id",), ("name",), ("name", "shade")], ids="-".join)
@pytest.mark.parametrize("insert_only", [False, True])
@pytest.mark.parametrize("columns", [("id", "name", "shade", "v"), ("id", "name", "shade", "v", DELETED)])
def test_the_statements_of_an_upsert(
    table: Table, key: tuple[str, ...], insert_only: bool, columns: tuple[str, ...]
) -> None:
    route = config.Route(topic="t", table="public.t", mode="upsert", key=key, insert_only=insert_only)
    merge = build_merge(route, table, columns)
    built = {name: getattr(merge, name) for name in Merge.__dataclass_fields__}
    texts = {name: value.as_string(None) for name, value in built.items() if hasattr(value, "as_string")}
    assert {"create", "insert", "count", "count_keys"} <= texts.keys()
    assert {name: unqualified(text) for name, text in texts.items()} == {name: [] for name in texts}


def test_a_key_is_compared_by_the_operator_of_its_index(table: Table) -> None:
    assert table.key_operators[frozenset(["id"])] == {"id": ("pg_catalog", "=")}
    assert table.key_operators[frozenset(["name", "shade"])] == {"name": ("public", "="), "shade": ("pg_catalog", "=")}


def test_a_migration_runs_under_no_path_of_others() -> None:
    begin, path, *_ = (part.strip() for part in migrations.script().split(";"))
    assert begin == "BEGIN"
    assert path.splitlines()[-1] == "SET LOCAL search_path = pg_catalog"
