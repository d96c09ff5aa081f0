"""The text format: a row as a line of COPY's text, whose values PostgreSQL's own input functions read.

A route with a column that has no binary form here is copied so, as a whole. Values of the other types are checked by
the careful encoder's functions first: a record fares the same in both formats. For all else a string is the value's own
literal, a number or a boolean its text, and JSON's objects and arrays become what a user means by them: arrays of any
dimensions, composite values by their attributes' names, hstore; for any other type their JSON text.

Called by the row encoder in the worker's poll loop. Pure functions, no I/O.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import TYPE_CHECKING, Final

import orjson

from kbatchd.encode.column_types import type_of
from kbatchd.encode.exact import field_slices, item_slices
from kbatchd.encode.fields import Refused, out_of_range, show, wrong_type
from kbatchd.encode.mapping import JSONS
from kbatchd.encode.numbers import number_literal
from kbatchd.encode.row_format import RowFormat, encode_binary
from kbatchd.encode.times import is_day, time_text
from kbatchd.postgres.table import Column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.encode.mapping import Feed
    from kbatchd.encode.row_format import FieldEncoder, NeedsText

_NULL = b"\\N"

#: Beyond this no locale's money goes, and below that nothing is left of a number in any.
_MONEY_END, _MONEY_NOTHING = 1e19, 1e-20


def _text_encoder(feed: Feed) -> tuple[FieldEncoder, NeedsText]:
    column, unit = feed.column, feed.unit

    def needs_text(x: object, suspect: bool) -> bool:
        is_own = type(x) in {float, list, dict} or column.type_name in JSONS
        return is_own or (type(x) is int and (suspect or x == 0))

    def encode(x: object, raw: str | None) -> bytes:
        if unit is not None:
            kind = type_of(column)
            assert kind is not None
            return time_text(encode_binary(x, raw, column, kind, unit)).encode()
        return _escaped(literal_text(x, raw, column))

    return encode, needs_text


def _escaped(text: str) -> bytes:
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    return text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t").encode()


def _text_row(fields: Sequence[bytes | None]) -> bytes:
    return b"\t".join([_NULL if field is None else field for field in fields]) + b"\n"


TEXT: Final = RowFormat(_text_encoder, _text_row, b"f", b"t")


def literal_text(x: object, raw: str | None, column: Column) -> str:  # noqa: C901, PLR0911 - one for each kind of type
    """Return what PostgreSQL's input function for the column is to read; `raw` is the text of what is no string."""
    kind = type_of(column)
    if column.type_name == "array" and (kind is not None or isinstance(x, list)):
        if kind is not None:
            kind.careful(x, column, raw)
        return _array_text(x, raw, column, max(column.dimensions, 1))
    if kind is not None:
        return kind.text(x, raw, kind.careful(x, column, raw))
    if isinstance(x, bytes):
        return f"\\x{x.hex()}"
    if isinstance(x, str) and "\0" in x:
        raise Refused("null_byte", f"{column.type} cannot hold a NUL")
    if _is_of_times(column) and (isinstance(x, str) or column.range_of):
        return _times_text(x if isinstance(x, str) else _json_text(x, raw), column)
    if isinstance(x, str):
        return x
    if column.type_name == "money" and type(x) in {int, float}:
        return _money_text(x, raw, column)
    if column.type_name == "composite" and isinstance(x, (list, dict)):
        return _composite_text(x, raw, column)
    if column.type_name.rpartition(".")[2] == "hstore" and isinstance(x, dict):
        return _hstore_text(x, raw)
    return _json_text(x, raw)


#: Types whose input functions let the server's settings decide, where the text itself does not.
_TIMES: Final = frozenset({"date", "time", "timetz", "timestamp", "timestamptz", "interval"})


def _is_of_times(column: Column) -> bool:
    """Say whether there are times in the values of a type that has no binary form here."""
    parts = (*column.attributes, *filter(None, [column.element]))
    return column.type_name in _TIMES or column.range_of in _TIMES or any(map(_is_of_times, parts))


def _times_text(text: str, column: Column) -> str:
    """Write a range's, a multirange's or a composite's literal again, each time in it checked as a column's own is."""
    if column.range_of:
        return _range_text(text, column)
    if column.type_name != "composite":
        raise wrong_type("an array", text)
    fields = _COMPOSITE_FIELD.findall(text[1:]) if _COMPOSITE.fullmatch(text) else []
    if len(fields) != len(column.attributes):
        raise wrong_type(f"{len(column.attributes)} attributes of {column.type}", text)
    written = [
        "" if not field else _quoted(literal_text(_unquoted(field), None, attribute))
        for field, attribute in zip(fields, column.attributes, strict=True)
    ]
    return "(" + ",".join(written) + ")"


