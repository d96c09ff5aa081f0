"""How fields become a row, and a field bytes: in COPY's binary format here, as text in text.py.

Used by the careful encoder for each cell, and for the row; pure.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from kbatchd.encode.column_types import ColumnType, type_of
from kbatchd.encode.mapping import Feed
from kbatchd.encode.times import encode_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kbatchd.postgres.table import Column

    #: A value and, where its text was asked for, its text; to the field's bytes.
    FieldEncoder = Callable[[object, str | None], bytes]
    #: Whether the text of a value is asked for.
    NeedsText = Callable[[object, bool], bool]


NULL: Final = struct.pack(">i", -1)


_length: Final = struct.Struct(">i").pack


_count: Final = struct.Struct(">h").pack


@dataclass(frozen=True, slots=True)
class RowFormat:
    """How a field is encoded, and how fields become a row."""

    encoder: Callable[[Feed], tuple[FieldEncoder, NeedsText]]
    row: Callable[[Sequence[bytes | None]], bytes]
    #: A boolean column's fields.
    false: bytes
    true: bytes


def _binary_encoder(feed: Feed) -> tuple[FieldEncoder, NeedsText]:
    column, kind = feed.column, type_of(feed.column)
    assert kind is not None

    def needs_text(x: object, suspect: bool) -> bool:
        # The numbers of a time with a unit: nobody has looked for those that are not exact.
        if kind.literal or (suspect and kind.numbers) or (type(x) is float and (suspect or feed.unit is not None)):
            return True
        return kind.numbers and type(x) is int and x == 0  # it may be -0

    def encode(x: object, raw: str | None) -> bytes:
        return encode_binary(x, raw, column, kind, feed.unit)

    return encode, needs_text


def encode_binary(x: object, raw: str | None, column: Column, kind: ColumnType, unit: str | None) -> bytes:
    """Encode a value of a type that has a binary form here."""
    if unit is not None:
        return encode_epoch(x, column, raw, unit)
    return kind.careful(x, column, raw)


def _binary_row(fields: Sequence[bytes | None]) -> bytes:
    parts = [_count(len(fields))]
    for field in fields:
        if field is None:
            parts.append(NULL)
        else:
            parts += _length(len(field)), field
    return b"".join(parts)


BINARY: Final = RowFormat(_binary_encoder, _binary_row, b"\0", b"\1")
