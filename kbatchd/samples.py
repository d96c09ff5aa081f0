"""Records made up from a table's columns: the same ones for the same seed.

Every record passes the door, and PostgreSQL's own look at its types; what constraints want, nobody here knows. Integers
count up, and uuids and texts have the count in them, so that a key made of one is unique; all else is drawn. A column
that may be NULL is so in one record of eight.

Used by `kbatchd produce --generate` and, for its examples, by the gateway's OpenAPI document; no I/O. The function that
writes a record is generated from the columns, as one template.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import replace
from itertools import count as count_from
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Final, cast

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from kbatchd.catalogue import Column

_WORDS: Final = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron",
    "ivory", "jetty", "karst", "larch", "maple", "north", "ocean", "pearl",
)  # fmt: skip

#: The integers of one seed begin so far from those of the next.
_RECORDS_OF_A_SEED: Final = 1_000_000_000
#: Bits drawn for a column; the three highest say whether it is null.
_BITS: Final = 64

#: A typmod is 4 more than what it says: a length, or in 16 bits each a precision and a scale (11 bits, signed).
_TYPMOD_HEADER: Final = 4
_SCALE_MASK, _SCALE_SIGN = 0x7FF, 0x400
#: A word, a dash, and a count in hexadecimal digits, as many as a run can have.
_TEXT_CHARACTERS: Final = 18
#: A double carries so many, and a few more before the point.
_FRACTION_DIGITS: Final = 6
_WHOLE_DIGITS: Final = 9

_DAY = "2026-%02d-%02d", "b % 12 + 1, (b >> 4) % 28 + 1"
_CLOCK = "T%02d:%02d:%02d.%06d", "(b >> 9) % 24, (b >> 14) % 60, (b >> 20) % 60, (b >> 26) % 1000000"
_OBJECT = '{"word":"%s","number":%d,"flag":%s}', "WORDS[b & 15], b >> 48, BOOLEANS[b >> 4 & 1]"
#: For each type the template of its text, and the values that go into it: `n` is the record's count, `b` drawn bits.
_TEMPLATES: Final = {
    "bool": ("%s", "BOOLEANS[b & 1]"),
    "int2": ("%d", "n & 0x7FFF"),
    "int4": ("%d", "n & 0x7FFFFFFF"),
    "int8": ("%d", "n & 0x7FFFFFFFFFFFFFFF"),
    "float4": ("%d.%02d", "b >> 20 & 0x3FFF, b % 100"),
    "float8": ("%d.%04d", "b >> 20 & 0xFFFF, b % 10000"),
    "uuid": (
        '"%08x-%04x-4%03x-a%03x-%012x"',
        "b & 0xFFFFFFFF, b >> 32 & 0xFFFF, b >> 48 & 0xFFF, b >> 20 & 0xFFF, n & 0xFFFFFFFFFFFF",
    ),
    "date": (f'"{_DAY[0]}"', _DAY[1]),
    "timestamp": (f'"{_DAY[0]}{_CLOCK[0]}"', f"{_DAY[1]}, {_CLOCK[1]}"),
    "timestamptz": (f'"{_DAY[0]}{_CLOCK[0]}Z"', f"{_DAY[1]}, {_CLOCK[1]}"),
    "time": ('"%02d:%02d:%02d"', "(b >> 9) % 24, (b >> 14) % 60, (b >> 20) % 60"),
    "timetz": ('"%02d:%02d:%02dZ"', "(b >> 9) % 24, (b >> 14) % 60, (b >> 20) % 60"),
    "interval": ('"PT%dM%dS"', "(b >> 9) % 600, (b >> 20) % 60"),
    "inet": ('"192.0.2.%d"', "b % 256"),
    "cidr": ('"10.%d.0.0/16"', "b % 256"),
    "array": ("[]", ""),
    "json": _OBJECT,
    "jsonb": _OBJECT,
    "bytea": ('"%s"', "base64(b.to_bytes(9, 'big')).decode()"),
}


def example(columns: Sequence[Column]) -> dict[str, object]:
    """Return one record, with all its fields."""
    filled = [replace(column, not_null=True) for column in columns]
    return cast("dict[str, object]", orjson.loads(next(generate(filled, 1, seed=0))))


def generate(columns: Sequence[Column], count: int, seed: int) -> Iterator[bytes]:
    """Yield so many records."""
    names: dict[str, object] = {
        "WORDS": _WORDS,
        "BOOLEANS": ("false", "true"),
        "base64": b64encode,
        "bits": Random(seed).getrandbits,  # noqa: S311 - nothing to guess
    }
    # The source is made of the templates above and of repr()s of the columns' names.
    exec(compile(_source(columns), "<samples>", "exec"), names)  # noqa: S102
    make = cast("Callable[[int], bytes]", names["make"])
    return map(make, islice(count_from(seed * _RECORDS_OF_A_SEED + 1), count))


def _source(columns: Sequence[Column]) -> str:
    draws, fields, values = [], [], []
    for number, column in enumerate(columns):
        template, arguments = _template(column)
        arguments = re.sub(r"\bb\b", f"b{number}", f"({arguments},)" if arguments else "()")
        draws.append(f"b{number} = bits({_BITS})")
        name = json.dumps(column.name).replace("%", "%%")
        if column.not_null:
            fields.append(f"{name}:{template}")
            values.append(f"*{arguments}")
        else:
            fields.append(f"{name}:%s")
            values.append(f"{template!r} % {arguments} if b{number} >> {_BITS - 3} else 'null'")
    body = "\n    ".join(draws)
    return f"""\
def make(n):
    {body}
    return ({"{" + ",".join(fields) + "}"!r} % ({", ".join(values)},)).encode()
"""


def _template(column: Column) -> tuple[str, str]:
    if column.type_name in {"text", "varchar", "bpchar"}:
        limit = column.typmod - _TYPMOD_HEADER
        if column.type_name != "text" and 0 <= limit < _TEXT_CHARACTERS:
            return f'"%0{limit}x"', f"n % {16**limit}"
        return '"%s-%x"', "WORDS[b & 15], n & 0xFFFFFFFFFFFF"
    if column.type_name == "numeric" and column.typmod >= _TYPMOD_HEADER:
        return _numeric_template(column.typmod - _TYPMOD_HEADER)
    if column.type_name == "numeric":
        return "%d.%02d", "b >> 20 & 0xFFFFF, b % 100"
    if column.type_name == "enum" and column.labels:
        return json.dumps(column.labels[0]).replace("%", "%%"), ""
    # Nobody here knows what PostgreSQL's input function for another type takes.
    return _TEMPLATES.get(column.type_name, ("null", ""))


def _numeric_template(typmod: int) -> tuple[str, str]:
    """Fill a numeric's places before and behind the point, as far as it has any."""
    precision, scale = typmod >> 16, (typmod & _SCALE_MASK ^ _SCALE_SIGN) - _SCALE_SIGN
    whole = 10 ** min(max(precision - scale, 0), _WHOLE_DIGITS)
    if scale <= 0:
        return f"%d{'0' * -scale}", f"b % {10 ** min(precision, _WHOLE_DIGITS) - 1} + 1"
    fraction = 10 ** min(precision, scale, _FRACTION_DIGITS)
    return f"%d.%0{scale}d", f"b % {whole}, (b >> 32) % {fraction}"
