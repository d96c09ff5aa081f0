"""Five topics as somebody may have them: made up, the same ones for the same seed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

_START = datetime(2026, 1, 31, 8, 0, tzinfo=UTC)


def _at(random: Random, n: int) -> datetime:
    return _START + timedelta(seconds=n * 0.7, microseconds=random.randrange(10**6))


def _uuid(random: Random) -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def webhooks(random: Random, n: int) -> dict[str, Any]:
    """Events of a payment provider: a type decides what is in `data`."""
    kind = random.choice(["invoice.paid", "customer.created", "charge.refunded"])
    data: dict[str, Any] = {"object": {"id": f"obj_{random.getrandbits(40):x}", "amount": random.randrange(10**6)}}
    if kind == "customer.created":
        data = {"object": {"email": f"user{n}@example.com", "name": random.choice(["Ann", "Bjørn", "陳"])}}
    return {
        "id": f"evt_{n:06d}{random.getrandbits(32):x}",
        "type": kind,
        "created": int(_at(random, n).timestamp()),
        "livemode": random.random() < 0.9,
        "api_version": random.choice(["2025-11-01", "2026-01-15.preview"]),
        "pending_webhooks": random.randrange(3),
        "request": random.choice([None, {"id": None, "idempotency_key": _uuid(random)}, "req_1"]),
        "data": data,
    }


def orders(random: Random, n: int) -> dict[str, Any]:
    """Orders with their lines and an address, a reserved word and a name that needs its quotes."""
    lines = [{"sku": f"S-{random.randrange(999)}", "quantity": random.randrange(1, 9)} for _ in range(n % 4)]
    order: dict[str, Any] = {
        "order_id": _uuid(random),
        "order": n,
        "orderDate": (_START.date() - timedelta(days=random.randrange(900))).isoformat(),
        "placed at": _at(random, n).isoformat(),
        "total": random.randrange(10**7) / 100,
        "currency": random.choice(["EUR", "USD", "JPY"]),
        "customer": {
            "id": random.randrange(10**9),
            "address": {"city": "Zürich", "zip": random.choice(["8001", 8002])},
        },
        "items": lines,
        'a "quoted" name': "x",
    }
    if n % 3:
        order["coupon"] = random.choice(["SPRING", None])
    return order


def metrics(random: Random, n: int) -> dict[str, Any]:
    """Measurements: floats of all sizes, counters beyond 64 bits, labels."""
    return {
        "ts": _at(random, n).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "name": random.choice(["cpu_seconds_total", "http_request_duration", "heap"]),
        "value": random.choice([random.random(), random.gauss(0, 1e-9), 1e21 * random.random(), 0.0, -0.0]),
        "total_bytes": 2**63 + random.getrandbits(66),
        "labels": {"host": f"web-{random.randrange(9)}", "le": random.choice(["0.5", "+Inf"])},
        "up": random.choice([0, 1]),
    }


def logs(random: Random, n: int) -> dict[str, Any]:
    """Lines of several programs: fields that come and go, a code that is a number here and a word there."""
    line: dict[str, Any] = {
        "@timestamp": _at(random, n).isoformat(timespec="microseconds"),
        "level": random.choice(["INFO", "WARN", "ERROR"]),
        "message": random.choice(["started", "no route\tto host", "naïve 🙂", "a\\u0000b", ""]),
        "pid": random.randrange(1, 2**22),
        "code": random.choice([17, "ENOENT", 2.5, None]),
    }
    if line["level"] == "ERROR":
        line["stack"] = ["a.py:1", "b.py:2"]
    if n % 7 == 0:
        line["ctid"] = "a name that PostgreSQL keeps for itself"
        line["x" * 70] = 1
    return line


def clicks(random: Random, n: int) -> dict[str, Any]:
    """A clickstream: times without an offset, a session that comes again and again, sparse fields, empty objects."""
    return {
        "event_id": _uuid(random),
        "session_id": _uuid(Random(n // 20)),
        "userId": random.choice([None, random.randrange(10**12)]),
        "at": _at(random, n).strftime("%Y-%m-%d %H:%M:%S"),
        "url": f"https://example.com/{random.choice(['', 'a?b=c&d=é', '%00'])}",
        "referrer": None,
        "viewport": [random.randrange(2000), random.randrange(2000)],
        "scroll": random.randrange(101) / 100,
        "props": random.choice([{}, {"ab_test": "B"}]),
    }


TOPICS: dict[str, Callable[[Random, int], dict[str, Any]]] = {
    "webhooks": webhooks,
    "orders": orders,
    "metrics": metrics,
    "logs": logs,
    "clicks": clicks,
}


def records(name: str, count: int, seed: int = 1) -> Iterator[bytes]:
    """Yield so many records of one of the topics."""
    random = Random(seed)
    for n in range(count):
        yield json.dumps(TOPICS[name](random, n), ensure_ascii=bool(n % 2)).encode()
