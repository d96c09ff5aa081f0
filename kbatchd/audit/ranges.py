"""Ranges of offsets, as people are told of them: each begins at its first offset and ends before its second. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

#: [first, end).
Range = tuple[int, int]

#: So many ranges are named; all are counted.
NAMED = 5


def runs(offsets: Iterable[int]) -> list[Range]:
    """Return the ranges that these offsets make, ascending."""
    found: list[Range] = []
    for offset in sorted(offsets):
        if found and found[-1][1] == offset:
            found[-1] = (found[-1][0], offset + 1)
        else:
            found.append((offset, offset + 1))
    return found


def holds(ranges: Iterable[Range], offset: int) -> bool:
    """Tell whether an offset is in one of the ranges."""
    return any(first <= offset < end for first, end in ranges)


def meets(ranges: Iterable[Range], first: int, end: int) -> bool:
    """Tell whether one of the ranges has an offset of this one."""
    return any(first < other_end and other_first < end for other_first, other_end in ranges)


def listed(ranges: Iterable[Range]) -> str:
    """Name ranges by their first and last offsets."""
    texts = [str(first) if first + 1 == end else f"{first} to {end - 1}" for first, end in ranges]
    return ", ".join(texts[:NAMED]) + (f" and {len(texts) - NAMED} more" if len(texts) > NAMED else "")
