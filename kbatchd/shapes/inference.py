"""A table for records that are there already: the narrowest types that take all of them, and have room for more.

A sample proves what occurs, not what never will. So an integer is `integer` only where few small values come again and
again, else `bigint`; a number with a fraction is `double precision` only where it looks measured; whatever is of
several kinds is `jsonb`. An object has columns of its own only where it looks the same in many records, and an integer
is a time only where its field is named like one, too. Pure functions; used by `kbatchd infer`.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Final, cast

import orjson

from kbatchd.encode.exact import field_slices, loads
from kbatchd.shapes.column_names import column_names, snake_case

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.paths import Path

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_EXPONENT = re.compile(r"[eE][+-]?0*([0-9]+)")
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_TIMESTAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
_MAX_OFFSET_HOURS: Final = 15
_MINUTES: Final = 60
_MICROSECOND_DIGITS: Final = 6

_INT8: Final = range(-(2**63), 2**63)
_INT8_DIGITS: Final = 19
_BEYOND_BIGINT: Final = "integers beyond bigint"
#: Small enough to be far from the end of an integer (2 ** 31).
_SMALL: Final = 1_000_000
#: So many values of a field for each different one, before it counts as one of few.
_REPEATS: Final = 4
#: Decimals of an amount; a measurement has more.
_AMOUNT_DIGITS: Final = 4
#: Beyond, numeric and jsonb refuse a number; far from what anybody sends on purpose.
_MAX_EXPONENT: Final = 1_000

#: A topic of objects with free keys has no table of its own.
MAX_COLUMNS: Final = 200

#: An object has columns of its own where so many are there, all with the same names, and no more names than these. It
#: may be within another one, but a column's field is no deeper than this.
_ENOUGH_OBJECTS: Final = 10
_MAX_FIELDS: Final = 16
_MAX_DEPTH: Final = 3

#: Words in the name of a field that is a time.
_TIME_WORDS: Final = frozenset("at ts date datetime created updated modified expires".split())  # noqa: SIM905
#: Seconds since 1970 from 2000 to 2100, and the units that a timestamp keeps in full. No number is one of two of them.
_SECONDS: Final = range(946_684_800, 4_102_444_800)
_UNITS: Final = {"s": 1, "ms": 1_000, "us": 1_000_000}


@dataclass(slots=True)
class InferredColumn:
    """A column for one field; `note` is for people."""

    path: Path
    name: str
    type: str
    not_null: bool
    note: str = ""
    unique: bool = False
    #: What a time counts that is a number.
    unit: str | None = None

    @property
    def is_named_alike(self) -> bool:
        """Whether its field is found without a mapping."""
        return self.path == (self.name,)


@dataclass(slots=True)
class Inferred:
    """What was made of a sample."""

    columns: list[InferredColumn] = field(default_factory=list)
    #: Fields that no column can have, and why.
    left_out: list[tuple[str, str]] = field(default_factory=list)
    records: int = 0
    #: Records that are not JSON objects: they will be dead letters.
    refused: int = 0
    key: InferredColumn | None = None
    #: A column named like a key whose values come more than once.
    repeated_key: str | None = None


def infer(values: Sequence[bytes | None]) -> Inferred:
    """Make columns for these records, in the order in which their fields first came."""
    fields: dict[str, list[str]] = {}
    result = Inferred()
    for value in values:
        slices = _slices(value)
        if slices is None:
            result.refused += 1
            continue
        result.records += 1
        for name, text in slices.items():
            fields.setdefault(name, []).append(text.decode())
    often = {name for name, _ in Counter({name: len(texts) for name, texts in fields.items()}).most_common(MAX_COLUMNS)}
    result.left_out = [(name, f"there are more than {MAX_COLUMNS} fields") for name in fields if name not in often]
    top: dict[Path, list[str]] = {(name,): texts for name, texts in fields.items() if name in often}
    flat = {path: texts for at, those in top.items() for path, texts in _flattened(at, those, result.records)}
    found = flat if len(flat) <= MAX_COLUMNS else top
    for name, (path, texts) in zip(column_names(list(found)), found.items(), strict=True):
        result.columns.append(_column(path, name, texts, result.records))
    _find_key(result)
    return result


def _flattened(path: Path, texts: Sequence[str], records: int) -> list[tuple[Path, Sequence[str]]]:
    """Return the fields of an object that always looks the same, with their values; of all else the field itself.

    Nothing may be lost: that an object is null or missing must be seen in a field of it that else is never null.
    """
    present = [text for text in texts if text != "null"]
    within = _same_fields(present) if len(path) < _MAX_DEPTH else {}
    is_told = len(present) == records or any("null" not in those for those in within.values())
    found = [each for name, those in within.items() for each in _flattened((*path, name), those, records)]
    return found if is_told and any(_is_scalar(those) for _, those in found) else [(path, texts)]


def _is_scalar(texts: Sequence[str]) -> bool:
    kinds = {_kind(text) for text in texts if text != "null"}
    return len(kinds) == 1 and kinds <= {"string", "number", "boolean"}


def _same_fields(texts: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each field, where these are enough objects with the same fields; else nothing."""
    if len(texts) < _ENOUGH_OBJECTS or any(text[0] != "{" for text in texts):
        return {}
    objects = [field_slices(text.encode()) for text in texts]
    names = objects[0].keys()
    if len(names) > _MAX_FIELDS or any(each.keys() != names for each in objects):
        return {}
    return {name: [each[name].decode() for each in objects] for name in names}


