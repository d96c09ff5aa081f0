"""The histograms a worker keeps, and their fixed buckets. Pure; slots.py has the numbers, the monitor shows them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Histogram:
    """Buckets by their upper bounds, ascending; one more for all above them, and then the sum of all values.

    Compared by identity: as keys they are looked up with every batch.
    """

    bounds: tuple[float, ...]
    #: The sum is a whole number: of so many parts of the unit.
    scale: int = 1_000_000

    @property
    def size(self) -> int:
        """How many numbers it takes."""
        return len(self.bounds) + 2


FLUSH_SECONDS = Histogram((0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0))

#: Of batch.max_rows; 1 is a full batch.
FILL = Histogram((0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.999, 1.0))

#: Up to a day: that is how old the records are after an outage.
FRESHNESS_SECONDS = Histogram(
    (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 3_600.0, 21_600.0, 86_400.0)
)
