"""The gateway's application: one request from its head to its answer.

    head -> token -> body -> records -> door -> Kafka's acknowledgement -> 202
                                                  (ack=db) -> the table -> 200

Runs in a gateway process, on its event loop. Nothing is answered 2xx before Kafka has acknowledged every record of the
request, and nothing is sent before every record has passed the door. Nearly every request goes this way at once, and
its answer is written when Kafka's acknowledgement comes (`answer_now`); one that has to wait for more than that, or
takes long, has a task (`answer`).
"""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs

import orjson

from kbatchd.door.door import Door
from kbatchd.errors import ConfigError
from kbatchd.files.bodies import Records
from kbatchd.gateway import answers, pages, unavailable
from kbatchd.gateway.contents import Content, Limits, content_of, keys_of, nothing_held, records_of
from kbatchd.gateway.database import Outcome
from kbatchd.gateway.memory import Holding
from kbatchd.gateway.origins import PREFLIGHT, SAFE_METHODS, Origins
from kbatchd.gateway.problems import Answer, Problem
from kbatchd.kafka.producer import RECORDS_PER_TURN
from kbatchd.kafka.sending import KafkaAway, NotAcknowledged, NotSent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kbatchd.config import Gateway, Route
    from kbatchd.door.tables import Tables
    from kbatchd.gateway.database import Database
    from kbatchd.gateway.exchange import Exchange
    from kbatchd.gateway.logs import Logs
    from kbatchd.gateway.tokens import Tokens
    from kbatchd.kafka.producer import GatewayProducer, Headers
    from kbatchd.kafka.sending import Sending
    from kbatchd.model import OffsetRange
    from kbatchd.schema.arrived import DeadLetter
    from kbatchd.schema.pausing import Pause

    Split = Callable[[bytes, int], Records]
    Fields = dict[bytes, bytes]

#: From this size on a body is checked in another thread, and every packed one: that takes 14 ms a MB at worst.
LARGE_BODY_BYTES = 131_072

_WAIT = re.compile(rb"(?:^|[,;])\s*wait\s*=\s*(\d{1,9})\s*(?:$|[,;])")


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


class _Order(NamedTuple):
    """What a request's head asks for."""

    entry: _Entry
    content: Content
    #: How long the answer shall wait for the table; None: not at all.
    wait_seconds: float | None


