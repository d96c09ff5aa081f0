"""The monitor's application: a handful of pages to GET.

Runs on the monitor's event loop. What takes long is made once a second at most, however many clients ask, and a flood
of requests has to wait: who waits takes no time from the workers on this host, who is refused asks again.
"""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64encode
from hashlib import sha256
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from kbatchd.monitor.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from kbatchd.gateway.exchange import Exchange
    from kbatchd.monitor.history import History
    from kbatchd.monitor.state import Daemon
    from kbatchd.monitor.watcher import View

    #: Status, content type and body.
    Page = tuple[int, bytes, bytes]

#: An answer is made anew when it is older than this.
KEEP_SECONDS = 1.0

#: Requests beyond these are answered in their turn. A page that is open asks once a second, Prometheus more seldom. 500
#: connections without a pause took a fifth from a worker on the same two cores when they were answered as they came.
REQUESTS_PER_SECOND = 100
BURST = 50

_JSON = b"application/json"
_TEXT = b"text/plain; charset=utf-8"
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)

_HEADERS = [
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


class App:
    """Answers requests from what is known."""

    def __init__(self, daemon: Daemon, view: Callable[[], View], history: History) -> None:
        self._daemon = daemon
        self._view = view
        self._history = history
        self._registry = CollectorRegistry()
        self._registry.register(Metrics(daemon, view))
        self._page = Path(__file__).with_name("page.html").read_bytes()
        self._policy = _policy(self._page)
        self._kept: dict[object, tuple[float, Page]] = {}
        #: When the next request's turn would be, if they came at the rate that is answered without a wait.
        self._turn = 0.0
        assert daemon.config.monitor is not None
        self._is_local = _is_loopback(daemon.config.monitor.listen.rpartition(":")[0].strip("[]"))
        self._makers: dict[str, Callable[[], Page]] = {
            "/status.json": self._status,
            "/health/live": lambda: (200, _JSON, b'{"live":true}'),
            "/health/ready": self._ready,
            "/day.json": lambda: _json(self._history.day()),
        }

    def answer_now(self, exchange: Exchange) -> bool:
        """Answer a probe, whose patience is short, and who answers it too late is restarted; all else has its turn."""
        if exchange.path.startswith("/health/"):
            self._answer(exchange)
            return True
        return False

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request."""
        await self._wait_for_turn()
        self._answer(exchange)

    def _answer(self, exchange: Exchange) -> None:
        status, kind, body = self._page_for(exchange)
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), *_HEADERS]
        if kind.startswith(b"text/html"):
            headers.append((b"content-security-policy", self._policy))
        if status == 405:  # noqa: PLR2004
            headers.append((b"allow", b"GET, HEAD"))
        exchange.answer((status, headers, body))

    async def _wait_for_turn(self) -> None:
        now = time.monotonic()
        self._turn = max(self._turn, now - BURST / REQUESTS_PER_SECOND) + 1 / REQUESTS_PER_SECOND
        if self._turn > now:
            await asyncio.sleep(self._turn - now)

    def _page_for(self, exchange: Exchange) -> Page:
        headers = exchange.fields
        if exchange.method not in {"GET", "HEAD"}:
            return 405, _TEXT, b"only GET\n"
        if self._is_local and not _names_loopback(headers.get(b"host", b"localhost")):
            # A page of another site may have had its own name resolved to this address (DNS rebinding).
            return 403, _TEXT, b"ask for localhost: the monitor listens on this host only\n"
        path = exchange.path
        if path == "/":
            return 200, b"text/html; charset=utf-8", self._page
        if path == "/metrics":
            encode, kind = choose_encoder(headers.get(b"accept", b"").decode("latin-1"))
            return self._kept_answer(kind, lambda: (200, kind.encode(), encode(self._registry)))
        if path == "/history.json":
            return _json(self._history.recent(_since(exchange.query)))
        maker = self._makers.get(path)
        return self._kept_answer(path, maker) if maker else (404, _TEXT, b"there is no such page\n")

    def _kept_answer(self, key: object, make: Callable[[], Page]) -> Page:
        now = time.monotonic()
        made_at, answer = self._kept.get(key, (0.0, None))
        if answer is None or now - made_at > KEEP_SECONDS:
            answer = make()
            self._kept[key] = now, answer
        return answer

    def _status(self) -> Page:
        return _json(self._daemon.status(self._view()))

    def _ready(self) -> Page:
        readiness = self._daemon.readiness(self._view())
        body = {"ready": readiness.ready, "reasons": readiness.reasons, "warnings": readiness.warnings}
        return 200 if readiness.ready else 503, _JSON, orjson.dumps(body)


def _json(document: object) -> Page:
    return 200, _JSON, orjson.dumps(document)


def _since(query: bytes) -> float:
    try:
        return float(parse_qs(query.decode("latin-1")).get("since", ["0"])[0])
    except ValueError:
        return 0.0


def _policy(page: bytes) -> bytes:
    """Allow the page what is in it, and requests to where it came from."""
    hashes = {name: b"'sha256-%b'" % b64encode(sha256(text).digest()) for name, text in _INLINE.findall(page)}
    return (
        b"default-src 'none'; script-src %b; style-src %b; connect-src 'self'; img-src data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'" % (hashes[b"script"], hashes[b"style"])
    )


def _names_loopback(host: bytes) -> bool:
    name = host.decode("latin-1")
    return _is_loopback(name.rpartition(":")[0].strip("[]") or name) or _is_loopback(name.strip("[]"))


def _is_loopback(name: str) -> bool:
    if name.lower() == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
