"""Numbers in PostgreSQL's binary format; see fields.py for the rules of these functions.

A string is taken where it is the number's text, as PostgreSQL's own input does it: JSON has no NaN, and many producers
quote what a double cannot hold.
"""

from __future__ import annotations

import math
import re
import struct
from decimal import Decimal
from typing import TYPE_CHECKING, Final, cast

from kbatchd.encode.fields import Refused, out_of_range, show, wrong_type

if TYPE_CHECKING:
    from kbatchd.encode.fields import Encode
    from kbatchd.postgres.table import Column


def encode_integer(code: str) -> Encode:
    """Make the function for an integer of one width: 1.0 and 1e3 are no integers, to PostgreSQL neither."""
    pack = struct.Struct(code).pack

    def encode(x: object, column: Column, raw: str | None) -> bytes:
        if type(x) is float:
            literal = repr(x) if raw is None else raw
            # orjson makes floats of integers it cannot hold.
            if abs(x) >= _TOO_LARGE_FOR_INT8 or literal.lstrip("-").isdigit():
                raise out_of_range(column, literal)
            raise wrong_type("an integer", x, literal)
        number = x if type(x) is int else _integer(x, column)
        try:
            return pack(number)
        except struct.error as error:
            raise out_of_range(column, number) from error

    return encode


_INTEGER = re.compile(r"[+-]?[0-9]+")
#: More digits than any integer has, and fewer than int() refuses.
_MANY_DIGITS = 1000


def _integer(x: object, column: Column) -> int:
    if type(x) is not str or not _INTEGER.fullmatch(x):
        raise wrong_type("an integer", x)
    if len(x) > _MANY_DIGITS:
        raise out_of_range(column, x)
    return int(x)


_TOO_LARGE_FOR_INT8: Final = 2.0**63


def encode_float8(x: object, column: Column, raw: str | None) -> bytes:
    """Round to the nearest double, as PostgreSQL does."""
    special = _special_float(x)
    return struct.pack(">d", _double(x, column, raw) if special is None else special)


#: What is no number of JSON's, as a string.
_SPECIAL_FLOATS: Final = {
    word: float(word) for word in ("nan", "infinity", "+infinity", "-infinity", "inf", "+inf", "-inf")
}


def _special_float(x: object) -> float | None:
    return _SPECIAL_FLOATS.get(x.lower()) if isinstance(x, str) else None


def is_number(text: str) -> bool:
    """Say whether a string is a number's text."""
    match = _NUMBER.fullmatch(text)
    return match is not None and bool(match[2] or match[3])


def number_literal(x: object, raw: str | None) -> str:
    """Return the digits of a number, or of a string that is one."""
    if type(x) is str:
        if not is_number(x):
            raise wrong_type("a number", x)
        return x
    if type(x) is not float and type(x) is not int:
        raise wrong_type("a number", x)
    return repr(x) if raw is None else raw


def _double(x: object, column: Column, raw: str | None) -> float:
    """Return the nearest double; as PostgreSQL does, refuse what overflows and what becomes zero without being zero."""
    literal = number_literal(x, raw)
    value = float(literal)
    if math.isinf(value) or (value == 0 and not is_zero(literal)):
        raise out_of_range(column, literal)
    return value


def is_zero(literal: str) -> bool:
    """Say whether a number's text has no digit but zeros, whatever its exponent."""
    return not literal.lower().partition("e")[0].strip("+-0.")


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
    special = _special_float(x)
    if special is not None:
        return _pack_float4(special)
    double = _double(x, column, raw)
    if double == 0:
        return _pack_float4(double)  # whatever its exponent, which may be more than a Decimal takes
    literal = Decimal(number_literal(x, raw))
    rounded = _nearest_float4(literal.copy_abs())  # abs() would round it
    if math.isinf(rounded) or (rounded == 0 and not literal.is_zero()):
        raise out_of_range(column, literal)
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
        raise wrong_type("a number", x)
    try:
        return pack_numeric(text)
    except (struct.error, OverflowError) as error:
        raise out_of_range(column, text) from error
    except ValueError as error:
        # A number that does not match has an exponent of ten digits or more.
        if type(x) is not str:
            raise out_of_range(column, text) from error
        raise Refused("not_a_number", f"{show(x)} is not a number") from error
