"""The row encoder: from a record's JSON to a row of PostgreSQL's binary COPY, generated once for each route.

Two lanes. The fast lane is straight-line code made from the table's columns: no dispatch a field, no call a type. It
takes only what it is sure of and lets anything else raise. The careful lane loops over the columns and calls one plain
function a type (fields.py), which takes all that a column can hold or says what it refuses. Records with numbers or
strings that orjson does not carry exactly (exact.py) go to the careful lane with the text of their fields.

Made by the flusher's thread when it has read the table, used by the worker's poll loop; no I/O. The codes of refusals:

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

import json
import struct
from binascii import a2b_base64, a2b_hex
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Final, cast

import orjson

from kbatchd import fields
from kbatchd.exact import field_slices, loads_huge, number_literal, suspects
from kbatchd.fields import Refused, show
from kbatchd.model import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kbatchd.catalogue import Column

#: All that the fast lane raises for a record it does not take. struct.error is an Exception of its own.
_NOT_TAKEN = (LookupError, TypeError, ValueError, AttributeError, OverflowError, struct.error)

_NULL: Final = struct.pack(">i", -1)
_length: Final = struct.Struct(">i").pack
#: The lengths of nearly all fields, packed: reading a list takes half the time of packing.
_LENGTHS: Final = [_length(size) for size in range(4096)]
#: The same for jsonb, whose first byte is its version, 1.
_JSONB_LENGTHS: Final = [_length(size + 1) + b"\x01" for size in range(4096)]


@dataclass(frozen=True, slots=True)
class _Type:
    """How one PostgreSQL type is encoded; to support another one is to add its entry to `_TYPES`."""

    #: The careful lane's function.
    careful: fields.Encode
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
    return _Type(fields.encode_integer(f">{code}"), "if type({v}) is not int: raise TypeError", pack=code, size=size)


_FAST_TIMESTAMP = """\
if {v}[4:20:3] in ZULU and {v}[-1] == "Z" and len({v}) < 28:
    d = datetime({v}) - EPOCH
    {v} = (d.days * 86400 + d.seconds) * 1000000 + d.microseconds
else:
    {v} = {any_form}({v})"""

#: dumps() would make a text of a null.
_FAST_JSON = """\
if {v} is None: raise TypeError
{v} = dumps({v})"""

_TYPES: Final[dict[str, _Type]] = {
    "bool": _Type(fields.encode_bool, "if type({v}) is not bool: raise TypeError", pack="b", size=1),
    "int2": _integer_type("h", 2),
    "int4": _integer_type("i", 4),
    "int8": _integer_type("q", 8),
    "float4": _Type(fields.encode_float4, "{v} = float4({v})", pack="4s", size=4, numbers=True, literal=True),
    "float8": _Type(
        fields.encode_float8,
        "if type({v}) is not float and type({v}) is not int: raise TypeError",
        pack="d",
        size=8,
        numbers=True,
    ),
    "numeric": _Type(fields.encode_numeric, "{v} = numeric({v})", numbers=True),
    "text": _Type(fields.encode_text, "{v} = {v}.encode()"),
    "varchar": _Type(fields.encode_varchar, "{v} = {v}.encode()"),
    "uuid": _Type(
        fields.encode_uuid,
        """\
if {v}[8:24:5] != "----": raise ValueError
{v} = unhex({v}.replace("-", "", 4))
if len({v}) != 16: raise ValueError""",
        pack="16s",
        size=16,
    ),
    "date": _Type(
        fields.encode_date,
        """\
