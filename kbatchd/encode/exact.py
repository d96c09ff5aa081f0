"""What orjson does not carry exactly: finds such records cheaply, and keeps the text of their fields.

orjson rounds integers outside [-2^63, 2^64) and floats beyond 15 digits without a word, gives 0.0 for 1e-400 and
refuses 1e400; numeric, json and jsonb columns hold all of these. And a NUL is valid JSON, but neither text nor jsonb
takes it. `suspects` looks at many records at once for the traces such values leave in the raw bytes, so that all
other records take the fast encoder. `Texts` and `field_slices` give a record's fields as they were written.

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

#: What can make orjson refuse valid JSON: numbers from 1.8e308 up. They have two digits of exponent, or many before it.
_MAYBE_HUGE = re.compile(rb"[eE]\+?[0-9]{2}|(?<![0-9])[0-9]{200}")
#: A string, also one that does not end, or a whole number. Nothing is gone over twice, in whatever there is: `++` and
#: `*+` give nothing back.
_STRING_OR_NUMBER = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"?|-?(0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE](\+?[0-9]++|-[0-9]++))?([-+.0-9eE]*+)', re.DOTALL
)
#: A number of so many digits before its point, when its exponent is applied, may be too large.
_HUGE_DIGITS = 300

#: An escape of what is printable in ASCII, but for the quote, the backslash and the slash.
_find_escaped_ascii = re.compile(rb"\\u00[2-7]").search
_number = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*([-+.0-9eE]+)").match
_COLON = ord(":")
_find_colon = re.compile(r"[ \t\r\n]*:[ \t\r\n]*").match
_skip_blanks = re.compile(r"[ \t\r\n]*").match


def _refuse_constant(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not a number", name, 0)


# `len` stands for the number parsers: no number is looked at here, and int() has a limit of 4,300 digits.
_decoder = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refuse_constant)
_scan_once: Callable[[str, int], tuple[object, int]] = _decoder.scan_once  # type: ignore[attr-defined]
_scan_string: Callable[[str, int], tuple[str, int]] = json.decoder.scanstring  # type: ignore[attr-defined]


def suspects(values: Sequence[bytes | None], *, numbers: bool) -> list[int]:
    """Return the indexes of the records that the fast encoder might change: numbers (if asked for) and NUL.

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
        value = _STRING_OR_NUMBER.sub(_without_huge, value)
    return orjson.loads(value)


def _without_huge(match: re.Match[bytes]) -> bytes:
    """Return what stands for a string or a number: 1.5 for one that may be too large for a double."""
    if match[3]:  # 1e400.5 is no number, and 1.5.5 must not become one
        return match[0]
    whole, exponent = match[1] or b"", match[2] or b""
    power = b"" if exponent[:1] == b"-" else exponent.lstrip(b"+0")
    if len(whole) + (int(power or b"0") if len(power) < 4 else _HUGE_DIGITS) < _HUGE_DIGITS:  # noqa: PLR2004
        return match[0]
    return b"-1.5" if match[0][:1] == b"-" else b"1.5"


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


#: So many bytes may be searched for fields that are looked for by their names: some tens of them, in a record of
#: the usual size. What more there is to look for is cheaper found by cutting the record up.
_SEARCHED_BYTES = 256 * 1024
#: The same for a large record, in times its size.
_SEARCHES = 8


class Texts:
    """The texts of a record's fields, whose names are known to be there.

    A field is looked for by its name; `lone` ones lie anywhere in the record, the others in its object. Where a look
    does not tell, and where too much was searched already, a lone field is a LookupError, and for the others the record
    is cut up, once: the work grows with its size alone, however many columns ask.
    """

    # Defaults of the class: there is one of these for each record.
    _text = ""
    _escapes: tuple[bool, bool] | None = None
    _slices: dict[str, bytes] | None = None

    def __init__(self, value: bytes) -> None:
        self._value = value
        self._left = _SEARCHED_BYTES + _SEARCHES * len(value)

    def of(self, name: str) -> str:
        """Return the text of a field."""
        try:
            return self.lone(name)
        except LookupError:
            return self._slice(name).decode()

    def json_of(self, name: str, x: object) -> bytes:
        """Return the text of a field whose value this is."""
        try:
            return self.lone_json(name, x)
        except LookupError:
            return self._slice(name)

    def lone(self, name: str) -> str:
        """Return the text of a field, however deep."""
        at = self._behind(name)
        number = _number(self._value, at)
        return self._scan(at) if number is None else number[1].decode()

    def lone_json(self, name: str, x: object) -> bytes:
        """Return the text of a field, however deep, whose value this is: mostly it is written as orjson does it."""
        at, text = self._behind(name), orjson.dumps(x)
        # A string, an array or an object shows its own end. A number does not: behind 1.5 there may be a 0.
        if text[0] in b'{["' and self._value[at] == _COLON and self._value.startswith(text, at + 1):
            return text
        return self._scan(at).encode()

    def _behind(self, name: str) -> int:
        """Return the place behind a name that occurs once, and nowhere in other characters: so it is that field's."""
        key, plain = _trace_of(name)
        value = self._value
        self._left -= 2 * len(value)
        at = -1 if self._slices is not None or self._left < 0 or self._has_escapes(plain=plain) else value.find(key)
        if at < 0 or value.find(key, at + 1) >= 0:
            raise LookupError
        return at + len(key)

    def _has_escapes(self, *, plain: bool) -> bool:
        """Say whether the record has escapes that a name could be written with instead."""
        if self._escapes is None:
            some = b"\\" in self._value
            self._escapes = some, some and _find_escaped_ascii(self._value) is not None
        return self._escapes[plain]

    def _scan(self, at: int) -> str:
        """Return the text of the value behind a colon at this byte."""
        text = self._text = self._text or self._value.decode()
        if len(text) < len(self._value):  # not all is ASCII
            at = len(self._value[:at].decode())
            self._left -= at
        start = _find_colon(text, at).end()  # type: ignore[union-attr]  # it is JSON
        return text[start : _scan_once(text, start)[1]]

    def _slice(self, name: str) -> bytes:
        if self._slices is None:
            self._slices = field_slices(self._value)
        return self._slices[name]


def field_text(value: bytes, name: str) -> str:
    """Return the text of one field of a record's object that is known to be there."""
    return Texts(value).of(name)


@cache
def _trace_of(name: str) -> tuple[bytes, bool]:
    """Return a name as records have it, and whether only escapes of printable ASCII can write it otherwise."""
    return b'"%b"' % name.encode(), name.isascii() and name.isprintable() and not set('"\\/') & set(name)
