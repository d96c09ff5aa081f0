"""The row encoder: from a record's JSON to a row for COPY, made once for each route.

Three encoders. The compiled encoder (compiled.py, native/), where there is one, goes over a record's bytes once and
makes no objects of its fields; it takes what is plain and leaves all else. The fast encoder (fast.py) is
straight-line Python made from the table's columns. It takes only what it is sure of. The careful encoder (careful.py)
goes column by column, takes all that a column can hold or says what it refuses: it alone refuses. Records with numbers
or strings that orjson does not carry exactly (exact.py) go to it with the text of their fields.

A route with a column of a type that has no binary form here (column_types.py) is copied as text (text.py), by the
careful encoder alone.

Made by the flusher's thread when it has read the table, used by the worker's poll loop; no I/O. The codes of refusals:

    no_value         the record has no value (a tombstone)
    not_json         not UTF-8, or not JSON
    too_deep         JSON that is nested more deeply than can be read
    not_object       JSON, but not an object
    not_utf8         a key, a header or a raw value that is no text, for a column that is one
    unknown_field    a field that no column takes, with unknown_fields = "reject"
    missing          no such field, and the column is NOT NULL, or on_missing = "reject"
    null             null, and the column is NOT NULL
    wrong_type       another JSON type than the column takes
    out_of_range     a number, a time or a text that the column cannot hold
    null_byte        a NUL in a text
    not_a_number     a string that is no number, for a numeric column
    not_a_uuid       ... no UUID
    not_a_date       ... not YYYY-MM-DD
    not_a_time       ... not hh:mm:ss; without an offset for timetz; with one but zero for time
    not_a_timestamp  ... no RFC 3339 timestamp; without an offset for timestamptz; with one but zero for timestamp
    not_an_interval  ... no ISO 8601 duration and not PostgreSQL's own form
    not_an_address   ... no inet or cidr address
    not_a_range      ... no range, or one whose times are not as those of their own type must be
    not_a_label      ... none of an enum's labels
    not_base64       ... not base64, for a bytea column
    internal         whatever else was raised while the record was encoded: a fault of kbatchd (internal.py)

And those of records that end a worker, which no encoder lives to tell (stats/suspicions.py):

    crashed          a worker that encoded it alone crashed, or was killed
    silent           ... did not come back
"""

from __future__ import annotations

import json
import time
from itertools import islice
from typing import TYPE_CHECKING

from kbatchd.config import RouteMapping
from kbatchd.encode.careful import CarefulEncoder, Cell
from kbatchd.encode.column_types import type_of
from kbatchd.encode.compiled import COMPILED, make_encoder, wrap
from kbatchd.encode.decoded import DecodedRecord
from kbatchd.encode.exact import suspects
from kbatchd.encode.fast import compile_encoder, generate
from kbatchd.encode.fields import Refused
from kbatchd.encode.internal import internal_refusal, tell
from kbatchd.encode.mapping import OF_RECORD, Source, known_fields, looked_into, resolve_feeds
from kbatchd.encode.row_format import BINARY
from kbatchd.encode.text import TEXT
from kbatchd.errors import ConfigError
from kbatchd.model import DELETED, CopyFormat, Encoded, Refusal
from kbatchd.paths import show_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.encode.mapping import Deletes, Feed
    from kbatchd.model import Record
    from kbatchd.postgres.table import Column

#: So many faults of one record are named.
FAULTS = 100

#: So many records between two that the compiled encoder leaves are worth its next try.
_WORTH_A_TRY = 2


