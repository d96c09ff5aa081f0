"""A field's value: from JSON, as orjson decodes it, to the bytes of PostgreSQL's binary format.

One plain function a type, `encode_*`: it takes all that can be taken without changing a value, and says precisely what
it refuses. `x` is the decoded value, never None. `raw` is the field's own text where orjson's value may not be exact;
then `x` must not be used as a number. The `fast_*` functions are what the fast encoder needs beyond one expression:
they may raise anything for what they do not take, since the record then comes to `encode_*`.

Here are the types that are mostly their text; numbers and times have modules of their own. Called by the row encoder in
the worker's poll loop. Pure functions, no I/O.
"""

from __future__ import annotations

import re
import socket
import struct
from binascii import a2b_base64, a2b_hex
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.postgres.table import Column

    Encode = Callable[[object, Column, str | None], bytes]

#: How much of a value a message may show.
_SHOWN_CHARACTERS = 60


class Refused(ValueError):
    """A record cannot become a row; `column` is known where a field is the reason."""

    def __init__(self, code: str, message: str, column: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.column = column


def show(value: object, raw: str | None = None) -> str:
    """Show a decoded value in a message, shortened; a number as it was written, where its text is at hand."""
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case str() if len(value) > _SHOWN_CHARACTERS:
            return f"{value[:_SHOWN_CHARACTERS]!r}..."
        case None | bool():
            return str(value).lower().replace("none", "null")
        case int() | float() if raw is not None:
            return raw[: _SHOWN_CHARACTERS + 2]
        case _:
            return repr(value)[: _SHOWN_CHARACTERS + 2]


def wrong_type(expected: str, value: object, raw: str | None = None) -> Refused:
    """Say that JSON's type is another than the column takes."""
    return Refused("wrong_type", f"expected {expected}, got {show(value, raw)}")


def out_of_range(column: Column, shown: object) -> Refused:
    """Say that the column cannot hold the value."""
    return Refused("out_of_range", f"{str(shown)[:_SHOWN_CHARACTERS]} is out of range for type {column.type_name}")


#: What PostgreSQL takes for a boolean, in full or as a letter.
_BOOLEANS = {
    word: encoded
    for encoded, words in ((b"\x01", "t true y yes on 1"), (b"\x00", "f false n no off 0"))
    for word in words.split()
}


def encode_bool(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take true and false, and the strings PostgreSQL writes and reads for them; no number."""
    if type(x) is bool:
        return b"\x01" if x else b"\x00"
    encoded = _BOOLEANS.get(x.lower()) if isinstance(x, str) else None
    if encoded is None:
        raise wrong_type("true or false", x, raw)
    return encoded


def encode_text(x: object, column: Column, raw: str | None) -> bytes:
    """Take any string without a NUL."""
    if type(x) is not str:
        raise wrong_type("a string", x, raw)
    if "\0" in x:
        raise Refused("null_byte", f"{column.type_name} cannot hold a NUL: {show(x)}")
    return x.encode()


#: A varchar's typmod is its length and 4 more.
VARCHAR_HEADER = 4


def encode_varchar(x: object, column: Column, raw: str | None) -> bytes:
    """Take a text that fits; PostgreSQL itself cuts off blanks beyond the limit."""
    encoded = encode_text(x, column, raw)
    limit = column.typmod - VARCHAR_HEADER
    if column.typmod >= VARCHAR_HEADER and len(encoded) > limit:
        text = encoded.decode()
        if text[limit:].strip(" "):
            raise Refused("out_of_range", f"{len(text)} characters are too many for {column.type_name}({limit})")
    return encoded


_UUID = re.compile(r"(?:[0-9a-fA-F]{4}-?){7}[0-9a-fA-F]{4}")


def encode_uuid(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take all forms PostgreSQL takes: upper case, braces, a dash after any four digits or none."""
    if type(x) is not str:
        raise wrong_type("a string", x, raw)
    digits = x[1:-1] if x[:1] == "{" and x[-1:] == "}" else x
    if not _UUID.fullmatch(digits):
        raise Refused("not_a_uuid", f"{show(x)} is not a UUID")
    return a2b_hex(digits.replace("-", ""))


def encode_json(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take any value, in its own text where that matters."""
    return orjson.dumps(x) if raw is None else raw.encode()


#: An escaped NUL, and not an escaped backslash before "u0000".
_JSON_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def encode_jsonb(x: object, column: Column, raw: str | None) -> bytes:
    """Take any value but a NUL in a string; the first byte is the format's version."""
    text = encode_json(x, column, raw)
    if b"\\u0000" in text and _JSON_NUL.search(text):
        raise Refused("null_byte", "jsonb cannot hold a NUL in a string")
    return b"\x01" + text


def encode_bytea(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take a string in base64, or the bytes of a record's key, value or header."""
    if type(x) is bytes:
        return x
    if type(x) is not str:
        raise wrong_type("a string in base64", x, raw)
    try:
        return a2b_base64(x, strict_mode=True)
    except ValueError as error:
        raise Refused("not_base64", f"{show(x)} is not base64") from error


def encode_enum(x: object, column: Column, raw: str | None) -> bytes:
    """Take one of the labels."""
    if type(x) is not str:
        raise wrong_type("a string", x, raw)
    if x not in column.labels:
        raise Refused("not_a_label", f"{show(x)} is none of the labels of {column.type_name}")
    return x.encode()


#: PostgreSQL's address families: AF_INET, and that plus 1.
_FAMILIES = ((2, socket.AF_INET, 32), (3, socket.AF_INET6, 128))
_PREFIXES = (re.compile(r"[0-9]{1,9}"), re.compile(r"0|[1-9][0-9]{0,2}"))


def encode_network(*, cidr: bool) -> Encode:
    """Make the function for inet or cidr: an address in full, with the bits of its network or without."""
    name = "cidr" if cidr else "inet"

    def encode(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
        if type(x) is not str:
            raise wrong_type("a string", x, raw)
        address, slash, bits = x.partition("/")
        family, known, width = _FAMILIES[":" in address]
        try:
            packed = socket.inet_pton(known, address)
            size = int(bits) if slash else width
        except (OSError, ValueError) as error:
            raise Refused("not_an_address", f"{show(x)} is not an address") from error
        # PostgreSQL takes leading zeros behind an IPv4 address, and none behind an IPv6 one.
        if slash and not (_PREFIXES[":" in address].fullmatch(bits) and size <= width):
            raise Refused("not_an_address", f"{show(x)} is not an address: it has no such network")
        if cidr and int.from_bytes(packed) & ((1 << (width - size)) - 1):
            raise Refused("not_an_address", f"{show(x)} is not a network: it has bits set to the right of the mask")
        return struct.pack(">BBBB", family, size, cidr, len(packed)) + packed

    encode.__doc__ = f"Take an {name} address."
    return encode
