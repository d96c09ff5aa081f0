"""A field's value: from JSON, as orjson decodes it, to the bytes of PostgreSQL's binary format.

One plain function a type, `encode_*`: it takes all that can be taken without changing a value, and says precisely what
it refuses. `x` is the decoded value, never None. `raw` is the field's own text where orjson's value may not be exact;
then `x` must not be used as a number. The `fast_*` functions are what the fast lane needs beyond one expression: they
may raise anything for what they do not take, since the record then comes to `encode_*`.

Called by the row encoder (rows.py) in the worker's poll loop. Pure functions, no I/O.
"""

from __future__ import annotations

import math
import re
import struct
from binascii import a2b_base64, a2b_hex
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final, cast

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kbatchd.catalogue import Column

    Encode = Callable[[object, Column, str | None], bytes]

#: How much of a value a message may show.
_SHOWN_CHARACTERS = 60

#: Day and moment from which PostgreSQL counts.
EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
EPOCH_DAY: Final = date(2000, 1, 1).toordinal()
_MICROSECONDS: Final = 1_000_000
#: PostgreSQL's infinity and -infinity, for dates (int4) and timestamps (int8).
_INFINITE_DAYS: Final = {"infinity": 2**31 - 1, "-infinity": -(2**31)}
_INFINITE_MICROSECONDS: Final = {"infinity": 2**63 - 1, "-infinity": -(2**63)}


