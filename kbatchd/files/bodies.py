"""A request's body: unpacked within a bound, and split into records without rewriting one.

A record's value is a slice of the body. An array's elements are cut where one object seems to end and the next to
begin (0.5 us a record; asking a JSON parser for the places takes 4). That guess needs no proof of its own: elements
that are all valid JSON, put together with commas, are this array and no other. When one is not valid, `split_exactly`
asks the parser.

Called by the gateway's event loop; no I/O.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import zstandard

from kbatchd.errors import KbatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_BLANK = b" \t\r\n"
#: The end of an object, a comma, and the beginning of an object.
_BETWEEN_OBJECTS = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_BLANKS = re.compile(r"[ \t\r\n]*")
#: gzip's format, in zlib's numbers.
_GZIP_WINDOW = 31
#: The window is memory that a frame asks for: 8 MiB is what every decoder must offer (RFC 8878).
_ZSTD_WINDOW = 8 << 20
#: So much is unpacked at once, since neither library can be told where to stop and still say whether the end was
#: there: zstd makes 16 MiB of it at most (a block of 128 KiB takes 4 bytes), gzip 0.5 MiB. As fast as larger pieces.
_PIECE_BYTES = 512
#: A file may have several members, each with its own cost: 10 MB of empty ones take seconds.
_MAX_MEMBERS = 1_000
#: RFC 8259 lets a reader ignore it.
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


#: Numbers keep their text: only the places matter, and an int of many digits takes long to make.
_scan = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=_refuse_constant).raw_decode


class Malformed(KbatchError):
    """The body is not what its headers say."""


class TooLarge(KbatchError):
    """The body is larger than allowed, once it is unpacked."""


class Records(NamedTuple):
    """What a body holds: the values, and for each the line, or the place in the array, from 1."""

    values: list[bytes]
    lines: Sequence[int]
    #: Whether the body is one object, not a list of them.
    single: bool = False


def unpack(body: bytes, encoding: str, max_bytes: int, hold: Callable[[int], object] = lambda _size: None) -> bytes:
    """Undo the content encoding "gzip" or "zstd"; never hold more than twice `max_bytes` and 16 MiB.

    `hold` is told of all that is unpacked, as it is unpacked; what it raises ends it.
    """
    zstd = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    begin = _gzip_member if encoding == "gzip" else zstd.decompressobj
    packed, at = memoryview(body), 0
    parts, size = [], 0
    try:
        for _ in range(_MAX_MEMBERS):
            member = begin()
            while not member.eof:
                piece = packed[at : at + _PIECE_BYTES]
                if not piece:
                    raise Malformed(f"the body is not a whole {encoding}")
                at += len(piece)
                part = member.decompress(piece)
                parts.append(part)
                size += len(part)
                hold(len(part))
                if size > max_bytes:
                    raise TooLarge(f"more than {max_bytes} bytes when unpacked")
            at -= len(member.unused_data)
            if at == len(packed):
                return b"".join(parts)
    except (zlib.error, zstandard.ZstdError) as error:
        raise Malformed(f"the body is not {encoding}: {error}") from error
    raise TooLarge(f"more than {_MAX_MEMBERS} {encoding} members")


def _gzip_member() -> zlib._Decompress:
    return zlib.decompressobj(_GZIP_WINDOW)


def split_lines(body: bytes, max_records: int) -> Records:
    """Split newline-delimited JSON; empty lines count as lines, but are no records."""
    body = body.removeprefix(_BYTE_ORDER_MARK)
    if body.count(b"\n") - body.endswith(b"\n") >= max_records:
        raise TooLarge(f"more than {max_records} lines")
    values, numbers = [], []
    for number, line in enumerate(body.split(b"\n"), 1):
        value = line.strip(_BLANK)
        if value:
            values.append(value)
            numbers.append(number)
    return Records(values, numbers)


def split(body: bytes, max_records: int) -> Records:
    """Split a JSON object, which is one record, or an array of them; the elements are still to be checked."""
    body = _trim(body)
    if body[:1] == b"{":
        return Records([body], (1,), single=True)
    if body[:1] != b"[" or body[-1:] != b"]":
        raise Malformed("the body is neither a JSON object nor an array of objects")
    values = []
    begin, end = 1, len(body) - 1
    for between in _BETWEEN_OBJECTS.finditer(body, begin, end):
        values.append(body[begin : between.start() + 1].strip(_BLANK))
        begin = between.end()
        if len(values) >= max_records:  # and there is one more
            raise TooLarge(f"more than {max_records} records")
    last = body[begin:end].strip(_BLANK)
    if last or values:
        values.append(last)
    return Records(values, range(1, len(values) + 1))


def split_exactly(body: bytes, max_records: int) -> Records:
    """Split the same by parsing it; Malformed when it is not JSON.

    What is JSON to this parser may still be none to orjson: half of a surrogate pair, say.
    """
    body = _trim(body)
    try:
        text = body.decode()
        if text[:1] == "{":
            _, end = _scan(text)
            values = [body]
        else:
            values, end = _elements(text, max_records)
        if end != len(text):
            raise Malformed(f"the body is not JSON: unexpected text at character {end + 1}")
    except RecursionError as error:
        raise Malformed("the body is not JSON: nested too deeply") from error
    except ValueError as error:  # UnicodeDecodeError too
        raise Malformed(f"the body is not JSON: {error}") from error
    return Records(values, range(1, len(values) + 1), single=text[:1] == "{")


def _elements(text: str, max_records: int) -> tuple[list[bytes], int]:
    """Cut out an array's elements; return them, and the place behind the array."""
    values: list[bytes] = []
    at = _skip(text, 1)  # behind the "["
    if text[at : at + 1] == "]":
        return values, at + 1
    while True:
        _, end = _scan(text, at)
        values.append(text[at:end].encode())
        if len(values) > max_records:
            raise TooLarge(f"more than {max_records} records")
        at = _skip(text, end)
        mark = text[at : at + 1]
        if mark == "]":
            return values, at + 1
        if mark != ",":
            raise ValueError(f"neither a comma nor the array's end at character {at + 1}")
        at = _skip(text, at + 1)


def _trim(body: bytes) -> bytes:
    return body.removeprefix(_BYTE_ORDER_MARK).strip(_BLANK)


def _skip(text: str, at: int) -> int:
    blanks = _BLANKS.match(text, at)
    return blanks.end() if blanks else at
