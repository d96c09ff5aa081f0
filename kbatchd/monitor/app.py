"""The monitor's application: a handful of pages to GET.

Runs on the monitor's event loop. What takes long is made once a second at most, however many clients ask, and a flood
of requests has to wait: a client that waits takes no time from the workers on this host, a refused one asks again.
"""

from __future__ import annotations

import asyncio
import re
import time
from base64 import b64encode
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import orjson
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from kbatchd.config import host_and_port
from kbatchd.gateway.origins import Origins
from kbatchd.monitor.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from kbatchd.gateway.exchange import Exchange
    from kbatchd.monitor.history import History
    from kbatchd.monitor.state import Daemon
    from kbatchd.monitor.watcher import View

    #: Status, content type and body.
    Page = tuple[int, bytes, bytes]

#: An answer is made again when it is older than this.
KEEP_SECONDS = 1.0

#: Requests beyond these are answered in their turn. A page that is open asks once a second, Prometheus more seldom. 500
#: connections without a pause took a fifth from a worker on the same two cores when they were answered as they came.
REQUESTS_PER_SECOND = 100
BURST = 50

_JSON = b"application/json"
_TEXT = b"text/plain; charset=utf-8"
_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)

#: OpenMetrics is taken, 1.0.0 or later.
_OPENMETRICS = re.compile(rb"(?:^|,)[ \t]*application/openmetrics-text[ \t]*(?=[;,]|$)(?![^,]*version=0)")

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
        self._origins = Origins(host_and_port(daemon.config.monitor.listen)[0])
        self._makers: dict[str, Callable[[], Page]] = {
            "/status.json": self._status,
            "/health/live": self._live,
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
        headers, path = exchange.fields, exchange.path
        if exchange.method not in {"GET", "HEAD"}:
            return 405, _TEXT, b"only GET\n"
        refusal = self._refusal(headers, path)
        if refusal:
            return 403, _TEXT, refusal
        if path == "/":
            return 200, b"text/html; charset=utf-8", self._page
        if path == "/metrics":
            is_open = _OPENMETRICS.search(headers.get(b"accept", b"")) is not None
            return self._kept_answer((path, is_open), partial(self._metrics, is_open=is_open))
        if path == "/history.json":
            return _json(self._history.recent(_since(exchange.query)))
        maker = self._makers.get(path)
        return self._kept_answer(path, maker) if maker else (404, _TEXT, b"there is no such page\n")

    def _refusal(self, headers: Mapping[bytes, bytes], path: str) -> bytes:
        """Say why a web page may not have an answer: none of another origin, which may only link to ours."""
        if not self._origins.names_us(headers):
            return b"ask for localhost: the monitor listens on this host only\n"
        if path == "/" or headers.get(b"sec-fetch-mode") == b"navigate" or self._origins.may_send(headers):
            return b""
        return b"this is for the monitor's own page and for programs, not for pages of other origins\n"

    def _kept_answer(self, key: object, make: Callable[[], Page]) -> Page:
        now = time.monotonic()
        made_at, answer = self._kept.get(key, (0.0, None))
        if answer is None or now - made_at > KEEP_SECONDS:
            answer = make()
            self._kept[key] = now, answer
        return answer

    def _metrics(self, *, is_open: bool) -> Page:
        """Write the metrics in one of two forms: what a client says of versions must not make many pages of them."""
        if is_open:
            written: bytes = openmetrics.generate_latest(self._registry)  # type: ignore[no-untyped-call]
            return 200, openmetrics.CONTENT_TYPE_LATEST.encode(), written
        return 200, CONTENT_TYPE_PLAIN_0_0_4.encode(), generate_latest(self._registry)

    def _status(self) -> Page:
        return _json(self._daemon.status(self._view()))

    def _live(self) -> Page:
        fault = self._daemon.fault()
        if fault is None:
            return _json({"live": True})
        return 503, _JSON, orjson.dumps({"live": False, "reason": fault})

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