class Refused(ValueError):
    """A record cannot become a row; `column` is known where a field is the reason."""

    def __init__(self, code: str, message: str, column: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.column = column


def show(value: object) -> str:
    """Show a decoded value in a message, shortened."""
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case str() if len(value) > _SHOWN_CHARACTERS:
            return f"{value[:_SHOWN_CHARACTERS]!r}..."
        case None | bool():
            return str(value).lower().replace("none", "null")
        case _:
            return repr(value)[: _SHOWN_CHARACTERS + 2]


def _wrong_type(expected: str, value: object) -> Refused:
    return Refused("wrong_type", f"expected {expected}, got {show(value)}")


def _out_of_range(column: Column, shown: object) -> Refused:
    return Refused("out_of_range", f"{str(shown)[:_SHOWN_CHARACTERS]} is out of range for type {column.type_name}")


def encode_bool(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take true and false, nothing that counts as one."""
    if type(x) is not bool:
        raise _wrong_type("true or false", x)
    return b"\x01" if x else b"\x00"


def encode_integer(code: str) -> Encode:
    """Make the function for an integer of one width: 1.0 and 1e3 are no integers."""
    pack = struct.Struct(code).pack

    def encode(x: object, column: Column, raw: str | None) -> bytes:
        if type(x) is float:
            shown = _Literal(repr(x) if raw is None else raw)
            # orjson makes floats of integers it cannot hold.
            if abs(x) >= _TOO_LARGE_FOR_INT8 or str(shown).lstrip("-").isdigit():
                raise _out_of_range(column, shown)
            raise _wrong_type("an integer", shown)
        if type(x) is not int:
            raise _wrong_type("an integer", x)
        try:
            return pack(x)
        except struct.error as error:
            raise _out_of_range(column, x) from error

    return encode


_TOO_LARGE_FOR_INT8: Final = 2.0**63


class _Literal:
    """A number as it was written, to be shown."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def encode_float8(x: object, column: Column, raw: str | None) -> bytes:
    """Round to the nearest double, as PostgreSQL does."""
    return struct.pack(">d", _double(x, column, raw))


def _double(x: object, column: Column, raw: str | None) -> float:
    """Return the nearest double; as PostgreSQL does, refuse what overflows and what becomes zero without being zero."""
    if type(x) is not float and type(x) is not int:
        raise _wrong_type("a number", x)
    if raw is None:
        return float(x)
    value = float(raw)
    if math.isinf(value) or (value == 0 and not _is_zero(raw)):
        raise _out_of_range(column, raw)
    return value


def _is_zero(literal: str) -> bool:
    return not literal.lower().partition("e")[0].strip("-0.")


_pack_float4: Final = struct.Struct(">f").pack
_unpack_float4: Final = struct.Struct(">f").unpack
_pack_float4_bits: Final = struct.Struct(">i").pack
_unpack_float4_bits: Final = struct.Struct(">i").unpack
_pack_double: Final = struct.Struct(">d").pack
_unpack_bits: Final = struct.Struct(">q").unpack
#: The bits of a double that a float4 has not, and their value where the double lies in the middle between two float4.
_FLOAT4_LOST: Final = 2**29 - 1
_FLOAT4_HALF: Final = 2**28
#: The smallest normal float4.
_FLOAT4_MIN: Final = 2.0**-126


def fast_float4(x: object) -> bytes:
    """Pack a number whose double rounds to a float4 as its literal does: not halfway, not subnormal."""
    if type(x) is not float and type(x) is not int:
        raise TypeError
    if _unpack_bits(_pack_double(x))[0] & _FLOAT4_LOST == _FLOAT4_HALF or (x != 0 and -_FLOAT4_MIN < x < _FLOAT4_MIN):
        raise ValueError
    return _pack_float4(x)


def encode_float4(x: object, column: Column, raw: str | None) -> bytes:
    """Round the literal once, not to a double and then to a float4: halfway cases come out differently."""
    double = _double(x, column, raw)
    literal = Decimal(repr(x) if raw is None else raw)
    rounded = _nearest_float4(literal.copy_abs())  # abs() would round it
    if math.isinf(rounded) or (rounded == 0 and not literal.is_zero()):
        raise _out_of_range(column, literal)
    return _pack_float4(math.copysign(rounded, double))


def _nearest_float4(magnitude: Decimal) -> float:
    """Return the nearest float4, of two equally near ones the even one; infinity when it is too large."""
    try:
        packed = _pack_float4(magnitude)
    except OverflowError:
        return math.inf
    (near,) = _unpack_float4(packed)
    (bits,) = _unpack_float4_bits(packed)
    if magnitude == near:
        return cast("float", near)
    step = 1 if magnitude > near else -1  # comparisons of decimals with floats are exact
    (other,) = _unpack_float4(_pack_float4_bits(bits + step))
    middle = (near + other) / 2  # exact: a double has room for one bit more
    if (magnitude > middle if step > 0 else magnitude < middle) or (magnitude == middle and bits % 2):
        near = other
    return cast("float", near)


_NUMBER = re.compile(r"([+-]?)([0-9]*)(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,9}))?")
_numeric_head: Final = struct.Struct(">HhHH").pack
_NEGATIVE: Final = 0x4000
#: NaN and the infinities (PostgreSQL 14) have signs of their own.
_SPECIAL_NUMERICS: Final = {
    word: _numeric_head(0, 0, sign, 0)
    for sign, words in (
        (0xC000, ("nan",)),
        (0xD000, ("infinity", "+infinity", "inf", "+inf")),
        (0xF000, ("-infinity", "-inf")),
    )
    for word in words
}
#: numeric's dscale has 14 bits. PostgreSQL refuses more with a protocol error, which is no data error: so we must.
_MAX_SCALE: Final = 0x3FFF


def pack_numeric(text: str) -> bytes:
    """Encode a decimal literal: digits in base 10,000, keeping its sign and its scale (12.30 stays 12.30).

    ValueError when it is none, struct.error or OverflowError when PostgreSQL could not hold it.
    """
    match = _NUMBER.fullmatch(text)
    if match is None:
        special = _SPECIAL_NUMERICS.get(text.lower())
        if special is None:
            raise ValueError
        return special
    sign, whole, fraction, exponent = match.groups("")
    if not whole and not fraction:
        raise ValueError
    shift = int(exponent) if exponent else 0
    scale = max(len(fraction) - shift, 0)
    if scale > _MAX_SCALE:
        raise OverflowError
    digits = (whole + fraction).lstrip("0")
    point = len(digits) - len(fraction) + shift
    digits = digits.rstrip("0")
    if not digits:
        return _numeric_head(0, 0, 0, scale)
    weight = (point + 3) // 4 - 1
    digits = "0" * ((weight + 1) * 4 - point) + digits
    digits += "0" * (-len(digits) % 4)
    count = len(digits) // 4
    groups = [int(digits[at : at + 4]) for at in range(0, len(digits), 4)]
    return struct.pack(f">HhHH{count}H", count, weight, _NEGATIVE if sign == "-" else 0, scale, *groups)


def fast_numeric(x: object) -> bytes:
    """Encode a numeric whose double is exact; its scale is the column's."""
    if type(x) is float or type(x) is int:
        return pack_numeric(repr(x))
    if type(x) is str:
        return pack_numeric(x)
    raise TypeError


def encode_numeric(x: object, column: Column, raw: str | None) -> bytes:
    """Take every digit of a number, or of a string that is one."""
    if type(x) is str:
        text = x
    elif type(x) is float or type(x) is int:
        text = repr(x) if raw is None else raw
    else:
        raise _wrong_type("a number", x)
    try:
        return pack_numeric(text)
    except (struct.error, OverflowError) as error:
        raise _out_of_range(column, text) from error
    except ValueError as error:
        # A number that does not match has an exponent of ten digits or more.
        if type(x) is not str:
            raise _out_of_range(column, text) from error
        raise Refused("not_a_number", f"{show(x)} is not a number") from error


def encode_text(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take any string without a NUL."""
    if type(x) is not str:
        raise _wrong_type("a string", x)
    if "\0" in x:
        raise Refused("null_byte", f"{column.type_name} cannot hold a NUL: {show(x)}")
    return x.encode()


#: A varchar's typmod is its length and 4 more.
VARCHAR_HEADER = 4


def encode_varchar(x: object, column: Column, raw: str | None) -> bytes:
    """Take a text that fits; PostgreSQL itself cuts off blanks beyond the limit."""
    encoded = encode_text(x, column, raw)
    limit = column.typmod - VARCHAR_HEADER
    if column.typmod >= VARCHAR_HEADER and len(encoded) > limit:
        text = encoded.decode()
        if text[limit:].strip(" "):
            raise Refused("out_of_range", f"{len(text)} characters are too many for varchar({limit})")
    return encoded


_UUID = re.compile(r"(?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}")


def encode_uuid(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take all forms PostgreSQL takes: upper case, braces, a dash after any four digits or none."""
    if type(x) is not str:
        raise _wrong_type("a string", x)
    digits = x[1:-1] if x[:1] == "{" and x[-1:] == "}" else x
    if not _UUID.fullmatch(digits):
        raise Refused("not_a_uuid", f"{show(x)} is not a UUID")
    return a2b_hex(digits.replace("-", ""))


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def encode_date(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take YYYY-MM-DD and PostgreSQL's infinities."""
    if type(x) is not str:
        raise _wrong_type("a string", x)
    days = _INFINITE_DAYS.get(x)
    if days is None:
        if not _DATE.fullmatch(x):
            raise Refused("not_a_date", f"{show(x)} is not a date: expected YYYY-MM-DD")
        try:
            days = date.fromisoformat(x).toordinal() - EPOCH_DAY
        except ValueError as error:
            raise Refused("not_a_date", f"{show(x)} is not a date: there is no such day") from error
    return struct.pack(">i", days)


#: Date, hours, minutes, seconds, fraction, then Z or the offset's sign, hours, and minutes (+hhmm, or +hh:mm[:ss]).
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]*))?)?"
    r"(?:([Zz])|([+-])([0-9]{2})(?:([0-9]{2})|:([0-9]{2})(?::([0-9]{2}))?)?)?"
)
_MAX_HOUR, _MAX_MINUTE, _MAX_SECOND = 23, 59, 60  # a leap second is the next minute's first, as PostgreSQL has it
#: PostgreSQL takes offsets to 15:59:59, Python to 23:59:59.
_MAX_OFFSET_HOUR = 15
_EXACT_FRACTION_DIGITS = 6


