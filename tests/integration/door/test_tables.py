"""The routes' tables: as PostgreSQL has them, and as the cache remembers them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from kbatchd.config import Config, load
from kbatchd.door import tables
from kbatchd.door.tables import Columns
from kbatchd.errors import ConfigError, ServerUnavailable
from tests.fix_http import free_port

Make = Callable[..., Config]


@pytest.fixture
def make_config(database: str, tmp_path: Path) -> Make:
    """Write files that differ in what a test is about; all have the same state directory."""

    def make(dsn: str = database, pipeline: str = "pipe/line ü", **orders: object) -> Config:
        file = tmp_path / "kbatchd.toml"
        keys = {"topic": "orders", "table": "public.orders", **orders}
        file.write_text(
            f"pipeline = {json.dumps(pipeline)}\nstate_directory = 'state'\n"
            f"[kafka]\nbootstrap_servers = 'x:1'\n[postgres]\ndsn = {json.dumps(dsn)}\n[[route]]\n"
            + "\n".join(f"{key} = {json.dumps(value)}" for key, value in keys.items()),
            encoding="utf-8",
        )
        return load(file)

    return make


@pytest.fixture(autouse=True)
def _orders(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE public.orders (id bigint NOT NULL, note varchar(7), made timestamptz)")


def away() -> str:
    return f"host=127.0.0.1 port={free_port()} dbname=app"


def test_postgres_first_then_the_cache(make_config: Make) -> None:
    here, gone = make_config(), make_config(away())
    with pytest.raises(ServerUnavailable):
        tables.load(gone)
    assert not tables.is_cached(gone)
    found = tables.load(here)
    assert [(column.name, column.type_name, column.not_null) for column in found["orders"]] == [
        ("id", "int8", True),
        ("note", "varchar", False),
        ("made", "timestamptz", False),
    ]
    assert tables.is_cached(gone)
    assert tables.load(gone) == found
    [file] = here.state_directory.iterdir()
    assert file.name == "pipe%2Fline%20%C3%BC.tables.json"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_cache_that_cannot_be_written_names_the_key_and_what_follows(
    make_config: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").write_text("no directory")
    assert tables.load(make_config())
    [record] = [record for record in caplog.records if vars(record)["action"] == "cache_unwritten"]
    assert record.getMessage() == (
        "columns not remembered: nothing can be taken in after a start without PostgreSQL; fix state_directory"
    )


@pytest.mark.parametrize(
    "other", [{"table": "public.refunds"}, {"omit": ["note"]}, {"name": "else"}, {"pipeline": "x"}]
)
def test_an_entry_is_good_for_the_same_route_only(make_config: Make, other: dict[str, object]) -> None:
    tables.load(make_config())
    assert not tables.is_cached(make_config(**other))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version":0}', b'{"version":1,"routes":{"orders":3}}'])
def test_a_damaged_cache_is_none(make_config: Make, content: bytes) -> None:
    config = make_config()
    tables.load(config)
    [file] = config.state_directory.iterdir()
    file.write_bytes(content)
    assert not tables.is_cached(config)
    tables.load(config)
    assert tables.is_cached(config)


def group_may_write(file: Path) -> None:
    file.chmod(0o660)


def others_may_write(file: Path) -> None:
    file.chmod(0o602)


def is_a_link(file: Path) -> None:
    file.rename(file.parent.parent / "elsewhere")
    file.symlink_to(file.parent.parent / "elsewhere")


def is_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def says(name: str, value: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        document = json.loads(file.read_text())
        document["routes"]["orders"]["columns"][0][name] = value
        file.write_text(json.dumps(document))

    return change


NESTED = 900
ELEMENT = {"name": "id", "number": 1, "type_name": "int8", "typmod": -1, "not_null": True, "labels": []}


@pytest.mark.parametrize(
    "change",
    [
        group_may_write,
        others_may_write,
        is_a_link,
        is_a_pipe,
        says("number", "1 = __import__('os').abort()"),
        says("number", True),
        says("typmod", "4"),
        says("name", 7),
        says("type_name", ["int8"]),
        says("not_null", 1),
        says("labels", [1]),
        says("element", {**ELEMENT, "element": None, "attributes": [], "number": "9"}),
        says("attributes", [{**ELEMENT, "element": None, "attributes": [], "delimiter": 3}]),
        says("element", json.loads('{"element":' * NESTED + "1" + "}" * NESTED)),
    ],
)
def test_what_others_may_have_written_is_none(
    make_config: Make, change: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    # What it says becomes a part of generated code.
    config = make_config()
    tables.load(config)
    [file] = config.state_directory.iterdir()
    change(file)
    assert not tables.is_cached(config)
    assert [vars(record)["action"] for record in caplog.records] == ["cache_ignored"]


def test_a_cache_of_another_user_is_none(make_config: Make) -> None:
    config = make_config()
    tables.load(config)
    [file] = config.state_directory.iterdir()
    assert tables.is_cached(config)
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(file, 54_321, -1)
    assert not tables.is_cached(config)


def test_a_directory_that_takes_nothing_is_no_failure(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where the directory should be")
    assert tables.load(make_config())
    assert not tables.is_cached(make_config())


def test_a_faulty_table_is_told(make_config: Make, database: str) -> None:
    config = make_config(table="public.nowhere")
    with pytest.raises(ConfigError, match=r"public\.nowhere does not exist"):
        tables.load(config)
    with psycopg.connect(database, autocommit=True) as connection:
        found = tables.read(connection, [*config.route, *make_config(name="good").route])
    assert isinstance(found["orders"], ConfigError)
    assert isinstance(found["good"], Columns), "a fault of one hides no other"
