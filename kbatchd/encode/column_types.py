"""The types that have a binary form here: how each is encoded. To support another one is to add its entry to `_TYPES`.

A route all of whose columns have one is copied in binary format; one other column, and the whole route is copied as
text (text.py), where PostgreSQL's own input functions read the values. Used by the encoders; pure, no I/O.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from kbatchd.encode import fields, times
from kbatchd.encode import numbers as fields_numbers
from kbatchd.encode.exact import item_slices
from kbatchd.encode.fields import Refused, wrong_type

if TYPE_CHECKING:
    from kbatchd.postgres.table import Column

    #: A value's text for PostgreSQL's input function: the value, its raw text, and its binary form.
    Text = Callable[[object, str | None, bytes], str]


def _as_it_came(x: object, raw: str | None, encoded: bytes) -> str:  # noqa: ARG001
    if isinstance(x, str):
        return x
    return str(x).lower() if raw is None else raw


def _raw_json(x: object, raw: str | None, encoded: bytes) -> str:  # noqa: ARG001
    return encoded.decode() if raw is None else raw


@dataclass(frozen=True, slots=True)
class ColumnType:
    """How one PostgreSQL type is encoded."""

    #: The careful encoder's function.
    careful: fields.Encode
    #: The fast encoder's statements: they make of `{v}`, which is not None, what `pack` packs, or else the field's
    #: bytes. `{text}` stands for its own text, `{json}` for its bytes. Empty: the careful encoder alone can do it.
    fast: str = ""
    #: The struct format and the size of a type of fixed width.
    pack: str = ""
    size: int = 0
    #: The packed lengths that go before a field of variable width.
    lengths: str = "LENGTHS"
    #: Whether orjson's numbers are not exact enough, so that `suspects` must look for them.
    numbers: bool = False
    #: Whether the careful encoder always needs the field's own text.
    literal: bool = False
    #: The text encoder's text of a value that `careful` has taken.
    text: Text = _as_it_came


def _integer_type(code: str, size: int) -> ColumnType:
    encode = fields_numbers.encode_integer(f">{code}")
    return ColumnType(encode, "if type({v}) is not int: raise TypeError", pack=code, size=size)


_FAST_TIMESTAMP = """\
if {v}[4:20:3] in ZULU and {v}[-1] == "Z" and len({v}) < 28:
    d = datetime({v}) - EPOCH
    {v} = (d.days * 86400 + d.seconds) * 1000000 + d.microseconds
else:
    {v} = {any_form}({v})"""

#: JSON goes in as it was written, in every encoder: 1e9 is no 1000000000.0 to jsonb. Of a null there is a text, too.
_OWN_TEXT = "if {v} is None: raise TypeError\n{v} = {json}"

#: The type's own function, for what takes no shortcut.
_FAST_CALL = "{v} = {careful}({v})"

_TYPES: Final[dict[str, ColumnType]] = {
    "bool": ColumnType(fields.encode_bool, "if type({v}) is not bool: raise TypeError", pack="b", size=1),
    "int2": _integer_type("h", 2),
    "int4": _integer_type("i", 4),
    "int8": _integer_type("q", 8),
    "float4": ColumnType(
        fields_numbers.encode_float4,
        "if type({v}) is int and not {v}: {v} = float({text})\n{v} = float4({v})",
        pack="4s",
        size=4,
        numbers=True,
        literal=True,
    ),
    "float8": ColumnType(
        fields_numbers.encode_float8,
        # A zero may be -0, which orjson gives as the integer 0.
        """\
if type({v}) is not float:
    if type({v}) is not int: raise TypeError
    if not {v}: {v} = float({text})""",
        pack="d",
        size=8,
        numbers=True,
    ),
    "numeric": ColumnType(fields_numbers.encode_numeric, "{v} = numeric({v})", numbers=True),
    "text": ColumnType(fields.encode_text, "{v} = {v}.encode()"),
    "varchar": ColumnType(fields.encode_varchar, "{v} = {v}.encode()"),
    "bpchar": ColumnType(fields.encode_varchar, "{v} = {v}.encode()"),
    "uuid": ColumnType(
        fields.encode_uuid,
        """\
if {v}[8:24:5] != "----": raise ValueError
{v} = unhex({v}.replace("-", "", 4))
if len({v}) != 16: raise ValueError""",
        pack="16s",
        size=16,
    ),
    "date": ColumnType(
        times.encode_date,
        """\
