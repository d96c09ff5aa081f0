"""The fast encoder: straight-line Python generated once for each route, with no dispatch a field and no call a type.

It takes only what it is sure of, and lets anything else raise: the record then goes to the careful encoder. What takes
no shortcut at all has none: `generate` then makes no code, and every record goes the careful way. Made by the row
encoder, run in the worker's poll loop. No I/O.
"""

from __future__ import annotations

import struct
from binascii import a2b_base64, a2b_hex
from datetime import date, datetime
from typing import TYPE_CHECKING, Final, cast

import orjson

from kbatchd.encode import numbers, times
from kbatchd.encode.column_types import ColumnType, type_of
from kbatchd.encode.exact import Texts
from kbatchd.encode.mapping import JSONS, OF_RECORD, TEXTS, Feed, Source, looked_into
from kbatchd.encode.row_format import NULL
from kbatchd.paths import Path

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kbatchd.config import RouteMapping
    from kbatchd.encode.mapping import Deletes

_length: Final = struct.Struct(">i").pack
#: The lengths of nearly all fields, packed: reading a list takes half the time of packing.
_LENGTHS: Final = [_length(size) for size in range(4096)]
#: The same for jsonb, whose first byte is its version, 1.
_JSONB_LENGTHS: Final = [_length(size + 1) + b"\x01" for size in range(4096)]

#: A boolean, as a row has it.
FALSE: Final = _length(1) + b"\0"

#: Microseconds of a unit; what is finer than one is the careful encoder's.
WHOLE_UNITS: Final = {"s": 1_000_000, "ms": 1_000, "us": 1}
#: Beyond these, from 1970, the careful encoder decides what PostgreSQL can hold: 4700 BC and 290000.
_EPOCH_RANGE: Final = "-210000000000000000 < {v} < 9000000000000000000"


def _text_of(data: bytes | str) -> str:
    """Return the text of a key, a header or a value, without a NUL: no search for one has seen these bytes."""
    text = data if isinstance(data, str) else data.decode()
    if "\0" in text:
        raise ValueError
    return text


def _integer_of(data: bytes) -> int:
    """Return the number that a key or a header is."""
    text = _text_of(data)
    if not text.isascii() or not text.lstrip("-").isdigit():
        raise ValueError
    return int(text)


#: What the generated code can name.
_NAMES: Final[dict[str, object]] = {
    "NULL": NULL,
    "FALSE": FALSE,
    "LENGTHS": _LENGTHS,
    "JSONB_LENGTHS": _JSONB_LENGTHS,
    "LENGTHS_long": _length,
    "JSONB_LENGTHS_long": lambda size: _length(size + 1) + b"\x01",
    "EPOCH": times.EPOCH,
    "EPOCH_DAY": times.EPOCH_DAY,
    "UNIX_EPOCH": times.UNIX_EPOCH_MICROSECONDS,
    #: The characters 4, 7, 10, 13, 16 and 19 of a timestamp: all that datetime.fromisoformat does not insist on.
    "ZULU": frozenset({"--T::Z", "--T::.", "-- ::Z", "-- ::."}),
    "loads": orjson.loads,
    "join": b"".join,
    "unhex": a2b_hex,
    "base64": a2b_base64,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "float4": numbers.fast_float4,
    "numeric": numbers.fast_numeric,
    "pack_numeric": numbers.pack_numeric,
    "Texts": Texts,
    "timestamp": times.fast_timestamp,
    "timestamptz": times.fast_timestamptz,
    "text_of": _text_of,
    "integer_of": _integer_of,
}

#: Sources that the fast encoder knows; the others are rare, or cost more than the careful encoder does.
_SOURCES: Final = frozenset({
    Source.FIELD, Source.VALUE, Source.KEY, Source.TIMESTAMP, Source.TOPIC, Source.PARTITION, Source.OFFSET,
    Source.CONSTANT,
})  # fmt: skip


