"""The file's text: from its bytes to TOML's values, before anybody asks what they mean.

Whatever is wrong with it is a ConfigError: a file that no parser takes must not look like a crash, which systemd would
try again for ever. Called by file.py while the file is loaded, before anything is forked.
"""

from __future__ import annotations

import codecs
import re
import sys
from typing import TYPE_CHECKING, Any

import tomli

from kbatchd.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Tables and lists within each other: the deepest that kbatchd itself needs are 4, a constant may be any JSON.
MAX_DEPTH = 100

#: Python reads and writes no whole number of more digits (CPython issue 95778); a hexadecimal one may be longer.
MAX_DIGITS = sys.int_info.default_max_str_digits
_BEYOND = 10**MAX_DIGITS
_LONG_NUMBER = re.compile(rf"[=,\[]\s*[+-]?[0-9_]{{{MAX_DIGITS + 1},}}")

#: What editors write in front of a text; UTF-32's begins with UTF-16's.
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_text(path: Path) -> str:
    """Read the file, which is UTF-8, with or without a byte order mark."""
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in _OTHER_ENCODINGS.items() if content.startswith(mark)), None)
        if encoding is None and b"\0" in content[:4]:
            encoding = "UTF-16 or UTF-32"  # no file of ours begins with a NUL or has one behind its first letter
        if encoding is not None:
            raise ConfigError(f"{path}: is {encoding}; save it as UTF-8")
        return content.removeprefix(codecs.BOM_UTF8).decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8: byte {error.object[error.start]:#04x}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def parse(path: Path, text: str) -> dict[str, Any]:
    """Return what the text says; `path` is for the words of a fault."""
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        remedy = "; a text stands in quotes" if error.msg == "Invalid value" else ""
        raise ConfigError(f"{path}:{error.lineno}: is not TOML: {error}{remedy}") from error
    except RecursionError as error:
        raise ConfigError(_too_deep(path)) from error
    except ValueError as error:
        long_number = _LONG_NUMBER.search(text)
        if long_number is None:
            raise ConfigError(f"{path}: {error}") from error
        line = text.count("\n", 0, long_number.end()) + 1
        raise ConfigError(f"{path}:{line}: is {_too_long()}") from error
    for key, value, depth in _all_values(data):
        if depth > MAX_DEPTH:
            raise ConfigError(f"{_too_deep(path)}; it is in {key}")
        if isinstance(value, int) and not -_BEYOND < value < _BEYOND:
            raise ConfigError(f"{path}: {key}: holds {_too_long()}")
    return data


def _too_deep(path: Path) -> str:
    return f"{path}: has tables or lists within each other, or a key, more than {MAX_DEPTH} deep"


def _too_long() -> str:
    return f"a whole number of more than {MAX_DIGITS:,} digits"


def _all_values(data: dict[str, Any]) -> Iterator[tuple[str, object, int]]:
    """Go through all values, each with the top-level key that it is under and its depth; without recursion."""
    waiting: list[tuple[str, object, int]] = [(key, value, 1) for key, value in data.items()]
    while waiting:
        key, value, depth = waiting.pop()
        yield key, value, depth
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        waiting += [(key, each, depth + 1) for each in inner]
