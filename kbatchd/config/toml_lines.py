"""The line in which a key of a TOML text stands.

TOML parsers return values without positions, and a fault without its line sends the reader searching. `key_lines()`
scans a text that a real parser has already accepted: so it may be lenient, and only has to follow headers, keys,
inline tables and arrays, and to step over strings and comments. `config.load()` calls it when there are faults, in
whatever process loads the file.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_TOKEN = re.compile(
    r"""
      (?P<skip>     [\ \t\r]+ | \#[^\n]* )
    | (?P<newline>  \n )
    | (?P<string>   \"\"\" (?: \\. | [^\\] )*? \"{3,5}(?!\") | ''' .*? '{3,5}(?!')
                  | " (?: \\. | [^"\\\n] )* " | ' [^'\n]* ' )
    | (?P<bare>     [A-Za-z0-9_+:-]+ )
    | (?P<mark>     . )
    """,
    re.VERBOSE | re.DOTALL,
)


class _Token(NamedTuple):
    kind: str
    text: str
    line: int


def key_path(parts: Iterable[str | int]) -> str:
    """Write a path as people read it: `route[1].table`."""
    path = ""
    for part in parts:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part}" if path else part
    return path


def find_line(lines: dict[str, int], parts: Iterable[str | int]) -> int:
    """Return the line of a path, or of the nearest table around it; line 1 if none of them is in the text."""
    around = tuple(parts)
    while around:
        line = lines.get(key_path(around))
        if line is not None:
            return line
        around = around[:-1]
    return 1


def key_lines(text: str) -> dict[str, int]:
    """Map every key, table and array element of a valid TOML text to its line.

    A quoted `"a.b"` and a dotted `a.b` have the same path here: code that flattens dotted keys finds both.
    """
    scanner = _Scanner(text)
    scanner.document()
    return scanner.lines


def _tokens(text: str) -> list[_Token]:
    tokens = []
    line = 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "mark"
        if kind != "skip":
            tokens.append(_Token(kind, match.group(), line))
        line += match.group().count("\n")
    tokens.append(_Token("end", "", line))
    return tokens


class _Scanner:
    """A recursive descent over the tokens that notes where each path begins."""

    def __init__(self, text: str) -> None:
        self.lines: dict[str, int] = {}
        self._tokens = _tokens(text)
        self._at = 0
        #: The last index of each array of tables: `[route.columns]` means the columns of the last `[[route]]`.
        self._last_index: dict[str, int] = {}

    def document(self) -> None:
        table: tuple[str | int, ...] = ()
        while self._peek().kind != "end":
            if self._peek().kind == "newline":
                self._next()
            elif self._peek().text == "[":
                table = self._header()
            else:
                self._pair(table)

    def _peek(self) -> _Token:
        return self._tokens[self._at]

    def _next(self) -> _Token:
        token = self._tokens[self._at]
        if token.kind != "end":
            self._at += 1
        return token

    def _header(self) -> tuple[str | int, ...]:
        line = self._next().line
        is_array = self._peek().text == "["
        if is_array:
            self._next()
        path: tuple[str | int, ...] = ()
        for part in self._key():
            path = self._into_last_element(path)
            path = (*path, part)
        if is_array:
            array = key_path(path)
            self._note(path, line)
            self._last_index[array] = self._last_index.get(array, -1) + 1
            path = (*path, self._last_index[array])
        self._note(path, line)
        self._skip_to_end_of_line()
        return path

    def _into_last_element(self, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
        index = self._last_index.get(key_path(path))
        return path if index is None else (*path, index)

    def _key(self) -> list[str]:
        """Read `a.b."c d"` up to its `=` or `]`."""
        parts = []
        while self._peek().kind in {"bare", "string"} or self._peek().text == ".":
            token = self._next()
            if token.kind == "string":
                parts.append(token.text[1:-1])
            elif token.kind == "bare":
                parts.append(token.text)
        return parts

    def _pair(self, table: tuple[str | int, ...]) -> None:
        line = self._peek().line
        path = table
        for part in self._key():
            path = (*path, part)
            self._note(path, line)
        self._next()  # the `=`
        self._value(path)

    def _value(self, path: tuple[str | int, ...]) -> None:
        if self._peek().text == "{":
            self._inline_table(path)
        elif self._peek().text == "[":
            self._array(path)
        else:
            while self._peek().kind not in {"newline", "end"} and self._peek().text not in {",", "]", "}"}:
                self._next()

    def _inline_table(self, path: tuple[str | int, ...]) -> None:
        self._next()
        while self._peek().kind != "end" and self._peek().text != "}":
            if self._peek().kind == "newline" or self._peek().text == ",":
                self._next()
            else:
                self._pair(path)
        self._next()

    def _array(self, path: tuple[str | int, ...]) -> None:
        self._next()
        index = 0
        while self._peek().kind != "end" and self._peek().text != "]":
            if self._peek().kind == "newline" or self._peek().text == ",":
                self._next()
            else:
                self._note((*path, index), self._peek().line)
                self._value((*path, index))
                index += 1
        self._next()

    def _skip_to_end_of_line(self) -> None:
        while self._peek().kind not in {"newline", "end"}:
            self._next()

    def _note(self, path: tuple[str | int, ...], line: int) -> None:
        self.lines.setdefault(key_path(path), line)