class App:
    """Answers requests. `tables` may change at any time; `pages` are whole answers by path, to GET."""

    def __init__(
        self,
        gateway: Gateway,
        routes: Sequence[Route],
        producer: GatewayProducer,
        database: Database,
        logs: Logs,
        tokens: Tokens,
    ) -> None:
        self._gateway = gateway
        self._producer = producer
        self._database = database
        self._logs = logs
        self._tokens = tokens
        self._limits = Limits(gateway.max_queued_records, gateway.max_body_bytes, producer.max_record_bytes)
        self._origins = Origins(
            gateway.address[0],
            listed=gateway.cors_origins,
            hosts=gateway.hosts,
            tls=gateway.tls_certificate_file is not None,
        )
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
        if self._gateway.validate_records:
            self._use_doors(tables)
        routes = [entry.route for entry in self._entries.values()]
        self.pages = pages.build(routes, tables, self._gateway, with_tokens=self._tokens.needed)

    def _use_doors(self, tables: Tables) -> None:
        for entry in self._entries.values():
            table = tables.get(entry.route.name)
            if isinstance(table, ConfigError):
                entry.door, entry.why = None, str(table)
            elif table is not None:
                entry.door = Door(table.columns, entry.route.key_field, entry.route)

    def answer_now(self, exchange: Exchange) -> bool:
        """Answer a request that is whole, when Kafka acknowledges it; False: more is waited for, or much to do."""
        try:
            order = self._order(exchange)
            if order is None:
                self._answer(exchange, self._page(exchange))
                return True
            body = exchange.body()
            if order.content.encoding or order.wait_seconds is not None or len(body) >= LARGE_BODY_BYTES:
                return False
            self._refuse_larger(len(body))
            records, keys = self._checked(order, body, exchange.fields, nothing_held)
            if not 0 < len(records.values) <= RECORDS_PER_TURN:
                return False
            answer = partial(self._answer_acknowledged, exchange, order.entry.head, len(records.values), records.single)
            topic = order.entry.route.topic
            self._producer.begin(topic, records.values, keys, _record_headers(exchange.fields), answer)
        except KafkaAway:
            return False  # it may be back in a moment
        except NotSent as error:
            self._answer(exchange, answers.not_sent(error, records).answer())
        except Problem as problem:
            self._answer(exchange, problem.answer())
        return True

    def _answer_acknowledged(
        self,
        exchange: Exchange,
        head: bytes,
        count: int,
        single: bool,
        sending: Sending,
    ) -> None:
        """Say what Kafka has said; called by the producer."""
        try:
            number, offset = sending.acknowledged[0] if single and not sending.errors else (0, None)
            if offset is not None:
                answer = answers.one(head, number, offset)
            else:
                answer = answers.accepted(head, count, sending.ranges(), single=single)
        except NotAcknowledged as error:
            answer = answers.not_acknowledged(error).answer()
        except Exception as error:  # noqa: BLE001  # whatever it is, the client gets an answer
            exchange.fail(error)
            return
        self._answer(exchange, answer)

    async def answer(self, exchange: Exchange) -> None:
        """Answer a request."""
        try:
            order = self._order(exchange)
            answer = self._page(exchange) if order is None else await self._take(order, exchange)
        except Problem as problem:
            answer = problem.answer()
        self._answer(exchange, answer)

    def _answer(self, exchange: Exchange, answer: Answer) -> None:
        if self._origins.listed and b"origin" in exchange.fields:
            status, headers, body = answer
            answer = status, [*headers, *self._origins.cors(exchange.fields[b"origin"])], body
        exchange.answer(answer)

    def _order(self, exchange: Exchange) -> _Order | None:
        """Read the head; None: it asks for a page."""
        fields = exchange.fields
        self._check_sender(exchange.method, fields)
        entry = self._entries.get(exchange.path)
        if entry is None or exchange.method != "POST":
            return None
        self._tokens.check(fields.get(b"authorization"), entry.route.name)
        wait_seconds = self._wait_seconds(exchange.query, fields) if exchange.query or b"prefer" in fields else None
        if wait_seconds is not None and self._waiting >= self._gateway.max_waiting_requests:
            detail = "too many requests wait for the table; nothing was sent"
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "too-many-waiting", detail, None, unavailable.RETRY_AFTER)
        return _Order(entry, content_of(fields), wait_seconds)

    def _check_sender(self, method: str, fields: Fields) -> None:
        """Refuse what a web page sends that has no business here."""
        if not self._origins.names_us(fields):
            detail = "this is not a name of the gateway's: ask for localhost, or list the name in gateway.hosts"
            raise Problem(HTTPStatus.FORBIDDEN, "foreign-host", detail)
        if method not in SAFE_METHODS and not self._origins.may_send(fields):
            detail = "sent by a web page of another origin, and not taken: list that origin in gateway.cors_origins"
            raise Problem(HTTPStatus.FORBIDDEN, "foreign-origin", detail)

    def _page(self, exchange: Exchange) -> Answer:
        path, method, headers = exchange.path, exchange.method, exchange.fields
        if path in self._entries:
            return self._refuse_method(method, headers, b"POST, OPTIONS")
        return pages.page(self.pages, path, method, headers)

    def _refuse_method(self, method: str, headers: Fields, allowed: bytes) -> Answer:
        if method == "OPTIONS":
            preflight = b"access-control-request-method" in headers and self._origins.listed
            return 204, [(b"allow", allowed), *(PREFLIGHT if preflight else ())], b""
        raise Problem(
            HTTPStatus.METHOD_NOT_ALLOWED, "method-not-allowed", "records are sent by POST", headers={b"allow": allowed}
        )

    def _wait_seconds(self, query: bytes, headers: Fields) -> float | None:
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

    def _refuse_larger(self, size: int) -> None:
        if size > self._gateway.max_body_bytes:
            raise answers.too_large(f"the body may have {self._gateway.max_body_bytes} bytes")

    async def _body(self, exchange: Exchange) -> bytes:
        """Read the body, to its end or to one byte too many."""
        self._refuse_larger(int(exchange.fields.get(b"content-length", b"0")))
        body = bytearray()  # a list of pieces takes 40 bytes for each, and a piece may be one byte
        while part := await exchange.read():
            body += part
            self._refuse_larger(len(body))
        return bytes(body)

    def _checked(
        self, order: _Order, body: bytes, headers: Fields, hold: Callable[[int], object]
    ) -> tuple[Records, Sequence[bytes | None]]:
        """Check the records, and find their keys; raise the Problem with them. Touches nothing but its arguments."""
        door = order.entry.door
        if door is None:
            raise unavailable.table_unknown(order.entry.route.name, order.entry.why)
        records = records_of(door, order.content, body, self._limits, hold)
        return records, keys_of(door, records, headers.get(b"record-key"))

    async def _take(self, order: _Order, exchange: Exchange) -> Answer:
        """Check the records, send them, wait for what is to be waited for, and answer where they are."""
        route = order.entry.route
        since, before = time.monotonic(), self._logs.look(route.topic)
        with Holding(exchange.memory) as holding:
            records, ranges = await self._send(order, exchange, holding)
        count, single = len(records.values), records.single
        del records  # they may be large, and the wait long
        outcome: Outcome | Pause | list[DeadLetter] | None = None
        placed = sum(last - first + 1 for _, first, last in ranges)
        if order.wait_seconds is not None and ranges and placed == count:
            exchange.forget_body()
            self._waiting += 1
            try:
                log = self._logs.acknowledged(before, [at for at, _, _ in ranges])
                outcome = await self._database.committed(route, ranges, order.wait_seconds, since, log)
            finally:
                self._waiting -= 1
        return answers.accepted(order.entry.head, count, ranges, outcome, single=single)

    async def _send(self, order: _Order, exchange: Exchange, holding: Holding) -> tuple[Records, list[OffsetRange]]:
        """Check the records and send them; return them, and where they are."""
        body, fields = await self._body(exchange), exchange.fields
        if order.content.encoding or len(body) >= LARGE_BODY_BYTES:
            records, keys = await asyncio.to_thread(self._checked, order, body, fields, holding.take)
        else:
            records, keys = self._checked(order, body, fields, holding.take)
        if not records.values:
            return records, []
        headers = _record_headers(fields)
        try:
            return records, await self._producer.send(order.entry.route.topic, records.values, keys, headers)
        except NotSent as error:
            raise answers.not_sent(error, records) from error
        except NotAcknowledged as error:
            raise answers.not_acknowledged(error) from error


def _record_headers(headers: Fields) -> Headers | None:
    """Return what travels with each record."""
    kept: Headers | None = None
    if b"idempotency-key" in headers:
        kept = [("idempotency-key", headers[b"idempotency-key"])]
    if b"traceparent" in headers:
        kept = [*(kept or ()), ("traceparent", headers[b"traceparent"])]
    return kept
