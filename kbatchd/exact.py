"""What orjson does not carry exactly: finds such records cheaply, and keeps the text of their fields.

orjson rounds integers outside [-2^63, 2^64) and floats beyond 15 digits without a word, gives 0.0 for 1e-400 and
refuses 1e400; numeric, json and jsonb columns hold all of these. And a NUL is valid JSON, but neither text nor jsonb
takes it. `suspects` looks at many records at once for the traces such values leave in the raw bytes, so that all
other records take the fast lane. `field_slices` gives a record's fields as they were written.

Called by the row encoder (rows.py) in the worker's poll loop. Pure functions, no I/O.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING, NoReturn, cast

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Digits and "." become 0, "E" becomes "e", "-" stays, what can follow a number becomes ",", and all else a blank: then
#: numbers can be found by their shape.
_SHAPE = bytes(
    ord("0") if byte in b"0123456789."
    else ord("e") if byte in b"eE"
    else ord("-") if byte == ord("-")
    else ord(",") if byte in b",]} \t\r\n"
    else ord(" ")
    for byte in range(256)
)  # fmt: skip
#: A double holds every decimal of up to 15 significant digits; one of 16 or more is a run of at least 16 such bytes.
_LONG = b"0" * 16
_run = re.compile(b"0+").match
#: A double is subnormal or zero below 2.3e-308. To be so small takes an exponent of three digits, or a run as above.
#: (The dashes of a UUID often look like an exponent, but a "-" or a quote follows its groups.)
_TINY = re.compile(b"e-0000*,")
#: The bytes that can stand before a number, or inside it before a run of digits. Never a quote: that is a string's.
_BEFORE_NUMBER = b"[,:-+eE \t\r\n"
#: Integers of so many digits are below 2^63.
_SAFE_INTEGER_DIGITS = 18
#: NUL inside a JSON string; a raw one is not valid JSON. (An escaped backslash before "u0000" looks the same here.)
_NUL = b"\\u0000"
#: Records are searched in pieces of about so many bytes, of which the search makes two copies: small enough for
#: malloc's heap and the processor's cache (0.33 us a record; with pieces of 128 KiB, each a mmap of its own, 0.49).
_PIECE_BYTES = 48 * 1024

#: What can make orjson refuse valid JSON: numbers from 1.8e308 up.
_MAYBE_HUGE = re.compile(rb"[eE]\+?[0-9]{3}|[0-9]{300}")
_STRING_OR_HUGE = re.compile(
    rb'"(?:[^"\\]|\\.)*"'
    rb"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?[eE]\+?[0-9]{3,}"
    rb"|-?[1-9][0-9]{299,}(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?",
    re.DOTALL,
)

#: An escape; and one of what is printable in ASCII, but for the quote, the backslash and the slash.
_ESCAPED = re.compile(rb"\\")
_ESCAPED_ASCII = re.compile(rb"\\u00[2-7]")
_FIELD_NUMBER = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*([-+.0-9eE]+)")
_find_colon = re.compile(r"[ \t\r\n]*:[ \t\r\n]*").match
_skip_blanks = re.compile(r"[ \t\r\n]*").match


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not a number", name, 0)


# `len` stands for the number parsers: no number is looked at here, and int() has a limit of 4,300 digits.
_decoder = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refuse_constant)
_scan_once: Callable[[str, int], tuple[object, int]] = _decoder.scan_once  # type: ignore[attr-defined]
_scan_string: Callable[[str, int], tuple[str, int]] = json.decoder.scanstring  # type: ignore[attr-defined]


def suspects(values: Sequence[bytes | None], *, numbers: bool) -> list[int]:
    """Return the indexes of the records that the fast lane might change: numbers (if asked for) and NUL.

    Costs 0.3 us a record of 275 bytes. It may name a record that is harmless, but leaves out none that is not.
    """
    texts = cast("Sequence[bytes]", values)
    try:
        size = sum(map(len, texts))
    except TypeError:  # a tombstone: looking for one first would cost as much again
        texts = [value or b"" for value in values]
        size = sum(map(len, texts))
    step = len(texts) * _PIECE_BYTES // (size or 1) + 1
    found: list[int] = []
    for first in range(0, len(texts), step):
        piece = texts[first : first + step]
        positions = _suspect_positions(b"\n".join(piece), numbers=numbers)
        if positions:
            ends = list(accumulate(len(text) + 1 for text in piece))
            found += sorted({first + bisect_right(ends, at) for at in positions})
    return found


def _suspect_positions(text: bytes, *, numbers: bool) -> list[int]:
    # A search for one byte is ten times as fast as one for six.
    found = _nul_positions(text) if b"\\" in text and _NUL in text else []
    if numbers:
        shape = text.translate(_SHAPE)
        # rfind takes two thirds of the time of find here.
        if shape.rfind(_LONG) >= 0:
            found += _inexact_positions(text, shape)
        if _TINY.search(shape):
            found += _tiny_positions(shape)
    return found


def _nul_positions(text: bytes) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(_NUL), text)]


def _tiny_positions(shape: bytes) -> list[int]:
    return [match.start() for match in _TINY.finditer(shape)]


def _inexact_positions(text: bytes, shape: bytes) -> list[int]:
    found = []
    at = shape.find(_LONG)
    while at >= 0:
        end = _run(shape, at).end()  # type: ignore[union-attr]  # it begins with 16
        before = text[at - 1]
        if before in _BEFORE_NUMBER and (before in b"eE+" or not _is_exact(text[at:end], text[end : end + 1])):
            found.append(at)
        at = shape.find(_LONG, end)
    return found


def _is_exact(digits: bytes, after: bytes) -> bool:
    """Tell whether orjson's value for a long run of digits and dots is the number as written."""
    if after in {b"e", b"E"}:
        return False
    if digits.isdigit():
        return len(digits) <= _SAFE_INTEGER_DIGITS or (len(digits) == _SAFE_INTEGER_DIGITS + 1 and int(digits) < 2**63)
    try:
        return repr(float(digits)).encode() == digits
    except ValueError:
        return True  # two dots: part of a string


