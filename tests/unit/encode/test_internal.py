"""Whatever is raised while one record is worked on is that record's dead letter, and the others are rows."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

import pytest

from kbatchd.config import RouteMapping
from kbatchd.door.door import Door
from kbatchd.encode import internal
from kbatchd.encode.internal import INTERNAL, _Telling, describe
from kbatchd.encode.mapping import Deletes
from kbatchd.encode.rows import RowEncoder, build_encoder
from kbatchd.postgres.table import Column
from tests.records import Sent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.records import Headers

pytestmark = pytest.mark.usefixtures("compiled")


class Broken(Sent):
    """A record whose parts raise."""

    error: BaseException = SystemError("returned a result with an exception set")

    def key(self) -> bytes | None:
        raise type(self.error)(*self.error.args)

    def headers(self) -> Headers | None:
        raise type(self.error)(*self.error.args)

    def offset(self) -> int:
        raise type(self.error)(*self.error.args)


def columns(**types: str) -> list[Column]:
    return [Column(name, number, kind, -1, not_null=False) for number, (name, kind) in enumerate(types.items(), 1)]


def mapped(**said: Any) -> RouteMapping:
    return RouteMapping.model_validate({"columns": said})


#: Routes that ask the record for something, in each encoder.
ROUTES = {
    "compiled": ({"id": "int8", "k": "text", "o": "int8"}, {"k": {"source": "key"}, "o": {"source": "offset"}}),
    "fast": ({"id": "int8", "k": "text", "m": "mood"}, {"k": {"source": "key"}}),
    "careful": ({"id": "int8", "h": "jsonb"}, {"h": {"source": "headers"}}),
    "text": ({"id": "int8", "h": "text", "r": "int4range"}, {"h": {"source": "header:a"}}),
}


def encoder_of(name: str) -> RowEncoder:
    types, said = ROUTES[name]
    return build_encoder(columns(**types), mapped(**said))


@pytest.mark.parametrize("name", ROUTES)
def test_what_one_record_raises_is_its_own_refusal(name: str) -> None:
    records = [Broken(n) if n in {0, 7, 8, 19} else Sent(n, name=b"k") for n in range(20)]
    rows: list[bytes] = []
    refused = encoder_of(name).encode(records, [b'{"id":%d}' % n for n in range(20)], rows).refused
    assert [(index, why.code) for index, why in refused] == [(index, INTERNAL) for index in (0, 7, 8, 19)]
    assert len(rows) == 16
    for _, why in refused:
        assert re.fullmatch(r"SystemError at (careful|headers)\.py:\d+ in \w+: returned .* set", why.message)


@pytest.mark.parametrize("name", ROUTES)
@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), SystemExit(3)])
def test_what_is_no_record_s_passes(name: str, error: BaseException) -> None:
    record = Broken(1)
    type(record).error, before = error, Broken.error
    try:
        with pytest.raises(type(error)):
            encoder_of(name).encode([Sent(0), record], [b'{"id":1}'] * 2, [])
    finally:
        Broken.error = before


class OddBytes(bytes):
    """A value that no encoder expects: even its length raises."""

    def __len__(self) -> int:
        raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["int8", "jsonb", "numeric", "mood", "int4range"])
def test_a_value_that_spoils_the_look_at_many_records_costs_one(kind: str) -> None:
    encoder = build_encoder(columns(id="int8", x=kind))
    values: Sequence[bytes | None] = [b'{"id":1}', OddBytes(b'{"id":2}'), b'{"id":3,"y":0.12345678901234567890}', None]
    rows = [b"before"]
    refused = encoder.encode((), values, rows).refused
    assert [index for index, _ in refused if index != 1] == [3]
    assert len(rows) + len(refused) == 5
    assert rows[0] == b"before"


def test_records_are_encoded_carefully_one_by_one() -> None:
    encoder = build_encoder(columns(id="int8", j="jsonb"))
    values = [b'{"id":1,"j":{"a":1}}', b'{"id":"x"}', b"{", None, b'{"id":2}']
    rows: list[bytes] = []
    usual: list[bytes] = []
    assert encoder.encode_carefully((), values, rows) == encoder.encode((), values, usual)
    assert rows == usual
    assert len(rows) == 2


def test_a_tombstone_of_a_route_whose_key_collects_the_other_fields() -> None:
    mapping = RouteMapping.model_validate({"unknown_fields": "c"})
    encoder = build_encoder(columns(c="jsonb"), mapping, deletes=Deletes(("c",)))
    rows: list[bytes] = []
    refused = encoder.encode([Sent(0)] * 3, [None, b'{"a":1}', b"[]"], rows).refused
    assert [(index, why.code, why.column) for index, why in refused] == [(0, "no_value", "c"), (2, "not_object", None)]
    assert len(rows) == 1


def test_the_door_refuses_what_it_cannot_look_at() -> None:
    door = Door(None, "id")
    assert [(index, why.code) for index, why in door.check([b"{}", 7, b"{}"])] == [(1, INTERNAL)]  # type: ignore[list-item]
    keys, refused = door.keys([b'{"id":1}', b"[]", b'{"id":3}'])
    assert keys == [b"1", None, b"3"]
    assert [(index, why.code) for index, why in refused] == [(1, INTERNAL)]


def test_the_place_is_the_package_s_own() -> None:
    with pytest.raises(KeyError) as caught:
        Column.from_dict({})
    assert re.fullmatch(r"KeyError at table\.py:\d+ in from_dict: 'element'", describe(caught.value))
    assert describe(ValueError("two\nlines")) == "ValueError: two lines"


def test_the_log_tells_of_it_once_a_minute_with_a_count(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internal, "_telling", _Telling())
    encoder = encoder_of("careful")
    with caplog.at_level(logging.ERROR):
        encoder.encode([Broken(n) for n in range(50)], [b'{"id":1}'] * 50, [])
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        monkeypatch.setattr(internal, "TOLD_SECONDS", 0.0)
        encoder.encode([Broken(1)], [b'{"id":1}'], [])
    first, second = caplog.records
    assert (vars(first)["count"], vars(second)["count"]) == (1, 50)
    assert vars(first)["error"].startswith("SystemError at headers.py:")