def generate(
    feeds: Sequence[Feed], mapping: RouteMapping, deletes: Deletes | None, literals: dict[str, bytes]
) -> str | None:
    """Write the fast encoder; None where a column takes no shortcut.

    `feeds` are in the COPY's order: fixed width and NOT NULL first, packed in one call.
    """
    if mapping.format == "raw" or mapping.collects_into or not all(map(_has_shortcut, feeds)):
        return None
    statements = [*_opening(feeds, mapping, deletes)]
    formats, packed, parts = [">h"], [str(len(feeds) + (deletes is not None))], []
    for feed in feeds:
        column, kind, v = feed.column, _kind(feed), f"v{feed.column.number}"
        if feed.source is Source.CONSTANT:
            parts.append(f"LITERALS[{column.name!r}]" if column.name in literals else "NULL")
            continue
        fast = _fast(feed, kind, v, in_envelope=mapping.value_field is not None)
        if column.not_null and kind.pack:
            formats.append(f"i{kind.pack}")
            packed.append(f"{kind.size}, {v}")
            statements += [*_find(feed, v), fast]
            continue
        if kind.pack:
            fast += f"\n{v} = pack_{kind.pack}({kind.size}, {v})"
            absent = f"{v} = NULL"
            parts.append(v)
        else:
            prefix, size = f"p{column.number}", f"n{column.number}"
            lengths = kind.lengths
            fast += f"\n{size} = len({v})\n{prefix} = {lengths}[{size}] if {size} < 4096 else {lengths}_long({size})"
            absent = f"{prefix} = NULL; {v} = b''"
            parts += [prefix, v]
        if column.not_null:
            statements += [*_find(feed, v), fast]
        else:
            statements += [*_find(feed, v), f"if {v} is None:\n    {absent}\nelse:", _indent(fast)]
    parts.insert(0, f"pack({', '.join(packed)})")
    if deletes is not None:
        parts.append("FALSE")
    statements.append(f"append(join(({', '.join(parts)},)))")
    return _program(feeds, statements, formats)


def _program(feeds: Sequence[Feed], statements: Sequence[str], formats: Sequence[str]) -> str:
    packs = "".join(f"pack_{code} = Struct('>i{code}').pack\n" for code in _pack_codes(feeds))
    of_record = any(feed.source in OF_RECORD for feed in feeds)
    texts = "\n            texts = None" if any("texts" in statement for statement in statements) else ""
    loop = (
        "for value, record in zip(values, records[first : first + len(values)])" if of_record else "for value in values"
    )
    return f"""\
from struct import Struct
{packs}
pack = Struct("{"".join(formats)}").pack

def fast(records, values, first, rows, refusals, careful):
    append = rows.append
    before = len(rows) + len(refusals) - first
    {loop}:
        try:{texts}
            o = w = loads(value)
{_indent(_indent(chr(10).join(statements), 2))}
        except MemoryError:
            raise
        except Exception:
            careful(value, len(rows) + len(refusals) - before, rows, refusals)
"""


def compile_encoder(source: str, feeds: Sequence[Feed], literals: dict[str, bytes]) -> Callable[..., None]:
    """Compile what `generate` has written."""
    names: dict[str, object] = dict(_NAMES)
    names["LITERALS"] = literals
    names["DEFAULT_TEXTS"] = {f.column.name: f.literal for f in feeds if f.literal is not None}
    names["DEFAULTS"] = {f.column.name: orjson.loads(f.literal) for f in feeds if f.literal is not None}
    names["KNOWN"] = looked_into(feeds)
    for feed in feeds:
        names[f"careful{feed.column.number}"] = _one_argument(feed)
    # The source is made of the type table's snippets and of repr()s of names.
    exec(compile(source, "<row encoder>", "exec"), names)  # noqa: S102
    return cast("Callable[..., None]", names["fast"])


def _one_argument(feed: Feed) -> Callable[[object], bytes]:
    careful, column = _kind(feed).careful, feed.column
    return lambda x: careful(x, column, None)


def _kind(feed: Feed) -> ColumnType:
    kind = type_of(feed.column)
    assert kind is not None
    return kind


def _has_shortcut(feed: Feed) -> bool:
    kind = _kind(feed)
    if feed.source is Source.CONSTANT:
        return True
    of_value = feed.source is Source.VALUE and not feed.path and feed.column.type_name in JSONS
    if feed.source in {Source.KEY, Source.VALUE} and not of_value:
        shortcut = feed.source is Source.VALUE and bool(feed.path)
        if not shortcut and (feed.path or feed.column.type_name not in TEXTS | {"int2", "int4", "int8", "uuid"}):
            return False
    exact_default = feed.literal is None or len(feed.literal) < 16 or feed.literal[:1] == b'"'  # noqa: PLR2004
    return bool(kind.fast) and feed.source in _SOURCES and not feed.json_text and feed.unit != "ns" and exact_default


def _opening(feeds: Sequence[Feed], mapping: RouteMapping, deletes: Deletes | None) -> list[str]:
    """Check what concerns the record as a whole, and open its envelope."""
    statements = []
    if deletes is not None and deletes.field:
        statements += [*_walk("d", "w", deletes.field), f"if d == {deletes.equals!r}: raise ValueError"]
    if mapping.value_field is not None:
        statements += _walk("o", "w", mapping.envelope)
    if mapping.value_field is not None or not any(feed.is_plain for feed in feeds):
        statements.append("if type(o) is not dict: raise TypeError")
    if mapping.unknown_fields == "reject":
        statements.append("if not o.keys() <= KNOWN: raise ValueError")
    return statements


