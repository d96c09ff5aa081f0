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
    return _unavailable("too-many-connections", "the gateway has all the connections that it may have")


def memory_full() -> Problem:
    """Make the answer to what there is no room for."""
    detail = "the gateway holds as much of unfinished requests as it may; nothing of this one was sent"
    return _unavailable("memory-full", detail)


def table_unknown(route: str, why: str) -> Problem:
    """Make the answer to records that nobody can check."""
    return _unavailable("table-unknown", f"route {route}: {why}")


def not_sent(error: NotSent) -> Problem:
    """Make the answer to records that the producer does not take now."""
    return _unavailable("kafka-away" if isinstance(error, KafkaAway) else "queue-full", f"{error}; nothing was sent")


def kafka_refused(error: NotAcknowledged) -> Problem:
    """Make the answer to records of which Kafka has taken none."""
    return _unavailable("kafka-refused", f"Kafka refused: {error}", {"acknowledged": []})


def _unavailable(kind: str, detail: str, more: dict[str, object] | None = None) -> Problem:
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, kind, detail, more, RETRY_AFTER)