def _parse_timestamp(text: str) -> tuple[int, int | None]:
    """Return the microseconds from 2000 on the clock, and the offset in seconds (None: there is none)."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise _bad_timestamp(text, "expected YYYY-MM-DDThh:mm:ss.ffffff and an offset")
    day, hour, minute, second, fraction, zulu, sign, *offset_parts = match.groups("0")
    try:
        days = date.fromisoformat(day).toordinal() - EPOCH_DAY
    except ValueError as error:
        raise _bad_timestamp(text, "there is no such day") from error
    hours, minutes, seconds = int(hour), int(minute), int(second)
    if hours > _MAX_HOUR or minutes > _MAX_MINUTE or seconds > _MAX_SECOND:
        raise _bad_timestamp(text, "there is no such time")
    if len(fraction) <= _EXACT_FRACTION_DIGITS:
        microseconds = int(fraction.ljust(_EXACT_FRACTION_DIGITS, "0"))
    else:
        microseconds = round(float(f"0.{fraction}") * _MICROSECONDS)  # PostgreSQL's rint(strtod(...) * 1000000)
    clock = (days * 86400 + hours * 3600 + minutes * 60 + seconds) * _MICROSECONDS + microseconds
    if sign == "0":
        return clock, None if zulu == "0" else 0
    return clock, _parse_offset(text, sign, offset_parts)


def _parse_offset(text: str, sign: str, parts: Sequence[str]) -> int:
    hours, minutes, colon_minutes, seconds = map(int, parts)
    minutes = minutes or colon_minutes
    if hours > _MAX_OFFSET_HOUR or minutes > _MAX_MINUTE or seconds > _MAX_MINUTE:
        raise _bad_timestamp(text, "there is no such offset")
    offset = hours * 3600 + minutes * 60 + seconds
    return -offset if sign == "-" else offset


def _bad_timestamp(text: str, reason: str) -> Refused:
    return Refused("not_a_timestamp", f"{show(text)} is not a timestamp: {reason}")


def fast_timestamptz(x: str) -> int:
    """Return microseconds from 2000, in UTC, for any form that is taken."""
    if x in _INFINITE_MICROSECONDS:
        return _INFINITE_MICROSECONDS[x]
    clock, offset = _parse_timestamp(x)
    if offset is None:
        raise _bad_timestamp(x, "it has no offset, and the server's time zone must not decide")
    return clock - offset * _MICROSECONDS


def encode_timestamptz(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take RFC 3339 with its offset, and PostgreSQL's infinities."""
    if type(x) is not str:
        raise _wrong_type("a string", x)
    return struct.pack(">q", fast_timestamptz(x))


