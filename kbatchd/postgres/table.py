"""A target table and its columns, as the catalogue describes them: plain values, which every encoder is made for.

Made by catalogue.py; a table's columns are cached by the door. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Mapping


#: Types below this oid are PostgreSQL's own, and do not change.
FIRST_USER_OID = 16384


@dataclass(frozen=True, slots=True)
class Column:
    """One column, an array's element, or an attribute of a composite type.

    `type_name` is what decides the encoding: pg_catalog's name, of a domain that of its base; "enum", "array",
    "composite"; or what format_type says of other types. `typmod` and `not_null` include those of a domain.
    """

    name: str
    number: int
    type_name: str
    typmod: int
    not_null: bool
    generated: bool = False
    identity: bool = False
    has_default: bool = False
    #: The type's oid, of a domain that of its base.
    oid: int = 0
    #: Dimensions that an array was declared with.
    dimensions: int = 0
    #: An array's element, and what PostgreSQL's text form of the array has between two of them.
    element: Column | None = None
    delimiter: str = ","
    #: An enum's labels.
    labels: tuple[str, ...] = ()
    #: A composite type's attributes.
    attributes: tuple[Column, ...] = ()
    #: The type of a range's, or a multirange's, bounds.
    range_of: str = ""
    #: What stands before the fraction of a money value here; "" where that is not known.
    decimal_point: str = "."
    #: The type as PostgreSQL shows it, where `type_name` does not say it.
    shown_type: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Column:
        """Undo dataclasses.asdict, also after a way through JSON."""
        element, attributes = values["element"], values["attributes"]
        return cls(
            **{
                **values,
                "element": element and cls.from_dict(element),
                "labels": tuple(values["labels"]),
                "attributes": tuple(map(cls.from_dict, attributes)),
            }
        )

    @property
    def type(self) -> str:
        """The type in words for people."""
        return self.shown_type or self.type_name

    @property
    def is_simple(self) -> bool:
        """PostgreSQL's own type, and no array."""
        return self.oid < FIRST_USER_OID and self.element is None


@dataclass(frozen=True, slots=True)
class Table:
    """A table rows can be copied to."""

    oid: int
    schema: str
    name: str
    columns: tuple[Column, ...]
    fingerprint: str
    #: The columns of each unique index that ON CONFLICT can use.
    unique_keys: frozenset[frozenset[str]] = frozenset()
    #: Of each of them, what says that two values of a column are one: an operator's schema and name.
    key_operators: Mapping[frozenset[str], Mapping[str, tuple[str, str]]] = field(default_factory=dict)
    #: Those of which an index has another collation than its column.
    odd_keys: frozenset[frozenset[str]] = frozenset()
    #: How it is partitioned, such as RANGE (day); "" if it is not.
    partitioned_by: str = ""
    #: Who we are, and what we may do beside INSERT.
    user: str = ""
    rights: frozenset[str] = frozenset()
    #: MERGE may be used.
    mergeable: bool = False

    @property
    def quoted(self) -> str:
        """The name with its schema, quoted: safe in SQL text and right for to_regclass."""
        return sql.Identifier(self.schema, self.name).as_string(None)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"
