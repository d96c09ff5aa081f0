"""Keys that come again and again: the table holds the last record of each, whatever dies and however hot they are."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

import orjson
import pytest
from confluent_kafka import Producer

from tests.acceptance.test_kills import kill_worker
from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_load import Delivery, MakeDelivery, read_topic

if TYPE_CHECKING:
    from types import TracebackType

KILLS = 8
HOT_KEYS = 20
WORKERS = 8

#: What became of each key is written down by a trigger: a row that goes in twice, or after a later one, shows.
TABLE = """
CREATE TABLE public.kept (k int PRIMARY KEY, partition int NOT NULL, seq bigint NOT NULL CHECK (seq % 1000 <> 999));
CREATE TABLE public.history (id bigint GENERATED ALWAYS AS IDENTITY, k int, partition int, seq bigint);
CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN INSERT INTO public.history (k, partition, seq) VALUES (NEW.k, NEW.partition, NEW.seq); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON public.kept FOR EACH ROW EXECUTE FUNCTION public.note();
"""


@dataclass(slots=True)
class Changes:
    """Sends changes of keys until the block ends, each partition's numbered; every key in one partition, or in all."""

    delivery: Delivery
    keys: int
    per_second: float
    everywhere: bool = False
    #: How many of the changes are deletes.
    deletes: float = 0.0
    sent: int = 0
    _stopped: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, name="changes")
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopped.set()
        assert self._thread is not None
        self._thread.join()

    def _run(self) -> None:
        producer = Producer(
            {"bootstrap.servers": self.delivery.bootstrap_servers, "enable.idempotence": True, "linger.ms": 5}
        )
        seqs = dict.fromkeys(range(self.delivery.partitions), 0)
        started = time.monotonic()
        while not self._stopped.wait(0.01):
            while self.sent < (time.monotonic() - started) * self.per_second:
                key = random.randrange(self.keys)
                partition = (
                    random.randrange(self.delivery.partitions) if self.everywhere else key % self.delivery.partitions
                )
                seqs[partition] += 1
                body: bytes | None = orjson.dumps({"k": key, "partition": partition, "seq": seqs[partition]})
                if random.random() < self.deletes:
                    body = random.choice([None, orjson.dumps({"k": key, "op": "d"})])
                producer.produce(self.delivery.topic, body, str(key).encode(), partition=partition)
                self.sent += 1
            producer.poll(0)
        assert producer.flush(60) == 0


class MakeKept(Protocol):
    """Makes a topic of changes and the table that keeps the last of each key."""

    def __call__(self, partitions: int) -> Delivery: ...


@pytest.fixture
def make_kept(make_delivery: MakeDelivery) -> MakeKept:
    """Make a topic of changes and the table that keeps the last of each key."""

    def make(partitions: int) -> Delivery:
        made = make_delivery(partitions)
        made.execute(TABLE)
        return Delivery(made.bootstrap_servers, made.topic, partitions, made.dsn, "public.kept")

    return make


def upsert(delivery: Delivery, **more: object) -> dict[str, object]:
    return {**delivery.route, "mode": "upsert", "key": ["k"], **more}


def test_kills_leave_the_last_of_each_key(make_kept: MakeKept, make_daemon: MakeDaemon) -> None:
    delivery = make_kept(4)
    route = upsert(delivery, delete_when={"field": "op", "equals": "d"}, columns={"k": {"source": "key"}})
    daemon = make_daemon(route, batch={"max_rows": 300, "linger_seconds": 0.1}).start()
    daemon.wait_ready()
    with Changes(delivery, keys=500, per_second=5_000, deletes=0.2):
        for _ in range(KILLS):
            time.sleep(random.uniform(0.05, 0.8))  # the random moment itself, no wait for anything
            kill_worker(daemon)
    delivery.wait_drained()
    assert daemon.stop() == 0

    # Then: of each key the last is there, but for what the table refuses; nothing went in twice, or after a later one.
    last: dict[int, tuple[int, int]] = {}
    refused = set()
    for message in read_topic(delivery.bootstrap_servers, delivery.topic):
        change = orjson.loads(message.value() or b'{"op":"d"}')
        if "op" in change:
            last.pop(int(message.key() or b""), None)
        elif change["seq"] % 1000 == 999:
            refused.add((message.partition(), message.offset()))
        else:
            last[change["k"]] = change["partition"], change["seq"]
    assert {k: (p, s) for k, p, s in delivery.query("SELECT k, partition, seq FROM public.kept")} == last
    dead = delivery.query('SELECT partition, "offset" FROM kbatchd.dead_letters')
    assert len(set(dead)) == len(dead), "a dead letter twice"
    assert set(dead) <= refused
    assert (
        delivery.query(
            "SELECT * FROM (SELECT k, seq, lag(seq) OVER (PARTITION BY k ORDER BY id) AS before FROM public.history) h "
            "WHERE before >= seq"
        )
        == []
    )


@pytest.mark.parametrize("seconds", [10, pytest.param(600, marks=pytest.mark.soak)])
def test_workers_on_hot_keys_never_deadlock(make_kept: MakeKept, make_daemon: MakeDaemon, seconds: float) -> None:
    # Given: the same few keys in every partition, so that all workers change the same rows all the time.
    delivery = make_kept(WORKERS)
    daemon = make_daemon(
        upsert(delivery),
        workers={"count": WORKERS},
        batch={"max_rows": 200, "linger_seconds": 0.05},
        # To wait for the others is no fault; a deadlock is one.
        postgres={"dsn": delivery.dsn, "lock_timeout_seconds": 60.0},
    )
    daemon.start().wait_ready(60)
    with Changes(delivery, HOT_KEYS, per_second=6_000, everywhere=True) as changes:
        deadline = time.monotonic() + seconds
        wait_until(
            lambda: time.monotonic() > deadline and changes.sent > 2_000 * seconds,
            seconds + 5,
            "the time to be over, and much sent in it",
            every_seconds=0.2,
        )
    delivery.wait_drained(60)
    assert daemon.stop() == 0

    # Then: all of it is in, and nobody ever had to give way.
    assert delivery.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == [(0,)]
    assert not daemon.logged("action=retry")
    assert not daemon.logged("action=postgres_lost")
    last: dict[tuple[int, int], int] = {}
    for message in read_topic(delivery.bootstrap_servers, delivery.topic):
        change = orjson.loads(message.value() or b"")
        if change["seq"] % 1000 != 999:
            last[change["k"], change["partition"]] = change["seq"]
    kept = delivery.query("SELECT k, partition, seq FROM public.kept")
    assert len(kept) == HOT_KEYS
    assert [row for row in kept if row not in {(*at, seq) for at, seq in last.items()}] == [], "not a partition's last"


def test_a_key_that_is_none_stops_the_start(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    delivery = make_delivery(1)
    delivery.execute("ALTER TABLE public.numbered ALTER seq DROP NOT NULL")
    daemon = make_daemon(delivery.route | {"mode": "upsert", "key": ["partition", "seq"]}).start()
    assert daemon.wait() == 78
    assert daemon.logged("key column seq may be NULL")
    assert daemon.logged("there is no unique index on (partition, seq)")