class RowEncoder:
    """Encodes the records of one route; made when the table has been read."""

    def __init__(
        self, feeds: Sequence[Feed], mapping: RouteMapping, deletes: Deletes | None, *, compiled: bool
    ) -> None:
        binary = all(type_of(feed.column) is not None for feed in feeds)
        ordered = sorted(feeds, key=_place) if binary else list(feeds)
        #: The columns' names in the order of the COPY, for each layout; [0] is all. More are found while encoding.
        self.layouts = [tuple(feed.column.name for feed in ordered) + ((DELETED,) if deletes else ())]
        self.copy_format = CopyFormat.BINARY if binary else CopyFormat.TEXT
        self._layout_indexes: dict[tuple[str, ...], int] = {self.layouts[0]: 0}
        self._is_json = mapping.format == "json"
        self._unknown = looked_into(ordered) if mapping.unknown_fields == "reject" else None
        self._needs_now = any(feed.source is Source.NOW for feed in ordered)
        row_format = BINARY if binary else TEXT
        known = known_fields(ordered)
        cells = [Cell(feed, row_format, known) for feed in ordered]
        literals = _literals(ordered, cells)
        #: The field of each column that has one, as a path from the value's root.
        self.fields = {cell.name: show_path(path) for cell in cells if (path := cell.path(mapping.envelope))}
        self._careful = CarefulEncoder(cells, row_format, mapping.envelope, deletes, self._unknown)
        kinds = [kind for feed in ordered if (kind := type_of(feed.column)) is not None]
        self._numbers = any(kind.numbers for kind in kinds)
        #: The fast encoder's code, to be read; None: there is none for this route.
        self.source = generate(ordered, mapping, deletes, literals) if binary else None
        self._fast = None if self.source is None else compile_encoder(self.source, ordered, literals)
        self._compiled = make_encoder(ordered, mapping, deletes, literals) if compiled and binary else None
        #: What the compiled encoder's rows begin and end with where they have constants, or may delete.
        self._wrap = wrap(ordered, literals, len(self.layouts[0]), deletes=deletes is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of all columns, in the order of the COPY."""
        return self.layouts[0]

    def encode(self, records: Sequence[Record], values: Sequence[bytes | None], rows: list[bytes]) -> Encoded:
        """Append the rows of all good records, in order, and say why the others are refused.

        `values` are the records' values; the records are looked at only where a column is fed by their metadata. What
        is raised is one record's, whichever it is: then each is taken alone.
        """
        before = len(rows)
        try:
            return self._encode(records, values, rows)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is: see internal.py
            tell(error)
            del rows[before:]
            return self.encode_carefully(records, values, rows)

    def encode_carefully(self, records: Sequence[Record], values: Sequence[bytes | None], rows: list[bytes]) -> Encoded:
        """Do as `encode` does, one record after the other, and each in the careful encoder alone."""
        call = self._begin(records)
        for index, value in enumerate(values):
            call.careful(value, index, rows, call.refused, suspect=True)
        return call.encoded(len(rows))

    def faults(self, value: bytes) -> list[tuple[str | None, Refusal]]:
        """Say all that is wrong with a record that was refused, FAULTS at most: which field, and why.

        Nothing, where it is wrong as a whole: the refusal says so.
        """
        decoded = DecodedRecord(value, None, time.time_ns() // 1000)
        try:
            found = list(islice(self._careful.faults(decoded, is_json=self._is_json), FAULTS))
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - it was told of when the record was refused
            return []
        return [(show_path(path) or None, Refusal(why.code, why.column, str(why))) for path, why in found]

    def _begin(self, records: Sequence[Record]) -> _Call:
        return _Call(self, records, time.time_ns() // 1000 if self._needs_now else 0)

    def _encode(self, records: Sequence[Record], values: Sequence[bytes | None], rows: list[bytes]) -> Encoded:
        call = self._begin(records)
        if self._compiled is None:
            self._interpret(call, values, 0, rows)
            return call.encoded(len(rows))
        start, window = 0, 1
        while True:
            before = len(rows)
            left = self._compiled.encode(records, values, start, rows)
            if self._wrap is not None:
                head, tail = self._wrap
                rows[before:] = [head + row[2:] + tail for row in rows[before:]]
            if left == len(values):
                return call.encoded(len(rows))
            # Records that are not plain come in runs: without plain ones in between, each try costs 1 us for nothing.
            window = 1 if left - start >= _WORTH_A_TRY else 2 * window
            start = min(left + window, len(values))
            self._interpret(call, values[left:start], left, rows)

    def _interpret(self, call: _Call, values: Sequence[bytes | None], first: int, rows: list[bytes]) -> None:
        """Encode in the Python encoders; the first of these records has the index `first`."""
        start, fast, records = 0, self._fast, call.records
        if fast is None:
            found = set(suspects(values, numbers=self._numbers)) if self._is_json else set()
            for index, value in enumerate(values):
                call.careful(value, first + index, rows, call.refused, suspect=index in found)
            return
        for index in suspects(values, numbers=self._numbers):
            fast(records, values[start:index], first + start, rows, call.refused, call.careful)
            call.careful(values[index], first + index, rows, call.refused, suspect=True)
            start = index + 1
        fast(records, values[start:] if start else values, first + start, rows, call.refused, call.careful)

    def _layout(self, columns: tuple[str, ...]) -> int:
        """Return the number of a layout, which may be a new one."""
        if self.layouts[0][-1] == DELETED:
            columns = (*columns, DELETED)
        index = self._layout_indexes.setdefault(columns, len(self.layouts))
        if index == len(self.layouts):
            self.layouts.append(columns)
        return index


class _Call:
    """What one call of `encode` has found so far."""

    def __init__(self, encoder: RowEncoder, records: Sequence[Record], now_microseconds: int) -> None:
        self.records = records
        self.refused: list[tuple[int, Refusal]] = []
        self._encoder = encoder
        self._careful = encoder._careful  # noqa: SLF001 - a part of the encoder
        self._now = now_microseconds
        self._layouts: dict[int, int] = {}

    def careful(
        self,
        value: bytes | None,
        index: int,
        rows: list[bytes],
        refused: list[tuple[int, Refusal]],
        *,
        suspect: bool = False,
    ) -> None:
        """Encode one record in the careful encoder; of a suspect one, the numbers are read from its own text."""
        encoder = self._encoder
        try:
            decoded = DecodedRecord(value, self.records[index] if self.records else None, self._now)
            row, columns = self._careful.row(decoded, is_json=encoder._is_json, suspect=suspect)  # noqa: SLF001
        except Refused as error:
            refused.append((index, Refusal(error.code, error.column, str(error))))
        except (json.JSONDecodeError, RecursionError) as error:
            refused.append((index, _not_read(error)))
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is: see internal.py
            refused.append((index, internal_refusal(error)))
        else:
            if columns is not None:
                self._layouts[len(rows)] = encoder._layout(columns)  # noqa: SLF001
            rows.append(row)

    def encoded(self, count: int) -> Encoded:
        """Return the outcome, when all rows are there."""
        if not self._layouts:
            return Encoded(self.refused)
        return Encoded(self.refused, [self._layouts.get(row, 0) for row in range(count)])


def _not_read(error: json.JSONDecodeError | RecursionError) -> Refusal:
    """Say why a value is not read at all; orjson calls its own limit, 1,024 levels, a fault of the text."""
    if isinstance(error, RecursionError) or " limit " in error.msg:
        return Refusal("too_deep", None, "nested too deeply to be read")
    return Refusal("not_json", None, f"not JSON: {error}")


def _place(feed: Feed) -> int:
    """Return the place of a column: those of fixed width that all rows have are first, constants last."""
    kind = type_of(feed.column)
    if feed.source is Source.CONSTANT:
        return 2
    return 0 if feed.column.not_null and kind is not None and kind.pack else 1


def _literals(feeds: Sequence[Feed], cells: Sequence[Cell]) -> dict[str, bytes]:
    """Encode constants and defaults, as a binary row has them; ConfigError for those that their columns do not take."""
    found: dict[str, bytes] = {}
    faults = []
    for feed, cell in zip(feeds, cells, strict=True):
        if feed.literal is None:
            continue
        try:
            encoded = cell.literal()
        except Refused as error:
            what = "constant" if feed.source is Source.CONSTANT else "default"
            faults.append(f"column {feed.column.name} does not take its {what}: {error}")
        else:
            if encoded is not None:
                found[feed.column.name] = len(encoded).to_bytes(4) + encoded
    if faults:
        raise ConfigError(*faults)
    return found


def build_encoder(
    columns: Sequence[Column],
    mapping: RouteMapping | None = None,
    *,
    deletes: Deletes | None = None,
    at_the_door: bool = False,
    compiled: bool = COMPILED,
) -> RowEncoder:
    """Make the encoder for the columns that a record feeds (`mapping.row_columns`), with the compiled encoder or not.

    With `deletes`, rows have one more column, last, that says whether the record deletes. At the door there is no
    record yet: what its metadata will feed is left out. ConfigError when the mapping does not fit the columns.
    """
    mapping = RouteMapping() if mapping is None else mapping
    feeds = resolve_feeds(columns, mapping)
    if at_the_door:
        feeds = tuple(feed for feed in feeds if feed.source not in OF_RECORD)
    return RowEncoder(feeds, mapping, deletes, compiled=compiled)
