"""A route's record for programs: its JSON schema, and an example of it.

Each column's field is where the route's mapping takes it from: nested, in an envelope, as a number that counts from
1970, as JSON in a string. What comes from elsewhere (a constant, a header, Kafka's own time) is no part of the record.
Called by openapi.py; pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from kbatchd.encode.mapping import resolve_feeds
from kbatchd.encode.times import UNITS
from kbatchd.gateway import schemas
from kbatchd.shapes import samples
from kbatchd.shapes.shape import of_value

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.config import Route
    from kbatchd.encode.mapping import Feed
    from kbatchd.gateway.schemas import Schema
    from kbatchd.postgres.table import Column
    from kbatchd.shapes.shape import Node

_MICROSECONDS: Final = 1_000_000
#: Seconds since 1970: the years 1 to 9999.
_FIRST_SECOND, _LAST_SECOND = -62_135_596_800, 253_402_300_799


class RecordSchema(NamedTuple):
    """What a route takes, as a JSON schema, and an example."""

    schema: Schema
    example: object


def describe(route: Route, columns: Sequence[Column] | None) -> RecordSchema:
    """Describe the records of a route; of a table that is not known, any object."""
    if columns is None:
        description = f"A row of {route.table}, whose columns are not known now."
        return RecordSchema({"type": "object", "description": description}, {})
    if route.format == "raw":
        return RecordSchema({"description": f"A row of {route.table}: the record as it is, in one column."}, {})
    feeds = resolve_feeds(columns, route)
    shape = of_value(feeds, route)
    closed = shape.inner if route.unknown_fields == "reject" else None
    others = "that are not columns are ignored" if closed is None else "must be columns"
    schema = {
        "type": "object",
        **_schema(shape.root, closed),
        "description": f"A row of {route.table}. Fields {others}.",
    }
    if route.key_field and shape.root is not closed and route.key_field not in shape.root.within:
        key = {"type": ["string", "integer", "null"], "description": "The record's key."}
        schema["properties"] = {**schema.get("properties", {}), route.key_field: key}
    return RecordSchema(schema, samples.example(feeds, route))


def _schema(node: Node, closed: Node | None) -> Schema:
    """Write a node as a JSON schema; the object `closed` takes no other fields."""
    parts = [_schema_of_feed(feed) for feed in node.feeds]
    names = [step for step in node.within if isinstance(step, str)]
    if names or node is closed:
        parts.append({
            "type": _type("object", node),
            "required": [name for name in names if node.within[name].required],
            "properties": {name: _schema(node.within[name], closed) for name in names},
            "additionalProperties": node is not closed,
        })  # fmt: skip
    indexes = [step for step in node.within if isinstance(step, int)]
    if indexes:
        parts.append({
            "type": _type("array", node),
            "prefixItems": [
                _schema(node.within[index], closed) if index in indexes else {} for index in range(max(indexes) + 1)
            ],
            "minItems": max((index + 1 for index in indexes if node.within[index].required), default=0),
        })  # fmt: skip
    if len(parts) > 1:
        return {"allOf": parts}
    return parts[0] if parts else {}


def _type(name: str, node: Node) -> str | list[str]:
    return name if node.required else [name, "null"]


def _schema_of_feed(feed: Feed) -> Schema:
    schema = schemas.of_column(feed.column)
    null = [] if feed.column.not_null else ["null"]
    shown = schema["description"]
    if feed.json_text:
        return {"type": ["string", *null], "contentMediaType": "application/json", "description": f"{shown}, as text"}
    if feed.unit is not None:
        return {
            "type": ["integer", *null],
            "minimum": _in_unit(_FIRST_SECOND, feed.unit),
            "maximum": _in_unit(_LAST_SECOND, feed.unit),
            "description": f"`{feed.column.type}`, in {feed.unit} since 1970",
        }
    return schema


def _in_unit(seconds: int, unit: str) -> int:
    return int(seconds * _MICROSECONDS / UNITS[unit])
