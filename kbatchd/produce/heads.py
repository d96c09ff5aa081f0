"""What an input is, told by its first bytes, where it is none that can be read: better than each of its lines refused.

Pure; asked once an input, before anything of it is sent.
"""

from __future__ import annotations

import json
from typing import Final

from kbatchd.files import UTF8_MARK, is_array

#: Files of other kinds by how they begin, and what to do.
_OTHERS: Final = (
    ((b"\xff\xfe", b"\xfe\xff"), "is UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    ((b"BZh",), "is packed with bzip2", "unpack it, and name - : bzip2 -dc FILE | kbatchd produce ... -"),
    ((b"\xfd7zXZ",), "is packed with xz", "unpack it, and name - : xz -dc FILE | kbatchd produce ... -"),
    ((b"PK\x03\x04",), "is a zip file, or a spreadsheet", "unpack it, or save it as CSV"),
    ((b"PAR1",), "is a Parquet file", "write its rows as NDJSON or CSV"),
    ((b"Obj\x01",), "is an Avro file", "write its records as NDJSON"),
)

#: A zero byte and a schema's number, four bytes: what the serializers of a schema registry put before each record.
_REGISTRY_BYTES: Final = 5


def foreign(head: bytes, kind: str, *, is_json: bool) -> str | None:
    """Say what an input is that cannot be read as `kind`, and what to do; None for one that looks right."""
    for marks, what, remedy in _OTHERS:
        if head.startswith(marks):
            return f"{what}; {remedy}"
    return _utf_16(head) or (_no_lines_of_json(head, kind) if is_json else None)


def _utf_16(head: bytes) -> str | None:
    """Tell UTF-16 without a mark by the zeros between ASCII characters."""
    some = head[: len(head) // 2 * 2][:400]
    for order, high in (("BE", some[::2]), ("LE", some[1::2])):
        if high and not any(high):
            return f"is UTF-16; convert it: iconv -f UTF-16{order} -t UTF-8"
    return None


def _no_lines_of_json(head: bytes, kind: str) -> str | None:
    if head[:1] == b"\0" and head[_REGISTRY_BYTES:].lstrip()[:1] in {b"{", b"["}:
        number = int.from_bytes(head[1:_REGISTRY_BYTES])
        return (
            f"has five bytes of a schema registry (schema {number}) before its JSON; write the records without them, "
            "as a consumer with the registry's deserializer does"
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
