"""Which records of a piece are sent, and under which key; what is wrong with the others. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kbatchd.config import record_too_large
from kbatchd.door.door import Door
from kbatchd.model import Refusal
from kbatchd.produce.failures import Failure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.config import RouteMapping
    from kbatchd.door.feeding import Feeding
    from kbatchd.files.files import Piece
    from kbatchd.postgres.table import Column


class Unfed(NamedTuple):
    """Records that feed no column."""

    records: int
    line: int
    explanation: str


class Checked(NamedTuple):
    """What became of a piece."""

    values: Sequence[bytes]
    keys: Sequence[bytes | None]
    failures: list[Failure]
    #: Of the sound records, those that feed no column: their number, the first one's line, and what it has.
    unfed: Unfed | None = None


class Checker:
    """Decides what is sent, and under which key."""

    def __init__(
        self,
        columns: Sequence[Column],
        mapping: RouteMapping,
        feeding: Feeding,
        key_field: str | None,
        max_bytes: int,
    ) -> None:
        self._door = Door(columns, key_field, mapping)
        self._feeding = feeding
        self._max_bytes = max_bytes

    def check(self, piece: Piece, records_before: int) -> Checked:
        """Take the sound records of a piece, and say what is wrong with the others."""
        refused = dict(piece.refused)
        left: Sequence[int] = range(len(piece.values))
        keys: list[bytes | None] = []
        for look in (self._too_large, self._door.check, None):
            left = [index for index in left if index not in refused] if refused else left
            values = [piece.values[index] for index in left] if refused else piece.values
            if look is None:
                keys, found = self._door.keys(values)
            else:
                found = look(values)
            refused.update((left[index], why) for index, why in found)
        if not refused:
            return Checked(values, keys, [], self._unfed(values, piece.lines))
        sound = [at for at, index in enumerate(left) if index not in refused]
        good = [values[at] for at in sound]
        return Checked(
            good,
            [keys[at] for at in sound],
            [self._failure(piece, index, why, records_before) for index, why in sorted(refused.items())],
            self._unfed(good, [piece.lines[left[at]] for at in sound]),
        )

    def _unfed(self, values: Sequence[bytes], lines: Sequence[int]) -> Unfed | None:
        found = self._feeding.feeds_none(values)
        if not found:
            return None
        explanation = self._feeding.explain(self._feeding.fields(values[found[0]]))
        return Unfed(len(found), lines[found[0]], explanation)

    def _too_large(self, values: Sequence[bytes]) -> list[tuple[int, Refusal]]:
        limit = self._max_bytes
        if max(map(len, values), default=0) <= limit:
            return []
        return [
            (index, Refusal("too_large", None, record_too_large(len(value), limit)))
            for index, value in enumerate(values)
            if len(value) > limit
        ]

    def _failure(self, piece: Piece, index: int, why: Refusal, records_before: int) -> Failure:
        source = (piece.values if piece.sources is None else piece.sources)[index]
        shown = source if len(source) <= self._max_bytes else None
        return Failure(piece.lines[index], records_before + index + 1, why, shown)
