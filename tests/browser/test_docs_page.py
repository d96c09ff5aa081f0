"""The gateway's page at /docs in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.acceptance.test_docs_page import TOKEN, client
from tests.fix_http import Client

if TYPE_CHECKING:
    from tests.fix_browser import Browser

__all__ = ["client"]

pytestmark = pytest.mark.browser


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
