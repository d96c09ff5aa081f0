"""What the charts show: the last 15 minutes, sampled into memory, and the last day, from the ledger.

The watcher's thread adds, the event loop reads copies; one lock, held for list operations only. What was before
the monitor began comes from the ledger as well, so a restart leaves no hole in the rates; the lag of that time is
unknown.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from kbatchd.schema.overview import Bin

SAMPLE_SECONDS = 2.0
RECENT_SECONDS = 900.0
DAY_SECONDS = 86_400.0
DAY_BIN_SECONDS = 300.0


class Sample(NamedTuple):
    """Two seconds: rows a second and lag, by route; None: not known."""

    at: float
    rates: Mapping[str, float]
    lags: Mapping[str, int] | None


class History:
    """Samples and bins, by route; see the module."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[Sample] = deque(maxlen=round(RECENT_SECONDS / SAMPLE_SECONDS))
        self._day: dict[tuple[float, str], Bin] = {}
        self._day_lags: dict[tuple[float, str], int] = {}
        self._last: tuple[float, Mapping[str, int]] | None = None
        #: From where on the ledger must be read again: the beginning of the last bin; 0 before the first look.
        self.day_known_to = 0.0

    def begin(self, bins: Iterable[Bin]) -> None:
        """Take what was committed before the first sample."""
        now = time.time()
        rates: dict[float, dict[str, float]] = {}
        at = (now - RECENT_SECONDS) // SAMPLE_SECONDS * SAMPLE_SECONDS
        while at < now - SAMPLE_SECONDS:
            rates[at] = {}
            at += SAMPLE_SECONDS
        for each in bins:
            if each.at in rates:
                rates[each.at][each.route] = each.rows / SAMPLE_SECONDS
        with self._lock:
            self._recent.extendleft(Sample(at, rates[at], None) for at in sorted(rates, reverse=True))

    def add(self, rows: Mapping[str, int], lags: Mapping[str, int] | None, now: float) -> None:
        """Take the routes' counters and lags as they are now."""
        now = round(now, 2)  # as it is told: who has it asks for what is after it
        last, self._last = self._last, (now, rows)
        if last is None or now <= last[0]:
            return
        rates = {name: max(0, count - last[1].get(name, 0)) / (now - last[0]) for name, count in rows.items()}
        day_bin = now // DAY_BIN_SECONDS * DAY_BIN_SECONDS
        with self._lock:
            self._recent.append(Sample(now, rates, lags))
            for name, lag in (lags or {}).items():
                self._day_lags[day_bin, name] = max(lag, self._day_lags.get((day_bin, name), 0))

    def add_day(self, bins: Iterable[Bin], now: float) -> None:
        """Take bins of the ledger; the last one is read again, as it is not over."""
        with self._lock:
            self._day.update({(each.at, each.route): each for each in bins})
            self.day_known_to = now // DAY_BIN_SECONDS * DAY_BIN_SECONDS
            for known in (self._day, self._day_lags):
                for key in [key for key in known if key[0] < now - DAY_SECONDS - DAY_BIN_SECONDS]:
                    del known[key]

    def recent(self, since: float) -> list[dict[str, Any]]:
        """Return the samples after a time, for JSON."""
        with self._lock:
            return [
                {"at": at, "rates": {name: round(rate, 1) for name, rate in rates.items()}, "lags": lags}
                for at, rates, lags in self._recent
                if at > since
            ]

    def day(self) -> list[dict[str, Any]]:
        """Return the bins of the last day, for JSON: rows, dead letters, the slowest batch; the highest lag seen."""
        with self._lock:
            keys = sorted(self._day.keys() | self._day_lags.keys())
            return [
                {
                    "at": at,
                    "route": route,
                    "rows": each.rows if (each := self._day.get((at, route))) else 0,
                    "dead_letters": each.dead_letters if each else 0,
                    "slowest_seconds": round(each.slowest_seconds, 3) if each else None,
                    "lag": self._day_lags.get((at, route)),
                }
                for at, route in keys
            ]
