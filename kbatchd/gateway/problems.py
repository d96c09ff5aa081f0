"""What the gateway answers when it cannot say yes: problem documents, as RFC 9457 has them.

Raised anywhere in a request's way, written in one place (app.py). The types are relative references: what identifies a
problem to a program is the last word, and it never changes.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping

Answer = tuple[int, list[tuple[bytes, bytes]], bytes]


class Problem(Exception):
    """A request that is answered with an error; `members` are the document's own, `headers` go with it."""

    def __init__(
        self,
        status: HTTPStatus,
        kind: str,
        detail: str,
        members: Mapping[str, object] | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self._document = {
            "type": f"/problems/{kind}",
            "title": kind.replace("-", " ").capitalize(),
            "status": int(status),
            "detail": detail,
            **(members or {}),
        }
        self._headers = headers or {}

    def answer(self) -> Answer:
        """Return status, headers and body."""
        body = orjson.dumps(self._document)
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", b"%d" % len(body)),
            *self._headers.items(),
        ]
        return int(self.status), headers, body
