"""The offsets that delivery reports give: a broker's own, or none.

librdkafka counts a batch's offsets from that of its first record. Where a broker acknowledges without naming it, since
it has the batch already, librdkafka counts from -1: the first record is given no offset, and those behind it are given
0, 1, 2, which are others' records. They are in Kafka; where, nobody knows. Used by both producers, for each report that
looks like that; pure.
"""

from __future__ import annotations


class ReportedOffsets:
    """The partitions whose last report gave no offset, or counted on from there. True while there are some."""

    def __init__(self) -> None:
        self._next: dict[tuple[str | None, int | None], int] = {}

    def __bool__(self) -> bool:
        return bool(self._next)

    def offset(self, topic: str | None, number: int | None, told: int | None) -> int | None:
        """Return the offset that a report has told, if the broker gave it. The reports come in their order."""
        at = topic, number
        if told is None or told == self._next.get(at):
            self._next[at] = 0 if told is None else told + 1
            return None
        self._next.pop(at, None)
        return told
