"""Where the files are that a wheel has in the package and a checkout beside it: the SQL.

Used by `kbatchd migrate`, the start-up checks and `kbatchd demo`.
"""

from __future__ import annotations

from pathlib import Path


def shipped(path: str) -> Path:
    """Return where `path`, such as "sql", is."""
    package = Path(__file__).parent
    inside = package / path
    return inside if inside.exists() else package.parent / path
