"""A name is not a topic: recreated under the daemon's hands, or told by a broker that lags behind the others."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import NewTopic

from tests.faults.kafka_wire import Api, Earlier
from tests.faults.oracle import note, value
from tests.faults.stage import route
from tests.faults.unanswered import altered_once
from tests.fix_daemon import wait_until

if TYPE_CHECKING:
    from tests.faults.oracle import Oracle
    from tests.faults.stage import Stage

#: A topic that was recreated is noticed at the next look at the topics, every 10 s, or by the next batch.
NOTICED_SECONDS = 20.0

#: One bad answer: the next look at the topics, and the records.
REREAD_SECONDS = 6.0


def recreate_at_once(stage: Stage, oracle: Oracle, records: int) -> None:
    """Delete the topic, make it again and fill it before anybody looks."""
    oracle.remember()
    admin = stage.brokers.admin()
    seqs = stage.take_numbers(records)
    producer = Producer({"bootstrap.servers": stage.brokers.direct, "log_level": 0, "linger.ms": 0})
    admin.delete_topics([oracle.topic])[oracle.topic].result()
    admin.create_topics([NewTopic(oracle.topic, 1, 1)])[oracle.topic].result()
    for seq in seqs:
        producer.produce(oracle.topic, value(seq), partition=0)
    assert producer.flush(60) == 0


def rows(stage: Stage, oracle: Oracle) -> object:
    return stage.execute(f"SELECT count(*) FROM {oracle.table}")[0][0]


def gaps(stage: Stage) -> list[tuple[object, ...]]:
    return stage.execute(
        "SELECT kind, first_offset, last_offset, topic_id, next_topic_id FROM kbatchd.gaps ORDER BY id"
    )


@pytest.mark.parametrize("linger_seconds", [0.02, 0.05, 0.2, 0.5])
def test_a_topic_recreated_while_a_batch_is_open_is_read_once(stage: Stage, linger_seconds: float) -> None:
    # Given: five records are in the table.
    oracle = stage.oracle()
    stage.send(oracle, 5)
    daemon = stage.daemon(route(oracle, on_gap="record"), batch={"linger_seconds": linger_seconds}).start()
    wait_until(lambda: rows(stage, oracle) == 5, 20, "the first topic's records")
    former = oracle.edition().topic_id

    # When: it is deleted, recreated and filled, faster than anybody looks.
    recreate_at_once(stage, oracle, 300)

    # Then: each record is there once, and one gap is recorded: of the former topic, from where it was read to.
    wait_until(lambda: rows(stage, oracle) == 305, NOTICED_SECONDS, "both topics' records")
    stage.settle(daemon)
    assert rows(stage, oracle) == 305
    assert gaps(stage) == [("recreated", 5, 5, former, oracle.edition().topic_id)]
    stage.check()


def test_a_former_id_is_no_news(stage: Stage) -> None:
    # Given: a broker's metadata of before the topic was recreated.
    oracle = stage.oracle()
    stage.send(oracle, 5)
    earlier = Earlier(stage.wire, Api.METADATA, Api.DESCRIBE_TOPIC_PARTITIONS)
    daemon = stage.daemon(route(oracle, on_gap="record"), batch={"linger_seconds": 0.05}).start()
    wait_until(lambda: rows(stage, oracle) == 5, 20, "the first topic's records")
    daemon.wait_ready()
    recreate_at_once(stage, oracle, 300)
    wait_until(lambda: rows(stage, oracle) == 305, NOTICED_SECONDS, "both topics' records")

    # When: it is told again, at some of the next questions, and the daemon writes on.
    stale = earlier.again(times=3)
    wait_until(lambda: bool(stage.send(oracle, 1)) and stale.hits >= 3, NOTICED_SECONDS, "old answers", 0.3)

    # Then: nothing is read twice, and nothing is lost.
    stage.settle(daemon)
    assert len(gaps(stage)) == 1
    stage.check()


def test_a_former_id_at_a_start_is_no_news(stage: Stage) -> None:
    """The worker has not seen the topic change; kbatchd.gaps knows that it did."""
    oracle = stage.oracle()
    stage.send(oracle, 5)
    earlier = Earlier(stage.wire, Api.METADATA, Api.DESCRIBE_TOPIC_PARTITIONS)
    daemon = stage.daemon(route(oracle, on_gap="record"), batch={"linger_seconds": 0.05}).start()
    wait_until(lambda: rows(stage, oracle) == 5, 20, "the first topic's records")
    recreate_at_once(stage, oracle, 300)
    wait_until(lambda: rows(stage, oracle) == 305, NOTICED_SECONDS, "both topics' records")
    assert daemon.stop() == 0

    stale = earlier.again(times=6)
    daemon.start()
    daemon.wait_ready()
    wait_until(lambda: bool(stage.send(oracle, 1)) and stale.hits >= 6, NOTICED_SECONDS, "old answers", 0.3)
    stage.settle(daemon)
    assert len(gaps(stage)) == 1
    stage.check()


def test_accepted_at_once_it_goes_on(stage: Stage) -> None:
    # Given: a recreated topic that halts.
    oracle = stage.oracle()
    stage.send(oracle, 5)
    earlier = Earlier(stage.wire, Api.METADATA, Api.DESCRIBE_TOPIC_PARTITIONS)
    daemon = stage.daemon(route(oracle), batch={"linger_seconds": 0.05}).start()
    wait_until(lambda: rows(stage, oracle) == 5, 20, "the first topic's records")
    recreate_at_once(stage, oracle, 300)
    daemon.wait_for_log("action=halt", NOTICED_SECONDS)

    # When: somebody accepts it in the same moment, and then a broker tells the former id now and then.
    accepted = stage.command(daemon, "progress", "accept", oracle.topic)
    assert "accepted" in accepted.stdout, accepted.stderr
    stale = earlier.again(times=4)

    # Then: it goes on, and does not halt again.
    wait_until(lambda: bool(stage.send(oracle, 1)) and stale.hits >= 4, NOTICED_SECONDS, "old answers", 0.3)
    stage.settle(daemon)
    assert oracle.progress() == oracle.edition().ends()
    assert len(daemon.logged("action=halt")) == 1
    stage.check()


def test_a_former_id_is_not_accepted(stage: Stage) -> None:
    # Given: the brokers' answers to `progress accept` from before the topic was recreated, which is in the table now.
    oracle = stage.oracle()
    stage.send(oracle, 5)
    daemon = stage.daemon(route(oracle, on_gap="record"), batch={"linger_seconds": 0.05}).start()
    wait_until(lambda: rows(stage, oracle) == 5, 20, "the first topic's records")
    earlier = Earlier(stage.wire, Api.METADATA, Api.DESCRIBE_TOPIC_PARTITIONS)
    assert "nothing to accept" in stage.command(daemon, "progress", "accept", oracle.topic).stdout
    stale = earlier.again(times=0)
    recreate_at_once(stage, oracle, 300)
    wait_until(lambda: rows(stage, oracle) == 305, NOTICED_SECONDS, "both topics' records")
    assert daemon.stop() == 0

    # When: they are given again.
    file = Path(daemon.config)
    file.write_text(f"startup_timeout_seconds = 3.0\n{file.read_text()}")
    stale.times = None
    accepted = stage.command(daemon, "progress", "accept", oracle.topic)
    assert stale.hits
    stale.lift()

    # Then: nothing is accepted, and the daemon reads on in the topic that it was in.
    assert (accepted.returncode, accepted.stdout) == (69, "")
    assert "former id" in accepted.stderr
    daemon.start()
    stage.send(oracle, 1)
    stage.settle(daemon)
    assert len(gaps(stage)) == 1
    stage.check()


def test_a_gap_line_that_is_refused_once_leaves_no_partition_without_an_owner(stage: Stage) -> None:
    # Given: kbatchd.gaps refuses its first line.
    oracle = stage.oracle()
    stage.send(oracle, 5)
    stage.execute(
        """
        CREATE SEQUENCE public.refusals;
        CREATE FUNCTION public.refuse_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF nextval('public.refusals') = 1 THEN RAISE EXCEPTION 'not now'; END IF;
            RETURN NEW; END $$;
        CREATE TRIGGER refuse_once BEFORE INSERT ON kbatchd.gaps FOR EACH ROW EXECUTE FUNCTION public.refuse_once();
        """
    )
    daemon = stage.daemon(route(oracle, on_gap="record"), batch={"linger_seconds": 0.05}).start()
    wait_until(lambda: rows(stage, oracle) == 5, 20, "the first topic's records")
    assert daemon.stop() == 0

    # When: the daemon finds at its claim that the topic was recreated.
    recreate_at_once(stage, oracle, 300)
    daemon.start()

    # Then: the refusal is told, and the claim is made again.
    daemon.wait_for_log("not now", NOTICED_SECONDS)
    wait_until(lambda: rows(stage, oracle) == 305, NOTICED_SECONDS, "both topics' records")
    assert len(gaps(stage)) == 1
    stage.check()


def test_a_byte_altered_on_the_brokers_disk_is_no_altered_value(stage: Stage) -> None:
    # Given: three batches of records, and in the second one a byte that has changed on the disk.
    oracle = stage.oracle()
    for _ in range(3):
        seqs = stage.send(oracle, 100)
    altered = note(seqs[0] - 50).encode()
    stage.brokers.stop(1)
    [segment] = stage.brokers.segments(oracle.topic)
    content = segment.read_bytes()
    assert content.count(altered) == 1
    segment.write_bytes(content.replace(altered, b"0" + altered[1:] if altered[:1] != b"0" else b"1" + altered[1:]))
    stage.brokers.start(1)

    # When / then: what came before it is read; then the partition stands still, and the daemon says where and why.
    daemon = stage.daemon(route(oracle), batch={"linger_seconds": 0.05}).start()
    daemon.wait_for_log(f"{oracle.topic}[0] stands still at offset", NOTICED_SECONDS)
    wait_until(lambda: rows(stage, oracle) == oracle.progress()[0][1] > 0, NOTICED_SECONDS, "what can be read")
    stands = oracle.progress()[0][1]
    assert 100 <= stands <= 150
    assert len(daemon.logged("action=worker_started")) == 1
    assert stage.execute(f"SELECT count(*) FROM {oracle.table} WHERE note NOT LIKE '%-' || seq") == [(0,)]

    # And: moved behind it, as it says, it goes on.
    moved = stage.command(daemon, "progress", "set", oracle.topic, "0", "200")
    assert moved.returncode == 0, moved.stderr
    wait_until(lambda: rows(stage, oracle) == stands + 100, NOTICED_SECONDS, "what is behind it")


def test_a_byte_altered_on_the_way_is_read_again_at_once(stage: Stage) -> None:
    oracle = stage.oracle()
    stage.send(oracle, 100)
    rule = altered_once(stage)
    daemon = stage.daemon(route(oracle), batch={"linger_seconds": 0.05}).start()
    rule.wait()
    wait_until(lambda: rows(stage, oracle) == 100, REREAD_SECONDS, "all records")
    assert len(daemon.logged("action=unreadable")) == 1
    assert not daemon.logged("stands still at offset"), "a single bad answer is no damage"
    stage.check()
