"""Records in files: NDJSON and JSON arrays, split as their bytes come, without rewriting one.

A reader takes the unpacked bytes in chunks and yields pieces: some records, the line each begins on, and all the bytes
from the end of the piece before to the end of its own last record. So the end of each piece is a place where a reader
can be set in again, and the bytes of all the pieces are the file.

An array's elements are cut where one object seems to end and the next to begin. A cut is believed only when the element
is JSON, and then it is right: no object is the beginning of another. Else a JSON parser finds the element's end.

Used by `kbatchd produce`, in its main thread; no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn

import orjson

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.model import Refusal

#: No record may be longer: memory is bounded by it. Far more than Kafka takes by default.
MAX_RECORD_BYTES: Final = 67_108_864

_BLANK: Final = b" \t\r\n"
UTF8_MARK: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Piece:
    """Some records of a file, in order."""

    #: As they are sent.
    values: Sequence[bytes]
    #: The line each begins on, from 1.
    lines: Sequence[int]
    #: All the bytes since the piece before.
    raw: bytes
    #: Those the reader itself refuses, as (index, why).
    refused: Sequence[tuple[int, Refusal]] = ()
    #: The records as they stand in the file, where that is not what is sent.
    sources: Sequence[bytes] | None = None


class Cursor(NamedTuple):
    """How far an input is cut into records: the bytes, lines and records before the end of a piece."""

    offset: int = 0
    lines: int = 0
    records: int = 0

    def after(self, piece: Piece) -> Cursor:
        """Return the cursor behind the next piece."""
        return Cursor(
            self.offset + len(piece.raw), self.lines + piece.raw.count(b"\n"), self.records + len(piece.values)
        )


def is_array(head: bytes) -> bool:
    """Tell by its first bytes whether a file is a JSON array."""
    return head.removeprefix(UTF8_MARK).lstrip(_BLANK)[:1] == b"["


def read_lines(chunks: Iterator[bytes], cursor: Cursor, max_records: int, name: str) -> Iterator[Piece]:
    """Split newline-delimited JSON; empty lines count as lines, but are no records."""
    for block in whole_lines(chunks, cursor.lines + 1, name):
        lines = block.split(b"\n")
        if not lines[-1]:
            lines.pop()
        begin = 0
        for first in range(0, len(lines), max_records):
            some = lines[first : first + max_records]
            end = begin + sum(map(len, some)) + len(some)  # one beyond a last line that has no end
            piece = _line_piece(some, block[begin:end], cursor)
            begin = end
            cursor = cursor.after(piece)
            yield piece


def _line_piece(lines: Sequence[bytes], raw: bytes, cursor: Cursor) -> Piece:
    values = [line.strip(_BLANK) for line in lines]
    numbers: Sequence[int] = range(cursor.lines + 1, cursor.lines + 1 + len(values))
    if cursor.offset == 0:
        values[0] = values[0].removeprefix(UTF8_MARK).lstrip(_BLANK)
    if not all(values):
        numbers = [number for number, value in zip(numbers, values, strict=True) if value]
        values = [value for value in values if value]
    return Piece(values, numbers, raw)


def whole_lines(chunks: Iterator[bytes], line: int, name: str) -> Iterator[bytes]:
    """Put chunks together to blocks of whole lines, the last of which may have no end. `line` is the first one's."""
    rest: list[bytes] = []
    size = 0
    for chunk in chunks:
        end = chunk.rfind(b"\n") + 1
        if end:
            block = b"".join((*rest, chunk[:end]))
            line += block.count(b"\n")
            yield block
            rest, size = [], 0
        rest.append(chunk[end:])
        size += len(chunk) - end
        if size > MAX_RECORD_BYTES:
            raise ConfigError(f"{name}:{line}: is longer than {MAX_RECORD_BYTES:,} bytes: no file of records")
    if size:
        yield b"".join(rest)


#: The end of an object, a comma, and the beginning of an object.
_BETWEEN_OBJECTS = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_skip_blanks = re.compile(rb"[ \t\r\n]*").match
#: How long one guess may get before a parser is asked: then it is no array of objects.
_GUESS_BYTES: Final = 1_048_576
#: How much the parser is given first, where a guess was wrong: records are small.
_PARSED_BYTES: Final = 4_096


def _refuse_constant(constant: str) -> NoReturn:
    raise json.JSONDecodeError(f"{constant} is not JSON", constant, 0)


# Only the places matter, no number is looked at; and int() has a limit of 4,300 digits.
_scan = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=_refuse_constant).raw_decode


