"""The configuration of a route: `[[route]]`.

Loaded by file.py. Pure data and its faults; no I/O.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator

from kbatchd.config.faults import fault
from kbatchd.config.mapping import FieldPath, RouteMapping
from kbatchd.config.table import ColumnName, KeptName, Name, Scalar, Start, Table, TableName, Topic

T = TypeVar("T")


class DeleteWhen(Table):
    """`delete_when` of a route: which records delete."""

    field: FieldPath = Field(description="A field of the record's value, as op or meta.op. Required.")
    equals: Scalar = Field(
        description="The value it has in a record that deletes: a string, an integer or a boolean. Required."
    )

    @field_validator("equals")
    @classmethod
    def _equals_is_exact(cls, equals: object) -> object:
        if isinstance(equals, float):  # a record's number is rounded to one, and no row may go for being near
            raise fault("is a number with a fraction; allowed: a string, an integer or a boolean")
        return equals


class Route(RouteMapping):
    """`[[route]]`: one topic into one table."""

    topic: Topic = Field(description="The topic to read; several routes may. Required.")
    table: TableName = Field(description="The table to write: schema.table. Required.")
    name: KeptName = Field(
        default_factory=lambda data: data.get("topic", ""),
        description="The route's name in progress, logs and commands, unique. Default: the topic.",
    )
    mode: Literal["append", "upsert"] = Field(
        default="append",
        description='"append": each record is a row; "upsert": the last record of a key is its row.',
    )
    key: tuple[ColumnName, ...] = Field(
        default=(),
        strict=False,
        validate_default=True,
        description='For "upsert": the columns of a unique index, NOT NULL.',
    )
    insert_only: bool = Field(
        default=False, description='For "upsert": a row that is there is left as it is, and nothing is deleted.'
    )
    delete_when: DeleteWhen | None = Field(
        default=None,
        description='For "upsert": records that delete, beside those without a value: {field = ..., equals = ...}.',
    )
    key_field: Name | None = Field(
        default=None,
        description="The field whose value becomes the record's key, for the gateway and `kbatchd produce`.",
    )
    partitions: int = Field(default=4, ge=1, le=100_000, description="For `kbatchd create-topic` only.")
    replication_factor: int = Field(default=1, ge=1, le=32_767, description="For `kbatchd create-topic` only.")
    start: Start = Field(
        default="earliest",
        description='Where a topic is begun: "earliest", "latest" or a time such as 2026-01-31T08:00:00Z.',
    )
    read_again: tuple[Name, ...] = Field(
        default=(),
        strict=False,
        description="Others that have read the topic into the same table, as `pipeline/route`, and beside which this "
        "route reads all of it again, on purpose.",
    )
    on_gap: Literal["halt", "record"] = Field(
        default="halt",
        description='Offsets lost in Kafka: "halt" the partition, or "record" them in kbatchd.gaps and go on.',
    )
    on_missing_partition: Literal["wait", "dead_letter"] = Field(
        default="wait",
        description='A record that no partition of the table takes: the route has to "wait" for the partition, '
        'or the record becomes a "dead_letter".',
    )
    max_dead_letters: int = Field(
        default=10_000,
        ge=0,
        description="So many dead letters in a row halt the route instead of emptying the topic; 0 = off.",
    )

    @field_validator("mode")
    @classmethod
    def _staging_has_no_defaults(cls, mode: str, info: ValidationInfo) -> str:
        said = [info.data.get("on_missing"), *(each.on_missing for each in info.data.get("columns", {}).values())]
        if mode == "upsert" and "default" in said:
            raise fault('is "upsert", which has no on_missing = "default"; allowed: `omit`, or a `default`')
        return mode

    @field_validator("key")
    @classmethod
    def _key_goes_with_upsert(cls, key: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("mode") == "upsert" and not key:
            raise fault('is missing; allowed with mode = "upsert": the columns of a unique index, such as ["id"]')
        if len(set(key)) < len(key):
            raise fault("names a column twice")
        return _of_upsert(key, info)

    @field_validator("insert_only")
    @classmethod
    def _insert_only_goes_with_upsert(cls, insert_only: bool, info: ValidationInfo) -> bool:
        return _of_upsert(insert_only, info)

    @field_validator("delete_when")
    @classmethod
    def _delete_when_goes_with_upsert(cls, delete_when: DeleteWhen | None, info: ValidationInfo) -> DeleteWhen | None:
        if delete_when is not None and info.data.get("insert_only"):
            raise fault("contradicts insert_only = true, which deletes nothing; allowed: one of them")
        return _of_upsert(delete_when, info)


def _of_upsert(value: T, info: ValidationInfo) -> T:
    """Refuse a key of the file that has no meaning in append mode."""
    if value and info.data.get("mode") == "append":
        raise fault('is for mode = "upsert", which this route does not have')
    return value
