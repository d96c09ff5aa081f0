"""CSV files (RFC 4180, with a header row) as records: each row becomes a JSON object, typed by the table's columns.

Everything in CSV is text. A field becomes what its column's type takes: a number or a boolean where the text is one, a
JSON value for json and jsonb, else a string. An empty field is null, but "" for a text column that is NOT NULL. What
does not fit stays a string, for the door to refuse: no value is bent.

Used by `kbatchd produce`, in its main thread; no I/O. The codes of the refusals that are made here:

    not_csv          a quote in the wrong place, or never closed
    wrong_width      more or fewer fields than the header has
    not_json         no JSON, in a json or jsonb column; or no UTF-8
    too_large        the row is longer than any record may be
"""

from __future__ import annotations

import csv
import io
import json
import re
from itertools import chain
from typing import TYPE_CHECKING, Final

import orjson

from kbatchd import log
from kbatchd.encode.mapping import Source
from kbatchd.errors import ConfigError
from kbatchd.files.files import MAX_RECORD_BYTES, UTF8_MARK, Cursor, Piece, whole_lines
from kbatchd.model import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kbatchd.door.feeding import Feeding
    from kbatchd.encode.mapping import Feed

    Convert = Callable[[str], str]

#: A piece's bytes: as much as one chunk of other files.
_PIECE_BYTES: Final = 131_072

#: What stands between fields, beside what was said: European spreadsheets write semicolons.
_DELIMITERS: Final = (";", "\t", "|", ",", ":")

_AROUND_NAMES: Final = ' "\r\n' + UTF8_MARK.decode()

_quote: Convert = json.encoder.encode_basestring
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
#: PostgreSQL's own CSV says t and f.
_BOOLEANS: Final = {"true": "true", "false": "false", "t": "true", "f": "false"}
_NUMBER_TYPES: Final = {"int2", "int4", "int8", "float4", "float8", "numeric"}
#: Their empty value is a value.
_TEXT_TYPES: Final = {"text", "varchar", "bytea"}


class _NotJson(ValueError):
    """A field of a json or jsonb column is not JSON."""


