"""The gateway described for programs: an OpenAPI 3.1 document, made from the routes' tables.

Called on a gateway's event loop by pages.py whenever the tables change; no I/O.
"""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import orjson

from kbatchd.door.tables import Columns
from kbatchd.gateway import records

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from kbatchd.config import Gateway, Route
    from kbatchd.door.tables import Tables

    Schema = dict[str, Any]


#: Every problem by status and kind, the last word of its type, with what it means to the one who has sent.
PROBLEMS: Final[dict[HTTPStatus, dict[str, str]]] = {
    HTTPStatus.BAD_REQUEST: {
        "malformed": "The body is not JSON, or not what its Content-Encoding says.",
        "bad-query": "The query says something else than ack=db or ack=kafka.",
        "bad-request": "The request is not HTTP/1.1. The connection is closed.",
    },
    HTTPStatus.UNAUTHORIZED: {"unauthorized": "There is no token, or it is not a valid one."},
    HTTPStatus.FORBIDDEN: {
        "forbidden": "The token is for other routes.",
        "foreign-origin": "A web page has sent it whose origin is neither the gateway's own nor listed.",
        "foreign-host": "The `Host` is not a name of the gateway's.",
    },
    HTTPStatus.NOT_FOUND: {"not-found": "There is no such route."},
    HTTPStatus.METHOD_NOT_ALLOWED: {"method-not-allowed": "Records are sent by POST."},
    HTTPStatus.REQUEST_TIMEOUT: {"timeout": "The request did not come whole in time. The connection is closed."},
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: {
        "too-large": "The body is too large, maybe once it is unpacked, or has too many records.",
        "record-too-large": "The record of this line is larger than the gateway sends to Kafka.",
    },
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: {
        "content-type": "The Content-Type is none of the two that are taken.",
        "content-encoding": "The Content-Encoding is neither gzip nor zstd.",
    },
    HTTPStatus.EXPECTATION_FAILED: {"expectation": "The only Expect is 100-continue."},
    HTTPStatus.UNPROCESSABLE_ENTITY: {
        "refused": "Records do not fit the table; each is named, with all that is wrong with it. Nothing was sent, not "
        "even the others.",
        "dead-letter": "With ack=db: these records were sent, but PostgreSQL refused them; the others it took.",
    },
    HTTPStatus.TOO_MANY_REQUESTS: {
        "too-many-waiting": "With ack=db: too many requests wait for the table already. Nothing was sent; try again."
    },
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: {"headers-too-large": "The request's line and headers are too large."},
    HTTPStatus.INTERNAL_SERVER_ERROR: {"internal": "An internal error of the gateway; its log tells more."},
    HTTPStatus.NOT_IMPLEMENTED: {"transfer-coding": "The only Transfer-Encoding is chunked."},
    HTTPStatus.SERVICE_UNAVAILABLE: {
        "kafka-away": "Kafka does not answer. Nothing was sent; try again.",
        "queue-full": "Too many records wait for Kafka. Nothing was sent; try again.",
        "kafka-refused": "Kafka refused the records. Nothing is in the topic.",
        "table-unknown": "The table's columns are not known yet, or cannot be used. Nothing was sent; try again.",
        "memory-full": "The gateway holds as much of unfinished requests as it may. Nothing was sent; try again.",
        "too-many-connections": "The gateway has too many connections; this one is closed.",
    },
    HTTPStatus.GATEWAY_TIMEOUT: {
        "not-acknowledged": "Kafka did not acknowledge all. The records of `acknowledged` are there; of the others "
        "nobody knows: sent again, they may be there twice.",
        "stopped": "The gateway stops. Whether the records are there is not known.",
        "lost": "With ack=db: Kafka has lost records that it had acknowledged: the topic was recreated, the log "
        "truncated, or they were deleted before they were read.",
    },
}

_INTEGER: Final = {"type": "integer"}
_STRING: Final = {"type": "string"}
_NAME_OR_NULL: Final = {"type": ["string", "null"]}


def _object(properties: Schema, optional: Schema | None = None) -> Schema:
    return {"type": "object", "required": list(properties), "properties": {**properties, **(optional or {})}}


