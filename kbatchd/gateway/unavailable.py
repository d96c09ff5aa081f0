"""503: what the gateway cannot take now, though it could another time. All its reasons, with the answer to each.

    too many connections   a client connects (protocol.py)
    memory full            bytes are read or unpacked (protocol.py, memory.py)
    table unknown          a record is about to be checked (app.py)
    Kafka away             the producer has nobody to send to, or none who answers (kafka/producer.py)
    queue full             the producer counts what waits for Kafka (kafka/producer.py)
    Kafka refused          brokers want none of the records (kafka/sending.py)

Nothing of such a request is in Kafka. Called on a gateway's event loop, and by the threads that unpack; pure.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from kbatchd.gateway.problems import Problem
from kbatchd.kafka.sending import KafkaAway

if TYPE_CHECKING:
    from kbatchd.kafka.sending import NotAcknowledged, NotSent

#: How soon a client shall try again.
RETRY_AFTER = {b"retry-after": b"1"}


def too_many_connections() -> Problem:
    """Make the answer to a connection beyond `max_connections`."""
    detail = "the gateway has all the connections that it may have"
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "too-many-connections", detail, None, RETRY_AFTER)


def memory_full() -> Problem:
    """Make the answer to what there is no room for."""
    detail = "the gateway holds as much of unfinished requests as it may; nothing of this one was sent"
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "memory-full", detail, None, RETRY_AFTER)


def table_unknown(route: str, why: str) -> Problem:
    """Make the answer to records that nobody can check."""
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "table-unknown", f"route {route}: {why}", None, RETRY_AFTER)


def not_sent(error: NotSent) -> Problem:
    """Make the answer to records that the producer does not take now."""
    kind = "kafka-away" if isinstance(error, KafkaAway) else "queue-full"
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, kind, f"{error}; nothing was sent", None, RETRY_AFTER)


def kafka_refused(error: NotAcknowledged) -> Problem:
    """Make the answer to records of which Kafka has taken none."""
    none: dict[str, object] = {"acknowledged": []}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "kafka-refused", f"Kafka refused: {error}", none, RETRY_AFTER)
