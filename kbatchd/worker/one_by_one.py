"""How the records of a poll are encoded: all at once, or one by one where workers have died of some of them.

Either way the place says where we are, so that the supervisor knows when it finds us dead (stats/place.py,
stats/suspicions.py). One by one, nothing else is under way: the flusher has written all that came before, and is idle.
So what ends us then is this record, or nothing that a record can be blamed for. Used by a route's intake, in the
worker's main thread.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kbatchd.model import Encoded
from kbatchd.stats.place import At, Place, Span, identity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from kbatchd.config import Route
    from kbatchd.encode.rows import RowEncoder
    from kbatchd.model import Record, Refusal
    from kbatchd.stats.suspicions import Heed, Order

#: How long a worker says which records it is at, after one has died that did not: much longer than it takes to come
#: there again, behind all that was not flushed.
WATCH_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the worker gives: its place, and what has to be done around a record that may kill."""

    place: Place
    beat: Callable[[], None]
    #: The id that a topic has by now; "" while it is not known.
    topic_id: Callable[[str], str]
    #: Return when all that was read is in the table, or is to be read again.
    settle: Callable[[], None]


def make_encodings(routes: Iterable[Route], heed: Heed, around: Surroundings) -> dict[str, Encoding]:
    """Make what each route needs, by its name."""
    return {
        route.name: Encoding(
            rank,
            route.topic,
            around,
            [order for order in heed.orders if order.route == route.name],
            watched=route.name in heed.watched,
        )
        for rank, route in enumerate(routes)
    }


class Encoding:
    """Encodes the records of one route; see the module."""

    def __init__(
        self, rank: int, topic: str, around: Surroundings, orders: Iterable[Order] = (), *, watched: bool = False
    ) -> None:
        """Prepare; `rank` is the route's place in the file; it is `watched` where workers have died of it."""
        self._rank = rank
        self._topic = topic
        #: How long the place says which records they are.
        self._watches_until = time.monotonic() + WATCH_SECONDS if watched else None
        self._around = around
        self._orders = {order.span.number: order for order in orders}

    def encode(
        self,
        encoder: RowEncoder,
        records: Sequence[Record],
        values: Sequence[bytes | None],
        rows: list[bytes],
    ) -> Encoded:
        """Do as the encoder does."""
        if self._watches_until is None:
            # Nobody has died here: which records they are is worth no time yet (10 to 50 ns a record).
            self._around.place.enter(At.CHUNK, self._rank)
        else:
            spans = self._spans(records)
            if self._orders and self._is_suspected(spans):
                return self._one_by_one(encoder, records, values, rows)
            self._around.place.enter(At.CHUNK, self._rank, spans)
            if not self._orders and time.monotonic() > self._watches_until:
                self._watches_until = None
        encoded = encoder.encode(records, values, rows)
        self._around.place.leave()
        return encoded

    def remains(self, records: Sequence[Record]) -> Sequence[Record]:
        """Return the records as dead letters may have them: of some no more than that they were there."""
        if not self._orders:
            return records
        return [Remains(record) if self._is_bare(record) else record for record in records]

    def see_off(self, records: Sequence[Record]) -> None:
        """Wait until the dead letters of condemned records are written: that may kill as well."""
        condemned = list(filter(self._verdict, records)) if self._orders else []
        if condemned:
            self._around.place.enter(At.LETTER, self._rank, [self._span(record) for record in condemned])
            self._around.settle()
            self._around.place.leave()

    def _spans(self, records: Sequence[Record]) -> list[Span]:
        """Return the offsets of each partition among the records."""
        identity = self._identity()
        numbers = [record.partition() or 0 for record in records]
        lasts = dict(zip(numbers, records, strict=True))
        firsts = dict(zip(reversed(numbers), reversed(records), strict=True))
        return [Span(n, identity, firsts[n].offset() or 0, lasts[n].offset() or 0) for n in lasts]

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
        return Span(number, self._identity(), offset, offset)

    def _identity(self) -> int:
        return identity_of(self._around.topic_id(self._topic))

    def _order(self, record: Record) -> Order | None:
        order = self._orders.get(record.partition() or 0)
        return None if order is None or order.span.identity != self._identity() else order

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

    def leader_epoch(self) -> int | None:
        """Return that it is not known."""

    def key(self) -> bytes | None:
        """Return that there is none."""

    def value(self) -> bytes | None:
        """Return that there is none."""

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        """Return that there are none."""
