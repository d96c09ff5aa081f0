"""Suspicions: which records workers die of, from where they were when they did.

Nothing catches an endless loop or a crash in native code: the worker is replaced, reads the same records again, and
dies again. So when DEATHS of them have died at the same offsets, the next one is ordered to take those one by one, in
the careful way, with nothing else under way; the record at which it dies then is condemned: the next worker makes a
dead letter of it without looking into it. The supervisor keeps this, notes each end of a worker here, and forks the
next one, which finds its orders in what it has inherited. No I/O; a restart of the daemon forgets it.

A worker says which records it is at only when one has died without saying it: that costs time, and hardly ever matters.

What counts is the end of a worker that was encoding, whatever ended it: the records were read again each time. To be
condemned takes more: a signal of the worker's own making, or silence, at that very record. One killed from outside
(the kernel's killer among them) or ended by itself must have been there DEATHS times; and a second record of the same
offsets twice, since it may be another thread that crashes, wherever this one is: one record too many is enough.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from dataclasses import dataclass, field
from signal import SIGKILL, Signals
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.model import Refusal
from kbatchd.stats.place import At, Found, Span

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

#: So many at the same offsets are no accident.
DEATHS = 3
#: Of a partition so many are remembered: two records that kill may take turns.
_REMEMBERED = 4 * DEATHS


class End(NamedTuple):
    """How a process ended."""

    exit_code: int
    #: How long it had not beaten, if that is why it was ended.
    silent_seconds: float | None = None

    @property
    def is_its_own(self) -> bool:
        """Whether nobody else has ended it without a reason in it."""
        return self.silent_seconds is not None or (self.exit_code < 0 and self.exit_code != -SIGKILL)

    def refusal(self, doing: str) -> Refusal:
        """Return what the dead letter says."""
        if self.silent_seconds is not None:
            return Refusal("silent", None, f"a worker that {doing} fell silent for {self.silent_seconds:.0f} s")
        how = f"ended with {self.exit_code}" if self.exit_code >= 0 else f"died of {_name(-self.exit_code)}"
        return Refusal("crashed", None, f"a worker that {doing} {how}")


def _name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


@dataclass(slots=True)
class Order:
    """Take these offsets of a partition one by one, and do not look into the condemned ones."""

    route: str
    span: Span
    condemned: dict[int, Refusal] = field(default_factory=dict)
    #: Of those, whose dead letter has killed as well: nothing of the record goes into it.
    bare: set[int] = field(default_factory=set)


class Heed(NamedTuple):
    """What a worker has to heed, whichever partitions it gets."""

    orders: Sequence[Order] = ()
    #: Routes of which a worker has died without a word of where it was.
    watched: frozenset[str] = frozenset()


NOTHING_TO_HEED = Heed()

#: A partition of a route, and of one topic of that name.
_Key = tuple[str, int, int]


class Suspicions:
    """All there are; see the module."""

    def __init__(self) -> None:
        #: By route: the deaths of those that did not say where they were.
        self._somewhere: Counter[str] = Counter()
        self._deaths: dict[_Key, deque[Span]] = {}
        self._at_record: Counter[tuple[_Key, int]] = Counter()
        #: Of records that nobody has condemned, whose dead letters were being made.
        self._at_letter: Counter[tuple[_Key, int]] = Counter()
        self._orders: dict[_Key, Order] = {}

    def heed(self) -> Heed:
        """Return what the next worker has to heed."""
        orders = list(self._orders.values())
        return Heed(orders, frozenset(self._somewhere) | {key[0] for key in (*self._deaths, *self._orders)})

    def note(self, found: Found | None, routes: Sequence[str], end: End) -> None:
        """Take note of the end of a worker, which was there; `routes` are those of the file, in its order."""
        if found is None or found.rank >= len(routes):
            return
        route = routes[found.rank]
        if not found.spans:
            self._somewhere[route] += 1
        for span in found.spans:
            key = (route, span.number, span.identity)
            match found.at:
                case At.CHUNK:
                    self._suspect(key, span)
                case At.RECORD:
                    self._at_record[key, span.first] += 1
                    if self._at_record[key, span.first] >= self._needed(key, end):
                        self._condemn(key, span.first, end.refusal("encoded it alone"))
                case At.LETTER:
                    self._suspect_letter(key, span.first, end)

    def _suspect(self, key: _Key, span: Span) -> None:
        deaths = self._deaths.setdefault(key, deque(maxlen=_REMEMBERED))
        deaths.append(span)
        same = [each for each in deaths if each.first <= span.last and span.first <= each.last]
        # One that died somewhere may have died here: it was the reason to look closer.
        if len(same) + min(1, self._somewhere[key[0]]) < DEATHS:
            return
        first, last = min(each.first for each in same), max(each.last for each in same)
        former = self._orders.get(key)
        if former is not None:
            first, last = min(first, former.span.first), max(last, former.span.last)
        about = {"route": key[0], "partition": key[1], "first": first, "last": last}
        order = Order(key[0], span._replace(first=first, last=last))
        if former is not None:
            order.condemned, order.bare = former.condemned, former.bare
        self._orders[key] = order
        what = "workers die at the same offsets, again and again; the next one takes them one by one"
        log.error(what, extra={"action": "suspected", **about})

    def _suspect_letter(self, key: _Key, offset: int, end: End) -> None:
        """Let nothing of a record go into its dead letter, where making that kills."""
        if key in self._orders and offset in self._orders[key].condemned:
            if end.is_its_own:
                self._orders[key].bare.add(offset)
            return
        self._at_letter[key, offset] += 1
        if self._at_letter[key, offset] >= DEATHS:
            self._condemn(key, offset, end.refusal("made its dead letter"))
            self._orders[key].bare.add(offset)

    def _needed(self, key: _Key, end: End) -> int:
        """Return how many deaths at one record condemn it."""
        if not end.is_its_own:
            return DEATHS
        return 2 if key in self._orders and self._orders[key].condemned else 1

    def _condemn(self, key: _Key, offset: int, refusal: Refusal) -> None:
        order = self._orders.get(key)
        if order is None:
            order = self._orders[key] = Order(key[0], Span(key[1], key[2], offset, offset))
        span = order.span
        order.span = span._replace(first=min(span.first, offset), last=max(span.last, offset))
        order.condemned[offset] = refusal
        about = {"route": key[0], "partition": key[1], "offset": offset, "code": refusal.code, "error": refusal.message}
        log.error("a record is condemned: it becomes a dead letter", extra={"action": "condemned", **about})