def _walk(v: str, start: str, path: Path) -> list[str]:
    """Follow a path; what has another shape than it says raises, what ends early gives None."""
    statements = []
    for depth, step in enumerate(path):
        above = v if depth else start
        if isinstance(step, str):
            find = f"{v} = {above}.get({step!r})"
        else:
            check = f"if type({above}) is not list: raise TypeError"
            find = f"{check}\n{v} = {above}[{step}] if len({above}) > {step} else None"
        statements.append(f"if {v} is not None:\n{_indent(find)}" if depth else find)
    return statements


def _find(feed: Feed, v: str) -> list[str]:  # noqa: PLR0911 - one for each source
    """Return the statements that set `v` to the value, or to None; what is missing where it may not be raises."""
    name, path = feed.column.name, feed.path
    # Whether it is null or missing, and what then, the careful encoder finds out.
    decides = feed.on_missing != "null" or feed.literal is not None
    unless_missing = [f"if {v} is None: raise LookupError"] if decides else []
    match feed.source:
        case Source.KEY:
            read = "integer_of" if feed.column.type_name.startswith("int") else "text_of"
            return [f"{v} = record.key()", f"if {v} is not None: {v} = {read}({v})", *unless_missing]
        case Source.TIMESTAMP:
            shown = f"str({v})" if feed.column.type_name in TEXTS else v
            return [f"{v} = record.timestamp()[1]", f"{v} = None if {v} < 0 else {shown}", *unless_missing]
        case Source.TOPIC:
            return [f"{v} = record.topic()"]
        case Source.PARTITION | Source.OFFSET:
            call = f"record.{feed.source.name.lower()}()"
            return [f"{v} = str({call})" if feed.column.type_name in TEXTS else f"{v} = {call}"]
        case Source.VALUE if not path:
            return [f"{v} = value" if feed.column.type_name in JSONS else f"{v} = text_of(value)"]
    must_be = feed.on_missing != "null" and feed.literal is None
    start = "w" if feed.source is Source.VALUE else "o"
    if len(path) == 1:
        if feed.literal is not None:
            return [f"{v} = {start}.get({path[0]!r}, DEFAULTS[{name!r}])"]
        return [f"{v} = {start}[{path[0]!r}]" if must_be or feed.column.not_null else f"{v} = {start}.get({path[0]!r})"]
    statements = _walk(v, start, path)
    return statements + unless_missing


def _fast(feed: Feed, kind: ColumnType, v: str, *, in_envelope: bool) -> str:
    """Return the statements that encode `v`."""
    if feed.source is Source.VALUE and not feed.path and feed.column.type_name in JSONS:
        return ""
    if feed.unit is not None:
        return _fast_epoch(feed, v)
    texts = _texts(feed, v, in_envelope=in_envelope)
    return kind.fast.format(v=v, careful=f"careful{feed.column.number}", **texts)


def _texts(feed: Feed, v: str, *, in_envelope: bool) -> dict[str, str]:
    """Return the expressions for the text of a field that is there; they raise where the careful encoder must tell."""
    path, in_object = feed.path, feed.source is Source.FIELD
    last = path[-1] if path else 0
    if isinstance(last, int) or feed.source not in {Source.FIELD, Source.VALUE}:
        return {"text": "date(None)", "json": "date(None)"}
    texts = "(texts := texts or Texts(value))"
    if len(path) == 1 and not (in_envelope and in_object):
        found = {"text": f"{texts}.of({last!r})", "json": f"{texts}.json_of({last!r}, {v})"}
    else:
        found = {"text": f"{texts}.lone({last!r})", "json": f"{texts}.lone_json({last!r}, {v})"}
    if feed.literal is None or len(path) > 1:  # what is missing in a deeper object has been left to the careful encoder
        return found
    there, name = f"{last!r} in {'o' if in_object else 'w'}", feed.column.name
    return {
        "text": f"({found['text']} if {there} else DEFAULT_TEXTS[{name!r}].decode())",
        "json": f"({found['json']} if {there} else DEFAULT_TEXTS[{name!r}])",
    }


def _fast_epoch(feed: Feed, v: str) -> str:
    day = "\n{v} = {v} // 86400000000" if feed.column.type_name == "date" else ""
    return (
        f"if type({{v}}) is not int: raise TypeError\n{{v}} = {{v}} * {WHOLE_UNITS[feed.unit or 's']}\n"
        f"if not {_EPOCH_RANGE}: raise OverflowError\n{{v}} = {{v}} - UNIX_EPOCH{day}"
    ).format(v=v)


def _pack_codes(feeds: Sequence[Feed]) -> list[str]:
    return sorted({_kind(feed).pack for feed in feeds if not feed.column.not_null} - {""})


def _indent(code: str, levels: int = 1) -> str:
    return "\n".join("    " * levels + line for line in code.splitlines())
