"""What a client is told of its records: where they are, or why they are not there.

Called by app.py on a gateway's event loop; pure.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import orjson

from kbatchd.encode.internal import INTERNAL
from kbatchd.gateway import unavailable
from kbatchd.gateway.database import Outcome
from kbatchd.gateway.problems import Problem
from kbatchd.kafka.sending import RecordTooLarge
from kbatchd.schema.pausing import Pause

if TYPE_CHECKING:
    from collections.abc import Sequence

    from kbatchd.door.door import Door
    from kbatchd.files.bodies import Records
    from kbatchd.gateway.problems import Answer
    from kbatchd.kafka.sending import NotAcknowledged, NotSent
    from kbatchd.model import OffsetRange, Refusal
    from kbatchd.schema.arrived import DeadLetter

#: So many refused records are named in an answer, 1 MB of it; all are counted.
NAMED_ERRORS = 10_000

#: Of so many refused records all faults are named, of the others the first.
THOROUGH_RECORDS = 100


def accepted(
    head: bytes,
    count: int,
    ranges: Sequence[OffsetRange],
    outcome: Outcome | Pause | list[DeadLetter] | None = None,
    *,
    single: bool,
) -> Answer:
    """Make the answer to records that are in Kafka, and maybe in the table; raise the one that says they are not."""
    if isinstance(outcome, list):
        raise _dead(outcome)
    if outcome is Outcome.LOST:
        raise Problem(
            HTTPStatus.GATEWAY_TIMEOUT, "lost", "Kafka lost records of this request", {"acknowledged": _shown(ranges)}
        )
    status = 200 if outcome is Outcome.COMMITTED else 202
    why = {"pending": f"the route is {outcome}"} if isinstance(outcome, Pause) else {}
    if single and ranges:  # none: Kafka has the record, and has not said where
        [(partition, offset, _)] = ranges
        if why:
            place = {"topic": partition.topic, "partition": partition.number, "offset": offset}
            return _json(status, orjson.dumps({**place, **why}))
        return one(head, partition.number, offset, status)
    return _json(status, orjson.dumps({"count": count, "ranges": _shown(ranges), **why}))


def one(head: bytes, number: int, offset: int, status: int = 202) -> Answer:
    """Make the answer to one record that is in Kafka."""
    return _json(status, b'%b%d,"offset":%d}' % (head, number, offset))


def _json(status: int, body: bytes) -> Answer:
    return status, [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))], body


def _shown(ranges: Sequence[OffsetRange]) -> list[dict[str, object]]:
    return [
        {"topic": at.topic, "partition": at.number, "first_offset": first, "last_offset": last}
        for at, first, last in ranges
    ]


def too_large(detail: str) -> Problem:
    """Make the answer to a body that is too large."""
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", detail)


def refused(refusals: Sequence[tuple[int, Refusal]], records: Records, door: Door) -> Problem:
    """Make the answer to records that do not fit; or that it is the gateway's fault, if it is with one of them."""
    errors: list[dict[str, object]] = []
    for number, (index, why) in enumerate(refusals[:NAMED_ERRORS]):
        faults = door.faults(records.values[index], why) if number < THOROUGH_RECORDS else [door.fault(why)]
        errors += [
            {"line": records.lines[index], "field": field, "column": each.column, "code": each.code,
             "reason": each.message}
            for field, each in faults
        ]  # fmt: skip
    members = {"errors": errors[:NAMED_ERRORS]}
    how_many = f"{len(refusals)} of {len(records.values)} records"
    if any(why.code == INTERNAL for _, why in refusals):
        detail = f"an internal error of the gateway, with {how_many}; nothing was sent"
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", detail, members)
    detail = f"{how_many} do not fit the table; nothing was sent"
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "refused", detail, members)


def _dead(letters: Sequence[DeadLetter]) -> Problem:
    errors = [
        {
            "partition": letter.partition,
            "offset": letter.offset,
            "column": letter.column,
            "code": letter.code,
            "reason": letter.message,
        }
        for letter in letters
    ]
    return Problem(
        HTTPStatus.UNPROCESSABLE_ENTITY, "dead-letter", f"{len(errors)} records became dead letters", {"errors": errors}
    )


def not_sent(error: NotSent, records: Records) -> Problem:
    """Make the answer to records of which Kafka has seen none."""
    if isinstance(error, RecordTooLarge):
        detail, members = f"{error}; nothing was sent", {"line": records.lines[error.index]}
        return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "record-too-large", detail, members)
    return unavailable.not_sent(error)


def not_acknowledged(error: NotAcknowledged) -> Problem:
    """Make the answer to records of which Kafka has not acknowledged all."""
    if error.certain and not error.known:
        return unavailable.kafka_refused(error)
    known = {"acknowledged": _shown(error.known)}
    what = "some records are not in Kafka" if error.certain else "whether the other records are in Kafka is not known"
    return Problem(HTTPStatus.GATEWAY_TIMEOUT, "not-acknowledged", f"{error}; {what}", known)