_COLUMN: Final = {**_NAME_OR_NULL, "description": "The column, if one is the reason."}
_PENDING: Final = {
    "pending": {
        "type": "string",
        "description": "With ack=db: why nobody has waited for the table: the route is paused.",
    }
}
_RANGES: Final = {"type": "array", "items": {"$ref": "#/components/schemas/OffsetRange"}}

_SCHEMAS: Final[dict[str, Schema]] = {
    "Place": _object({"topic": _STRING, "partition": _INTEGER, "offset": _INTEGER}, _PENDING),
    "Places": {
        **_object({"count": _INTEGER, "ranges": _RANGES}, _PENDING),
        "description": "A record that is in no range is in Kafka as well, which has not said where.",
    },
    "OffsetRange": _object(
        {"topic": _STRING, "partition": _INTEGER, "first_offset": _INTEGER, "last_offset": _INTEGER}
    ),
    "Problem": _object(
        {
            "type": {"type": "string", "format": "uri-reference"},
            "title": _STRING,
            "status": _INTEGER,
            "detail": {"type": "string", "description": "For people; it may change."},
        }
    ),
    "Refusal": _object(
        {
            "line": {"type": "integer", "description": "The line, or the place in the array, from 1."},
            "field": {
                **_NAME_OR_NULL,
                "description": "The field, as a path: `customer.city`, `items[0].sku`.",
            },
            "column": _COLUMN,
            "code": _STRING,
            "reason": _STRING,
        }
    ),
    "DeadLetter": _object(
        {
            "partition": _INTEGER,
            "offset": _INTEGER,
            "column": _COLUMN,
            "code": {"type": "string", "description": "The SQLSTATE, or a code of the gateway's."},
            "reason": _STRING,
        }
    ),
}

#: The members a problem of some status has beside RFC 9457's own.
_MEMBERS: Final[dict[HTTPStatus, Schema]] = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: {"line": _INTEGER},
    HTTPStatus.UNPROCESSABLE_ENTITY: {
        "errors": {
            "type": "array",
            "items": {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("Refusal", "DeadLetter")]},
        }
    },
    HTTPStatus.INTERNAL_SERVER_ERROR: {"errors": {"type": "array", "items": {"$ref": "#/components/schemas/Refusal"}}},
    HTTPStatus.SERVICE_UNAVAILABLE: {"acknowledged": _RANGES},
    HTTPStatus.GATEWAY_TIMEOUT: {"acknowledged": _RANGES},
}

_HEADERS: Final[dict[HTTPStatus, dict[str, str]]] = {
    HTTPStatus.UNAUTHORIZED: {"WWW-Authenticate": "Bearer"},
    HTTPStatus.METHOD_NOT_ALLOWED: {"Allow": "POST, OPTIONS"},
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: {"Accept-Post": "What is taken.", "Accept-Encoding": "What is taken."},
    HTTPStatus.TOO_MANY_REQUESTS: {"Retry-After": "Seconds."},
    HTTPStatus.SERVICE_UNAVAILABLE: {"Retry-After": "Seconds."},
}


def _parameter(where: str, name: str, description: str, **schema: object) -> Schema:
    return {"name": name, "in": where, "description": description, "schema": {"type": "string", **schema}}


_PARAMETERS: Final = [
    _parameter(
        "query",
        "ack",
        "kafka: answer when Kafka has acknowledged. db: answer when the rows are in the table, or the time is up.",
        enum=["kafka", "db"],
        default="kafka",
    ),
    _parameter("header", "Prefer", "wait=SECONDS: as ack=db, but waits no longer.", examples=["wait=5"]),
    _parameter("header", "Record-Key", "The key of all records of this request, instead of a field of theirs."),
    _parameter("header", "Idempotency-Key", "Travels with the records, as a header of theirs."),
    _parameter("header", "traceparent", "W3C trace context; travels with the records, as a header of theirs."),
    _parameter("header", "Content-Encoding", "How the body is packed.", enum=["identity", "gzip", "zstd"]),
]

