"""What an input is, told by its first bytes, where it is none that can be read: better than each of its lines refused.

Pure; asked once an input, before anything of it is sent.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from kbatchd.files.files import UTF8_MARK, is_array

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Files of other kinds by how they begin, and what to do.
_OTHERS: Final = (
    ((b"\xff\xfe\0\0", b"\0\0\xfe\xff"), "is UTF-32", "convert it: iconv -f UTF-32 -t UTF-8"),
    ((b"\xff\xfe", b"\xfe\xff"), "is UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    ((b"BZh",), "is packed with bzip2", "unpack it, and name - : bzip2 -dc FILE | kbatchd produce ... -"),
    ((b"\xfd7zXZ",), "is packed with xz", "unpack it, and name - : xz -dc FILE | kbatchd produce ... -"),
    ((b"PK\x03\x04",), "is a zip file, or a spreadsheet", "unpack it, or save it as CSV"),
    ((b"\x04\x22\x4d\x18",), "is packed with lz4", "unpack it, and name - : lz4 -dc FILE | kbatchd produce ... -"),
    ((b"7z\xbc\xaf",), "is a 7-Zip archive", "unpack it"),
    ((b"\xd0\xcf\x11\xe0",), "is a spreadsheet", "save it as CSV, in UTF-8"),
    ((b"ORC",), "is an ORC file", "write its rows as NDJSON or CSV"),
    ((b"ARROW1", b"FEA1"), "is an Arrow file", "write its rows as NDJSON or CSV"),
    ((b"PAR1",), "is a Parquet file", "write its rows as NDJSON or CSV"),
    ((b"Obj\x01",), "is an Avro file", "write its records as NDJSON"),
)

#: A zero byte and a schema's number, four bytes: what the serializers of a schema registry put before each record.
_REGISTRY_BYTES: Final = 5

#: Of UTF-16's characters at least one in so many is ASCII, in JSON and CSV of any language.
_ASCII_SHARE: Final = 10

#: So much of an input is waited for, to tell what it is; its first line is enough.
_HEAD_BYTES: Final = 65_536


def read_head(chunks: Iterator[bytes]) -> bytes:
    """Take the beginning of an input, which a pipe may give in small pieces."""
    head = b""
    while len(head) < _HEAD_BYTES and not (is_array(head) or b"\n" in head.lstrip()):
        chunk = next(chunks, None)
        if chunk is None:
            break
        head += chunk
    return head


def foreign(head: bytes, kind: str, *, is_json: bool) -> str | None:
    """Say what an input is that cannot be read as `kind`, and what to do; None for one that looks right."""
    for marks, what, remedy in _OTHERS:
        if head.startswith(marks):
            return f"{what}; {remedy}"
    return _utf_16(head) or (_no_lines_of_json(head, kind) if is_json else None)


def _utf_16(head: bytes) -> str | None:
    """Tell UTF-16 and UTF-32 without a mark by the zeros beside ASCII characters: blanks and marks at least."""
    some = head[: len(head) // 4 * 4][:400]
    if some and not any(some[1::4] + some[2::4] + some[3::4]):
        return "is UTF-32; convert it: iconv -f UTF-32LE -t UTF-8"
    if some and not any(some[::4] + some[1::4] + some[2::4]):
        return "is UTF-32; convert it: iconv -f UTF-32BE -t UTF-8"
    for order, high, low in (("BE", some[::2], some[1::2]), ("LE", some[1::2], some[::2])):
        if high.count(0) * _ASCII_SHARE >= len(high) > 0 and 0 not in low:
            return f"is UTF-16; convert it: iconv -f UTF-16{order} -t UTF-8"
    return None


def _no_lines_of_json(head: bytes, kind: str) -> str | None:
    if head[:1] == b"\0":
        number = int.from_bytes(head[1:_REGISTRY_BYTES])
        if head[_REGISTRY_BYTES:].lstrip()[:1] in {b"{", b"["}:
            return (
                f"has five bytes of a schema registry (schema {number}) before its JSON; write the records without "
                "them, as a consumer with the registry's deserializer does"
            )
        return (
            f"is no JSON; if its first five bytes are a schema registry's (schema {number}), it is Avro or Protobuf: "
            "write the records as JSON, as a consumer with the registry's deserializer can"
        )
    if kind != "ndjson":
        return None
    if is_array(head):
        return "is a JSON array; say --format array"
    if _is_pretty_printed(head):
        return "is JSON with a record over several lines; put each into one: jq -c . FILE | kbatchd produce ... -"
    return None


def _is_pretty_printed(head: bytes) -> bool:
    text = head.removeprefix(UTF8_MARK).lstrip()
    first = text.partition(b"\n")[0].strip()
    if first == b"{" and len(text) > len(first):
        return True
    try:
        _, end = json.JSONDecoder(parse_int=len, parse_float=len).raw_decode(text.decode(errors="replace"))
    except (ValueError, RecursionError):
        return False
    return text[:1] == b"{" and "\n" in text.decode(errors="replace")[:end].rstrip()
