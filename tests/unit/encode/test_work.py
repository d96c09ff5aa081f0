"""The work on a record grows with its bytes, not with bytes times columns: counted, not timed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from kbatchd.config import RouteMapping
from kbatchd.door.door import Door
from kbatchd.encode import exact
from kbatchd.encode.rows import build_encoder
from kbatchd.files import bodies, files
from kbatchd.files.files import Cursor, read_array
from kbatchd.postgres.table import Column
from tests.records import Sent

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from tests.records import Headers

pytestmark = pytest.mark.usefixtures("compiled")

FEW, MANY = 10, 300


def work(do: Callable[[], object]) -> int:
    """Count the calls that it takes, and for those of bytes and strings how much they may have to look at."""
    total = 0

    def count(_: FrameType, event: str, called: Any) -> None:
        nonlocal total
        if event == "call":
            total += 1
        elif event == "c_call":
            of = getattr(called, "__self__", None)
            total += 1 + (len(of) // 100 if isinstance(of, (bytes, str)) else 0)

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        do()
    finally:
        sys.setprofile(before)
    return total


def columns(kind: str, count: int) -> list[Column]:
    return [Column(f"c{n}", n + 1, kind, -1, not_null=False) for n in range(count)]


#: A literal of each type whose text may be looked for.
LITERALS = {
    "numeric": "1.50",
    "float4": "0",
    "float8": "0",
    "json": "[1.50]",
    "jsonb": "[1.50]",
    "int4range": '"[1,2)"',
}
#: What makes a record odd, so that a look does not tell where a field is.
ODD = {
    "plain": "",
    "escape": '"\\u0078":0,',
    "umlaut": '"\u00fc":0,',
    "huge": '"h":1e400,',
    "long": f'"h":0.{"1" * 40},',
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", LITERALS)
def test_columns_do_not_multiply_the_work_on_a_record(kind: str, odd: str) -> None:
    fields = ",".join(f'"c{n}":{LITERALS[kind]}' for n in range(MANY))
    rest = ",".join(f'"k{n}":0' for n in range(8000))
    value = f'{{"id":2,{fields},{ODD[odd]}{rest}}}'.encode()
    done = {}
    for count in (FEW, MANY):
        encoder = build_encoder(columns(kind, count))
        rows: list[bytes] = []
        done[count] = work(lambda encoder=encoder, rows=rows: encoder.encode((), [value], rows))  # type: ignore[misc]
        assert len(rows) == 1
    # A column may cost some calls, but not another look at 90,000 bytes.
    assert done[MANY] - done[FEW] < 60 * MANY + len(value) // 4, done


@pytest.mark.parametrize("kind", LITERALS)
def test_a_record_is_cut_up_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cuts = []
    slices = exact.field_slices

    def counted(value: bytes) -> dict[str, bytes]:
        cuts.append(len(value))
        return slices(value)

    monkeypatch.setattr(exact, "field_slices", counted)
    monkeypatch.setattr("kbatchd.encode.decoded.field_slices", counted)
    fields = ",".join(f'"c{n}":{LITERALS[kind]}' for n in range(MANY))
    value = f'{{{fields},"\\u0078":0}}'.encode()
    rows: list[bytes] = []
    assert build_encoder(columns(kind, MANY)).encode((), [value], rows).refused == []
    assert cuts in ([], [len(value)])


def mapped(said: dict[str, Any]) -> RouteMapping:
    return RouteMapping.model_validate({"columns": said})


class Counted(Sent):
    """A record that counts how often its headers are asked for."""

    asked: list[int] = []  # noqa: RUF012 - shared, to be counted

    def headers(self) -> Headers | None:
        self.asked.append(self.at)
        return self.attached


def test_headers_are_read_once_for_all_columns() -> None:
    Counted.asked.clear()
    said = {f"c{n}": {"source": f"header:h{n}"} for n in range(MANY)} | {"all": {"source": "headers"}}
    encoder = build_encoder([*columns("text", MANY), Column("all", 999, "jsonb", -1, not_null=False)], mapped(said))
    record = Counted(1, attached=[(f"h{n}", b"x") for n in range(1000)])
    rows: list[bytes] = []
    assert encoder.encode([record], [b"{}"], rows).refused == []
    assert len(rows) == 1
    assert Counted.asked == [1]


@pytest.mark.parametrize("source", ["key", "header:h", "string", "value"])
def test_json_is_decoded_once_for_all_columns(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b'{"a":{%b}}' % b",".join(b'"c%d":%d' % (n, n) for n in range(MANY))
    said: dict[str, Any] = {f"c{n}": {"source": source, "field": f"a.c{n}"} for n in range(MANY)}
    if source == "string":
        said = {f"c{n}": {"field": "s", "json_text": True} for n in range(MANY)}
    decoded = []
    real = orjson.loads

    def counted(data: bytes) -> object:
        decoded.append(len(data))
        return real(data)

    encoder = build_encoder(columns("jsonb" if source == "string" else "int4", MANY), mapped(said))
    monkeypatch.setattr("kbatchd.encode.decoded.orjson", type("orjson", (), {**vars(orjson), "loads": counted}))
    value = b'{"s":"%b"}' % text.replace(b'"', b'\\"') if source == "string" else text if source == "value" else b"{}"
    record = Sent(1, name=text, attached=[("h", text)])
    rows: list[bytes] = []
    assert encoder.encode([record], [value], rows).refused == []
    assert len(rows) == 1
    assert len(decoded) <= 2


@pytest.mark.parametrize(
    "value",
    [
        b'{"a":1e999,"b":"' + b'\\"' * 400_000,
        b'{"a":1e999,"b":' + b"1" * 299 + b"," + (b"1" * 299 + b".") * 2_000,
        b'{"a":' + b"1." + b"1" * 800_000,
        b'{"a":' + b'"' * 800_000,
        b'{"a":1e999,"b":' + b"e1" * 400_000,
        b'{"a":1e999,"b":' + b"-" * 800_000,
    ],
)
def test_what_is_no_json_is_given_up_soon(value: bytes) -> None:
    """Each of these took minutes or hours where a search went over the same bytes again and again."""
    encoder = build_encoder(columns("numeric", 2))
    ((_, refusal),) = encoder.encode((), [value], []).refused
    assert refusal.code == "not_json"
    ((_, refusal),) = Door(None, None).check([value])
    assert refusal.code == "not_json"


#: What looks like the end of a record where none is, and what is no object at all.
ELEMENTS = [b'{"id":1,"items":[{"a":1},{"a":2}]}', b'{"id":"}, {"}', b"[1,2]", b"1", b'{"id":1}', b'"\xff"']


@pytest.mark.parametrize("element", ELEMENTS)
def test_an_array_in_a_file(element: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser is never given the same bytes again and again."""
    parsed = 0
    scan = files._scan

    def counted(text: str) -> Any:
        nonlocal parsed
        parsed += len(text)
        return scan(text)

    monkeypatch.setattr(files, "_scan", counted)
    count = 20_000
    array = b"[%b]" % b",".join([element] * count)
    chunks = [array[at : at + 1_048_576] for at in range(0, len(array), 1_048_576)]
    pieces = list(read_array(iter(chunks), Cursor(), 500, "file"))
    assert sum(len(piece.values) for piece in pieces) == count
    assert b"".join(piece.raw for piece in pieces) == array
    assert parsed <= count * 2 * files._PARSED_BYTES


@pytest.mark.parametrize("split", [bodies.split, bodies.split_exactly])
def test_an_array_in_a_request(split: Callable[[bytes, int], bodies.Records]) -> None:
    def array(count: int) -> bytes:
        return b"[%b]" % b" , ".join([b'{"id":1,"items":[{"a":1} , {"a":2}]}'] * count)

    few, many = array(100), array(1_000)
    assert work(lambda: split(many, 10_000)) < 15 * work(lambda: split(few, 10_000))
