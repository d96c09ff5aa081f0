"""The gateway's application: one request from its head to its answer, in ASGI's terms.

    head -> token -> body -> records -> door -> Kafka's acknowledgement -> 202
                                                  (ack=db) -> the table -> 200

Runs in a gateway process, on its event loop; never waits for a server but by `await`. Nothing is answered 2xx before
Kafka has acknowledged every record of the request, and nothing is sent before every record has passed the door.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs

import orjson

from kbatchd import bodies
from kbatchd.bodies import Malformed, Records, TooLarge
from kbatchd.door import Door
from kbatchd.errors import ConfigError
from kbatchd.gateway import answers, pages
from kbatchd.gateway.database import Outcome
from kbatchd.gateway.problems import Answer, Problem
from kbatchd.producer import KafkaAway, NotAcknowledged, QueueFull, RecordTooLarge

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from kbatchd.config import Gateway, Route
    from kbatchd.gateway.database import Database
    from kbatchd.gateway.tokens import Tokens
    from kbatchd.model import OffsetRange, Refusal
    from kbatchd.producer import Headers, RecordProducer
    from kbatchd.reached import DeadLetter
    from kbatchd.tables import Tables

    Split = Callable[[bytes, int], Records]
    Scope = dict[str, Any]
    Message = dict[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

#: From this size on a body is checked in another thread, and every packed one: that takes 14 ms a MB at worst.
LARGE_BODY_BYTES = 131_072

#: How many records that thread checks before the event loop may have its turn: 1 to 2 ms.
RECORDS_PER_TURN = 500

_JSON = b"application/json"
_NDJSON = {b"application/x-ndjson", b"application/ndjson", b"application/jsonl"}
_WAIT = re.compile(rb"(?:^|[,;])\s*wait\s*=\s*(\d{1,9})\s*(?:$|[,;])")


class ClientGone(Exception):
    """The client has hung up before its request was whole."""


@dataclass(slots=True)
class _Entry:
    """One route's place behind the door."""

    route: Route
    #: None as long as the table is not known.
    door: Door | None
    #: Why it is not.
    why: str
    #: `{"topic":"...","partition":`, the beginning of nearly all answers.
    head: bytes


class _Body(NamedTuple):
    """A request's body as it came, and what its head says of it."""

    split: Split
    encoding: str
    bytes: bytes


