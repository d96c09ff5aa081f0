"""Generated API requests, the records of the demo and the bench: the same ones for the same seed.

One record is a JSON object of about 270 bytes with the fields of sql/examples/requests.sql. Called in the process that
produces: the demo, a test, the bench.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING

from confluent_kafka import Producer

from kbatchd.errors import KbatchError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from confluent_kafka import KafkaError, Message

#: The first request's time. Fixed, so that the same seed gives the same bytes.
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

METHODS = ("GET", "GET", "GET", "POST", "PUT", "PATCH", "DELETE", "GET")
RESOURCES = ("users", "orders", "items", "carts", "invoices", "sessions", "reports", "search")
STATUSES = (200, 200, 200, 200, 200, 200, 201, 204, 301, 304, 400, 401, 403, 404, 429, 500)
AGENTS = ("curl/8.9", "okhttp/5.1", "Firefox/141", "Chrome/139", "Go-http/2.0", "python/3.13")
TAGS = ('"web"', '"app","eu"', '"app","us"', '"batch"', '"web","beta"', '"intern"', '"caf\u00e9"', "")

#: How many records go to the producer between two looks at its delivery reports.
ROUND = 2_000


class NotDelivered(KbatchError):
    """Kafka did not take every record."""


def generate(count: int, first_id: int = 0, seed: int = 0) -> Iterator[bytes]:
    """Yield `count` requests with the ids from `first_id` on, one a millisecond of their own time.

    Formatted by hand, 3 to 4 us each: the sender must not be what a benchmark measures.
    """
    bits = Random(f"{seed}/{first_id}").getrandbits  # noqa: S311 - test data
    second, prefix = -1, ""
    for number in range(first_id, first_id + count):
        if number // 1000 != second:
            second = number // 1000
            prefix = (BEGIN + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")
        uuid = f"{bits(128):032x}"
        draw = bits(64)
        yield (
            f'{{"id":{number},"request_id":"{uuid[:8]}-{uuid[8:12]}-4{uuid[13:16]}-a{uuid[17:20]}-{uuid[20:]}",'
            f'"user_id":{draw & 0xFFFFF},"method":"{METHODS[draw >> 20 & 7]}",'
            f'"path":"/v1/{RESOURCES[draw >> 23 & 7]}/{draw >> 26 & 0xFFFF}","status":{STATUSES[draw >> 42 & 15]},'
            f'"latency_ms":{draw >> 46 & 0xFF}.{number * 7919 % 1000:03},'
            f'"created_at":"{prefix}.{number % 1000:03}{draw % 1000:03}Z",'
            f'"payload":{{"ip":"10.{draw >> 54 & 0xFF}.{draw >> 30 & 0xFF}.{draw & 0xFF}",'
            f'"agent":"{AGENTS[draw % 6]}","bytes":{draw >> 44 & 0xFFFF},"tags":[{TAGS[draw >> 61]}]}}}}'
        ).encode()


def send(
    bootstrap_servers: str,
    topic: str,
    values: Iterable[bytes],
    partitions: int,
    on_sent: Callable[[int], None] = lambda _: None,
) -> int:
    """Send each value once, to the partitions in turn, and return how many Kafka acknowledged: all, or NotDelivered.

    `on_sent` hears the number acknowledged so far, every few thousand records.
    """
    failures: list[KafkaError] = []

    def note_failure(error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            failures.append(error)

    producer = Producer(
        {
            "bootstrap.servers": bootstrap_servers,
            "enable.idempotence": True,  # no record twice, none out of order
            "linger.ms": 5,
            "compression.type": "lz4",
            "log_level": 0,  # what fails comes back in the delivery reports
            "delivery.report.only.error": True,  # a Python call for each record would halve the rate
        }
    )
    produced = 0
    for value in values:
        while True:
            try:
                producer.produce(topic, value, partition=produced % partitions, on_delivery=note_failure)
                break
            except BufferError:  # the producer's queue is full: let it work
                producer.poll(0.05)
                on_sent(produced - len(producer))
        produced += 1
        if produced % ROUND == 0:
            producer.poll(0)
            on_sent(produced - len(producer))
            _check(failures)
    while producer.flush(0.2):
        on_sent(produced - len(producer))
        _check(failures)
    _check(failures)
    on_sent(produced)
    return produced


def _check(failures: list[KafkaError]) -> None:
    if failures:
        raise NotDelivered(f"Kafka did not take {len(failures)} records or more; the first: {failures[0].str()}")
