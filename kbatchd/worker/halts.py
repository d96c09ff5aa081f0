"""Halts: the partitions of one route in one worker that stand still until an operator moves them.

Claims has one, and calls it in the flusher's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kbatchd.schema import halting
from kbatchd.schema.halting import Halt

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbatchd.model import Partition
    from kbatchd.postgres.connection import Connection
    from kbatchd.schema.progress import Owner


class Halts:
    """What stands still, and why."""

    def __init__(self) -> None:
        #: Each with the epoch that an operator has to move.
        self.epochs: dict[Partition, int] = {}
        #: Those that the breaker has halted.
        self.tripped: set[Partition] = set()
        #: Those of which it is yet to be written down.
        self._unmarked: dict[Partition, Halt] = {}

    def add(self, epochs: Mapping[Partition, int], why: Halt) -> None:
        """Let these stand still."""
        self.epochs.update(epochs)
        self.tripped -= epochs.keys()
        if why is Halt.BREAKER:
            self.tripped |= epochs.keys()
        self._unmarked.update(dict.fromkeys(epochs, why))

    def forget(self, partition: Partition) -> None:
        """Let it go on, under any owner."""
        self.epochs.pop(partition, None)
        self.tripped.discard(partition)
        self._unmarked.pop(partition, None)

    def mark(self, connection: Connection, owner: Owner) -> None:
        """Write down what has halted since: for `kbatchd status` on any host, and for `kbatchd progress accept`."""
        for why in Halt:
            epochs = {p.number: self.epochs[p] for p, reason in self._unmarked.items() if reason is why}
            if epochs:
                halting.mark(connection, owner, epochs, why)
        self._unmarked.clear()