def loads(value: bytes) -> object:
    """Decode a record, whatever the size of its numbers; see `loads_huge` for those that orjson refuses."""
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return loads_huge(value)


def loads_huge(value: bytes) -> object:
    """Decode a record that orjson refused, with 1.5 for each number too large for it.

    Wherever a number with a fraction is accepted, the field's own text (`field_slices`) must then be used. Raises
    JSONDecodeError when it is not JSON.
    """
    if _MAYBE_HUGE.search(value):
        value = _STRING_OR_HUGE.sub(lambda match: match[0] if match[0][:1] == b'"' else b"1.5", value)
    return orjson.loads(value)


def field_slices(value: bytes) -> dict[str, bytes]:
    """Return the raw text of each field of a JSON object; of a name that is there twice the last, as orjson does.

    Raises JSONDecodeError when it is not a JSON object, and RecursionError when it is nested too deeply.
    """
    text = value.decode()
    slices: dict[str, bytes] = {}
    at = _expect(text, 0, "{")
    if text[at : at + 1] == "}":
        _expect_end(text, at + 1)
        return slices
    while True:
        name, at = _scan_string(text, _expect(text, at, '"', skip=False))
        start = _expect(text, at, ":")
        try:
            _, at = _scan_once(text, start)
        except StopIteration as error:
            raise _not_json(text, start) from error
        slices[name] = text[start:at].encode()
        at = _skip_blanks(text, at).end()  # type: ignore[union-attr]  # matches the empty string as well
        if text[at : at + 1] == "}":
            _expect_end(text, at + 1)
            return slices
        at = _expect(text, at, ",")


def item_slices(value: bytes) -> list[bytes]:
    """Return the raw text of each item of a JSON array; errors as above."""
    text = value.decode()
    slices: list[bytes] = []
    at = _expect(text, 0, "[")
    if text[at : at + 1] == "]":
        _expect_end(text, at + 1)
        return slices
    while True:
        start = at
        try:
            _, at = _scan_once(text, start)
        except StopIteration as error:
            raise _not_json(text, start) from error
        slices.append(text[start:at].encode())
        at = _skip_blanks(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "]":
            _expect_end(text, at + 1)
            return slices
        at = _expect(text, at, ",")


def _expect(text: str, at: int, mark: str, *, skip: bool = True) -> int:
    """Return the position behind the mark and the blanks around it."""
    at = _skip_blanks(text, at).end()  # type: ignore[union-attr]
    if text[at : at + 1] != mark:
        raise _not_json(text, at)
    return _skip_blanks(text, at + 1).end() if skip else at + 1  # type: ignore[union-attr]


def _expect_end(text: str, at: int) -> None:
    at = _skip_blanks(text, at).end()  # type: ignore[union-attr]
    if at != len(text):
        raise _not_json(text, at)


def _not_json(text: str, at: int) -> json.JSONDecodeError:
    return json.JSONDecodeError("unexpected text", text, at)


def field_text(value: bytes, name: str) -> str:
    """Return the text of a field of a record's object that is known to be there."""
    try:
        return lone_text(value, name)
    except LookupError:
        return field_slices(value)[name].decode()


def lone_text(value: bytes, name: str) -> str:
    """Return the text of a field that is known to be there, however deep; LookupError where one look does not tell.

    A name that occurs once, and nowhere in other characters, is that field's: no need to look at the others.
    """
    key, search_escapes = _trace_of(name)
    at = value.find(key)
    if value.find(key, at + 1) >= 0 or (b"\\" in value and search_escapes(value)):
        raise LookupError
    number = _FIELD_NUMBER.match(value, at + len(key))
    if number is not None:
        return number[1].decode()
    text = value[at + len(key) :].decode()
    start = _find_colon(text).end()  # type: ignore[union-attr]  # it is JSON
    _, end = _scan_once(text, start)
    return text[start:end]


@cache
def _trace_of(name: str) -> tuple[bytes, Callable[[bytes], object]]:
    """Return a name as records have it, and a search for escapes that it could be written with instead."""
    plain = name.isascii() and name.isprintable() and not set('"\\/') & set(name)
    return b'"%b"' % name.encode(), (_ESCAPED_ASCII if plain else _ESCAPED).search
