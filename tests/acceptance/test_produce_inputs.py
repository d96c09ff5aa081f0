"""`kbatchd produce` and inputs that are not what they seem: told, and never sent as rows of NULLs."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
import zstandard

from tests.fix_produce import MakeProducing, Producing, written

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Nothing in it must be there, so any record is a row.
LOOSE = "CREATE TABLE public.sent (id bigint, name text, note text)"


@pytest.fixture
def loose(make_producing: MakeProducing) -> Producing:
    return make_producing(LOOSE)


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"id;name;note\n1;a;b\n", "say --delimiter ';'"),
        (b"id\tname\tnote\n1\ta\tb\n", "say --delimiter tab"),
        (b'"id"|"name"\n1|a\n', "say --delimiter '|'"),
        (b'"id";"name"\n"1";"a"\n', "say --delimiter ';'"),
        (b'\xef\xbb\xbf"id"\t"name"\r\n"1"\t"a"\r\n', "say --delimiter tab"),
        (b"ID,Name,NOTE\n1,a,b\n", "names are compared exactly, capitals and all"),
        (b"number,what\n1,a\n", "it has number, what, and the columns take id, name, note"),
        (b"\xef\xbb\xbfid;name\n1;a\n", "say --delimiter ';'"),
    ],
)
def test_a_header_that_feeds_no_column(loose: Producing, content: bytes, hint: str) -> None:
    file = loose.file("a.csv", content)
    line = loose.refuses(file)
    assert f"{file}:1: the header: feeds no column" in line
    assert hint in line
    assert not loose.messages()


@pytest.mark.parametrize(
    ("name", "content", "options"),
    [
        ("a.csv", b'id;name\n1;a,b\n2;"c;d"\n', ("--delimiter", ";")),
        ("a.csv", b"id\tname\n1\ta,b\n2\tc;d\n", ("--delimiter", "tab")),
        ("a.csv", b"id\tname\n1\ta,b\n2\tc;d\n", ("--delimiter", "\t")),
        ("a.tsv", b"id\tname\n1\ta,b\n2\tc;d\n", ()),
        ("a.tsv", b'id,name\n1,"a,b"\n2,c;d\n', ("--delimiter", ",")),
    ],
)
def test_delimiters(loose: Producing, name: str, content: bytes, options: tuple[str, ...]) -> None:
    loose.sends(loose.file(name, content), *options)
    values = sorted(message.value() or b"" for message in loose.messages())
    assert values == [b'{"id":1,"name":"a,b"}', b'{"id":2,"name":"c;d"}']


def test_what_is_no_delimiter(loose: Producing) -> None:
    file = loose.file("a.csv", b"id\n1\n")
    for text in ("", "::", '"', "\n"):
        assert loose.run(file, "--delimiter", text).code == 2
    assert "--delimiter is for CSV" in loose.refuses(loose.file("a.ndjson", b'{"id":1}\n'), "--delimiter", ";")


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (b'{"ID":1,"Name":"x"}', "it has ID, Name, and the columns take id, name, note; names are compared exactly"),
        (b'{"payload":{"id":1,"name":"x"}}', "it has payload"),
        (b'{"other":"\\"id\\":1"}', "it has other"),
        (b"{}", "it has none"),
    ],
)
def test_records_that_feed_no_column(loose: Producing, record: bytes, fields: str) -> None:
    lines = [b'{"id":1}', b'{"name":null}', record, b'{ "note" : "x" }', b'{"\\u0069d":2}', b'{"x":{},"id":3}', record]
    outcome = loose.run(loose.file("a.ndjson", b"\n".join(lines)))
    assert outcome.code == 0
    [line] = outcome.err
    assert "warning: 2 records feed no column of public.sent, the first on line 3: " in line
    assert fields in line
    assert len(loose.messages()) == len(lines)


def skippable(content: bytes, kind: int = 0) -> bytes:
    return struct.pack("<II", 0x184D2A50 + kind, len(content)) + content


@pytest.mark.parametrize("given_as", ["file", "pipe"])
def test_zstd_with_skippable_frames(producing: Producing, given_as: str) -> None:
    """As pzstd writes it, a frame without content before each with some, and as others put seek tables at the end."""
    compress = zstandard.ZstdCompressor().compress
    parts = [written(".ndjson", range(first, first + 100)) for first in range(0, 1000, 100)]
    packed = b"".join(skippable(struct.pack("<I", len(compress(part)))) + compress(part) for part in parts)
    packed += skippable(b"x" * 300_000, 15) + skippable(b"", 7)
    if given_as == "file":
        producing.sends(producing.file("a.ndjson.zst", packed))
    else:
        producing.sends("-", given=packed)
    assert producing.ids() == list(range(1000))
    # One that is cut off is damaged still, wherever that is.
    for cut in (2, 6, 10, len(packed) - 100_000, len(packed) - 3):
        assert "is damaged" in producing.refuses(producing.file(f"{cut}.ndjson.zst", packed[:cut]))


def utf_16(text: str, codec: str) -> bytes:
    return text.encode(codec)


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.ndjson", b'{\n  "id": 1,\n  "name": "x"\n}\n', "a record over several lines"),
        ("a.json", b'\n{\n  "id": 1\n}\n{\n  "id": 2\n}\n', "a record over several lines"),
        ("a.ndjson", b'{"id": 1,\n"name": "' + b"x" * 300_000 + b'"}\n', None),
        ("a.json", b'{"id": 1,\n "name": "x"}', "a record over several lines"),
        ("a.ndjson", b'[\n{"id": 1}\n]', "is a JSON array; say --format array"),
        ("a.ndjson", utf_16('\ufeff{"id": 1, "name": "x"}\n', "utf-16-le"), "is UTF-16"),
        ("a.ndjson", utf_16('{"id": 1, "name": "x"}\n', "utf-16-be"), "is UTF-16; convert it: iconv -f UTF-16BE"),
        ("a.csv", utf_16("\ufeffid;name\n1;x\n", "utf-16-le"), "is UTF-16"),
        ("a.csv", utf_16("id,name\n1,x\n", "utf-16-le"), "is UTF-16; convert it: iconv -f UTF-16LE"),
        ("a.ndjson", b'\0\0\0\x01\x0a{"id":1,"name":"x"}\n', "five bytes of a schema registry (schema 266)"),
        ("a.json", b'\0\0\0\0\x07{"id":1,"name":"x"}', "five bytes of a schema registry (schema 7)"),
        ("a.csv", b"PK\x03\x04....", "a spreadsheet"),
        ("a.ndjson", b"PAR1....", "Parquet"),
    ],
)  # fmt: skip
def test_what_an_input_is_instead(producing: Producing, name: str, content: bytes, what: str | None) -> None:
    file = producing.file(name, content)
    if what is None:  # too long to be told from its beginning: each line is refused, and nothing is sent
        assert producing.run(file).code == 65
    else:
        assert f"{file}: " in producing.refuses(file)
        assert what in producing.refuses(file)
        assert not (producing.directory / f"{name}.failed").exists()
    assert not producing.messages()


def test_what_is_none_of_these(producing: Producing) -> None:
    """Records of one line, whatever is in them, are sent."""
    lines: Iterable[bytes] = [
        b'{"id":1,"name":"a\\nb"} ',
        b'{"id":2,"name":"{"}',
        b'\t{"id":3,"name":"["}',
        b'{"id":4,"name":"x"}',
    ]
    producing.sends(producing.file("a.ndjson", b"\xef\xbb\xbf" + b"\r\n".join(lines)))
    assert producing.ids() == [1, 2, 3, 4]
