"""The gateway's page at /docs in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.acceptance.test_docs_page import TOKEN, client
from tests.fix_browser import keep_picture
from tests.fix_http import Client

if TYPE_CHECKING:
    from tests.fix_browser import Browser
    from tests.fix_http import MakeGateway
    from tests.fix_kafka import MakeTopic

__all__ = ["client"]

pytestmark = pytest.mark.browser

REQUESTS = Path(__file__).parents[2] / "sql/examples/requests.sql"


@pytest.fixture
def page(client: Client, browser: Browser) -> Browser:
    """The page, once it has read openapi.json."""
    browser.open(f"http://127.0.0.1:{client.port}/docs")
    browser.wait_for("document.querySelector('form')")
    return browser


def test_record_is_sent_from_the_page(page: Browser, database: str) -> None:
    # Without a token
    page.run("document.querySelector('form').requestSubmit()")
    assert "401" in page.wait_for("document.querySelector('.answer').innerText")
    # with one,
    page.run(f"token.value = '{TOKEN}'; token.dispatchEvent(new Event('input'))")
    page.run("document.querySelector('form input[type=checkbox]').click()")
    page.run("document.querySelector('form').requestSubmit()")
    answer = page.wait_for("document.querySelector('.good') && document.querySelector('.answer').innerText")
    assert answer.startswith("200 OK")
    assert '"offset": 0' in answer
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT count(*) FROM public.orders").fetchone() == (1,)
    # and with one that does not fit.
    page.run('document.querySelector(\'textarea\').value = \'{"id":"x","amount":1}\'')
    page.run("document.querySelector('form').requestSubmit()")
    answer = page.wait_for("document.querySelector('.bad') && document.querySelector('.answer').innerText")
    assert answer.startswith("422 Unprocessable")
    assert "Records do not fit the table" in answer
    assert '"column": "id"' in answer
    assert '"field": "id"' in answer
    assert page.run("faults") == []


def test_picture(browser: Browser, database: str, make_topic: MakeTopic, make_gateway: MakeGateway) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(REQUESTS.read_bytes())
    route = {"name": "requests", "topic": make_topic(4, "requests"), "table": "public.requests", "key_field": "user_id"}
    _, client = make_gateway(route)
    browser.screen(1100, 1180)
    browser.open(f"http://127.0.0.1:{client.port}/docs")
    browser.wait_for("document.querySelector('form')")
    browser.run("document.querySelector('form').requestSubmit()")
    answer = browser.wait_for("document.querySelector('.good') && document.querySelector('.answer').innerText")
    assert answer.startswith("202 Accepted")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")
    assert browser.run("violations") == []
    keep_picture("gateway-docs", browser.shoot())


MAPPED = """
CREATE TABLE public.mapped (
    id bigint NOT NULL, city text NOT NULL, first_sku text, state text, created_at timestamptz, details jsonb,
    region text, tenant text, trace text, sent_at timestamptz, op text, raw jsonb, dotted text NOT NULL, extra jsonb,
    amount numeric(10,2), span int4range, of_customer jsonb
)
"""

#: One of each kind: nested, in an array, in an envelope, of a dotted name, no field at all.
COLUMNS = {
    "city": "customer.address.city",
    "of_customer": "customer",
    "first_sku": "items[1].sku",
    "state": {"field": "status", "default": "new"},
    "created_at": {"field": "ts", "unit": "ms"},
    "details": {"field": "details", "json_text": True},
    "region": {"constant": "eu"},
    "tenant": {"source": "key"},
    "trace": {"source": "header:traceparent"},
    "sent_at": {"source": "timestamp"},
    "op": {"source": "value", "field": "op"},
    "raw": {"source": "value"},
    "dotted": '"a.b".c',
}


def test_page_shows_every_kind_of_mapping(
    browser: Browser, database: str, make_topic: MakeTopic, make_gateway: MakeGateway
) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(MAPPED.encode())
        connection.execute("CREATE TABLE public.raw (value jsonb)")
        connection.execute("CREATE TABLE public.closed (id bigint NOT NULL PRIMARY KEY, city text)")
    mapped = {"table": "public.mapped", "columns": COLUMNS}
    routes: list[dict[str, object]] = [
        {"name": "enveloped", **mapped, "value_field": "payload.after", "unknown_fields": "extra"},
        {"name": "bare", **mapped, "on_missing": "default", "key_field": "customer_id", "omit": ["extra"]},
        {"name": "raw", "table": "public.raw", "format": "raw"},
        {"name": "closed", "table": "public.closed", "unknown_fields": "reject", "mode": "upsert", "key": ["id"],
         "columns": {"city": "customer.city"}},
        {"name": "inferred", "table": "public.closed", "columns": {"city": "customer.city", "id": "customer.id"}},
    ]  # fmt: skip
    _, client = make_gateway(*({"topic": make_topic(1), **route} for route in routes), gateway={"workers": 1})
    browser.open(f"http://127.0.0.1:{client.port}/docs")
    browser.wait_for("document.querySelectorAll('form').length == 5")
    shown = {
        path: browser.run(
            f"[...document.querySelectorAll('section[id=\"{path}\"] tr')].map(row => row.innerText.split('\\t'))"
        )
        for path in (f"/v1/{route['name']}" for route in routes)
    }
    names = {path: {row[0]: row[2].strip() for row in rows} for path, rows in shown.items()}
    fields = names["/v1/enveloped"]
    assert {name for name, needed in fields.items() if needed} == {
        "payload.after.id", "payload.after.customer", "payload.after.customer.address.city", 'payload.after."a.b".c',
    }  # fmt: skip
    assert fields.keys() >= {"payload.after.items[1].sku", "payload.after.status", "payload.after.ts", "op"}
    assert names["/v1/bare"].keys() >= {"id", "customer.address.city", "items[1].sku", '"a.b".c', "customer_id"}
    assert names["/v1/closed"] == {"id": "needed", "customer.city": ""}
    assert names["/v1/inferred"] == {"customer.id": "needed", "customer.city": ""}
    assert all(row[1] for rows in shown.values() for row in rows), "each has its type"
    # Each example is taken.
    browser.run("document.querySelectorAll('form').forEach(form => form.requestSubmit())")
    browser.wait_for("document.querySelectorAll('.answer p').length >= 5")
    answers = browser.run("[...document.querySelectorAll('.answer')].map(answer => answer.innerText)")
    assert [answer[:3] for answer in answers] == ["202"] * 5, answers
    assert browser.run("faults") == []
    assert browser.run("violations") == []


def test_page_shows_the_table_and_a_command(page: Browser, client: Client, database: str) -> None:
    rows = page.run("[...document.querySelectorAll('section tr')].map(row => row.innerText)")
    assert rows[:4] == [
        "id\tint8, as 1, not 1.0\tneeded",
        "<b>who</b>\tvarchar(40)\t",
        "amount\tnumeric(10,2), every digit counts, in a string too\tneeded",
        "at\ttimestamptz, to the microsecond\t",
    ]
    assert any(row.startswith("504\tnot-acknowledged\t") for row in rows)
    # Whatever stands in the fields, a shell sends it as it is.
    page.run("token.value = 'x'; token.dispatchEvent(new Event('input'))")
    page.run('document.querySelector(\'textarea\').value = \'{"id":7,"amount":"1","<b>who</b>":"it\\\'s $HOME"}\'')
    page.run("document.querySelector('form input').value = 'the $KEY'")
    page.run("document.querySelector('form input[type=checkbox]').click()")
    command = page.run("document.querySelector('.curl').textContent")
    assert TOKEN not in command
    done = subprocess.run(["bash", "-c", command], env={**os.environ, "TOKEN": TOKEN}, capture_output=True, check=False)
    assert json.loads(done.stdout)["offset"] == 0, done
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT * FROM public.orders").fetchall()[0][1] == "it's $HOME"
    # The policy holds: nothing of the page was refused, and what is added to it is.
    assert page.run("violations") == []
    page.run("document.body.append(Object.assign(document.createElement('script'), {text: 'window.added = 1'}))")
    page.run(f"fetch('http://localhost:{client.port}/docs').catch(() => 0)")
    page.wait_for("violations.length == 2")
    assert page.run("window.added") is None