def _slices(value: bytes | None) -> dict[str, bytes] | None:
    if value is None:
        return None
    try:
        record = loads(value)
        return field_slices(value) if type(record) is dict else None
    except (ValueError, RecursionError):
        return None


def _column(path: Path, name: str, texts: Sequence[str], records: int) -> InferredColumn:
    present = [text for text in texts if text != "null"]
    kinds = {_kind(text) for text in present}
    # In an object that today has a field always, it may be missing tomorrow.
    not_null = len(present) == records and len(path) == 1
    if kinds == {"string"}:
        strings = [cast("str", orjson.loads(text)) for text in present]
        kind, note = _string_type(strings)
        if note and kind != "json" and len(path) > 1:
            kind, note = "text", ""  # the object itself would keep the nanoseconds
        return InferredColumn(path, name, kind, not_null, note, unique=len(set(strings)) == records > 1)
    if kinds == {"number"}:
        unit = _unit(path, present)
        if unit is not None:
            return InferredColumn(path, name, "timestamptz", not_null, f"{unit} since 1970", unit=unit)
        kind, note = _number_type(present)
        return InferredColumn(path, name, kind, not_null, note, unique=len(set(present)) == records > 1)
    if kinds == {"boolean"}:
        return InferredColumn(path, name, "boolean", not_null)
    note = "" if len(kinds) == 1 else " or ".join(sorted(kinds)) or "null in all records"
    return InferredColumn(path, name, _json_type(present), not_null, note)


def _unit(path: Path, literals: Sequence[str]) -> str | None:
    """Return what these numbers count since 1970, if they are times."""
    name = snake_case(str(path[-1]))
    if "time" not in name and not _TIME_WORDS & set(name.split("_")):
        return None
    if not all(literal.isdigit() and len(literal) <= _INT8_DIGITS for literal in literals):
        return None
    return next(
        (unit for unit, many in _UNITS.items() if all(int(each) // many in _SECONDS for each in literals)), None
    )


def _kind(text: str) -> str:
    return {'"': "string", "{": "object", "[": "array", "t": "boolean", "f": "boolean"}.get(text[0], "number")


def _json_type(texts: Sequence[str]) -> str:
    """Choose json, which keeps any text, for what jsonb refuses."""
    return "json" if any("\\u0000" in text or _has_huge_exponent(text) for text in texts) else "jsonb"


def _has_huge_exponent(text: str) -> bool:
    exponents = _EXPONENT.findall(_STRING.sub("", text))
    return any(len(digits) >= len(str(_MAX_EXPONENT)) for digits in exponents)


def _string_type(strings: Sequence[str]) -> tuple[str, str]:
    if any("\0" in string for string in strings):
        return "json", "strings with a NUL, which text cannot hold"
    if all(map(_UUID.fullmatch, strings)):
        return "uuid", ""
    if all(map(_is_date, strings)):
        return "date", ""
    matches = [_timestamp(string) for string in strings]
    offsets = {match and match[3] is not None for match in matches}
    if len(offsets) == 1 and None not in offsets:
        finest = max(len(match[2] or "") for match in matches if match)
        note = "nanoseconds are rounded to microseconds" if finest > _MICROSECOND_DIGITS else ""
        return ("timestamptz" if offsets == {True} else "timestamp"), note
    return "text", ""


def _is_date(string: str) -> bool:
    return bool(_DATE.fullmatch(string)) and _is_day_or_time(string, date)


def _is_day_or_time(string: str, kind: type[date]) -> bool:
    try:
        kind.fromisoformat(string)
    except ValueError:
        return False
    return True


def _timestamp(string: str) -> re.Match[str] | None:
    match = _TIMESTAMP.fullmatch(string)
    if match is None or not _is_day_or_time(match[1], datetime):
        return None
    zone = match[3] or "Z"
    return match if zone == "Z" or (int(zone[1:3]) <= _MAX_OFFSET_HOURS and int(zone[-2:]) < _MINUTES) else None


def _number_type(literals: Sequence[str]) -> tuple[str, str]:
    if any(map(_has_huge_exponent, literals)):
        return "json", "numbers that numeric cannot hold"
    if all(literal.lstrip("-").isdigit() for literal in literals):
        if any(len(literal) > _INT8_DIGITS + 1 for literal in literals):
            return "numeric", _BEYOND_BIGINT
        return _integer_type([int(literal) for literal in literals])
    decimals = [Decimal(literal) for literal in literals]
    finest = max(-cast("int", number.as_tuple().exponent) for number in decimals)
    measured = finest > _AMOUNT_DIGITS or any("e" in literal.lower() for literal in literals)
    if measured and all(Decimal(repr(float(number))) == number for number in decimals):
        return "double precision", ""
    return "numeric", ""


def _integer_type(numbers: Sequence[int]) -> tuple[str, str]:
    if any(number not in _INT8 for number in numbers):
        return "numeric", _BEYOND_BIGINT
    few = len(set(numbers)) * _REPEATS <= len(numbers)
    return ("integer" if few and all(abs(number) <= _SMALL for number in numbers) else "bigint"), ""


def _find_key(result: Inferred) -> None:
    """Look for a column that is named like a key and whose values are all there and all different."""
    top = [column for column in result.columns if len(column.path) == 1]
    named = [column for column in top if re.fullmatch(r"(.*_)?(id|uuid|key)", column.name)]
    named.sort(key=lambda column: column.name not in {"id", "uuid"})
    fit = [column for column in named if column.not_null and column.type in {"uuid", "bigint", "text"}]
    result.key = next((column for column in fit if column.unique), None)
    if fit and result.key is None and fit[0].name in {"id", "uuid"}:
        result.repeated_key = fit[0].name
