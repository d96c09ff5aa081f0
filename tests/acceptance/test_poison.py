"""Rows that PostgreSQL refuses stand in nobody's way: each is a dead letter, once, and the rest goes in."""

from __future__ import annotations

import random

import orjson
import pytest
from confluent_kafka import Producer

from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_load import TABLE as TABLE_OF_NUMBERS
from tests.fix_load import Delivery, MakeDelivery, value

#: One table with everything that can refuse a row, by name (as COPY's context line does) or without.
TABLE = """
CREATE TABLE public.parents (id int PRIMARY KEY);
INSERT INTO public.parents VALUES (1);
CREATE TABLE public.picky (
    id bigint GENERATED ALWAYS AS IDENTITY, partition int NOT NULL, seq bigint NOT NULL, kind text,
    positive int CHECK (positive > 0), single int UNIQUE, doc jsonb, must int NOT NULL,
    parent int REFERENCES public.parents, late int REFERENCES public.parents DEFERRABLE INITIALLY DEFERRED
);
INSERT INTO public.picky (partition, seq, single, must) VALUES (-1, 0, 7, 1);
CREATE FUNCTION public.judge() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.kind = 'raise' THEN RAISE EXCEPTION 'I will not have it'; END IF;
    IF NEW.kind = 'null' THEN NEW.must := NULL; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER judge BEFORE INSERT ON public.picky FOR EACH ROW EXECUTE FUNCTION public.judge();
"""

#: What makes a record poison, and the code its dead letter must have.
POISON: dict[str, tuple[dict[str, object], str]] = {
    "check": ({"positive": -1}, "23514"),
    "unique": ({"single": 7}, "23505"),
    "null": ({}, "23502"),
    "raise": ({}, "P0001"),
    "nul": ({"doc": {"text": "a\0b"}}, "null_byte"),
    "range": ({"positive": 2**31}, "out_of_range"),
    "foreign": ({"parent": 2}, "23503"),
    "deferred": ({"late": 2}, "23503"),
}

RECORDS = 3_000


def test_each_refused_row_is_one_dead_letter(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    # Given: good and bad records in random order, now and then several bad ones in a row.
    delivery = make_delivery(2, "public.unused")
    delivery = Delivery(delivery.bootstrap_servers, delivery.topic, 2, delivery.dsn, "public.picky")
    delivery.execute(TABLE)
    expected = produce(
        delivery, [random.choice(list(POISON)) if random.random() < 0.02 else "" for _ in range(RECORDS)]
    )

    daemon = make_daemon(delivery.route, batch={"max_rows": 500}).start()
    delivery.wait_drained(60)

    dead = delivery.query('SELECT partition, "offset", code FROM kbatchd.dead_letters ORDER BY 1, 2')
    assert dead == sorted(expected)
    delivery.execute("DELETE FROM public.picky WHERE partition = -1")
    delivery.assert_exactly_once()
    assert daemon.stop() == 0


def test_too_many_dead_letters_in_a_row_halt_the_route_alone(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon
) -> None:
    # Given: nothing but poison for one route, of the encoder's kind for another, and good records for a third.
    limit = 50
    refused, undecodable, good = (make_delivery(1, f"public.{name}") for name in ("refused", "undecodable", "good"))
    refused.execute("ALTER TABLE public.refused ADD CONSTRAINT low CHECK (seq < 100)")
    refused.send(300)
    producer = Producer({"bootstrap.servers": good.bootstrap_servers})
    for _ in range(300):
        producer.produce(undecodable.topic, b"no JSON")
    producer.flush()
    good.send(300)

    daemon = make_daemon(
        {**refused.route, "max_dead_letters": limit},
        {**undecodable.route, "max_dead_letters": limit},
        good.route,
        workers={"count": 1},
    ).start()

    # Then: both stop at the limit, and the third goes on.
    daemon.wait_for_log("action=breaker_open", 15, count=2)
    good.send(300, first=300)
    good.wait_drained()
    good.assert_exactly_once()
    statement = "SELECT count(*) FROM kbatchd.dead_letters WHERE topic = %s"
    assert refused.query(statement, refused.topic) == [(limit,)]
    assert undecodable.query(statement, undecodable.topic) == [(limit,)]
    assert refused.progress() == {0: 100 + limit}
    assert undecodable.progress() == {0: limit}

    # And: fixed and started again, the route goes on behind its dead letters.
    assert daemon.stop() == 0
    refused.execute("ALTER TABLE public.refused DROP CONSTRAINT low")
    daemon.start()
    refused.wait_drained()
    refused.assert_exactly_once()
    wait_until(lambda: undecodable.progress() == {0: 2 * limit}, 10, "the breaker of the other route again")


def produce(delivery: Delivery, kinds: list[str]) -> list[tuple[int, int, str]]:
    """Send a record for each kind of poison (or none), to both partitions in turn; return the dead letters due."""
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers, "enable.idempotence": True})
    dead = []
    for index, kind in enumerate(kinds):
        partition, seq = index % 2, index // 2
        record = {**orjson.loads(value(partition, seq)), "kind": kind, "must": 1, "single": index + 100}
        if kind:
            fields, code = POISON[kind]
            record |= fields
            dead.append((partition, seq, code))
        producer.produce(delivery.topic, orjson.dumps(record), partition=partition)
    assert producer.flush(30) == 0
    return dead


