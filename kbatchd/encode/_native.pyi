from collections.abc import Sequence
from typing import Self

from kbatchd.model import Record

class Encoder:
    def __new__(
        cls,
        columns: Sequence[tuple[tuple[str | int, ...] | str, str, int, bytes | None, bool]],
        envelope: tuple[str | int, ...],
        closed: bool,
        /,
    ) -> Self: ...
    def encode(
        self, records: Sequence[Record], values: Sequence[bytes | None], start: int, rows: list[bytes], /
    ) -> int: ...
