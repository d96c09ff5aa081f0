"""The careful encoder: one record to one row, column by column; it takes all that a column holds, and it alone refuses.

Each column is a `Cell`: it finds the column's value in the decoded record (decoded.py), as the mapping says, and has it
encoded. How a field is encoded and how fields become a row differs between the formats: binary here, text in text.py.
Called by the row encoder in the worker's poll loop. No I/O.
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import TYPE_CHECKING

import orjson

from kbatchd.encode.decoded import MISSING, DecodedRecord, Document
from kbatchd.encode.fields import Refused, show
from kbatchd.encode.mapping import JSONS, TEXTS, Deletes, Feed, Source
from kbatchd.encode.row_format import RowFormat

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kbatchd.model import Record
    from kbatchd.paths import Path


#: An escape of JSON: NUL among them.
_ESCAPE = re.compile(rb"\\(?:u0000|.)", re.DOTALL)


class CarefulEncoder:
    """Makes the rows of one route."""

    def __init__(
        self,
        cells: Sequence[Cell],
        row_format: RowFormat,
        envelope: Path,
        deletes: Deletes | None,
        allowed: frozenset[str] | None,
    ) -> None:
        """Refuse fields that are not among the allowed ones; None: all are."""
        self._cells = cells
        self._format = row_format
        self._envelope = envelope
        self._deletes = deletes
        self._allowed = allowed

    def row(self, decoded: DecodedRecord, *, is_json: bool, suspect: bool) -> tuple[bytes, tuple[str, ...] | None]:
        """Make the row, and name the columns it has; None: all. Refused, JSONDecodeError or RecursionError if not."""
        deletes = self._deletes
        if decoded.value is None and is_json:
            if deletes is None:
                raise Refused("no_value", "the record has no value (a tombstone)")
            return self._deleted(decoded, deletes), None
        if is_json:
            decoded.decode(suspect=suspect)
            if deletes is not None and deletes.by(decoded):
                return self._deleted(decoded, deletes), None
            decoded.open(self._envelope)
            if self._allowed is not None:
                _refuse_unknown(decoded, self._allowed)
        fields = [cell.field(decoded) for cell in self._cells]
        columns = None
        if MISSING in fields:
            columns = tuple(cell.name for cell, field in zip(self._cells, fields, strict=True) if field is not MISSING)
            if not columns:
                raise Refused("missing", "no column has a field in this record")
        row = [field for field in fields if field is None or isinstance(field, bytes)]
        if deletes is not None:
            row.append(self._format.false)
        return self._format.row(row), columns

    def faults(self, decoded: DecodedRecord, *, is_json: bool) -> Iterator[tuple[Path, Refused]]:
        """Say all that is wrong with a record that `row` has refused: which field, and why.

        What is wrong with all of it is raised, as there.
        """
        if is_json:
            decoded.decode(suspect=True)
            decoded.open(self._envelope)
            for name in sorted(_unknown(decoded, self._allowed)):
                yield (*self._envelope, name), Refused("unknown_field", "no column takes this field")
        for cell in self._cells:
            try:
                cell.field(decoded)
            except Refused as error:
                yield cell.path(self._envelope), error

    def _deleted(self, decoded: DecodedRecord, deletes: Deletes) -> bytes:
        """Make a row that names what to delete: NULL in all but the key's columns."""
        if decoded.whole is not None:
            decoded.open(self._envelope, optional=True)
        fields = [cell.field(decoded) if cell.name in deletes.key else None for cell in self._cells]
        for cell, field in zip(self._cells, fields, strict=True):
            if cell.name in deletes.key and not isinstance(field, bytes):
                raise Refused("null", "the record deletes a row, and its key is not there", cell.name)
        row = [field for field in fields if field is None or isinstance(field, bytes)]
        return self._format.row([*row, self._format.true])


def _unknown(decoded: DecodedRecord, allowed: frozenset[str] | None) -> Collection[str]:
    """Return the fields that no column takes, where that matters."""
    if allowed is None:
        return ()
    assert decoded.body is not None
    found = decoded.body.at(decoded.prefix)
    return found.keys() - allowed if isinstance(found, dict) else ()


def _refuse_unknown(decoded: DecodedRecord, allowed: frozenset[str]) -> None:
    unknown = _unknown(decoded, allowed)
    if unknown:
        raise Refused("unknown_field", f"no column takes the field {show(min(unknown))}")


