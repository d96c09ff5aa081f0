"""The door: whether a record would become a row, asked before it is in Kafka.

It is the worker's own row encoder, its rows thrown away: what passes here is no dead letter of the encoder later. A
record's key is a field of it. Used by the gateway's event loop and by `kbatchd produce`; no I/O.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import orjson

from kbatchd.encode.exact import field_text, loads
from kbatchd.encode.fields import Refused
from kbatchd.encode.internal import internal_refusal
from kbatchd.encode.rows import build_encoder
from kbatchd.model import Refusal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.config import RouteMapping
    from kbatchd.postgres.table import Column


class Fault(NamedTuple):
    """One thing that is wrong with a record."""

    #: The field, as a path from the value's root; None where it is none, or nobody knows which.
    field: str | None
    refusal: Refusal


class Door:
    """Checks the records of one route."""

    def __init__(
        self, columns: Sequence[Column] | None, key_field: str | None, mapping: RouteMapping | None = None
    ) -> None:
        """Check against the columns that a record feeds; with None, only whether a record is a JSON object."""
        self._encoder = None if columns is None else build_encoder(columns, mapping, at_the_door=True)
        self._key_field = key_field

    def check(self, values: Sequence[bytes]) -> list[tuple[int, Refusal]]:
        """Return the records that would be refused, as (index, why), in order."""
        if self._encoder is not None:
            return self._encoder.encode((), values, []).refused
        return [(index, refusal) for index, value in enumerate(values) if (refusal := _not_an_object(value))]

    def faults(self, value: bytes, refusal: Refusal) -> list[Fault]:
        """Say all that is wrong with a record that `check` or `keys` has refused, with the fields' names."""
        found = [] if self._encoder is None else [Fault(*each) for each in self._encoder.faults(value)]
        if found and self._key_field is not None:
            _, refused = self.keys([value])
            found += [Fault(self._key_field, why) for _, why in refused]
        return found or [self.fault(refusal)]

    def fault(self, refusal: Refusal) -> Fault:
        """Name the field of a refusal."""
        fields = {} if self._encoder is None else self._encoder.fields
        column = refusal.column
        if column is None or column in fields:
            return Fault(None if column is None else fields[column], refusal)
        return Fault(column if column == self._key_field else None, refusal)

    def keys(self, values: Sequence[bytes]) -> tuple[list[bytes | None], list[tuple[int, Refusal]]]:
        """Return the keys of records that have passed `check`, and those whose key field is no string or integer.

        A record without the field, or with null in it, has no key.
        """
        keys: list[bytes | None] = [None] * len(values)
        refusals: list[tuple[int, Refusal]] = []
        if self._key_field is None:
            return keys, refusals
        for index, value in enumerate(values):
            try:
                keys[index] = _key(value, self._key_field)
            except Refused as error:
                refusals.append((index, Refusal(error.code, self._key_field, str(error))))
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is: see encode/internal.py
                refusals.append((index, internal_refusal(error)))
        return keys, refusals


def _key(value: bytes, field: str) -> bytes | None:
    key = cast("dict[str, object]", loads(value)).get(field)
    if type(key) is str:
        return key.encode()
    if type(key) is int:
        return b"%d" % key
    if type(key) is float and (digits := field_text(value, field)).lstrip("-").isdigit():
        return digits.encode()  # an integer of more than 64 bits
    if key is not None:
        raise Refused("wrong_type", "the record's key must be a string or an integer")
    return None


def _not_an_object(value: bytes) -> Refusal | None:
    try:
        record = loads(value)
    except orjson.JSONDecodeError as error:
        return Refusal("not_json", None, f"not JSON: {error}")
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever it is: see encode/internal.py
        return internal_refusal(error)
    return None if type(record) is dict else Refusal("not_object", None, "expected an object")
