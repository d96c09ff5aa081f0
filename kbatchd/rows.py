"""The row encoder: from a record's JSON to a row of PostgreSQL's binary COPY, generated once for each route.

Two lanes. The fast lane is straight-line code made from the table's columns: no dispatch a field, no call a type. It
takes only what it is sure of and lets anything else raise. The careful lane is one plain function a type: it takes all
that can be taken without changing a value, and says precisely what it refuses. Records with numbers or strings that
orjson does not carry exactly (exact.py) go to the careful lane with the text of their fields.

Used by the worker in its poll loop; no I/O. The codes of refusals:

    no_value         the record has no value (a tombstone)
    not_json         not UTF-8, not JSON, or nested too deeply
    not_object       JSON, but not an object
    missing          no such field, and the column is NOT NULL
    null             null, and the column is NOT NULL
    wrong_type       another JSON type than the column takes
    out_of_range     a number or a text that the column cannot hold
    null_byte        a NUL in a text
    not_a_number     a string that is no number, for a numeric column
    not_a_uuid       ... no UUID
    not_a_date       ... not YYYY-MM-DD
    not_a_timestamp  ... no RFC 3339 timestamp; without an offset for timestamptz; with one but zero for timestamp
    not_base64       ... not base64, for a bytea column
"""

from __future__ import annotations

import math
import re
import struct
from binascii import a2b_base64, a2b_hex
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, cast

import orjson

from kbatchd.exact import field_slices, loads_huge, number_literal, suspects
from kbatchd.model import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kbatchd.catalogue import Column

    Encode = Callable[[Any, Column, str | None], bytes]

#: All that the fast lane raises for a record it does not take. struct.error is an Exception of its own.
_NOT_TAKEN = (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error)

_NULL: Final = struct.pack(">i", -1)
_length: Final = struct.Struct(">i").pack
#: The lengths of nearly all fields, packed: reading a list takes half the time of packing.
_LENGTHS: Final = [_length(size) for size in range(4096)]
#: The same for jsonb, whose first byte is its version, 1.
_JSONB_LENGTHS: Final = [_length(size + 1) + b"\x01" for size in range(4096)]

#: How much of a value a message may show.
_SHOWN_CHARACTERS = 60

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_EPOCH_DAY: Final = date(2000, 1, 1).toordinal()
_MICROSECONDS: Final = 1_000_000
#: PostgreSQL's infinity and -infinity, for dates (int4) and timestamps (int8).
_INFINITE_DAYS: Final = {"infinity": 2**31 - 1, "-infinity": -(2**31)}
_INFINITE_MICROSECONDS: Final = {"infinity": 2**63 - 1, "-infinity": -(2**63)}


class _Refused(ValueError):
    """A field's value cannot go into its column."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def _shown(value: object) -> str:
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


def _wrong_type(expected: str, value: object) -> _Refused:
    return _Refused("wrong_type", f"expected {expected}, got {_shown(value)}")


def _out_of_range(column: Column, shown: object) -> _Refused:
    return _Refused("out_of_range", f"{str(shown)[:_SHOWN_CHARACTERS]} is out of range for type {column.type_name}")


# The careful lane: one function a type. `x` is the decoded value, never None; `raw` is the field's own text where orjson's
# value may not be exact, and then `x` must not be used as a number.


def _bool(x: Any, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    if type(x) is not bool:
        raise _wrong_type("true or false", x)
    return b"\x01" if x else b"\x00"


def _integer(code: str) -> Encode:
    pack = struct.Struct(code).pack

    def encode(x: Any, column: Column, raw: str | None) -> bytes:
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


def _float8(x: Any, column: Column, raw: str | None) -> bytes:
    return struct.pack(">d", _double(x, column, raw))


def _double(x: Any, column: Column, raw: str | None) -> float:
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


def _fast_float4(x: Any) -> bytes:
    """Pack a number whose double rounds to a float4 as its literal does: not halfway, not subnormal."""
    if type(x) is not float and type(x) is not int:
        raise TypeError
    if _unpack_bits(_pack_double(x))[0] & _FLOAT4_LOST == _FLOAT4_HALF or (x != 0 and -_FLOAT4_MIN < x < _FLOAT4_MIN):
        raise ValueError
    return _pack_float4(x)


def _float4(x: Any, column: Column, raw: str | None) -> bytes:
    """Round the literal once, not to a double and then to a float4: halfway cases come out differently."""
    double = _double(x, column, raw)
    literal = Decimal(x if raw is None else raw)
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
    for sign, words in ((0xC000, ("nan",)), (0xD000, ("infinity", "+infinity", "inf", "+inf")), (0xF000, ("-infinity", "-inf")))
    for word in words
}
#: numeric's dscale has 14 bits. PostgreSQL refuses more with a protocol error, which is no data error: so we must.
_MAX_SCALE: Final = 0x3FFF


def numeric(text: str) -> bytes:
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


def _fast_numeric(x: Any) -> bytes:
    """Encode a numeric whose double is exact; its scale is the column's."""
    if type(x) is float or type(x) is int:
        return numeric(repr(x))
    if type(x) is str:
        return numeric(x)
    raise TypeError


