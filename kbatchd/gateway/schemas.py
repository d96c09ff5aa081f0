"""What JSON a column takes, as a JSON schema.

What a schema allows, the row encoder (encode/fields.py) takes; a unit test holds the two together. The other way round
the schema is stricter: it has one way to write a UUID or a time, the encoder takes some more. What no schema can say
(1.0 is an integer to it) is in the column's description. Called by openapi.py; pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbatchd.postgres.table import Column

    Schema = dict[str, Any]


class _Type(NamedTuple):
    """What JSON a column of one PostgreSQL type takes."""

    schema: Mapping[str, Any]
    #: What the schema cannot say, or not plainly.
    hint: str = ""


def _integer(bits: int) -> _Type:
    limit = 2 ** (bits - 1)
    schema = {"type": "integer", "minimum": -limit, "maximum": limit - 1}
    return _Type(schema, "as 1, not 1.0")


def _float(largest: float) -> _Type:
    schema = {"type": "number", "minimum": -largest, "maximum": largest}
    return _Type(schema, "what would become zero is refused")


_NUMBER: Final = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,3})?"
_DAY: Final = r"(?!0000)[0-9]{4}-[0-9]{2}-[0-9]{2}"
_CLOCK: Final = r"([01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(\.[0-9]+)?"
#: PostgreSQL takes offsets up to 15:59.
_OFFSET: Final = r"([Zz]|[+-](0[0-9]|1[0-5]):[0-5][0-9])"
_BASE64: Final = r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?"
_ANYTHING: Final = ["object", "array", "string", "number", "boolean"]
_ROUNDED: Final = "to the microsecond"


def _string(pattern: str, **more: str) -> Schema:
    return {"type": "string", "pattern": f"^{pattern}$", **more}


_TEXT: Final = _Type(_string(r"[^\u0000]*"))

TYPES: Final[dict[str, _Type]] = {
    "bool": _Type({"type": "boolean"}),
    "int2": _integer(16),
    "int4": _integer(32),
    "int8": _integer(64),
    "float4": _float(3.4028234663852886e38),
    "float8": _float(1.7976931348623157e308),
    "numeric": _Type(
        {"type": ["number", "string"], "pattern": rf"^({_NUMBER}|[Nn]a[Nn])$"},
        "every digit counts, in a string too",
    ),
    "text": _TEXT,
    "varchar": _TEXT,
    "uuid": _Type(_string("[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}", format="uuid")),
    "date": _Type(_string(_DAY, format="date")),
    "timestamp": _Type(_string(f"{_DAY}[Tt ]{_CLOCK}", format="date-time-local"), f"without an offset, {_ROUNDED}"),
    "timestamptz": _Type(_string(f"{_DAY}[Tt]{_CLOCK}{_OFFSET}", format="date-time"), _ROUNDED),
    "json": _Type({"type": _ANYTHING}, "any JSON"),
    "jsonb": _Type({"type": _ANYTHING}, "any JSON without NUL in its strings"),
    "bytea": _Type(_string(_BASE64, contentEncoding="base64")),
}

#: What PostgreSQL's typmod adds to a length or to a precision.
_TYPMOD_HEADER: Final = 4
#: So many digits before the point are exact in every reader's number.
_EXACT_DIGITS: Final = 15


def of_column(column: Column) -> Schema:
    """Return the schema of a column's field."""
    kind = TYPES.get(column.type_name)
    if kind is None:  # PostgreSQL reads it: a string is its literal
        return {"description": f"`{column.type}`"}
    schema = {**kind.schema, **_limits(column)}
    types = schema["type"]
    if not column.not_null:
        schema["type"] = [*(types if isinstance(types, list) else [types]), "null"]
    schema["description"] = ", ".join(filter(None, [f"`{_shown_type(column)}`", kind.hint]))
    return schema


def _limits(column: Column) -> Schema:
    """Return what the column's own length or precision adds."""
    if column.typmod < _TYPMOD_HEADER:
        return {}
    if column.type_name == "varchar":
        return {"maxLength": column.typmod - _TYPMOD_HEADER}
    if column.type_name == "numeric":
        precision, scale = _precision_and_scale(column)
        if 0 <= precision - scale <= _EXACT_DIGITS:
            limit = 10 ** (precision - scale)
            return {"exclusiveMinimum": -limit, "exclusiveMaximum": limit}
    return {}


def _precision_and_scale(column: Column) -> tuple[int, int]:
    """Take a numeric's typmod apart: the scale has 11 bits and a sign."""
    typmod = column.typmod - _TYPMOD_HEADER
    return typmod >> 16, ((typmod & 0x7FF) ^ 0x400) - 0x400


def _shown_type(column: Column) -> str:
    if column.typmod >= _TYPMOD_HEADER and column.type_name == "varchar":
        return f"varchar({column.typmod - _TYPMOD_HEADER})"
    if column.typmod >= _TYPMOD_HEADER and column.type_name == "numeric":
        return "numeric({},{})".format(*_precision_and_scale(column))
    return column.type_name