if {v}[4:8:3] != "--" or len({v}) != 10: raise ValueError
{v} = date({v}).toordinal() - EPOCH_DAY""",
        pack="i",
        size=4,
    ),
    "timestamp": ColumnType(
        times.encode_timestamp, _FAST_TIMESTAMP.replace("{any_form}", "timestamp"), pack="q", size=8
    ),
    "timestamptz": ColumnType(
        times.encode_timestamptz, _FAST_TIMESTAMP.replace("{any_form}", "timestamptz"), pack="q", size=8
    ),
    "time": ColumnType(times.encode_time, _FAST_CALL),
    "timetz": ColumnType(times.encode_timetz, _FAST_CALL),
    "interval": ColumnType(
        times.encode_interval, _FAST_CALL, text=lambda _x, _raw, encoded: times.interval_text(encoded)
    ),
    "inet": ColumnType(fields.encode_network(cidr=False), _FAST_CALL),
    "cidr": ColumnType(fields.encode_network(cidr=True), _FAST_CALL),
    "enum": ColumnType(fields.encode_enum, _FAST_CALL),
    "json": ColumnType(fields.encode_json, _OWN_TEXT, literal=True, text=_raw_json),
    "jsonb": ColumnType(
        fields.encode_jsonb,
        _OWN_TEXT,
        lengths="JSONB_LENGTHS",
        literal=True,
        text=lambda x, raw, encoded: _raw_json(x, raw, encoded[1:]),
    ),
    "bytea": ColumnType(
        fields.encode_bytea,
        "{v} = base64({v}, strict_mode=True)",
        text=lambda _x, _raw, encoded: f"\\x{encoded.hex()}",
    ),
}
#: A numeric column without a scale keeps the one of the literal.
_NUMERIC_ANY_SCALE = ColumnType(
    fields_numbers.encode_numeric,
    "{v} = pack_numeric({text}) if type({v}) is float else numeric({v})",
    numbers=True,
    literal=True,
)
#: The names of the types with an entry.
BINARY_TYPES: Final = frozenset(_TYPES)


def type_of(column: Column) -> ColumnType | None:
    """Return how a column is encoded; None when PostgreSQL's input function must read it."""
    if column.type_name == "array" and column.element is not None:
        element = type_of(column.element)
        return None if element is None or column.dimensions > 1 else _array(column.element, element)
    if column.type_name == "numeric" and column.typmod < 0:
        return _NUMERIC_ANY_SCALE
    kind = _TYPES.get(column.type_name)
    if kind is not None and column.type_name in {"varchar", "bpchar"} and column.typmod >= fields.VARCHAR_HEADER:
        limit = column.typmod - fields.VARCHAR_HEADER
        return replace(kind, fast=f"if len({{v}}) > {limit}: raise ValueError\n{kind.fast}")
    return kind


def _array(element: Column, kind: ColumnType) -> ColumnType:
    """Make the type of one-dimensional arrays of an element."""
    head, count = struct.Struct(">iiI").pack, struct.Struct(">ii").pack
    null, length = struct.pack(">i", -1), struct.Struct(">i").pack
    empty = head(0, 0, element.oid)

    def encode(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
        if type(x) is not list:
            raise wrong_type("an array", x, raw)
        if not x:
            return empty
        raws = [None] * len(x) if raw is None else [item.decode() for item in item_slices(raw.encode())]
        parts = [head(1, None in x, element.oid), count(len(x), 1)]
        for at, (item, item_raw) in enumerate(zip(x, raws, strict=True)):
            if item is None:
                parts.append(null)
                continue
            try:
                field = kind.careful(item, element, item_raw)
            except Refused as error:
                raise Refused(error.code, f"[{at}]: {error}") from error
            parts += length(len(field)), field
        return b"".join(parts)

    # What needs a number's own text is the careful encoder's, and -0 in an array of floats is seen in its text only.
    needs_text = kind.literal or kind.numbers
    return ColumnType(encode, "" if needs_text else _FAST_CALL, numbers=kind.numbers, literal=needs_text, text=_no_text)


def _no_text(x: object, raw: str | None, encoded: bytes) -> str:  # noqa: ARG001
    raise AssertionError("the text of an array is made of its elements'")