_DESCRIPTION: Final = """\
Records sent here go into Kafka, and from there into PostgreSQL's tables.

- **202**: Kafka has acknowledged every record of the request; it will be in the table, once.
- **200**, asked for with `ack=db`: it is in the table now.
- Anything else is a problem document (RFC 9457). The last word of its `type` never changes.

A request is taken as a whole or not at all: all records are checked before the first is sent."""


def document(routes: Sequence[Route], tables: Tables, gateway: Gateway, version: str, *, with_tokens: bool) -> bytes:
    """Describe the routes; one whose table is not known takes any object, as far as can be told."""
    components: dict[str, Any] = {
        "schemas": dict(_SCHEMAS),
        "parameters": {parameter["name"]: parameter for parameter in _PARAMETERS},
        "responses": {
            str(int(status)): _problem(status)
            for status in PROBLEMS
            if with_tokens or status is not HTTPStatus.UNAUTHORIZED
        },
    }
    paths = {}
    for number, route in enumerate(routes):
        known = tables.get(route.name)
        record = records.describe(route, known.columns if isinstance(known, Columns) else None)
        name = f"record.{route.name}" if re.fullmatch(r"[\w.-]+", route.name, re.ASCII) else f"record-{number}"
        components["schemas"][name] = record.schema
        operation = _operation(route, record.example, name, components["responses"])
        if not gateway.validate_records:
            operation["description"] += " This gateway does not check records: what does not fit becomes a dead letter."
        paths[f"/v1/{quote(route.name, safe='')}"] = {"post": operation}
    described = {
        "openapi": "3.1.0",
        "info": {"title": "kbatchd gateway", "version": version, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": components,
    }
    if with_tokens:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"bearer": []}]
    return orjson.dumps(described)


def _operation(route: Route, one: object, name: str, problems: Iterable[str]) -> Schema:
    line = orjson.dumps(one).decode()
    record = {"$ref": f"#/components/schemas/{name}"}
    key = f" The field `{route.key_field}` becomes the record's key: a string or an integer." if route.key_field else ""
    return {
        "operationId": f"send.{name}",
        "summary": f"Send records to {route.table}",
        "description": f"Into the table `{route.table}`, through the topic `{route.topic}`.{key}",
        "parameters": [{"$ref": f"#/components/parameters/{parameter['name']}"} for parameter in _PARAMETERS],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"oneOf": [record, {"type": "array", "items": record}]},
                    "examples": {
                        "one": {"summary": "One record", "value": one},
                        "many": {"summary": "Several", "value": [one, one]},
                    },
                },
                "application/x-ndjson": {
                    "schema": {"type": "string", "description": "One record a line.", "contentSchema": record},
                    "examples": {"lines": {"summary": "One a line", "value": f"{line}\n{line}\n"}},
                },
            },
        },
        "responses": {
            "200": _accepted("With ack=db: every record is in the table."),
            "202": _accepted(
                "Kafka has acknowledged every record; with ack=db, nobody could say that the table has it in time."
            ),
            **{status: {"$ref": f"#/components/responses/{status}"} for status in problems},
        },
    }


def _accepted(description: str) -> Schema:
    places = [{"$ref": f"#/components/schemas/{name}"} for name in ("Place", "Places")]
    return {"description": description, "content": {"application/json": {"schema": {"oneOf": places}}}}


def _problem(status: HTTPStatus) -> Schema:
    kinds = PROBLEMS[status]
    types = [{"const": f"/problems/{kind}", "description": meaning} for kind, meaning in kinds.items()]
    schema = {
        "$ref": "#/components/schemas/Problem",
        "properties": {"type": {"oneOf": types}, "status": {"const": int(status)}, **_MEMBERS.get(status, {})},
    }
    headers = _HEADERS.get(status, {})
    return {
        "description": "\n".join(f"- `{kind}`: {meaning}" for kind, meaning in kinds.items()),
        "headers": {name: {"description": what, "schema": _STRING} for name, what in headers.items()},
        "content": {"application/problem+json": {"schema": schema}},
    }