class Cell:
    """One column: where its value is found, and what is made of it."""

    def __init__(self, feed: Feed, row_format: RowFormat, known: frozenset[str]) -> None:
        self.name = feed.column.name
        self._feed = feed
        self._encode, self._needs_text = row_format.encoder(feed)
        #: The fields that other columns take, for the one that collects the rest.
        self._known = known
        # A key or a header that is JSON has been read as such when it was found.
        self._json_in_string = feed.json_text and (feed.source is Source.FIELD or bool(feed.path))
        self._literal = None if feed.literal is None else Document(feed.literal, suspect=True)

    def path(self, envelope: Path) -> Path:
        """Return the way to its field from the value's root; nothing where it is fed by something else."""
        if self._feed.source is Source.FIELD:
            return envelope + self._feed.path
        return self._feed.path if self._feed.source is Source.VALUE else ()

    def field(self, decoded: DecodedRecord) -> object:
        """Return the field's bytes, None for NULL, or MISSING where the column's default is to apply."""
        column = self._feed.column
        try:
            x, raw = self._value(decoded)
            if x is MISSING:
                return self._missing()
            if x is None:
                self._check_null()
                return None
            try:
                return self._encode(x, raw)
            except (Refused, orjson.JSONEncodeError):
                # What is refused is shown as it was written. And what is nested deeper than orjson writes, but not
                # deeper than it reads, goes in as it was written.
                if raw is not None:
                    raise
                return self._encode(*self._value(decoded, with_text=True))
        except Refused as error:
            error.column = column.name
            raise

    def literal(self) -> bytes | None:
        """Encode the constant or the default."""
        assert self._literal is not None
        x = self._literal.value
        if x is not None:
            return self._encode(x, self._literal.raw(()))
        self._check_null()
        return None

    def _check_null(self) -> None:
        if self._feed.column.not_null:
            raise Refused("null", "null, but the column is NOT NULL")

    def _missing(self) -> object:
        if self._feed.on_missing == "default":
            return MISSING
        if self._feed.column.not_null:
            raise Refused("missing", "the field is missing, and the column is NOT NULL")
        if self._feed.on_missing == "reject":
            raise Refused("missing", "the field is missing")
        return None

    def _value(self, decoded: DecodedRecord, *, with_text: bool = False) -> tuple[object, str | None]:
        """Return the value, and its text where that is needed."""
        found = self._find(decoded)
        x, document, path = found if isinstance(found, tuple) else (found, None, ())
        if x is MISSING and self._literal is not None:
            x, document, path = self._literal.value, self._literal, ()
        if x is None or x is MISSING:
            return x, None
        if self._json_in_string and document is not None:
            document, path = document.inner(path), ()
            x = document.value
            if x is None:
                return None, None
        if document is None:
            return x.replace("\0", "") if self._feed.strips and isinstance(x, str) else x, None
        if self._feed.strips and "\\u0000" in (text := document.raw(path)):
            document = Document(_ESCAPE.sub(_without_null, text.encode()), suspect=True)
            x, path = document.value, ()
        # The whole value is kept as it was written.
        if with_text or self._feed.source is Source.VALUE or self._needs_text(x, document.suspect):
            return x, document.raw(path)
        return x, None

    def _find(self, decoded: DecodedRecord) -> object:  # noqa: PLR0911 - one for each source
        """Return the value alone, or a document with the value and the path to it."""
        feed, record = self._feed, decoded.record
        match feed.source:
            case Source.FIELD | Source.REST if decoded.body is None:
                raise Refused("no_value", "the record has no object (a tombstone), and the column is a field of it")
            case Source.FIELD:
                assert decoded.body is not None
                path = decoded.prefix + feed.path
                return decoded.body.at(path), decoded.body, path
            case Source.CONSTANT:
                assert self._literal is not None
                return self._literal.value, self._literal, ()
            case Source.REST:
                rest = _rest(decoded, self._known)
                return rest.value, rest, ()
            case Source.VALUE if decoded.whole is not None and (feed.path or feed.column.type_name in JSONS):
                return decoded.whole.at(feed.path), decoded.whole, feed.path
            case Source.VALUE:
                return self._of_bytes(decoded, decoded.value, "value")
            case Source.NOW:
                return decoded.now_microseconds, None, ()
        assert record is not None, "the mapping has a source in the record, and none was given"
        return self._of_record(decoded, record)

    def _of_record(self, decoded: DecodedRecord, record: Record) -> object:  # noqa: PLR0911
        """Return what is asked of the record but its value."""
        feed = self._feed
        match feed.source:
            case Source.KEY:
                return self._of_bytes(decoded, record.key(), "key")
            case Source.HEADER:
                values = decoded.headers().get(feed.header)
                if values is None:
                    return MISSING
                return None if values[-1] is None else self._of_bytes(decoded, values[-1], f"header {feed.header}")
            case Source.HEADERS:
                document = Document(_headers(decoded), suspect=True)
                return document.value, document, ()
            case Source.TIMESTAMP:
                _, milliseconds = record.timestamp()
                return MISSING if milliseconds < 0 else self._of_number(milliseconds)
            case Source.TOPIC:
                return record.topic()
            case Source.PARTITION:
                return self._of_number(record.partition())
        return self._of_number(record.offset())

    def _of_number(self, number: int | None) -> object:
        return str(number) if self._feed.column.type_name in TEXTS else number

    def _of_bytes(self, decoded: DecodedRecord, data: bytes | None, source: str) -> object:
        """Read a text from outside the record's JSON: as JSON where the column or the mapping asks for that."""
        feed, type_name = self._feed, self._feed.column.type_name
        if data is None:
            return MISSING
        if feed.path or feed.json_text or type_name in JSONS or type_name in {"array", "composite"}:
            document = decoded.document(source, data)
            return document.at(feed.path), document, feed.path
        if type_name == "bytea":
            return data
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise Refused("not_utf8", f"the {source} is not UTF-8: {error}") from error


def _without_null(match: re.Match[bytes]) -> bytes:
    return b"" if match[0] == b"\\u0000" else match[0]


def _rest(decoded: DecodedRecord, known: frozenset[str]) -> Document:
    """Return the fields that no column takes, each in its own text."""
    assert decoded.body is not None
    parts = decoded.body.parts(decoded.prefix)
    assert isinstance(parts, dict)
    rest = b",".join(b"%b:%b" % (orjson.dumps(name), text) for name, text in parts.items() if name not in known)
    return Document(b"{%b}" % rest, suspect=True)


def _headers(decoded: DecodedRecord) -> bytes:
    """Write the headers as an object; a name that is there several times has an array."""
    found = {name: list(map(_header, values)) for name, values in decoded.headers().items()}
    return orjson.dumps({name: shown if len(shown) > 1 else shown[0] for name, shown in found.items()})


def _header(value: bytes | None) -> object:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(value).decode()}
