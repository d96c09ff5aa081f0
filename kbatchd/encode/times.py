"""Dates, times and intervals in PostgreSQL's binary format; see fields.py for the rules of these functions.

What the server's settings (TimeZone, DateStyle, IntervalStyle) would decide is refused: a timestamptz has its offset,
a date is YYYY-MM-DD. Years go as far as PostgreSQL's, with " BC" behind as PostgreSQL writes them.
"""

from __future__ import annotations

import re
import struct
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation
from typing import TYPE_CHECKING, Final

from kbatchd.encode.fields import Refused, show, wrong_type
from kbatchd.encode.numbers import is_number, is_zero, number_literal

if TYPE_CHECKING:
    from kbatchd.postgres.table import Column

#: Day and moment from which PostgreSQL counts.
EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
EPOCH_DAY: Final = date(2000, 1, 1).toordinal()
#: The same in days and microseconds since 1970.
UNIX_EPOCH_DAYS: Final = EPOCH_DAY - date(1970, 1, 1).toordinal()
UNIX_EPOCH_MICROSECONDS: Final = UNIX_EPOCH_DAYS * 86_400_000_000

_MICROSECONDS: Final = 1_000_000
_DAY_MICROSECONDS: Final = 86_400 * _MICROSECONDS
#: PostgreSQL's infinity and -infinity, for dates (int4) and timestamps (int8).
_INFINITE_DAYS: Final = {"infinity": 2**31 - 1, "-infinity": -(2**31)}
_INFINITE_MICROSECONDS: Final = {"infinity": 2**63 - 1, "-infinity": -(2**63)}
#: From 4714-11-24 BC to the end of 5874897, in days from 2000; timestamps end with 294276.
_FIRST_DAY, _END_DAY = -2_451_545, 2_145_031_949
_END_TIMESTAMP_DAY = 106_751_983

_DAY = r"([0-9]{4}|[1-9][0-9]{4,6})-([0-9]{2})-([0-9]{2})"
#: PostgreSQL reads a time in 128 characters, and refuses longer ones.
_CLOCK = r"([0-9]{2}):([0-9]{2})(?::([0-9]{2})(?:\.([0-9]{0,60}))?)?"
#: Z, or the sign, hours, and minutes (+hhmm, or +hh:mm[:ss]).
_OFFSET = r"(?:([Zz])|([+-])([0-9]{2})(?:([0-9]{2})|:([0-9]{2})(?::([0-9]{2}))?)?)?"
_DATE = re.compile(f"{_DAY}( BC)?")
_TIMESTAMP = re.compile(f"{_DAY}[Tt ]{_CLOCK}{_OFFSET}( BC)?")
_TIME = re.compile(f"{_CLOCK}{_OFFSET}")

_MAX_HOUR, _MAX_MINUTE, _MAX_SECOND = 24, 59, 60  # a leap second is the next minute's first, as PostgreSQL has it
#: PostgreSQL takes offsets to 15:59:59, Python to 23:59:59.
_MAX_OFFSET_HOUR = 15
_EXACT_FRACTION_DIGITS = 6
_MAX_PYTHON_YEAR = 9999
#: The Gregorian calendar repeats itself.
_CYCLE_YEARS, _CYCLE_DAYS = 400, 146_097


def _days(year: str, month: str, day: str, era: str) -> int:
    """Return the days from 2000; ValueError when there is no such day."""
    number = int(year)
    if number == 0:
        raise ValueError
    if era:
        number = 1 - number  # there is no year 0: 1 BC is it
    cycles = 0
    if not 0 < number <= _MAX_PYTHON_YEAR:
        cycles = (number - 1) // _CYCLE_YEARS
        number -= cycles * _CYCLE_YEARS
    return date(number, int(month), int(day)).toordinal() - EPOCH_DAY + cycles * _CYCLE_DAYS


