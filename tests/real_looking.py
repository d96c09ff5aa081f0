"""Topics as somebody may have them, flat ones and nested ones: made up, the same ones for the same seed."""

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


def audits(random: Random, n: int) -> dict[str, Any]:
    """What a cloud's console did: camelCase all over, identities that differ, objects deep within others."""
    event: dict[str, Any] = {
        "eventID": _uuid(random),
        "eventTime": _at(random, n).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "eventName": random.choice(["AssumeRole", "PutObject", "RunInstances"]),
        "sourceIPAddress": f"10.0.{n % 256}.1",
        "readOnly": n % 2 == 0,
        "userIdentity": {
            "type": random.choice(["AssumedRole", "Root"]),
            "accountId": f"{random.randrange(10**12):012d}",
            "sessionContext": {"attributes": {"mfaAuthenticated": "false", "creationDate": "2026-01-31T08:00:00Z"}},
        },
        "requestParameters": random.choice([None, {"bucket": "b"}, {"instanceType": "m", "count": 2}]),
    }
    if n % 5 == 0:
        event["errorCode"] = "AccessDenied"
    return event


def telemetry(random: Random, n: int) -> dict[str, Any]:
    """Devices: times in milliseconds and in seconds, a position that is not always there, numbers named like times."""
    return {
        "deviceId": f"dev-{random.randrange(50)}",
        "ts": int(_at(random, n).timestamp() * 1000),
        "bootTime": random.choice([1_767_225_600, None]),
        "uptime": random.randrange(10**6),
        "fix_time": random.choice([0, 1_767_225_600]),
        "gps": random.choice([None, {"lat": 47.3 + random.random(), "lon": 8.5, "alt": random.choice([None, 400.5])}]),
        "reading": {"temperature": random.randrange(400) / 10, "unit": "C", "flags": [n % 2, n % 3]},
        "battery.level": random.randrange(101),
    }


def payments(random: Random, n: int) -> dict[str, Any]:
    """Payments: an amount with its currency, a payer with an address that is not always whole, names that collide."""
    address = {"city": random.choice(["Zürich", "Bern"]), "country": "CH"}
    if n % 4 == 0:
        address["line2"] = "c/o Muster"
    return {
        "ID": n,
        "id": _uuid(random),
        "amount": {"value": f"{random.randrange(10**6)}.50", "currency": "CHF"},
        "amount_value": random.randrange(10**6),
        "payer": {"name": "Ann", "address": address},
        "createdAt": int(_at(random, n).timestamp() * 10**6),
        "user": {"id": random.randrange(10**12), "since": "2020-02-29"},
        "meta": {} if n % 2 else {"note": "\u0000" if n % 10 == 0 else "x"},
    }


def pushes(random: Random, n: int) -> dict[str, Any]:
    """Changes to repositories, in an object for each part, and in each another `id`."""
    return {
        "event": {"id": n, "type": "push", "at": _at(random, n).isoformat()},
        "repository": {
            "id": random.randrange(10**9),
            "full name": "a/b",
            "owner": {"id": 1, "login": "a", "site": None},
        },
        "commits": [{"sha": f"{random.getrandbits(160):040x}", "added": []} for _ in range(n % 3)],
        "head": None if n % 3 == 0 else {"sha": f"{random.getrandbits(160):040x}", "size": random.getrandbits(66)},
        "select": {"from": 1, "to": 2.5e-7},
        "": "no name at all",
    }


def counters(random: Random, n: int) -> dict[str, Any]:
    """What a browser counts: objects with free keys, objects of one number, a key that is a path elsewhere."""
    pages = {f"/{random.randrange(9)}": random.randrange(9) for _ in range(3)}
    return {
        "session-id": _uuid(Random(n // 20)),
        "Date": (_START.date() - timedelta(days=n % 30)).isoformat(),
        "pageViews": pages,
        "screen": {"w": random.choice([1920, 390]), "h": random.choice([1080, 844])},
        "screen.w": "one more",
        "timing": {"dns": random.random(), "load": {"start": n, "end": n + 1, "more": {"deep": {"er": 1}}}},
        "consent": random.choice([True, None]),
        "variant": random.choice([{"name": "A"}, "A"]),
    }


TOPICS: dict[str, Callable[[Random, int], dict[str, Any]]] = {
    "webhooks": webhooks,
    "orders": orders,
    "metrics": metrics,
    "logs": logs,
    "clicks": clicks,
}
NESTED: dict[str, Callable[[Random, int], dict[str, Any]]] = {
    "audits": audits,
    "telemetry": telemetry,
    "payments": payments,
    "pushes": pushes,
    "counters": counters,
}


def records(name: str, count: int, seed: int = 1) -> Iterator[bytes]:
    """Yield so many records of one of the topics."""
    random, make = Random(seed), {**TOPICS, **NESTED}[name]
    for n in range(count):
        yield json.dumps(make(random, n), ensure_ascii=bool(n % 2)).encode()
