"""`kbatchd produce` and inputs that are not what they seem: told, and never sent as rows of NULLs."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import pty
import struct
import subprocess
import sys
import termios
from typing import TYPE_CHECKING

import pytest
import zstandard

from tests.fix_daemon import wait_until
from tests.fix_produce import MakeProducing, Producing, finish, written

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


def test_paths_that_feed_no_column(make_producing: MakeProducing) -> None:
    """An object of the right name is not enough: what is in it must feed a column."""
    producing = make_producing("CREATE TABLE public.sent (id bigint, city text, sku text)")
    producing.keys = {"columns": {"id": "meta.id", "city": "customer.address.city", "sku": "items[1].sku"}}
    fed = [b'{"customer":{"address":{"city":null}}}', b'{"items":[{},{"sku":"x"}]}', b'{"x":1,"meta":{"id":3}}']
    unfed = [b'{"customer":{"town":"X"}}', b'{"items":[{"sku":"x"}]}', b'{"meta":null}', b'{"id":1,"city":"x"}']
    outcome = producing.run(producing.file("a.ndjson", b"\n".join([*fed, *unfed])))
    [line] = outcome.err
    assert "warning: 4 records feed no column of public.sent, the first on line 4: it has customer.town, " in line
    assert "and the columns take customer.address.city, items[1].sku, meta.id" in line
    # No field of CSV is an object.
    refusal = producing.refuses(producing.file("a.csv", b"customer,meta\nx,1\n"))
    assert "the header: feeds no column" in refusal


def test_what_comes_in_an_envelope(make_producing: MakeProducing) -> None:
    """CSV of one too, as JSON in a string."""
    producing = make_producing(LOOSE)
    producing.keys = {"value_field": "payload"}
    producing.sends(producing.file("a.csv", b'payload,at\n"{""id"":1}",x\n'))
    assert "of payload" in producing.refuses(producing.file("b.csv", b"id,name\n1,x\n"))
    lines = [b'{"payload":"{\\"id\\":1}"}', b'{"payload":{"ID":1}}', b'{"payload":"{\\"nr\\":1}"}']
    [line] = producing.run(producing.file("a.ndjson", b"\n".join(lines))).err
    assert "warning: 2 records feed no column of public.sent, the first on line 2: it has ID, " in line


def test_names_that_are_nearly_those_of_columns(loose: Producing) -> None:
    outcome = loose.run(loose.file("a.csv", b"id, name,NOTE,other\n1,a,b,c\n"))
    assert (outcome.code, len(outcome.err)) == (0, 2)
    assert outcome.err[0].endswith("a.csv:1: warning: the header: ' name' feeds no column, but 'name' would")
    assert outcome.err[1].endswith("a.csv:1: warning: the header: 'NOTE' feeds no column, but 'note' would")


def test_a_byte_order_mark_before_a_quote(loose: Producing) -> None:
    loose.sends(loose.file("a.csv", b'\xef\xbb\xbf"id","na,me",name\r\n1,x,a\r\n'))
    assert [message.value() for message in loose.messages()] == [b'{"id":1,"na,me":"x","name":"a"}']


def test_an_input_that_begins_with_little(loose: Producing) -> None:
    """What it is is not told by its first bytes alone, where a pipe or a packed file gives few of them."""
    for name, pack in (("a.json.gz", gzip.compress), ("a.json.zst", zstandard.ZstdCompressor().compress)):
        loose.sends(loose.file(name, pack(b"") + pack(b' \n[{"id":1},\n{"id":2}]')))
    assert len(loose.messages()) == 4
    reading, writing = os.pipe()
    process = loose.start("-", stdin=reading)
    os.close(reading)
    with os.fdopen(writing, "wb", 0) as pipe:
        pipe.write(b"{")
        wait_until(lambda: not waiting_bytes(writing), 30, "the command to read")
        pipe.write(b'\n  "id": 1\n}\n')
    outcome = finish(process)
    assert "a record over several lines" in outcome.err[0]


def waiting_bytes(pipe: int) -> int:
    """Return how many bytes nobody has read yet."""
    size = bytearray(4)
    fcntl.ioctl(pipe, termios.FIONREAD, size)
    return int.from_bytes(size, sys.byteorder)


def test_a_terminal_obeys_no_files_name(loose: Producing) -> None:
    file = loose.file("a[bold]\x1b[31m[red].ndjson", b'{"id":1}\n')
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "kbatchd", "produce", "--config", loose.config, "r", file],
        stdin=subprocess.DEVNULL, stdout=follower, stderr=follower, cwd=loose.directory,
    )  # fmt: skip
    os.close(follower)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: everybody has closed it
        while part := os.read(leader, 65_536):
            shown += part
    os.close(leader)
    assert process.wait() == 0, shown
    assert b"a[bold]\\x1b[31m[red].ndjson: 1 record acknowledged" in shown
    assert b"\x1b[31m[red].ndjson" not in shown


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
        ("a.ndjson", utf_16('{"имя": "Юлия", "ключ": "значение"}\n', "utf-16-le"), "iconv -f UTF-16LE"),
        ("a.csv", utf_16("имя;ключ\nЮлия;значение\n", "utf-16-be"), "iconv -f UTF-16BE"),
        ("a.ndjson", utf_16('{"id": 1}\n', "utf-32"), "is UTF-32"),
        ("a.ndjson", utf_16('{"id": 1}\n', "utf-32-be"), "is UTF-32; convert it: iconv -f UTF-32BE"),
        ("a.ndjson", b"\0\0\0\0\x07\0\x08\x01\x12\x03abc\n", "a schema registry's (schema 7), it is Avro or Protobuf"),
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
