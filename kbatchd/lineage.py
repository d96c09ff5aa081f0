"""Of which log a partition's records were read: the leader epochs they were written under.

An offset alone names no record. After an unclean leader election the follower's log takes the place of the leader's,
and has others' records from the offset on where the two part. Offset and leader epoch together do name one: so progress
keeps under which epochs it was read, the youngest few, and reading begins behind the last record, not behind the
markers that follow it, whose epoch nobody tells us. Pure values; the poll loop and the flusher make and compare them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

#: How many epochs are kept: each is an election. What parts below them is read from where they begin.
KEPT_EPOCHS = 16


class Lineage(NamedTuple):
    """What is known of the log that a partition was read from."""

    #: (leader epoch, first offset read under it), ascending.
    epochs: tuple[tuple[int, int], ...] = ()
    #: The offset after the last record read, of the last of these epochs; None: there is nothing to begin with.
    end: int | None = None

    @property
    def epoch(self) -> int | None:
        """The epoch of the last record read, where reading may begin with it."""
        return self.epochs[-1][0] if self.epochs and self.end is not None else None

    def at(self, offset: int) -> int | None:
        """Return the epoch under which an offset was read; None where it is not known (any more)."""
        if self.end is None or offset >= self.end:
            return None
        return next((epoch for epoch, first in reversed(self.epochs) if first <= offset), None)

    def then(self, firsts: Iterable[tuple[int, int]], end: int) -> Lineage:
        """Return it with more read: the epochs that are new, and the offset after the last record."""
        return Lineage((*self.epochs, *firsts)[-KEPT_EPOCHS:], end)

    def below(self, offset: int) -> Lineage:
        """Return what is known of the offsets below this one."""
        epochs = tuple((epoch, first) for epoch, first in self.epochs if first < offset)
        return Lineage(epochs, min(self.end, offset) if epochs and self.end is not None else None)

    def unknown(self) -> Lineage:
        """Return it where reading goes on without it: nothing of what was read is left in the log, or it was moved."""
        return self._replace(end=None)

    def end_of(self, epoch: int) -> int | None:
        """Return up to where offsets were read under this epoch or earlier ones."""
        return next((first for later, first in self.epochs if later > epoch), self.end)