def encode_date(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take YYYY-MM-DD, also BC, and PostgreSQL's infinities."""
    if type(x) is not str:
        raise wrong_type("a string", x, raw)
    days = _INFINITE_DAYS.get(x)
    if days is None:
        match = _DATE.fullmatch(x)
        if match is None:
            raise Refused("not_a_date", f"{show(x)} is not a date: expected YYYY-MM-DD")
        try:
            year, month, day, era = match.groups("")
            days = _days(year, month, day, era)
        except ValueError as error:
            raise Refused("not_a_date", f"{show(x)} is not a date: there is no such day") from error
        if not _FIRST_DAY <= days < _END_DAY:
            raise Refused("out_of_range", f"{show(x)} is out of range for type date")
    return struct.pack(">i", days)


def is_day(text: str) -> bool:
    """Say whether a text has the form of a date."""
    return _DATE.fullmatch(text) is not None


class _BadTime(ValueError):
    """Says why a text is no time."""


def _clock(hour: str, minute: str, second: str, fraction: str) -> int:
    """Return the microseconds since midnight; 24:00 is the next."""
    hours, minutes, seconds = int(hour), int(minute), int(second or 0)
    if hours > _MAX_HOUR or minutes > _MAX_MINUTE or seconds > _MAX_SECOND:
        raise _BadTime("there is no such time")
    if len(fraction) <= _EXACT_FRACTION_DIGITS:
        microseconds = int(fraction.ljust(_EXACT_FRACTION_DIGITS, "0"))
    else:
        microseconds = round(float(f"0.{fraction}") * _MICROSECONDS)  # PostgreSQL's rint(strtod(...) * 1000000)
    clock = (hours * 3600 + minutes * 60 + seconds) * _MICROSECONDS + microseconds
    if clock > _DAY_MICROSECONDS:
        raise _BadTime("there is no such time")
    return clock


def _offset(zulu: str, sign: str, *parts: str) -> int | None:
    """Return the seconds east of UTC; None: there is no offset."""
    if not sign:
        return 0 if zulu else None
    hours, minutes, colon_minutes, seconds = (int(part or 0) for part in parts)
    minutes = minutes or colon_minutes
    if hours > _MAX_OFFSET_HOUR or minutes > _MAX_MINUTE or seconds > _MAX_MINUTE:
        raise _BadTime("there is no such offset")
    offset = hours * 3600 + minutes * 60 + seconds
    return -offset if sign == "-" else offset


def _parse_timestamp(text: str) -> tuple[int, int | None]:
    """Return the microseconds from 2000 on the clock, and the offset in seconds (None: there is none)."""
    match = _TIMESTAMP.fullmatch(text)
    if match is None:
        raise _bad_timestamp(text, "expected YYYY-MM-DDThh:mm:ss.ffffff and an offset")
    parts = match.groups("")
    try:
        days = _days(parts[0], parts[1], parts[2], parts[-1])
    except ValueError as error:
        raise _bad_timestamp(text, "there is no such day") from error
    try:
        return days * _DAY_MICROSECONDS + _clock(*parts[3:7]), _offset(*parts[7:13])
    except _BadTime as error:
        raise _bad_timestamp(text, str(error)) from error


def _bad_timestamp(text: str, reason: str) -> Refused:
    return Refused("not_a_timestamp", f"{show(text)} is not a timestamp: {reason}")


def _in_range(microseconds: int, shown: object, type_name: str) -> int:
    if not _FIRST_DAY * _DAY_MICROSECONDS <= microseconds < _END_TIMESTAMP_DAY * _DAY_MICROSECONDS:
        raise Refused("out_of_range", f"{show(shown)} is out of range for type {type_name}")
    return microseconds


def fast_timestamptz(x: str) -> int:
    """Return microseconds from 2000, in UTC, for any form that is taken."""
    if x in _INFINITE_MICROSECONDS:
        return _INFINITE_MICROSECONDS[x]
    clock, offset = _parse_timestamp(x)
    if offset is None:
        raise _bad_timestamp(x, "it has no offset, and the server's time zone must not decide")
    return _in_range(clock - offset * _MICROSECONDS, x, "timestamptz")


def encode_timestamptz(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take RFC 3339 with its offset, and PostgreSQL's infinities."""
    if type(x) is not str:
        raise wrong_type("a string", x, raw)
    return struct.pack(">q", fast_timestamptz(x))


def fast_timestamp(x: str) -> int:
    """Return microseconds from 2000 for any form without an offset, or with the offset zero."""
    if x in _INFINITE_MICROSECONDS:
        return _INFINITE_MICROSECONDS[x]
    clock, offset = _parse_timestamp(x)
    if offset:
        raise _bad_timestamp(x, "a timestamp without time zone would lose its offset")
    return _in_range(clock, x, "timestamp")


def encode_timestamp(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take RFC 3339 without an offset, or with the offset zero, and PostgreSQL's infinities."""
    if type(x) is not str:
        raise wrong_type("a string", x, raw)
    return struct.pack(">q", fast_timestamp(x))


def _parse_time(x: object, raw: str | None) -> tuple[int, int | None]:
    if type(x) is not str:
        raise wrong_type("a string", x, raw)
    match = _TIME.fullmatch(x)
    if match is None:
        raise Refused("not_a_time", f"{show(x)} is not a time: expected hh:mm:ss.ffffff")
    parts = match.groups("")
    try:
        return _clock(*parts[:4]), _offset(*parts[4:])
    except _BadTime as error:
        raise Refused("not_a_time", f"{show(x)} is not a time: {error}") from error


def encode_time(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take hh:mm:ss.ffffff to 24:00:00, without an offset or with the offset zero."""
    clock, offset = _parse_time(x, raw)
    if offset:
        raise Refused("not_a_time", f"{show(x)} is not a time: a time without time zone would lose its offset")
    return struct.pack(">q", clock)


def encode_timetz(x: object, column: Column, raw: str | None) -> bytes:  # noqa: ARG001
    """Take a time with its offset."""
    clock, offset = _parse_time(x, raw)
    if offset is None:
        raise Refused(
            "not_a_time", f"{show(x)} is not a time with time zone: it has no offset, and the server's must not decide"
        )
    return struct.pack(">qi", clock, -offset)


#: An ISO 8601 duration; and PostgreSQL's own form, as `1 year 2 mons -3 days +04:05:06.7`, here with a blank before it.
_SECONDS = r"([0-9]{1,9})(?:\.([0-9]{0,6}))?"
_PART = r"(-?[0-9]{1,9})"
_DURATION = re.compile(
    rf"P(?=.)(?:{_PART}Y)?(?:{_PART}M)?(?:{_PART}W)?(?:{_PART}D)?"
    rf"(?:T(?=.)(?:{_PART}H)?(?:{_PART}M)?(?:(-?){_SECONDS}S)?)?"
)
_WORDY_PART = r" ([+-]?[0-9]{1,9})"
_WORDY = re.compile(
    rf"(?=.)(?:{_WORDY_PART} years?)?(?:{_WORDY_PART} mon(?:s|ths?)?)?(?:{_WORDY_PART} weeks?)?(?:{_WORDY_PART} days?)?"
    rf"(?: ([+-]?)([0-9]{{2,9}}):([0-9]{{2}})(?::([0-9]{{2}})(?:\.([0-9]{{0,6}}))?)?)?"
)
#: The fields of `interval minute to second`, in the upper half of its typmod: it reads 04:05 as minutes and seconds.
_MINUTE_TO_SECOND = 1 << 11 | 1 << 12


def encode_interval(x: object, column: Column, raw: str | None) -> bytes:
    """Take an ISO 8601 duration, or the form in which PostgreSQL writes intervals."""
    if type(x) is not str:
        raise wrong_type("a string", x, raw)
    try:
        in_minutes = column.typmod >= 0 and column.typmod >> 16 == _MINUTE_TO_SECOND
        microseconds, days, months = _parse_interval(x, in_minutes=in_minutes)
    except _BadTime as error:
        what = f"{show(x)} is not an interval: expected P1Y2M3DT4H5M6.7S, or 1 year 2 mons 3 days 04:05:06.7"
        raise Refused("not_an_interval", what) from error
    try:
        return struct.pack(">qii", microseconds, days, months)
    except struct.error as error:
        raise Refused("out_of_range", f"{show(x)} is out of range for type interval") from error


def _parse_interval(text: str, *, in_minutes: bool) -> tuple[int, int, int]:
    """Return microseconds, days and months; `in_minutes`: two numbers with a colon are minutes and seconds."""
    if match := _DURATION.fullmatch(text):
        years, months, weeks, days, hours, minutes, sign, seconds, fraction = match.groups("")
        clock = (int(hours or 0) * 3600 + int(minutes or 0) * 60) * _MICROSECONDS
        clock += _signed(sign, int(seconds or 0) * _MICROSECONDS + int(fraction.ljust(6, "0")))
    elif match := _WORDY.fullmatch(f" {text}"):
        years, months, weeks, days, sign, hours, minutes, seconds, fraction = match.groups("")
        if in_minutes and minutes and not seconds:
            hours, minutes, seconds = "", hours, minutes
        if int(minutes or 0) > _MAX_MINUTE or int(seconds or 0) > _MAX_SECOND:
            raise _BadTime
        whole = int(hours or 0) * 3600 + int(minutes or 0) * 60 + int(seconds or 0)
        clock = _signed(sign, whole * _MICROSECONDS + int(fraction.ljust(6, "0")))
    else:
        raise _BadTime
    return clock, int(weeks or 0) * 7 + int(days or 0), int(years or 0) * 12 + int(months or 0)


def _signed(sign: str, magnitude: int) -> int:
    return -magnitude if sign == "-" else magnitude


def interval_text(encoded: bytes) -> str:
    """Write an encoded interval so that PostgreSQL reads it the same under every IntervalStyle."""
    microseconds, days, months = struct.unpack(">qii", encoded)
    return f"{months:+d} mons {days:+d} days {microseconds:+d} us"


#: How many microseconds a unit is.
UNITS: Final = {
    "s": Decimal(1_000_000), "ms": Decimal(1_000), "us": Decimal(1), "ns": Decimal("0.001"),
}  # fmt: skip
#: Digits beside those that a number has itself: the units' and those of the largest timestamp.
_MORE_DIGITS = 60


def epoch_microseconds(x: object, raw: str | None, unit: str, type_name: str) -> int:
    """Turn a number of seconds or parts of them since 1970 into microseconds from 2000; half a one to the even one."""
    if type(x) is str and not is_number(x):
        raise Refused("not_a_number", f"{show(x)} is not a number")
    literal = number_literal(x, raw)
    try:
        number = Decimal(literal)
    except InvalidOperation:  # an exponent of 18 digits or more: it is nothing, or too much
        number = Decimal(0) if is_zero(literal) or "-" in literal[1:] else Decimal("Infinity")
    if number.is_infinite() or (number and number.adjusted() > 25):  # noqa: PLR2004 - ns of the last year have 22 digits
        raise Refused("out_of_range", f"{show(x)} is out of range for type {type_name}")
    exact = Context(prec=len(literal) + _MORE_DIGITS, traps=[])
    whole = exact.multiply(number, UNITS[unit]).to_integral_value(ROUND_HALF_EVEN, exact) if number else 0
    return _in_range(int(whole) - UNIX_EPOCH_MICROSECONDS, x, type_name)


def encode_epoch(x: object, column: Column, raw: str | None, unit: str) -> bytes:
    """Encode a time that is a number; a date is the day in UTC."""
    microseconds = epoch_microseconds(x, raw, unit, column.type_name)
    if column.type_name == "date":
        return struct.pack(">i", microseconds // _DAY_MICROSECONDS)
    return struct.pack(">q", microseconds)


def time_text(encoded: bytes) -> str:
    """Write an encoded date, timestamp or timestamptz as PostgreSQL reads it under every TimeZone and DateStyle."""
    if len(encoded) == 4:  # noqa: PLR2004 - a date
        return _day_text(int.from_bytes(encoded, signed=True), "")
    (microseconds,) = struct.unpack(">q", encoded)
    days, rest = divmod(microseconds, _DAY_MICROSECONDS)
    seconds, fraction = divmod(rest, _MICROSECONDS)
    return _day_text(days, f" {seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}.{fraction:06d}+00")


def _day_text(days: int, clock: str) -> str:
    cycles, day = divmod(days + EPOCH_DAY - 1, _CYCLE_DAYS)
    within = date.fromordinal(day + 1)
    year = within.year + cycles * _CYCLE_YEARS
    era = "" if year > 0 else " BC"
    return f"{year if year > 0 else 1 - year:04d}-{within.month:02d}-{within.day:02d}{clock}{era}"
