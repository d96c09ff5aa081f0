"""Names of columns: when SQL needs quotes, and what to call the column of a field whose own name is no good one.

Pure functions; used by `kbatchd infer`.
"""

from __future__ import annotations

import re
from itertools import count
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from kbatchd.paths import Path

#: PostgreSQL cuts longer names off in silence, and the field would not be found.
_MAX_BYTES: Final = 63
_PLAIN = re.compile(r"[a-z_][a-z0-9_]*")
#: Words that are no names without quotes: PostgreSQL's reserved ones.
_RESERVED: Final = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate collation
    column concurrently constraint create cross current_catalog current_date current_role current_schema current_time
    current_timestamp current_user default deferrable desc distinct do else end except false fetch for foreign freeze
    from full grant group having ilike in initially inner intersect into is isnull join lateral leading left like limit
    localtime localtimestamp natural not notnull null offset on only or order outer overlaps placing primary references
    returning right select session_user similar some symmetric system_user table tablesample then to trailing true union
    unique user using variadic verbose when where window with
    """.split()  # noqa: SIM905 - a word a line would be a page
)
#: PostgreSQL's own columns, which every table has.
_SYSTEM: Final = frozenset({"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"})

#: Where a word begins in camelCase: itemCount, HTTPStatus; but not within the plural of userIDs.
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z](?!s(?![a-z]))[a-z])")


def quoted(name: str) -> str:
    """Quote a name where SQL needs it."""
    return name if _PLAIN.fullmatch(name) and name not in _RESERVED else '"' + name.replace('"', '""') + '"'


def snake_case(name: str) -> str:
    """Write a name as columns are mostly named: letters of any language in lower case, digits and underscores."""
    return re.sub(r"\W+", "_", _HUMP.sub("_", name)).strip("_").lower()


def column_names(paths: Sequence[Path]) -> list[str]:
    """Name a column for each field: as the field, where that is a good name for a column; else as much like it."""
    taken = {str(path[0]) for path in paths if _is_kept(path)}
    names = []
    for path in paths:
        name = str(path[0]) if _is_kept(path) else next(each for each in _candidates(path) if each not in taken)
        taken.add(name)
        names.append(name)
    return names


def _is_kept(path: Path) -> bool:
    name = str(path[0])
    is_word = re.fullmatch(r"[^\W\d]\w*", name) is not None and name == name.lower()
    return len(path) == 1 and is_word and len(name.encode()) <= _MAX_BYTES and name not in _RESERVED | _SYSTEM


def _candidates(path: Path) -> Iterator[str]:
    name = "_".join(filter(None, (snake_case(str(step)) for step in path))) or "field"
    if name[0].isdigit():
        name = f"_{name}"
    if name in _RESERVED | _SYSTEM:
        name = f"{name}_"
    yield _cut(name, "")
    yield from (_cut(name, f"_{number}") for number in count(2))


def _cut(name: str, end: str) -> str:
    """Cut a name off so that it has room, with its end."""
    return name.encode()[: _MAX_BYTES - len(end)].decode(errors="ignore") + end
