"""What `kbatchd check` finds: a fault or a warning, where it is, and what to do about it.

Pure values; made by the checkup and its trials, printed by the command.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Level(StrEnum):
    """How bad it is."""

    FAULT = "fault"  # the daemon would not start, or nothing of a route would get into its table
    WARNING = "warning"  # it runs, and something will be lost, late or refused


class Finding(NamedTuple):
    """One line of the table."""

    level: Level
    where: str
    what: str
    remedy: str


def fault(where: str, text: str) -> Finding:
    """Make a finding of one of our errors' lines: its remedy stands behind the last `; `, or the last `: `."""
    text = text.removeprefix(f"{where}: ")
    for mark in ("; ", ": "):
        what, found, remedy = text.rpartition(mark)
        if found:
            return Finding(Level.FAULT, where, what, remedy)
    return Finding(Level.FAULT, where, text, "")