class App:
    """Answers requests. `tables` may change at any time; `pages` are whole answers by path, to GET."""

    def __init__(
        self, gateway: Gateway, routes: Sequence[Route], producer: RecordProducer, database: Database, tokens: Tokens
    ) -> None:
        self._gateway = gateway
        self._producer = producer
        self._database = database
        self._tokens = tokens
        #: Requests that wait for the table.
        self._waiting = 0
        self._entries = {f"/v1/{route.name}": self._entry(route) for route in routes}
        self.use_tables({})

    def _entry(self, route: Route) -> _Entry:
        door = None if self._gateway.validate_records else Door(None, route.key_field)
        head = b'{"topic":%s,"partition":' % orjson.dumps(route.topic)
        return _Entry(route, door, "its table has not been read yet", head)

    def use_tables(self, tables: Tables) -> None:
        """Check against these columns from now on, and describe them."""
        routes = [entry.route for entry in self._entries.values()]
        self.pages = pages.build(routes, tables, self._gateway, with_tokens=self._tokens.needed)
        if not self._gateway.validate_records:
            return
        for entry in self._entries.values():
            table = tables.get(entry.route.name)
            if isinstance(table, ConfigError):
                entry.door, entry.why = None, str(table)
            elif table is not None:
                entry.door = Door(table.columns, entry.route.key_field, entry.route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        headers: dict[bytes, bytes] = scope["fields"]
        try:
            status, answer_headers, body = await self._answer(scope, headers, receive)
        except Problem as problem:
            status, answer_headers, body = problem.answer()
        except ClientGone:
            return
        if self._gateway.cors_origins and b"origin" in headers:
            answer_headers = answer_headers + self._cors(headers[b"origin"])
        await send({"type": "http.response.start", "status": status, "headers": answer_headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Answer:
        path, method = scope["path"], scope["method"]
        entry = self._entries.get(path)
        if entry is None:
            return self._page(path, method, headers)
        if method != "POST":
            return self._refuse_method(method, headers, b"POST, OPTIONS")
        self._tokens.check(headers.get(b"authorization"), entry.route.name)
        query = scope["query_string"]
        wait_seconds = self._wait_seconds(query, headers) if query or b"prefer" in headers else None
        if wait_seconds is not None and self._waiting >= self._gateway.max_waiting_requests:
            detail = "too many requests wait for the table; nothing was sent"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "too-many-waiting", detail, None, answers.RETRY_AFTER)
        split = _SPLITTERS.get(headers.get(b"content-type", _JSON)) or _splitter(headers[b"content-type"])
        encoding = _encoding(headers) if b"content-encoding" in headers else ""
        body = await self._body(headers, receive)
        return await self._take(entry, _Body(split, encoding, body), headers, wait_seconds)

    def _page(self, path: str, method: str, headers: dict[bytes, bytes]) -> Answer:
        page = self.pages.get(path)
        if page is None:
            raise Problem(HTTPStatus.NOT_FOUND, "not-found", "there is POST /v1/{route}; GET /docs tells more")
        if method not in {"GET", "HEAD"}:
            raise Problem(
                HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "it can be read only", headers={b"allow": b"GET"}
            )
        if (b"etag", headers.get(b"if-none-match")) in page[1]:
            return 304, [(b"etag", headers[b"if-none-match"])], b""
        return page

    def _refuse_method(self, method: str, headers: dict[bytes, bytes], allowed: bytes) -> Answer:
        if method == "OPTIONS":
            preflight = b"access-control-request-method" in headers and self._gateway.cors_origins
            return 204, [(b"allow", allowed), *(_PREFLIGHT if preflight else ())], b""
        raise Problem(
            HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "records are sent by POST", headers={b"allow": allowed}
        )

    def _cors(self, origin: bytes) -> list[tuple[bytes, bytes]]:
        origins = self._gateway.cors_origins
        if "*" in origins:
            return [(b"access-control-allow-origin", b"*")]
        vary = [(b"vary", b"origin")]
        if origin.decode("latin-1") in origins:
            return [(b"access-control-allow-origin", origin), *vary]
        return vary

    def _wait_seconds(self, query: bytes, headers: dict[bytes, bytes]) -> float | None:
        """Tell how long the answer shall wait for the table; None: not at all."""
        longest = self._gateway.max_wait_seconds
        prefer = _WAIT.search(headers[b"prefer"]) if b"prefer" in headers else None
        if prefer:
            return min(longest, float(prefer[1]))
        if not query:
            return None
        parameters = parse_qs(query.decode("latin-1"), keep_blank_values=True)
        if parameters not in ({"ack": ["db"]}, {"ack": ["kafka"]}):
            raise Problem(HTTPStatus.BAD_REQUEST, "bad-query", "the query may say ack=db or ack=kafka, nothing else")
        return longest if parameters["ack"] == ["db"] else None

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Read the body, to its end or to one byte too many."""
        limit = self._gateway.max_body_bytes
        if int(headers.get(b"content-length", b"0")) > limit:
            raise answers.too_large(f"the body may have {limit} bytes")
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message["body"])
            size += len(message["body"])
            if size > limit:
                raise answers.too_large(f"the body may have {limit} bytes")
            if not message["more_body"]:
                return b"".join(parts)

    async def _take(
        self, entry: _Entry, body: _Body, headers: dict[bytes, bytes], wait_seconds: float | None
    ) -> Answer:
        """Check the records, send them, and answer where they are."""
        door = entry.door
        if door is None:
            detail = f"route {entry.route.name}: {entry.why}"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, "table-unknown", detail, None, answers.RETRY_AFTER)
        limits = self._gateway.max_queued_records, self._gateway.max_body_bytes
        if body.encoding or len(body.bytes) >= LARGE_BODY_BYTES:
            records = await asyncio.to_thread(_checked, door, body, *limits)
        else:
            records = _checked(door, body, *limits)
        keys = _keys(door, records, headers.get(b"record-key"))
        ranges = await self._send(entry.route, records, keys, _record_headers(headers))
        outcome: Outcome | list[DeadLetter] | None = None
        if wait_seconds is not None and ranges:
            self._waiting += 1
            try:
                outcome = await self._database.committed(entry.route, ranges, wait_seconds)
            finally:
                self._waiting -= 1
        return answers.accepted(entry.head, records, ranges, outcome)

    async def _send(
        self, route: Route, records: Records, keys: Sequence[bytes | None], headers: Headers | None
    ) -> list[OffsetRange]:
        if not records.values:
            return []
        try:
            return await self._producer.send(route.topic, records.values, keys, headers)
        except (KafkaAway, QueueFull) as error:
            kind = "kafka-away" if isinstance(error, KafkaAway) else "queue-full"
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE, kind, f"{error}; nothing was sent", None, answers.RETRY_AFTER
            ) from error
        except RecordTooLarge as error:
            members = {"line": records.lines[error.index]}
            raise Problem(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "record-too-large", f"{error}; nothing was sent", members
            ) from error
        except NotAcknowledged as error:
            raise answers.not_acknowledged(error) from error


_PREFLIGHT = (
    (b"access-control-allow-methods", b"POST"),
    (
        b"access-control-allow-headers",
        b"authorization, content-type, content-encoding, record-key, idempotency-key, traceparent, prefer",
    ),
    (b"access-control-max-age", b"600"),
)


_SPLITTERS: dict[bytes, Split] = {_JSON: bodies.split, **dict.fromkeys(_NDJSON, bodies.split_lines)}


def _splitter(content_type: bytes) -> Split:
    """Find how a body of this type is split, whatever its parameters and its case."""
    split = _SPLITTERS.get(content_type.partition(b";")[0].strip().lower())
    if split is not None:
        return split
    detail = "the content type may be application/json or application/x-ndjson"
    accepted = {b"accept-post": b"application/json, application/x-ndjson"}
    raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content-type", detail, None, accepted)


def _encoding(headers: dict[bytes, bytes]) -> str:
    encoding = headers[b"content-encoding"].lower().decode("latin-1")
    if encoding in {"gzip", "zstd"}:
        return encoding
    if encoding == "identity":
        return ""
    detail = "the body's content encoding may be gzip or zstd"
    accepted = {b"accept-encoding": b"gzip, zstd"}
    raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content-encoding", detail, None, accepted)


def _checked(door: Door, body: _Body, max_records: int, max_bytes: int) -> Records:
    """Unpack, split and check; raise 400, 413 or 422. Of a large body in a thread of its own."""
    content = body.bytes
    try:
        if body.encoding:
            content = bodies.unpack(content, body.encoding, max_bytes)
        records = body.split(content, max_records)
        refusals = _check(door, records.values)
        if refusals and body.split is bodies.split and any(why.code == "not_json" for _, why in refusals):
            # An array: the places were guessed wrong, or it is no JSON either.
            records = bodies.split_exactly(content, max_records)
            refusals = _check(door, records.values)
    except Malformed as error:
        raise Problem(HTTPStatus.BAD_REQUEST, "malformed", str(error)) from error
    except TooLarge as error:
        raise answers.too_large(str(error)) from error
    if refusals:
        raise answers.refused(refusals, records)
    return records


def _check(door: Door, values: Sequence[bytes]) -> list[tuple[int, Refusal]]:
    if len(values) <= RECORDS_PER_TURN:
        return door.check(values)
    refusals: list[tuple[int, Refusal]] = []
    for start in range(0, len(values), RECORDS_PER_TURN):
        refusals += [(start + index, why) for index, why in door.check(values[start : start + RECORDS_PER_TURN])]
    return refusals


def _keys(door: Door, records: Records, given: bytes | None) -> Sequence[bytes | None]:
    if given is not None:
        return [given] * len(records.values)
    keys, refusals = door.keys(records.values)
    if refusals:
        raise answers.refused(refusals, records)
    return keys


def _record_headers(headers: dict[bytes, bytes]) -> Headers | None:
    """Return what travels with each record."""
    kept: Headers | None = None
    if b"idempotency-key" in headers:
        kept = [("idempotency-key", headers[b"idempotency-key"])]
    if b"traceparent" in headers:
        kept = [*(kept or ()), ("traceparent", headers[b"traceparent"])]
    return kept
