"""`kbatchd replay-range`: a range is read again in one transaction beside the daemon, or nothing is changed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import psycopg
import pytest
from confluent_kafka import Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.acceptance.test_verify import COLUMNS, PLACED
from tests.fix_daemon import Command, Daemon, wait_until
from tests.fix_load import Delivery, value

if TYPE_CHECKING:
    from tests.fix_daemon import MakeDaemon
    from tests.fix_load import MakeDelivery

#: Of the numbers in it 7 is refused, and it is no multiple of the largest batch.
FIRST, END = 3, 45

DOUBLE = """
INSERT INTO public.placed (partition, seq, topic, kafka_partition, kafka_offset)
SELECT partition, seq, topic, kafka_partition, kafka_offset FROM public.placed WHERE kafka_offset = 30
"""

ReplayRange = Callable[..., tuple[int, str]]


@pytest.fixture
def placed(make_delivery: MakeDelivery) -> Delivery:
    """A topic, and a table that says where its rows are from."""
    delivery = make_delivery(2, "public.numbered")
    delivery.execute(PLACED)
    return replace(delivery, table="public.placed", name="placed")


@pytest.fixture
def daemon(placed: Delivery, make_daemon: MakeDaemon) -> Daemon:
    """A daemon with that route, and others that have no use for the command."""
    placed.execute("CREATE TABLE public.latest (seq bigint PRIMARY KEY)")
    latest = {"topic": placed.topic, "table": "public.latest", "name": "latest", "mode": "upsert", "key": ["seq"]}
    plain = {**placed.route, "table": "public.numbered", "name": "plain"}
    daemon = make_daemon({**placed.route, "columns": COLUMNS}, plain, latest, batch={"max_rows": 20}).start()
    daemon.wait_ready()
    placed.send(100)
    placed.wait_drained()
    return daemon


@pytest.fixture
def again(daemon: Daemon, command: Command) -> ReplayRange:
    """Run the command; return its exit code, and what it has said."""

    def run(first: int = FIRST, end: int = END, route: str = "placed") -> tuple[int, str]:
        options = ("--route", route, "--partition", "0", "--from", str(first), "--to", str(end))
        return command(daemon, "replay-range", *options)

    return run


def table(placed: Delivery) -> list[tuple[object, ...]]:
    return placed.query(
        "SELECT topic, kafka_partition, kafka_offset, partition, seq FROM public.placed "
        "WHERE kafka_partition = 0 AND kafka_offset < 50 ORDER BY kafka_offset"
    )


def letters(placed: Delivery) -> list[tuple[object, ...]]:
    return placed.query(
        'SELECT "offset", state, code FROM kbatchd.dead_letters '
        "WHERE route = 'placed' AND partition = 0 AND \"offset\" < 50 ORDER BY id"
    )


def test_a_range_is_as_it_was_beside_a_running_daemon(
    placed: Delivery, daemon: Daemon, again: ReplayRange, command: Command
) -> None:
    before = table(placed)
    assert letters(placed) == [(7, "open", "23514")]
    with placed.load(per_second=500):
        # Given: rows of the range were altered, doubled and lost; others as well.
        placed.execute("UPDATE public.placed SET seq = -1 WHERE kafka_offset BETWEEN 5 AND 15")
        placed.execute(DOUBLE)
        placed.execute("DELETE FROM public.placed WHERE kafka_offset BETWEEN 20 AND 25 AND kafka_partition = 0")
        assert table(placed) != before

        # Then: it is as its records make it, the rest is as it was, and the refused one has its one letter.
        code, said = again()
        assert code == 65, said
        assert "42 records, 41 rows in place of 36, 1 dead letters" in said
        assert table(placed) == before
        assert letters(placed) == [(7, "open", "23514")]
    placed.wait_drained()
    line = placed.query("SELECT rows, dead_letters, spans FROM kbatchd.batches WHERE reason = 'replay'")
    assert line == [(41, 1, {placed.topic: {"0": [FIRST, END]}})]
    altered = placed.query("SELECT count(*) FROM public.placed WHERE seq = -1")
    assert altered == [(10,)], "those of the other partition"
    assert not daemon.logged("action=fenced")
    assert command(daemon, "verify", "placed")[0] == 3, "what was doubled in the other partition"
    placed.execute(
        "DELETE FROM public.placed AS p USING public.placed AS q WHERE p.kafka_partition = 1 AND p.kafka_offset = 30 "
        "AND q.kafka_partition = 1 AND q.kafka_offset = 30 AND p.id > q.id"
    )
    assert command(daemon, "verify", "placed")[0] == 0


def test_what_becomes_of_dead_letters(placed: Delivery, daemon: Daemon, again: ReplayRange, command: Command) -> None:
    # A record that is no letter any more is a row,
    placed.execute("ALTER TABLE public.placed DROP CONSTRAINT placed_seq_check")
    assert again()[0] == 0
    assert letters(placed) == [(7, "replayed", "23514")]
    assert len(table(placed)) == 50
    # one that is refused again has its letter again, and a new one a new one;
    placed.execute("ALTER TABLE public.placed ADD CONSTRAINT never CHECK (seq NOT IN (7, 9)) NOT VALID")
    assert again()[0] == 65
    assert letters(placed) == [(7, "open", "23514"), (9, "open", "23514")]
    # what was discarded stays so;
    assert command(daemon, "dead-letters", "discard", "--yes", "--offsets", "9")[0] == 0
    assert again()[0] == 65
    assert letters(placed) == [(7, "open", "23514"), (9, "discarded", "23514")]
    # and what was corrected by hand stays corrected.
    [(number,)] = placed.query(
        "SELECT id FROM kbatchd.dead_letters WHERE route = 'placed' AND partition = 0 AND \"offset\" = 7"
    )
    corrected = daemon.config.with_name("value.json")
    corrected.write_text('{"partition":0,"seq":1007}')
    assert command(daemon, "dead-letters", "replay", str(number), "--value", str(corrected))[0] == 0
    assert again()[0] == 65
    assert letters(placed) == [(7, "replayed", "23514"), (9, "discarded", "23514")]
    assert (placed.topic, 0, 7, 0, 1007) in table(placed)


def test_what_cannot_be_read_again_is_refused(placed: Delivery, again: ReplayRange) -> None:
    before, epoch = table(placed), placed.query("SELECT sum(epoch) FROM kbatchd.progress")

    def refused(words: str, first: int = FIRST, end: int = END, route: str = "placed", code: int = 78) -> None:
        found, said = again(first, end, route)
        assert (found, words in said) == (code, True), said
        assert table(placed) == before
        assert letters(placed) == [(7, "open", "23514")]

    refused(f"kbatchd progress set --config FILE latest 0 {FIRST}", route="latest")
    refused("has the record's topic and partition and offset", route="plain")
    refused("progress stands at 50", end=51)
    # A row whose record is not there: an aborted one,
    producer = Producer({"bootstrap.servers": placed.bootstrap_servers, "transactional.id": placed.topic})
    producer.init_transactions()
    producer.begin_transaction()
    producer.produce(placed.topic, value(0, 0), partition=0)
    producer.flush(30)
    producer.abort_transaction()
    placed.wait_drained()
    placed.execute(DOUBLE.replace("kafka_offset FROM", "50 FROM"))
    refused("Kafka has no record of offsets 50 any more", end=52)
    admin = AdminClient({"bootstrap.servers": placed.bootstrap_servers})
    # rows of others that would go along,
    placed.execute("ALTER TABLE public.placed ADD PRIMARY KEY (id)")
    placed.execute("CREATE TABLE public.notes (row bigint REFERENCES public.placed ON DELETE CASCADE)")
    refused("rows of table notes would go")
    placed.execute("DROP TABLE public.notes")
    # offsets that a former topic had,
    placed.execute(
        "INSERT INTO kbatchd.gaps (pipeline, route, topic, partition, kind, first_offset, last_offset) "
        f"VALUES ('kbatchd', 'placed', '{placed.topic}', 0, 'recreated', 10, 10)"
    )
    refused("a former topic of the name")
    placed.execute("DELETE FROM kbatchd.gaps")
    # a record of another log than the one that was read,
    placed.execute("UPDATE kbatchd.progress SET leader_epochs = '[[77, 0]]' WHERE route = 'placed'")
    refused("is another record than the one that was read")
    placed.execute("UPDATE kbatchd.progress SET topic_id = 'zzz' WHERE route = 'placed' AND partition = 0")
    refused("the topic was recreated")
    # and what Kafka has deleted.
    placed.execute(
        "UPDATE kbatchd.progress SET topic_id = (SELECT max(topic_id) FROM kbatchd.progress WHERE route = 'plain')"
    )
    for future in admin.delete_records([TopicPartition(placed.topic, 0, FIRST + 1)]).values():
        future.result()
    refused("Kafka has offsets 4 to 51 only")
    assert placed.query("SELECT sum(epoch) FROM kbatchd.progress") == epoch


def test_progress_that_is_moved_meanwhile_undoes_it(placed: Delivery, daemon: Daemon, again: ReplayRange) -> None:
    assert daemon.stop() == 0
    before = table(placed)
    ended: list[tuple[int, str]] = []
    with psycopg.connect(placed.dsn) as blocker:
        blocker.execute("SELECT FROM public.placed WHERE kafka_offset = 10 FOR UPDATE")
        running = threading.Thread(target=lambda: ended.append(again()))
        running.start()
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%DELETE FROM%%'"
        wait_until(lambda: placed.query(waits) == [(1,)], 4, "the DELETE that waits", 0.05)
        placed.execute("UPDATE kbatchd.progress SET next_offset = 0, epoch = epoch + 1 WHERE route = 'placed'")
        blocker.rollback()
        running.join(60)
    [(code, said)] = ended
    assert code == 70, said
    assert "claimed or moved meanwhile" in said
    assert table(placed) == before
