"""Whether a record feeds any column of its table, or would be a row of NULLs and defaults.

Such a row is allowed, and so the door lets it in; but mostly the records are for another table, in an envelope, or
their names have other capitals. Pure; used by the checks of `kbatchd produce`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kbatchd.exact import loads
from kbatchd.mapping import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kbatchd.config_mapping import RouteMapping
    from kbatchd.mapping import Feed
    from kbatchd.paths import Path

#: So many names are shown.
_SHOWN: Final = 8


class Feeding:
    """The names that a record of a route is looked through for."""

    def __init__(self, feeds: Sequence[Feed], mapping: RouteMapping) -> None:
        own = [feed for feed in feeds if feed.source is Source.FIELD]
        #: The fields that feed columns, the first step of each path.
        self.names = frozenset(str(feed.path[0]) for feed in own)
        #: Whether any record feeds something, whatever its fields are called.
        self._always = not own or mapping.format != "json" or any(feed.source in _WHOLE for feed in feeds)
        self._envelope = mapping.envelope
        self._beginnings = tuple(f'{{"{name}"'.encode() for name in self.names)

    def feeds_none(self, values: Sequence[bytes]) -> list[int]:
        """Return those of some sound records that feed no column."""
        if self._always:
            return []
        # Most records begin with a field that feeds a column: 0.1 us instead of 1.
        return [
            index
            for index, value in enumerate(values)
            if self._envelope or not value.startswith(self._beginnings)
            if not self.is_fed_by(_fields(value, self._envelope))
        ]

    def is_fed_by(self, names: Iterable[str]) -> bool:
        """Tell whether a record with these fields feeds a column."""
        return self._always or not self.names.isdisjoint(names)

    def explain(self, names: Sequence[str]) -> str:
        """Say which fields there are, and which ones would feed a column."""
        lower = {name.lower() for name in self.names}
        alike = "; names are compared exactly, capitals and all" if lower & {name.lower() for name in names} else ""
        return f"it has {listed(names) or 'none'}, and the columns take {listed(sorted(self.names))}{alike}"

    def fields(self, value: bytes) -> list[str]:
        """Name the fields of a record."""
        return list(_fields(value, self._envelope))


def _fields(value: bytes, envelope: Path) -> Iterable[str]:
    """Return the names in a record's object, which may be JSON in a string of its envelope."""
    found = loads(value)
    for step in envelope:
        found = found.get(step) if isinstance(found, dict) else None
    if envelope and isinstance(found, str):
        found = loads(found.encode())
    return found if isinstance(found, dict) else ()


_WHOLE: Final = {Source.VALUE, Source.REST}


def listed(names: Sequence[str]) -> str:
    """Name some of them."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