def test_poison_in_text_format_with_absent_fields(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    """PostgreSQL reads the values itself, from several COPYs a batch: each refusal still names its own record."""
    delivery = make_delivery(1)
    delivery.execute(
        f"ALTER TABLE {delivery.table} ADD span int4range DEFAULT '[7,8)', ADD note text DEFAULT 'none', "
        "ADD CHECK (note <> 'bad')"
    )
    records, dead, spans = [], [], []
    for seq in range(RECORDS):
        record: dict[str, object] = {"partition": 0, "seq": seq}
        code = random.choices(["", "22000", "23514"], [50, 1, 1])[0]
        if code == "22000" or random.random() < 0.5:
            record["span"] = "[9,1)" if code == "22000" else f"[{seq},{seq + 1})"
        if code == "23514" or random.random() < 0.5:
            record["note"] = "bad" if code == "23514" else "good"
        records.append(orjson.dumps(record))
        if code:
            dead.append((seq, code))
        else:
            spans.append((seq, record.get("span", "[7,8)"), record.get("note", "none")))
    send(delivery, records)
    make_daemon({**delivery.route, "on_missing": "default"}, batch={"max_rows": 700}).start()
    delivery.wait_drained()
    assert delivery.query('SELECT "offset", code FROM kbatchd.dead_letters ORDER BY 1') == dead
    assert delivery.query(f"SELECT seq, span::text, note FROM {delivery.table} ORDER BY seq") == spans


@pytest.mark.parametrize(
    ("kind", "count"),
    [("encoder", 100_000), ("PostgreSQL", 3_000), pytest.param("PostgreSQL", 100_000, marks=pytest.mark.soak)],
)
def test_nothing_but_poison_with_the_breaker_off(
    delivery: Delivery, make_daemon: MakeDaemon, kind: str, count: int
) -> None:
    """Neither a crash nor a stall: the same workers write all of it into the bin, and then go on with what is good."""
    if kind == "PostgreSQL":
        delivery.execute(f"ALTER TABLE {delivery.table} ADD CHECK (seq > {count})")
        delivery.send(count)
    else:
        send(delivery, [b'{"partition":"none","seq":%d}' % seq for seq in range(count)])
    daemon = make_daemon(
        {**delivery.route, "max_dead_letters": 0},
        batch={"max_rows": 20_000},
        workers={"heartbeat_timeout_seconds": 10.0},
    ).start()
    daemon.wait_ready()
    workers = daemon.workers()
    delivery.send(100, first=count + 1)
    delivery.wait_drained(30 + count / 500)
    assert delivery.query("SELECT count(*) FROM kbatchd.dead_letters") == [(count,)]
    delivery.assert_exactly_once()
    assert daemon.workers() == workers


@pytest.mark.parametrize("on_missing_partition", ["wait", "dead_letter"])
def test_a_row_without_a_partition(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon, on_missing_partition: str
) -> None:
    """Nothing is wrong with the record: its route waits, and says for what; or one record need not stop it."""
    # Given: partitions of the table for all records but the last ten of each partition.
    delivery = make_delivery(2, "public.unused")
    delivery = Delivery(delivery.bootstrap_servers, delivery.topic, 2, delivery.dsn, "public.split")
    delivery.execute(
        f"{TABLE_OF_NUMBERS.format('public.split')} PARTITION BY RANGE (seq);"
        "CREATE TABLE public.split_low PARTITION OF public.split FOR VALUES FROM (0) TO (90)"
    )
    delivery.send(200)

    route = {**delivery.route, "on_missing_partition": on_missing_partition}
    daemon = make_daemon(route, batch={"linger_seconds": 0.2}, workers={"count": 1}).start()

    if on_missing_partition == "wait":
        daemon.wait_for_log("has no partition to go to", 30, count=2)
        (line, *_) = daemon.logged("has no partition to go to")
        assert "action=aside" in line
        assert f"{delivery.topic}[" in line
        assert "FOR VALUES FROM ('9" in line
        assert "on_missing_partition" in line
        assert delivery.query("SELECT count(*) FROM kbatchd.dead_letters") == [(0,)]
        delivery.execute("CREATE TABLE public.split_high PARTITION OF public.split FOR VALUES FROM (90) TO (1000)")
        delivery.wait_drained()
        delivery.assert_exactly_once()
    else:
        delivery.wait_drained()
        dead = delivery.query('SELECT partition, "offset", code FROM kbatchd.dead_letters ORDER BY 1, 2')
        assert dead == [(partition, offset, "23514") for partition in (0, 1) for offset in range(90, 100)]
    assert daemon.stop() == 0


def test_by_default_the_10001st_in_a_row_halts_the_route(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    delivery = make_delivery(1)
    send(delivery, [b"no JSON"] * 10_500)
    daemon = make_daemon(delivery.route, workers={"count": 1}).start()
    daemon.wait_for_log("action=breaker_open", 30)
    assert delivery.query("SELECT count(*) FROM kbatchd.dead_letters") == [(10_000,)]
    assert delivery.progress() == {0: 10_000}


def send(delivery: Delivery, values: list[bytes]) -> None:
    """Send these values to the partitions in turn."""
    producer = Producer(
        {"bootstrap.servers": delivery.bootstrap_servers, "queue.buffering.max.messages": 1_000_000, "linger.ms": 5}
    )
    for index, body in enumerate(values):
        producer.produce(delivery.topic, body, partition=index % delivery.partitions)
    assert producer.flush(60) == 0