def read_array(chunks: Iterator[bytes], cursor: Cursor, max_records: int, name: str) -> Iterator[Piece]:
    """Split an array; ConfigError, naming the line, where it is not JSON: from there on nothing can be told apart.

    It is set in again behind an element; the last piece ends behind the array and the blanks after it.
    """
    window = _Window(chunks)
    try:
        if cursor.records == 0:
            window.enter()
        while not window.at_end(first=cursor.records == 0):
            ends = window.elements()
            for first in range(0, len(ends), max_records):
                piece = window.piece(ends[first : first + max_records], cursor)
                cursor = cursor.after(piece)
                yield piece
            window.drop_taken()
    except _Broken as error:
        line = cursor.lines + window.untaken().count(b"\n") + 1
        what = f"{name}:{line}: is not a JSON array from here on (record {cursor.records + 1:,}): {error}"
        raise ConfigError(what) from error
    yield Piece([], (), window.rest())


class _Broken(ValueError):
    """It is no array."""


class _Span(NamedTuple):
    begin: int
    end: int


class _Window:
    """The part of an array that is in memory, from the end of the last piece on."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.data = b""
        #: What is next to be looked at, and the end of the last piece.
        self._at = self._taken = 0

    def enter(self) -> None:
        """Go behind the bracket."""
        while len(self.data) < len(UTF8_MARK) and self._grow(1):
            pass
        if self.data.startswith(UTF8_MARK):
            self._at = len(UTF8_MARK)
        self._expect(b"[")

    def at_end(self, *, first: bool) -> bool:
        """Go to the next element; tell whether there is none, and then nothing but blanks till the end."""
        if self._peek() != b"]":
            if not first:
                self._expect(b",")
                self._peek()
            return False
        self._at += 1
        if self._peek():
            raise _Broken("there is more after its end")
        return True

    def elements(self) -> list[_Span]:
        """Return the next elements, at least one."""
        begin = self._at
        spans: list[_Span] = []
        if self.data[begin : begin + 1] != b"{":  # nothing to guess by
            spans = [self._parsed(begin)]
        while not spans:
            for between in _BETWEEN_OBJECTS.finditer(self.data, begin):
                span = _Span(begin, between.start() + 1)
                if not _is_json(self.data[span.begin : span.end]):
                    break
                spans.append(span)
                begin = between.end()
            else:
                if not spans and len(self.data) - begin < _GUESS_BYTES and self._grow(1):
                    continue
            spans = spans or [self._parsed(begin)]
        self._at = spans[-1].end
        return spans

    def piece(self, spans: Sequence[_Span], cursor: Cursor) -> Piece:
        """Cut some elements out."""
        values = [self.data[span.begin : span.end] for span in spans]
        before, self._taken = self._taken, spans[-1].end
        raw = self.data[before : self._taken]
        line = cursor.lines + 1
        lines: Sequence[int] = [line] * len(values)
        if b"\n" in raw:
            starts = [before, *(span.begin for span in spans)]
            steps = (self.data.count(b"\n", a, b) for a, b in pairwise(starts))
            lines = [line + passed for passed in accumulate(steps)]
        return Piece(values, lines, raw)

    def drop_taken(self) -> None:
        """Forget what has been cut out, once it is most of what there is: each time the rest is copied."""
        if 2 * self._taken > len(self.data):
            self.data = self.data[self._taken :]
            self._at -= self._taken
            self._taken = 0

    def rest(self) -> bytes:
        """Return what lies behind the last piece."""
        return self.data[self._taken :]

    def untaken(self) -> bytes:
        """Return what lies between the last piece and what is looked at."""
        return self.data[self._taken : self._at]

    def _parsed(self, begin: int) -> _Span:
        """Ask a parser for the end of the element: of a small part first, since it decodes all that it is given."""
        size = _PARSED_BYTES
        while True:
            # Bytes that are no UTF-8 are that record's own fault.
            text = self.data[begin : begin + size].decode("utf-8", "surrogateescape")
            is_all = begin + size >= len(self.data)
            try:
                _, end = _scan(text)
            except (ValueError, RecursionError) as error:  # incomplete, or no JSON: that cannot be told
                if is_all and (len(self.data) - begin > MAX_RECORD_BYTES or not self._grow(len(self.data))):
                    raise _Broken(str(error)) from error
            else:
                if end + 2 < len(text) or (is_all and not self._grow(1)):  # else a number might go on: 1e+
                    return _Span(begin, begin + len(text[:end].encode("utf-8", "surrogateescape")))
            size *= 4

    def _expect(self, mark: bytes) -> None:
        found = self._peek()
        if found != mark:
            shown = repr(found.decode(errors="replace")) if found else "the end"
            raise _Broken(f"expected {mark.decode()!r}, got {shown}")
        self._at += 1

    def _peek(self) -> bytes:
        """Go over blanks; return the next byte, none at the end."""
        while True:
            self._at = _skip_blanks(self.data, self._at).end()  # type: ignore[union-attr]  # it matches nothing too
            if self._at < len(self.data) or not self._grow(1):
                return self.data[self._at : self._at + 1]

    def _grow(self, size: int) -> bool:
        """Read so many bytes more, or a bit more than that; tell whether there were any."""
        parts = [self.data]
        while size > 0 and (chunk := next(self._chunks, b"")):
            parts.append(chunk)
            size -= len(chunk)
        self.data = b"".join(parts)
        return len(parts) > 1


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
