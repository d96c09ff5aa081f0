"""What a page of another origin sends to the gateway, in a real browser: none of it is taken."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from tests.fix_load import read_topic

if TYPE_CHECKING:
    from collections.abc import Iterator

    from kbatchd.devstack.kafka import GivenKafka, Kafka
    from tests.fix_browser import Browser
    from tests.fix_http import Client

pytestmark = pytest.mark.browser

RECORD = '{"id":1}'

#: Each is a request that needs no leave (no preflight), whatever page sends it.
SENDING = {
    "bytes": "fetch(url, {method: 'POST', mode: 'no-cors', body: new TextEncoder().encode(record)})",
    "an untyped blob": "fetch(url, {method: 'POST', mode: 'no-cors', body: new Blob([record])})",
    "a text": "fetch(url, {method: 'POST', mode: 'no-cors', body: record})",
    "without a referrer": "fetch(url, {method: 'POST', mode: 'no-cors', referrerPolicy: 'no-referrer', "
    "body: new Blob([record])})",
    "a beacon": "new Promise(done => { new PerformanceObserver(list => list.getEntriesByName(url).length && done())"
    ".observe({type: 'resource'}); navigator.sendBeacon(url, new Blob([record])) })",
    "a form": "new Promise(done => { const frame = Object.assign(document.createElement('iframe'), {name: 'to'}); "
    "document.body.append(frame); const form = Object.assign(document.createElement('form'), {action: url, "
    "method: 'post', enctype: 'text/plain', target: 'to'}); form.append(Object.assign(document.createElement('input'), "
    "{name: record.slice(0, -1) + ',\"x\":\"', value: '\"}'})); document.body.append(form); "
    "frame.onload = () => done(); form.submit() })",
}


class _Page(BaseHTTPRequestHandler):
    """An empty page."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><title>elsewhere</title><body>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def elsewhere() -> Iterator[str]:
    """The address of another site's page."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def send(browser: Browser, url: str, how: str) -> None:
    browser.run(
        f"(async () => {{ const url = {json.dumps(url)}, record = {json.dumps(RECORD)}; "
        f"try {{ await {SENDING[how]} }} catch {{ /* refused by the browser itself */ }} }})()"
    )


def test_a_page_from_elsewhere_sends_nothing(
    browser: Browser,
    elsewhere: str,
    orders: Client,
    orders_topic: str,
    kafka: Kafka | GivenKafka,
    subtests: pytest.Subtests,
) -> None:
    url = f"http://127.0.0.1:{orders.port}/v1/orders"
    rebound = f"http://attacker.rebound.example:{orders.port}/docs"
    # Another port of this host, another name of it, and a name that has been resolved to it: then it is one origin.
    for page in (elsewhere, elsewhere.replace("127.0.0.1", "localhost"), rebound):
        browser.open(page)
        for how in SENDING:
            with subtests.test(page=page, how=how):
                send(browser, page.replace("/docs", "/v1/orders") if page == rebound else url, how)
                assert not read_topic(kafka.bootstrap_servers, orders_topic)
    # The same from the gateway's own page.
    browser.open(f"http://127.0.0.1:{orders.port}/docs")
    send(browser, url, "an untyped blob")
    assert len(read_topic(kafka.bootstrap_servers, orders_topic)) == 1
