"""Records made up for a route, in the shape that its mapping reads: the same ones for the same seed.

Every record passes the door, and PostgreSQL's own look at its types; what constraints want, nobody here knows. Integers
count up, and uuids and texts have the count in them, so that a key made of one is unique; all else is drawn. A column
that may be NULL is so in one record of eight. Of fields that no column takes there are none.

Used by `kbatchd produce --generate` and, for its examples, by the gateway's OpenAPI document; no I/O. The function that
writes a record is generated along the shape, as one template.
"""

from __future__ import annotations

import json
import re
from base64 import b64encode
from dataclasses import replace
from itertools import count as count_from
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Final, NamedTuple, cast

import orjson

from kbatchd.encode.mapping import JSONS, TEXTS, Source
from kbatchd.shapes.shape import of_text, of_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from kbatchd.config import RouteMapping
    from kbatchd.encode.mapping import Feed
    from kbatchd.postgres.table import Column
    from kbatchd.shapes.shape import Node

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
#: A time that is a number, in each unit: drawn from 2026.
_EPOCHS: Final = {
    unit: f"{1_767_225_600 * in_a_second} + b % {31_536_000 * in_a_second}"
    for unit, in_a_second in (("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000))
}
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

#: The same for types that PostgreSQL's input functions alone read: texts that they take in any locale.
#: Ranges of numbers do not overlap.
_LITERALS: Final = {
    "money": ("%d", "b >> 20 & 0xFFFFF"),
    "oid": ("%d", "n & 0x7FFFFFFF"),
    "xml": ('"<word>%s</word>"', "WORDS[b & 15]"),
    "point": ('"(%d,%d)"', "b & 0xFFFF, b >> 16 & 0xFFFF"),
    "macaddr": ('"02:00:%02x:%02x:%02x:%02x"', "n >> 24 & 255, n >> 16 & 255, n >> 8 & 255, n & 255"),
    "int4range": ('"[%d,%d)"', "n & 0x3FFFFFFF, (n & 0x3FFFFFFF) + 1"),
    "int8range": ('"[%d,%d)"', "n, n + 1"),
    "numrange": ('"[%d.25,%d.75)"', "n, n"),
    "daterange": (f'"[{_DAY[0]},2027-01-01)"', _DAY[1]),
    "tsrange": (f'"[{_DAY[0]}{_CLOCK[0]},2027-01-01T00:00:00)"', f"{_DAY[1]}, {_CLOCK[1]}"),
    "tstzrange": (f'"[{_DAY[0]}{_CLOCK[0]}Z,2027-01-01T00:00:00Z)"', f"{_DAY[1]}, {_CLOCK[1]}"),
}

#: Where several columns take the same field, it is made for the one that takes the least: of these types the first,
#: then of any other but texts and JSON.
_STRICTEST: Final = ("int2", "int4", "int8", "numeric", "float4", "float8", "timestamptz")
#: What is made up; all else comes from Kafka, or from the mapping itself.
MADE_UP: Final = frozenset({Source.FIELD, Source.VALUE, Source.KEY, Source.HEADER})


class Label(NamedTuple):
    """What a record has beside its value."""

    key: bytes | None
    headers: list[tuple[str, bytes | None]]


def knows(column: Column) -> bool:
    """Say whether there are values of a column's type; of others there is only null."""
    return _template(column)[0] != "null"


def example(feeds: Iterable[Feed], mapping: RouteMapping) -> object:
    """Return one record's value, with all its fields."""
    filled = [replace(feed, column=replace(feed.column, not_null=True)) for feed in feeds]
    return orjson.loads(next(values(filled, mapping, 1, seed=0)))


def values(feeds: Sequence[Feed], mapping: RouteMapping, count: int, seed: int) -> Iterator[bytes]:
    """Yield the values of so many records."""
    shape = of_value(feeds, mapping)
    if mapping.format == "raw":
        make = _text_maker(shape.root, seed)
    else:
        empty = ("{}", "") if mapping.unknown_fields == "reject" else _OBJECT
        make = _compile(_Writer(dict.fromkeys(shape, empty)), shape.root, seed)
    return map(make, islice(_counts(seed), count))


def labels(feeds: Sequence[Feed], seed: int) -> Iterator[Label] | None:
    """Yield without end what columns want that are fed by keys and headers; None: there are no such columns."""
    keys = [feed for feed in feeds if feed.source is Source.KEY]
    names = dict.fromkeys(feed.header for feed in feeds if feed.source is Source.HEADER)
    if not keys and not names:
        return None
    make_key = _text_maker(of_text(keys), seed) if keys else lambda _: b"null"
    headers = {name: _text_maker(of_text(feed for feed in feeds if feed.header == name), seed) for name in names}
    return (
        Label(_unless_null(make_key(n)), [(name, _unless_null(make(n))) for name, make in headers.items()])
        for n in _counts(seed)
    )


def _unless_null(text: bytes) -> bytes | None:
    return None if text == b"null" else text


def _counts(seed: int) -> Iterator[int]:
    return count_from(seed * _RECORDS_OF_A_SEED + 1)


def _text_maker(root: Node, seed: int) -> Callable[[int], bytes]:
    """Return what makes a key, a header or a raw value: JSON where a column reads it so, else a text without quotes."""
    make = _compile(_Writer({}), root, seed)
    if root.within or any(feed.json_text or feed.column.type_name in {*JSONS, "array"} for feed in root.feeds):
        return make
    return lambda n: _without_quotes(make(n))


def _without_quotes(text: bytes) -> bytes:
    value = orjson.loads(text)
    return value.encode() if isinstance(value, str) else text


def _compile(writer: _Writer, root: Node, seed: int) -> Callable[[int], bytes]:
    template, arguments = writer.write(root)
    body = "\n    ".join(f"b{number} = bits({_BITS})" for number in range(writer.draws))
    source = f"def make(n):\n    {body or 'pass'}\n    return ({template!r} % ({arguments})).encode()"
    names: dict[str, object] = {
        "WORDS": _WORDS,
        "BOOLEANS": ("false", "true"),
        "base64": b64encode,
        "quoted": json.dumps,
        "bits": Random(seed).getrandbits,  # noqa: S311 - nothing to guess
    }
    # The source is made of the templates above and of repr()s of fields' names.
    exec(compile(source, "<samples>", "exec"), names)  # noqa: S102
    return cast("Callable[[int], bytes]", names["make"])


class _Writer:
    """Writes the template of a text, and the arguments that fill it: `n`, and `b0`, `b1` ... drawn for its values."""

    def __init__(self, objects: Mapping[Node, tuple[str, str]]) -> None:
        """Fill objects with what they are here, where nobody says what is in them."""
        self._objects = objects
        self.draws = 0

    def write(self, node: Node) -> tuple[str, str]:
        """Write what stands at a node."""
        names = [step for step in node.within if isinstance(step, str)]
        if names:
            written = [(json.dumps(name).replace("%", "%%") + ":", *self.write(node.within[name])) for name in names]
            fields = ",".join(name + template for name, template, _ in written)
            return f"{{{fields}}}", "".join(arguments for *_, arguments in written)
        if node.within:
            within = cast("dict[int, Node]", node.within)
            items = [self.write(within[at]) if at in within else ("null", "") for at in range(max(within) + 1)]
            return f"[{','.join(template for template, _ in items)}]", "".join(arguments for _, arguments in items)
        return self._write_leaf(node)

    def _write_leaf(self, node: Node) -> tuple[str, str]:
        bits = f"b{self.draws}"
        self.draws += 1
        if node in self._objects:
            template, arguments = self._objects[node]
            return template, _drawn(arguments, bits)
        feed = min(node.feeds, key=_strictness)
        template, arguments = ("%d", _EPOCHS[feed.unit]) if feed.unit is not None else _template(feed.column)
        arguments = _drawn(arguments, bits)
        may_be_null = not node.required and not any(each.column.not_null for each in node.feeds)
        in_a_string = feed.json_text and (feed.source is Source.FIELD or bool(feed.path))
        if not may_be_null and not in_a_string:
            return template, arguments
        text = f"{template!r} % ({arguments})"
        if in_a_string:
            text = f"quoted({text})"
        return "%s", f"{text} if {bits} >> {_BITS - 3} else 'null', " if may_be_null else f"{text}, "


def _drawn(arguments: str, bits: str) -> str:
    return re.sub(r"\bb\b", bits, f"{arguments}, ") if arguments else ""


def _strictness(feed: Feed) -> tuple[bool, bool, int, bool]:
    """Order the feeds of one node: what fits the first fits the others, if anything does."""
    name = feed.column.type_name
    rank = _STRICTEST.index(name) if name in _STRICTEST else len(_STRICTEST) + (name in TEXTS) + 2 * (name in JSONS)
    return feed.unit is None, not feed.json_text, rank, feed.column.typmod < 0


def _template(column: Column) -> tuple[str, str]:
    if column.type_name in {"text", "varchar", "bpchar"}:
        limit = column.typmod - _TYPMOD_HEADER
        if column.type_name != "text" and 0 <= limit < _TEXT_CHARACTERS:
            return f'"%0{limit}x"', f"n % {16**limit}"
        return '"%s-%x"', "WORDS[b & 15], n & 0xFFFFFFFFFFFF"
    if column.type_name == "numeric":
        return _numeric_template(column.typmod - _TYPMOD_HEADER)
    if column.type_name == "enum" and column.labels:
        return json.dumps(column.labels[0]).replace("%", "%%"), ""
    if column.type_name in {"bit", "varbit"}:
        length = column.typmod if column.typmod > 0 else _BITS
        return '"%s"', f"(format(b, '0{_BITS}b') * {-(-length // _BITS)})[-{length}:]"
    # Nobody here knows what PostgreSQL's input function for another type takes.
    return (_TEMPLATES | _LITERALS).get(column.type_name, ("null", ""))


def _numeric_template(typmod: int) -> tuple[str, str]:
    """Fill a numeric's digits before and behind the point, as far as it has any; without a typmod some."""
    if typmod < 0:
        return "%d.%02d", "b >> 20 & 0xFFFFF, b % 100"
    precision, scale = typmod >> 16, (typmod & _SCALE_MASK ^ _SCALE_SIGN) - _SCALE_SIGN
    whole = 10 ** min(max(precision - scale, 0), _WHOLE_DIGITS)
    if scale <= 0:
        return f"%d{'0' * -scale}", f"b % {10 ** min(precision, _WHOLE_DIGITS) - 1} + 1"
    fraction = 10 ** min(precision, scale, _FRACTION_DIGITS)
    return f"%d.%0{scale}d", f"b % {whole}, (b >> 32) % {fraction}"
