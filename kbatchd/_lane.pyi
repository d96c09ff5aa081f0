from collections.abc import Sequence
from typing import Self

class Lane:
    def __new__(
        cls,
        columns: Sequence[tuple[tuple[str | int, ...], str, int, bool]],
        envelope: tuple[str | int, ...],
        closed: bool,
        /,
    ) -> Self: ...
    def encode(self, values: Sequence[bytes | None], start: int, rows: list[bytes], /) -> int: ...
