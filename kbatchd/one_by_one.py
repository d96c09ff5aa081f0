"""How the records of a poll are encoded: all at once, or one by one where workers have died of some of them.

Either way the place says where we are, so that the supervisor knows when it finds us dead (place.py, suspicions.py).
One by one, nothing else is under way: the flusher has written all that came before, and is idle. So what ends us then
is this record, or nothing that a record can be blamed for. Used by a route's intake, in the worker's main thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from zlib import crc32

from kbatchd.model import Encoded, Partition
from kbatchd.place import At, Place, Span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from kbatchd.config import Route
    from kbatchd.model import Record, Refusal
    from kbatchd.rows import RowEncoder
    from kbatchd.suspicions import Order


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the worker gives: its place, and what has to be done around a record that may kill."""

    place: Place
    beat: Callable[[], None]
    #: Of the topics whose partitions are ours, by now.
    topic_ids: Mapping[Partition, str]
    #: Return when all that was read is in the table, or is to be read again.
    settle: Callable[[], None]


def make_encodings(routes: Iterable[Route], orders: Iterable[Order], around: Surroundings) -> dict[str, Encoding]:
    """Make what each route needs, by its name; the orders are for the routes that they name."""
    orders = list(orders)
    return {
        route.name: Encoding(rank, route.topic, [order for order in orders if order.route == route.name], around)
        for rank, route in enumerate(routes)
    }


class Encoding:
    """Encodes the records of one route; see the module."""

    def __init__(self, rank: int, topic: str, orders: Iterable[Order], around: Surroundings) -> None:
        """Prepare; `rank` is the route's place in the file."""
        self._rank = rank
        self._topic = topic
        self._around = around
        self._orders = {order.span.number: order for order in orders}

    def encode(
        self,
        encoder: RowEncoder,
        records: Sequence[Record],
        values: Sequence[bytes | None],
        numbers: Sequence[int],
        rows: list[bytes],
    ) -> Encoded:
        """Do as the encoder does; `numbers` are the records' partitions."""
        spans = self._spans(records, numbers)
        if self._orders and self._is_suspected(spans):
            return self._one_by_one(encoder, records, values, rows)
        self._around.place.enter(At.CHUNK, self._rank, spans)
        encoded = encoder.encode(records, values, rows)
        self._around.place.leave()
        return encoded

    def remains(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return the records as dead letters may have them: of some no more than that they were there."""
        if not any(order.bare for order in self._orders.values()):
            return records
        return [Remains(record) if self._is_bare(record) else record for record in records]

    def see_off(self, records: Sequence[Record]) -> None:
        """Wait until the dead letters of condemned records are written: that may kill as well."""
        for record in [record for record in records if self._orders and self._verdict(record) is not None]:
            self._around.place.enter(At.LETTER, self._rank, [self._span(record)])
            self._around.settle()
            self._around.place.leave()

    def _spans(self, records: Sequence[Record], numbers: Sequence[int]) -> list[Span]:
        """Return the offsets of each partition among the records."""
        identity, number = self._identity, numbers[0]
        if numbers.count(number) == len(numbers):
            return [Span(number, identity(number), records[0].offset() or 0, records[-1].offset() or 0)]
        lasts = dict(zip(numbers, records, strict=True))
        firsts = dict(zip(reversed(numbers), reversed(records), strict=True))
        return [Span(n, identity(n), firsts[n].offset() or 0, lasts[n].offset() or 0) for n in lasts]

    def _is_suspected(self, spans: Sequence[Span]) -> bool:
        """Tell whether an order is about some of them; one that lies behind is done."""
        suspected = False
        for span in spans:
            order = self._orders.get(span.number)
            if order is None:
                continue
            if order.span.identity != span.identity or span.first > order.span.last:
                del self._orders[span.number]
            elif span.last >= order.span.first:
                suspected = True
        return suspected

    def _one_by_one(
        self, encoder: RowEncoder, records: Sequence[Record], values: Sequence[bytes | None], rows: list[bytes]
    ) -> Encoded:
        around, layouts = self._around, list[int]()
        refused: list[tuple[int, Refusal]] = []
        around.settle()
        for index, (record, value) in enumerate(zip(records, values, strict=True)):
            around.beat()
            verdict = self._verdict(record)
            if verdict is not None:
                refused.append((index, verdict))
                continue
            around.place.enter(At.RECORD, self._rank, [self._span(record)])
            made: list[bytes] = []
            encoded = encoder.encode_carefully([record], [value], made)
            around.place.leave()
            rows += made
            refused += [(index, why) for _, why in encoded.refused]
            layouts += encoded.layouts or [0] * len(made)
        return Encoded(refused, layouts if any(layouts) else None)

    def _span(self, record: Record) -> Span:
        number, offset = record.partition() or 0, record.offset() or 0
        return Span(number, self._identity(number), offset, offset)

    def _identity(self, number: int) -> int:
        """Return what tells the partition's topic from another of its name, as a number."""
        return crc32(self._around.topic_ids.get(Partition(self._topic, number), "").encode())

    def _order(self, record: Record) -> Order | None:
        order = self._orders.get(record.partition() or 0)
        return None if order is None or order.span.identity != self._identity(order.span.number) else order

    def _verdict(self, record: Record) -> Refusal | None:
        order = self._order(record)
        return None if order is None else order.condemned.get(record.offset() or 0)

    def _is_bare(self, record: Record) -> bool:
        order = self._order(record)
        return order is not None and record.offset() in order.bare


class Remains:
    """What may be said of a record that must not be looked into."""

    def __init__(self, record: Record) -> None:
        self._at = record.topic(), record.partition(), record.offset()

    def topic(self) -> str | None:
        """Return the topic it came from."""
        return self._at[0]

    def partition(self) -> int | None:
        """Return the partition's number."""
        return self._at[1]

    def offset(self) -> int | None:
        """Return the offset in the partition."""
        return self._at[2]

    def timestamp(self) -> tuple[int, int]:
        """Return that there is none."""
        return 0, -1

    def key(self) -> bytes | None:
        """Return that there is none."""

    def value(self) -> bytes | None:
        """Return that there is none."""

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        """Return that there are none."""
