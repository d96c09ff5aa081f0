"""A record as the careful encoder sees it: decoded once, with the text of any field at hand.

A `Document` is a JSON text with its value: a record's value, or JSON in its key, a header or a string. Where orjson's
value may not be the number as it was written, a field's own text is. Made by the row encoder for one record at a time,
in the worker's poll loop. No I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import orjson

from kbatchd.encode.exact import field_slices, item_slices, loads_huge
from kbatchd.encode.fields import Refused, show
from kbatchd.encode.headers import read_headers
from kbatchd.paths import show_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kbatchd.model import Record
    from kbatchd.paths import Path


class _Missing:
    """There is no such field; null is another thing."""

    def __repr__(self) -> str:
        return "missing"


MISSING: Final = _Missing()


class Document:
    """A JSON text and its value; JSONDecodeError when it is none."""

    __slots__ = ("_inner", "_parts", "suspect", "text", "value")

    def __init__(self, text: bytes, *, suspect: bool) -> None:
        self.text = text
        #: Whether its numbers must be read from their text.
        self.suspect = suspect
        self._parts: dict[Path, dict[str, bytes] | list[bytes]] = {}
        self._inner: dict[Path, Document] = {}
        try:
            self.value: object = orjson.loads(text)
        except orjson.JSONDecodeError:
            self.value = loads_huge(text)
            self.suspect = True

    def at(self, path: Path) -> object:
        """Return the value at a path; MISSING where a field, an item or a null ends it early."""
        x = self.value
        for depth, step in enumerate(path):
            if isinstance(x, dict) and isinstance(step, str):
                x = x.get(step, MISSING)
            elif isinstance(x, list) and isinstance(step, int):
                x = x[step] if step < len(x) else MISSING
            elif x is not None:
                expected = "an object" if isinstance(step, str) else "an array"
                where = f" at {show_path(path[:depth])}" if depth else ""
                raise Refused("wrong_type", f"expected {expected}{where}, got {self.shown(path[:depth])}")
            if x is MISSING or x is None:
                return MISSING if depth < len(path) - 1 else x
        return x

    def raw(self, path: Path) -> str:
        """Return the text of what is at a path."""
        return self._raw(path).decode()

    def _raw(self, path: Path) -> bytes:
        if not path:
            return self.text.strip(b" \t\r\n")
        return self.parts(path[:-1])[path[-1]]  # type: ignore[index]  # a path that `at` has gone fits

    def shown(self, path: Path) -> str:
        """Show what is at a path, for a message: a number as it was written."""
        x = self.at(path)
        return show(x, self.raw(path) if isinstance(x, float) else None)

    def parts(self, path: Path) -> dict[str, bytes] | list[bytes]:
        """Return the texts of the fields of the object, or of the items of the array, at a path."""
        parts = self._parts.get(path)
        if parts is None:
            text = self._raw(path)
            parts = self._parts[path] = field_slices(text) if text[:1] == b"{" else item_slices(text)
        return parts

    def inner(self, path: Path) -> Document:
        """Return the JSON that is in the string at a path: read once, however many columns take something of it."""
        document = self._inner.get(path)
        if document is None:
            x = self.at(path)
            if not isinstance(x, str):
                raise Refused("wrong_type", f"expected a string with JSON in it, got {self.shown(path)}")
            document = self._inner[path] = _read(x.encode(), "the string")
        return document


def _read(text: bytes, where: str) -> Document:
    try:
        return Document(text, suspect=True)
    except orjson.JSONDecodeError as error:
        raise Refused("not_json", f"{where} is not JSON: {error}") from error


class DecodedRecord:
    """One record: its value as a document, the object whose fields are the columns', and the record itself.

    What several columns ask for is read once.
    """

    __slots__ = ("_documents", "_headers", "body", "now_microseconds", "prefix", "record", "value", "whole")

    def __init__(self, value: bytes | None, record: Record | None, now_microseconds: int) -> None:
        self.value = value
        self.record = record
        #: When it was encoded, since 1970.
        self.now_microseconds = now_microseconds
        #: The value as JSON; None for a tombstone, and where the route's format is not JSON.
        self.whole: Document | None = None
        #: Where the object is: a document and a path in it.
        self.body: Document | None = None
        self.prefix: Path = ()
        self._headers: dict[str, list[bytes | None]] | None = None
        self._documents: dict[str, Document] = {}

    def headers(self) -> Mapping[str, Sequence[bytes | None]]:
        """Return the values of the record's headers by name, in their order."""
        if self._headers is None:
            assert self.record is not None
            self._headers = {}
            for name, value in read_headers(self.record):
                self._headers.setdefault(name, []).append(value)
        return self._headers

    def document(self, source: str, text: bytes) -> Document:
        """Read what comes from another source than the value's fields as JSON."""
        document = self._documents.get(source)
        if document is None:
            document = self._documents[source] = _read(text, f"the {source}")
        return document

    def decode(self, *, suspect: bool) -> None:
        """Decode the value."""
        assert self.value is not None
        self.whole = Document(self.value, suspect=suspect)

    def open(self, envelope: Path, *, optional: bool = False) -> None:
        """Find the object in its envelope, also where it is JSON in a string there."""
        assert self.whole is not None
        inner = self.whole.at(envelope)
        body, prefix = self.whole, envelope
        if isinstance(inner, str) and envelope:
            body, prefix = Document(inner.encode(), suspect=True), ()
            inner = body.value
        if type(inner) is dict:
            self.body, self.prefix = body, prefix
        elif not optional:
            where = f" at {show_path(envelope)}" if envelope else ""
            raise Refused("not_object", f"expected an object{where}, got {body.shown(prefix)}")