class CsvReader:
    """Reads one CSV file."""

    def __init__(
        self,
        feeds: Sequence[Feed],
        key_field: str | None,
        max_row_bytes: int,
        name: str,
        delimiter: str,
        feeding: Feeding,
    ) -> None:
        of_fields = [feed for feed in feeds if feed.source is Source.FIELD and len(feed.path) == 1]
        self._converters = {str(feed.path[0]): _converter(feed) for feed in of_fields}
        self._required = [str(feed.path[0]) for feed in of_fields if feed.is_plain and feed.column.not_null]
        self._key_field = key_field
        self._max_row_bytes = max_row_bytes
        self._name = name
        self._delimiter = delimiter
        self._feeding = feeding
        self._fields: list[tuple[str, str, Convert]] = []
        csv.field_size_limit(MAX_RECORD_BYTES)  # a row's own limit is smaller

    def read_header(self, chunks: Iterator[bytes]) -> None:
        """Read the file's first row; ConfigError with all faults of it."""
        self._take_header(_Rows(chunks, 0, self._max_row_bytes, self._name, self._delimiter))

    def read(self, chunks: Iterator[bytes], cursor: Cursor, max_records: int) -> Iterator[Piece]:
        """Convert the rows. From the file's beginning on this reads the header too; else `read_header` comes first."""
        rows = _Rows(chunks, cursor.lines, self._max_row_bytes, self._name, self._delimiter)
        if cursor.offset == 0:
            self._take_header(rows)
            cursor = cursor.after(header := Piece([], (), rows.take()))
            yield header
        builder = _PieceBuilder()
        for row in rows:
            builder.add(self._record(row), rows.source(), rows.line)
            if len(builder.values) >= max_records or rows.taken_bytes >= _PIECE_BYTES:
                yield builder.piece(rows.take())
                builder = _PieceBuilder()
        yield builder.piece(rows.take())

    def _take_header(self, rows: _Rows) -> None:
        first = next(rows, None)
        if first is None:
            return  # an empty file
        if isinstance(first, Refusal):
            hint = self._other_delimiter(rows.source().decode(errors="replace"))
            raise ConfigError(f"{self._name}:{rows.line}: the header: {f'feeds no column{hint}' if hint else first}")
        names = first
        faults = []
        if not self._feeding.is_fed_by(names):
            what = (
                f"feeds no column: {self._feeding.explain(names)}{self._other_delimiter(self._delimiter.join(names))}"
            )
            raise ConfigError(f"{self._name}:{rows.line}: the header: {what}")
        if "" in names:
            faults.append(f"field {names.index('') + 1} has no name")
        faults += [f"{name!r} is there twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        faults += [f"lacks {name}, which is NOT NULL" for name in self._required if name not in names]
        if self._key_field is not None and self._key_field not in names:
            faults.append(f"lacks {self._key_field}, which is to be the records' key")
        if faults:
            raise ConfigError(*(f"{self._name}:{rows.line}: the header: {fault}" for fault in faults))
        warnings = (f"{name!r} feeds no column, but {like!r} would" for name, like in self._feeding.nearly(names))
        log.complain(f"{self._name}:{rows.line}: warning: the header: {warning}" for warning in warnings)
        self._fields = [(name, f"{_quote(name)}:", self._converters.get(name, _quote)) for name in names]

    def _other_delimiter(self, line: str) -> str:
        """Guess what stands between the fields, where another character makes names of them that feed columns."""
        for other in _DELIMITERS:
            if other != self._delimiter and self._feeding.is_fed_by(
                [each.strip(_AROUND_NAMES) for each in line.split(other)]
            ):
                return f"; say --delimiter {'tab' if other == chr(9) else repr(other)}"
        return ""

    def _record(self, row: list[str] | Refusal) -> bytes | Refusal:
        if isinstance(row, Refusal):
            return row
        fields = self._fields
        if len(row) != len(fields):
            return Refusal("wrong_width", None, f"{len(row)} fields, but the header has {len(fields)}")
        try:
            parts = [start + convert(text) for (_, start, convert), text in zip(fields, row, strict=True)]
            return f"{{{','.join(parts)}}}".encode()
        except UnicodeEncodeError:
            return Refusal("not_json", None, "not UTF-8")
        except _NotJson:
            return self._blame(row)

    def _blame(self, row: list[str]) -> Refusal:
        """Name the column whose field is not JSON."""
        for (name, _, convert), text in zip(self._fields, row, strict=True):
            try:
                convert(text)
            except _NotJson as error:
                return Refusal("not_json", name, f"not JSON: {error}")
        raise AssertionError(row)


def _converter(feed: Feed) -> Convert:
    column = feed.column
    if feed.json_text:
        return _text
    if column.type_name in _NUMBER_TYPES or feed.unit is not None:
        return _number
    if column.type_name in _TEXT_TYPES and column.not_null:
        return _quote
    return {"bool": _boolean, "json": _json, "jsonb": _json}.get(column.type_name, _text)


def _text(text: str) -> str:
    return _quote(text) if text else "null"


def _number(text: str) -> str:
    return text if _NUMBER.fullmatch(text) else _text(text)


def _boolean(text: str) -> str:
    return _BOOLEANS.get(text.lower()) or _text(text)


def _json(text: str) -> str:
    if not text:
        return "null"
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        try:  # a number beyond orjson's
            json.loads(text, parse_int=len, parse_float=len, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise _NotJson(str(error)) from error
    return text


def _refuse_constant(constant: str) -> None:
    raise _NotJson(f"{constant} is not JSON")


class _PieceBuilder:
    """The records of a piece that is being made."""

    def __init__(self) -> None:
        self.values: list[bytes] = []
        self._sources: list[bytes] = []
        self._lines: list[int] = []
        self._refused: list[tuple[int, Refusal]] = []

    def add(self, record: bytes | Refusal, source: bytes, line: int) -> None:
        if isinstance(record, Refusal):
            self._refused.append((len(self.values), record))
            record = b""
        self.values.append(record)
        self._sources.append(source)
        self._lines.append(line)

    def piece(self, raw: bytes) -> Piece:
        return Piece(self.values, self._lines, raw, self._refused, self._sources)


class _Lines:
    """The lines that the csv module asks for, and what it has asked for since the last row."""

    def __init__(self, chunks: Iterator[bytes], line: int, max_row_bytes: int, name: str) -> None:
        self._lines = chain.from_iterable(map(io.BytesIO, whole_lines(chunks, line + 1, name)))
        self._max_row_bytes = max_row_bytes
        self._is_first = line == 0
        self.row: list[bytes] = []
        self.row_bytes = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        if self.row_bytes > self._max_row_bytes:
            raise OverflowError
        line = next(self._lines)
        self.row.append(line)
        self.row_bytes += len(line)
        if self._is_first:  # a mark is no part of the first name, which may be in quotes
            line, self._is_first = line.removeprefix(UTF8_MARK), False
        return line.decode("utf-8", "surrogateescape")


class _Rows:
    """The rows of a file, or why they are none; empty lines are left out."""

    def __init__(
        self, chunks: Iterator[bytes], lines_before: int, max_row_bytes: int, name: str, delimiter: str
    ) -> None:
        self._source = _Lines(chunks, lines_before, max_row_bytes, name)
        self._reader = csv.reader(self._source, strict=True, delimiter=delimiter)
        self._taken: list[bytes] = []
        self.taken_bytes = 0
        self._lines_before = lines_before
        #: Where the last row began.
        self.line = 0

    def __iter__(self) -> _Rows:
        return self

    def __next__(self) -> list[str] | Refusal:
        while True:
            self._go_on()
            row: list[str] | Refusal
            try:
                row = next(self._reader)
            except OverflowError:
                row = Refusal("too_large", None, "the row is too long: is there a quote that is never closed?")
            except csv.Error as error:
                row = Refusal("not_csv", None, f"no CSV: {error}")
            if row:
                return row

    def source(self) -> bytes:
        """Return the last row as it stands in the file."""
        return b"".join(self._source.row)

    def take(self) -> bytes:
        """Return all bytes since the last time."""
        self._go_on()
        taken = b"".join(self._taken)
        self._taken, self.taken_bytes = [], 0
        return taken

    def _go_on(self) -> None:
        """Count the last row as taken."""
        source = self._source
        self._taken += source.row
        self.taken_bytes += source.row_bytes
        self._lines_before += len(source.row)
        self.line = self._lines_before + 1
        source.row, source.row_bytes = [], 0
