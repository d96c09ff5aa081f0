"""`GET /openapi.json` and `GET /docs`: true to the table and to the answers, and usable from a browser.

Over plain HTTP; tests/browser holds the same page to its promises in a real browser.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from jsonschema import Draft202012Validator

from tests.fix_daemon import wait_until
from tests.fix_http import Client, MakeGateway

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fix_kafka import MakeTopic

TOKEN = "docs-9f86d081884c7d65"
TABLE = """
CREATE TABLE public.orders (
    id bigint NOT NULL, "<b>who</b>" varchar(40), amount numeric(10,2) NOT NULL, at timestamptz,
    CHECK (amount < 99999999)
)
"""


@pytest.fixture
def client(database: str, make_topic: MakeTopic, make_gateway: MakeGateway, tmp_path: Path) -> Client:
    """A gateway with a route whose name must be quoted, and a token."""
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(TABLE.encode())
    tokens = tmp_path / "tokens"
    tokens.touch(0o600)
    tokens.write_text(TOKEN)
    route = {"name": "the orders", "topic": make_topic(1), "table": "public.orders", "key_field": "id"}
    _, client = make_gateway(route, gateway={"tokens_file": str(tokens), "max_body_bytes": 100_000})
    wait_until(lambda: "id" in schema_of(document(client)), 10, "the table's columns")
    return client


def document(client: Client) -> Any:
    return client.request("GET", "/openapi.json").json


def schema_of(described: Any) -> dict[str, Any]:
    properties: dict[str, Any] = described["components"]["schemas"]["record-0"].get("properties", {})
    return properties


def test_document_follows_the_table(client: Client, database: str) -> None:
    described = document(client)
    assert list(schema_of(described)) == ["id", "<b>who</b>", "amount", "at"]
    assert list(described["paths"]) == ["/v1/the%20orders"]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("ALTER TABLE public.orders ADD COLUMN note text")
    wait_until(lambda: "note" in schema_of(document(client)), 30, "the new column")


def test_answers_are_as_described(client: Client) -> None:
    described = document(client)
    [(path, methods)] = described["paths"].items()
    content = methods["post"]["requestBody"]["content"]
    example = json.dumps(content["application/json"]["examples"]["one"]["value"]).encode()
    examples = json.dumps(content["application/json"]["examples"]["many"]["value"]).encode()
    lines = content["application/x-ndjson"]["examples"]["lines"]["value"].encode()
    dead = b'{"id":1,"amount":99999999}'
    good = {"authorization": f"Bearer {TOKEN}"}
    for query, body, headers, status in (
        ("", example, good, 202),
        ("", examples, good, 202),
        ("", lines, good | {"content_type": "application/x-ndjson"}, 202),
        ("?ack=db", example, good, 200),
        ("?ack=db", b"[%b,%b]" % (example, dead), good, 422),
        ("", b'[{"id":1},{"id":"x","amount":1}]', good, 422),
        ("", b"{", good, 400),
        ("?ack=maybe", example, good, 400),
        ("", example, {}, 401),
        ("", b" " * 100_001, good, 413),
        ("", example, good | {"content_type": "text/plain"}, 415),
        ("", example, good | {"content_encoding": "br"}, 415),
    ):
        reply = client.post(path + query, body, **headers)
        assert reply.status == status
        response = methods["post"]["responses"][str(status)]
        if "$ref" in response:
            response = described["components"]["responses"][response["$ref"].rpartition("/")[2]]
        [(kind, media)] = response["content"].items()
        assert reply.headers["content-type"] == kind
        # The references are from the document's root.
        schema = {**media["schema"], "components": described["components"]}
        Draft202012Validator(schema).validate(reply.json)
        members = {*schema.get("properties", {}), "type", "title", "status", "detail"}
        assert status < 300 or reply.json.keys() <= members, "no member that is not described"
        for name in response.get("headers", {}):
            assert status == 415 or name.lower() in reply.headers


def test_page_stands_alone_and_nothing_else_runs_in_it(client: Client) -> None:
    reply = client.request("GET", "/docs")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = reply.body.decode()
    [script] = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    policy = dict(part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": _hash(script),
        "style-src": _hash(style),
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert page.count("<script") == page.count("<style") == 1
    assert not re.search(r"\b(style|on\w+)=|https?://|\bsrc=|@import|url\(|innerHTML|eval\(", page)


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_pages_can_be_kept_and_only_read(client: Client, path: str) -> None:
    whole = client.request("GET", path)
    assert whole.headers["cache-control"] == "no-cache"
    head = client.request("HEAD", path)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(whole.body)))
    again = client.request("GET", path, if_none_match=whole.headers["etag"])
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", whole.headers["etag"])
    assert client.request("GET", path, if_none_match='"other"').status == 200
    refused = client.post(path, b"{}")
    assert (refused.status, refused.headers["allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET")
