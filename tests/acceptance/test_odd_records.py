"""One record never stops more than itself: what made a worker die again and again is a row, or one dead letter."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, cast

from confluent_kafka import Producer

from tests.raw_producer import send_raw

if TYPE_CHECKING:
    from tests.fix_daemon import MakeDaemon
    from tests.fix_load import Delivery, MakeDelivery

#: Latin-1's e acute, half a surrogate pair, a lone continuation byte; two in one record.
ODD_NAMES = [b"caf\xe9", b"\xed\xa0\x80", b"\x80"]
SHOWN = ["caf\\xe9", "\\xed\\xa0\\x80", "\\x80"]


def send(delivery: Delivery, *values: bytes | None, key: bytes | None = None) -> None:
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers})
    for body in values:
        producer.produce(delivery.topic, body, key=key, partition=0)
    assert producer.flush(30) == 0


def test_a_header_whose_name_is_no_utf8(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    collected, one, refused = (make_delivery(1, f"public.{name}") for name in ("collected", "one", "refused"))
    collected.execute("ALTER TABLE public.collected ADD h jsonb")
    one.execute("ALTER TABLE public.one ADD h text")
    odd: list[tuple[bytes, bytes | None]] = [
        (b"ok", b"1"),
        *((name, b"x") for name in ODD_NAMES),
        (b"none", None),
    ]
    records: list[tuple[bytes | None, list[tuple[bytes, bytes | None]]]] = [
        (b'{"partition":0,"seq":0}', [(b"ok", b"1")]),
        (b'{"partition":0,"seq":1}', odd),
        (b'{"partition":0,"seq":2}', [(b"ok", b"2")]),
    ]
    for delivery in (collected, one):
        send_raw(delivery.bootstrap_servers, delivery.topic, records)
    send_raw(refused.bootstrap_servers, refused.topic, [(b"no JSON", odd), *records[:1]])
    daemon = make_daemon(
        {**collected.route, "columns": {"h": {"source": "headers"}}},
        {**one.route, "columns": {"h": {"source": "header:ok"}}},
        refused.route,
        workers={"count": 1},
    ).start()
    for delivery in (collected, one, refused):
        delivery.wait_drained()

    rows = collected.query("SELECT seq, h FROM public.collected ORDER BY seq")
    assert rows == [(0, {"ok": "1"}), (1, {"ok": "1", **dict.fromkeys(SHOWN, "x"), "none": None}), (2, {"ok": "2"})]
    assert one.query("SELECT seq, h FROM public.one ORDER BY seq") == [(0, "1"), (1, "1"), (2, "2")]
    (letter,) = refused.query("SELECT code, headers, message FROM kbatchd.dead_letters")
    code, headers, message = cast("tuple[str, list[list[str | None]], str]", letter)
    assert code == "not_json"
    assert "cannot be read" not in message
    pairs = [(name, None if text is None else base64.b64decode(text)) for name, text in headers]
    assert pairs == [("ok", b"1"), *((name, b"x") for name in SHOWN), ("none", None)]
    assert len(daemon.workers()) == 1
    assert daemon.stop() == 0


def test_a_zero_with_a_large_exponent_and_a_tombstone_without_its_key(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon
) -> None:
    zero, rest = make_delivery(1, "public.zero"), make_delivery(1, "public.rest")
    zero.execute("ALTER TABLE public.zero ADD r real, ADD at timestamptz, ADD n numeric")
    rest.execute("DROP TABLE public.rest; CREATE TABLE public.rest (c jsonb NOT NULL UNIQUE, v int)")
    literals = ["0e1000000000000000000", "-0e-1000000000000000000", "1.5"]
    send(zero, *(f'{{"partition":0,"seq":{n},"r":{x},"at":{x}}}'.encode() for n, x in enumerate(literals)))
    send(rest, b'{"a":1,"v":1}', None, b'{"a":2,"v":2}', key=b"k")
    daemon = make_daemon(
        {**zero.route, "columns": {"at": {"field": "at", "unit": "s"}}},
        {**rest.route, "mode": "upsert", "key": ["c"], "unknown_fields": "c"},
        workers={"count": 1},
    ).start()
    zero.wait_drained()
    rest.wait_drained()
    assert zero.query("SELECT r::text, extract(epoch FROM at)::float8 FROM public.zero ORDER BY seq") == [
        ("0", 0),
        ("-0", 0),
        ("1.5", 1.5),
    ]
    assert rest.query("SELECT c, v FROM public.rest ORDER BY v") == [({"a": 1}, 1), ({"a": 2}, 2)]
    assert rest.query('SELECT "offset", code, "column" FROM kbatchd.dead_letters') == [(1, "no_value", "c")]
    assert len(daemon.workers()) == 1
    assert daemon.stop() == 0
