"""What the supervisor is to keep running: groups of like processes, a place for each.

Made from the file by the command line before the first fork, and again for each reload; no process is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from signal import Signals
from typing import TYPE_CHECKING

from kbatchd.stats.slots import Slot, Slots

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.stats.suspicions import End


@dataclass(frozen=True, slots=True)
class Group:
    """Like processes: the workers, the gateways, the monitor."""

    kind: str
    count: int
    #: What process `index` does, in the child; returns its exit code.
    run: Callable[[int, Slot], int]
    grace_seconds: float
    #: What it is made from: at a reload that does not change it, the processes stay. None: they never do.
    settings: object = None
    #: It can do its work before the start-up checks have passed, and while a server is away.
    at_once: bool = False
    #: At a reload the new processes begin before the former ones end; else they take turns, one by one.
    new_first: bool = False
    #: The daemon is ready only if these are, and ends when they find the file wrong.
    is_vital: bool = True
    #: Signals to the supervisor that are passed on to these processes.
    takes: frozenset[Signals] = frozenset()
    #: What is made of one that has ended unasked, in the supervisor, before the next one begins.
    on_end: Callable[[Slot, End], None] = lambda _slot, _end: None


@dataclass(frozen=True, slots=True)
class Plan:
    """All groups, in the order in which they are stopped, and what holds for all of them."""

    groups: tuple[Group, ...]
    #: A slot for each process, group by group.
    slots: Slots
    #: The start-up checks, in a process of their own; 0 when all is well.
    check: Callable[[], int]
    #: What is done once in an hour, in a process of its own.
    prune: Callable[[], int]
    heartbeat_timeout_seconds: float
    restart_backoff_max_seconds: float
