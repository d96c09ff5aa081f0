"""What the gateway answers to GET: its description for programs, and a page for people that reads it.

The page is one file without any other host; its policy names the hashes of its own script and style, so that nothing
else runs in it. Answers are made again when the tables change, on a gateway's event loop; no I/O but one read of a file
of the package.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kbatchd import __version__
from kbatchd.gateway import openapi
from kbatchd.gateway.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kbatchd.config import Gateway, Route
    from kbatchd.door.tables import Tables
    from kbatchd.gateway.problems import Answer

#: Scripts and styles of the page, whose text the policy must name.
_INLINE: Final = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


def build(routes: Sequence[Route], tables: Tables, gateway: Gateway, *, with_tokens: bool) -> dict[str, Answer]:
    """Return the answers by path."""
    document = openapi.document(routes, tables, gateway, __version__, with_tokens=with_tokens)
    docs = Path(__file__).with_name("docs.html").read_bytes()
    return {
        "/openapi.json": _answer(document, b"application/json"),
        "/docs": _answer(docs, b"text/html; charset=utf-8", (b"content-security-policy", _policy(docs))),
    }


def page(pages: Mapping[str, Answer], path: str, method: str, headers: Mapping[bytes, bytes]) -> Answer:
    """Return one of the answers, or that it is as the client has it; raise the Problem of a path that has none."""
    found = pages.get(path)
    if found is None:
        detail = "there is no such route or page: there is POST /v1/{route}, and GET /docs names the routes"
        raise Problem(HTTPStatus.NOT_FOUND, "not-found", detail)
    if method not in {"GET", "HEAD"}:
        raise Problem(
            HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "it can be read only", headers={b"allow": b"GET"}
        )
    if (b"etag", headers.get(b"if-none-match")) in found[1]:
        return 304, [(b"etag", headers[b"if-none-match"])], b""
    return found


def _answer(body: bytes, content_type: bytes, *more: tuple[bytes, bytes]) -> Answer:
    headers = [
        (b"content-type", content_type),
        (b"content-length", b"%d" % len(body)),
        (b"etag", b'"%b"' % sha256(body).hexdigest()[:32].encode()),
        # Kept, but asked for each time: the tables may have changed.
        (b"cache-control", b"no-cache"),
        (b"x-content-type-options", b"nosniff"),
        *more,
    ]
    return 200, headers, body


def _policy(page: bytes) -> bytes:
    """Allow the page what is in it, and requests to where it came from."""
    hashes = {name: b"'sha256-%b'" % b64encode(sha256(text).digest()) for name, text in _INLINE.findall(page)}
    return (
        b"default-src 'none'; script-src %b; style-src %b; connect-src 'self'; img-src data:; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'" % (hashes[b"script"], hashes[b"style"])
    )
