"""What of a record goes into which column: the keys of `[[route]]` and `[route.columns]` that say it.

The row encoder, the door and the start-up checks get a `RouteMapping`, which every route is. docs/mapping.md has each
key with an example. Loaded by file.py; pure data and its faults, no I/O.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from kbatchd.config.faults import fault
from kbatchd.config.table import ColumnName, Table, identifier
from kbatchd.paths import parse_path

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kbatchd.paths import Path

_SOURCE = re.compile(r"key|value|headers|header:.+|timestamp|topic|partition|offset|now", re.DOTALL)
#: Sources that are a text, which may be JSON with a field to take.
TEXT_SOURCES = ("key", "value", "header:")


def _path(value: str) -> str:
    try:
        parse_path(value)
    except ValueError as error:
        raise fault(
            f"is not a path to a field ({error}); allowed: names with dots, and indexes, as address.city, items[0].sku"
        ) from error
    return value


def _source(value: str) -> str:
    if not _SOURCE.fullmatch(value):
        raise fault(
            'is not a source; allowed: "key", "value", "headers", "header:NAME", "timestamp", "topic", "partition", '
            '"offset" or "now"'
        )
    return value


def literal(value: object) -> bytes:
    """Return a TOML value as JSON; its times become strings."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, default=lambda time: time.isoformat()).encode()


FieldPath = Annotated[str, AfterValidator(_path)]
Source = Annotated[str, AfterValidator(_source)]
OnMissing = Literal["null", "default", "reject"]
OnNullByte = Literal["reject", "strip"]


class ColumnMapping(Table):
    """An entry of `[route.columns]`: where one column's value comes from. A string alone is its `field`."""

    field: FieldPath | None = Field(
        default=None, description="The field, as address.city or items[0].sku. Default: the column's name."
    )
    source: Source | None = Field(
        default=None,
        description="Another place than the record's fields: key, value, headers, header:NAME, timestamp, topic, "
        "partition, offset, now.",
    )
    constant: Any = Field(default=None, description="The same value for every record.")
    default: Any = Field(default=None, description="The value where the field is missing; a null stays NULL.")
    unit: Literal["s", "ms", "us", "ns"] | None = Field(
        default=None, description="For a time that is a number: what it counts since 1970."
    )
    json_text: bool = Field(default=False, description="The field is a string that holds JSON.")
    on_null_byte: OnNullByte | None = Field(default=None, description="As the route's, for this column.")
    on_missing: OnMissing | None = Field(default=None, description="As the route's, for this column.")

    @model_validator(mode="before")
    @classmethod
    def _field_alone(cls, value: object) -> object:
        return {"field": value} if isinstance(value, str) else value

    @field_validator("constant", "default")
    @classmethod
    def _is_json(cls, value: object) -> object:
        try:
            literal(value)
        except ValueError as error:
            raise fault("is a number that JSON does not have; allowed: a finite one, or a string") from error
        return value

    @model_validator(mode="after")
    def _goes_together(self) -> ColumnMapping:
        given = self.model_fields_set
        others = sorted(given - {"constant"})
        if self.is_constant and others:
            raise fault(f"has a constant, and {others[0]} beside it; allowed: the constant alone")
        if self.default is not None and self.on_missing is not None:
            raise fault("has both default and on_missing; allowed: one of them")
        if self.source is not None and not self.source.startswith(TEXT_SOURCES):
            for key in {"field", "json_text", "unit"} & given:
                raise fault(f"has {key} with the source {self.source}; allowed: with key, value or header:NAME")
        return self

    @property
    def is_constant(self) -> bool:
        """Whether the column has the same value in every row; a null is one too."""
        return "constant" in self.model_fields_set


class RouteMapping(Table):
    """The keys of a route that say what of a record goes into which column."""

    omit: tuple[ColumnName, ...] = Field(
        default=(), strict=False, description="Columns left out of the COPY: their defaults apply."
    )
    columns: dict[str, ColumnMapping] = Field(
        default={}, description="Columns that are not fed by the field of their own name."
    )
    format: Literal["json", "raw"] = Field(
        default="json", description='A record\'s value: "json", or "raw": its bytes go into one column.'
    )
    value_field: FieldPath | None = Field(
        default=None, description="The field that holds the record proper, where it comes in an envelope."
    )
    unknown_fields: ColumnName = Field(
        default="ignore",
        description='Fields that no column takes: "ignore", "reject", or the jsonb column that collects them.',
    )
    on_missing: OnMissing = Field(
        default="null",
        description='A field that is missing: "null", the column\'s "default", or "reject" the record.',
    )
    on_null_byte: OnNullByte = Field(
        default="reject",
        description='A NUL in a text, which PostgreSQL cannot hold: "reject" the record, or "strip" it.',
    )

    @field_validator("columns")
    @classmethod
    def _not_omitted(cls, columns: dict[str, ColumnMapping], info: ValidationInfo) -> dict[str, ColumnMapping]:
        omit: tuple[str, ...] = info.data.get("omit", ())
        for name in columns:
            identifier(name)
            if name in omit:
                raise fault(f"names {name}, which is in `omit` too; allowed: in one of them")
        return columns

    @property
    def collects_into(self) -> str | None:
        """The column that collects the fields no other takes."""
        return None if self.unknown_fields in {"ignore", "reject"} else self.unknown_fields

    @property
    def envelope(self) -> Path:
        """The way to the object whose fields the columns take; empty: the record itself."""
        return () if self.value_field is None else parse_path(self.value_field)

    def of(self, column: str) -> ColumnMapping:
        """Return what is said of a column."""
        entries: Mapping[str, ColumnMapping] = self.columns
        return entries.get(column, ColumnMapping())
