"""How a partition, and a route, stand, in a word: the one table of such words.

`kbatchd status`, the status page, its verdict, the health checks and the metrics all say these, in the same case. Pure;
called by the monitor on its event loop, and by the command.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from kbatchd.monitor.lag import PartitionLag, PartitionState
from kbatchd.schema.halting import Halt


class Word(StrEnum):
    """What there is to say, beside what progress and topic have to say of each other (PartitionState)."""

    OK = "ok"
    NO_FAULT = "no fault seen"  # the same, where nobody was asked who would know that its route is on hold
    HALTED = "halted"  # by a gap, until somebody accepts it
    BREAKER = "halted: breaker"  # too many dead letters in a row, until somebody lets it go on
    ON_HOLD = "on hold"  # the route waits for its table
    WAITING = "waits for PostgreSQL"
    NO_OWNER = "no owner"
    PAUSED = "paused"  # by an operator, until somebody lets it go on
    STILL = "stands still"  # records wait, and progress does not move
    NONE_YET = "no progress yet"
    STOPPED = "stopped"  # no partition of the route has an owner
    PARTLY = "partly stopped"  # some have none


#: What needs nobody, and what is as it was said.
FINE: Final = {Word.OK, Word.NO_FAULT, Word.PAUSED}

#: All of so many of a route's last records were refused: a warning, also where there is no lag.
REFUSED_IN_A_ROW = 10


def of_partition(
    lag: PartitionLag,
    halt: str | None,
    waits: float | None,
    linger_seconds: float,
    *,
    is_paused: bool = False,
    is_on_hold: bool = False,
    waits_for_postgres: bool = False,
    is_known: bool = True,
) -> str:
    """Return a partition's word, the worst that holds. `is_known`: its owner was asked whether its route is on hold."""
    if halt == Halt.BREAKER:
        return Word.BREAKER
    if halt is not None:
        told = lag.state not in {PartitionState.OK, PartitionState.UNKNOWN}
        return f"{Word.HALTED}: {lag.state}" if told else Word.HALTED
    holds = (
        (Word.ON_HOLD, is_on_hold and not is_paused),
        (Word.WAITING, waits_for_postgres),
        (Word.NO_OWNER, lag.state in {PartitionState.OK, PartitionState.UNKNOWN} and not lag.progress.is_held),
        (lag.state, lag.state is not PartitionState.OK),
        (Word.PAUSED, is_paused),
        (Word.STILL, lag.stands_still(waits, linger_seconds)),
        (Word.NO_FAULT, not is_known),
    )
    return str(next((word for word, does in holds if does), Word.OK))


def consumes_nothing(word: str) -> bool:
    """Tell whether nothing of such a partition comes into its table, until somebody or something helps."""
    return word.startswith((Word.HALTED, Word.ON_HOLD, Word.STILL))


def of_route(words: Iterable[str]) -> str:
    """Return a route's word, from those of its partitions: all that differ, and whether anybody works on it."""
    words = list(words)
    if not words:
        return Word.NONE_YET
    without = words.count(Word.NO_OWNER)
    activity = [] if not without else [Word.STOPPED if without == len(words) else Word.PARTLY]
    others = sorted(set(words) - {Word.OK, Word.NO_FAULT, Word.NO_OWNER})
    if activity or others:
        return ", ".join([*activity, *others])
    return Word.NO_FAULT if Word.NO_FAULT in words else Word.OK


def refused(route: str, count: int) -> str:
    """Say that a route gets no rows any more."""
    return f"route {route}: all of the last {count:,} records were refused"
