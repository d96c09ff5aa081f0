"""A request's content: which records it holds, whether they fit the table, and their keys.

Called by app.py: on a gateway's event loop, but of a large body in a thread of its own. No I/O.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

from kbatchd.files import bodies
from kbatchd.files.bodies import Malformed, Records, TooLarge
from kbatchd.gateway import answers
from kbatchd.gateway.problems import Problem
from kbatchd.kafka.sending import RecordTooLarge

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from kbatchd.door.door import Door
    from kbatchd.model import Refusal

    Split = Callable[[bytes, int], Records]
    Fields = Mapping[bytes, bytes]

#: How many records are checked before the event loop may have its turn: 1 to 2 ms.
CHECKED_PER_TURN = 500

#: What is beyond the limit by less than a key is left to the producer, who knows both sizes.
KEY_BYTES = 65_536

_JSON = b"application/json"
_NDJSON = {b"application/x-ndjson", b"application/ndjson", b"application/jsonl"}


class Limits(NamedTuple):
    """What a request may have."""

    records: int
    body_bytes: int
    record_bytes: int


class Content(NamedTuple):
    """What a request's head says of its body."""

    split: Split
    #: "gzip", "zstd" or "".
    encoding: str


def nothing_held(_size: int) -> None:
    """Count nothing: what is not packed is no larger than it came."""


def content_of(fields: Fields) -> Content:
    """Read what the head says; the Problem that is the answer where that cannot be."""
    split = _SPLITTERS.get(fields.get(b"content-type", _JSON)) or _splitter(fields[b"content-type"])
    return Content(split, _encoding(fields) if b"content-encoding" in fields else "")


_SPLITTERS: dict[bytes, Split] = {_JSON: bodies.split, **dict.fromkeys(_NDJSON, bodies.split_lines)}


def _splitter(content_type: bytes) -> Split:
    """Find how a body of this type is split, whatever its parameters and its case."""
    split = _SPLITTERS.get(content_type.partition(b";")[0].strip().lower())
    if split is not None:
        return split
    detail = "the content type may be application/json or application/x-ndjson"
    accepted = {b"accept-post": b"application/json, application/x-ndjson"}
    raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content-type", detail, None, accepted)


def _encoding(fields: Fields) -> str:
    encoding = fields[b"content-encoding"].lower().decode("latin-1")
    if encoding in {"gzip", "zstd"}:
        return encoding
    if encoding == "identity":
        return ""
    detail = "the body's content encoding may be gzip or zstd"
    accepted = {b"accept-encoding": b"gzip, zstd"}
    raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "content-encoding", detail, None, accepted)


def records_of(door: Door, content: Content, body: bytes, limits: Limits, hold: Callable[[int], object]) -> Records:
    """Unpack, split and check; raise 400, 413, 422, 500 or 503. `hold` is told of what is unpacked."""
    try:
        if content.encoding:
            body = bodies.unpack(body, content.encoding, limits.body_bytes, hold)
        records = content.split(body, limits.records)
        _refuse_larger(records, limits.record_bytes)
        refusals = _check(door, records.values)
        if refusals and content.split is bodies.split and any(why.code == "not_json" for _, why in refusals):
            # An array: the places were guessed wrong, or it is not JSON either.
            records = bodies.split_exactly(body, limits.records)
            refusals = _check(door, records.values)
    except Malformed as error:
        raise Problem(HTTPStatus.BAD_REQUEST, "malformed", str(error)) from error
    except TooLarge as error:
        raise answers.too_large(str(error)) from error
    if refusals:
        raise answers.refused(refusals, records, door)
    return records


def _refuse_larger(records: Records, limit: int) -> None:
    """Refuse what Kafka would not get anyway before it is decoded: its objects may take 20 times its bytes."""
    for index, value in enumerate(records.values):
        if len(value) > limit + KEY_BYTES:
            raise answers.not_sent(RecordTooLarge(index, len(value), limit), records)


def _check(door: Door, values: Sequence[bytes]) -> list[tuple[int, Refusal]]:
    if len(values) <= CHECKED_PER_TURN:
        return door.check(values)
    refusals: list[tuple[int, Refusal]] = []
    for start in range(0, len(values), CHECKED_PER_TURN):
        refusals += [(start + index, why) for index, why in door.check(values[start : start + CHECKED_PER_TURN])]
    return refusals


def keys_of(door: Door, records: Records, given: bytes | None) -> Sequence[bytes | None]:
    """Return the records' keys: the one that the head gives, or a field of theirs."""
    if given is not None:
        return [given] * len(records.values)
    keys, refusals = door.keys(records.values)
    if refusals:
        raise answers.refused(refusals, records, door)
    return keys
