"""Whether a record feeds any column of its table, or would be a row of NULLs and defaults.

Such a row is allowed, and so the door lets it in; but mostly the records are for another table, in an envelope, or
their names have other capitals. Pure; used by the checks of `kbatchd produce`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kbatchd.encode.exact import loads
from kbatchd.encode.mapping import Source
from kbatchd.paths import show_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from kbatchd.config import RouteMapping
    from kbatchd.encode.mapping import Feed
    from kbatchd.paths import Path

#: So many names are shown.
_SHOWN: Final = 8


class Feeding:
    """The fields that a record of a route is looked through for."""

    def __init__(self, feeds: Sequence[Feed], mapping: RouteMapping, key_field: str | None) -> None:
        own = [feed for feed in feeds if feed.source is Source.FIELD]
        #: The fields that feed columns.
        self.paths = frozenset(feed.path for feed in own)
        #: Those of the record's own object: what CSV, where all is text, can have.
        self._names = frozenset(str(path[0]) for path in self.paths if len(path) == 1)
        #: Whether any record feeds something, whatever its fields are called.
        self._always = not own or mapping.format != "json" or any(map(_takes_all, feeds))
        self._envelope = mapping.envelope
        #: Fields beside the envelope that feed columns, be it as the record's key.
        self._outer = {feed.path for feed in feeds if feed.source is Source.VALUE}
        if key_field is not None and any(feed.source is Source.KEY for feed in feeds):
            self._outer.add((key_field,))
        self._beginnings = tuple(f'{{"{name}"'.encode() for name in self._names)

    def feeds_none(self, values: Sequence[bytes]) -> list[int]:
        """Return those of some sound records that feed no column."""
        if self._always:
            return []
        # Most records begin with a field that feeds a column: 0.1 us instead of 1.
        return [
            index
            for index, value in enumerate(values)
            if self._envelope or not value.startswith(self._beginnings)
            if not self._is_fed(loads(value))
        ]

    def is_fed_by(self, names: Collection[str]) -> bool:
        """Tell whether a row of CSV with these names feeds a column."""
        own = {str(self._envelope[0])} if self._envelope else self._names
        return self._always or any(name in own or (name,) in self._outer for name in names)

    def nearly(self, names: Collection[str]) -> Iterator[tuple[str, str]]:
        """Find names of CSV that would feed a column but for their capitals, or the blanks around them."""
        like = {name.lower(): name for name in self._names if name not in names and not self._envelope}
        for name in names:
            meant = like.get(name.strip().lower())
            if meant is not None and name not in self._names:
                yield name, meant

    def explain(self, names: Sequence[str]) -> str:
        """Say which fields there are, and which ones would feed a column."""
        taken = sorted(map(show_path, self.paths))
        lower = {text.lower() for text in taken}
        alike = "; names are compared exactly, capitals and all" if lower & {name.lower() for name in names} else ""
        where = f" of {show_path(self._envelope)}" if self._envelope else ""
        return f"it has {listed(names) or 'none'}, and the columns take {listed(taken)}{where}{alike}"

    def fields(self, value: bytes) -> list[str]:
        """Name the fields of a record."""
        return list(_names_in(_opened(loads(value), self._envelope)))

    def _is_fed(self, record: object) -> bool:
        found = _opened(record, self._envelope)
        return (
            (isinstance(found, dict) and not self._names.isdisjoint(found))
            or any(len(path) > 1 and _is_there(found, path) for path in self.paths)
            or any(_is_there(record, path) for path in self._outer)
        )


def _takes_all(feed: Feed) -> bool:
    return feed.source is Source.REST or (feed.source is Source.VALUE and not feed.path)


def _opened(record: object, envelope: Path) -> object:
    """Return a record's object, which may be JSON in a string of its envelope."""
    found = record
    for step in envelope:
        found = found.get(step) if isinstance(found, dict) else None
    return loads(found.encode()) if envelope and isinstance(found, str) else found


def _names_in(found: object) -> Iterator[str]:
    """Name the fields of an object, and those of the objects in it, as their paths."""
    for name, inner in found.items() if isinstance(found, dict) else ():
        if isinstance(inner, dict) and inner:
            yield from (show_path((name, each)) for each in inner)
        else:
            yield show_path((name,))


def _is_there(x: object, path: Path) -> bool:
    for step in path:
        items = isinstance(x, list) and isinstance(step, int) and step < len(x)
        if not items and not (isinstance(x, dict) and step in x):
            return False
        x = x[step]  # type: ignore[index]
    return True


def listed(names: Sequence[str]) -> str:
    """Name some of them."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