def _fast_numeric_scale(x: Any, value: bytes, name: str) -> bytes:
    """Encode a numeric that keeps the scale its literal has."""
    if type(x) is float:
        return numeric(number_literal(value, name))
    if type(x) is int:
        return numeric(repr(x))
    if type(x) is str:
        return numeric(x)
    raise TypeError


def _numeric(x: Any, column: Column, raw: str | None) -> bytes:
    if type(x) is str:
        text = x
    elif type(x) is float or type(x) is int:
        text = repr(x) if raw is None else raw
    else:
        raise _wrong_type("a number", x)
    try:
        return numeric(text)
    except (struct.error, OverflowError) as error:
        raise _out_of_range(column, text) from error
    except ValueError as error:
        # A number that does not match has an exponent of ten digits or more.
        if type(x) is not str:
            raise _out_of_range(column, text) from error
        raise _Refused("not_a_number", f"{_shown(x)} is not a number") from error


def _text(x: Any, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    if type(x) is not str:
        raise _wrong_type("a string", x)
    if "\0" in x:
        raise _Refused("null_byte", f"{column.type_name} cannot hold a NUL: {_shown(x)}")
    return x.encode()


#: A varchar's typmod is its length and 4 more.
_VARCHAR_HEADER = 4


def _varchar(x: Any, column: Column, raw: str | None) -> bytes:
    encoded = _text(x, column, raw)
    limit = column.typmod - _VARCHAR_HEADER
    # PostgreSQL cuts off blanks beyond the limit: left to it.
    if column.typmod >= _VARCHAR_HEADER and len(x) > limit and x[limit:].strip(" "):
        raise _Refused("out_of_range", f"{len(x)} characters are too many for varchar({limit})")
    return encoded


_UUID = re.compile(r"(?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}")


def _uuid(x: Any, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take all forms PostgreSQL takes: upper case, braces, a dash after any four digits or none."""
    if type(x) is not str:
        raise _wrong_type("a string", x)
    digits = x[1:-1] if x[:1] == "{" and x[-1:] == "}" else x
    if not _UUID.fullmatch(digits):
        raise _Refused("not_a_uuid", f"{_shown(x)} is not a UUID")
    return a2b_hex(digits.replace("-", ""))


_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


def _date(x: Any, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    if type(x) is not str:
        raise _wrong_type("a string", x)
    days = _INFINITE_DAYS.get(x)
    if days is None:
        if not _DATE.fullmatch(x):
            raise _Refused("not_a_date", f"{_shown(x)} is not a date: expected YYYY-MM-DD")
        try:
            days = date.fromisoformat(x).toordinal() - _EPOCH_DAY
        except ValueError as error:
            raise _Refused("not_a_date", f"{_shown(x)} is not a date: there is no such day") from error
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
        days = date.fromisoformat(day).toordinal() - _EPOCH_DAY
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


def _bad_timestamp(text: str, reason: str) -> _Refused:
    return _Refused("not_a_timestamp", f"{_shown(text)} is not a timestamp: {reason}")


def _fast_timestamptz(x: str) -> int:
    """Return microseconds from 2000, in UTC, for any form that is taken."""
    if x in _INFINITE_MICROSECONDS:
        return _INFINITE_MICROSECONDS[x]
    clock, offset = _parse_timestamp(x)
    if offset is None:
        raise _bad_timestamp(x, "it has no offset, and the server's time zone must not decide")
    return clock - offset * _MICROSECONDS


def _timestamptz(x: Any, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    if type(x) is not str:
        raise _wrong_type("a string", x)
    return struct.pack(">q", _fast_timestamptz(x))


def _fast_timestamp(x: str) -> int:
    """Return microseconds from 2000 for any form without an offset, or with the offset zero."""
    if x in _INFINITE_MICROSECONDS:
        return _INFINITE_MICROSECONDS[x]
    clock, offset = _parse_timestamp(x)
    if offset:
        raise _bad_timestamp(x, "a timestamp without time zone would lose its offset")
    return clock


def _timestamp(x: Any, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    if type(x) is not str:
        raise _wrong_type("a string", x)
    return struct.pack(">q", _fast_timestamp(x))


def _json(x: Any, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    return orjson.dumps(x) if raw is None else raw.encode()


#: An escaped NUL, and not an escaped backslash before "u0000".
_JSON_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def _jsonb(x: Any, column: Column, raw: str | None) -> bytes:
    text = _json(x, column, raw)
    if b"\\u0000" in text and _JSON_NUL.search(text):
        raise _Refused("null_byte", "jsonb cannot hold a NUL in a string")
    return b"\x01" + text


def _bytea(x: Any, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    if type(x) is not str:
        raise _wrong_type("a string in base64", x)
    try:
        return a2b_base64(x, strict_mode=True)
    except ValueError as error:
        raise _Refused("not_base64", f"{_shown(x)} is not base64") from error


@dataclass(frozen=True, slots=True)
class _Type:
    """How one PostgreSQL type is encoded; to support another one is to add its entry to `_TYPES`."""

    #: The careful lane's function.
    careful: Encode
    #: The fast lane's statements. They make of `{v}`, which is not None, what `pack` packs, or else the field's bytes.
    fast: str
    #: The struct format and the size of a type of fixed width.
    pack: str = ""
    size: int = 0
    #: The packed lengths that go before a field of variable width.
    lengths: str = "LENGTHS"
    #: Whether orjson's numbers are not exact enough, so that `suspects` must look for them.
    numbers: bool = False
    #: Whether the careful lane always needs the field's own text.
    literal: bool = False


def _integer_type(code: str, size: int) -> _Type:
    return _Type(_integer(f">{code}"), "if type({v}) is not int: raise TypeError", pack=code, size=size)


_FAST_TIMESTAMP = """\
if {v}[4:20:3] in {shapes} and {v}[-1] == "Z" and len({v}) < 28:
    d = datetime({v}) - EPOCH
    {v} = (d.days * 86400 + d.seconds) * 1000000 + d.microseconds
else:
    {v} = {slow}({v})"""

#: dumps() would make a text of a null.
_FAST_JSON = """\
if {v} is None: raise TypeError
{v} = dumps({v})"""

_TYPES: Final[dict[str, _Type]] = {
    "bool": _Type(_bool, "if type({v}) is not bool: raise TypeError", pack="b", size=1),
    "int2": _integer_type("h", 2),
    "int4": _integer_type("i", 4),
    "int8": _integer_type("q", 8),
    "float4": _Type(_float4, "{v} = float4({v})", pack="4s", size=4, numbers=True, literal=True),
    "float8": _Type(
        _float8,
        "if type({v}) is not float and type({v}) is not int: raise TypeError",
        pack="d",
        size=8,
        numbers=True,
    ),
    "numeric": _Type(_numeric, "{v} = numeric({v})", numbers=True),
    "text": _Type(_text, "{v} = {v}.encode()"),
    "varchar": _Type(_varchar, "{v} = {v}.encode()"),
    "uuid": _Type(
        _uuid,
        """\
if {v}[8:24:5] != "----": raise ValueError
{v} = unhex({v}.replace("-", "", 4))
if len({v}) != 16: raise ValueError""",
        pack="16s",
        size=16,
    ),
    "date": _Type(
        _date,
        """\
if {v}[4:8:3] != "--" or len({v}) != 10: raise ValueError
{v} = date({v}).toordinal() - EPOCH_DAY""",
        pack="i",
        size=4,
    ),
    "timestamp": _Type(
        _timestamp, _FAST_TIMESTAMP.replace("{slow}", "timestamp").replace("{shapes}", "ZULU"), pack="q", size=8
    ),
    "timestamptz": _Type(
        _timestamptz, _FAST_TIMESTAMP.replace("{slow}", "timestamptz").replace("{shapes}", "ZULU"), pack="q", size=8
    ),
    "json": _Type(_json, _FAST_JSON, numbers=True),
    "jsonb": _Type(_jsonb, _FAST_JSON, lengths="JSONB_LENGTHS", numbers=True),
    "bytea": _Type(_bytea, "{v} = base64({v}, strict_mode=True)"),
}
#: A numeric column without a scale keeps the one of the literal; a varchar with a length is checked against it.
_NUMERIC_ANY_SCALE = _Type(_numeric, "{v} = numeric_scale({v}, value, {name})", numbers=True, literal=True)

SUPPORTED_TYPES: Final = frozenset(_TYPES)

#: What the generated code can name.
_NAMES: Final[dict[str, object]] = {
    "NOT_TAKEN": _NOT_TAKEN,
    "NULL": _NULL,
    "LENGTHS": _LENGTHS,
    "JSONB_LENGTHS": _JSONB_LENGTHS,
    "LENGTHS_long": _length,
    "JSONB_LENGTHS_long": lambda size: _length(size + 1) + b"\x01",
    "EPOCH": _EPOCH,
    "EPOCH_DAY": _EPOCH_DAY,
    #: The characters 4, 7, 10, 13, 16 and 19 of a timestamp: all that datetime.fromisoformat does not insist on.
    "ZULU": frozenset({"--T::Z", "--T::.", "-- ::Z", "-- ::."}),
    "loads": orjson.loads,
    "dumps": orjson.dumps,
    "join": b"".join,
    "unhex": a2b_hex,
    "base64": a2b_base64,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "float4": _fast_float4,
    "numeric": _fast_numeric,
    "numeric_scale": _fast_numeric_scale,
    "timestamp": _fast_timestamp,
    "timestamptz": _fast_timestamptz,
}


def _type_of(column: Column) -> _Type:
    if column.type_name == "numeric" and column.typmod < 0:
        return _NUMERIC_ANY_SCALE
    return _TYPES[column.type_name]


def _generate(columns: Sequence[Column]) -> str:
    """Write the fast lane. `columns` are in the COPY's order: fixed width and NOT NULL first, packed in one call."""
    statements: list[str] = []
    formats, packed, parts = [">h"], [str(len(columns))], []
    for column in columns:
        kind, v = _type_of(column), f"v{column.number}"
        fast = kind.fast.format(v=v, name=repr(column.name))
        if column.type_name == "varchar" and column.typmod >= _VARCHAR_HEADER:
            fast = f"if len({v}) > {column.typmod - _VARCHAR_HEADER}: raise ValueError\n{fast}"
        if column.not_null and kind.pack:
            formats.append(f"i{kind.pack}")
            packed.append(f"{kind.size}, {v}")
            statements += [f"{v} = o[{column.name!r}]", fast]
            continue
        if kind.pack:
            fast += f"\n{v} = pack_{kind.pack}({kind.size}, {v})"
            absent = f"{v} = NULL"
            parts.append(v)
        else:
            prefix, size = f"p{column.number}", f"n{column.number}"
            fast += f"\n{size} = len({v})\n{prefix} = {kind.lengths}[{size}] if {size} < 4096 else {kind.lengths}_long({size})"
            absent = f"{prefix} = NULL; {v} = b''"
            parts += [prefix, v]
        if column.not_null:
            statements += [f"{v} = o[{column.name!r}]", fast]
        else:
            statements += [f"{v} = o.get({column.name!r})", f"if {v} is None:\n    {absent}\nelse:", _indent(fast)]
    parts.insert(0, f"pack({', '.join(packed)})")
    statements.append(f"append(join(({', '.join(parts)},)))")
    body = _indent(_indent("\n".join(statements), 2))
    return f'''\
from struct import Struct
{"".join(f"pack_{code} = Struct('>i{code}').pack{chr(10)}" for code in _pack_codes(columns))}
pack = Struct("{"".join(formats)}").pack

def fast(values, first, rows, refusals, careful):
    append = rows.append
    before = len(rows) + len(refusals) - first
    for value in values:
        try:
            o = loads(value)
{body}
        except NOT_TAKEN:
            careful(value, len(rows) + len(refusals) - before, rows, refusals)
'''


def _pack_codes(columns: Sequence[Column]) -> list[str]:
    return sorted({_type_of(column).pack for column in columns if not column.not_null} - {""})


def _indent(code: str, levels: int = 1) -> str:
    return "\n".join("    " * levels + line for line in code.splitlines())


class RowEncoder:
    """Encodes the records of one route; made when the table has been read."""

    def __init__(self, columns: Sequence[Column]) -> None:
        ordered = sorted(columns, key=lambda column: not (column.not_null and _type_of(column).pack))
        #: The columns' names in the order of the COPY.
        self.columns = tuple(column.name for column in ordered)
        #: The fast lane's code, to be read.
        self.source = _generate(ordered)
        self._fields = [(column, _type_of(column)) for column in ordered]
        self._numbers = any(kind.numbers for _, kind in self._fields)
        self._literals = any(kind.literal for _, kind in self._fields)
        self._fast = _compile(self.source)

    def encode(self, values: Sequence[bytes | None], rows: list[bytes]) -> list[tuple[int, Refusal]]:
        """Append the rows of all good records, in order; return the others as (index, why)."""
        refusals: list[tuple[int, Refusal]] = []
        start = 0
        for index in suspects(values, numbers=self._numbers):
            self._fast(values[start:index], start, rows, refusals, self._careful)
            self._careful(values[index], index, rows, refusals, suspect=True)
            start = index + 1
        self._fast(values[start:] if start else values, start, rows, refusals, self._careful)
        return refusals

    def _careful(
        self,
        value: bytes | None,
        index: int,
        rows: list[bytes],
        refusals: list[tuple[int, Refusal]],
        *,
        suspect: bool = False,
    ) -> None:
        row = self._row(value, suspect=suspect)
        if isinstance(row, Refusal):
            refusals.append((index, row))
        else:
            rows.append(row)

    def _row(self, value: bytes | None, *, suspect: bool) -> bytes | Refusal:
        if value is None:
            return Refusal("no_value", None, "the record has no value (a tombstone)")
        try:
            record = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            try:
                record = loads_huge(value)
            except ValueError:
                return Refusal("not_json", None, f"not JSON: {error}")
            suspect = True
        if type(record) is not dict:
            return Refusal("not_object", None, f"expected an object, got {_shown(record)}")
        try:
            slices = field_slices(value) if suspect or self._literals else {}
            return self._fields_row(record, slices)
        except orjson.JSONEncodeError:
            pass  # nested deeper than orjson writes; its own text will do
        except RecursionError:
            return Refusal("not_json", None, "nested too deeply")
        try:
            return self._fields_row(record, field_slices(value))
        except RecursionError:
            return Refusal("not_json", None, "nested too deeply")

    def _fields_row(self, record: dict[str, Any], slices: dict[str, bytes]) -> bytes | Refusal:
        parts = [struct.pack(">h", len(self._fields))]
        for column, kind in self._fields:
            name = column.name
            x = record.get(name)
            if x is None:
                if column.not_null:
                    return _absent(column, present=name in record)
                parts.append(_NULL)
                continue
            raw = slices[name].decode() if slices and (kind.numbers or type(x) is float) else None
            try:
                field = kind.careful(x, column, raw)
            except _Refused as error:
                return Refusal(error.code, name, str(error))
            parts += _length(len(field)), field
        return b"".join(parts)


def _absent(column: Column, *, present: bool) -> Refusal:
    if present:
        return Refusal("null", column.name, "null, but the column is NOT NULL")
    return Refusal("missing", column.name, "the field is missing, and the column is NOT NULL")


def _compile(source: str) -> Callable[..., None]:
    names = dict(_NAMES)
    # The source is made of the type table's snippets and of repr()s of column names.
    exec(compile(source, "<row encoder>", "exec"), names)  # noqa: S102
    return cast("Callable[..., None]", names["fast"])


def build_encoder(columns: Sequence[Column]) -> RowEncoder:
    """Make the encoder for the columns that a record feeds (`catalogue.row_columns`)."""
    return RowEncoder(columns)
