"""What Kafka and PostgreSQL do behind the daemon's back: markers, new topics, lost offsets, altered tables."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from tests.fix_daemon import MakeDaemon, wait_until
from tests.fix_kafka import wait_for_leaders
from tests.fix_load import Delivery, MakeDelivery, value

#: A recreated topic is noticed at the next look at the topics, every 10 s.
NOTICED_SECONDS = 15.0

#: Partitions added to a topic are read within this time.
GROWN_SECONDS = 60.0


def test_a_transactional_topic_ends_with_lag_0_and_no_gap(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    # Given: committed and aborted transactions in turn, the last one aborted: the topic ends with records nobody sees.
    daemon = make_daemon(delivery.route).start()
    daemon.wait_ready()
    producer = Producer({"bootstrap.servers": delivery.bootstrap_servers, "transactional.id": delivery.topic})
    producer.init_transactions()
    for transaction in range(10):
        producer.begin_transaction()
        for seq in range(transaction * 20, transaction * 20 + 20):
            for partition in range(delivery.partitions):
                producer.produce(delivery.topic, value(partition, seq), partition=partition)
        producer.flush()
        if transaction % 2:
            producer.abort_transaction()
        else:
            producer.commit_transaction()

    # Then: progress stands behind the last marker, and the table has the committed records only.
    delivery.wait_drained()
    delivery.assert_exactly_once()
    assert delivery.rows() == 5 * 20 * delivery.partitions

    # And: with everything deleted up to the last marker, a new start sees no gap. The marker is written a moment after
    # the transaction's end is acknowledged.
    ends = dict.fromkeys(range(delivery.partitions), 10 * (20 + 1))
    wait_until(lambda: delivery.ends() == ends, 30, "the last marker")
    delivery.wait_drained()
    assert daemon.stop() == 0
    delete_records(delivery, delivery.ends())
    daemon.start()
    daemon.wait_ready()
    delivery.send(40, first=1_000)
    delivery.wait_drained()
    assert delivery.rows() == 5 * 20 * delivery.partitions + 40
    assert not daemon.logged("action=halt")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_a_topic_recreated_halts_until_it_is_accepted(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon, running: bool
) -> None:
    # Given: three routes; of two the topic is recreated, once with fewer records and once with more.
    shorter, longer, other = (make_delivery(2, f"public.{name}") for name in ("shorter", "longer", "other"))
    everything = (shorter, longer, other)
    daemon = make_daemon(*(delivery.route for delivery in everything)).start()
    for delivery in everything:
        delivery.send(200)
    for delivery in everything:
        delivery.wait_drained()
    if not running:
        assert daemon.stop() == 0
    recreate(shorter)
    recreate(longer)
    shorter.send(20, first=1_000)
    longer.send(600, first=1_000)
    if not running:
        daemon.start()

    # Then: they halt, each partition with its own error, and nothing of the new topics is written; the other goes on.
    daemon.wait_for_log("was recreated", NOTICED_SECONDS, count=4)
    for delivery in (shorter, longer):
        for partition in range(2):
            assert len(daemon.logged(f"{delivery.topic}[{partition}]: the topic was recreated")) == 1
        assert delivery.rows() == 200
        assert delivery.progress() == {0: 100, 1: 100}
    other.send(200, first=100)
    other.wait_drained()
    other.assert_exactly_once()

    # And: once accepted, the new topics are read from their start.
    for delivery, count in ((shorter, 20), (longer, 600)):
        accepted = daemon.command("progress", "accept", delivery.topic)
        assert accepted.returncode == 0, accepted.stderr
        delivery.wait_drained()
        assert delivery.rows() == 200 + count
        delivery.execute(f"DELETE FROM {delivery.table} WHERE seq < 1000")
        delivery.assert_exactly_once()


@pytest.mark.soak
def test_topics_recreated_between_two_looks(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    """Each is longer at once than what was read of its former self, and librdkafka reads on in it."""
    deliveries = [make_delivery(2, f"public.recreated_{number}") for number in range(6)]
    daemon = make_daemon(*(delivery.route for delivery in deliveries), batch={"linger_seconds": 0.05}).start()
    for delivery in deliveries:
        delivery.send(200)
    for delivery in deliveries:
        delivery.wait_drained()
    for delivery in deliveries:
        recreate(delivery)
        delivery.send(600, first=1_000)
    daemon.wait_for_log("action=halt", NOTICED_SECONDS, count=12)
    assert [delivery.rows() for delivery in deliveries] == [200] * 6
    assert [delivery.progress() for delivery in deliveries] == [{0: 100, 1: 100}] * 6


def test_retention_past_progress_halts_or_is_recorded(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    # Given: two routes that were drained up to 100; then 100 more came, and Kafka deleted the first 50 of them in [0].
    halting, recording = make_delivery(2, "public.halting"), make_delivery(2, "public.recording")
    both = (halting, recording)
    daemon = make_daemon(halting.route, {**recording.route, "on_gap": "record"}).start()
    for delivery in both:
        delivery.send(200)
        delivery.wait_drained()
    assert daemon.stop() == 0
    for delivery in both:
        delivery.send(200, first=100)
        delete_records(delivery, {0: 150})

    # When / then: the one halts and names the range, its other partition goes on.
    daemon.start()
    daemon.wait_for_log("action=halt")
    assert daemon.logged(f"{halting.topic}[0]: offsets 100 to 149 were deleted")
    wait_until(lambda: halting.progress() == {0: 100, 1: 200}, 10, "the other partition at its end")
    assert halting.stored()[0] == list(range(100))

    # And: the other route records the range and goes on.
    recording.wait_drained()
    gap = ("retention", 0, 100, 150)
    statement = "SELECT kind, partition, first_offset, last_offset FROM kbatchd.gaps WHERE topic = %s"
    assert recording.query(statement, recording.topic) == [gap]
    assert recording.stored() == {0: [*range(100), *range(150, 200)], 1: list(range(200))}

    # And: once accepted, the first goes on as well.
    accepted = daemon.command("progress", "accept", halting.topic)
    assert "offsets 100 to 149" in accepted.stdout, accepted.stderr
    halting.wait_drained()
    assert halting.query(statement, halting.topic) == [gap]
    assert halting.stored() == recording.stored()


def test_partitions_added_later_are_read_from_their_start(make_delivery: MakeDelivery, make_daemon: MakeDaemon) -> None:
    # Given: two topics with one partition and some records; one route wants them, the other only what comes later.
    earliest, latest = make_delivery(1, "public.earliest"), make_delivery(1, "public.latest")
    both = (earliest, latest)
    for delivery in both:
        delivery.send(50)
    daemon = make_daemon(earliest.route, {**latest.route, "start": "latest"}).start()
    daemon.wait_ready()
    for delivery in both:
        delivery.send(50, first=50)
        delivery.wait_drained()
    assert earliest.stored() == {0: list(range(100))}
    assert latest.stored() == {0: list(range(50, 100))}

    # When: they grow, and the new partitions have records before anybody has looked.
    grown = [delivery.grow(3) for delivery in both]
    for delivery in grown:
        delivery.send(300, first=100)

    # Then: those are read from 0, whatever `start` says.
    for delivery, first in zip(grown, (0, 50), strict=True):
        delivery.wait_drained(GROWN_SECONDS)
        new = list(range(100, 200))
        assert delivery.stored() == {0: list(range(first, 200)), 1: new, 2: new}


def test_a_column_whose_type_changes_under_load_never_gets_a_wrong_value(
    make_delivery: MakeDelivery, make_daemon: MakeDaemon
) -> None:
    # Given: seq itself will change its type; a double precision's bytes are a valid bigint, and the other way round.
    delivery = make_delivery(2)
    # Without a breaker: how many dead letters there are in a row is a matter of how soon the next type comes.
    daemon = make_daemon({**delivery.route, "max_dead_letters": 0}, batch={"linger_seconds": 0.1}).start()
    daemon.wait_ready()
    with delivery.load(per_second=4_000):
        for kind in ("double precision", "bigint", "text", "bigint", "double precision", "bigint"):
            delivery.execute(f"ALTER TABLE {delivery.table} ALTER seq TYPE {kind} USING seq::{kind}")
            # A text column takes no number: those are dead letters.
            arrived = count_dead_letters if kind == "text" else Delivery.rows
            before = arrived(delivery)
            wait_until(lambda: arrived(delivery) > before + 1_000, 20, f"records as {kind}")  # noqa: B023
    delivery.wait_drained()

    # Then: every number is there as it was sent, in the table or in a dead letter.
    delivery.assert_exactly_once()


def test_progress_set_moves_a_partition_without_traffic(delivery: Delivery, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(delivery.route).start()
    delivery.send(40)
    delivery.wait_drained()
    # Given: an offset that is not in the topic is refused.
    outside = daemon.command("progress", "set", delivery.topic, "0", "999")
    assert (outside.returncode, "is not in the topic" in outside.stderr) == (78, True)

    # When: a partition that nobody writes to is set back, it is read again from there.
    assert daemon.command("progress", "set", delivery.topic, "0", "0").returncode == 0
    wait_until(lambda: delivery.rows() == 40 + delivery.ends()[0], 10, "the records of partition 0 once more")
    delivery.wait_drained()


def count_dead_letters(delivery: Delivery) -> int:
    [(count,)] = delivery.query("SELECT count(*) FROM kbatchd.dead_letters WHERE topic = %s", delivery.topic)
    assert isinstance(count, int)
    return count


def recreate(delivery: Delivery) -> None:
    """Delete the topic and create it under the same name; return when the broker knows the new one by that."""
    admin = AdminClient({"bootstrap.servers": delivery.bootstrap_servers})
    former = topic_id(admin, delivery.topic)
    admin.delete_topics([delivery.topic])[delivery.topic].result()
    admin.create_topics([NewTopic(delivery.topic, delivery.partitions, 1)])[delivery.topic].result()
    wait_until(lambda: topic_id(admin, delivery.topic) not in {None, former}, 30, "the new topic")
    wait_for_leaders(admin, delivery.topic, delivery.partitions)


def topic_id(admin: AdminClient, topic: str) -> str | None:
    """Return the topic's id, as the broker has it; None as long as it has none."""
    try:
        return str(admin.describe_topics(TopicCollection([topic]))[topic].result().topic_id)
    except KafkaException:
        return None


def delete_records(delivery: Delivery, before: dict[int, int]) -> None:
    """Do what retention does, at once."""
    admin = AdminClient({"bootstrap.servers": delivery.bootstrap_servers})
    offsets = [TopicPartition(delivery.topic, partition, offset) for partition, offset in before.items()]
    for future in admin.delete_records(offsets).values():
        future.result()