if {v}[4:8:3] != "--" or len({v}) != 10: raise ValueError
{v} = date({v}).toordinal() - EPOCH_DAY""",
        pack="i",
        size=4,
    ),
    "timestamp": _Type(fields.encode_timestamp, _FAST_TIMESTAMP.replace("{any_form}", "timestamp"), pack="q", size=8),
    "timestamptz": _Type(
        fields.encode_timestamptz, _FAST_TIMESTAMP.replace("{any_form}", "timestamptz"), pack="q", size=8
    ),
    "json": _Type(fields.encode_json, _FAST_JSON, numbers=True),
    "jsonb": _Type(fields.encode_jsonb, _FAST_JSON, lengths="JSONB_LENGTHS", numbers=True),
    "bytea": _Type(fields.encode_bytea, "{v} = base64({v}, strict_mode=True)"),
}
#: A numeric column without a scale keeps the one of the literal.
_NUMERIC_ANY_SCALE = _Type(
    fields.encode_numeric,
    "{v} = pack_numeric(number_literal(value, {name})) if type({v}) is float else numeric({v})",
    numbers=True,
    literal=True,
)

SUPPORTED_TYPES: Final = frozenset(_TYPES)

#: What the generated code can name.
_NAMES: Final[dict[str, object]] = {
    "NOT_TAKEN": _NOT_TAKEN,
    "NULL": _NULL,
    "LENGTHS": _LENGTHS,
    "JSONB_LENGTHS": _JSONB_LENGTHS,
    "LENGTHS_long": _length,
    "JSONB_LENGTHS_long": lambda size: _length(size + 1) + b"\x01",
    "EPOCH": fields.EPOCH,
    "EPOCH_DAY": fields.EPOCH_DAY,
    #: The characters 4, 7, 10, 13, 16 and 19 of a timestamp: all that datetime.fromisoformat does not insist on.
    "ZULU": frozenset({"--T::Z", "--T::.", "-- ::Z", "-- ::."}),
    "loads": orjson.loads,
    "dumps": orjson.dumps,
    "join": b"".join,
    "unhex": a2b_hex,
    "base64": a2b_base64,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "float4": fields.fast_float4,
    "numeric": fields.fast_numeric,
    "pack_numeric": fields.pack_numeric,
    "number_literal": number_literal,
    "timestamp": fields.fast_timestamp,
    "timestamptz": fields.fast_timestamptz,
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
        if column.type_name == "varchar" and column.typmod >= fields.VARCHAR_HEADER:
            fast = f"if len({v}) > {column.typmod - fields.VARCHAR_HEADER}: raise ValueError\n{fast}"
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
            lengths = kind.lengths
            fast += f"\n{size} = len({v})\n{prefix} = {lengths}[{size}] if {size} < 4096 else {lengths}_long({size})"
            absent = f"{prefix} = NULL; {v} = b''"
            parts += [prefix, v]
        if column.not_null:
            statements += [f"{v} = o[{column.name!r}]", fast]
        else:
            statements += [f"{v} = o.get({column.name!r})", f"if {v} is None:\n    {absent}\nelse:", _indent(fast)]
    parts.insert(0, f"pack({', '.join(packed)})")
    statements.append(f"append(join(({', '.join(parts)},)))")
    body = _indent(_indent("\n".join(statements), 2))
    packs = "".join(f"pack_{code} = Struct('>i{code}').pack\n" for code in _pack_codes(columns))
    return f"""\
from struct import Struct
{packs}
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
"""


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
        """Encode one record in the careful lane; of a suspect one, the numbers are read from its own text."""
        try:
            rows.append(self._row(value, suspect=suspect))
        except Refused as error:
            refusals.append((index, Refusal(error.code, error.column, str(error))))
        except json.JSONDecodeError as error:
            refusals.append((index, Refusal("not_json", None, f"not JSON: {error}")))
        except RecursionError:
            refusals.append((index, Refusal("not_json", None, "nested too deeply")))

    def _row(self, value: bytes | None, *, suspect: bool) -> bytes:
        if value is None:
            raise Refused("no_value", "the record has no value (a tombstone)")
        try:
            record = orjson.loads(value)
        except orjson.JSONDecodeError:
            record = loads_huge(value)
            suspect = True
        if type(record) is not dict:
            raise Refused("not_object", f"expected an object, got {show(record)}")
        try:
            return self._join(record, field_slices(value) if suspect or self._literals else {}, suspect=suspect)
        except orjson.JSONEncodeError:
            # Nested deeper than orjson writes, but not deeper than it reads: the record's own text will do.
            return self._join(record, field_slices(value), suspect=True)

    def _join(self, record: dict[str, object], slices: dict[str, bytes], *, suspect: bool) -> bytes:
        parts = [struct.pack(">h", len(self._fields))]
        for column, kind in self._fields:
            name = column.name
            x = record.get(name)
            if x is None:
                if column.not_null:
                    raise _absent(column, present=name in record)
                parts.append(_NULL)
                continue
            raw = slices[name].decode() if kind.literal or (suspect and (kind.numbers or type(x) is float)) else None
            try:
                field = kind.careful(x, column, raw)
            except Refused as error:
                error.column = name
                raise
            parts += _length(len(field)), field
        return b"".join(parts)


def _absent(column: Column, *, present: bool) -> Refused:
    if present:
        return Refused("null", "null, but the column is NOT NULL", column.name)
    return Refused("missing", "the field is missing, and the column is NOT NULL", column.name)


def _compile(source: str) -> Callable[..., None]:
    names = dict(_NAMES)
    # The source is made of the type table's snippets and of repr()s of column names.
    exec(compile(source, "<row encoder>", "exec"), names)  # noqa: S102
    return cast("Callable[..., None]", names["fast"])


def build_encoder(columns: Sequence[Column]) -> RowEncoder:
    """Make the encoder for the columns that a record feeds (`catalogue.row_columns`)."""
    return RowEncoder(columns)