def fast_timestamp(x: str) -> int:
    """Return microseconds from 2000 for any form without an offset, or with the offset zero."""
    if x in _INFINITE_MICROSECONDS:
        return _INFINITE_MICROSECONDS[x]
    clock, offset = _parse_timestamp(x)
    if offset:
        raise _bad_timestamp(x, "a timestamp without time zone would lose its offset")
    return clock


def encode_timestamp(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take RFC 3339 without an offset, or with the offset zero, and PostgreSQL's infinities."""
    if type(x) is not str:
        raise _wrong_type("a string", x)
    return struct.pack(">q", fast_timestamp(x))


def encode_json(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take any value, in its own text where that matters."""
    return orjson.dumps(x) if raw is None else raw.encode()


#: An escaped NUL, and not an escaped backslash before "u0000".
_JSON_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def encode_jsonb(x: object, column: Column, raw: str | None) -> bytes:
    """Take any value but a NUL in a string; the first byte is the format's version."""
    text = encode_json(x, column, raw)
    if b"\\u0000" in text and _JSON_NUL.search(text):
        raise Refused("null_byte", "jsonb cannot hold a NUL in a string")
    return b"\x01" + text


def encode_bytea(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take a string in base64."""
    if type(x) is not str:
        raise _wrong_type("a string in base64", x)
    try:
        return a2b_base64(x, strict_mode=True)
    except ValueError as error:
        raise Refused("not_base64", f"{show(x)} is not base64") from error