_QUOTED = r'"(?:[^"\\]|\\.|"")*+"'
_FIELD = rf"((?:[^,()\"\\]|\\.|{_QUOTED})*+)"
_COMPOSITE_FIELD = re.compile(rf"{_FIELD}[,)]", re.DOTALL)
_COMPOSITE = re.compile(rf"\((?:{_FIELD},)*+{_FIELD}\)", re.DOTALL)
_BOUND = rf"({_QUOTED}|[^,()\[\]\"\\]*+)"
_RANGE = re.compile(rf"([\[(]){_BOUND},{_BOUND}([\])])|(empty)", re.DOTALL | re.IGNORECASE)
_MULTIRANGE = re.compile(rf"\{{(?:(?:{_RANGE.pattern})(?:,(?!\}})|(?=\}})))*+\}}", re.DOTALL | re.IGNORECASE)
_PIECE = re.compile(r'\\(.)|"((?:[^"\\]|\\.|"")*+)"', re.DOTALL)
_ESCAPED = re.compile(r'\\(.)|""', re.DOTALL)


def _unquoted(text: str) -> str:
    """Read a bound or an attribute as PostgreSQL does: a doubled quote within quotes is one."""
    if "\\" not in text and '"' not in text:
        return text
    return _PIECE.sub(lambda match: match[1] or _ESCAPED.sub(lambda inner: inner[1] or '"', match[2] or ""), text)


def _range_text(text: str, column: Column) -> str:
    of = Column(column.name, column.number, column.range_of, -1, not_null=True)

    def written(match: re.Match[str]) -> str:
        if match[5]:
            return "empty"
        lower, upper = (bound and _quoted(_bound_text(_unquoted(bound), of)) for bound in (match[2], match[3]))
        return f"{match[1]}{lower},{upper}{match[4]}"

    if not (_RANGE.fullmatch(text) or _MULTIRANGE.fullmatch(text)):
        raise Refused("not_a_range", f"{show(text)} is not a range: expected [lower,upper), each of them a {of.type}")
    return _RANGE.sub(written, text)


def _bound_text(text: str, of: Column) -> str:
    if of.type_name == "timestamp" and is_day(text):  # a day's beginning, whatever the server's settings
        return text
    return literal_text(text, None, of)


def _money_text(x: object, raw: str | None, column: Column) -> str:
    """Write a number as the server's lc_monetary reads it: with a comma before its fraction, 12.34 were 1,234.00."""
    literal = number_literal(x, raw)
    size = abs(float(literal))
    if size >= _MONEY_END:
        raise out_of_range(column, literal)
    if not column.decimal_point:
        raise Refused("money_locale", "the server's lc_monetary does not tell how a number is written: send a string")
    return format(Decimal(literal), "f").replace(".", column.decimal_point) if size > _MONEY_NOTHING else "0"


def _json_text(x: object, raw: str | None) -> str:
    return orjson.dumps(x).decode() if raw is None else raw


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _array_text(x: object, raw: str | None, column: Column, dimensions: int) -> str:
    """Write an array's literal: nested as deep as the column was declared."""
    element = column.element
    assert element is not None
    if not isinstance(x, list):
        raise wrong_type("an array", x, raw)
    items = []
    for item, item_raw in zip(x, _item_texts(raw), strict=True):
        if item is None:
            items.append("NULL")
        elif dimensions > 1:
            items.append(_array_text(item, item_raw, column, dimensions - 1))
        else:
            items.append(_quoted(literal_text(item, item_raw, element)))
    return "{" + column.delimiter.join(items) + "}"


def _item_texts(raw: str | None) -> list[str]:
    assert raw is not None, "an array's text is always asked for"
    return [text.decode() for text in item_slices(raw.encode())]


def _field_texts(raw: str | None) -> dict[str, str]:
    assert raw is not None, "an object's text is always asked for"
    return {name: text.decode() for name, text in field_slices(raw.encode()).items()}


def _composite_text(x: list[object] | dict[str, object], raw: str | None, column: Column) -> str:
    """Write a composite value: an object by its attributes' names, an array in their order."""
    if isinstance(x, list):
        if len(x) != len(column.attributes):
            raise wrong_type(f"{len(column.attributes)} attributes of {column.type}", x)
        values, texts = x, _item_texts(raw)
    else:
        raws = _field_texts(raw)
        values = [x.get(attribute.name) for attribute in column.attributes]
        texts = [raws.get(attribute.name, "") for attribute in column.attributes]
    fields = [
        "" if value is None else _quoted(literal_text(value, text, attribute))
        for value, text, attribute in zip(values, texts, column.attributes, strict=True)
    ]
    return "(" + ",".join(fields) + ")"


def _hstore_text(x: dict[str, object], raw: str | None) -> str:
    """Write an hstore: strings as they are, other values as their JSON text."""
    raws = _field_texts(raw)
    pairs = []
    for name, value in x.items():
        text = "NULL" if value is None else _quoted(value if isinstance(value, str) else raws[name])
        pairs.append(f"{_quoted(name)}=>{text}")
    literal = ",".join(pairs)
    if "\0" in literal:
        raise Refused("null_byte", "hstore cannot hold a NUL")
    return literal
