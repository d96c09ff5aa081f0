"""A route's record for programs: its JSON schema, and an example of it.

Each column's field is where the route's mapping takes it from: nested, in an envelope, as a number that counts from
1970, as JSON in a string. What comes from elsewhere (a constant, a header, Kafka's own time) is no part of the record.
Called by openapi.py; pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import orjson

from kbatchd import samples
from kbatchd.fields_times import UNITS
from kbatchd.gateway import schemas
from kbatchd.mapping import Source, resolve_feeds
from kbatchd.paths import parse_path

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.catalogue import Column
    from kbatchd.config import Route
    from kbatchd.gateway.schemas import Schema
    from kbatchd.mapping import Feed
    from kbatchd.paths import Path

_MICROSECONDS: Final = 1_000_000
#: Seconds since 1970: the years 1 to 9999, and an example.
_FIRST_SECOND, _LAST_SECOND, _SOME_SECOND = -62_135_596_800, 253_402_300_799, 1_767_225_600


class Record(NamedTuple):
    """What a route takes."""

    schema: Schema
    example: object


class _Place:
    """A place in the record: what may stand there, and what is within it."""

    def __init__(self) -> None:
        #: One for each column that takes it as it is.
        self.schemas: list[Schema] = []
        self.within: dict[str | int, _Place] = {}
        self.required = False
        self.closed = False

    def at(self, path: Path, *, required: bool) -> _Place:
        """Return a place within; what is required must be there all the way."""
        place = self
        for step in path:
            place = place.within.setdefault(step, _Place())
            place.required |= required
        return place

    def schema(self) -> Schema:
        """Write it as a JSON schema."""
        parts = [*self.schemas]
        names = [step for step in self.within if isinstance(step, str)]
        if names or self.closed:
            parts.append({
                "type": self._type("object"),
                "required": [name for name in names if self.within[name].required],
                "properties": {name: self.within[name].schema() for name in names},
                "additionalProperties": not self.closed,
            })  # fmt: skip
        indexes = [step for step in self.within if isinstance(step, int)]
        if indexes:
            parts.append({
                "type": self._type("array"),
                "prefixItems": [
                    self.within[index].schema() if index in indexes else {} for index in range(max(indexes) + 1)
                ],
                "minItems": max((index + 1 for index in indexes if self.within[index].required), default=0),
            })  # fmt: skip
        return parts[0] if len(parts) == 1 else {"allOf": parts}

    def _type(self, name: str) -> str | list[str]:
        return name if self.required else [name, "null"]


def describe(route: Route, columns: Sequence[Column] | None) -> Record:
    """Describe the records of a route; of a table that is not known, any object."""
    if columns is None:
        description = f"A row of {route.table}, whose columns are not known now."
        return Record({"type": "object", "description": description}, {})
    if route.format == "raw":
        return Record({"description": f"A row of {route.table}: the record as it is, in one column."}, {})
    feeds = resolve_feeds(columns, route)
    envelope = () if route.value_field is None else parse_path(route.value_field)
    root = _Place()
    root.required = True
    inner = root.at(envelope, required=True)
    inner.closed = route.unknown_fields == "reject"
    for feed in feeds:
        if feed.source in {Source.FIELD, Source.VALUE}:
            start = inner if feed.source is Source.FIELD else root
            start.at(feed.path, required=_is_required(feed)).schemas.append(_schema(feed))
    if route.key_field and route.key_field not in root.within:
        key = {"type": ["string", "integer", "null"], "description": "The record's key."}
        root.at((route.key_field,), required=False).schemas.append(key)
    others = "must be columns" if inner.closed else "that are no columns are ignored"
    schema = {
        "type": "object",
        **root.schema(),
        "description": f"A row of {route.table}. Fields {others}.",
    }
    return Record(schema, _example(feeds, envelope))


def _is_required(feed: Feed) -> bool:
    if feed.literal is not None or feed.on_missing == "default":
        return False
    return feed.column.not_null or feed.on_missing == "reject"


def _schema(feed: Feed) -> Schema:
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


def _example(feeds: Sequence[Feed], envelope: Path) -> object:
    values = samples.example([feed.column for feed in feeds])
    example: object = None
    # The longest way first: what another column takes out of a field must be in it.
    for feed in sorted(feeds, key=lambda feed: -len(feed.path)):
        if feed.source not in {Source.FIELD, Source.VALUE}:
            continue
        value = values[feed.column.name]
        if feed.json_text:
            value = orjson.dumps(value).decode()
        elif feed.unit is not None:
            value = _in_unit(_SOME_SECOND, feed.unit)
        example = _put(example, (*(envelope if feed.source is Source.FIELD else ()), *feed.path), value)
    return example


def _put(container: object, path: Path, value: object) -> object:
    """Return the container with a value at a path; what is there already stays."""
    if not path:
        return value if container is None else container
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        items = container if isinstance(container, list) else []
        items += [None] * (step + 1 - len(items))
        items[step] = _put(items[step], rest, value)
        return items
    fields = container if isinstance(container, dict) else {}
    fields[step] = _put(fields.get(step), rest, value)
    return fields
